"""Live streams on a stand-in for a GPU: frames that are there wait for nothing, and the codes are those of a CPU."""

import pytest
import torch
from random_mimi import TINY, random_mimi
from stand_in_gpu import DEVICE, StandInGpu

from phonograph.nn.packed import reference_path
from phonograph.streaming import MimiBatch, MimiDecoderSession, MimiEncoderSession

FRAME = 48
CHUNKS = (100, 30, 200, 7)


@pytest.fixture
def gpu():
    with StandInGpu() as device:
        yield device


def streamed(model, chunks):
    """Codes and audio of one stream."""
    encoder, decoder = MimiEncoderSession(model), MimiDecoderSession(model)
    codes = [encoder.feed(chunk) for chunk in chunks] + [encoder.flush()]
    return torch.cat(codes, dim=1), torch.cat([decoder.feed(part) for part in codes], dim=1)


def test_sessions_wait_for_nothing_but_what_is_brought(gpu):
    model = random_mimi(**TINY)
    chunks = torch.randn(sum(CHUNKS)).split(CHUNKS)
    with reference_path():
        codes, audio = streamed(model, chunks)
    gpu.move(model)
    streamed(model, [chunk.to("gpu") for chunk in chunks])  # the first time tables go there
    there = [chunk.to("gpu") for chunk in chunks]
    encoder, decoder = MimiEncoderSession(model), MimiDecoderSession(model)
    gpu.forget()
    parts = [encoder.feed(chunk) for chunk in there]
    assert gpu.waits == []
    parts.append(encoder.flush())
    assert {wait.where.split()[-1] for wait in gpu.waits} <= {"_lengths"}  # of the last frame, which is padded
    gpu.forget()
    heard = torch.cat([decoder.feed(part) for part in parts], dim=1)
    assert gpu.waits == []
    assert torch.equal(torch.cat(parts, dim=1).cpu(), codes)
    torch.testing.assert_close(heard.cpu(), audio, rtol=1e-4, atol=1e-5)
    encoder.reset()
    gpu.forget()
    encoder.feed(chunks[0])
    assert gpu.kinds == {"upload": 1}


def test_a_session_goes_on_on_the_device_from_its_bytes(gpu):
    model = gpu.move(random_mimi(**TINY))
    first, second = torch.randn(2, 130).to("gpu").unbind()
    whole = MimiEncoderSession(model)
    whole.feed(first)
    resumed = MimiEncoderSession.from_bytes(model, whole.to_bytes())
    assert {tensor.device for tensor in resumed._tensors().values()} == {DEVICE}
    assert torch.equal(resumed.feed(second), whole.feed(second))


def test_slots_wait_for_nothing(gpu):
    model = random_mimi(**TINY)
    with reference_path():
        here = MimiBatch(model, 3)
        slots = [here.join() for _ in range(2)]
        frames = torch.randn(3, 1, FRAME)
        expected = [here.encode(frames), here.encode(frames, torch.tensor([True, False, False]))]
        audio = here.decode(expected[0])
    batch = MimiBatch(gpu.move(model), 3)
    assert [batch.join() for _ in range(2)] == slots
    there = frames.to("gpu")
    batch.decode(batch.encode(there))  # the first time tables go there
    gpu.forget()
    for slot in slots:
        batch.leave(slot)
    for _ in slots:
        batch.join()
    codes = batch.encode(there)
    heard = batch.decode(codes)
    assert gpu.waits == []
    some = batch.encode(there, torch.tensor([True, False, False]))
    assert gpu.kinds == {"upload": 1}  # who is active
    batch.encode(frames)
    assert gpu.kinds == {"upload": 2}  # frames
    assert torch.equal(codes.cpu(), expected[0])
    assert torch.equal(some.cpu(), expected[1])
    torch.testing.assert_close(heard.cpu(), audio, rtol=1e-4, atol=1e-5)
    assert {tensor.device for state in (batch._convs, batch._transformer, batch._decoder) for tensor in state.tensors()} == {
        DEVICE
    }
