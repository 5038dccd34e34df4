"""What a codec is trained against, by the papers' formulas: spectra, mel loss, discriminators, their losses, the balancer."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from phonograph.audio import Audio
from phonograph.audio.mel import hz_to_mel
from phonograph.errors import MissingExtraError
from phonograph.training.codec import discriminators
from phonograph.training.codec.discriminators import Judgement, StftDiscriminator, StftDiscriminators
from phonograph.training.codec.losses import (
    GradientBalancer,
    MelLoss,
    adversarial_loss,
    discriminator_loss,
    distillation_loss,
    feature_loss,
)
from phonograph.training.codec.pictures import draw_spectrograms
from phonograph.training.codec.spectra import Spectra

WINDOWS = (64, 256)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spectrum_by_definition(signal: np.ndarray, size: int) -> np.ndarray:
    """(size // 2 + 1, frames) of (S,), one frame after the other in float64."""
    mirrored = np.concatenate([signal[size // 2 : 0 : -1], signal, signal[-2 : -size // 2 - 2 : -1]])
    window = np.sin(np.pi * np.arange(size) / size) ** 2
    starts = range(0, len(signal) + 1, size // 4)
    return np.stack([np.fft.rfft(mirrored[start : start + size] * window / np.linalg.norm(window)) for start in starts], 1)


# ---------------------------------------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("size", WINDOWS)
def test_spectra_equal_a_float64_reference(size: int) -> None:
    audio = noise(2, 1000)
    found = Spectra(WINDOWS)(audio)
    assert list(found) == list(WINDOWS)
    for row in range(2):
        expected = spectrum_by_definition(audio[row].double().numpy(), size)
        np.testing.assert_allclose(found[size][row].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_white_noise_has_a_power_of_one_through_any_window() -> None:
    for spectrum in Spectra((32, 512, 2048))(noise(4, 48000)).values():
        assert spectrum[:, 1:-1].abs().square().mean().item() == pytest.approx(1, rel=0.05)


def test_spectra_leave_nothing_in_checkpoints() -> None:
    assert list(Spectra(WINDOWS).state_dict()) == list(MelLoss(WINDOWS, 24000).state_dict()) == []


# --------------------------------------------------------------------------------------------------------- reconstruction


def test_mel_loss_equals_its_formula() -> None:
    first, second = 0.1 * noise(2, 2400), 0.1 * noise(2, 2400, seed=1)
    distances = []
    for size in WINDOWS:
        bands = {64: 10, 256: 40}[size]
        corners = 700 * (10 ** (np.linspace(0, hz_to_mel(12000), bands + 2) / 2595) - 1)
        bins = np.arange(size // 2 + 1) * 24000 / size
        weights = np.stack([np.interp(bins, corners[band : band + 3], [0, 1, 0], 0, 0) for band in range(bands)])
        levels = [
            np.log10(np.maximum(weights @ np.abs(spectrum_by_definition(row.double().numpy(), size)), 1e-5))
            for audio in (first, second)
            for row in audio
        ]
        distances.append(np.mean([np.abs(levels[0] - levels[2]).mean(), np.abs(levels[1] - levels[3]).mean()]))
    spectra, loss = Spectra(WINDOWS), MelLoss(WINDOWS, 24000)
    assert loss(spectra(first), spectra(second)).item() == pytest.approx(np.mean(distances), rel=1e-4)
    assert loss(spectra(first), spectra(first)).item() == 0


def test_every_mel_band_hears_something() -> None:
    sizes = (32, 64, 128, 256, 512, 1024, 2048)
    for name, filters in MelLoss(sizes, 24000).named_buffers():
        assert (filters.sum(1) > 0).all(), name


def test_mel_loss_goes_down_its_gradient() -> None:
    spectra, loss, wanted = Spectra(WINDOWS), MelLoss(WINDOWS, 24000), spectra_of_a_tone()
    made = (0.1 * noise(1, 2400)).requires_grad_()
    before = loss(wanted, spectra(made))
    (gradient,) = torch.autograd.grad(before, made)
    assert loss(wanted, spectra(made - 0.01 * gradient / gradient.norm())) < before


def spectra_of_a_tone() -> dict[int, Tensor]:
    found: dict[int, Tensor] = Spectra(WINDOWS)(torch.sin(torch.arange(2400) / 10)[None])
    return found


# --------------------------------------------------------------------------------------------------------- discriminators


def test_each_window_has_a_discriminator_whose_layers_halve_the_bins() -> None:
    torch.manual_seed(0)
    judgements = StftDiscriminators(WINDOWS, channels=6)(Spectra((32, *WINDOWS))(noise(3, 1000)))
    assert len(judgements) == 2
    for judgement, size in zip(judgements, WINDOWS, strict=True):
        frames, bins = 1 + 1000 // (size // 4), size // 2
        expected = [(3, 6, frames, bins // factor + 1) for factor in (1, 2, 4, 8)]
        assert [tuple(feature.shape) for feature in judgement.features] == expected
        assert judgement.scores.shape == (3, 1, frames, bins // 8 + 1)


def test_a_discriminator_is_the_paper_s() -> None:
    """3 x 9 kernels, dilated 1, 1, 2 and 4 frames, a last one of 3 x 3, each with its own norm; nothing else is learnt."""
    discriminator = StftDiscriminator(channels=6)
    convs = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(3, 9)] * 4 + [(3, 3)]
    assert [conv.dilation for conv in convs] == [(1, 1), (1, 1), (2, 1), (4, 1), (1, 1)]
    assert [conv.stride for conv in convs] == [(1, 1), (1, 2), (1, 2), (1, 2), (1, 1)]
    weights = 27 * (2 * 6 + 3 * 36) + 9 * 6
    norms_and_biases = 2 * (4 * 6 + 1)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == weights + norms_and_biases


def test_scores_know_time_and_phase() -> None:
    """A frame's score depends on so many frames around it, and on the spectrum's phase."""
    torch.manual_seed(0)
    discriminator, spectrum = StftDiscriminator(channels=4), torch.randn(1, 33, 41, dtype=torch.complex64)
    changed = spectrum.clone()
    changed[:, :, 20] *= 1j
    moved = (discriminator(spectrum).scores != discriminator(changed).scores).any(-1).flatten().nonzero().flatten()
    assert (moved.min().item(), moved.max().item()) == (20 - 9, 20 + 9)


@pytest.mark.parametrize("level", [0.05, 0.002], ids=["speech", "what is faint in it"])
def test_untrained_discriminators_hear_speech_and_what_is_faint_in_it(level: float) -> None:
    """Neither layers nor compression lose a signal before training has begun, so that there are gradients to learn from."""
    torch.manual_seed(0)
    judge, spectra = StftDiscriminators(WINDOWS, channels=8), Spectra(WINDOWS)
    audio = (level * noise(2, 4800)).requires_grad_()
    for judgement in judge(spectra(audio)):
        sizes = torch.stack([x.square().mean().sqrt() for x in (*judgement.features, judgement.scores)])
        assert sizes.min() > 0.1
        assert sizes.max() < 4


def test_compression_keeps_phases_and_is_tame_at_silence() -> None:
    spectrum = torch.polar(torch.tensor([1e-3, 0.05, 5.0]), torch.tensor([0.3, -2.0, 1.0]))
    compressed = discriminators._compressed(spectrum)
    torch.testing.assert_close(compressed.angle(), spectrum.angle())
    assert compressed.abs().tolist() == pytest.approx([0.02 * 0.0008**-0.35, 1.0, 100**0.3], rel=1e-3)
    silence = torch.zeros(4, dtype=torch.complex64, requires_grad=True)
    torch.view_as_real(discriminators._compressed(silence)).sum().backward()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_halves_of_a_batch_are_judged_as_each_alone() -> None:
    torch.manual_seed(0)
    judge, spectra = StftDiscriminators(WINDOWS, channels=4), Spectra(WINDOWS)
    first, second = spectra(noise(2, 800)), spectra(noise(2, 800, seed=1))
    both = judge({size: torch.cat([first[size], second[size]]) for size in WINDOWS})
    for place, alone in enumerate((judge(first), judge(second))):
        for judgement, expected in zip(both, alone, strict=True):
            half = judgement.halves()[place]
            for found, wanted in zip([half.scores, *half.features], [expected.scores, *expected.features], strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- adversarial losses


def judged(seed: int) -> list[Judgement]:
    return [
        Judgement(2 * noise(2, 1, 5, size, seed=seed + size), [noise(2, 3, 5, size, seed=seed + size + k) for k in (1, 2)])
        for size in (4, 7)
    ]


def test_adversarial_losses_equal_their_formulas() -> None:
    real, fake = judged(0), judged(100)
    hinge = [
        np.maximum(0, 1 - one.scores.numpy()).mean() + np.maximum(0, 1 + other.scores.numpy()).mean()
        for one, other in zip(real, fake, strict=True)
    ]
    assert discriminator_loss(real, fake).item() == pytest.approx(np.mean(hinge), rel=1e-5)
    missed = [np.maximum(0, 1 - other.scores.numpy()).mean() for other in fake]
    assert adversarial_loss(fake).item() == pytest.approx(np.mean(missed), rel=1e-5)
    relative = [
        np.abs(a.numpy() - b.numpy()).mean() / np.abs(a.numpy()).mean()
        for one, other in zip(real, fake, strict=True)
        for a, b in zip(one.features, other.features, strict=True)
    ]
    assert feature_loss(real, fake).item() == pytest.approx(np.mean(relative), rel=1e-5)
    assert feature_loss(real, real).item() == 0


def test_discriminators_learn_to_tell_noise_from_tones() -> None:
    torch.manual_seed(0)
    judge, spectra = StftDiscriminators((64,), channels=4), Spectra((64,))
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    tones = torch.sin(torch.arange(800) * torch.tensor([0.1, 0.2, 0.5])[:, None])
    for step in range(60):
        loss = discriminator_loss(judge(spectra(tones)), judge(spectra(noise(3, 800, seed=step))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    with torch.no_grad():
        assert adversarial_loss(judge(spectra(noise(3, 800, seed=99)))) > 1.5
        assert adversarial_loss(judge(spectra(tones))) < 0.3


def test_distillation_is_one_less_the_cosine() -> None:
    first, second = noise(2, 5, 8), noise(2, 5, 8, seed=1)
    a, b = first.double().numpy(), second.double().numpy()
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert distillation_loss(first, second).item() == pytest.approx(1 - cosines.mean(), rel=1e-5)
    assert distillation_loss(first, 3 * first).item() == pytest.approx(0, abs=1e-6)


# --------------------------------------------------------------------------------------------------------------- balancer


def balanced_gradient(balancer: GradientBalancer, names: str, scale: float = 1.0, value: float = 1.0) -> Tensor:
    """The gradient that some of three losses, means over 4 items, leave at an output; `scale` is of loss a."""
    output = (value * noise(4, 6)).requires_grad_()
    leaf = output.detach().requires_grad_()
    losses = {"a": scale * leaf.square().sum(1).mean(), "b": leaf.abs().sum(1).mean(), "c": leaf.cos().sum(1).mean()}
    balancer({name: losses[name] for name in names}, leaf, output).backward()
    assert output.grad is not None
    return output.grad


def test_the_first_balanced_gradient_equals_the_formula() -> None:
    x = noise(4, 6).double()
    gradients = {"a": 2 * x, "b": x.sign(), "c": -x.sin()}
    expected = torch.zeros_like(x)
    for name, weight in {"a": 1.0, "b": 3.0, "c": 4.0}.items():
        expected += weight / 8 * gradients[name] / gradients[name].norm(dim=1).mean() / 4
    found = balanced_gradient(GradientBalancer({"a": 1.0, "b": 3.0, "c": 4.0}), "abc")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_a_loss_s_scale_does_not_matter() -> None:
    weights = {"a": 1.0, "b": 2.0}
    plain = balanced_gradient(GradientBalancer(weights), "ab")
    torch.testing.assert_close(balanced_gradient(GradientBalancer(weights), "ab", scale=1000.0), plain)


def test_norms_are_averaged_over_steps() -> None:
    balancer, norms = GradientBalancer({"a": 1.0}, decay=0.9), []
    x = noise(4, 6).double()
    for step, scale in enumerate((1.0, 5.0, 0.5)):
        gradient = 2 * scale * x
        norms.append(gradient.norm(dim=1).mean())
        weights = [0.9 ** (step - place) for place in range(step + 1)]
        mean = sum(weight * norm for weight, norm in zip(weights, norms, strict=True)) / sum(weights)
        found = balanced_gradient(balancer, "a", scale=scale).double()
        torch.testing.assert_close(found, gradient / mean / 4, rtol=1e-5, atol=1e-7)


def test_losses_that_come_late_share_with_the_others() -> None:
    balancer = GradientBalancer({"a": 1.0, "b": 3.0})
    alone = balanced_gradient(balancer, "a")
    torch.testing.assert_close(alone, balanced_gradient(GradientBalancer({"a": 7.0}), "a"))
    together = balanced_gradient(balancer, "ab")
    torch.testing.assert_close(together, balanced_gradient(GradientBalancer({"a": 1.0, "b": 3.0}), "ab"))


def test_a_gradient_that_is_not_finite_spoils_no_average() -> None:
    balancer, clean = GradientBalancer({"a": 1.0}), GradientBalancer({"a": 1.0})
    for each in (balancer, clean):
        balanced_gradient(each, "a")
    assert not balanced_gradient(balancer, "a", scale=float("inf")).isfinite().all()
    torch.testing.assert_close(balanced_gradient(balancer, "a"), balanced_gradient(clean, "a"))


# --------------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_has_a_row_for_each_recording(tmp_path: Path) -> None:
    recordings = {name: Audio(0.1 * noise(1, 4800, seed=seed).numpy(), 24000) for seed, name in enumerate("abc")}
    sizes = []
    for count in (1, 3):
        draw_spectrograms(tmp_path / "a.png", dict(list(recordings.items())[:count]))
        header = (tmp_path / "a.png").read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.append((int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")))
    assert sizes[1] == (sizes[0][0], 3 * sizes[0][1])


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"needs the package matplotlib.*phonograph\[demo\]"):
        draw_spectrograms(tmp_path / "a.png", {"a": Audio(np.zeros((1, 4800), np.float32), 24000)})
