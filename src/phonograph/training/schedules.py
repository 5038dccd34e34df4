"""Learning-rate schedules as formulas: step -> factor of the peak learning rate.

    factor(ScheduleOptions(kind="tri_stage", warmup_steps=100, hold_steps=400), step=250, total_steps=1000)  # 1.0

All kinds climb linearly from `initial_factor` to 1 in `warmup_steps` and stay there for `hold_steps`. With t the share, 0 to 1,
of `decay_steps` gone since then (by default all steps that are left) and f = `final_factor` they go on as

    constant      1
    linear        1 + t (f - 1)
    cosine        f + (1 - f) (1 + cos(pi t)) / 2
    tri_stage     f ** t, with f > 0             (SpecAugment, Park et al. 2019; fairseq's tri_stage)
    inverse_sqrt  sqrt(w / (w + n)), n steps after warm-up and hold, w = warmup_steps   (Vaswani et al. 2017)

and stay at f after that. A run that must end after some minutes tells the share of its time that is gone: once that is ahead of
the share of its steps, the decay follows the clock and is complete when the time is over. It knows no optimiser.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from phonograph.configuration import Rule
from phonograph.errors import ConfigError

__all__ = ["ScheduleOptions", "factor"]

KINDS = ("constant", "linear", "cosine", "tri_stage", "inverse_sqrt")


@dataclass(frozen=True)
class ScheduleOptions:
    """The course of a learning rate, in optimiser steps and in shares of the peak.

    Raises:
        ConfigError: tri_stage without a final factor above 0, or inverse_sqrt without warm-up.
    """

    kind: Annotated[str, Rule("the formula after warm-up and hold", choices=KINDS)] = "constant"
    warmup_steps: Annotated[int, Rule("steps of linear climb", minimum=0)] = 0
    hold_steps: Annotated[int, Rule("steps at the peak after it", minimum=0)] = 0
    decay_steps: Annotated[int | None, Rule("steps from the peak to the end value; None for all that are left", minimum=1)] = (
        None
    )
    initial_factor: Annotated[float, Rule("share of the peak at step 0, when there is warm-up", minimum=0, maximum=1)] = 0.0
    final_factor: Annotated[float, Rule("share of the peak at the end", minimum=0, maximum=1)] = 0.0

    def __post_init__(self) -> None:
        if self.kind == "tri_stage" and not self.final_factor:
            raise ConfigError(
                "kind='tri_stage', final_factor=0: its decay is exponential; set final_factor above 0, such as 0.05"
            )
        if self.kind == "inverse_sqrt" and not self.warmup_steps:
            raise ConfigError(
                "kind='inverse_sqrt', warmup_steps=0: it falls in proportion to the warm-up; set warmup_steps above 0"
            )


def factor(options: ScheduleOptions, step: int, total_steps: int, time_gone: float = 0.0) -> float:
    """The factor of the peak learning rate for the step that follows `step` finished ones, of `total_steps` in all.

    Args:
        time_gone: share, 0 to 1, of the run's time; what comes after warm-up is as far as the farther of steps and time.
    """
    if step < options.warmup_steps:
        return options.initial_factor + (1 - options.initial_factor) * step / options.warmup_steps
    since = max(step, time_gone * total_steps) - options.warmup_steps - options.hold_steps
    if since <= 0 or options.kind == "constant":
        return 1.0
    if options.kind == "inverse_sqrt":
        return math.sqrt(options.warmup_steps / (options.warmup_steps + since))
    left = total_steps - options.warmup_steps - options.hold_steps
    share = min(since / (options.decay_steps or max(left, 1)), 1.0)
    final = options.final_factor
    if options.kind == "linear":
        return 1 + share * (final - 1)
    if options.kind == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
    return float(final**share)
