"""Compressed sensing, MRI and tomography against independent references, and what a user reads when something is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import skimage.transform
import torch

from invdiff import operators
from invdiff.errors import UsageError
from invdiff.operators.mri import birdcage
from invdiff.operators.tools import hadamard, kspace

# Sums of a few hundred products of numbers below 1.
ROUNDING = 1e-13


def picture(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((1, *shape)))


def columns(apply, n: int) -> np.ndarray:
    return apply(torch.eye(n, dtype=torch.float64)).numpy().T


# Compressed sensing


@pytest.mark.parametrize("n", [1, 2, 8, 32, 128])
def test_walsh_hadamard_is_scipys(n: int) -> None:
    ours = columns(hadamard.forward, n)
    assert np.abs(ours - scipy.linalg.hadamard(n) / math.sqrt(n)).max() < ROUNDING
    if n > 2:  # the twin: rows in another order are another transform
        assert np.abs(ours[::-1] - scipy.linalg.hadamard(n) / math.sqrt(n)).max() > 0.01


@pytest.mark.parametrize("n", [3, 15, 33, 60])
def test_the_transform_of_other_lengths_is_orthonormal_and_mixes(n: int) -> None:
    W = columns(hadamard.forward, n)
    assert np.abs(W @ W.T - np.eye(n)).max() < ROUNDING
    assert np.abs(columns(hadamard.inverse, n) - W.T).max() < ROUNDING
    p = 1 << (n.bit_length() - 1)
    assert (np.abs(W) > 1e-12).sum(1).min() >= p // 2  # every output mixes at least half a transform


def test_scrambled_measurements_are_the_dense_product() -> None:
    op, x = operators.get("compressed_sensing:keep=0.3,seed=4"), picture(2, 4, 8)
    engine = op._engine((2, 4, 8))
    W = scipy.linalg.hadamard(32) / math.sqrt(32)
    dense = np.diag(engine.mask.table.numpy().ravel()) @ W @ np.eye(32)[engine.order] @ np.diag(engine.signs.table)
    assert np.abs(op.A(x).numpy().reshape(2, 32) - x.numpy().reshape(2, 32) @ dense.T).max() < ROUNDING
    unsigned = dense @ np.diag(engine.signs.table)  # the twin: without the signs
    assert np.abs(op.A(x).numpy().reshape(2, 32) - x.numpy().reshape(2, 32) @ unsigned.T).max() > 1e-2
    assert int(op.observed((2, 4, 8)).sum()) == round(0.3 * 32)


def test_blocks_are_measured_alike_and_alone() -> None:
    op = operators.get("compressed_sensing:transform=blockwise,block=4,keep=0.25")
    x = torch.zeros(1, 1, 8, 12, dtype=torch.float64)
    x[..., 4:8, 8:12] = picture(4, 4)
    y = op.A(x)
    assert torch.count_nonzero(y) == 4 and torch.count_nonzero(y[0, 0, 4, 8:12]) == 4
    alone = op.A(x[..., 4:8, 8:12])
    assert float((y[..., 4:8, 8:12] - alone).abs().max()) < ROUNDING


@pytest.mark.parametrize("orthonormal", [True, False])
def test_random_rows(orthonormal: bool) -> None:
    op = operators.get("compressed_sensing", transform="random_projection", keep=0.25, orthonormal=orthonormal)
    rows = columns(lambda e: op.A(e.reshape(-1, 1, 16, 16)).flatten(1), 256)[:64]
    gram = rows @ rows.T
    if orthonormal:
        assert np.abs(gram - np.eye(64)).max() < ROUNDING
    else:
        # 64 x 256 independent N(0, 1/256): the mean square is known to sqrt(2 / 16384), five times that allowed.
        assert abs(256 * (rows**2).mean() - 1) < 5 * math.sqrt(2 / rows.size)
        assert np.abs(gram - np.eye(64)).max() > 0.05


# MRI


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (4, 8), (6, 4)], ids=str)
@pytest.mark.parametrize("centered", [True, False])
def test_k_space_is_numpys(size: tuple[int, int], centered: bool) -> None:
    x, full = picture(2, *size), f"acceleration=1,centered={centered}"
    shift = np.fft.fftshift if centered else lambda a, axes: a
    back = np.fft.ifftshift if centered else lambda a, axes: a
    axes = (-2, -1)

    def theirs(image: np.ndarray) -> np.ndarray:
        return shift(np.fft.fft2(back(image, axes), norm="ortho"), axes)

    real = operators.get(f"fourier_subsample:{full}").A(x)[0].numpy()
    assert np.abs(real[::2] + 1j * real[1::2] - theirs(x[0].numpy())).max() < ROUNDING
    pair = operators.get(f"fourier_subsample:{full},complex=true").A(x)[0].numpy()
    assert np.abs(pair[0] + 1j * pair[1] - theirs(x[0, 0].numpy() + 1j * x[0, 1].numpy())).max() < ROUNDING
    # The twin: the conjugate of the spectrum is seen.
    assert np.abs(real[::2] - 1j * real[1::2] - theirs(x[0].numpy())).max() > 1e-2


@pytest.mark.parametrize("size", [(5, 6), (4, 8), (6, 4)], ids=str)
@pytest.mark.parametrize("centered", [True, False])
def test_coils_are_a_loop_over_numpys_transform(size: tuple[int, int], centered: bool) -> None:
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(3, *size)) + 1j * rng.normal(size=(3, *size))
    mask = rng.random(size) > 0.4
    op = operators.MultiCoil(maps=maps, mask=mask, centered=centered)
    x = picture(2, *size)
    y = op.A(x)[0].numpy()
    for channel in range(2):
        for coil in range(3):
            seen = maps[coil] * x[0, channel].numpy()
            if centered:
                spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(seen), norm="ortho"))
            else:
                spectrum = np.fft.fft2(seen, norm="ortho")
            at = 2 * (3 * channel + coil)
            assert np.abs(y[at] + 1j * y[at + 1] - mask * spectrum).max() < ROUNDING * 10
            assert np.abs(y[at] + 1j * y[at + 1] - mask * spectrum.conj()).max() > 1e-2


def test_singular_values_of_real_images_count_a_frequency_and_its_mirror() -> None:
    mask = np.zeros((4, 5))
    mask[2, 2] = mask[2, 3] = mask[1, 2] = mask[3, 2] = 1  # the middle, one of a pair, both of another
    s = operators.FourierSubsample(mask=mask).svd((1, 4, 5)).singular_values
    assert sorted(s[s > 0].tolist()) == pytest.approx([0.5**0.5, 0.5**0.5, 1, 1, 1])


@pytest.mark.parametrize("width", [31, 32, 100, 257])
@pytest.mark.parametrize("pattern", ["equispaced", "random"])
@pytest.mark.parametrize("acceleration, share", [(2, 0.2), (4, 0.08), (8, 0.0), (3, 1 / 3)])
def test_cartesian_masks(width: int, pattern: str, acceleration: float, share: float) -> None:
    mask = kspace.lines("mri", pattern, width, acceleration, share, seed=0)[0]
    centre = round(share * width)
    first = width // 2 - centre // 2
    assert mask.sum() == round(width / acceleration) and mask[first : first + centre].all()
    outer = np.delete(mask, np.arange(first, first + centre))
    if pattern == "equispaced" and outer.sum() > 1:
        gaps = np.diff(np.flatnonzero(outer))
        assert gaps.max() - gaps.min() <= 1
    assert (mask == kspace.lines("mri", pattern, width, acceleration, share, seed=0)[0]).all()


def test_random_columns_follow_the_seed() -> None:
    a, b = (kspace.lines("mri", "random", 64, 4, 0.08, seed) for seed in (0, 1))
    assert (a != b).any()


@pytest.mark.parametrize("size", [(64, 64), (48, 65)], ids=str)
@pytest.mark.parametrize("acceleration", [3, 10])
def test_spokes_cross_the_centre_and_are_just_enough(size: tuple[int, int], acceleration: float) -> None:
    mask = kspace.spokes("mri", size, acceleration, seed=0)
    wanted = size[0] * size[1] / acceleration
    # One spoke is at most a diagonal of samples.
    assert wanted <= mask.sum() <= wanted + 2 * max(size)
    middle = mask[size[0] // 2 - 1 : size[0] // 2 + 2, size[1] // 2 - 1 : size[1] // 2 + 2]
    assert middle.all() and mask.mean() < 0.5


def test_simulated_coils() -> None:
    maps = birdcage(6, 40, 50)
    assert np.abs((np.abs(maps) ** 2).sum(0) - 1).max() < ROUNDING
    assert max(np.abs(np.diff(maps, axis=1)).max(), np.abs(np.diff(maps, axis=2)).max()) < 0.15  # smooth
    assert np.abs(maps[0]).argmax() % 50 > 40  # the first coil is on the right
    assert operators.get("mri_multicoil:acceleration=1").norm((1, 8, 8)) <= 1 + 1e-12


def test_map_and_mask_files(tmp_path: Path) -> None:
    maps, mask = birdcage(2, 6, 8), np.array([0, 1, 1, 1, 1, 0, 1, 0])
    np.savez(tmp_path / "maps.npz", S=maps, other=mask)
    np.save(tmp_path / "mask.npy", mask)
    spec = f"mri_multicoil:maps={tmp_path}/maps.npz,key=S,mask={tmp_path}/mask.npy"
    x = picture(1, 6, 8)
    given, simulated = operators.get(spec).A(x), operators.MultiCoil(coils=2, mask=mask).A(x)
    assert torch.equal(given, simulated) and given.shape == (1, 4, 6, 8)


# Tomography


def phantom(size: int) -> np.ndarray:
    """Smooth blobs inside the circle."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:size, :size] - size // 2
    x = np.zeros((size, size))
    for _ in range(6):
        a, b, width, height = rng.uniform([-0.2, -0.2, 0.05, 0.3], [0.2, 0.2, 0.07, 1]) * [size, size, size, 1]
        x += height * np.exp(-((rows - a) ** 2 + (cols - b) ** 2) / (2 * width**2))
    return x


@pytest.mark.parametrize("size", [95, 96])
def test_radon_is_scikit_images(size: int) -> None:
    op, x = operators.get("tomography:angles=19,start=-30,stop=150,scale=1"), phantom(size)
    rows, cols = np.mgrid[:size, :size] - size // 2
    x[rows**2 + cols**2 > (size // 2) ** 2] = 0  # below 1e-3 there; scikit-image demands it
    ours = op.A(torch.from_numpy(x)[None, None])[0, 0].numpy()
    theirs = skimage.transform.radon(x, theta=op.theta, circle=True)
    # Both interpolate linearly: blobs 5 px wide lose (1/8) x'' of a pixel each, 0.5 % at a peak, less along a whole ray.
    assert np.abs(ours - theirs).max() < 2e-3 * theirs.max()
    assert np.abs(ours[::-1] - theirs).max() > 0.1 * theirs.max()  # the twin: the detector the other way round


def test_rays_along_the_axes_are_sums_of_columns_and_rows() -> None:
    x = picture(1, 7, 7)
    y = operators.get("tomography:angles=2,scale=1").A(x)[0, 0]
    assert float((y[:, 0] - x[0, 0].sum(0)).abs().max()) < ROUNDING
    assert float((y[:, 1] - x[0, 0].sum(1).flip(0)).abs().max()) < 1e-12  # cos(90 degrees) is not quite 0


@pytest.mark.parametrize("spec", ["angles=4", "angles=60", "angles=20,stop=60"])
def test_the_norm_is_about_one(spec: str) -> None:
    assert 0.9 < operators.get(f"tomography:{spec}").norm((1, 32, 32)) < 1.15


# What a user reads


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("compressed_sensing:keep=0", None, "keep='0' must be > 0 and <= 1"),
        ("compressed_sensing:block=8", None, "block=8 has no effect on transform=walsh_hadamard; drop it"),
        ("compressed_sensing:orthonormal=true", None, "orthonormal=True has no effect on transform=walsh_hadamard"),
        ("compressed_sensing:transform=wavelet", None, "walsh_hadamard"),
        ("compressed_sensing:transform=blockwise", (3, 40, 64), "whole number of 32x32 blocks: crop it to 32x64"),
        ("compressed_sensing:transform=blockwise", (3, 20, 64), "block=32 is larger than the image 20x64: lower block"),
        ("compressed_sensing:transform=random_projection", (3, 256, 256), "needs a matrix of 8.0 GiB"),
        ("fourier_subsample:acceleration=0.5", None, "acceleration='0.5' must be >= 1"),
        ("fourier_subsample:acceleration=100", (1, 32, 32), "leaves no line of the 32 columns: choose at most 32"),
        ("fourier_subsample:center_fraction=0.5", (1, 32, 32), "choose center_fraction <= 0.25 or acceleration <= 2"),
        ("fourier_subsample:pattern=radial,acceleration=5000", (1, 32, 32), "leaves no sample of 32x32"),
        ("fourier_subsample:pattern=radial,center_fraction=0.1", None, "no effect on spokes"),
        ("fourier_subsample:pattern=spiral", None, "equispaced, radial, random"),
        ("fourier_subsample:complex=true", (3, 8, 8), "needs pairs of channels (real, imaginary), got 3"),
        ("mri_multicoil:coils=0", None, "coils='0' must be >= 1 and <= 256"),
        ("mri_multicoil:key=S", None, "key='S' selects an array in a file of maps"),
        ("tomography:start=90,stop=30", None, "start=90 and stop=30 must span more than 0"),
        ("tomography:angles=0", None, "angles='0' must be >= 1"),
        ("tomography", (3, 32, 40), "needs a square image, got 32x40: crop it to 32x32"),
        ("tomography:angles=360", (1, 1024, 1024), "at most 4): lower angles"),
    ],
)
def test_messages(spec: str, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        operators.get(spec).measurement_shape(shape or (1, 32, 32))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_messages_about_masks_and_maps(tmp_path: Path) -> None:
    single, several = operators.FourierSubsample, operators.MultiCoil
    maps = birdcage(4, 8, 8)
    np.save(tmp_path / "complex.npy", maps[0])
    for make, message in [
        (lambda: single(mask=np.zeros((8, 8))), "mask is zero everywhere, so nothing is measured"),
        (lambda: single(mask=np.full((8, 8), [0, 0.5] * 4) + np.eye(8)), "mask holds other values than 0 and"),
        (lambda: single(mask=np.ones((2, 8, 8))), "it must be (height, width)"),
        (lambda: single(mask=np.ones((8, 8)), seed=1), "seed has no effect on a mask"),
        (lambda: single(mask=str(tmp_path / "complex.npy")), "holds complex numbers where real ones are needed"),
        (lambda: single(mask=np.ones((6, 8))).A(picture(1, 8, 8)), "mask is 6x8 but the image is 8x8"),
        (lambda: single().A_adjoint(picture(3, 8, 8)), "k-space of 1 coil has 2 channels"),
        (lambda: several(maps=maps, coils=4), "coils=4 has no effect on given maps"),
        (lambda: several(maps=maps[0]), "they must be (coils, H, W)"),
        (
            lambda: several(maps=maps).A(picture(1, 8, 9)),
            "maps are 8x8 (4 coils), but the image and its k-space are 8x9",
        ),
        (lambda: several(maps=maps).A_adjoint(picture(6, 8, 8)), "k-space of 4 coils has 8 channels"),
        (lambda: several(maps=maps).A_adjoint(picture(8, 6, 8)), "its k-space are 6x8; give maps of that size"),
        (lambda: operators.Tomography().A_adjoint(picture(1, 8, 9)), "y has 9 columns, one for each direction"),
    ]:
        with pytest.raises(UsageError) as error:
            make()
        assert message in str(error.value) and "\n" not in str(error.value)
