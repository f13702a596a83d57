"""The contract of a forward operator A, in deepinv's vocabulary.

A subclass is a frozen dataclass that writes `A`, its declared parameters and, where y has another shape than x, its shape
maps. Everything else has a correct default: the adjoint by automatic differentiation, inverses by conjugate gradients.
An operator that knows a singular value decomposition says so (`has_svd`) and gets every inverse in closed form.

    x: (B, C, H, W) float tensor, y: (B, *measurement_shape). Shapes in this module leave out the batch dimension.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator import linalg
from invdiff.operator.gauss_newton import gauss_newton
from invdiff.operator.kept import Kept, Latest
from invdiff.operator.svd import SVD
from invdiff.specs.parameters import declarations, format_spec, validate
from invdiff.specs.registry import Registry

Shape = tuple[int, ...]
Map = Callable[[torch.Tensor], torch.Tensor]

# What an operator becomes part of. Those classes are subclasses of Operator, so they are looked up by name, not imported.
EXPRESSIONS = Registry(
    "expression",
    {
        "adjoint": "invdiff.operator.algebra:Adjoint",
        "multiple": "invdiff.operator.algebra:multiple",
        "sum": "invdiff.operator.algebra:add",
        "then": "invdiff.operator.chain:compose",
        "stack": "invdiff.operator.stack:stack",
        "deepinv": "invdiff.operator.deepinv_physics:to_deepinv",
    },
)


@dataclass(frozen=True, eq=False)
class Operator:
    """A forward operator. Immutable; equal specs give equal operators; safe to pickle."""

    name: ClassVar[str] = "operator"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    # What kind of loss it is, for the choice of a solver: "blur" (smooth kernels), "motion" (others),
    # "downsampling", "inpainting", "colour", "mixing", or "other"; if not linear "tone", "saturation",
    # "compression", "phase", or "other".
    family: ClassVar[str] = "other"
    # True if U^T U = I even where s = 0: then the adjoint has a decomposition too.
    orthonormal_U: ClassVar[bool] = False
    # The path and the sha256 of the file that a spec named, where the class comes from one (invdiff/operator/from_file.py).
    loaded_from: ClassVar[Mapping[str, str] | None] = None
    # What a composition may do with it: leave it out, because A x = x; change places with its neighbour, because A is the
    # same on each channel alone whatever their number, or the same linear map of the channels at every pixel.
    neutral: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False
    pixelwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        validate(self, self.name)
        object.__setattr__(self, "_cache", Kept())

    # What a subclass writes.

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """The noiseless measurement of x."""
        raise NotImplementedError

    def measurement_shape(self, shape: Shape) -> Shape:
        """Shape of y for an image of this shape. Raises UsageError if the operator cannot take such an image."""
        return shape

    def image_shape(self, shape: Shape) -> Shape:
        """Shape of x for a measurement of this shape. Raises UsageError if no image gives such a measurement."""
        return shape

    def usable_shape(self, shape: Shape) -> Shape:
        """The largest image shape not above this one that the operator can take (a whole number of blocks, say)."""
        return shape

    @property
    def has_svd(self) -> bool:
        """True if U, V and the singular values are available."""
        return False

    def svd(self, shape: Shape) -> SVD:
        """The decomposition for images of this shape; only where has_svd."""
        raise UsageError(f"{self} has no singular value decomposition in closed form")

    def observed(self, shape: Shape) -> torch.Tensor | None:
        """1 where an entry of y is measured and 0 where it is only a place-holder (a masked pixel), broadcastable to y;
        None where every entry is measured. `shape` is the image's."""
        return None

    def merged(self, following: Operator) -> Operator | None:
        """One operator that is `following` after this one, with a closed form that the chain has not; else None."""
        return None

    @property
    def tight(self) -> float | None:
        """c > 0 where A A^T = c^2 I on all measurements, so that A^T / c keeps lengths; else None."""
        return None

    @property
    def right_basis(self) -> str | None:
        """A name of V: operators that share it have A^T A diagonal in each other's V, with their s in the same order,
        for images of one shape. None where V is the operator's own; only where has_svd."""
        return None

    # What follows from it.

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """A^T y. Default: the vector-Jacobian product of A, which is exact for a linear A."""
        self._require_linear("A_adjoint")
        return self.A_vjp(y.new_zeros(y.shape[0], *self.image_shape(tuple(y.shape[1:]))), y)

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """J(x)^T v, with J the Jacobian of A at x."""
        if self.linear and type(self).A_adjoint is not Operator.A_adjoint:
            return self.A_adjoint(v)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.A(x), x, v)
        return gradient

    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """J(x) u: A u itself for a linear A, else by forward-mode differentiation."""
        if self.linear:
            return self.A(u)
        product: torch.Tensor = torch.func.jvp(self.A, (x,), (u,))[1]
        return product

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """A plausible image (B, *image shape) from y alone: the pseudo-inverse, and mid-grey where A is not linear."""
        if self.linear:
            return self.A_dagger(y)
        return y.new_full((len(y), *self.image_shape(tuple(y.shape[1:]))), 0.5)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        """A^T A x."""
        return self.A_adjoint(self.A(x))

    def A_A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """A A^T y."""
        return self.A(self.A_adjoint(y))

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """The pseudo-inverse: the x of least norm among those of least ||A x - y||."""
        self._require_linear("A_dagger")
        if self.has_svd:
            svd = self.svd(self.image_shape(tuple(y.shape[1:])))
            return svd.V(svd.inverse_singular_values.to(y) * svd.U_adjoint(y))
        return self._iterate("A_dagger", self.A_adjoint_A, self.A_adjoint(y))

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """argmin_x  gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2  =  (gamma A^T A + I)^-1 (gamma A^T y + z), if A is linear.

        Else a local minimum near z, by a few Gauss-Newton steps (invdiff/operator/gauss_newton.py)."""
        if not self.linear:
            return gauss_newton(self, z, y, gamma)
        if self.has_svd:
            svd = self.svd(tuple(z.shape[1:]))
            s = svd.singular_values.to(z)
            # z - prox = V  gamma s / (gamma s^2 + 1)  (s V^T z - U^T y); nothing moves in the null space of A.
            # Solvers ask with one y again and again (`lasting`).
            latest: Latest = self.cached("U^T y", Latest)
            measured = latest.of(y, svd.U_adjoint)
            return z - svd.V(gamma * s / (gamma * s**2 + 1) * (s * svd.V_adjoint(z) - measured))
        # z + gamma A^T (gamma A A^T + I)^-1 (y - A z). Iterated for x itself, the same step stops, at the same relative
        # residual, a thousand times further away: there the residual counts directions that A hardly measures for little.
        misfit, shape = y - self.A(z), tuple(z.shape[1:])
        tolerance, share = linalg.data_step_tolerance(misfit, gamma, z), linalg.share_of(z)
        nearly = self.image_preconditioner(shape, gamma, 1.0)
        if nearly is not None:
            # Iterated for x - z after all, which is smaller than y and whose A^T A is nearly a convolution; what stops it is
            # gamma ||A e||^2 + ||e||^2 of its error e, at most what the residual for q would leave, if P were M^-1: `rough`.
            energy, rough = gamma * linalg.dot(misfit, misfit), 4 * max(1.0, gamma / 1000) ** 0.6
            near = (share / rough) ** 2
            return z + self._iterate(
                "prox_l2",
                lambda v: gamma * self.A_adjoint_A(v) + v,
                gamma * self.A_adjoint(misfit),
                nearly,
                energy,
                None if tolerance is None else (tolerance / rough).clamp(min=linalg.LEAST_TOLERANCE),
                # gamma ||misfit - A v||^2 = energy - <v, M v> - ||v||^2 for the v with M v = gamma A^T misfit.
                (lambda v, vMv: near * (energy - vMv - linalg.dot(v, v)).clamp(min=0)) if share else None,
            )
        q = self._iterate(
            "prox_l2",
            lambda v: gamma * self.A_A_adjoint(v) + v,
            misfit,
            self.data_preconditioner(shape, gamma, 1.0),
            tolerance=tolerance,
            enough=(lambda q, _: share**2 * linalg.dot(q, q)) if share else None,
        )
        return z + gamma * self.A_adjoint(q).reshape(z.shape)

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        """Nearly (a A A^T + b I)^-1 up to a factor, symmetric and positive, for images of this shape: it speeds conjugate
        gradients up. None: they run without."""
        return None

    def image_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        """Nearly (a A^T A + b I)^-1, on images of this shape, symmetric and positive: where there is one, prox_l2 iterates
        for images, else for measurements."""
        return None

    def solve_data(self, v: torch.Tensor, a: float, b: float) -> torch.Tensor:
        """(a A A^T + b I)^-1 v for a >= 0, b > 0, on the observed entries of a measurement v."""
        self._require_linear("solve_data")
        if self.has_svd:
            svd = self.svd(self.image_shape(tuple(v.shape[1:])))
            weights = 1 / (a * svd.singular_values.to(v) ** 2 + b)
            coordinates = svd.U_adjoint(v)
            if self.orthonormal_U and coordinates.shape[1:].numel() == v.shape[1:].numel():
                return svd.U(weights * coordinates)  # U spans all: what follows would lose digits where b is small
            # U may span only the range of A: outside it, A A^T vanishes and the answer is v / b.
            return v / b + svd.U((weights - 1 / b) * coordinates)
        precondition = self.data_preconditioner(self.image_shape(tuple(v.shape[1:])), a, b)
        return self._iterate("solve_data", lambda y: a * self.A_A_adjoint(y) + b * y, v, precondition)

    def _iterate(
        self,
        method: str,
        apply: Map,
        b: torch.Tensor,
        precondition: Map | None = None,
        energy: torch.Tensor | None = None,
        tolerance: torch.Tensor | None = None,
        enough: linalg.Enough | None = None,
    ) -> torch.Tensor:
        """Conjugate gradients; warns, once for each operator and method, if they stop far from the answer."""
        solved = linalg.solve(apply, b, precondition=precondition, energy=energy, tolerance=tolerance, enough=enough)
        worst = float(solved.residual.max()) if len(solved.residual) else 0.0
        told: set[str] = self.cached("told", set)
        aim = max(linalg.TOLD_ABOVE, linalg.share_of(b)) if enough else linalg.TOLD_ABOVE
        if worst > aim and method not in told:
            told.add(method)
            warnings.warn(
                f"{self}: {method} stopped at a relative residual of {worst:.1e} after {solved.iterations} iterations "
                f"(aim: below {aim:.0e}), so the data are fitted only roughly. {self.remedy}",
                RuntimeWarning,
                stacklevel=3,
            )
        return solved.x

    @property
    def remedy(self) -> str:
        """What a user can do where conjugate gradients do not converge."""
        return "A larger sigma_y makes it easier; an operator with a decomposition (has_svd) needs no iterations."

    @property
    def H(self) -> Operator:
        """The adjoint A^T as an operator of its own; op.H.H is op. Raises UsageError for a nonlinear operator."""
        self._require_linear("adjoint H")
        return EXPRESSIONS["adjoint"](self)

    def then(self, *following: Any) -> Operator:
        """y = following(A(x)): operators in the order in which they act, as "a | b" in a spec; see `Composition`."""
        return EXPRESSIONS["then"](self, *following)

    def stack(self, *others: Any, shape: Shape | None = None) -> Operator:
        """y = (A(x), others(x)): all these measurements of one image; see `Stack`, which also says when to give shape."""
        return EXPRESSIONS["stack"](self, *others, shape=shape)

    def __add__(self, other: Operator) -> Operator:
        return EXPRESSIONS["sum"](self, other) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: float) -> Operator:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        return EXPRESSIONS["multiple"](self, float(factor))

    __rmul__ = __mul__

    def norm(self, shape: Shape, iterations: int = 50) -> float:
        """The largest singular value for images of this shape (Lanczos' method where there is no decomposition)."""
        self._require_linear("norm")
        if self.has_svd:
            return float(self.svd(shape).singular_values.max())
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return math.sqrt(linalg.largest_eigenvalue(self.A_adjoint_A, start, iterations))

    def measured_count(self, shape: Shape) -> int:
        """Number of measured values of an image of this shape: the m of the residual ||y - A x|| / (sigma_y sqrt(m))."""
        out = self.measurement_shape(shape)
        mask = self.observed(shape)
        return math.prod(out) if mask is None else int(mask.expand(1, *out).sum())

    def degrade(self, x: torch.Tensor, noise: torch.Tensor, sigma_y: float) -> torch.Tensor:
        """A(x) + sigma_y noise on the observed entries; noise has the shape of y."""
        mask = self.observed(tuple(x.shape[1:]))
        return self.A(x) + sigma_y * (noise if mask is None else noise * mask.to(noise))

    def to_deepinv(self, shape: Shape) -> Any:
        """A deepinv `DecomposablePhysics`, `LinearPhysics` or `Physics` for images of this shape."""
        return EXPRESSIONS["deepinv"](self, shape)

    @property
    def spec(self) -> str:
        """Text that builds this operator again, e.g. "gaussian_blur:sigma=2"."""
        return format_spec(self.name, self)

    def settings(self) -> dict[str, Any]:
        """The name, the spec, every parameter with its value as text or number, and the file of a class: for records."""
        values = {d.name: getattr(self, d.name) for d in declarations(type(self))}
        plain = {
            key: value if isinstance(value, (str, int, float, type(None)))
            else f"array of shape {tuple(value.shape)}" if hasattr(value, "shape") else str(value)
            for key, value in values.items()
        }  # fmt: skip
        file = {"loaded_from": dict(self.loaded_from)} if self.loaded_from else {}
        return {"name": self.name, "spec": self.spec, "parameters": plain} | file

    def __str__(self) -> str:
        return self.spec

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.spec == getattr(other, "spec", None)

    def __hash__(self) -> int:
        return hash((type(self), self.spec))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache=Kept())

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """make() the first time this key is asked for: kernels' transforms and masks are made once for each shape.

        A key (kind, shape) is forgotten when KEPT_SHAPES other shapes of its kind have been used since, so that a folder of
        pictures of many sizes does not fill the memory; any other key is kept. Threads may share an operator.
        """
        kept: Kept = self.__dict__["_cache"]
        return kept.of(key, make)

    def _require_linear(self, method: str) -> None:
        if not self.linear:
            raise UsageError(f"{self} is not linear, so it has no {method}; use a solver for nonlinear operators (dps)")


def files_of(operator: Operator) -> list[Path]:
    """The files among the parameters of an operator and of those that it is made of, such as a mask."""

    def found(settings: dict[str, Any]) -> list[Path]:
        own = [Path(value) for value in settings["parameters"].values() if isinstance(value, str)]
        return [path for path in own if path.is_file()] + [
            path for one in settings.get("of", ()) for path in found(one)
        ]

    return found(operator.settings())
