"""Slots: streams that join, leave, wait and begin anew get what each gets alone, whatever stands in the other rows."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_mimi import ODD, TINY, assert_close, noise, random_mimi
from stand_in_graph import StandInGraph, stand_in
from torch import Tensor

from phonograph import MimiModel
from phonograph.errors import AudioError, ConfigError, StreamError
from phonograph.nn.graphs import CapturedStep
from phonograph.streaming import MimiBatch, MimiDecoderSession, MimiEncoderSession, mimi_batch

CONFIGS = {"tiny": TINY} | ODD
ON_GPU = pytest.param("gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


class Twins:
    """A batch, and for each slot in use sessions of its own, which must give the same."""

    def __init__(self, model: MimiModel, slots: int, seed: int, batch: MimiBatch | None = None) -> None:
        self.model = model
        self.batch = batch or MimiBatch(model, slots)
        self.random = random.Random(seed)
        self.sessions: dict[int, tuple[MimiEncoderSession, MimiDecoderSession]] = {}
        self.steps = 0

    def turn(self) -> None:
        """Whoever joins, leaves or begins anew this time, and one frame each way of some of those who are there."""
        if len(self.sessions) < self.batch.slots and self.random.random() < 0.3:
            slot = self.batch.join()
            assert slot not in self.sessions
            self.sessions[slot] = self._fresh()
        if self.sessions and self.random.random() < 0.1:
            slot = self.random.choice(list(self.sessions))
            self.batch.leave(slot)
            del self.sessions[slot]
        if self.sessions and self.random.random() < 0.1:
            slot = self.random.choice(list(self.sessions))
            self.batch.reset(slot)
            self.sessions[slot] = self._fresh()
        assert self.batch.joined == sorted(self.sessions)
        self.encode(self._some())
        self.decode(self._some(), self.random.randint(self.model.config.num_semantic_quantizers, self.batch.num_quantizers))

    def encode(self, active: Tensor | None) -> None:
        self.steps += 1
        going = self._going(active)
        frames = torch.full((self.batch.slots, self.model.config.audio_channels, self.model.frame_samples), torch.nan)
        frames[going] = noise(len(going), *frames.shape[1:], seed=self.steps)
        codes = self.batch.encode(frames.to(self.batch.model.device), active).cpu()
        assert codes.dtype == torch.int64
        assert codes.shape == (self.batch.slots, self.batch.num_quantizers, 1)
        for slot in range(self.batch.slots):
            if slot in going:
                assert torch.equal(codes[slot], self.sessions[slot][0].feed(frames[slot]))
            else:
                assert (codes[slot] == -1).all()

    def decode(self, active: Tensor | None, number: int) -> None:
        self.steps += 1
        going = self._going(active)
        codes = torch.full((self.batch.slots, number, 1), -1)
        generator = torch.Generator().manual_seed(self.steps)
        codes[going] = torch.randint(self.model.config.codebook_size, (len(going), number, 1), generator=generator)
        audio = self.batch.decode(codes.to(self.batch.model.device), active).cpu()
        assert audio.shape == (self.batch.slots, self.model.config.audio_channels, self.model.frame_samples)
        for slot in range(self.batch.slots):
            if slot in going:
                assert_close(audio[slot], self.sessions[slot][1].feed(codes[slot]))
            else:
                assert (audio[slot] == 0).all()

    def _fresh(self) -> tuple[MimiEncoderSession, MimiDecoderSession]:
        return MimiEncoderSession(self.model, self.batch.num_quantizers), MimiDecoderSession(self.model)

    def _some(self) -> Tensor | None:
        if self.random.random() < 0.3:
            return None
        going = [slot in self.sessions and self.random.random() < 0.7 for slot in range(self.batch.slots)]
        return torch.tensor(going)

    def _going(self, active: Tensor | None) -> list[int]:
        return sorted(self.sessions) if active is None else active.nonzero()[:, 0].tolist()


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return random_mimi(**TINY)


def frames_for(batch: MimiBatch) -> Tensor:
    return noise(batch.slots, batch.model.config.audio_channels, batch.model.frame_samples)


@pytest.mark.parametrize(("name", "slots", "seed"), [("tiny", 1, 0), ("tiny", 5, 1), *((name, 3, 2) for name in CONFIGS)])
def test_each_stream_as_alone(name: str, slots: int, seed: int) -> None:
    """Forty turns, where the window is five frames."""
    twins = Twins(random_mimi(**CONFIGS[name]), slots, seed)
    memory = [(tensor.data_ptr(), tensor.shape) for tensor in states(twins.batch)]
    nbytes = twins.batch.nbytes
    for _ in range(40):
        twins.turn()
    assert [(tensor.data_ptr(), tensor.shape) for tensor in states(twins.batch)] == memory
    assert twins.batch.nbytes == nbytes == sum(tensor.nbytes for tensor in states(twins.batch))


def test_bundled_model(mini: MimiModel) -> None:
    twins = Twins(mini, 3, seed=7)
    for _ in range(25):
        twins.turn()


def test_past_the_window_of_the_bundled_model() -> None:
    """Its weights with a window of 30 steps, 15 frames; a second stream joins when the first has filled it."""
    model = MimiModel.from_pretrained("mimi-mini", sliding_window=30)
    twins = Twins(model, 2, 0, MimiBatch(model, 2, num_quantizers=2))
    for step in range(36):
        if step in (0, 16):
            twins.sessions[twins.batch.join()] = twins._fresh()
        twins.encode(None)
        twins.decode(None, 2)


def test_fewer_codebooks(tiny: MimiModel) -> None:
    twins = Twins(tiny, 3, 3, MimiBatch(tiny, 3, num_quantizers=2))
    for _ in range(30):
        twins.turn()


def test_what_poisons_a_slot_leaves_with_its_stream(tiny: MimiModel) -> None:
    """A stream of NaN, both ways through the state, beside a good one, and a good one after it in the same slot."""
    twins = Twins(tiny, 2, 0)
    for _ in range(2):
        twins.sessions[twins.batch.join()] = twins._fresh()
    for _ in range(3):
        frames = frames_for(twins.batch)
        frames[1] = torch.nan
        codes = twins.batch.encode(frames)
        assert torch.equal(codes[0], twins.sessions[0][0].feed(frames[0]))
    twins.batch.leave(1)
    del twins.sessions[1]
    twins.encode(None)
    assert twins.batch.join() == 1
    twins.sessions[1] = twins._fresh()
    for _ in range(8):
        twins.encode(None)


def test_the_slot_that_came_free_is_given_again(tiny: MimiModel) -> None:
    batch = MimiBatch(tiny, 3)
    assert [batch.join() for _ in range(3)] == [0, 1, 2]
    batch.leave(1)
    assert batch.joined == [0, 2]
    assert batch.join() == 1


def test_nobody_there(tiny: MimiModel) -> None:
    batch = MimiBatch(tiny, 2)
    before = [tensor.clone() for tensor in states(batch)]
    assert (batch.encode(frames_for(batch)) == -1).all()
    assert (batch.decode(torch.full((2, 4, 1), 10**6), torch.zeros(2, dtype=torch.bool)) == 0).all()
    for tensor, old in zip(states(batch), before, strict=True):
        assert torch.equal(tensor, old)


def test_one_model_serves_batches_and_sessions(tiny: MimiModel) -> None:
    """In turns, so that anything kept in the model would show."""
    twins = [Twins(tiny, slots, seed) for slots, seed in ((2, 11), (4, 12))]
    for _ in range(20):
        for each in twins:
            each.turn()


def test_made_in_inference_mode_and_used_outside(tiny: MimiModel) -> None:
    with torch.inference_mode():
        batch, encoder, decoder = MimiBatch(tiny, 1), MimiEncoderSession(tiny), MimiDecoderSession(tiny)
    batch.join()
    frame = noise(1, 1, 48)
    codes = batch.encode(frame)
    encoder.feed(noise(1, 1, 70, seed=1)[0])
    encoder.reset()
    decoder.reset()
    assert torch.equal(encoder.feed(frame[0]), codes[0])
    assert_close(decoder.feed(codes[0]), batch.decode(codes)[0])
    assert MimiEncoderSession.from_bytes(tiny, encoder.to_bytes()).flush().shape == (4, 0)


# CUDA graphs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["stand-in", ON_GPU])
def graphed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MimiBatch]:
    """Makes a batch that captures its steps: on a GPU in float64, or on the CPU with a stand-in for the capture."""
    if request.param == "gpu":
        return lambda model, slots, **options: MimiBatch(model.double().cuda(), slots, **options)
    stand_in(monkeypatch)

    def make(model: MimiModel, slots: int, **options: Any) -> MimiBatch:
        batch = MimiBatch(model, slots, **options)
        batch._cuda_graph = True
        return batch

    return make


class TestGraphs:
    @pytest.mark.parametrize("name", ["tiny", "replicate", "stereo, attention bias, two semantic"])
    def test_each_stream_as_alone(self, graphed: Callable[..., MimiBatch], name: str) -> None:
        model = random_mimi(**CONFIGS[name])
        batch = graphed(random_mimi(**CONFIGS[name]), 3)
        twins = Twins(model.to(batch.model.dtype), 3, 5, batch)
        for _ in range(40):
            twins.turn()
        assert all(step.graph.replays > 5 for step in batch._steps.values() if isinstance(step.graph, StandInGraph))

    def test_one_capture_for_a_step_and_shape(self, graphed: Callable[..., MimiBatch]) -> None:
        batch = graphed(random_mimi(**TINY), 2)
        batch.join()
        for number in (4, 2, 4, 2):
            batch.encode(frames_for(batch))
            batch.decode(torch.zeros(2, number, 1, dtype=torch.int64))
        assert sorted(batch._steps) == [
            ("_decode_step", (2, 2, 1)),
            ("_decode_step", (2, 4, 1)),
            ("_encode_step", (2, 1, 48)),
        ]

    def test_capture_leaves_the_streams_as_they_were(
        self, graphed: Callable[..., MimiBatch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = graphed(random_mimi(**TINY), 2)
        captured = []

        class Watched(CapturedStep):
            def __init__(self, *args: Any) -> None:
                before = [tensor.clone() for tensor in states(batch)]
                super().__init__(*args)
                captured.append(all(torch.equal(tensor, old) for tensor, old in zip(states(batch), before, strict=True)))

        monkeypatch.setattr(mimi_batch, "CapturedStep", Watched)
        batch.join()
        batch.join()
        active = torch.ones(2, dtype=torch.bool)
        batch.decode(torch.zeros(2, 4, 1, dtype=torch.int64), active)
        batch.encode(frames_for(batch), active)
        batch.decode(torch.ones(2, 3, 1, dtype=torch.int64), active)  # the decoder's state is no longer empty
        assert captured == [True] * 3
        assert active.all()

    def test_inputs_and_outputs_are_the_callers_own(self, graphed: Callable[..., MimiBatch]) -> None:
        batch = graphed(random_mimi(**TINY), 1)
        alone = MimiBatch(batch.model.cpu(), 1) if batch.model.device.type == "cpu" else None
        batch.join()
        frames = [noise(1, 1, 48, seed=seed).to(batch.model.device, batch.model.dtype) for seed in range(3)]
        kept = [frame.clone() for frame in frames]
        codes = [batch.encode(frames[0])]
        first = codes[0].clone()
        frames[0].fill_(7)
        codes += [batch.encode(frame) for frame in frames[1:]]
        assert torch.equal(codes[0], first)
        assert len({code.data_ptr() for code in codes}) == 3
        assert torch.equal(frames[1], kept[1])
        if alone is not None:
            alone.join()
            assert torch.equal(torch.cat(codes), torch.cat([alone.encode(frame) for frame in kept]))

    def test_switched_off(self, graphed: Callable[..., MimiBatch], tiny: MimiModel) -> None:
        batch = MimiBatch(tiny, 1, cuda_graph=False)
        batch.join()
        batch.encode(frames_for(batch))
        assert batch._steps == {}

    def test_is_not_used_on_a_cpu(self, tiny: MimiModel) -> None:
        batch = MimiBatch(tiny, 1, cuda_graph=True)
        batch.join()
        batch.encode(frames_for(batch))
        assert batch._steps == {}


def states(batch: MimiBatch) -> list[Tensor]:
    return [tensor for state in (batch._convs, batch._transformer, batch._decoder) for tensor in state.tensors()]


class TestRefusals:
    @pytest.fixture
    def batch(self, tiny: MimiModel) -> MimiBatch:
        """Slot 1 of three is free."""
        batch = MimiBatch(tiny, 3)
        for _ in range(3):
            batch.join()
        batch.leave(1)
        return batch

    @pytest.mark.parametrize("slots", [0, -1])
    def test_no_slots(self, tiny: MimiModel, slots: int) -> None:
        with pytest.raises(ConfigError, match=f"expected at least one slot, got {slots}"):
            MimiBatch(tiny, slots)

    @pytest.mark.parametrize("number", [0, 5])
    def test_num_quantizers(self, tiny: MimiModel, batch: MimiBatch, number: int) -> None:
        match = f"num_quantizers from 1 to 4, got {number}"
        with pytest.raises(ConfigError, match=match):
            MimiBatch(tiny, 1, num_quantizers=number)
        with pytest.raises(ConfigError, match=match):
            batch.decode(torch.zeros(3, number, 1, dtype=torch.int64))

    def test_a_model_that_looks_ahead(self) -> None:
        with pytest.raises(StreamError, match="run this model in one pass"):
            MimiBatch(random_mimi(**TINY | {"pad_mode": "reflect"}), 1)

    def test_full(self, batch: MimiBatch) -> None:
        batch.join()
        with pytest.raises(StreamError, match="a free slot, all 3 are in use; let a stream leave, or make more slots"):
            batch.join()

    @pytest.mark.parametrize("slot", [1, 3, -1])
    def test_unknown_slot(self, batch: MimiBatch, slot: int) -> None:
        for call in (batch.leave, batch.reset):
            with pytest.raises(StreamError, match=rf"expected a slot in use \(\[0, 2\]\), got {slot}; join first"):
                call(slot)

    @pytest.mark.parametrize("shape", [(2, 1, 48), (3, 2, 48), (3, 1, 49), (3, 48), ()])
    def test_shape_of_frames(self, batch: MimiBatch, shape: tuple[int, ...]) -> None:
        with pytest.raises(StreamError, match=r"frames of shape \(3, 1, 48\), got \(.*\); one frame for every slot"):
            batch.encode(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(2, 4, 1), (3, 4, 2), (3, 4), (3,), ()])
    def test_shape_of_codes(self, batch: MimiBatch, shape: tuple[int, ...]) -> None:
        with pytest.raises(StreamError, match=r"codes of shape \(3, 4, 1\), got \(.*\); one frame for every slot"):
            batch.decode(torch.zeros(shape, dtype=torch.int64))

    def test_types(self, batch: MimiBatch) -> None:
        with pytest.raises(AudioError, match=r"floating-point frames in \[-1, 1\], got torch.int16; convert them first"):
            batch.encode(torch.zeros(3, 1, 48, dtype=torch.int16))
        with pytest.raises(ConfigError, match=r"integer codes, got torch.float32; convert them first"):
            batch.decode(torch.zeros(3, 4, 1))

    @pytest.mark.parametrize("code", [-1, 64])
    def test_codes_out_of_range(self, batch: MimiBatch, code: int) -> None:
        codes = torch.zeros(3, 4, 1, dtype=torch.int64)
        codes[2, 1] = code
        with pytest.raises(ConfigError, match=rf"codes from 0 to 63 in active slots, got .*\[0, {code}, 0, 0\]"):
            batch.decode(codes)
        assert (batch.decode(codes, torch.tensor([True, False, False]))[1:] == 0).all()

    def test_active(self, batch: MimiBatch) -> None:
        codes = torch.zeros(3, 4, 1, dtype=torch.int64)
        for call in (lambda active: batch.encode(frames_for(batch), active), lambda active: batch.decode(codes, active)):
            with pytest.raises(StreamError, match=r"active slots among those in use, \[0, 2\], got \[True, True, False\]"):
                call(torch.tensor([True, True, False]))
            with pytest.raises(StreamError, match=r"active of shape \(3,\), got \(2,\)"):
                call(torch.tensor([True, False]))
            with pytest.raises(StreamError, match=r"active as bool, got torch.int64; pass True for each slot"):
                call(torch.tensor([1, 0, 0]))

    def test_a_refused_call_changes_nothing(self, batch: MimiBatch) -> None:
        before = [tensor.clone() for tensor in states(batch)]
        with pytest.raises(StreamError):
            batch.encode(frames_for(batch), torch.tensor([True, True, False]))
        with pytest.raises(ConfigError):
            batch.decode(torch.full((3, 4, 1), 64))
        for tensor, old in zip(states(batch), before, strict=True):
            assert torch.equal(tensor, old)
