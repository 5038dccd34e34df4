"""A recording of any length as overlapping windows, cut where it is quiet, in memory that does not grow.

Each window has a core, which is what its results are kept for, and some context on both sides. The cores cover the recording
exactly once. This knows samples, and no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phonograph.audio import Audio

__all__ = ["Window", "WindowPlan", "windows_of"]

_QUIET_SECONDS = 0.2


@dataclass(frozen=True)
class WindowPlan:
    """How to cut: cores of up to so many samples, ended at the quietest place of their last `search_samples`.

    Cores and windows begin at multiples of `step_samples`, a model's hop, so that its frames lie where they do in one pass.
    """

    core_samples: int
    search_samples: int
    context_samples: int
    step_samples: int
    quiet_samples: int

    @classmethod
    def in_seconds(cls, rate: int, step_samples: int, *, core: float, search: float, context: float) -> "WindowPlan":
        """The same from seconds at a rate in Hz, rounded to whole steps."""

        def samples(seconds: float) -> int:
            return round(seconds * rate / step_samples) * step_samples

        return cls(samples(core), samples(search), samples(context), step_samples, max(1, round(_QUIET_SECONDS * rate)))


@dataclass(frozen=True)
class Window:
    """Samples (time,) from `start` of the recording on, with the core from `core_start` up to `core_end` of the recording."""

    samples: npt.NDArray[np.float32]
    start: int
    core_start: int
    core_end: int


def windows_of(blocks: Iterator[Audio], plan: WindowPlan) -> Iterator[Window]:
    """Cut mono blocks into windows; a rest too short to look for a quiet place in joins the last window."""
    held = np.zeros(0, dtype=np.float32)
    held_from = core_start = 0
    ended = False
    while True:
        wanted = core_start + plan.core_samples + plan.search_samples + plan.context_samples
        while not ended and held_from + len(held) < wanted:
            block = next(blocks, None)
            ended = block is None
            if block is not None:
                held = np.concatenate([held, block.samples[0]])
        end = held_from + len(held)
        last = ended and end - core_start <= plan.core_samples + plan.search_samples
        core_end = end if last else _quiet_place(held, core_start - held_from, plan) + held_from
        stop = min(end, core_end + plan.context_samples)
        start = max(0, core_start - plan.context_samples)
        yield Window(held[start - held_from : stop - held_from], start, core_start, core_end)
        if last:
            return
        core_start = core_end
        kept_from = max(0, core_start - plan.context_samples)
        held, held_from = held[kept_from - held_from :], kept_from


def _quiet_place(samples: npt.NDArray[np.float32], core_start: int, plan: WindowPlan) -> int:
    """The multiple of a step, in the last part of a full core, around which there is the least energy.

    Among equal ones, as in digital silence, that in the middle, so that little of the speech before is the next one's context.
    """
    latest = core_start + plan.core_samples
    earliest = latest - plan.search_samples
    half = plan.quiet_samples // 2
    around = samples[earliest - half : latest + half].astype(np.float64)
    energy = np.concatenate([[0.0], np.cumsum(around * around)])
    places = np.arange(0, latest - earliest + 1, plan.step_samples)
    levels = energy[places + 2 * half] - energy[places]
    quietest = places[levels == levels.min()]
    return int(earliest + quietest[len(quietest) // 2])
