"""Blurs, downsampling, masks and colours against dense computations of numpy, scipy and Pillow, and bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scipy.integrate
import scipy.ndimage
import torch
from click.testing import CliRunner

from invdiff import operators
from invdiff.errors import InputWarning, UsageError
from invdiff.operators.tools.kernels import anisotropic_gaussian, convolution, disk

BENCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "bench"
# Sums of a few hundred products of numbers below 1.
ROUNDING = 1e-13
SCIPY_MODE = {"circular": "wrap", "reflect": "reflect", "replicate": "nearest", "zero": "constant"}
BAYER = {"rggb": "RG/GB", "bggr": "BG/GR", "grbg": "GR/BG", "gbrg": "GB/RG"}


def picture(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((1, *shape)))


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape)


@pytest.mark.parametrize("radius", [0.4, 1.0, 2.5, 3.7])
def test_a_disk_has_its_area_in_each_pixel(radius: float) -> None:
    kernel, middle = disk(radius), disk(radius).shape[0] // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-14) and np.abs(kernel - kernel.T).max() < 1e-15
    for row, column in ((0, 0), (0, middle), (middle, middle)):

        def height(x: float, y0: float = row - middle - 0.5) -> float:
            reach = math.sqrt(max(0.0, radius**2 - x**2))
            return max(0.0, min(y0 + 1, reach) - max(y0, -reach))

        left = column - middle - 0.5
        area = scipy.integrate.quad(height, left, left + 1, limit=400, epsabs=1e-9)[0]
        assert kernel[row, column] == pytest.approx(area / (math.pi * radius**2), abs=1e-7)
    # The twin: a pixel that counts whole or not at all is another kernel.
    grid = np.hypot(*np.indices(kernel.shape) - middle) <= radius
    assert np.abs(kernel - grid / grid.sum()).max() > 1e-3 or radius < 0.5


@pytest.mark.parametrize("boundary", SCIPY_MODE)
def test_defocus_and_anisotropic_blur_are_scipys_convolution(boundary: str) -> None:
    x = picture(1, 21, 19)
    for spec, kernel in (
        ("defocus_blur:radius=2.3", disk(2.3)),
        ("anisotropic_blur:sigma=1.9x0.7,angle=35", anisotropic_gaussian(1.9, 0.7, 35)),
    ):
        ours = operators.get(spec, boundary=boundary).A(x)[0, 0].numpy()
        theirs = scipy.ndimage.convolve(x[0, 0].numpy(), kernel, mode=SCIPY_MODE[boundary])
        assert np.abs(ours - theirs).max() < ROUNDING
        assert np.abs(ours - np.roll(theirs, 1)).max() > 1e-3


@pytest.mark.parametrize("angle", [0, 30, 90, 120])
def test_anisotropic_kernels_have_the_covariance_of_their_angle(angle: float) -> None:
    kernel, turn = anisotropic_gaussian(4, 1.5, angle), math.radians(angle)
    up, x = (np.arange(n) - n // 2 for n in kernel.shape)
    up = -up[:, None] + 0 * x
    x = x[None, :] + 0 * up
    found = [[(kernel * a * b).sum() for b in (x, up)] for a in (x, up)]
    axis = np.array([math.cos(turn), math.sin(turn)])
    exact = 1.5**2 * np.eye(2) + (4**2 - 1.5**2) * np.outer(axis, axis)
    # Cutting at 4 deviations takes 0.1 % off the variance.
    assert np.abs(found - exact).max() < 0.002 * 16
    assert np.abs(found - exact[::-1, ::-1]).max() > 1


def test_both_directed_blurs_turn_the_same_way() -> None:
    for angle in (20, 110):
        mixed = []
        for spec in ("anisotropic_blur:sigma=3x0.5", "motion_blur:length=9"):
            plane = operators.get(spec, angle=angle).stencil.plane
            rows, columns = (np.arange(n) - n // 2 for n in plane.shape)
            mixed.append(float(rows @ plane @ columns))
        assert mixed[0] * mixed[1] > 1


def test_separable_and_symmetric_kernels_have_a_decomposition() -> None:
    with_svd = [
        "motion_blur:boundary=zero",
        "motion_blur:angle=90,boundary=valid",
        "defocus_blur",
        "defocus_blur:boundary=circular",
        "anisotropic_blur:boundary=replicate",
    ]
    without = ["motion_blur:angle=30", "defocus_blur:boundary=zero", "anisotropic_blur:angle=10", "varying_blur"]
    assert all(operators.get(spec).has_svd for spec in with_svd)
    assert not any(operators.get(spec).has_svd for spec in without)
    plane = np.outer([1.0, -2.0, 0.5], [0.0, 3.0])
    rows, columns = convolution(plane).axes
    assert np.abs(np.outer(rows, columns) - plane[::-1, ::-1]).max() < 1e-15
    plane[0, 0] = 1e-9
    assert convolution(plane).axes is None and convolution(np.zeros((2, 2))).axes is None


@pytest.mark.skipif(not BENCH.is_dir(), reason="published kernels are not on this machine")
def test_published_motion_kernels_of_one_file() -> None:
    path = BENCH / "kernels" / "Levin09.npz"
    op = operators.get(f"kernel_blur:kernel={path},key=k00")
    assert np.array_equal(op.stencil.plane[::-1, ::-1], np.load(path)["k00"])
    with pytest.raises(UsageError, match=r"holds 8 arrays: choose one with key=k00\|k01"):
        operators.get(f"kernel_blur:kernel={path}")


# Blur that varies


def test_varying_blur_is_the_weighted_sum_of_its_blurs() -> None:
    kernels, x = array(2, 3, 4, 3), picture(2, 11, 13)
    for boundary in SCIPY_MODE:
        y = operators.VaryingBlur(kernels=kernels, boundary=boundary).A(x)
        total = np.zeros((11, 13))
        for i, j in np.ndindex(2, 3):
            # Linear interpolation between the middles of the tiles, constant outside the outermost.
            v = np.interp(np.arange(11) + 0.5, (np.arange(2) + 0.5) * 11 / 2, np.eye(2)[i])
            u = np.interp(np.arange(13) + 0.5, (np.arange(3) + 0.5) * 13 / 3, np.eye(3)[j])
            total += np.outer(v, u) * scipy.ndimage.convolve(x[0, 1].numpy(), kernels[i, j], mode=SCIPY_MODE[boundary])
        assert np.abs(y[0, 1].numpy() - total).max() < 10 * ROUNDING
        turned = operators.VaryingBlur(kernels=kernels[::-1].copy(), boundary=boundary).A(x)
        assert float((y - turned).abs().max()) > 1e-2


def test_equal_kernels_everywhere_are_one_blur() -> None:
    kernel, x = array(5, 3) / array(5, 3).sum(), picture(3, 16, 14)
    for boundary in (*SCIPY_MODE, "valid"):
        varying = operators.VaryingBlur(kernels=np.tile(kernel, (3, 2, 1, 1)), boundary=boundary)
        one = operators.KernelBlur(kernel=kernel, boundary=boundary)
        assert float((varying.A(x) - one.A(x)).abs().max()) < ROUNDING


def test_a_curved_field_keeps_flat_areas_and_blurs_corners_more() -> None:
    op = operators.get("varying_blur:radius=0.4,corner=3,grid=3x3")
    assert float((op.A(torch.ones(1, 1, 24, 24, dtype=torch.float64)) - 1).abs().max()) < ROUNDING
    grid = op.kernel_grid
    assert grid.shape == (3, 3, 7, 7) and np.abs(grid[0, 0] - disk(3)).max() < 1e-15 and grid[1, 1, 3, 3] == 1
    assert grid[0, 1].max() == pytest.approx(disk(0.4 + 2.6 / 2).max())


# Downsampling


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("kernel", ["lanczos", "bicubic"])
def test_downsampling_is_pillows_inside(kernel: str, factor: int) -> None:
    x, cut = picture(1, 12 * factor, 10 * factor).float(), 4
    ours = operators.get(f"downsample:factor={factor},kernel={kernel}").A(x)[0, 0].numpy()
    size = (10, 12)
    method = {"lanczos": PIL.Image.Resampling.LANCZOS, "bicubic": PIL.Image.Resampling.BICUBIC}[kernel]
    theirs = np.asarray(PIL.Image.fromarray(x[0, 0].numpy()).resize(size, method))
    # Pillow computes weights in double and pixels in single precision; it leaves out what lies beyond an edge.
    assert np.abs(ours - theirs)[cut:-cut, cut:-cut].max() < 1e-6
    other = {"lanczos": "bicubic", "bicubic": "lanczos"}[kernel]
    assert np.abs(operators.get(f"downsample:factor={factor},kernel={other}").A(x)[0, 0].numpy() - theirs).max() > 1e-3


@pytest.mark.skipif(not BENCH.is_dir(), reason="published kernels are not on this machine")
@pytest.mark.parametrize(("factor", "key", "origin"), [(2, "k00", 11), (3, "k01", 10), (4, "k02", 9)])
def test_a_photograph_shrunk_by_the_published_bicubic_kernel(factor: int, key: str, origin: int) -> None:
    """The published kernels are estimates: 9 to 20 % of their absolute sum lies outside the true support. A photograph made
    smaller by them is ours within half a step of 8 bits (rms), if the kernel's entry (origin, origin) is put on the block's
    first pixel: theirs has its middle, 12, on pixel 12 - origin, ours on the middle of the block, (factor - 1) / 2."""
    photo = np.asarray(PIL.Image.open(BENCH / "set14" / "face.png").convert("L"), dtype=np.float64)[:240, :240] / 255
    ours = operators.get(f"downsample:factor={factor},kernel=bicubic").A(torch.from_numpy(photo)[None, None])[0, 0]
    published = np.load(BENCH / "kernels" / "kernels_bicubicx234.npz")[key]
    rms = []
    for shift in (0, 1):
        filtered = scipy.ndimage.correlate(
            photo, published / published.sum(), mode="reflect", origin=origin + shift - 12
        )
        small = filtered[::factor, ::factor]
        rms.append(float(((small - ours.numpy())[8:-8, 8:-8] ** 2).mean() ** 0.5))
    assert rms[0] < 0.5 / 255 and rms[1] > 2 * rms[0], rms


# Masks


def test_strokes_are_given_by_their_arguments() -> None:
    op = operators.get("inpaint:strokes=3,width=6,seed=2")
    mask = op.observed((3, 40, 50))
    assert mask.shape == (1, 40, 50) and torch.equal(mask, operators.get(op.spec).observed((1, 40, 50)))
    assert 0.2 < float(mask.mean()) < 1
    for other in ("inpaint:strokes=3,width=6,seed=3", "inpaint:strokes=4,width=6,seed=2"):
        assert not torch.equal(mask, operators.get(other).observed((3, 40, 50)))
    # The same strokes, thinner: what a thin brush takes, a thick one takes too.
    thin = operators.get("inpaint:strokes=3,width=2,seed=2").observed((3, 40, 50))
    assert bool((thin >= mask).all()) and float(thin.sum()) > float(mask.sum())
    # Every lost pixel lies in a disk of the brush's width that is lost as a whole, inside the image.
    brush = np.hypot(*np.indices((5, 5)) - 2) <= 2
    lost = np.pad(mask[0].numpy() == 0, 5, mode="edge")
    opened = scipy.ndimage.binary_opening(lost, brush)
    assert (opened == lost)[5:-5, 5:-5].mean() > 0.99


def test_per_channel_masks(tmp_path: Path) -> None:
    mask = array(3, 6, 8) > 0.5
    PIL.Image.fromarray((255 * mask.transpose(1, 2, 0)).astype(np.uint8)).save(tmp_path / "m.png")
    x = picture(3, 6, 8)
    for given in (tmp_path / "m.png", mask):
        op = operators.get("inpaint", mask=given, per_channel=True)
        assert torch.equal(op.A(x), torch.from_numpy(mask) * x)
    with pytest.warns(InputWarning, match="3 channels of mask differ and are averaged; add per_channel=true"):
        averaged = operators.get("inpaint", mask=mask).observed((3, 6, 8))
    assert torch.equal(averaged[0], torch.from_numpy(mask.mean(0) > 0.5 * 1).double())
    with pytest.raises(UsageError, match="mask has 3 channels but the image has 1; leave out per_channel"):
        op.A(picture(1, 6, 8))
    random = operators.get("inpaint:keep=0.25,per_channel=true").observed((3, 8, 10))
    assert random.sum((1, 2)).tolist() == [20, 20, 20] and not torch.equal(random[0], random[1])


# Colours


@pytest.mark.parametrize("pattern", BAYER)
def test_mosaics_select_pixels(pattern: str) -> None:
    x = picture(3, 5, 6)
    y = operators.get(f"demosaic:pattern={pattern}").A(x)
    rows = BAYER[pattern].split("/")
    for i, j in np.ndindex(5, 6):
        assert y[0, 0, i, j] == x[0, "RGB".index(rows[i % 2][j % 2]), i, j]


def test_mixing_is_the_matrix_at_each_pixel(tmp_path: Path) -> None:
    M, x = array(2, 3) - 0.5, picture(3, 4, 5)
    np.save(tmp_path / "m.npy", M)
    for given in (M, tmp_path / "m.npy"):
        y = operators.get("spectral_mixing", matrix=given).A(x)
        assert np.abs(y[0].numpy() - np.tensordot(M, x[0].numpy(), 1)).max() < ROUNDING
    for weights, exact in (("bt709", [0.2126, 0.7152, 0.0722]), ("mean", [1 / 3] * 3)):
        gray = operators.get(f"grayscale:weights={weights}").A(x)
        assert float((gray - operators.SpectralMixing(np.array([exact])).A(x)).abs().max()) < ROUNDING
        assert float((gray - operators.get("grayscale").A(x)).abs().max()) > 1e-3


def test_pansharpening_holds_the_mean_and_the_small_channels() -> None:
    x = picture(4, 8, 12)
    for kernel in ("average", "bicubic"):
        y = operators.get(f"pansharpen:factor=2,kernel={kernel}").A(x)
        assert y.shape == (1, 8, 4, 6)
        pan = torch.nn.functional.pixel_shuffle(y[:, :-4], 2)
        assert float((pan[:, 0] - x.mean(1)).abs().max()) < ROUNDING
        assert torch.equal(y[:, -4:], operators.get(f"downsample:factor=2,kernel={kernel}").A(x))


# What a user reads


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("defocus_blur:radius=0", r"defocus_blur: radius='0' must be > 0 and <= 2048 px"),
        ("defocus_blur:radius=9", r"kernel 19x19 is larger than the image 16x16: lower radius"),
        ("anisotropic_blur:sigma=3", r"sigma='3' is not a two numbers such as 3x1 \(write ALONGxACROSS"),
        ("anisotropic_blur:sigma=3x0", r"sigma='3x0' is not"),
        ("anisotropic_blur:sigma=3x1", r"larger than the image 16x16: lower sigma"),
        ("varying_blur:grid=1x3", r"grid=1x3 must be rows x columns, each >= 2"),
        ("varying_blur:grid=20x3,corner=1", r"20x3 tiles are more than 16x16 pixels hold"),
        ("varying_blur:kernels=none.npy", r"kernels='none.npy' is not a file"),
        ("varying_blur:kernels=none.npy,radius=2", r"radius has no effect on kernels"),
        ("downsample:factor=17", r"factor='17' must be >= 2 and <= 16"),
        ("downsample:factor=4,kernel=lanczos", r"kernel 24x24 is larger than the image 16x16: lower factor"),
        ("inpaint:strokes=0", r"strokes='0' must be >= 1 and <= 1000"),
        ("inpaint:strokes=9,width=60", r"covers the whole image 16x16; lower strokes or width"),
        ("inpaint:width=3", r"width=3 has no effect on keep; drop it, or add strokes=4"),
        ("inpaint:strokes=2,keep=0.5", r"strokes and keep are given; choose one of mask, box, strokes, keep"),
        ("inpaint:box=2x2,per_channel=true", r"per_channel has no effect on box"),
        ("demosaic:pattern=rgbg", r"unknown pattern of demosaic 'rgbg'.*rggb"),
        ("grayscale:weights=709", r"unknown weights of grayscale '709'.*bt709"),
        ("spectral_mixing", r"spectral_mixing needs matrix"),
        ("pansharpen:factor=3", r"16x16 is not a whole number of 3x3 blocks: crop it to 15x15"),
    ],
)
def test_messages(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        operators.get(spec).A(torch.zeros(1, 3, 16, 16))


def test_messages_about_arrays() -> None:
    for make, message in (
        (lambda: operators.VaryingBlur(kernels=np.ones((3, 3))), r"kernels have shape \(3, 3\); it must be \(rows"),
        (lambda: operators.VaryingBlur(kernels=np.full((1, 1, 3, 3), np.nan)), "kernels is empty or holds NaN"),
        (lambda: operators.SpectralMixing(np.ones(3)), r"matrix has shape \(3,\)"),
        (lambda: operators.SpectralMixing(np.zeros((1, 3))), "matrix is zero everywhere"),
        (lambda: operators.Inpaint(mask=-np.ones((4, 4))), "mask has negative values, down to -1"),
        (lambda: operators.Inpaint(mask=np.ones((1, 2, 3, 4, 4))), r"mask has shape \(2, 3, 4, 4\)"),
        (lambda: operators.SpectralMixing(np.ones((2, 3))).A(picture(4, 3, 3)), "needs an image of 3 channels, got 4"),
        (lambda: operators.SpectralMixing(np.ones((2, 3))).A_adjoint(picture(3, 3, 3)), "has 2 channels, got 3"),
        (lambda: operators.get("demosaic").A(picture(1, 4, 4)), "needs an image of 3 channels"),
        (lambda: operators.get("demosaic").A_adjoint(picture(3, 4, 4)), "a mosaic has 1 channel, got 3"),
        (lambda: operators.get("pansharpen").A_adjoint(picture(16, 4, 4)), r"factor\^2 = 16 channels of pan"),
    ):
        with pytest.raises(UsageError, match=message):
            make()


def test_odd_kernels_and_masks_are_told() -> None:
    x, kernel = picture(1, 9, 9), array(3, 3)
    with pytest.warns(InputWarning, match=rf"sums to {kernel.sum():.4g}, .* add normalise=true"):
        bright = operators.KernelBlur(kernel=kernel).A(x)
    scaled = operators.KernelBlur(kernel=kernel, normalise=True)
    assert torch.allclose(bright, kernel.sum() * scaled.A(x))
    with pytest.warns(InputWarning, match="4x2 has an even size and so no middle; row 2, column 1 .* is its centre"):
        operators.KernelBlur(kernel=array(4, 2), normalise=True)
    with pytest.warns(InputWarning, match="25 % of mask is neither 0 nor its largest value 1; what is above half"):
        soft = operators.Inpaint(mask=np.array([[0, 1.0], [0.6, 1]]))
    assert soft.observed((1, 2, 2)).tolist() == [[[0, 1], [1, 1]]]


@pytest.mark.filterwarnings("error")
def test_sound_kernels_and_masks_are_not() -> None:
    operators.KernelBlur(kernel=disk(2) * (1 + 5e-4))
    operators.Inpaint(mask=255 * (array(4, 4) > 0.5))


def test_the_command_line_tells_too(tmp_path: Path) -> None:
    from invdiff.cli.main import main

    np.save(tmp_path / "k.npy", np.ones((3, 3)))
    PIL.Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "x.png")
    command = ["degrade", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png"), "--noise", "0"]
    done = CliRunner().invoke(main, [*command, "--operator", f"kernel_blur:kernel={tmp_path}/k.npy"])
    assert done.exit_code == 0 and "warning: kernel_blur: kernel sums to 9" in done.output, done.output


def test_cosines_of_large_images_are_taken_in_strips(monkeypatch):
    """The same numbers and gradients, whatever the strips; a width of one strip's memory and more, too."""
    from invdiff.operators.tools import cosine

    x = torch.rand(2, 3, 37, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answers = []
    for strip in (2**21, 2 * 3 * 24 * 5, 7):
        monkeypatch.setattr(cosine, "STRIP", strip)
        operator, leaf = operators.get("gaussian_blur:sigma=1"), x.clone().requires_grad_()
        y = operator.A(leaf)
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        answers.append((y.detach(), gradient, operator.prox_l2(x, y.detach(), 20.0)))
    for other in answers[1:]:
        for found, expected in zip(other, answers[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
