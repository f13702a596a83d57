"""The one list of operators over which every law runs. A new operator is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from invdiff import operators
from invdiff.operator.contract import Operator, Shape

BOUNDARIES = ("circular", "reflect", "replicate", "zero", "valid")


@dataclass(frozen=True)
class Case:
    """One operator on images of one small shape: a spec, or a function where Python objects are needed."""

    label: str
    shape: Shape
    make: str | Callable[[], Operator]

    def build(self) -> Operator:
        return operators.get(self.make) if isinstance(self.make, str) else self.make()


def _array(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape)


def _rank_one() -> Operator:
    return operators.Linear(torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 7)))


def _spec(spec: str, *shape: int) -> Case:
    return Case(f"{spec}@{'x'.join(map(str, shape))}", shape, spec)


def _kernel(boundary: str, size: tuple[int, int], *shape: int) -> Case:
    label = f"kernel_blur:{size[0]}x{size[1]},boundary={boundary}@{'x'.join(map(str, shape))}"
    return Case(label, shape, lambda: operators.KernelBlur(kernel=_array(*size), normalise=True, boundary=boundary))


def _varying(boundary: str, kernels: tuple[int, ...], *shape: int) -> Case:
    label = f"varying_blur:{'x'.join(map(str, kernels))},boundary={boundary}@{'x'.join(map(str, shape))}"
    return Case(label, shape, lambda: operators.VaryingBlur(kernels=_array(*kernels), boundary=boundary))


_CIRCULAR = "gaussian_blur:sigma=0.8,boundary=circular"
_MOTION = "motion_blur:length=3,angle=30,boundary=circular"
# Chains with each kind of structure, and without any.
CHAINS: list[tuple[str, int, int, int]] = [
    (f"{_CIRCULAR} | {_MOTION}", 1, 8, 7),
    (f"{_MOTION} | downsample:factor=2 | uniform_blur:size=3,boundary=circular", 1, 8, 10),
    ("gaussian_blur:sigma=0.6 | uniform_blur:size=3", 1, 8, 7),
    ("gaussian_blur:sigma=0.6,boundary=valid | downsample:factor=2,kernel=bicubic", 1, 20, 18),
    ("gaussian_blur:sigma=0.6,boundary=replicate | identity | uniform_blur:size=3,boundary=zero", 1, 8, 7),
    (f"{_CIRCULAR} | grayscale | random_subsample:keep=0.6", 3, 8, 7),
    ("gaussian_blur:sigma=0.6 | grayscale", 3, 5, 6),
    ("downsample:factor=2 | inpaint:keep=0.6,seed=1", 3, 6, 4),
    ("inpaint:keep=0.7 | random_subsample:keep=0.6,seed=1", 3, 5, 4),
    (f"{_MOTION} | inpaint:keep=0.6", 1, 7, 6),
    ("inpaint:keep=0.7 | uniform_blur:size=3,boundary=zero", 1, 7, 6),
]
EXPRESSIONS: list[tuple[str, Shape, Callable[[], Operator]]] = [
    ("minus_blur", (1, 8, 7), lambda: -1.5 * operators.get("gaussian_blur:sigma=0.8")),
    ("scaled_chain", (3, 6, 4), lambda: (2 * operators.get("grayscale")).then("downsample:factor=2")),
    ("two_motions", (1, 7, 8), lambda: operators.get(_MOTION).stack(3 * operators.get(_CIRCULAR))),
    ("two_masks", (3, 4, 5), lambda: operators.get("inpaint:keep=0.3").stack("random_subsample:keep=0.3")),
    ("two_sizes", (3, 6, 4), lambda: operators.get("grayscale").stack("downsample:factor=2", shape=(3, 6, 4))),
    ("blur_and_mask", (1, 7, 8), lambda: operators.get(_CIRCULAR).stack("inpaint:keep=0.5")),
    ("sum", (1, 7, 8), lambda: operators.get("identity") + 0.5 * operators.get("motion_blur:length=3,angle=20")),
    ("adjoints", (1, 4, 5), lambda: operators.get("downsample:factor=2").H.then(operators.get(_CIRCULAR).H)),
]


CASES: list[Case] = [
    _spec("identity", 3, 5, 4),
    *(_spec(f"gaussian_blur:sigma=0.8,boundary={b}", 1, 8, 7) for b in BOUNDARIES),
    *(_spec(f"gaussian_blur:sigma=2,size=5,boundary={b}", 3, 5, 6) for b in ("circular", "reflect")),
    *(_spec(f"uniform_blur:size=3,boundary={b}", 1, 7, 8) for b in BOUNDARIES),
    *(_spec(f"uniform_blur:size=3,boundary={b}", 3, 6, 6) for b in ("circular", "reflect")),
    *(_spec(f"motion_blur:length=4.3,angle=30,boundary={b}", 1, 7, 8) for b in BOUNDARIES),
    *(_spec(f"motion_blur:length=4,angle=90,boundary={b}", 1, 7, 5) for b in ("zero", "valid")),
    *(_spec(f"anisotropic_blur:sigma=0.9x0.4,angle=30,boundary={b}", 1, 7, 8) for b in BOUNDARIES),
    _spec("anisotropic_blur:sigma=0.4x0.9", 3, 9, 5),
    *(_spec(f"defocus_blur:radius=1.7,boundary={b}", 1, 7, 8) for b in BOUNDARIES),
    *(_spec(f"varying_blur:corner=1.5,grid=2x3,boundary={b}", 1, 8, 7) for b in BOUNDARIES),
    _varying("reflect", (2, 3, 3, 2), 3, 6, 5),
    _varying("circular", (1, 1, 3, 3), 1, 6, 5),
    _spec("motion_blur:length=3,angle=-70,boundary=circular", 3, 6, 5),
    _spec("motion_blur:length=5,path=random,seed=3", 3, 7, 7),
    *(_kernel(b, (3, 4), 1, 8, 7) for b in BOUNDARIES),
    _kernel("circular", (2, 2), 3, 6, 6),
    _kernel("circular", (3, 5), 1, 5, 5),
    _kernel("reflect", (5, 2), 3, 5, 6),
    _spec("downsample:factor=2", 3, 6, 4),
    _spec("downsample:factor=3", 1, 6, 9),
    *(_spec(f"downsample:factor=2,kernel=bicubic,boundary={b}", 1, 8, 10) for b in ("reflect", "circular")),
    *(_spec(f"downsample:factor=3,kernel=bicubic,boundary={b}", 1, 12, 15) for b in ("reflect", "circular")),
    *(_spec(f"downsample:factor=2,kernel=gaussian,boundary={b}", 3, 10, 8) for b in ("reflect", "circular")),
    _spec("downsample:factor=3,kernel=gaussian,sigma=0.9", 1, 9, 12),
    *(_spec(f"downsample:factor=2,kernel=lanczos,boundary={b}", 1, 12, 14) for b in ("reflect", "circular")),
    _spec("inpaint", 3, 5, 6),
    _spec("inpaint:keep=0.2,seed=5", 1, 6, 6),
    _spec("inpaint:box=3x2+1+2", 3, 5, 6),
    _spec("inpaint:strokes=1,width=2", 3, 9, 8),
    _spec("inpaint:keep=0.4,per_channel=true", 3, 5, 6),
    Case("inpaint:mask", (3, 4, 5), lambda: operators.Inpaint(mask=_array(4, 5) > 0.5)),
    Case(
        "inpaint:mask,per_channel", (3, 4, 5), lambda: operators.Inpaint(mask=_array(3, 4, 5) > 0.5, per_channel=True)
    ),
    _spec("random_subsample:keep=0.3,seed=1", 3, 5, 4),
    _spec("grayscale", 3, 4, 5),
    _spec("grayscale:weights=bt709", 3, 4, 5),
    Case("spectral_mixing:wide", (4, 3, 5), lambda: operators.SpectralMixing(_array(2, 4))),
    Case("spectral_mixing:tall", (2, 3, 4), lambda: operators.SpectralMixing(_array(4, 2))),
    *(_spec(f"demosaic:pattern={p}", 3, 5, 4) for p in ("rggb", "gbrg")),
    _spec("pansharpen:factor=2", 3, 4, 6),
    _spec("pansharpen:factor=2,kernel=bicubic", 2, 10, 8),
    _spec("pansharpen:factor=3", 1, 6, 3),
    Case("linear:wide", (1, 3, 4), lambda: operators.Linear(_array(7, 12), shape=(1, 3, 4))),
    Case("linear:tall", (5,), lambda: operators.Linear(_array(8, 5))),
    Case("linear:rank_one", (6,), _rank_one),
    *(_spec(*case) for case in CHAINS),
    *(Case(f"{label}@algebra", shape, make) for label, shape, make in EXPRESSIONS),
    _spec("compressed_sensing:keep=0.3,seed=1", 1, 8, 4),
    _spec("compressed_sensing:keep=0.5", 3, 5, 3),
    _spec("compressed_sensing:transform=blockwise,block=4,keep=0.2", 3, 8, 4),
    _spec("compressed_sensing:transform=blockwise,block=2,orthonormal=false,keep=0.8", 1, 6, 4),
    _spec("compressed_sensing:transform=random_projection,keep=0.4", 1, 5, 6),
    _spec("compressed_sensing:transform=random_projection,keep=0.4,orthonormal=false", 3, 5, 3),
    *(
        _spec(f"fourier_subsample:pattern={p},acceleration=2,seed=1,centered={c}", 2, *size)
        for p, c, size in (("equispaced", True, (5, 6)), ("random", False, (4, 7)), ("radial", True, (5, 5)))
    ),
    _spec("fourier_subsample:complex=true,acceleration=1.5,center_fraction=0.4", 2, 4, 5),
    Case("fourier_subsample:mask", (1, 4, 6), lambda: operators.FourierSubsample(mask=_array(4, 6) > 0.4)),
    _spec("mri_multicoil:acceleration=2,coils=3", 1, 5, 6),
    _spec("mri_multicoil:acceleration=2,coils=2,pattern=random,centered=false", 3, 4, 4),
    _spec("mri_multicoil:acceleration=3,coils=4,complex=true", 2, 4, 7),
    Case(
        "mri_multicoil:maps", (1, 4, 5), lambda: operators.MultiCoil(maps=_array(2, 4, 5) + 1j * _array(2, 4, 5) ** 2)
    ),
    _spec("tomography:angles=5", 1, 6, 6),
    _spec("tomography:angles=4,start=20,stop=110,scale=0.3", 3, 5, 5),
]

# Operators that are not linear: their own battery, test_nonlinear_laws.py.
NONLINEAR: list[Case] = [
    _spec("saturate", 3, 6, 5),
    _spec("saturate:gain=0.5", 1, 5, 6),
    _spec("gamma", 3, 6, 5),
    _spec("gamma:exponent=0.4", 1, 5, 6),
    _spec("quantize", 3, 6, 5),
    _spec("quantize:bits=1", 1, 5, 6),
    _spec("jpeg", 3, 17, 20),
    _spec("jpeg:quality=80,subsampling=4:4:4", 3, 8, 9),
    _spec("jpeg:quality=5", 1, 9, 16),
    _spec("phase_retrieval", 1, 6, 5),
    _spec("phase_retrieval:oversample=1.3", 3, 5, 7),
]
