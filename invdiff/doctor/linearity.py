"""Linear or not, the adjoint, the gradient."""

from __future__ import annotations

import math

import torch

from invdiff.operator.contract import Operator

from .causes import number, why_adjoint_differs
from .findings import Line, by, failed, not_applicable, passed, within
from .subject import Mismatch, Subject, fit, gap, inner

SECANT = 0.25
"""Step of the difference quotient where A is piecewise constant and its gradient a substitute, in [0, 1] units."""


def linear(s: Subject) -> Line:
    """A(a x + b z) = a A(x) + b A(z), and A(0) = 0."""
    x, z = s.images(1), s.images(2)
    error, offset = _superposition(s, x, z)
    if not s.operator.linear:
        text = f"declared nonlinear; A(2.5 x - 3 z) differs from 2.5 A(x) - 3 A(z) by {error:.1e}"
        looks_linear = max(error, offset) <= s.tolerance
        advice = ": it looks linear, and linear = True opens it to more solvers" if looks_linear else ""
        return not_applicable(text + advice)
    text = "A(2.5 x - 3 z) = 2.5 A(x) - 3 A(z) and A(0) = 0 to"
    worst = max(error, offset)
    cause = "" if worst <= s.tolerance else _why_not_linear(s, x, z, offset)
    return within(worst, s.tolerance, text, cause, superposition=error, offset=offset)


def _superposition(
    s: Subject, x: torch.Tensor, z: torch.Tensor, a: float = 2.5, b: float = -3.0
) -> tuple[float, float]:
    """||A(a x + b z) - a A(x) - b A(z)|| and ||A(0)||, relative to ||A(x)|| and ||A(z)||."""
    Ax, Az, together = s.A(x).double(), s.A(z).double(), s.A(a * x + b * z).double()
    size = float(Ax.norm() + Az.norm()) or 1.0
    return float((together - a * Ax - b * Az).norm()) / size, float(s.A(0 * x).double().norm()) / size


def _why_not_linear(s: Subject, x: torch.Tensor, z: torch.Tensor, offset: float) -> str:
    Ax, zero = s.A(x).double(), s.A(0 * x).double()
    if offset > s.tolerance:
        rest = gap(s.A(2.5 * x - 3 * z).double() - zero, 2.5 * (Ax - zero) - 3 * (s.A(z).double() - zero))
        size = float(zero.square().mean().sqrt())
        if rest <= 100 * s.tolerance:
            same = " everywhere" if float(zero.std()) <= s.tolerance * size else ""
            value = f"it is {float(zero.mean()):.4g}{same}" if same else f"its rms is {size:.2g}"
            return f"affine, not linear: A(0) is not 0 ({value}): subtract the offset from y"
        return f"A(0) is not 0 (rms {size:.2g}), and A(x) - A(0) is not linear either: declare linear = False"
    factor, rest = fit(s.A(2 * x), Ax)
    if rest <= 100 * s.tolerance:
        degree = math.log2(abs(factor)) if factor else 0.0
        kinds = {0: "it is normalised by a norm, maximum or mean of x", 2: "an intensity, |x|^2", 0.5: "a square root"}
        words = kinds.get(round(degree, 6))
        if words:
            return f"A(2 x) = {number(factor)} A(x): {words}: declare linear = False"
        if abs(degree - 1) < 1e-6:
            return "A(2 x) = 2 A(x), but sums go wrong: an absolute value, norm, maximum or sorting: declare linear = False"
    inside = _superposition(s, s.pictures(1), s.pictures(2), 0.5, 0.5)[0]
    if inside <= 100 * s.tolerance:
        return "linear for images in [0, 1] and not beyond: a clamp? Drop it, as solvers go beyond, or declare linear = False"
    return "if the physics is not linear, declare linear = False"


def adjoint(s: Subject) -> Line:
    """<A x, y> = <x, A^T y> for random pairs, relative to the lengths of all four."""
    if not s.operator.linear:
        return not_applicable("no adjoint: A is not linear")
    x, y = s.images(3, 4), s.measurements(4, 4)
    Ax, back = s.A(x), s.A_adjoint(y)
    lengths = torch.maximum(inner(Ax, Ax).sqrt() * inner(y, y).sqrt(), inner(x, x).sqrt() * inner(back, back).sqrt())
    error = float(((inner(Ax, y) - inner(x, back)).abs() / lengths.clamp(min=1e-300)).max())
    text = "<A x, y> = <x, A^T y> for 4 pairs to"
    if error <= s.tolerance:
        return within(error, s.tolerance, text)
    factor, rest = fit(inner(x, back), inner(Ax, y))
    cause = "; ".join(filter(None, (why_adjoint_differs(s), _default_is_right(s, x, y, Ax))))
    return within(error, s.tolerance, text, cause, factor=factor, misfit=rest)


def _default_is_right(s: Subject, x: torch.Tensor, y: torch.Tensor, Ax: torch.Tensor) -> str:
    """Whether automatic differentiation, which serves where A_adjoint is not written, passes."""
    try:
        back = s.autograd(x, y)
    except Exception:
        return ""
    error = (inner(Ax, y) - inner(x, back)).abs() / (inner(Ax, Ax) * inner(y, y)).sqrt()
    return "without its A_adjoint the default would be right" if float(error.max()) <= s.tolerance else ""


def gradient(s: Subject) -> Line:
    """A_vjp: equal to A_adjoint if A is linear, to difference quotients if not."""
    op = s.operator
    if op.linear:
        x, v = s.pictures(5), s.measurements(6)
        exact = s.A_adjoint(v)
        error = gap(s.A_vjp(x, v), exact)
        if error > s.tolerance:
            return within(error, s.tolerance, "A_vjp = A_adjoint to", "A_vjp of a linear A is A_adjoint: delete A_vjp")
        if not op.differentiable or type(op).A_vjp is not Operator.A_vjp:
            return within(error, s.tolerance, "A_vjp = A_adjoint to")
        try:
            error = gap(s.autograd(x, v), exact)
        except Exception:
            return passed("A_vjp = A_adjoint; A itself cannot be differentiated, which solvers do not need here")
        cause = "A cuts the gradient: .detach(), .data or numpy inside? Solvers use A_adjoint, and get the right one"
        return within(error, 100 * s.tolerance, "A_vjp = A_adjoint = derivative of A to", cause)
    if not op.differentiable:
        return not_applicable("declared not differentiable")
    return _differences(s)


def forward(s: Subject) -> Line:
    """A_jvp: equal to A if A is linear; if not, <v, J u> = <J^T v, u> with the A_vjp that was checked before."""
    op = s.operator
    x, u = s.pictures(8), s.images(9)
    if not (op.linear or op.differentiable):
        return not_applicable("declared not differentiable")
    with torch.no_grad():
        Ju = op.A_jvp(x.clone(), u.clone())
    if tuple(Ju.shape[1:]) != s.out:
        cause = "it answers with A_vjp's shape" if tuple(Ju.shape[1:]) == s.shape else ""
        raise Mismatch(f"A_jvp answers in the shape {by(tuple(Ju.shape[1:]))} for measurements of {by(s.out)}", cause)
    if op.linear:
        return within(gap(Ju, s.A(u)), s.tolerance, "A_jvp(x, u) = A(u) to", "of a linear A it is A(u): delete A_jvp")
    # v partly along J u, so that no inner product is a small number.
    v = s.measurements(10).double()
    v = Ju.double() / (float(Ju.double().norm()) or 1.0) + v / v.norm()
    back = s.A_vjp(x, v.to(x))
    ours, theirs = inner(v, Ju), inner(back, u)
    scale = float(v.norm()) * float(Ju.double().norm()) + float(back.double().norm()) * float(u.double().norm())
    error = float((ours - theirs).abs().max()) / (scale or 1.0)
    text = "<v, J u> = <J^T v, u> to"
    # Kinks and toes: both derivatives are of the same formula, so that only rounding parts them.
    if error <= 100 * s.tolerance:
        return within(error, 100 * s.tolerance, text)
    factor, rest = fit(ours, theirs)
    cause = f"A_jvp is {number(factor)} times what A_vjp is the transpose of" if rest <= 1e-3 else ""
    if gap(Ju, s.A(u)) <= s.tolerance:
        cause = "it answers A(u), as if A were linear"
    elif gap(Ju, Operator.A_jvp(op, u, x)) <= 100 * s.tolerance:
        cause = "x and u are exchanged: A_jvp(x, u) is J(x) u"
    return within(error, 100 * s.tolerance, text, cause, factor=factor)


def _differences(s: Subject) -> Line:
    """<v, J d> by central differences against <J^T v, d>, for v partly along J d, so that it is no small number."""
    x, d = s.pictures(5), s.images(6) / 10
    step = s.epsilon ** (1 / 3)
    if torch.equal(s.A(x + 1e-3 * step * d), s.A(x)):
        return _substitute(s, x, d)
    best, factor = math.inf, 0.0
    for h in (10 * step, step, step / 10, step / 100):  # truncation and kinks fall with h, rounding rises
        slope = (s.A(x + h * d).double() - s.A(x - h * d).double()) / (2 * h)
        noise = s.measurements(7).double()
        v = slope / slope.norm() + noise / noise.norm()
        ours = s.A_vjp(x, v.to(x))
        error = float((inner(ours, d) - inner(v, slope)).abs().max()) / float(v.norm() * slope.norm())
        if error < best:
            best, factor = error, fit(inner(ours, d), inner(v, slope))[0]
    allowed = 10 * math.sqrt(s.epsilon)
    cause = f"it is {number(factor)} times the difference quotient" if best > allowed else ""
    return within(best, allowed, "J^T v agrees with difference quotients to", cause, factor=factor)


def _substitute(s: Subject, x: torch.Tensor, d: torch.Tensor) -> Line:
    """A is piecewise constant, so that its derivative is 0 or nothing: a substitute has to point uphill over wide steps."""
    d = d / d.abs().mean()
    slope = (s.A(x + SECANT * d).double() - s.A(x - SECANT * d).double()) / (2 * SECANT)
    factor = float(inner(s.A_vjp(x, slope.to(x)), d).sum() / inner(slope, slope).sum())
    text = f"A is piecewise constant; its substitute gradient is {factor:.2f} of the slope over +-{SECANT:g}"
    if 0.5 <= factor <= 2:
        return passed(text, factor=factor)
    cause = "the gradient of rounding is 0: pass it straight through" if factor == 0 else "more than a factor 2 off"
    return failed(text, cause, factor=factor)
