"""The measures of realism order what is more and what is less like the truth."""

import pytest
import torch
from conftest import draw_batch
from torch.nn import functional as F

from depixelation.engine.realism import (
    block_violation,
    measure_realism,
    power_spectrum,
    two_sample_accuracy,
    wilson_interval,
)


@pytest.fixture(scope="module")
def samples():
    return draw_batch(100, (12, 32), (12, 32), (4, 10))


def test_truth_noise_blur_and_blocks_are_put_in_order(samples):
    pixelated, known, images = samples
    blurred = F.avg_pool2d(F.pad(images.float(), (2, 2, 2, 2), "replicate"), 5, 1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    versions = {"truth": images.float(), "faint": images + 3 * noise, "noisy": images + 25 * noise}
    versions |= {"blurred": blurred, "pixelated": pixelated.float()}
    found = {}
    for name, values in versions.items():
        restored = torch.where(known, images, values.round().clamp(0, 255).to(torch.uint8))
        found[name] = measure_realism(pixelated, known, restored, images, steps=12)
    truth = found["truth"]
    assert truth.accuracy == 0.5 and truth.spectrum == 0 and truth.gradient == 1 and truth.violation == 0
    assert truth.low < 0.5 < truth.high
    assert found["noisy"].gradient > found["faint"].gradient > 1 > found["blurred"].gradient > 0.1
    assert 0 < found["faint"].spectrum < min(found["noisy"].spectrum, found["blurred"].spectrum)
    assert min(found[name].accuracy for name in ("noisy", "blurred", "pixelated")) > 0.7
    assert found["faint"].accuracy < found["noisy"].accuracy
    assert found["pixelated"].violation == 0 and found["noisy"].violation > found["faint"].violation > 0


def test_spectrum_and_interval(samples):
    _, known, images = samples
    noise = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    flat = power_spectrum(noise, ~known)
    flat = flat[2:]  # the lowest lose what the mean takes
    assert flat.max() / flat.min() < 1.25 and flat.mean() == pytest.approx(255**2 / 12, rel=0.1)
    photos = power_spectrum(images, ~known)
    assert photos[0] > 20 * photos[-1]  # as photos, which have little power in what is fine
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_a_block_may_be_off_by_what_its_floor_took(samples):
    pixelated, known, _ = samples
    for shift, wanted in ((0, 0.0), (1, 0.0), (3, 2.0), (-2, 2.0)):
        values = (pixelated.int() + shift).clamp(0, 255).to(torch.uint8)
        inside = (pixelated.int() + shift).clamp(0, 255) == pixelated.int() + shift
        values = torch.where(inside, values, pixelated)
        assert block_violation(pixelated, values, ~known) == pytest.approx(wanted, abs=1e-3)


def test_the_classifier_is_measured_on_images_that_it_has_not_seen(samples):
    _, known, images = samples
    restored = torch.cat([torch.zeros_like(images[:50]), images[50:]])  # the second half is the truth itself
    assert two_sample_accuracy(restored, images, ~known, steps=12)[0] == 0.5
