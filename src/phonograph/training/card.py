"""The model card of a run: what was trained, on what, how, and how good it is; README.md beside the weights.

It turns plain values into Markdown and knows no task.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phonograph import __version__

__all__ = ["CardFacts", "figure_table", "joined_card", "model_card", "source_revision"]


_TITLE = "# Model card"


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Args:
        description: the task's own words (`Task.describe`), by heading.
        figures: held-out figures; names may be "row/column".
        recipe: as YAML.
        steps: of the optimiser, done.
        seconds: of training.
        device: "2 x NVIDIA H200", and the like.
        result: which weights these are ("the last step", "the best test/wer, step 4000").
    """

    description: Mapping[str, Any]
    figures: Mapping[str, float]
    recipe: str
    steps: int
    seconds: float
    device: str
    result: str


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the front matter that the Hugging Face Hub reads."""
    lines = ["---", "library_name: phonograph", "tags: [audio, speech]", "---", "", _TITLE, ""]
    for heading, content in facts.description.items():
        lines += [f"## {heading.replace('_', ' ').capitalize()}", "", *_content(content), ""]
    lines += ["## Figures", "", *_markdown(*figure_table(facts.figures)), ""] if facts.figures else []
    lines += [
        "## Training",
        "",
        f"- {facts.steps} steps in {facts.seconds / 60:.1f} minutes on {facts.device}",
        f"- weights: {facts.result}",
        f"- phonograph {__version__}, {source_revision()}",
        "",
        "```yaml",
        facts.recipe.rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def joined_card(card: str, earlier: Mapping[str, str]) -> str:
    """A model's card, and below it what those of the models that it was made from say, by their names."""
    parts = [card.rstrip()]
    for name, other in earlier.items():
        _, _, body = other.partition(f"\n{_TITLE}\n")
        parts.append(f"## Stage before: {name}\n{body.rstrip()}".replace("\n## ", "\n### "))
    return "\n\n".join(parts) + "\n"


def figure_table(figures: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: "test/wer" is column wer of row test; a name without a slash is of the row "all"."""
    cells: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        row, _, column = name.rpartition("/")
        cells.setdefault(row or "all", {})[column] = value
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    rows = [
        [row, *(f"{values[column]:.4g}" if column in values else "-" for column in columns)] for row, values in cells.items()
    ]
    return ["", *columns], rows


def source_revision() -> str:
    """The commit of the source tree that runs, or that it is an installed package."""
    here = Path(__file__)
    try:
        # An environment may lie in another project's tree, which doesn't track this file.
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "installed package"
    return f"commit {done.stdout.strip()}"


def _content(content: Any) -> list[str]:
    if isinstance(content, Mapping):
        return [f"- {name.replace('_', ' ')}: {value}" for name, value in content.items()]
    return [f"- {item}" for item in content] if isinstance(content, list | tuple) else [str(content)]


def _markdown(columns: list[str], rows: list[list[str]]) -> list[str]:
    table = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return [f"| {' | '.join(row)} |" for row in table]
