"""The one list of operators over which every law runs. A new operator is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from invdiff import operators
from invdiff.operator import Operator, Shape

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
    return Case(label, shape, lambda: operators.KernelBlur(kernel=_array(*size), boundary=boundary))


CASES: list[Case] = [
    _spec("identity", 3, 5, 4),
    *(_spec(f"gaussian_blur:sigma=0.8,boundary={b}", 1, 8, 7) for b in BOUNDARIES),
    *(_spec(f"gaussian_blur:sigma=2,size=5,boundary={b}", 3, 5, 6) for b in ("circular", "reflect")),
    *(_spec(f"uniform_blur:size=3,boundary={b}", 1, 7, 8) for b in BOUNDARIES),
    *(_spec(f"uniform_blur:size=3,boundary={b}", 3, 6, 6) for b in ("circular", "reflect")),
    *(_spec(f"motion_blur:length=4.3,angle=30,boundary={b}", 1, 7, 8) for b in BOUNDARIES),
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
    _spec("inpaint", 3, 5, 6),
    _spec("inpaint:keep=0.2,seed=5", 1, 6, 6),
    _spec("inpaint:box=3x2+1+2", 3, 5, 6),
    Case("inpaint:mask", (3, 4, 5), lambda: operators.Inpaint(mask=_array(4, 5))),
    _spec("random_subsample:keep=0.3,seed=1", 3, 5, 4),
    _spec("grayscale", 3, 4, 5),
    Case("linear:wide", (1, 3, 4), lambda: operators.Linear(_array(7, 12), shape=(1, 3, 4))),
    Case("linear:tall", (5,), lambda: operators.Linear(_array(8, 5))),
    Case("linear:rank_one", (6,), _rank_one),
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
