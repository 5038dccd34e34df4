"""What the tasks on speech share: the data of a recipe, its batches from easy to hard, and augmentation that sets in late.

    class CTCTask(SpeechTask):
        def __init__(self, options: CTCOptions, context: RunContext) -> None:
            super().__init__(options, context, Needs(16000, transcripts=True, whole=True))

A model that starts from nothing learns sooner from short and clean speech: a recipe may begin with utterances of few seconds,
and let augmentation grow from none to all over some thousand steps. It knows no model.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from phonograph.api.inputs import groups_by_length
from phonograph.audio import Audio
from phonograph.configuration import Rule
from phonograph.errors import ConfigError
from phonograph.files import atomic_write, make_folder
from phonograph.nn.dropout import Dropout
from phonograph.training.data import (
    AudioStore,
    Augmenter,
    AugmentOptions,
    BatchOptions,
    BucketedBatches,
    Limits,
    SpeechBatch,
    SpeechLoader,
    Utterance,
    hold_out,
    read_manifest,
    validate,
)
from phonograph.training.features import full_precision
from phonograph.training.task import Batch, ParameterGroup, ResumableIterator, RunContext

__all__ = ["AugmentationOptions", "DataOptions", "Needs", "SpeechOptions", "SpeechTask", "Stages", "column", "split_decayed"]

_DRY_UTTERANCES = 24
_DRY_HELD_OUT = 4
_GIB = 1 << 30
_EVALUATION_BATCH = 16
_EVALUATION_PADDING = 0.25
_SHOWN = 20


@dataclass(frozen=True)
class DataOptions:
    """Which speech is trained on, and which judges.

    Raises:
        ConfigError: a curriculum of batches without a length, or the reverse.
    """

    path: Annotated[str | None, Rule("folder or table of speech; --data names another")] = None
    beside: Annotated[list[str], Rule("more of them")] = field(default_factory=list)
    layout: Annotated[str | None, Rule("of the folders, rather than what they look like")] = None
    split: Annotated[str | None, Rule("of Common Voice, the table to take")] = None
    where: Annotated[dict[str, Any], Rule("columns and the values of which one is needed, such as {source: [libri]}")] = field(
        default_factory=dict
    )
    held_out: Annotated[str | None, Rule("folder or table to judge by; None holds out a share")] = None
    held_out_share: Annotated[float, Rule("share of the utterances that is held out", minimum=0, maximum=1)] = 0.02
    held_out_by_speaker: Annotated[bool, Rule("hold out whole speakers")] = False
    held_out_most: Annotated[int | None, Rule("utterances to judge by, at most", minimum=1)] = None
    limits: Limits = field(default_factory=Limits)
    batches: BatchOptions = field(default_factory=BatchOptions)
    first_seconds: Annotated[float | None, Rule("at first only utterances up to this length", above=0)] = None
    first_batches: Annotated[int, Rule("for so many batches of each process", minimum=0)] = 0
    memory_gib: Annotated[float, Rule("memory for decoded speech; what is beyond is read from disk", minimum=0)] = 8.0
    workers: Annotated[int, Rule("threads that make batches", minimum=1)] = 4

    def __post_init__(self) -> None:
        if (self.first_seconds is None) != (self.first_batches == 0):
            raise ConfigError(
                f"first_seconds={self.first_seconds}, first_batches={self.first_batches}: a beginning with short utterances "
                "needs both; set both or neither"
            )


@dataclass(frozen=True)
class AugmentationOptions:
    """How speech is changed in training, and from when on.

    It grows from nothing at `from_step` to its full strength `ramp_steps` later; where a model learns to transcribe, its masks
    and its dropout too.
    """

    waveform: AugmentOptions | None = None
    from_step: Annotated[int, Rule("steps without any augmentation", minimum=0)] = 0
    ramp_steps: Annotated[int, Rule("steps in which it grows to its full strength", minimum=0)] = 0

    def strength(self, step: int) -> float:
        """0 to 1."""
        if step < self.from_step:
            return 0.0
        return min(1.0, (step - self.from_step + 1) / (self.ramp_steps + 1))


@dataclass(frozen=True)
class SpeechOptions:
    """The options of every task on speech."""

    data: DataOptions = field(default_factory=DataOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)


@dataclass(frozen=True)
class Needs:
    """What a task wants of its speech.

    Args:
        sampling_rate: in Hz.
        transcripts: leave out what has none.
        whole: its utterances cannot be cut: their texts or times would no longer be theirs.
        spelling: what each transcript becomes first.
    """

    sampling_rate: int
    transcripts: bool
    whole: bool
    spelling: Callable[[str], str] = str


class Stages:
    """Batches from one source after the other, each but the last for a number of batches: a `ResumableIterator`.

    Args:
        stages: sources with the number of batches from each; that of the last is not looked at.
    """

    def __init__(self, stages: Sequence[tuple[ResumableIterator, int]]) -> None:
        self._stages = list(stages)
        self._handed = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._current())
        self._handed += 1
        return batch

    def _current(self) -> ResumableIterator:
        before = 0
        for source, count in self._stages[:-1]:
            before += count
            if self._handed < before:
                return source
        return self._stages[-1][0]

    def state(self) -> dict[str, Any]:
        """The position, and those of all sources."""
        return {"handed": self._handed, "stages": [source.state() for source, _ in self._stages]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            ConfigError: it has another number of stages, or a source refuses its own.
        """
        positions = state.get("stages", [])
        if len(positions) != len(self._stages):
            raise ConfigError(
                f"expected a position in {len(self._stages)} stages of data, got {len(positions)}; resume with the same recipe"
            )
        for (source, _), position in zip(self._stages, positions, strict=True):
            source.restore(position)
        self._handed = int(state["handed"])


class SpeechTask:
    """Base of the tasks on speech: `training` and `held_out` utterances, decoded in `store`, and their batches.

    A subclass sets `modules` and gives `collate`, which turns a `SpeechBatch` into tensors.

    Raises:
        ConfigError: no folder with speech, or nothing in it that can be trained on.
    """

    modules: nn.ModuleDict

    def __init__(self, options: SpeechOptions, context: RunContext, needs: Needs) -> None:
        crop = options.data.batches.crop_seconds
        if needs.whole and crop is not None:
            raise ConfigError(
                f"expected whole utterances for {type(self).__name__}, got data.batches.crop_seconds={crop:g}; leave it out, "
                "and set data.limits.longest_seconds"
            )
        self.context = context
        self.data_options = options.data
        self.augmentation = options.augmentation
        self.store = AudioStore(needs.sampling_rate, memory_bytes=int(options.data.memory_gib * _GIB))
        training, held_out = self._found(needs)
        limits = dataclasses.replace(options.data.limits, transcripts=needs.transcripts)
        self.report = validate(training, limits, store=self.store)
        self.training: list[Utterance] = self.report.kept
        self.held_out: list[Utterance] = validate(held_out, limits, store=self.store).kept
        if not self.training:
            raise ConfigError(f"expected speech to train on, got none that is of use ({self.report.summary()})")
        if context.rank == 0:
            make_folder(context.folder)
            self.report.write(context.folder / "left_out.jsonl")
        self._augmenter: Augmenter | None = None
        if options.augmentation.waveform is not None:
            self._augmenter = Augmenter(options.augmentation.waveform, needs.sampling_rate, device=context.device)

    def collate(self, batch: SpeechBatch) -> Batch:
        """Tensors of a batch, on the CPU; called in the threads of the loader."""
        raise NotImplementedError

    # Data

    @contextlib.contextmanager
    def vocabulary_folder(self) -> Iterator[Path]:
        """Where files of a vocabulary are written and read: below the run's folder by the first process, elsewhere by others.

        All processes make the same one, of the same texts.
        """
        if self.context.rank == 0:
            yield self.context.folder / "vocabulary"
            return
        with tempfile.TemporaryDirectory(prefix="phonograph-vocabulary-") as folder:
            yield Path(folder)

    def batches(self, rank: int, world: int, seed: int) -> ResumableIterator:
        """Training batches of one process: short utterances first, if the recipe says so."""
        options = self.data_options
        stages = []
        if options.first_seconds is not None:
            short = [item for item in self.training if (item.duration_seconds or 0.0) <= options.first_seconds]
            if len(short) >= world:
                stages.append((self._loader(short, rank, world, seed), options.first_batches))
        stages.append((self._loader(self.training, rank, world, seed), 0))
        return stages[0][0] if len(stages) == 1 else Stages(stages)

    def _loader(self, utterances: list[Utterance], rank: int, world: int, seed: int) -> ResumableIterator:
        durations = [item.duration_seconds or 0.0 for item in utterances]
        plans = BucketedBatches(
            durations, self.store.sampling_rate, self.data_options.batches, seed=seed, rank=rank, world=world
        )
        pinned = self.context.device.type == "cuda"
        return SpeechLoader(utterances, self.store, plans, self.collate, workers=self.data_options.workers, pin_memory=pinned)

    def _found(self, needs: Needs) -> tuple[list[Utterance], list[Utterance]]:
        options, context = self.data_options, self.context
        path = options.path if context.data is None else str(context.data)
        if path is None:
            raise ConfigError("expected a folder with speech, got none; pass --data FOLDER, or set options.data.path")
        found = [item for place in (path, *options.beside) for item in self._read(place, needs)]
        if options.held_out is None:
            training, held_out = hold_out(
                found, options.held_out_share, seed=context.seed, by_speaker=options.held_out_by_speaker
            )
        else:
            training, held_out = found, self._read(options.held_out, needs)
        if context.dry_run:
            return training[:_DRY_UTTERANCES], held_out[:_DRY_HELD_OUT]
        return training, held_out[: options.held_out_most]

    def _read(self, place: str, needs: Needs) -> list[Utterance]:
        options = self.data_options
        found = read_manifest(place, layout=options.layout, split=options.split)
        wanted = [
            item for item in found if all(column(item, name) in _listed(values) for name, values in options.where.items())
        ]
        return [dataclasses.replace(item, text=needs.spelling(item.text)) for item in wanted]

    # Steps

    def seconds(self, batch: SpeechBatch) -> float:
        """Speech in a batch, padding not counted."""
        return float(batch.lengths.sum()) / self.store.sampling_rate

    def augmented(self, waveforms: Tensor, lengths: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and their lengths (B,), changed as much as the recipe says of this step."""
        strength = self.augmentation.strength(step)
        if self._augmenter is None or strength == 0:
            return waveforms, lengths
        with full_precision(waveforms.device):
            return self._augmenter(waveforms, lengths, strength)

    def grow_dropout(self, step: int) -> None:
        """Set the probabilities of dropout to those of the model, times augmentation's strength."""
        strength = self.augmentation.strength(step)
        for part, p in self._dropouts:
            part.p = p * strength

    @functools.cached_property
    def _dropouts(self) -> list[tuple[Dropout, float]]:
        """With their probabilities before the first step."""
        return [(part, part.p) for part in self.modules.modules() if isinstance(part, Dropout)]

    # Judging

    def groups(self, utterances: Sequence[Utterance]) -> Iterator[tuple[list[Utterance], list[Audio]]]:
        """Utterances with their audio, some of similar length at a time."""
        durations = [item.duration_seconds or 0.0 for item in utterances]
        for places in groups_by_length(durations, _EVALUATION_BATCH, _EVALUATION_PADDING):
            chosen = [utterances[place] for place in places]
            yield chosen, [Audio(self.store.samples(item)[None], self.store.sampling_rate) for item in chosen]

    def write_samples(self, step: int, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """What was said and what was heard in some utterances, as a text file below the run's folder."""
        folder = self.context.folder / "samples"
        make_folder(folder)
        pairs = list(zip(references, hypotheses, strict=True))[:_SHOWN]
        lines = [f"said   {reference}\nheard  {hypothesis}\n" for reference, hypothesis in pairs]
        with atomic_write(folder / f"step-{step:07d}.txt") as file:
            file.write("\n".join(lines).encode())

    def describe(self) -> dict[str, Any]:
        """Data and size, for the model card."""
        parameters = sum(parameter.numel() for parameter in self.modules.parameters())
        return {
            "data": {
                "training": self.report.summary(),
                "held out": f"{len(self.held_out)} utterances",
                "speech from": sorted({_corpus(item) for item in self.training}),
            },
            "model": {"parameters": parameters},
        }


def split_decayed(optimizer: str, parameters: Sequence[nn.Parameter], name: str, **settings: Any) -> list[ParameterGroup]:
    """One group of matrices and one of vectors (biases, norms), whose weights do not decay."""
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [
        ParameterGroup(optimizer, matrices, name, **settings),
        ParameterGroup(optimizer, vectors, f"{name}, biases and norms", weight_decay=0.0, **settings),
    ]
    return [group for group in groups if group.parameters]


def column(utterance: Utterance, name: str) -> Any:
    """What the table holds for an utterance under a name; None if nothing."""
    known = getattr(utterance, name) if name in ("speaker", "language") else None
    return utterance.extra.get(name) if known is None else known


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _corpus(utterance: Utterance) -> str:
    source = utterance.source
    return str(utterance.extra.get("source") or (Path(source).parent.name if isinstance(source, str) else "dataset"))
