"""An operator on the table: random images and measurements for it, its maps without surprises, and what rounding allows."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property

import torch

from invdiff.errors import UsageError
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.linalg import largest_eigenvalue
from invdiff.operator.spectral import DENSE

from .findings import by

DEFAULT_SHAPES: tuple[Shape, ...] = ((3, 64, 64), (1, 64, 64), (2, 64, 64), (3, 256, 256), (2, 256, 256))
SMALL_SIDES = (16, 8, 32)


class Mismatch(Exception):
    """A map answered in another shape than it has to. The message says which; `cause` what the numbers suggest."""

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause


class Subject:
    """The operator for images of one shape on one device. Every map gets a copy, so that one that writes into its input
    spoils only the check that looks for it. Computes in float64, in float32 if A refuses float64."""

    device: torch.device
    operator: Operator
    shape: Shape

    def __init__(self, operator: Operator, shape: Shape, device: torch.device) -> None:
        self.operator, self.shape, self.device = operator, shape, device

    # Draws.

    def draw(self, shape: Shape, seed: int, count: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def images(self, seed: int = 0, count: int = 2) -> torch.Tensor:
        """White images x ~ N(0, I), (count, *shape)."""
        return self.draw(self.shape, seed, count)

    def pictures(self, seed: int = 0, count: int = 2) -> torch.Tensor:
        """Images with values from 0.1 to 0.9."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(count, *self.shape, generator=generator, dtype=torch.float64)
        return (0.1 + 0.8 * values).to(self.device, self.dtype)

    def measurements(self, seed: int = 100, count: int = 2) -> torch.Tensor:
        return self.draw(self.out, seed, count)

    # Maps.

    def A(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.operator.A(x.clone())

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.as_image(self.operator.A_adjoint(y.clone()), "A_adjoint")

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.as_image(self.operator.A_vjp(x.clone(), v.clone()), "A_vjp").detach()

    def autograd(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """J(x)^T v by differentiating A itself, whatever A_vjp and A_adjoint say."""
        with torch.enable_grad():
            x = x.clone().requires_grad_(True)
            return torch.autograd.grad(self.operator.A(x), x, v)[0]

    def as_image(self, x: torch.Tensor, method: str) -> torch.Tensor:
        shape = tuple(x.shape[1:])
        if shape == self.shape:
            return x
        exchanged = shape == (*self.shape[:-2], self.shape[-1], self.shape[-2])
        cause = (
            "rows and columns are exchanged: a transpose of the last two axes too many or too few" if exchanged else ""
        )
        raise Mismatch(f"{method} answers in the shape {by(shape)} for images of {by(self.shape)}", cause)

    # What the numbers may lose.

    @cached_property
    def dtype(self) -> torch.dtype:
        """float32 where A refuses float64, or computes in float32 whatever comes in: where an image rounded to float32 has
        the very same A(x)."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, *self.shape, generator=generator, dtype=torch.float64).to(self.device)
        try:
            y, rounded = self.A(x), self.A(x.float().double())
        except Exception:
            try:
                self.A(x.float())
            except Exception:
                return torch.float64  # it takes neither, which the checks will tell
            return torch.float32
        single = y.dtype != torch.float64 or (self.operator.linear and torch.equal(y, rounded))
        return torch.float32 if single else torch.float64

    @property
    def epsilon(self) -> float:
        return torch.finfo(self.dtype).eps

    @cached_property
    def tolerance(self) -> float:
        """What rounding may do to a relative error: a sum of k terms loses sqrt(k) epsilon, a chain of maps more."""
        return self.epsilon * 16 * (math.sqrt(max(math.prod(self.shape), math.prod(self.out))) + 16)

    # Facts that several checks use.

    @cached_property
    def out(self) -> Shape:
        """The shape of y: what A really gives."""
        return tuple(self.A(torch.zeros(1, *self.shape, device=self.device, dtype=self.dtype)).shape[1:])

    @cached_property
    def norm(self) -> float:
        """||A||, from below, by the doctor's own Lanczos iteration."""
        return math.sqrt(largest_eigenvalue(lambda x: self.A_adjoint(self.A(x)), self.images(50, 1), 50))

    def milliseconds(self, call: Callable[[], object], repeats: int = 5) -> float:
        """Median time of a call after one that warms up; a single measurement where that took a second."""
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(1000 * (time.perf_counter() - start))
            if times[0] > 1000:
                break
        return sorted(times[1:] or times)[len(times[1:]) // 2]

    @cached_property
    def pair(self) -> float:
        """Milliseconds of A and A^T together in the doctor's precision."""
        x, y = self.images(count=1), self.measurements(count=1)
        return self.milliseconds(lambda: self.A_adjoint(self.A(x)) if y is not None else None, 1)

    def others(self, sides: tuple[tuple[int, int], ...]) -> Iterator[Subject]:
        """The same operator on images of other sizes (rows, columns), as far as it takes them; none if it has one size."""
        if getattr(self.operator, "shape", None) is not None:
            return
        for rows, columns in sides:
            try:
                if len(self.shape) == 3:
                    yield Subject(self.operator, settle(self.operator, (self.shape[0], rows, columns)), self.device)
            except UsageError:
                continue

    @cached_property
    def small(self) -> Subject | None:
        """This operator on images small enough for a dense matrix; None if it takes only larger ones."""
        if math.prod(self.shape) <= DENSE:
            return self
        sized = self.others(tuple((side, side) for side in SMALL_SIDES))
        return next((other for other in sized if math.prod(other.shape) <= DENSE), None)

    @cached_property
    def matrix(self) -> torch.Tensor:
        """A as a matrix (m, n), float64 on the CPU."""
        units = torch.eye(math.prod(self.shape), device=self.device, dtype=self.dtype)
        columns = [self.A(part.reshape(-1, *self.shape)).flatten(1) for part in units.split(128)]
        return torch.cat(columns).mT.double().cpu()


def settle(operator: Operator, shape: Shape) -> Shape:
    """The shape to examine: the largest usable one up to `shape`, and of those that give the same measurement the one that
    image_shape names. Raises the operator's UsageError if it takes none."""
    shape = tuple(operator.usable_shape(shape))
    out = tuple(operator.measurement_shape(shape))
    try:
        back = tuple(operator.image_shape(out))
        return back if tuple(operator.measurement_shape(back)) == out else shape
    except Exception:
        return shape  # a broken map is for the check of the shapes to tell


def choose_shape(operator: Operator, shape: Shape | None) -> Shape:
    """The shape given, as far as usable, or the first of the default ones that the operator takes."""
    if shape is not None:
        return settle(operator, shape)
    own = getattr(operator, "shape", None)
    refusals = []
    for candidate in ([tuple(own)] if isinstance(own, (tuple, list)) else []) + list(DEFAULT_SHAPES):
        try:
            return settle(operator, candidate)
        except UsageError as error:
            refusals.append(str(error))
        except Exception:
            return candidate
    raise UsageError(
        f"say with --shape which images {operator} takes: {by(DEFAULT_SHAPES[0])} is refused ({refusals[0]})"
    )


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||, absolute where b is 0."""
    if a.shape != b.shape:
        raise Mismatch(f"shape {tuple(a.shape)} where {tuple(b.shape)} is due")
    size = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / (size or 1.0)


def fit(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The factor f with a = f b in least squares, and the relative residual ||a - f b|| / ||a||."""
    a, b = a.double().flatten(), b.double().flatten()
    f = float(a @ b) / (float(b @ b) or 1.0)
    return f, float((a - f * b).norm()) / (float(a.norm()) or 1.0)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """<a, b> of each row, float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def quiet(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, str]:
    """The answer of a call without gradients, and what it warned of."""
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        answer = call()
    return answer, next((str(w.message) for w in told if issubclass(w.category, RuntimeWarning)), "")
