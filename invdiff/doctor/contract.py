"""What the rest of the toolkit relies on: the observed mask, the spec, pickling, declared parameters; cost and solvers."""

from __future__ import annotations

import dataclasses
import inspect
import pickle  # noqa: TID251 - a round trip of our own objects
from typing import Any

import torch

from invdiff.errors import InvdiffError, UsageError
from invdiff.operator.contract import Operator
from invdiff.specs.parameters import declarations

from .findings import Line, by, failed, not_applicable, passed
from .subject import Subject, gap

NETWORK_SIDE = 256
"""Pixels each way of the images on which one network call is the unit of cost."""


def observed(s: Subject) -> Line:
    """The mask is 0 or 1, fits y, and A(x) vanishes where it is 0."""
    mask = s.operator.observed(s.shape)
    y = s.A(s.pictures(60, 3)).double()
    still = int((y == 0).all(0).sum())
    if mask is None:
        if still and s.operator.linear:
            share = f"{still} of {y[0].numel()} entries of y are 0 whatever x is"
            return passed(f"none; {share}: if they are place-holders, say so in observed()", still=still)
        return passed("none: every entry of y is measured")
    try:
        mask = mask.to(y).expand(1, *s.out)[0]
    except RuntimeError:
        return failed(
            f"the mask {by(tuple(mask.shape))} does not broadcast to y {by(s.out)}", "it has y's shape, not x's?"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        return failed("the mask has values other than 0 and 1", "threshold it", smallest=float(mask.min()))
    leaks = float((y * (1 - mask)).abs().max())
    if leaks:
        swapped = float((y * mask).abs().max()) == 0
        return failed(
            f"A(x) is not 0 where nothing is observed: up to {leaks:.2g}",
            "1 and 0 are exchanged: 1 is measured"
            if swapped
            else "A does not apply the mask, or observed() another one",
            leak=leaks,
        )
    return passed(f"{float(mask.mean()):.1%} of y is observed, zeros elsewhere", share=float(mask.mean()))


def spec(s: Subject) -> Line:
    """operators.get(operator.spec) builds an equal operator with the same A."""
    from invdiff import operators

    op = s.operator
    if _holds_objects(op):
        return not_applicable(f"{op.spec}: holds objects that only Python can give")
    try:
        again = operators.get(op.spec)
    except UsageError as refusal:
        if op.name not in operators.REGISTRY:
            return not_applicable(f"{op.spec}: not registered under a name")
        return failed(f"operators.get({op.spec!r}) refuses", str(refusal))
    if type(again) is not type(op):
        return not_applicable(f"{op.spec}: the name {op.name} is registered for another class")
    x = s.pictures()
    if again != op or again.spec != op.spec:
        return failed(f"{op.spec!r} builds {again.spec!r}, which is not equal", "spec or __eq__ leaves a parameter out")
    error = gap(Subject(again, s.shape, s.device).A(x), s.A(x))
    if error:
        cause = "a parameter that spec leaves out, or random numbers in the constructor without a seed"
        return failed(f"{op.spec!r} builds an equal operator whose A differs by {error:.1e}", cause, error=error)
    return passed(op.spec)


def _holds_objects(op: Operator) -> bool:
    """Whether a field has a value without a text form, such as an array, an operator or a physics of another library."""
    values = [getattr(op, field.name) for field in dataclasses.fields(op)]
    text = (str, int, float, tuple, type(None))
    boxes = [dataclasses.is_dataclass(value) and not isinstance(value, Operator) for value in values]
    return not all(isinstance(value, text) or box for value, box in zip(values, boxes, strict=True))


def pickled(s: Subject) -> Line:
    """A copy through pickle, as worker processes get it, is equal and computes the same."""
    try:
        again = pickle.loads(pickle.dumps(s.operator))
    except Exception as failure:
        if _holds_objects(s.operator):
            return not_applicable(f"holds an object that cannot be: {failure}")
        cause = "keep parameters in fields and make tables, functions and files when asked for (Operator.cached)"
        return failed(f"cannot be pickled: {failure}", cause)
    if not isinstance(again, type(s.operator)):
        return failed(f"comes back as a {type(again).__name__}")
    error = gap(Subject(again, s.shape, s.device).A(s.pictures()), s.A(s.pictures()))
    equal = again == s.operator or type(s.operator).__eq__ is not Operator.__eq__
    if error or not equal:
        return failed(f"comes back {'with another A' if error else 'unequal'}", "__getstate__ leaves something out?")
    return passed("comes back equal, with the same A")


def parameters(s: Subject) -> Line:
    """Every parameter is declared with parameter(..., help=...), so that the command line knows it."""
    op, cls = s.operator, type(s.operator)
    if cls.name == Operator.name:
        return failed("the class has no name", f'write name: ClassVar[str] = "{cls.__name__.lower()}"')
    if any(isinstance(part, Operator) for part in _parts(op)):
        return not_applicable("made of other operators in Python: no command line builds it")
    plain = (str, int, float, bool)
    bare = [
        f.name
        for f in dataclasses.fields(op)
        if "declaration" not in f.metadata and isinstance(getattr(op, f.name), plain)
    ]
    if bare:
        cause = f'declare it: {bare[0]}: ... = parameter(..., help="...")'
        return failed(f"not declared: {', '.join(bare)}", cause, undeclared=bare)
    fields = {field.name for field in dataclasses.fields(op)}
    written = inspect.get_annotations(cls)
    missed = [key for key in written if key not in fields and "ClassVar" not in str(written[key])]
    if missed:
        return failed(f"{', '.join(missed)} cannot be set", "write @dataclass(frozen=True, eq=False) above the class")
    declared = declarations(cls)
    silent = [d.name for d in declared if not d.help.strip()]
    if silent:
        return failed(f"no help for {', '.join(silent)}", 'say in help="..." what it is, and in unit="..." its unit')
    return passed(", ".join(d.name for d in declared) or "it takes none", declared=[d.name for d in declared])


def _parts(op: Operator) -> list[object]:
    """The values of all fields, those inside a tuple one by one."""
    values = [getattr(op, field.name) for field in dataclasses.fields(op)]
    return [part for value in values for part in (value if isinstance(value, tuple) else (value,))]


def cost(s: Subject, network: bool = False) -> Line:
    """Milliseconds of A and of A^T for one image in float32; `network`: beside one call of the natural prior at 256."""
    sized = next(s.others(((NETWORK_SIDE, NETWORK_SIDE),)), s) if network else s
    op, numbers = sized.operator, {}
    x = sized.pictures(count=1).float()
    y = torch.zeros(1, *sized.out, device=s.device)
    numbers["A_ms"] = sized.milliseconds(lambda: quietly(op.A, x))
    parts = [f"A {numbers['A_ms']:.2g} ms"]
    if op.linear or op.differentiable:
        name = "A^T" if op.linear else "J^T v"
        back = (lambda: quietly(op.A_adjoint, y)) if op.linear else (lambda: op.A_vjp(x, y))
        numbers["A_adjoint_ms"] = sized.milliseconds(back)
        parts.append(f"{name} {numbers['A_adjoint_ms']:.2g} ms")
    text = f"{', '.join(parts)} at {by(sized.shape)}"
    if network:
        both = sum(numbers.values())
        numbers["network_ms"] = call = network_call(s)
        numbers["share"] = both / call
        return passed(f"{text}: {both / call:.2%} of one network call at 256x256 ({call:.0f} ms)", **numbers)
    return passed(f"{text} (--cost: beside a network call)", **numbers)


def quietly(call: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return call(x)


def network_call(s: Subject) -> float:
    """Milliseconds of one call of the shipped prior's network on 256 x 256, in the precision that restore takes."""
    from invdiff.machine.device import autocast
    from invdiff.priors.network import NetworkPrior
    from invdiff.restoration.api import resolve_prior

    prior = resolve_prior("natural", s.device.type, "auto")
    assert isinstance(prior, NetworkPrior)
    x = torch.zeros(1, prior.channels or 3, NETWORK_SIDE, NETWORK_SIDE, device=prior.device)
    t = torch.full((1,), 50.0, device=prior.device)
    with torch.no_grad(), autocast(prior.device, prior.precision):
        return s.milliseconds(lambda: prior.network(x, t), 3)


def solvers(s: Subject) -> Line:
    """Which solvers take the operator, and what the others need."""
    from invdiff.solvers import REGISTRY

    able: list[str] = []
    unable: dict[str, list[str]] = {}
    for name, cls in REGISTRY.items():
        try:
            unmet = cls().unmet(s.operator)
        except InvdiffError:
            continue
        if unmet:
            unable.setdefault(" and ".join(unmet), []).append(name)
        else:
            able.append(name)
    others = "".join(f"; not {', '.join(names)}: need {what}" for what, names in unable.items())
    if not able:
        return failed(f"none{others}", "a linear or differentiable operator opens most of them")
    return passed(f"{', '.join(able)}{others}", able=able, unable=unable)
