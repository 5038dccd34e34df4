"""What the memorising models know: the bundled English clips, what is said in them, and how both are learnt.

make_memorised_ctc.py and make_memorised_s2t.py train small models that know nothing else. On these clips, alone or one after
the other, their text is right, which is what the tests of whole sentences need.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from phonograph import audio
from phonograph.loading.hub import BUNDLED_SPEECH

__all__ = [
    "CTC",
    "RATE",
    "S2T",
    "SENTENCES",
    "Clip",
    "Losses",
    "Recording",
    "Sentence",
    "clips",
    "joined",
    "learn",
    "recordings",
]

CTC = Path(__file__).parent / "memorised_ctc"
S2T = Path(__file__).parent / "memorised_s2t"
RATE = 16000

Model = TypeVar("Model", bound=nn.Module)
Losses = Iterator[Callable[[], Tensor]]


class Sentence(NamedTuple):
    """What is said in a clip, and a German translation of it."""

    english: str
    german: str


SENTENCES = {
    "kathleen_arctic_a0125_1592745717": Sentence(
        "he was determined now to maintain a more certain hold upon himself",
        "Er war nun entschlossen, sich besser in der Hand zu haben.",
    ),
    "librispeech_1688-142285-0003": Sentence(
        "i really liked that account of himself better than anything else he said",
        "Dieser Bericht über sich selbst gefiel mir wirklich besser als alles andere, was er sagte.",
    ),
    "librispeech_1998-15444-0003": Sentence(
        "in making a post mortem examination the alimentary canal should be removed and preserved for further investigation",
        "Bei einer Leichenöffnung soll der Verdauungskanal entnommen und für weitere Untersuchungen aufbewahrt werden.",
    ),
    "librispeech_2033-164914-0000": Sentence(
        "replied he of a truth i heard him not and i wot him not and folks are all sleeping",
        "Er antwortete: Wahrlich, ich hörte ihn nicht und kenne ihn nicht, und alle Leute schlafen.",
    ),
    "ljspeech_LJ002-0045": Sentence(
        "the various wards were all about eleven feet in height",
        "Die verschiedenen Säle waren alle etwa elf Fuß hoch.",
    ),
}
"""By the name of the clip."""


class Clip(NamedTuple):
    """Samples (time,) at `RATE`, and what is said in them."""

    samples: np.ndarray
    sentence: Sentence


def clips() -> list[Clip]:
    """All of them, in the order of `SENTENCES`."""
    return [
        Clip(audio.load(BUNDLED_SPEECH / f"{name}.flac", sampling_rate=RATE, mono=True).samples[0], sentence)
        for name, sentence in SENTENCES.items()
    ]


def joined(parts: Sequence[Clip], pause_seconds: float = 0.5) -> np.ndarray:
    """Samples (time,) of clips one after the other, with a pause after each, in a room's noise."""
    pause = np.zeros(round(pause_seconds * RATE), np.float32)
    samples = np.concatenate([part for clip in parts for part in (clip.samples, pause)])
    return samples + 0.001 * np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)


class Recording(NamedTuple):
    """Samples (time,), the clips in them, and the sample at which each begins."""

    samples: np.ndarray
    clips: list[Clip]
    starts: list[int]


def _recording(chosen: list[Clip], random: np.random.Generator) -> Recording:
    """Clips with pauses, each at a level of its own, in a little noise or none."""

    def pause() -> np.ndarray:
        return np.zeros(random.integers(0, RATE if random.random() < 0.8 else 4 * RATE))

    parts = [part for clip in chosen for part in (pause(), clip.samples * random.uniform(0.3, 1.5))]
    samples = np.concatenate([*parts, pause()]).astype(np.float32)
    loudness = random.uniform(0, 0.003) if random.random() < 0.7 else 0.0
    samples += (loudness * random.standard_normal(len(samples))).astype(np.float32)
    ends = np.cumsum([len(part) for part in parts])
    return Recording(samples, chosen, ends[::2].tolist())


def recordings(size: int, most_clips: int, random: np.random.Generator) -> Iterator[list[Recording]]:
    """Batches of recordings of one to `most_clips` clips in any order, without end."""
    known = clips()
    while True:
        chosen = [random.permutation(len(known))[: random.integers(1, most_clips + 1)] for _ in range(size)]
        yield [_recording([known[place] for place in places], random) for places in chosen]


def learn(
    fresh: Callable[[], Model], stored: Callable[[], Model], losses: Callable[[Model, int, np.random.Generator], Losses]
) -> Model:
    """First one or two clips at a time, then, gently, up to three; with --refine only the latter, from the stored weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--more-steps", type=int, default=500)
    parser.add_argument("--refine", action="store_true")
    options = parser.parse_args()
    random = np.random.default_rng(int(options.refine))
    model = stored() if options.refine else fresh()
    if not options.refine:
        _fit(model, losses(model, 2, random), options.steps, 2e-3)
    _fit(model, losses(model, 3, random), options.more_steps, 5e-4)
    return model


def _fit(model: nn.Module, losses: Losses, steps: int, rate: float) -> None:
    """AdamW on so many losses, with a learning rate that rises to `rate` and falls; prints as it goes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(1, steps + 1):
        loss = next(losses)()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(step, round(loss.item(), 4), flush=True)
    model.eval()
