"""Masks are as wide, as many and as often as the paper's formulas say."""

import pytest
import torch

from phonograph.errors import ConfigError
from phonograph.training.data import SpecAugmentOptions, mask_features


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the stretches of true values."""
    found = [0]
    for value in row.tolist():
        if value:
            found[-1] += 1
        elif found[-1]:
            found.append(0)
    return [length for length in found if length]


def test_one_mask_of_each_kind_is_a_span_within_its_limits() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(20, 201, (500,))
    options = SpecAugmentOptions(1, 10, 1, 30, 0.5)
    masked = mask_features(torch.ones(500, 200, 40), lengths, options, value=7.0) == 7.0
    over_time, over_bands = masked.all(2), masked.all(1)
    widths = []
    for row, length in enumerate(lengths.tolist()):
        assert not over_time[row, length:].any()
        assert len(runs(over_time[row])) <= 1
        assert len(runs(over_bands[row])) <= 1
        assert int(over_time[row].sum()) <= min(30, length // 2)
        assert torch.equal(masked[row], over_time[row][:, None] | over_bands[row])
        widths.append(int(over_bands[row].sum()))
    counts = torch.bincount(torch.tensor(widths), minlength=11)
    assert len(counts) == 11
    assert float(counts.float().std()) < 3 * (500 / 11) ** 0.5  # 0 to 10 have equal chances
    starts = over_time[:, :10].any(0)
    assert bool(starts.all())  # masks begin anywhere, from the first frame on


def test_the_masked_share_is_the_formula_s() -> None:
    torch.manual_seed(0)
    options = SpecAugmentOptions(frequency_masks=0, time_masks=2, time_width=20)
    features = torch.ones(4000, 400, 2)
    masked = mask_features(features, torch.full((4000,), 400), options) == 0
    # A frame far from both ends is in a mask of width w with chance w / (401 - w), and in one of two with 1 - (1 - p) ** 2.
    chance = sum(width / (401 - width) for width in range(21)) / 21
    middle = float(masked[:, 50:350, 0].float().mean())
    assert middle == pytest.approx(1 - (1 - chance) ** 2, rel=0.05)
    assert torch.equal(masked[..., 0], masked[..., 1])


def test_nothing_is_masked_where_nothing_is_asked_for() -> None:
    features, lengths = torch.rand(5, 60, 20) + 1, torch.full((5,), 60)
    assert torch.equal(mask_features(features, lengths, SpecAugmentOptions(), strength=0.0), features)
    assert torch.equal(mask_features(features, lengths, SpecAugmentOptions(0, 27, 0, 100)), features)


def test_every_utterance_has_masks_of_its_own_and_the_seed_repeats_them() -> None:
    features, lengths = torch.ones(8, 300, 80), torch.full((8,), 300)
    torch.manual_seed(1)
    first = mask_features(features, lengths, SpecAugmentOptions())
    torch.manual_seed(1)
    assert torch.equal(first, mask_features(features, lengths, SpecAugmentOptions()))
    assert len({tuple(row.flatten().tolist()) for row in first}) == 8
    assert bool((features == 1).all())


def test_nothing_is_read_back_from_the_device() -> None:
    features, lengths = torch.empty(3, 50, 80, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    assert mask_features(features, lengths, SpecAugmentOptions()).shape == (3, 50, 80)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"^SpecAugmentOptions: time_width=-1 must be .*; time_share=2 must be .*<= 1$"):
        SpecAugmentOptions(time_width=-1, time_share=2)
