"""What any map from images to measurements has to keep, linear or not: shapes, types, repeatability, its input."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from invdiff.operator.contract import Operator, Shape

from .findings import Line, by, failed, passed, within
from .subject import Subject, fit, gap, quiet


def shape_map(s: Subject) -> Line:
    """measurement_shape tells the shape of A(x); image_shape leads back; both at a second size too."""
    said = []
    for subject in (s, *s.others(((40, 56),))):
        op, shape = subject.operator, subject.shape
        declared, y = tuple(op.measurement_shape(shape)), subject.A(subject.images(count=2))
        said.append(f"{by(shape)} -> {by(tuple(y.shape[1:]))}")
        numbers: dict[str, Any] = {"declared": list(declared), "measured": list(y.shape[1:])}
        if len(y) != 2:
            return failed(
                f"{said[-1]}: a batch of 2 images gives {len(y)} measurements", "a sum or mean over dim 0?", **numbers
            )
        if tuple(y.shape[1:]) != declared:
            text = f"{said[-1]}, but measurement_shape says {by(declared)}"
            return failed(text, _shape_cause(op, shape, declared, tuple(y.shape[1:])), **numbers)
        back = tuple(op.image_shape(declared))
        again = tuple(op.measurement_shape(back))
        if again != declared or (op.linear and back != shape):
            text = f"{said[-1]}, and image_shape leads back to {by(back)}, which gives {by(again)}"
            return failed(text, _shape_cause(op, shape, back, shape), **numbers, back=list(back))
        usable = tuple(op.usable_shape(shape))
        if tuple(op.usable_shape(usable)) != usable or any(a > b for a, b in zip(usable, shape, strict=False)):
            return failed(f"usable_shape of {by(shape)} is {by(usable)}, which it would change again", **numbers)
    return passed("; ".join(said))


def _shape_cause(op: Operator, shape: Shape, declared: Shape, actual: Shape) -> str:
    """Why `declared` is not `actual`."""
    if type(op).measurement_shape is Operator.measurement_shape and declared == shape:
        return "measurement_shape is not written, so y is taken to have x's shape"
    if len(declared) != len(actual):
        return f"{len(declared)} axes are declared and there are {len(actual)}"
    if declared[-2:] != actual[-2:] and declared[-2:] == actual[-2:][::-1]:
        return "rows and columns are exchanged in a shape map, or A transposes"
    differences = {a - b for a, b in zip(declared[-2:], actual[-2:], strict=True)}
    if declared[:-2] == actual[:-2] and differences <= {-1, 0, 1}:
        return "off by one: a kernel of k pixels leaves H - k + 1 rows of H, a step of f leaves H // f"
    if declared[-2:] == actual[-2:]:
        return "the number of channels is wrong"
    return ""


def real_numbers(s: Subject) -> Line:
    """A and A^T answer with real floating-point tensors."""
    y = s.operator.A(s.images(count=1))
    if not isinstance(y, torch.Tensor):
        return failed(f"A answers with a {type(y).__name__}", "return one tensor (B, ...): stack several measurements")
    if y.is_complex():
        advice = "solvers need real numbers: return the real and the imaginary part as two channels, \
torch.view_as_real(y).movedim(-1, 2).flatten(1, 2), and undo it in A_adjoint"
        return failed(f"A answers with {y.dtype}", " ".join(advice.split()), dtype=str(y.dtype))
    if not y.is_floating_point():
        return failed(
            f"A answers with {y.dtype}", "integers have no gradients: end with .to(x.dtype)", dtype=str(y.dtype)
        )
    if s.operator.linear:
        x = s.operator.A_adjoint(s.measurements(count=1))
        if x.is_complex():
            return failed(f"A_adjoint answers with {x.dtype}", "of a real image take the real part: end with .real")
    return passed(str(y.dtype).removeprefix("torch."))


def dtype_and_device(s: Subject) -> Line:
    """float32 in, float32 out, float64 in, float64 out, on the device of the input; both agree to rounding."""
    op, gives = s.operator, {}
    answers: dict[str, list[torch.Tensor]] = {}
    for dtype in (torch.float32, torch.float64):
        x, y = s.pictures().to(dtype), s.measurements().to(dtype)
        for method, call in _maps(op).items():
            if method == "A_vjp":  # checked as A_adjoint, or by differences
                continue
            answer, _ = quiet(lambda call=call, x=x, y=y: call(x, y))  # type: ignore[misc]
            gives[method, dtype] = answer.dtype
            answers.setdefault(method, []).append(answer)
            if answer.device != s.device:
                return failed(f"{method}: input on {s.device}, answer on {answer.device}", "move tables with .to(x)")
    for (method, dtype), given in gives.items():
        if given != dtype:
            short = str(dtype).removeprefix("torch."), str(given).removeprefix("torch.")
            others = {gives[method, kind] for kind in (torch.float32, torch.float64)}
            always = f" whatever comes in: a table in {short[1]} or a cast" if len(others) == 1 else ""
            cause = f"{method} answers in {short[1]}{always}; cast tables with .to(x), or the answer with .to(x.dtype)"
            return failed(f"{method}: {short[0]} in, {short[1]} out", cause, method=method, given=short[1])
    if not op.linear:
        return passed("float32 and float64 kept")
    error = max(gap(single, double) for single, double in answers.values())
    single = torch.finfo(torch.float32).eps
    allowed = s.tolerance / s.epsilon * single * (100 if op.has_svd else 1)
    return within(error, allowed, "float32 and float64 kept; they agree to")


def finite(s: Subject) -> Line:
    """No NaN, no infinity: for pictures, black, white and what solvers try beyond [0, 1]."""
    op = s.operator
    inputs = {
        "images in [0, 1]": s.pictures(),
        "black images": s.pictures() * 0,
        "white images": s.pictures() * 0 + 1,
        "noisy images, beyond [0, 1]": s.pictures() + s.images(1),
    }
    bad = [what for what, x in inputs.items() if not bool(s.A(x).isfinite().all())]
    if bad:
        causes = {
            "black images": "a division by zero, or the logarithm of 0",
            "noisy images, beyond [0, 1]": "a root, power or logarithm of negative values, which solvers do try: clamp first",
        }
        return failed(f"A has NaN or infinity for {' and '.join(bad)}", causes.get(bad[0], ""), inputs=bad)
    if op.linear or op.differentiable:
        v = s.measurements()
        bad = [what for what, x in inputs.items() if not bool(s.A_vjp(x, v).isfinite().all())]
        if bad:
            cause = (
                "the derivative of a root or of abs at 0: add a small constant inside" if "black images" in bad else ""
            )
            return failed(f"A_vjp has NaN or infinity for {' and '.join(bad)}", cause, inputs=bad)
    return passed("black, white, random, and beyond [0, 1]")


def deterministic(s: Subject) -> Line:
    """A(x) again is the same, right away and after other calls."""
    x = s.pictures()
    before = s.A(x)
    error = gap(s.A(x), before)
    if not error <= s.tolerance:
        cause = "A draws random numbers, or changes its own state: draw random numbers in the constructor from a seed"
        return failed(f"A(x) twice differs by {error:.1e}", cause, error=error)
    if s.operator.linear:
        s.A_adjoint(s.measurements())
    s.A(s.pictures(3, count=3).float())
    for other in s.others(((40, 56), (24, 32))):
        other.A(other.pictures().to(s.dtype))
    error = gap(s.A(x), before)
    cause = "a table is kept from another call: its key needs the shape, the dtype and the device (see Operator.cached)"
    return within(error, s.tolerance, "A(x) again, also after calls for other images, differs by", cause)


def batch(s: Subject) -> Line:
    """Three images together give what each gives alone."""
    x = s.pictures(count=3) * torch.tensor([1.0, 0.5, 0.1]).reshape(-1, *[1] * len(s.shape)).to(s.device, s.dtype)
    line = _separate("A", s.A, x, s.tolerance)
    if line.status == "pass" and s.operator.linear:
        scale = torch.tensor([1.0, 3.0, 10.0]).reshape(-1, *[1] * len(s.out)).to(s.device, s.dtype)
        line = _separate("A_adjoint", s.A_adjoint, s.measurements(count=3) * scale, s.tolerance)
    return line


def _separate(name: str, call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, allowed: float) -> Line:
    together, alone = call(x), torch.cat([call(x[k : k + 1]) for k in range(len(x))])
    error = gap(together, alone)
    if error <= allowed:
        return passed(f"three together equal each alone to {error:.1e}", error=error, allowed=allowed)
    factor, rest = fit(together[0], alone[0])
    shift = (together[0] - alone[0]).double()
    neighbours = gap(call(torch.cat([x[:1], 2 * x[1:]]))[0], together[0])
    cause = ""
    if rest <= 1e3 * allowed:
        cause = f"the first is {factor:.3g} times too large: normalised by a norm, maximum or mean over dim 0 as well?"
    elif float(shift.std()) <= 1e3 * allowed * float(shift.abs().mean()):
        cause = f"the first is shifted by {float(shift.mean()):.2g} everywhere: a mean over dim 0 as well?"
    elif neighbours > allowed:
        cause = "an image sees its neighbours: a norm, mean or maximum over dim 0 (or over the whole tensor)?"
    elif any(gap(together[k], alone[0]) <= allowed for k in range(1, len(x))):
        cause = "the measurements come back in another order than the images"
    else:
        cause = "it depends on the size of the batch, not on the neighbours: random numbers or a table of the batch's shape?"
    return failed(
        f"{name}: three together differ from each alone by {error:.1e}, allowed {allowed:.1e}", cause, error=error
    )


def random_state(s: Subject) -> Line:
    """Nobody else's random numbers change because A was called."""
    x, y = s.pictures(), s.measurements()
    before = _states()
    s.A(x)
    if s.operator.linear:
        s.A_adjoint(y)
    touched = [name for name, state in _states().items() if state != before[name]]
    if touched:
        cause = "use a generator of your own, made in the constructor from a seed: torch.Generator().manual_seed(seed)"
        return failed(f"the global random state of {' and '.join(touched)} moves on", cause, touched=touched)
    return passed("torch, numpy and random left alone")


def _states() -> dict[str, str]:
    states = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": repr([np.asarray(part).tobytes() for part in np.random.get_state()]),  # noqa: NPY002 - only looked at
        "random": repr(random.getstate()),
    }
    if torch.cuda.is_available():
        states["torch.cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return states


def _maps(op: Operator) -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """The maps that the operator offers in closed form, as functions of an image x and a measurement y."""
    maps: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"A": lambda x, y: op.A(x)}
    if op.linear:
        maps["A_adjoint"] = lambda x, y: op.A_adjoint(y)
        if op.has_svd:
            maps["prox_l2"] = lambda x, y: op.prox_l2(x, y, 1.0)
    if op.linear or op.differentiable:
        maps["A_vjp"] = lambda x, y: op.A_vjp(x, y)
    return maps


def input_kept(s: Subject) -> Line:
    """No map writes into its input."""
    op = s.operator
    calls = _maps(op)
    for method, call in calls.items():
        x, y = s.pictures(), s.measurements()
        given = x.clone(), y.clone()
        quiet(lambda call=call, x=x, y=y: call(x, y))  # type: ignore[misc]
        for which, now, then in zip("xy", (x, y), given, strict=True):
            if not torch.equal(now, then):
                cause = "an in-place operation (*=, +=, x[...] = or a method that ends in _): work on a new tensor"
                return failed(f"{method} changes its input {which} by {gap(now, then):.1e}", cause, method=method)
    return passed(f"{', '.join(calls)} leave x and y as they are")
