"""Magnetic resonance imaging: some Fourier samples of the image, seen by one coil or by several.

Complex numbers are pairs of channels, the real part first:

    x           complex=false   (C, H, W)               C real images
                complex=true    (2 C, H, W)             Re, Im of the first image, Re, Im of the second, ...
    y           one coil        (2 C, H, W)             Re, Im of each image's k-space
                several         (2 coils C, H, W)       Re, Im of coil 1, of coil 2, ..., of each image in turn

Samples that are not taken are 0 in y. sigma_y is the standard deviation of each part alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Map, Operator, Shape
from invdiff.operator.arrays import complex_file_or_array, file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, parameter, truth, whole

from .tools import kspace
from .tools.circulant import Circulant
from .tools.fourier import checkerboard, hartley, negated
from .tools.shapes import channels_and_size, require_batch
from .tools.tables import Constant, working

UNSEEN = 0.01
"""Share of the largest sum_j |S_j|^2 up to which a pixel counts as seen by no coil."""


def pairs(z: torch.Tensor) -> torch.Tensor:
    """Complex (..., C, H, W) -> real (..., 2 C, H, W)."""
    return torch.stack([z.real, z.imag], -3).flatten(-4, -3)


def joined(y: torch.Tensor) -> torch.Tensor:
    """Real (..., 2 C, H, W) -> complex (..., C, H, W)."""
    return torch.complex(y[..., ::2, :, :], y[..., 1::2, :, :])


@dataclass(frozen=True, eq=False)
class KSpace(Operator):
    """What one coil and several have in common: the samples, the Fourier transform, and the check of shapes.

    F is the orthonormal FFT. With centered, index (H // 2, W // 2) is the origin in the image and in k-space. For even
    sizes no shift is needed for that: F = c S fft2 S with S = (-1)^(i + j) and c = (-1)^((H + W) / 2), and S and c S go
    into factors that are there in any case, the sensitivities and the mask.
    """

    pattern: str | None = parameter(
        None, kind=str, choices=kspace.PATTERNS, help="samples: columns (equispaced, the default, or random) or spokes"
    )
    acceleration: float | None = parameter(None, low=1, help="all samples / measured samples (4)")
    center_fraction: float | None = parameter(
        None, low=0, high=1, help="share of the columns, in the middle, that is always measured (0.32 / acceleration)"
    )
    seed: int | None = parameter(None, kind=whole, low=0, help="which columns or spokes (0)")
    mask: str | np.ndarray | None = parameter(
        None, kind=file_or_array, help="picture or .npy file in y's layout: 1 = measured; one row for whole columns"
    )
    complex: bool = parameter(False, kind=truth, help="x holds complex images, as pairs of channels")
    centered: bool = parameter(True, kind=truth, help="zero frequency in the middle of y, not in its corner")

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [n for n in ("pattern", "acceleration", "center_fraction", "seed") if getattr(self, n) is not None]
        if self.mask is not None and chosen:
            raise UsageError(f"{self.name}: {chosen[0]} has no effect on a mask; drop it, or drop mask")
        if self.center_fraction is not None and self.pattern == "radial":
            raise UsageError(
                f"{self.name}: center_fraction={self.center_fraction:g} has no effect on spokes, which all cross the "
                "centre; drop it, or choose pattern=equispaced|random"
            )
        if self.mask is not None:
            self._given_mask()  # a wrong file is an error now rather than at the first measurement

    def _given_mask(self) -> np.ndarray:
        source = self.mask
        assert source is not None
        given: np.ndarray = self.cached("given mask", lambda: kspace.given(self.name, source))
        return given

    @property
    def _coils(self) -> int:
        return 1

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if self.complex and channels % 2:
            raise UsageError(
                f"{self.name}: complex=true needs pairs of channels (real, imaginary), got {channels}; "
                "drop complex for real images"
            )
        self._samples((height, width))
        return (channels if self.complex else 2 * channels) * self._coils, height, width

    def image_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels % (2 * self._coils):
            raise UsageError(
                f"{self.name}: k-space of {self._coils} coil{'s' * (self._coils > 1)} has {2 * self._coils} channels (real "
                f"and imaginary part of each) for every image, but y has {channels}: write the real and the imaginary part "
                "of every coil as two channels, and name as many coils, or maps, as were measured"
            )
        self._samples((height, width))
        return channels // self._coils // (1 if self.complex else 2), height, width

    def _samples(self, size: tuple[int, int]) -> torch.Tensor:
        """m (H, W), with the zero frequency at (0, 0)."""

        def make() -> torch.Tensor:
            given = None if self.mask is None else self._given_mask()
            mask = kspace.sampling(
                self.name,
                size,
                self.pattern or "equispaced",
                self.acceleration or 4.0,
                self.center_fraction,
                self.seed or 0,
                given,
            )
            centred = self.centered or given is None
            return torch.from_numpy(np.fft.ifftshift(mask) if centred else mask)

        return self.cached(("samples", size), make)

    def _in(self, x: torch.Tensor) -> torch.Tensor:
        """An image or k-space with its origin at (0, 0)."""
        return torch.fft.ifftshift(x, (-2, -1)) if self.centered else x

    def _out(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fftshift(x, (-2, -1)) if self.centered else x

    def _signed(self, x: torch.Tensor) -> bool:
        """Whether S and c S stand for the shifts of an image or k-space x."""
        return self.centered and x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0

    def _enter(self, x: torch.Tensor) -> torch.Tensor:
        """What the shift before a transform leaves to do, where the factors hold the signs."""
        return x if self._signed(x) else self._in(x)

    def _leave(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._signed(x) else self._out(x)

    def _signs(self, x: torch.Tensor) -> torch.Tensor:
        """x, with the origin at (0, 0), as the factor in the image that the transform takes: S x about the middle."""
        if not self._signed(x):
            return x
        return self._out(x) * checkerboard(x.shape[-2], x.shape[-1])

    def _mask_signs(self, x: torch.Tensor) -> torch.Tensor:
        """The same for a factor in k-space: c S x about the middle."""
        c = (-1) ** ((x.shape[-2] + x.shape[-1]) // 2) if self._signed(x) else 1
        return c * self._signs(x)

    def _image(self, z: torch.Tensor) -> torch.Tensor:
        """Channels of a complex image; of a real one the real part, which is the adjoint of reading it as complex."""
        return pairs(z) if self.complex else z.real

    @property
    def spec(self) -> str:
        """Text that builds it again; for arrays handed over in Python a text that identifies their content."""
        named = copy.copy(self)
        for key, value in self.__dict__.items():
            if isinstance(value, np.ndarray):
                object.__setattr__(named, key, fingerprint(value))
        return format_spec(self.name, named)

    __hash__ = Operator.__hash__


@dataclass(frozen=True, eq=False)
class FourierSubsample(KSpace):
    """y = m F x, single-coil MRI: F the orthonormal FFT of each channel, m a mask of 0 and 1 over its frequencies.

    Complex numbers are pairs of channels, real part first: y is (2 C, H, W) for C real images (C, H, W), and of x's shape
    for complex=true. What is measured: `pattern` with acceleration, center_fraction and seed, or a mask.
    SVD: of complex images s = m; of real ones s = sqrt((m(k) + m(-k)) / 2), since X(-k) is X(k) conjugate.
    Raises UsageError for an acceleration above the width, for a centre of more columns than are measured, for a mask of
    another size than the image, with other values than 0 and 1, or empty, and for an odd number of parts.
    """

    name: ClassVar[str] = "fourier_subsample"
    orthonormal_U: ClassVar[bool] = True

    def observed(self, shape: Shape) -> torch.Tensor:
        """m for both parts; but the spectrum of a real image is real where k = -k, and its imaginary part says nothing."""
        found: torch.Tensor = self.cached(("observed", tuple(shape)), lambda: self._out(self._parts(shape)))
        return found

    def _parts(self, shape: Shape) -> torch.Tensor:
        """`observed` with the zero frequency at (0, 0): (1, H, W) of complex images, of y's shape of real ones."""
        mask = self._samples((shape[1], shape[2]))
        if self.complex:
            return mask[None]
        index = torch.arange(mask.numel(), dtype=torch.float64).reshape(mask.shape)
        return torch.stack([mask, mask * (index != negated(index))]).repeat(shape[0], 1, 1)

    def _factors(self, shape: Shape) -> tuple[Constant | None, Constant]:
        """The signs in the image, where there are any, and the mask with its own."""

        def make() -> tuple[Constant | None, Constant]:
            mask = self._parts(shape)
            signs = Constant(self._signs(torch.ones_like(mask[0]))) if self._signed(mask) else None
            return signs, Constant(self._mask_signs(mask))

        return self.cached(("factors", shape), make)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        shape = require_batch(self.name, x)
        self.measurement_shape(shape)
        signs, mask = self._factors(shape)
        u = working(x)
        u = self._enter(u) if signs is None else u * signs.like(u)
        y = pairs(torch.fft.fft2(joined(u) if self.complex else u, norm="ortho"))
        return self._leave(mask.like(u) * y).to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        shape = self.image_shape(require_batch(self.name, y))
        signs, mask = self._factors(shape)
        v = working(y)
        z = self._image(torch.fft.ifft2(joined(mask.like(v) * self._enter(v)), norm="ortho"))
        return (self._leave(z) if signs is None else z * signs.like(v)).to(y.dtype)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """Coordinates of x's shape: k-space, or the Hartley frequencies of real images (operators/tools/fourier.py)."""
        self.measurement_shape(shape)
        size = (shape[1], shape[2])
        if self.complex:
            return SVD(self.observed(shape), lambda c: c, lambda y: y, self._V, self._V_adjoint)
        s, weights = self.cached(("svd", size), lambda: self._decompose(size))

        def U(c: torch.Tensor) -> torch.Tensor:
            u = working(c)
            mirrored = negated(u)  # F x = ((c(k) + c(-k)) + i (c(-k) - c(k))) / 2 for Hartley coordinates c
            return self._out(pairs(torch.complex(u + mirrored, mirrored - u) * (weights.like(u) / 2))).to(c.dtype)

        def U_adjoint(y: torch.Tensor) -> torch.Tensor:
            v = joined(self._in(working(y)))
            v = v * (weights.like(v.real) / 2)
            return (v.real - v.imag + negated(v.real + v.imag)).to(y.dtype)

        return SVD(s, U, U_adjoint, lambda c: self._out(hartley(c)), lambda x: hartley(self._in(x)))

    def _V(self, c: torch.Tensor) -> torch.Tensor:
        z = torch.fft.ifft2(joined(self._in(working(c))), norm="ortho")
        return self._out(pairs(z)).to(c.dtype)

    def _V_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.fft.fft2(joined(self._in(working(x))), norm="ortho")
        return self._out(pairs(z)).to(x.dtype)

    def _decompose(self, size: tuple[int, int]) -> tuple[torch.Tensor, Constant]:
        """s, and the weights m / s of U; 1 where s = 0, so that U is orthonormal there too."""
        mask = self._samples(size)
        s = ((mask + negated(mask)) / 2).sqrt()
        return s, Constant(torch.where(s > 0, mask / torch.where(s > 0, s, torch.ones_like(s)), torch.ones_like(s)))


def birdcage(coils: int, height: int, width: int) -> np.ndarray:
    """Smooth complex sensitivities (coils, H, W), of sum |S|^2 = 1 in every pixel, of coils evenly around the image.

    S_j is proportional to 1 / (z - z_j) in the plane of complex numbers: it falls off with the distance from its coil and
    turns its phase around it. The image is the square of corners +-1 +-i, the coils lie on the circle |z| = 1.5.
    """
    rows = (2 * np.arange(height) + 1 - height) / height
    columns = (2 * np.arange(width) + 1 - width) / width
    z = columns[None, :] + 1j * rows[:, None]
    places = 1.5 * np.exp(2j * np.pi * np.arange(coils) / coils)
    maps = 1 / (z - places[:, None, None])
    return np.asarray(maps / np.sqrt((np.abs(maps) ** 2).sum(0)))


@dataclass(frozen=True, eq=False)
class MultiCoil(KSpace):
    """y_j = m F (S_j x), parallel MRI: coil j sees the image times its sensitivity S_j, and all share one mask.

    (C, H, W) -> (2 coils C, H, W), or with complex=true from pairs of channels: the table in operators/mri.py. The maps S
    are given, (coils, H, W) complex, and used as they are; or simulated (`birdcage`, sum |S|^2 = 1, so that ||A|| <= 1).
    No decomposition: inverses are conjugate gradients. Raises UsageError as fourier_subsample does, and for maps of another
    size or number of coils than y.
    """

    name: ClassVar[str] = "mri_multicoil"

    coils: int | None = parameter(None, kind=whole, low=1, high=256, help="number of simulated coils (8)")
    maps: str | np.ndarray | None = parameter(
        None, kind=complex_file_or_array, help="sensitivities (coils, H, W): complex array, .npy or .npz file"
    )
    key: str | None = parameter(None, kind=str, help="which array of an .npz file of maps that holds several")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps is not None and self.coils is not None:
            raise UsageError(f"{self.name}: coils={self.coils} has no effect on given maps; drop it, or drop maps")
        if self.maps is None and self.key is not None:
            raise UsageError(f"{self.name}: key={self.key!r} selects an array in a file of maps; add maps=FILE.npz")
        if self.maps is not None:
            self._given_maps()

    def _given_maps(self) -> np.ndarray:
        def read() -> np.ndarray:
            assert self.maps is not None
            maps = load(self.maps, self.name, "maps", self.key, np.complex128)
            if maps.ndim != 3 or not np.abs(maps).max() > 0:
                raise UsageError(f"{self.name}: maps have shape {maps.shape}; they must be (coils, H, W), not all zero")
            return maps

        given: np.ndarray = self.cached("given maps", read)
        return given

    @property
    def _coils(self) -> int:
        return len(self._given_maps()) if self.maps is not None else self.coils or 8

    def _constants(self, size: tuple[int, int]) -> tuple[Constant, Constant]:
        """The maps and the mask, as factors of the transform (`_signs`)."""

        def make() -> tuple[Constant, Constant]:
            maps = self._given_maps() if self.maps is not None else birdcage(self._coils, *size)
            if maps.shape[1:] != size:
                raise UsageError(
                    f"{self.name}: maps are {maps.shape[1]}x{maps.shape[2]} ({len(maps)} coils), but the image and its "
                    f"k-space are {size[0]}x{size[1]}; give maps of that size"
                )
            turned = self._in(torch.from_numpy(maps.copy()))
            return Constant(self._signs(turned)), Constant(self._mask_signs(self._samples(size)))

        return self.cached(("constants", size), make)

    def measurement_shape(self, shape: Shape) -> Shape:
        out = super().measurement_shape(shape)
        self._constants((shape[1], shape[2]))
        return out

    def image_shape(self, shape: Shape) -> Shape:
        out = super().image_shape(shape)
        self._constants((shape[1], shape[2]))
        return out

    def observed(self, shape: Shape) -> torch.Tensor:
        return self._out(self._samples((shape[1], shape[2])))[None]

    def A(self, x: torch.Tensor) -> torch.Tensor:
        shape = require_batch(self.name, x)
        self.measurement_shape(shape)
        return self._leave(pairs(self._samples_of(self._enter(working(x))).flatten(1, 2))).to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self.image_shape(require_batch(self.name, y))
        v = self._enter(working(y))
        return self._leave(self._back(joined(v).unflatten(1, (-1, self._coils)))).to(y.dtype)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        """A^T A x, without turning the samples of all coils to y's layout and back."""
        self.measurement_shape(require_batch(self.name, x))
        return self._leave(self._back(self._samples_of(self._enter(working(x))))).to(x.dtype)

    def _samples_of(self, u: torch.Tensor) -> torch.Tensor:
        """Images that have entered -> m F S_j u, complex (B, C, coils, H, W), to leave."""
        maps, mask = (constant.like(u) for constant in self._constants((u.shape[-2], u.shape[-1])))
        seen = (joined(u) if self.complex else u)[:, :, None] * maps
        return mask * torch.fft.fft2(seen, norm="ortho")

    def _back(self, k: torch.Tensor) -> torch.Tensor:
        """sum_j S_j^H F^H m k_j, of samples that have entered: images to leave."""
        maps, mask = (constant.like(k.real) for constant in self._constants((k.shape[-2], k.shape[-1])))
        seen = torch.fft.ifft2(mask * k, norm="ortho")
        return self._image((maps.conj() * seen).sum(2))

    def image_preconditioner(self, shape: Shape, a: float, b: float) -> Map:
        """By the circulant nearest to A^T A (T. Chan 1988, An optimal circulant preconditioner for Toeplitz systems).

        Its eigenvalues are the diagonal of F A^T A F^H, that is m convolved with sum_j |F S_j|^2: the inverse transforms'
        product. Where no coil sees a pixel, as outside a body, A^T A vanishes; the rest is taken for the whole."""

        def make() -> Circulant:
            mask, maps = self._samples((shape[1], shape[2])), self._constants((shape[1], shape[2]))[0].table
            if self._signed(maps):
                maps = self._in(maps * checkerboard(*shape[1:]))
            spread = torch.fft.ifft2(torch.fft.fft2(maps).abs() ** 2).sum(0) * torch.fft.ifft2(mask)
            response = torch.fft.fft2(spread).real / mask.numel()
            if not self.complex:
                response = (response + negated(response)) / 2
            power = (maps.abs() ** 2).sum(0)
            seen = (power > UNSEEN * power.max()).double()
            return Circulant(response / seen.mean(), pairs=self.complex, support=self._out(seen))

        nearly: Circulant = self.cached(("circulant", shape[1:]), make)
        return lambda r: nearly.inverse(a, b, r)
