"""Rotary positions: exact however late, and against the rotation written as complex numbers."""

import math

import pytest
import torch

from phonograph.nn.positions import apply_rotary, inverse_frequencies, rotary_angles

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


def test_late_steps_are_as_exact_as_early_ones() -> None:
    """After 4.6 days of stream at 25 Hz; angles rounded to float32 would be off by up to half a radian."""
    step = 10_000_000
    ones = torch.cat([torch.ones(1, 1, 1, 32), torch.zeros(1, 1, 1, 32)], -1)
    x = apply_rotary(ones, *rotary_angles(torch.tensor([step]), inverse_frequencies(DEFAULT, 64), torch.float32)).flatten()
    for index in range(32):
        angle = step * 10000.0 ** (-2 * index / 64)
        assert x[index].item() == pytest.approx(math.cos(angle), abs=1e-5)
        assert x[index + 32].item() == pytest.approx(math.sin(angle), abs=1e-5)


def test_linear_scaling_stretches_positions() -> None:
    positions = torch.arange(0, 50)
    scaled = inverse_frequencies({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 16)
    plain = inverse_frequencies(DEFAULT, 16)
    for ours, expected in zip(
        rotary_angles(positions * 4, scaled, torch.float64), rotary_angles(positions, plain, torch.float64), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_base_is_rope_theta() -> None:
    assert inverse_frequencies({"rope_type": "default", "rope_theta": 256.0}, 8).tolist() == [1, 0.25, 0.0625, 0.015625]


def test_rotates_halves_as_complex_numbers() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions, frequencies = torch.arange(100, 105), inverse_frequencies(DEFAULT, 8)
    angles = positions.double()[:, None] * frequencies
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    rotated = apply_rotary(x, *rotary_angles(positions, frequencies, torch.float64))
    torch.testing.assert_close(rotated, torch.cat([expected.real, expected.imag], -1))


def test_products_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64).unbind()
    frequencies = inverse_frequencies(DEFAULT, 8)

    def product(at: int, behind: int) -> float:
        rotated = [
            apply_rotary(x, *rotary_angles(torch.tensor([place]), frequencies, torch.float64))
            for x, place in ((query, at), (key, at - behind))
        ]
        return (rotated[0] * rotated[1]).sum().item()

    assert product(10, 7) == pytest.approx(product(10_000_000, 7), rel=1e-6)
    assert product(10, 7) != pytest.approx(product(10, 6), rel=1e-2)
