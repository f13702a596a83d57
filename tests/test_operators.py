"""The physics of each operator against independent references, and what a user reads when something is wrong."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import skimage.transform
import torch

from invdiff import operators
from invdiff.errors import ImageError, InvdiffError, UsageError
from invdiff.operator.contract import Operator
from invdiff.operator.kept import KEPT_SHAPES
from invdiff.specs.parameters import declarations

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT.parent / "shared/data/bench/kernels/kernels_bicubicx234.npz"
# Sums of a few hundred products of numbers below 1.
ROUNDING = 1e-13
SCIPY_MODE = {"circular": "wrap", "reflect": "reflect", "replicate": "nearest", "zero": "constant"}


def picture(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((1, *shape)))


def kernel(*shape: int) -> np.ndarray:
    array = np.random.default_rng(1).random(shape)
    return array / array.sum()


def spike(size: int) -> torch.Tensor:
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[..., size // 2, size // 2] = 1
    return x


# Filters


@pytest.mark.parametrize("boundary", SCIPY_MODE)
@pytest.mark.parametrize("size", [(3, 3), (5, 2), (4, 4), (1, 6)], ids=str)
def test_kernel_blur_is_scipys_convolution(boundary: str, size: tuple[int, int]) -> None:
    x, k = picture(1, 9, 10), kernel(*size)
    ours = operators.KernelBlur(kernel=k, boundary=boundary).A(x)[0, 0].numpy()
    theirs = scipy.ndimage.convolve(x[0, 0].numpy(), k, mode=SCIPY_MODE[boundary])
    assert np.abs(ours - theirs).max() < ROUNDING
    # The twin: correlation is another operation, and this test can tell.
    assert np.abs(ours - scipy.ndimage.correlate(x[0, 0].numpy(), k, mode=SCIPY_MODE[boundary])).max() > 1e-3


def test_valid_keeps_the_positions_where_the_kernel_fits() -> None:
    x, k = picture(1, 9, 10), kernel(4, 3)
    ours = operators.KernelBlur(kernel=k, boundary="valid").A(x)
    padded = operators.KernelBlur(kernel=k, boundary="zero").A(x)
    assert ours.shape == (1, 1, 6, 8)
    # Centre (2, 1): row 0 of y is centred on row 4 - 1 - 2 = 1 of x, column 0 on column 1.
    assert float((ours - padded[..., 1:7, 1:9]).abs().max()) < ROUNDING


def test_a_spike_becomes_the_kernel_the_same_way_up() -> None:
    k = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    y = operators.KernelBlur(kernel=k, boundary="zero").A(spike(5))
    assert np.abs(y[0, 0, 1:4, 1:4].numpy() - k).max() < ROUNDING * 9


@pytest.mark.parametrize("boundary", SCIPY_MODE)
def test_gaussian_blur_is_scipys(boundary: str) -> None:
    x = picture(1, 17, 20)
    theirs = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode=SCIPY_MODE[boundary], truncate=4)
    ours = operators.get("gaussian_blur", sigma=1.5, boundary=boundary).A(x)[0, 0].numpy()
    assert np.abs(ours - theirs).max() < ROUNDING


@pytest.mark.parametrize("boundary", SCIPY_MODE)
def test_uniform_blur_is_scipys(boundary: str) -> None:
    x = picture(1, 8, 9)
    theirs = scipy.ndimage.uniform_filter(x[0, 0].numpy(), 5, mode=SCIPY_MODE[boundary])
    ours = operators.get("uniform_blur", size=5, boundary=boundary).A(x)[0, 0].numpy()
    assert np.abs(ours - theirs).max() < ROUNDING


def test_reflect_repeats_the_edge_pixel() -> None:
    # d c b a | a b c d with weights 1/3 each, by hand: (1 + 1 + 2)/3, (1 + 2 + 6)/3, (2 + 6 + 6)/3.
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64).expand(1, 1, 3, 3)
    y = operators.get("uniform_blur:size=3").A(x)
    assert torch.allclose(y, torch.tensor([4.0, 9.0, 14.0], dtype=torch.float64) / 3)


@pytest.mark.parametrize("size", [(5, 5), (8, 13), (12, 6), (37, 64)], ids=str)
def test_symmetric_kernels_take_the_cosine_transform_and_the_matrices_agree(size: tuple[int, int]) -> None:
    from invdiff.operators.tools.cosine import CosineFilter, Cosines
    from invdiff.operators.tools.separable import Axis, SeparableFilter, axis_matrix

    op, x = operators.get("uniform_blur:size=5"), picture(2, *size)
    engine = op._engine((2, *size))
    dense = SeparableFilter(*(Axis(axis_matrix(np.full(5, 0.2), -2, 1, n, "reflect")) for n in size))
    assert isinstance(engine, CosineFilter)
    assert float((op.A(x) - dense.A(x)).abs().max()) < ROUNDING
    theirs = dense.svd().singular_values.flatten().sort().values
    assert float((engine.svd().singular_values.flatten().sort().values - theirs).abs().max()) < ROUNDING
    for n in size:
        signal = picture(n)
        coordinates = Cosines(n).forward(signal)
        assert np.abs(coordinates.numpy() - scipy.fft.dct(signal.numpy(), norm="ortho")).max() < ROUNDING
        assert float((Cosines(n).inverse(coordinates) - signal).abs().max()) < ROUNDING


def tables(obj: object, seen: set[int] | None = None) -> int:
    """Bytes of all tensors and arrays that an object holds."""
    seen = set() if seen is None else seen
    if id(obj) in seen:
        return 0
    seen.add(id(obj))
    if isinstance(obj, (torch.Tensor, np.ndarray)):
        return obj.nbytes
    parts = obj if isinstance(obj, (list, tuple)) else list(obj.values()) if isinstance(obj, dict) else []
    parts = [*parts, *vars(obj).values()] if hasattr(obj, "__dict__") else parts
    return sum(tables(part, seen) for part in parts)


def test_a_large_picture_needs_no_dense_matrix() -> None:
    # Two matrices a side (A and V) of 1500 and 4 px wide would take 18 MB in float64; a few images take 0.05 MB each.
    op, x = operators.get("gaussian_blur:sigma=2,size=3"), picture(1, 1500, 4).float()
    op.prox_l2(x, op.A(x), 2.0), op.solve_data(x, 2.0, 1.0)
    assert tables(op._cache) < 20 * x.nbytes


def test_a_measurement_alone_makes_no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **more: pytest.fail("decomposed"))
    op = operators.get("gaussian_blur:boundary=zero")
    op.A_adjoint(op.A(picture(1, 20, 24)))


@pytest.mark.parametrize("spec", ["gaussian_blur:sigma=1,boundary=zero", "motion_blur:length=3,angle=20", "inpaint"])
def test_a_folder_of_mixed_sizes_does_not_fill_the_memory(spec: str) -> None:
    op = operators.get(spec)
    held = []
    for size in range(12, 24):
        x = picture(1, size, 30)
        op.prox_l2(x, op.A(x), 2.0)
        held.append(tables(op._cache))
    # Four shapes at a time, the largest of them twice as large as the first.
    assert held[-1] <= 2.5 * held[3], held
    kinds = [key[0] for key in op._cache if isinstance(key, tuple)]
    assert kinds and max(kinds.count(kind) for kind in kinds) == KEPT_SHAPES


def test_the_shapes_used_last_are_kept() -> None:
    op, made = operators.get("identity"), []
    for size in (1, 2, 3, 4, 1, 5, 1, 2):
        op.cached(("table", (size,)), lambda size=size: made.append(size))
    op.cached("file", lambda: made.append("file"))
    for size in range(10, 20):
        op.cached(("table", (size,)), lambda: None)
    op.cached("file", lambda: made.append("again"))
    # 1 was used again before 5 came, so that 2 went.
    assert made == [1, 2, 3, 4, 5, 2, "file"]


def motion(**parameters: object) -> np.ndarray:
    return operators.get("motion_blur", **parameters).stencil.plane[::-1, ::-1]


def test_straight_motion_by_hand() -> None:
    assert np.abs(motion(length=5) - np.full((1, 5), 0.2)).max() < 1e-15
    assert np.abs(motion(length=5, angle=90) - np.full((5, 1), 0.2)).max() < 1e-15
    # 4 px: one whole pixel each side of the centre, and half of the next.
    assert np.abs(motion(length=4) - np.array([[0.5, 1, 1, 1, 0.5]]) / 4).max() < 1e-15
    diagonal = motion(length=3 * math.sqrt(2), angle=45)
    assert np.abs(diagonal - np.fliplr(np.eye(3)) / 3).max() < 1e-12
    assert motion(length=0.5).shape == (1, 1)


@pytest.mark.parametrize("angle", [0.0, 17.0, 45.0, 100.0, -30.0])
def test_motion_kernels_have_the_moments_of_the_segment(angle: float) -> None:
    length, k = 40.0, motion(length=40.0, angle=angle)
    rows, columns = (np.arange(n) - n // 2 for n in k.shape)
    u = np.array([-math.sin(math.radians(angle)), math.cos(math.radians(angle))])
    assert k.sum() == pytest.approx(1) and (k >= 0).all() and all(n % 2 for n in k.shape)
    assert abs(rows @ k.sum(1)) < 1e-12 and abs(columns @ k.sum(0)) < 1e-12
    # Variance along the path L^2 / 12; moving each point to its pixel's centre adds at most (1/2)^2 and 2 sd/2.
    along = np.add.outer(rows * u[0], columns * u[1])
    sd = math.sqrt((along**2 * k).sum())
    assert abs(sd - length / math.sqrt(12)) < math.sqrt(0.5)
    across = np.add.outer(rows * u[1], -columns * u[0])
    assert np.abs(across[k > 0]).max() <= math.sqrt(0.5) + 1e-9


def test_random_motion_is_given_by_its_seed() -> None:
    first, again, other = (motion(length=15, path="random", seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and (first.shape != other.shape or not np.array_equal(first, other))
    assert np.array_equal(first, motion(length=15, path="random"))
    rows, columns = (np.arange(n) - n // 2 for n in first.shape)
    # The path's mean is the centre; moving its points to pixel centres shifts the mean by less than half a pixel.
    assert abs(rows @ first.sum(1)) < 0.5 and abs(columns @ first.sum(0)) < 0.5


def test_kernel_files(tmp_path: Path) -> None:
    x, k = picture(1, 9, 9), kernel(3, 5)
    expected = operators.KernelBlur(kernel=k).A(x)
    np.save(tmp_path / "k.npy", 7 * k)
    np.savez(tmp_path / "one.npz", k=k)
    np.savez(tmp_path / "two.npz", a=k.T, b=k)
    skimage.io.imsave(tmp_path / "k.png", (k * 255 / k.max()).astype(np.uint8), check_contrast=False)
    for spec in ("k.npy", "one.npz", "two.npz,key=b"):
        ours = operators.get(f"kernel_blur:kernel={tmp_path}/{spec}", normalise=True).A(x)
        assert float((ours - expected).abs().max()) < ROUNDING
    from_picture = operators.get("kernel_blur", kernel=tmp_path / "k.png", normalise=True).A(x)
    assert float((from_picture - expected).abs().max()) < 15 / 255 / (k / k.max()).sum()
    assert operators.get("kernel_blur", kernel=torch.from_numpy(k)) == operators.KernelBlur(kernel=k)
    assert operators.KernelBlur(kernel=k) != operators.KernelBlur(kernel=k[::-1])


# Downsampling


def test_average_is_the_mean_of_blocks() -> None:
    x = picture(2, 6, 9)
    theirs = skimage.transform.downscale_local_mean(x[0].numpy(), (1, 3, 3))
    assert np.abs(operators.get("downsample:factor=3").A(x)[0].numpy() - theirs).max() < ROUNDING


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_the_antialiased_cubic_with_mirrored_edges(factor: int) -> None:
    x = picture(1, 12 * factor, 8 * factor)
    margin = 4 * factor
    mirrored = np.pad(x[0, 0].numpy(), margin, mode="symmetric")
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(mirrored)[None, None], scale_factor=1 / factor, mode="bicubic", antialias=True
    )[..., 4:-4, 4:-4]
    assert float((operators.get(f"downsample:factor={factor},kernel=bicubic").A(x) - theirs).abs().max()) < ROUNDING


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="published kernels are not on this machine")
@pytest.mark.parametrize(("factor", "key", "origin"), [(2, "k00", 11), (3, "k01", 10), (4, "k02", 9)])
def test_bicubic_kernel_is_the_published_one(factor: int, key: str, origin: int) -> None:
    """Zhang et al. estimated theirs from images degraded by imresize, to 4 % of the peak; a shift would be 15 %."""
    stencil, published = operators.get(f"downsample:factor={factor},kernel=bicubic").stencil, np.load(PUBLISHED)[key]
    placed = np.zeros_like(published)
    corner = origin + stencil.start[0]
    placed[corner : corner + stencil.size[0], corner : corner + stencil.size[1]] = stencil.plane
    assert np.abs(placed - published).max() < 0.04 * published.max()
    assert np.abs(np.roll(placed, 1, 0) - published).max() > 0.15 * published.max()


@pytest.mark.parametrize("spec", ["kernel=average", "kernel=bicubic", "kernel=gaussian", "kernel=gaussian,sigma=1"])
@pytest.mark.parametrize("factor", [2, 3])
def test_downsampling_shifts_nothing(spec: str, factor: int) -> None:
    ramp = torch.arange(18.0 * factor, dtype=torch.float64).expand(1, 1, 18 * factor, -1)
    y = operators.get(f"downsample:factor={factor},{spec}").A(ramp)
    centres = factor * torch.arange(18.0) + (factor - 1) / 2
    # Away from the mirrored edges a ramp stays the ramp, read at the block centres.
    assert torch.allclose(y[0, 0, 9, 5:-5], centres[5:-5].double(), atol=1e-10)


def test_gaussian_downsample_default_width() -> None:
    x = picture(1, 16, 16)
    ours, wide = operators.get("downsample:factor=2,kernel=gaussian"), "downsample:factor=2,kernel=gaussian,sigma=1"
    assert torch.equal(ours.A(x), operators.get(wide).A(x))


# Masks, colours, matrices


def test_masks_depend_on_seed_and_size_alone() -> None:
    op = operators.get("inpaint:keep=0.25,seed=3")
    mask = op.observed((3, 8, 10))
    assert mask.shape == (1, 8, 10) and int(mask.sum()) == 20 and set(mask.unique().tolist()) == {0, 1}
    assert torch.equal(mask, op.observed((1, 8, 10)))
    assert not torch.equal(mask, operators.get("inpaint:keep=0.25,seed=4").observed((3, 8, 10)))
    # Pinned: a mask made on another machine or by a later release must be this one.
    assert np.flatnonzero(operators.get("inpaint:keep=0.2").observed((1, 5, 6))).tolist() == [3, 14, 15, 20, 23, 28]
    assert operators.get("inpaint").measured_count((3, 4, 4)) == 24
    assert operators.get("random_subsample:keep=0.1").measured_count((3, 10, 10)) == 30


@pytest.mark.parametrize(("box", "rows", "columns"), [("2x4", (2, 4), (2, 6)), ("2x4+center", (2, 4), (2, 6)),
                                                     ("2x4+0+1", (0, 2), (1, 5))])  # fmt: skip
def test_boxes(box: str, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    expected = torch.ones(6, 8)
    expected[slice(*rows), slice(*columns)] = 0
    x = picture(3, 6, 8)
    assert torch.equal(operators.get(f"inpaint:box={box}").A(x), expected * x)


def test_mask_files(tmp_path: Path) -> None:
    mask = (np.random.default_rng(0).random((6, 8)) > 0.5).astype(np.uint8)
    x = picture(3, 6, 8)
    skimage.io.imsave(tmp_path / "m.png", 255 * mask, check_contrast=False)
    np.save(tmp_path / "m.npy", mask)
    for given in (tmp_path / "m.png", tmp_path / "m.npy", mask, torch.from_numpy(mask)):
        assert torch.equal(operators.get("inpaint", mask=given).A(x), torch.from_numpy(mask) * x)


def test_grayscale_is_the_luma() -> None:
    x = picture(3, 4, 5)
    theirs = np.tensordot([0.299, 0.587, 0.114], x[0].numpy(), 1)
    assert np.abs(operators.get("grayscale").A(x)[0, 0].numpy() - theirs).max() < 1e-15


def test_luma_weights_are_written_once() -> None:
    from invdiff.files import images
    from invdiff.operators import grayscale

    assert grayscale.WEIGHTS["bt601"] is images.LUMA


def test_linear_takes_any_trailing_shape() -> None:
    M = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 12)))
    op, x = operators.Linear(M, shape=(3, 2, 2)), picture(3, 2, 2)
    assert torch.allclose(op.A(x), x.flatten(1) @ M.T) and torch.equal(op.A(x.flatten(1)), op.A(x))
    assert op.A_adjoint(op.A(x)).shape == x.shape and op.image_shape((3,)) == (3, 2, 2)
    assert operators.Linear(M).A_adjoint(op.A(x)).shape == (1, 12)
    flat = operators.Linear(M)
    assert flat.prox_l2(x, op.A(x), 2.0).shape == x.shape and flat.A_vjp(x, op.A(x)).shape == x.shape
    assert torch.allclose(op.A_dagger(op.A(x)).flatten(1), op.A(x) @ torch.linalg.pinv(M).T)
    assert op == operators.Linear(M.clone(), shape="3x2x2") and hash(op) == hash(operators.Linear(M.numpy(), (3, 2, 2)))
    assert op != operators.Linear(2 * M, shape=(3, 2, 2)) and op != operators.Linear(M)
    assert float(operators.Linear(torch.ones(4, 4)).svd((4,)).singular_values[1:].abs().max()) == 0


# Names, specs, messages


def test_get_in_all_its_forms() -> None:
    op = operators.get("gaussian_blur:sigma=2.5", boundary="zero")
    assert isinstance(op, operators.GaussianBlur) and op.sigma == 2.5 and op.boundary == "zero"
    assert operators.get(op) is op
    assert operators.get("gaussian_blur:sigma=2.5", sigma=3).sigma == 3
    assert operators.get(op, sigma=3).spec == "gaussian_blur:sigma=3,boundary=zero"
    assert "linear" in operators.names() and operators.names() == sorted(operators.names())
    assert "GaussianBlur" in dir(operators)
    with pytest.raises(AttributeError, match="GaussianBlur"):
        _ = operators.GausianBlur


def test_specs_keep_every_digit() -> None:
    op = operators.get("gaussian_blur", sigma=1.23456789012345)
    assert operators.get(op.spec).sigma == op.sigma
    assert op != operators.get("gaussian_blur", sigma=1.23456789)


def test_every_parameter_is_documented() -> None:
    for name in operators.names():
        cls = operators.REGISTRY[name]
        assert issubclass(cls, Operator) and cls.name == name and cls.__doc__
        assert all(d.help for d in declarations(cls)), name


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators.REGISTRY, "_entries", dict(operators.REGISTRY._entries))
    operators.register("identity", "invdiff.operators.identity:Identity")
    assert isinstance(operators.get("identity"), operators.Identity)
    with pytest.raises(UsageError, match="two operators are called 'identity'"):
        operators.register("identity", "elsewhere:Thing")


def test_the_recipe_for_an_operator_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING's example, taken from the page itself, as a plug-in of another package."""
    from laws import test_operator_laws as laws

    import invdiff
    from invdiff.priors.gaussian import GaussianPrior

    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add an operator")[2]
    code = textwrap.dedent(page.partition("```python\n")[2].partition("```")[0])
    assert "class Flip(Operator)" in code
    (tmp_path / "my_flip_plug_in.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(operators.REGISTRY, "_entries", dict(operators.REGISTRY._entries))
    operators.register("flip", "my_flip_plug_in:Flip")
    op, shape = operators.get("flip:gain=1.5"), (2, 4, 5)
    assert op.spec == "flip:gain=1.5" and torch.equal(
        operators.get("flip").A(picture(*shape)), picture(*shape).flip(-1)
    )
    for law in (laws.linearity, laws.adjoint, laws.normal_maps):
        assert law(op, shape) <= laws.ROUNDING and law(op.H, shape) <= laws.ROUNDING
    for law in (laws.prox, laws.data_solve, laws.separate, laws.pseudo_inverse):
        assert law(op, shape) <= 4e-11 and law(op.H, shape) <= 4e-11
    assert abs(op.norm(shape) - 1.5) < 1e-12
    with pytest.raises(UsageError, match=r"flip: gain='0' must be > 0"):
        operators.get("flip:gain=0")

    prior = GaussianPrior(torch.full(shape, 0.5), 0.04)
    x = picture(*shape).float()
    solution = invdiff.restore(op.A(x), "flip:gain=1.5", 0.01, prior, solver="diffpir", steps=10)
    # Posterior of N(0.5, 0.2^2) and y / 1.5 known to 0.01 / 1.5: within 5 deviations of the truth.
    assert float((solution.samples[0] - x).abs().max()) < 5 * 0.01 / 1.5 + 0.01
    assert solution.operator["spec"] == "flip:gain=1.5"


SMALL = (3, 16, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gausian_blur", r"unknown operator 'gausian_blur'. Did you mean 'gaussian_blur'\? Available: .*downsample"),
        ("gaussian_blur:sigm=2", r"unknown parameter of gaussian_blur 'sigm'. Did you mean 'sigma'\?"),
        ("gaussian_blur:sigma=0", r"gaussian_blur: sigma='0' must be > 0 px"),
        ("gaussian_blur:sigma=nan", r"sigma='nan' must be > 0 px"),
        ("gaussian_blur:sigma=two", r"sigma='two' is not a number"),
        ("gaussian_blur:size=4", r"size='4' is not a whole odd number .*try 5"),
        ("gaussian_blur:boundary=mirror", r"unknown boundary of gaussian_blur 'mirror'.*circular, reflect"),
        ("gaussian_blur:sigma=2,size=17", r"kernel 17x17 is larger than the image 16x16: lower sigma, or set size"),
        ("uniform_blur:size=17", r"uniform_blur: kernel 17x17 is larger than the image 16x16: lower size"),
        ("motion_blur:length=40", r"motion_blur: kernel 1x41 is larger than the image 16x16: lower length"),
        ("motion_blur:seed=1", r"seed=1 has no effect on a straight path; add path=random"),
        ("kernel_blur", r"kernel_blur needs kernel: .*e.g. kernel_blur:kernel="),
        ("kernel_blur:kernel=none.npy", r"kernel='none.npy' is not a file"),
        ("kernel_blur:kernel=none.png", r"none.png"),
        ("downsample:factor=1", r"factor='1' must be >= 2"),
        ("downsample:factor=2.5", r"factor='2.5' is not a whole number"),
        ("downsample:factor=3", r"16x16 is not a whole number of 3x3 blocks: crop it to 15x15"),
        ("downsample:factor=32", r"factor='32' must be >= 2 and <= 16"),
        ("downsample:factor=8,kernel=bicubic", r"kernel 32x32 is larger than the image 16x16: lower factor"),
        ("downsample:sigma=2", r"sigma=2 has no effect on kernel=average; add kernel=gaussian"),
        ("downsample:boundary=circular", r"boundary=circular has no effect on kernel=average"),
        ("inpaint:keep=0.5,box=4x4", r"box and keep are given; choose one of mask, box, strokes, keep"),
        ("inpaint:keep=0", r"keep='0' must be > 0 and <= 1"),
        ("inpaint:box=4", r"box='4' is not a rectangle .*HEIGHTxWIDTH"),
        ("inpaint:box=4x4+14+0", r"box=4x4\+14\+0 does not fit into the image 16x16"),
        ("inpaint:box=16x16", r"box=16x16 covers the whole image"),
        ("inpaint:box=4x4,seed=1", r"seed=1 has no effect on box"),
        ("inpaint:mask=none.npy", r"inpaint: mask='none.npy' is not a file"),
        ("inpaint:seed=-1", r"seed='-1' must be >= 0"),
        ("linear", r"linear needs matrix"),
        ("linear:matrix=none.npz", r"matrix='none.npz' is not a file"),
        ("blur sigma=2", r"unknown operator"),
        ("gaussian_blur:sigma", r"cannot read 'sigma'"),
    ],
)
def test_messages(spec: str, message: str) -> None:
    with pytest.raises(InvdiffError, match=message):
        operators.get(spec).measurement_shape(SMALL)
    with pytest.raises(InvdiffError, match=message):
        operators.get(spec).A(torch.zeros(1, *SMALL))


def test_messages_about_files_and_arrays(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    for op in ("inpaint:mask", "kernel_blur:kernel"):
        with pytest.raises(ImageError, match=r"notes\.png"):
            operators.get(f"{op}={text}")
    (tmp_path / "bad.npy").write_text("not an array")
    with pytest.raises(UsageError, match=r"bad\.npy.* cannot be read as numpy data"):
        operators.get(f"linear:matrix={tmp_path}/bad.npy")
    np.savez(tmp_path / "two.npz", a=np.eye(3), b=np.eye(3))
    for key, message in (("", r"holds 2 arrays: choose one with key=a\|b"), (",key=c", "no array 'c'")):
        with pytest.raises(UsageError, match=message):
            operators.get(f"kernel_blur:kernel={tmp_path}/two.npz{key}")
    with pytest.raises(UsageError, match=r"mask is 4x5 but the image is 16x16"):
        operators.Inpaint(mask=np.ones((4, 5))).A(torch.zeros(1, *SMALL))
    for bad, message in (
        (np.zeros((3, 3)), "sums to zero"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.ones(3), r"shape \(3,\)"),
        ([["a"]], "is not a file, tensor or array of numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            operators.KernelBlur(kernel=bad, normalise=True)
    with pytest.raises(UsageError, match="black everywhere"):
        operators.Inpaint(mask=np.zeros((4, 4)))
    with pytest.raises(UsageError, match=r"linear: matrix=None is not a file, tensor or array of numbers"):
        operators.Linear(None)
    with pytest.raises(UsageError, match=r"matrix has shape \(4,\)"):
        operators.Linear(np.ones(4))
    with pytest.raises(UsageError, match=r"shape=2x2 has 4 values but the matrix is 3x5"):
        operators.Linear(np.ones((3, 5)), shape=(2, 2))


def test_messages_about_inputs() -> None:
    op = operators.get("gaussian_blur:sigma=1")
    with pytest.raises(UsageError, match=r"needs a tensor \(batch, channels, height, width\), got shape \(3, 16, 16\)"):
        op.A(torch.zeros(*SMALL))
    with pytest.raises(UsageError, match=r"needs floats in \[0, 1\], got torch.uint8"):
        op.A(torch.zeros(1, *SMALL, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"3 channels, got 1"):
        operators.get("grayscale").A(torch.zeros(1, 1, 4, 4))
    with pytest.raises(UsageError, match="neither a name nor an Operator"):
        operators.get(3)  # type: ignore[arg-type]


def test_usable_shape_is_the_largest_multiple() -> None:
    assert operators.get("downsample:factor=4").usable_shape((3, 19, 16)) == (3, 16, 16)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_import_is_light_and_the_bare_folder_is_refused() -> None:
    light = run("import invdiff.operators, sys; print(sorted({'torch', 'deepinv', 'numpy'} & set(sys.modules)))")
    assert light.stdout.strip() == "[]", light.stderr
    bare = run("import operators")
    assert "ImportError" in bare.stderr and "import invdiff.operators" in bare.stderr
