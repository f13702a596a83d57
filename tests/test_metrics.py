"""PSNR and SSIM against their formulas and against scikit-image, on photographs and on noise."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import skimage.data
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invdiff.errors import NumericalError, UsageError
from invdiff.scores import metrics
from invdiff.scores.comparison import as_image, compare
from invdiff.scores.metrics import crps, psnr, ssim


def random_pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (reference + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1), reference


def photograph_pair(name):
    photograph = np.atleast_3d(getattr(skimage.data, name)())[:120, :150]
    reference = torch.from_numpy(photograph.transpose(2, 0, 1).copy())[None].double() / 255
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (0.9 * reference + 0.05 * noise).clamp(0, 1), reference


def by_scikit_image(x, reference):
    arguments = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = zip(x.double().numpy(), reference.double().numpy(), strict=True)
    return torch.tensor([structural_similarity(a, b, channel_axis=0, **arguments) for a, b in pairs])


PAIRS = {
    **{name: (photograph_pair, name) for name in ("astronaut", "camera", "coffee", "coins")},
    "grey noise": (random_pair, (2, 1, 40, 33)),
    "colour noise": (random_pair, (3, 3, 24, 31)),
    "one window": (random_pair, (2, 3, 11, 11)),
    "one row of windows": (random_pair, (1, 1, 11, 30)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_ssim_equals_scikit_image(name):
    build, argument = PAIRS[name]
    x, reference = build(argument)
    torch.testing.assert_close(ssim(x, reference), by_scikit_image(x, reference), rtol=0, atol=1e-10)


@pytest.mark.parametrize("attribute, wrong", [("WINDOW_SIGMA", 1.5 * math.sqrt(2)), ("C2", 0.02**2), ("C1", 0.03**2)])
def test_ssim_comparison_notices_a_wrong_constant(monkeypatch, attribute, wrong):
    x, reference = photograph_pair("camera")
    monkeypatch.setattr(metrics, attribute, wrong)
    assert abs(ssim(x, reference) - by_scikit_image(x, reference)) > 1e-6


KINDS = list(product((1, 3), (False, True), (0, 2, 4), (False, True)))


def drawn_pair(index):
    """A random pair of one of KINDS: (x, reference, settings), float32 as restorations are."""
    rng = np.random.default_rng(index)
    channels, eight_bit, border, y_channel = KINDS[index % len(KINDS)]
    settings = {"eight_bit": eight_bit, "border": border, "y_channel": y_channel}
    height, width = (int(n) + 2 * border for n in rng.integers(11, 40, 2))
    smooth = np.cumsum(rng.standard_normal((1, channels, height, width)), -1) * 0.1 + 0.5
    noisy = smooth + rng.uniform(0.003, 0.4) * rng.standard_normal(smooth.shape)  # beyond [0, 1] too
    return (*(torch.from_numpy(image).float() for image in (noisy, smooth.clip(0, 1))), settings)


def prepared_by_scikit_image(image, eight_bit, border, y_channel):
    """(H, W) or (H, W, 3) float64, with nothing of this package in it."""
    array = np.clip(image[0].double().numpy().transpose(1, 2, 0), 0, 1)
    array = np.round(array * 255) / 255 if eight_bit else array
    array = rgb2ycbcr(array)[:, :, 0] / 255 if y_channel and array.shape[2] == 3 else array
    return array[border : array.shape[0] - border, border : array.shape[1] - border].squeeze()


def difference_from_scikit_image(index):
    x, reference, settings = drawn_pair(index)
    a, b = (prepared_by_scikit_image(image, **settings) for image in (x, reference))
    arguments = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    similarity = structural_similarity(a, b, channel_axis=2 if a.ndim == 3 else None, **arguments)
    ratio = peak_signal_noise_ratio(b, a, data_range=1)
    return max(
        abs(float(ssim(x, reference, **settings)) - similarity), abs(float(psnr(x, reference, **settings)) - ratio)
    )


def test_a_hundred_random_pairs_equal_scikit_image():
    """Grey and colour, rounded or not, cropped or not, all channels or luma. Far below the 1e-6 that would do."""
    assert max(map(difference_from_scikit_image, range(100))) < 1e-9


@pytest.mark.parametrize(
    "attribute, wrong",
    [
        ("LUMA", (0.299 * 255, 0.587 * 255, 0.114 * 255)),  # full swing, as JPEG has it
        ("LUMA", (24.966, 128.553, 65.481)),  # BGR
        ("clipped", lambda image, eight_bit=False: image.double()),
        ("cropped", lambda image, border: image[..., border:, border:]),
    ],
)
def test_the_hundred_pairs_notice_another_protocol(monkeypatch, attribute, wrong):
    monkeypatch.setattr(metrics, attribute, wrong)
    assert max(map(difference_from_scikit_image, range(len(KINDS)))) > 1e-6


def test_luma_needs_colours_it_knows():
    x = torch.rand(1, 4, 16, 16)
    with pytest.raises(UsageError, match="RGB or grey images, got 4 channels"):
        psnr(x, x, y_channel=True)
    grey = torch.rand(1, 1, 16, 16)
    assert torch.equal(psnr(grey, 0.9 * grey, y_channel=True), psnr(grey, 0.9 * grey))


@pytest.mark.parametrize("border", [-1, 8, 1.5])
def test_a_border_leaves_something_to_compare(border):
    x = torch.rand(1, 3, 16, 20)
    with pytest.raises(UsageError, match=f"border must be 0 to 7 whole pixels for images of 16 x 20, got {border}"):
        psnr(x, x, border=border)
    with pytest.raises(UsageError, match="at least 11 x 11 pixels, got 10 x 14"):
        ssim(x, x, border=3)


@pytest.mark.parametrize("name", ["astronaut", "colour noise"])
def test_psnr_equals_scikit_image(name):
    build, argument = PAIRS[name]
    x, reference = build(argument)
    pairs = zip(reference.numpy(), x.numpy(), strict=True)
    expected = torch.tensor([peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs], dtype=torch.float64)
    torch.testing.assert_close(psnr(x, reference), expected, rtol=1e-12, atol=0)


def test_psnr_of_a_known_error():
    reference = torch.full((1, 3, 4, 4), 0.5)
    torch.testing.assert_close(psnr(reference + 0.25, reference), torch.tensor([-20 * math.log10(0.25)]).double())


def test_identical_images_have_infinite_psnr_and_ssim_one():
    x, _ = random_pair((2, 3, 16, 16))
    assert psnr(x, x).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_values_are_clipped_before_they_are_compared(metric):
    x, reference = random_pair((1, 1, 16, 16))
    outside = torch.where(x > 0.8, 7.0, x)
    torch.testing.assert_close(metric(outside, reference), metric(outside.clamp(0, 1), reference))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_eight_bit_rounds_both_images(metric):
    x, reference = random_pair((1, 3, 16, 16))
    rounded = [(image * 255).round() / 255 for image in (x, reference)]
    torch.testing.assert_close(metric(x, reference, eight_bit=True), metric(*rounded), rtol=0, atol=1e-14)
    assert metric(x, reference, eight_bit=True) != metric(x, reference)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_batch_equals_its_images_alone(metric):
    x, reference = random_pair((3, 3, 20, 14))
    alone = torch.cat([metric(x[i : i + 1], reference[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(x, reference), alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric, together", [(psnr, metrics.psnr_of), (ssim, metrics.ssim_of)])
def test_images_at_once_as_on_an_accelerator_equal_one_after_the_other(metric, together):
    x, reference = random_pair((3, 3, 20, 14))
    torch.testing.assert_close(metric(x, reference), together(x, reference), rtol=0, atol=1e-13)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_float32_images_are_measured_in_float64(metric):
    x, reference = (image.float() for image in random_pair((1, 3, 16, 16)))
    assert metric(x, reference).dtype == torch.float64
    assert torch.equal(metric(x, reference), metric(x.double(), reference.double()))


def test_ssim_has_a_gradient():
    x, reference = random_pair((1, 1, 12, 13))
    assert torch.autograd.gradcheck(lambda image: ssim(image, reference), (0.1 + 0.8 * x).requires_grad_())


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    "x, reference, error, words",
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16), UsageError, r"\(1, 3, 16, 16\) and \(1, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), UsageError, r"\(B, C, H, W\)"),
        (torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16), UsageError, "batches"),
        (
            torch.zeros(1, 1, 16, 16),
            torch.zeros(1, 1, 16, 16, dtype=torch.uint8),
            UsageError,
            "reference is torch.uint8",
        ),
        (torch.full((1, 1, 16, 16), math.nan), torch.zeros(1, 1, 16, 16), NumericalError, "x holds NaN"),
        (torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), math.inf), NumericalError, "reference holds"),
    ],
)
def test_unusable_arguments_are_refused(metric, x, reference, error, words):
    with pytest.raises(error, match=words):
        metric(x, reference)


@pytest.mark.parametrize("size", [(10, 30), (30, 10)])
def test_ssim_refuses_images_smaller_than_its_window(size):
    x, reference = random_pair((1, 1, *size))
    with pytest.raises(UsageError, match=f"at least 11 x 11 pixels, got {size[0]} x {size[1]}"):
        ssim(x, reference)


def test_a_coarser_measurement_is_enlarged_and_a_slightly_smaller_one_is_not():
    shape = (3, 24, 32)
    coarse, smaller = torch.rand(3, 6, 8), torch.rand(3, 20, 28)
    bicubic = torch.nn.functional.interpolate(coarse[None], size=(24, 32), mode="bicubic")[0]
    assert torch.equal(as_image(coarse, shape), bicubic)
    assert as_image(smaller, shape) is smaller
    assert torch.equal(as_image(smaller[:1], shape), smaller[:1].expand(3, -1, -1))
    none = [torch.rand(50), torch.rand(2, 24, 32), torch.rand(3, 25, 32), torch.rand(3, 12, 8), torch.rand(3, 6, 9)]
    assert all(as_image(y, shape) is None for y in none)


@pytest.mark.parametrize("size", [(20, 28), (24, 28), (21, 29)])
def test_the_valid_part_is_compared_with_the_centre_of_the_truth(size):
    truth = torch.rand(3, 24, 32, dtype=torch.float64) * 0.8
    top, left = (24 - size[0]) // 2, (32 - size[1]) // 2
    y = truth[:, top : top + size[0], left : left + size[1]] + 0.1
    assert compare(y, truth, truth).before.psnr == pytest.approx(20)
    assert compare(torch.rand(50), truth, truth).before is None


def test_crps_is_the_sum_over_pairs() -> None:
    samples = torch.rand(5, 2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = (samples - truth).abs().mean(0)
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 5 * 4)
    torch.testing.assert_close(crps(samples, truth), (error - pairs).mean((1, 2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(crps(samples[:1], truth), (samples[0] - truth).abs().mean((1, 2, 3)))


@pytest.mark.parametrize("factor", [1.0, 2**0.5, 0.5])
def test_crps_prefers_the_true_spread(factor: float) -> None:
    """For the standard normal the expected score is 1 / sqrt(pi) = 0.564 of the deviation; wrong spreads score worse."""
    rng = torch.Generator().manual_seed(2)
    truth = 0.5 + 0.05 * torch.randn(1, 1, 200, 200, generator=rng, dtype=torch.float64)
    samples = 0.5 + factor * 0.05 * torch.randn(4, 1, 1, 200, 200, generator=rng, dtype=torch.float64)
    found = float(crps(samples, truth)) / 0.05
    # E|X - x| = sqrt(2 (1 + f^2) / pi), E|X - X'| = 2 f / sqrt(pi)
    expected = math.sqrt(2 * (1 + factor**2) / math.pi) - factor / math.sqrt(math.pi)
    assert abs(found - expected) < 5 * 0.7 / 200
    assert (expected > 1 / math.sqrt(math.pi) + 1e-6) == (factor != 1.0)
