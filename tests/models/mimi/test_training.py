"""Training: gradients straight through the quantiser, codebooks that follow the latents, and a start by k-means."""

import pytest
import torch
from random_mimi import ODD, TINY, noise, random_mimi
from torch import Tensor

from phonograph import MimiConfig, MimiModel
from phonograph.models.mimi.quantization_mimi import MimiEuclideanCodebook

AUDIO = noise(2, 1, 960)


def fresh(seed: int = 0, **fields: object) -> MimiModel:
    torch.manual_seed(seed)
    return MimiModel(MimiConfig(**TINY | fields))


def buffers(model: MimiModel) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("name", ["tiny", *ODD])
def test_gradients_reach_every_weight(name: str) -> None:
    model = random_mimi(**TINY if name == "tiny" else ODD[name]).train()
    output = model(noise(2, model.config.audio_channels, 20 * model.frame_samples))
    output.audio_values.square().mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    assert without == []


def test_gradients_pass_straight_through() -> None:
    """What the decoder's side wants of the quantised latents arrives, through both projections, as if nothing were rounded."""
    model = random_mimi(**TINY).train()
    latents = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    (model.quantizer(latents).quantized * wanted).sum().backward()
    expected = torch.zeros_like(latents)
    for part in (model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer):
        expected += wanted @ part.output_proj.weight.squeeze(-1) @ part.input_proj.weight.squeeze(-1)
    torch.testing.assert_close(latents.grad, expected.detach(), rtol=1e-4, atol=1e-5)


def test_codes_and_values_of_training_are_those_of_evaluation() -> None:
    model = random_mimi(**TINY)
    expected = model(AUDIO, num_quantizers=3)
    output = model.train()(AUDIO, num_quantizers=3)
    assert torch.equal(output.audio_codes, expected.audio_codes)
    torch.testing.assert_close(output.audio_values, expected.audio_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_update_equals_a_float64_reference(decay: float) -> None:
    codebook: MimiEuclideanCodebook = random_mimi(**TINY).quantizer.codebooks()[1]
    points = 0.3 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    codes = codebook.encode(points)
    usage, sums = codebook.cluster_usage.double(), codebook.embed_sum.double()
    codebook.update(points, codes, decay)
    for code in range(64):
        members = points[codes == code].double()
        assert codebook.cluster_usage[code].item() == pytest.approx(decay * usage[code].item() + (1 - decay) * len(members))
        expected = decay * sums[code] + (1 - decay) * members.sum(0)
        torch.testing.assert_close(codebook.embed_sum[code].double(), expected, rtol=1e-4, atol=1e-5)


def test_each_codebook_follows_its_own_residual() -> None:
    """A whole step of all codebooks, by the definition."""
    model = random_mimi(**TINY).train()
    latents = model.encode_latents(AUDIO).detach()
    before = [(book.embed_sum.double(), book.cluster_usage.double()) for book in model.quantizer.codebooks()]
    output = model.quantizer(latents, decay=0.9)
    quantizer, place, losses = model.quantizer, 0, []
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        residual = part._project_in(latents).double().detach()
        squares = []
        for book in part.codebooks(len(part.layers)):
            sums, usage = before[place]
            centroids = sums / usage.clamp_min(1e-5)[:, None]
            codes = torch.cdist(residual, centroids).argmin(-1)
            assert torch.equal(codes, output.codes[:, place].flatten())
            one_hot = torch.nn.functional.one_hot(codes, 64).double()
            expected_usage = 0.9 * usage + 0.1 * one_hot.sum(0)
            torch.testing.assert_close(book.cluster_usage.double(), expected_usage, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(book.embed_sum.double(), 0.9 * sums + 0.1 * one_hot.T @ residual, rtol=1e-4, atol=1e-5)
            residual = residual - centroids[codes]
            squares.append(residual.square().mean())
            place += 1
        losses.append(torch.stack(squares).mean())
    assert output.commitment_loss.item() == pytest.approx(sum(losses).item(), rel=1e-4)


def test_codebooks_start_by_k_means_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh().train()
    starts: list[MimiEuclideanCodebook] = []
    start = MimiEuclideanCodebook.initialize
    monkeypatch.setattr(MimiEuclideanCodebook, "initialize", lambda book, points: (starts.append(book), start(book, points))[0])
    model(AUDIO)
    assert starts == model.quantizer.codebooks()
    assert all(book.initialized.item() == 1 for book in starts)
    model(AUDIO)
    assert len(starts) == 4


def test_k_means_finds_clusters() -> None:
    """64 well-parted clouds, 64 centroids: nearly every point ends near one."""
    codebook = fresh().quantizer.codebooks()[0]
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(16, 16, generator=generator)
    points = centres.repeat(40, 1) + 0.01 * torch.randn(640, 16, generator=generator)
    codebook.initialize(points)
    distance = (points - codebook.decode(codebook.encode(points))).norm(dim=-1)
    assert distance.max() < 0.1
    assert codebook.cluster_usage.sum() >= 640
    assert codebook.cluster_usage.min() >= 1


def test_few_frames_are_enough_to_start() -> None:
    model = fresh().train()
    output = model(noise(1, 1, 48))
    assert output.audio_codes.shape == (1, 4, 1)
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


def test_unused_codebooks_stay() -> None:
    model = random_mimi(**TINY).train()
    before = buffers(model)
    model(AUDIO, num_quantizers=2)
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert {name.split("_residual")[0] + name.split("layers.")[1][0] for name in changed} == {
        "quantizer.semantic0",
        "quantizer.acoustic0",
    }


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "first step"])
def test_padding_moves_nothing(begun: bool) -> None:
    """A ragged batch trains the codebooks exactly as its frames without the padding do."""
    lengths, frames = [960, 300], [20, 7]
    mask = torch.arange(960) < torch.tensor(lengths)[:, None]
    results = []
    for filling in (0.0, 50.0):
        model = random_mimi(**TINY).train() if begun else fresh().train()
        torch.manual_seed(1)
        model(AUDIO.masked_fill(~mask[:, None], filling), mask)
        results.append(buffers(model))
    for name, buffer in results[0].items():
        assert torch.equal(buffer, results[1][name]), name
    usage = results[0]["quantizer.semantic_residual_vector_quantizer.layers.0.codebook.cluster_usage"]
    if begun:
        book = random_mimi(**TINY).quantizer.codebooks()[0]
        assert usage.sum().item() == pytest.approx(0.99 * book.cluster_usage.sum().item() + 0.01 * sum(frames))


def test_loss_falls() -> None:
    model = fresh(num_quantizers=4).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = torch.arange(1920) / 24000
    audio = torch.stack([0.3 * torch.sin(2 * torch.pi * pitch * steps) for pitch in (300, 500, 700, 1100)])[:, None]
    losses = []
    for _ in range(40):
        loss = (model(audio).audio_values - audio).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    with torch.no_grad():
        assert (model(audio).audio_values - audio).square().mean() < 0.6 * losses[0]


def test_evaluation_never_moves_codebooks() -> None:
    model = fresh().eval()
    before = buffers(model)
    model(AUDIO).audio_values.sum().backward()
    model.train().encode(AUDIO)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
