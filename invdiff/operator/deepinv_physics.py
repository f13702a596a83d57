"""deepinv's physics as our operators, and ours as deepinv's. deepinv is imported only when a bridge is crossed.

Its noise and sensor models are left behind on the way in: `invdiff` takes sigma_y as an argument of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.svd import SVD


def as_operator(obj: Any, shape: Shape | None = None) -> Operator:
    """An Operator as it is, a `deepinv.physics.Physics` wrapped; anything else is a UsageError.

    shape: the image's (C, H, W), for a physics whose adjoint cannot tell it and that has no img_size. With it, deepinv's
    adjoint is tried out, and replaced where it is none.
    """
    if isinstance(obj, Operator):
        return obj
    # An object of a module that was never imported cannot exist: no need to pay for the import to find out.
    deepinv = sys.modules.get("deepinv")
    if deepinv is not None and isinstance(obj, deepinv.physics.Physics):
        return DeepinvOperator(obj, shape)
    raise UsageError(
        f"operator={obj!r} is neither an invdiff Operator nor a deepinv Physics; "
        "use invdiff.operators.get(name), or subclass invdiff.operator.Operator"
    )


@dataclass(frozen=True, eq=False)
class DeepinvOperator(Operator):
    """A(x) of a deepinv physics, without its noise and sensor models. Inputs are (B, C, H, W) as everywhere.

    Complex measurements become pairs of real channels, lists of tensors one vector (`to_reals`).
    Linear if the physics is a LinearPhysics. Has an SVD if it is a DecomposablePhysics whose coordinates are real and
    orthonormal, which is tried out on the image's shape (`shape`, or the physics' img_size); deepinv's half spectra
    (BlurFFT) and complex ones (MRI) are not. Its closed form of prox_l2 is used where it has a right one. Computes in
    the precision of the physics' tables, and answers in the input's.
    """

    name: ClassVar[str] = "deepinv"

    physics: Any = None
    shape: Shape | None = None

    def __post_init__(self) -> None:
        import deepinv

        super().__post_init__()
        object.__setattr__(self, "linear", isinstance(self.physics, deepinv.physics.LinearPhysics))
        shape = self.shape or getattr(self.physics, "img_size", None)
        if not isinstance(shape, (tuple, list, torch.Size)) or not all(isinstance(n, int) for n in shape):
            shape = None
        object.__setattr__(self, "shape", None if shape is None else tuple(shape))

    def A(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.physics.A(self._cast(x))
        if self.shape is None and not _is_plain(y):
            kind = f"a {y.dtype} tensor" if isinstance(y, torch.Tensor) else type(y).__name__
            raise UsageError(
                f"{self} measures {kind}, from which the image's shape cannot be told; "
                "give as_operator(physics, shape=(C, H, W))"
            )
        return to_reals(y).to(x.dtype)

    def _theirs(self, y: torch.Tensor) -> Any:
        """Our measurement in the form that the physics has."""
        return from_reals(self._cast(y), self._example)

    @property
    def _example(self) -> Any:
        """A(0), for its form; where no shape is known, measurements are real tensors."""
        if self.shape is None:
            return torch.zeros(1)
        shape = self.shape
        return self.cached("example", lambda: self.physics.A(self._zeros(shape)))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self._require_linear("A_adjoint")
        if self.shape is not None and not self._trusted_adjoint(self.shape):
            return self._gradient(self._zeros(self.shape).to(y).expand(len(y), *self.shape), y)
        return self._their_adjoint(y)

    def _their_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        # Of a real image, Re(A^H y) is the transpose.
        return _real(self.physics.A_adjoint(self._theirs(y))).to(y.dtype)

    def _trusted_adjoint(self, shape: Shape) -> bool:
        """Whether <A x, v> = <x, A^T v>, tried out once: not every adjoint of deepinv is one (docs/deepinv.md)."""
        return self.cached(("adjoint", shape), lambda: self.adjoint_error(shape) <= 1e-4)

    def adjoint_error(self, shape: Shape) -> float:
        """|<A x, v> - <x, A^T v>| / (|A x| |v|) of deepinv's own A_adjoint, at random; infinite where it fails."""
        with torch.no_grad():
            x, v = self._random(shape, 0), self.A(self._random(shape, 1))
            y = self.A(x)
            v = v + v.norm() / max(1, v.numel()) ** 0.5 * self._random(tuple(y.shape[1:]), 2)
            try:
                back = self._their_adjoint(v)
            except Exception:  # whatever it raises, it is no adjoint
                return float("inf")
            if back.shape != x.shape:
                return float("inf")
            return abs(float((y * v).sum() - (x * back).sum())) / float((y.norm() * v.norm()).clamp(min=1e-30))

    def _random(self, shape: Shape, seed: int) -> torch.Tensor:
        return self._cast(torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))).to(self._device)

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.linear:
            return self.A_adjoint(v)
        return self._gradient(x, v)

    def _gradient(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.A(x), x, v)
        return gradient

    def measurement_shape(self, shape: Shape) -> Shape:
        return self.cached(("out", shape), lambda: tuple(self.A(self._zeros(shape)).shape[1:]))

    def image_shape(self, shape: Shape) -> Shape:
        if self.shape is not None:
            return self.shape
        if not self.linear:
            raise UsageError(
                f"{self}: the image's shape cannot be told from y; give as_operator(physics, shape=(C, H, W))"
            )
        return self.cached(("in", shape), lambda: tuple(self.A_adjoint(self._zeros(shape)).shape[1:]))

    def _zeros(self, shape: Shape) -> torch.Tensor:
        return self._cast(torch.zeros(1, *shape)).to(self._device)

    def _tables(self) -> list[torch.Tensor]:
        named = (*self.physics.named_parameters(), *self.physics.named_buffers())
        return [
            t for name, t in named if not name.startswith("noise_model") and (t.is_floating_point() or t.is_complex())
        ]

    @property
    def _device(self) -> torch.device:
        return next((t.device for t in self._tables()), torch.device("cpu"))

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        """x in the precision of the physics' tables: many of deepinv's maps refuse to mix two."""
        return x.to(next((t.real.dtype for t in self._tables()), x.dtype))

    @property
    def has_svd(self) -> bool:
        return self.shape is not None and self._orthonormal(self.shape)

    def _orthonormal(self, shape: Shape) -> bool:
        import deepinv

        if not isinstance(self.physics, deepinv.physics.DecomposablePhysics):
            return False

        def orthonormal() -> bool:
            try:
                return _is_orthonormal(self.physics, shape, self._device)
            except RuntimeError:  # the tables do not fit the image: a decomposition of another map, inherited
                return False

        return self.cached(("orthonormal", shape), orthonormal)

    def svd(self, shape: Shape) -> SVD:
        if not self._orthonormal(tuple(shape)):
            return super().svd(shape)
        p = self.physics
        s = torch.as_tensor(p.mask).detach().double()
        return SVD(
            s,  # with a batch dimension of one: it broadcasts all the same
            lambda c: p.U(self._cast(c)).to(c.dtype),
            lambda y: p.U_adjoint(self._cast(y)).to(y.dtype),
            lambda c: p.V(self._cast(c)).to(c.dtype),
            lambda x: p.V_adjoint(self._cast(x)).to(x.dtype),
        )

    def _trusted_prox(self, shape: Shape) -> bool:
        """Whether the physics has a prox_l2 of its own that solves its equation, tried out once for each shape.

        deepinv's closed forms assume what not every setting keeps: Downsampling's is wrong for a filter larger than the
        image.
        """
        from deepinv.physics import LinearPhysics

        if not self.linear or type(self.physics).prox_l2 is LinearPhysics.prox_l2:
            return False

        return self.cached(("prox", shape), lambda: self.prox_error(shape) <= 1e-3)

    def prox_error(self, shape: Shape) -> float:
        """|A^T (A x - y) + x - z| / |z| for deepinv's own x = prox_l2(z, y, 1), at random; infinite where it fails."""
        with torch.no_grad():
            z, y = self._random(shape, 0), self.A(self._random(shape, 1))
            try:
                x = self._their_prox(z, y, 1.0)
            except Exception:  # whatever it raises, it is no solution
                return float("inf")
            gradient = self.A_adjoint(self.A(x) - y) + x - z
            return float(gradient.norm()) / float(z.norm())

    def _their_prox(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return _real(self.physics.prox_l2(self._cast(z), self._theirs(y), gamma)).to(z.dtype)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        if self.has_svd or not self._trusted_prox(tuple(z.shape[1:])):
            return super().prox_l2(z, y, gamma)
        return self._their_prox(z, y, gamma)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        from deepinv.physics import DecomposablePhysics

        if self.has_svd or not isinstance(self.physics, DecomposablePhysics) or not _is_plain(self._example):
            return super().A_dagger(y)
        x: torch.Tensor = self.physics.A_dagger(self._cast(y))
        return x.to(y.dtype)

    @property
    def spec(self) -> str:
        return f"deepinv:{type(self.physics).__name__}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeepinvOperator) and self.physics is other.physics

    def __hash__(self) -> int:
        return id(self.physics)


def _is_plain(y: Any) -> bool:
    return isinstance(y, torch.Tensor) and not y.is_complex()


def _real(x: torch.Tensor) -> torch.Tensor:
    return x.real if x.is_complex() else x


def _is_orthonormal(physics: Any, shape: Shape, device: torch.device) -> bool:
    """Whether V is real with V^T V = I, U^T U = I where s > 0, s >= 0, on random coordinates (float32 rounding)."""
    generator = torch.Generator().manual_seed(0)

    def normal(size: Any) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device)

    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.shape == b.shape and float((a - b).norm()) <= 1e-4 * float(b.norm())

    mask = torch.as_tensor(physics.mask).to(device)
    with torch.no_grad():
        example = physics.V_adjoint(normal((1, *shape)))
        if example.is_complex() or mask.is_complex() or float(mask.min()) < 0:
            return False
        c, d = normal(example.shape), normal(example.shape)
        x = physics.V(c)
        measured = c * (mask > 0)
        y = physics.U(measured)
        if x.is_complex() or y.is_complex() or not close(x.norm(), c.norm()) or not close(y.norm(), measured.norm()):
            return False
        # Orthonormal and transposes of each other: <V c, V d> = <c, d>, V^T V c = c, U^T U c = c where s > 0.
        inner = float((physics.V(d) * x).sum() - (c * d).sum()) / float(c.norm() * d.norm())
        back = physics.U_adjoint(y) * (mask > 0)
        return abs(inner) < 1e-4 and close(physics.V_adjoint(x), c) and close(back, measured)


def to_deepinv(operator: Operator, shape: Shape) -> Any:
    """A deepinv physics for images of this shape (C, H, W), without noise.

    `DecomposablePhysics` where the operator has an SVD whose coordinates span all images, else `LinearPhysics` if it is
    linear, else `Physics`. A, A_adjoint, prox_l2 and A_dagger are the operator's own.
    """
    if isinstance(operator, DeepinvOperator):
        return operator.physics
    from deepinv.physics import DecomposablePhysics, LinearPhysics, Physics

    shape = tuple(shape)
    operator.measurement_shape(shape)
    if not operator.linear:
        return Physics(A=lambda x, **kwargs: operator.A(x))

    class Bridged(LinearPhysics):
        """Our closed forms and per-sample conjugate gradients in the place of deepinv's iterations."""

        def A(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return operator.A(x)

        def A_adjoint(self, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return operator.A_adjoint(y)

        def A_adjoint_A(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return operator.A_adjoint_A(x)

        def A_A_adjoint(self, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return operator.A_A_adjoint(y)

        def A_dagger(self, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return operator.A_dagger(y)

        def prox_l2(self, z: Any, y: torch.Tensor, gamma: Any, **kwargs: Any) -> torch.Tensor:
            if not isinstance(z, torch.Tensor):
                z = torch.full_like(operator.A_adjoint(y), 0.0 if z is None else float(z))
            return operator.prox_l2(z, y, gamma)

    if operator.has_svd:
        svd = operator.svd(shape)
        with torch.no_grad():
            coordinates = svd.V_adjoint(torch.zeros(1, *shape))
        if coordinates[0].numel() == torch.Size(shape).numel():

            class BridgedDecomposable(Bridged, DecomposablePhysics):
                """The same with U, V and the singular values."""

            return BridgedDecomposable(
                U=svd.U,
                U_adjoint=svd.U_adjoint,
                V=svd.V,
                V_adjoint=svd.V_adjoint,
                mask=svd.singular_values.expand(coordinates[0].shape)[None].float(),
                img_size=shape,
            )
    return Bridged(img_size=shape)


def to_reals(y: Any) -> torch.Tensor:
    """Complex (B, C, ...) as (B, 2C, ...), [re_0, im_0, re_1, im_1, ...]; several tensors flattened. Norms are kept."""
    if isinstance(y, torch.Tensor):
        return torch.stack([y.real, y.imag], 2).flatten(1, 2) if y.is_complex() else y
    return torch.cat([to_reals(part).flatten(1) for part in y], 1)


def from_reals(values: torch.Tensor, like: Any) -> Any:
    """The y with `to_reals(y) == values`. like: any measurement of that kind, such as A(0) for a batch of one."""
    if isinstance(like, torch.Tensor):
        pairs = values.unflatten(1, (-1, 2)) if like.is_complex() else None
        return values if pairs is None else torch.complex(pairs[:, :, 0], pairs[:, :, 1])
    shapes = [to_reals(part).shape[1:] for part in like]
    pieces = values.split([shape.numel() for shape in shapes], 1)
    parts = [from_reals(p.reshape(-1, *s), part) for p, s, part in zip(pieces, shapes, like, strict=True)]
    return type(like)(parts)
