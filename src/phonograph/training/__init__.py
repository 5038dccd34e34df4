"""Training: recipes, the loop, data and tasks.

    from phonograph.training import RunOptions, read_recipe, train

    outcome = train(read_recipe("ctc.yaml", {"loop.steps": 1000}), RunOptions(output=Path("run"), data=Path("speech")))

Importing it loads no training package; what the extra `train` brings is imported when it is used. A task of one's own is a
class with the methods of `Task`, named in a recipe as "package.module:Class".
"""

from phonograph.training.checkpoints import average_checkpoints
from phonograph.training.loop import Outcome, RunOptions, Trainer
from phonograph.training.recipe import (
    LoopOptions,
    OptimizerOptions,
    Recipe,
    StagedRecipe,
    bundled_recipes,
    parse_recipe,
    read_recipe,
)
from phonograph.training.schedules import ScheduleOptions
from phonograph.training.stages import train
from phonograph.training.task import Losses, ParameterGroup, ResumableIterator, RunContext, Task

__all__ = [
    "LoopOptions",
    "Losses",
    "OptimizerOptions",
    "Outcome",
    "ParameterGroup",
    "Recipe",
    "ResumableIterator",
    "RunContext",
    "RunOptions",
    "ScheduleOptions",
    "StagedRecipe",
    "Task",
    "Trainer",
    "average_checkpoints",
    "bundled_recipes",
    "parse_recipe",
    "read_recipe",
    "train",
]
