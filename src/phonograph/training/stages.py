"""Recipes of one stage or of several, run to their end.

    outcome = train(read_recipe("wav2vec2-mini"), RunOptions(output=Path("run"), data=Path("speech")))
    outcome.model  # run/model, in either case

Each stage is a run of its own, in run/1-NAME, run/2-NAME and so on. The last one's result and figures are the whole run's; its
card says what came before. A run that was stopped goes on in the stage that was stopped, and stages that are complete stay as
they are. Processes on several machines need one file system: a stage loads what another has written.
"""

import dataclasses
import os
import shutil
from pathlib import Path

from phonograph.files import atomic_write, make_folder
from phonograph.training import checkpoints
from phonograph.training.card import joined_card
from phonograph.training.loop import CARD_NAME, RECIPE_NAME, Outcome, RunOptions
from phonograph.training.loop import train as train_stage
from phonograph.training.recipe import Recipe, StagedRecipe

__all__ = ["train"]


def train(recipe: Recipe | StagedRecipe, run: RunOptions) -> Outcome:
    """Train what a recipe says, to its end or until SIGINT or SIGTERM, which end it after the current step with a checkpoint.

    Raises:
        ConfigError: the folder holds another run and `resume` is not set; a task refuses its options or its data.
        CheckpointError: the checkpoint to go on from is of another recipe, or damaged.
        DivergedError: gradients were not finite for `loop.max_nonfinite` steps in a row.
        MissingExtraError: an optional package is missing.
        OutputError: the folder can't be written.
    """
    if isinstance(recipe, Recipe):
        return train_stage(recipe, run)
    if _is_first_process():
        make_folder(run.output)
        with atomic_write(run.output / RECIPE_NAME) as file:
            file.write(recipe.to_yaml().encode())
    models: dict[str, Path] = {}
    folders = [run.output / f"{number}-{name}" for number, name in enumerate(recipe.stages, 1)]
    for folder, (name, stage) in zip(folders, recipe.stages.items(), strict=True):
        if run.resume and folder != folders[-1] and _is_complete(stage, folder):
            models[name] = folder / checkpoints.MODEL_NAME
            continue
        chosen = stage.with_models({other: str(model) for other, model in models.items()})
        outcome = train_stage(chosen, dataclasses.replace(run, output=folder))
        if outcome.model is None:
            return outcome
        models[name] = outcome.model
    # The first process's folder is everyone's.
    final = models[name].parent.parent / checkpoints.MODEL_NAME
    if _is_first_process():
        _publish(models, final)
    return dataclasses.replace(outcome, model=final)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _is_complete(stage: Recipe, folder: Path) -> bool:
    found = checkpoints.find_checkpoints(folder)
    if not found or not (folder / checkpoints.MODEL_NAME).exists():
        return False
    meta, minutes = checkpoints.read_meta(found[-1]), stage.loop.max_minutes
    return meta["step"] >= stage.loop.steps or (minutes is not None and meta["seconds"] >= 60 * minutes)


def _publish(models: dict[str, Path], final: Path) -> None:
    """Put the last stage's result into the run's folder, with a card that tells of all stages."""
    *earlier, last = models
    part = final.with_name(f".{final.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    checkpoints.copy_folder(models[last], part)
    cards = {name: (model / CARD_NAME).read_text(encoding="utf-8") for name, model in models.items()}
    with atomic_write(part / CARD_NAME) as file:
        file.write(joined_card(cards[last], {name: cards[name] for name in earlier}).encode())
    checkpoints.replace_folder(part, final)
