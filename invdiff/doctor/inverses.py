"""The singular value decomposition, and what solvers invert: pseudo-inverse, prox_l2, solve_data; norm and condition."""

from __future__ import annotations

import math

import torch

from invdiff.operator.contract import Operator
from invdiff.operator.linalg import TOLD_ABOVE
from invdiff.operator.svd import SVD

from . import proximal
from .causes import number
from .findings import Line, by, failed, not_applicable, passed, within
from .subject import Mismatch, Subject, fit, gap, inner, quiet

CONDITION = 100
"""gamma ||A||^2 for prox_l2 and solve_data: the condition number that conjugate gradients meet."""
SLOW = 3.0
"""Milliseconds for A and A^T together above which iterated inverses are examined on small images."""
LOOSE = 1e-3
"""How far A+ A may be from an orthogonal projection: a pseudo-inverse loses the condition number to rounding
(100 times that for iterations, which stop early where A measures hardly anything)."""
ZERO = 1e-6
"""A share of the largest singular value below which one counts as zero (SVD.inverse_singular_values)."""


def decomposition(s: Subject) -> Line:
    """s >= 0, V^T V = I, U^T U = I where s > 0, transposes of each other, A = U diag(s) V^T, A^T = V diag(s) U^T."""
    if not s.operator.has_svd:
        return not_applicable("none in closed form")
    svd = s.operator.svd(s.shape)
    values = svd.singular_values.to(s.device)
    x, y = s.images(20), s.measurements(21)
    smallest = float(values.min())
    if not smallest >= 0:
        return failed(f"the smallest singular value is {smallest:.2g}", "put the sign into U or V", smallest=smallest)
    weights = values.to(s.dtype)
    example = svd.V_adjoint(x.clone())
    if example.is_complex():
        return failed("V^T x is complex", "coordinates have to be real: two of them for each pair of frequencies")
    c = s.draw(tuple(example.shape[1:]), 22)
    measured = c * (values > 0)
    errors = {
        "V^T V = I": gap(svd.V_adjoint(svd.V(c)), c),
        "U^T U = I where s > 0": gap(svd.U_adjoint(svd.U(measured)) * (values > 0), measured),
        "<V c, x> = <c, V^T x>": _transposes(svd.V(c), x, c, example),
        "<U c, y> = <c, U^T y>": _transposes(svd.U(measured), y, measured, svd.U_adjoint(y)),
        "A = U s V^T": gap(svd.U(weights * svd.V_adjoint(x)), s.A(x)),
        "A^T = V s U^T": gap(svd.V(weights * svd.U_adjoint(y)), s.A_adjoint(y)),
    }
    law, error = next(((law, e) for law, e in errors.items() if not e <= s.tolerance), ("", 0.0))
    if not law:
        return passed(f"all six laws to {max(errors.values()):.1e}", **errors)
    text = f"{law} is off by {error:.1e}, allowed {s.tolerance:.1e}"
    return failed(text, _why_not_decomposed(s, svd, values, c, law, error), **errors)


def _transposes(Mc: torch.Tensor, x: torch.Tensor, c: torch.Tensor, Mx: torch.Tensor) -> float:
    if Mc.shape != x.shape:
        raise Mismatch(f"U or V answers in the shape {by(tuple(Mc.shape[1:]))}, not {by(tuple(x.shape[1:]))}")
    return float(((inner(Mc, x) - inner(c, Mx)).abs() / (inner(c, c) * inner(x, x)).sqrt()).max())


def _why_not_decomposed(s: Subject, svd: SVD, values: torch.Tensor, c: torch.Tensor, law: str, error: float) -> str:
    if s.epsilon < 1e-12 and error <= 1e-5:
        return "it holds to single precision only: a table in float32, or a cast; build tables in float64"
    near = 1e4 * s.tolerance
    if law[0] in "VU":
        M, M_adjoint = (svd.V, svd.V_adjoint) if law[0] == "V" else (svd.U, svd.U_adjoint)
        measured = c * (values > 0)
        factor, rest = fit(M_adjoint(M(measured)) * (values > 0), measured)
        return f"{law[0]} is {number(math.sqrt(abs(factor)))} times too long" if rest <= near else ""
    if law[0] == "<":
        return f"{law[1]} and {law[1]}_adjoint are not transposes of each other"
    signs = torch.where(c > 0, 1.0, -1.0).to(c)
    wide = values.expand(c.shape[1:]).double().flatten()
    # U^T A V is diag(s): applied to two vectors of signs it has to show the same s.
    one, two = (((signs[k] * svd.U_adjoint(s.A(svd.V(signs[k : k + 1])))[0]).double()).flatten() for k in (0, 1))
    if gap(one, two) > near:
        return "U^T A V is not diagonal: U and V belong to another operator, boundary or order of the axes"
    if gap(one, wide**2) <= near:
        return "the singular values of A are the squares of those given: square them"
    if gap(one.clamp(min=0), wide.sqrt()) <= near:
        return "the singular values given are squared, the eigenvalues of A^T A: take the square root"
    factor, rest = fit(wide, one)
    if rest <= near:
        return f"the singular values are {number(factor)} times those of A"
    if gap(one.sort().values, wide.sort().values) <= near:
        return "the singular values are in another order than the coordinates"
    wrong = int(((one - wide).abs() > near * wide.max()).sum())
    return f"{wrong} of {wide.numel()} singular values differ from those of A by up to {float((one - wide).abs().max()):.2g}"


def _target(s: Subject) -> tuple[Subject, str]:
    """Where iterated inverses are examined: on smaller images where A is slow, and what to say of it."""
    if s.operator.has_svd or s.pair <= SLOW:
        return s, ""
    small = next(s.others(((32, 32), (16, 16), (8, 8))), None)
    return (small, f" (at {by(small.shape)})") if small is not None else (s, "")


def pseudo_inverse(s: Subject) -> Line:
    """A A+ A x = A x, and A+ A x is of least norm: A+ A is an orthogonal projection, so symmetric."""
    if not s.operator.linear:
        return not_applicable("A is not linear")
    s, where = _target(s)
    x, z = s.images(30), s.images(31)
    Ax = s.A(x)
    p, told = quiet(lambda: s.as_image(s.operator.A_dagger(Ax.clone()), "A_dagger"))
    error = gap(s.A(p), Ax)
    exact = s.operator.has_svd
    # With a decomposition, s below 1e-6 of the largest counts as zero; iterations stop at the latest where they tell.
    dropped = ZERO * s.norm * float(x.norm()) / (float(Ax.norm()) or 1.0)
    allowed = dropped + 100 * s.tolerance if exact else max(TOLD_ABOVE, 1000 * s.tolerance)
    if error > allowed:
        factor, rest = fit(s.A(p), Ax)
        cause = f"A_dagger is {number(factor)} times too large" if rest <= allowed and factor else ""
        cause = cause or ("it answers y itself" if p.shape == Ax.shape and gap(p, Ax) == 0 else told)
        return within(error, allowed, f"A A+ A x = A x{where} to", cause)
    q, _ = quiet(lambda: s.as_image(s.operator.A_dagger(s.A(z)), "A_dagger"))
    lengths = (inner(x, x) * inner(z, z)).sqrt()
    skew = float(((inner(p, z) - inner(x, q)).abs() / lengths).max())
    longer = float((p.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).max()) - 1
    # The default's conjugate gradients start at 0 and never leave the row space; all they can lack is iterations.
    iterated = not exact and type(s.operator).A_dagger is Operator.A_dagger
    if not iterated and max(skew, longer) > (LOOSE if exact else 100 * LOOSE):
        text = f"A A+ A x = A x, but |A+ A x| is {1 + longer:.3g} |x| and A+ A is asymmetric by {skew:.1e}{where}"
        cause = "not of least norm: the answer has a share in the null space of A" if longer > 0 else ""
        return failed(text, cause, longer=longer, skew=skew)
    note = "" if not told else "; ill-conditioned, so that iterations stop early"
    return passed(f"A A+ A x = A x to {error:.1e}, of least norm{where}{note}", error=error, allowed=allowed, skew=skew)


def prox_l2(s: Subject) -> Line:
    """The gradient gamma A^T (A p - y) + p - z vanishes at p = prox_l2(z, y, gamma); if A is not linear: proximal.py."""
    if not s.operator.linear:
        return proximal.prox_l2(s)
    s, where = _target(s)
    z, y = s.images(40), s.measurements(41)
    gamma = CONDITION / (s.norm**2 or 1.0)
    p, told = quiet(lambda: s.as_image(s.operator.prox_l2(z.clone(), y.clone(), gamma), "prox_l2"))
    pull, moved = s.A_adjoint(s.A(p) - y), p - z
    scale = gamma * s.norm * float((s.A(z) - y).norm()) or 1.0
    error = float((gamma * pull + moved).norm()) / scale
    text = f"gamma A^T (A p - y) + p - z = 0{where} to"
    if error <= _allowed(s):
        return within(error, _allowed(s), text)
    factor, rest = fit(-moved, gamma * pull)
    cause = told
    if not float(moved.norm()):
        cause = "it answers z itself"
    elif rest <= _allowed(s):
        cause = f"it is right for {number(factor)} gamma: the objective is gamma/2 |A x - y|^2 + 1/2 |x - z|^2"
    return within(error, _allowed(s), text, cause, factor=factor)


def solve_data(s: Subject) -> Line:
    """(a A A^T + b I) w = v on the observed entries, for w = solve_data(v, a, b)."""
    if not s.operator.linear:
        return not_applicable("A is not linear")
    s, where = _target(s)
    mask = s.operator.observed(s.shape)
    v = s.measurements(51)
    v = v if mask is None else v * mask.to(v)
    a, b = CONDITION / (s.norm**2 or 1.0), 0.5
    w, told = quiet(lambda: s.operator.solve_data(v.clone(), a, b))
    AAw = s.A(s.A_adjoint(w))
    rest = a * AAw + b * w - v
    error = float((rest if mask is None else rest * mask.to(rest)).norm()) / float(v.norm())
    text = f"(a A A^T + b I) w = v{where} to"
    if error <= _allowed(s):
        return within(error, _allowed(s), text)
    factor, misfit = fit(v, a * AAw + b * w)
    cause = f"w is {number(1 / factor)} times too large" if misfit <= _allowed(s) and factor else told
    return within(error, _allowed(s), text, cause)


def _allowed(s: Subject) -> float:
    """Closed forms lose the condition number to rounding; iterations stop at 1e-6 (float32) or 1e-12 besides."""
    stop = 0.0 if s.operator.has_svd else 1e-12 if s.dtype == torch.float64 else 1e-6
    return CONDITION * (s.tolerance + stop)


def norm(s: Subject) -> Line:
    """norm(shape) against an independent estimate; smallest singular value, condition and rank, dense at a small size."""
    op = s.operator
    if not op.linear:
        return not_applicable("A is not linear")
    s, where = _target(s)
    ours, found = op.norm(s.shape), s.norm
    text, numbers = f"norm {ours:.4g}{where}", {"norm": ours, "lanczos": found}
    # Lanczos' estimate comes from below; on a spectrum that crowds at the top it lacks a few tenths of a percent.
    if not -1e-3 <= ours / found - 1 <= 0.02:
        cause = f"norm is {number(ours / found)} times too large"
        if abs(ours / found**2 - 1) < 0.01:
            cause = "that is the largest eigenvalue of A^T A: take the square root"
        return failed(f"{text}, but A stretches by {found:.4g}", cause, **numbers)
    if op.has_svd:
        values, at = op.svd(s.shape).singular_values.flatten(), ""
    elif s.small is not None:
        values, at = torch.linalg.svdvals(s.small.matrix), f" at {by(s.small.shape)}"
    else:
        return passed(f"{text}; condition unknown: not measured on images this large", **numbers)
    kept = values[values > ZERO * values.max()]
    smallest, condition = float(kept.min()), float(kept.max() / kept.min())
    numbers |= {"smallest": smallest, "condition": condition}
    zeros = "" if len(kept) == len(values) else f", {1 - len(kept) / len(values):.0%} of the singular values are 0"
    return passed(f"{text}; smallest singular value {smallest:.2g}, condition {condition:.3g}{at}{zeros}", **numbers)
