"""Forward operators, one physics per file, found by name.

    invdiff.operators.get("gaussian_blur", sigma=2)      invdiff.operators.get("inpaint:box=16x16")
    invdiff.operators.GaussianBlur(sigma=2)              invdiff.operators.Linear(matrix)

Importing this package imports no physics and no torch: names are looked up when first asked for.
"""

if __name__ == "operators":
    raise ImportError("this folder is not a package of its own: write `import invdiff.operators`")

from typing import TYPE_CHECKING, Any, cast

from invdiff.errors import UsageError
from invdiff.parameters import build, declarations, parse_spec
from invdiff.registry import Registry

if TYPE_CHECKING:
    from invdiff.operator import Operator

_BUILT_IN = {
    "identity": "invdiff.operators.identity:Identity",
    "gaussian_blur": "invdiff.operators.blur:GaussianBlur",
    "uniform_blur": "invdiff.operators.blur:UniformBlur",
    "motion_blur": "invdiff.operators.motion:MotionBlur",
    "kernel_blur": "invdiff.operators.kernel_blur:KernelBlur",
    "downsample": "invdiff.operators.downsample:Downsample",
    "inpaint": "invdiff.operators.inpaint:Inpaint",
    "random_subsample": "invdiff.operators.subsample:RandomSubsample",
    "grayscale": "invdiff.operators.grayscale:Grayscale",
    "linear": "invdiff.operators.linear:Linear",
    "phase_retrieval": "invdiff.operators.phase_retrieval:PhaseRetrieval",
    "saturate": "invdiff.operators.tone:Saturate",
    "gamma": "invdiff.operators.tone:Gamma",
    "quantize": "invdiff.operators.tone:Quantize",
    "jpeg": "invdiff.operators.jpeg:JPEG",
}
_CLASSES = {target.rpartition(":")[2]: name for name, target in _BUILT_IN.items()}

REGISTRY = Registry("operator", _BUILT_IN, group="invdiff.operators")

__all__ = ["REGISTRY", "get", "names", "register"]


def get(operator: "str | Operator", **parameters: Any) -> "Operator":
    """The operator of a name, a spec such as "gaussian_blur:sigma=2", or an Operator (given back as it is).

    parameters: values that are added to those of the spec (or of the Operator), and win over them.
    Raises UsageError, with the closest match, for an unknown name or parameter, and for a value out of range.
    """
    if isinstance(operator, str):
        name, values = parse_spec(operator)
        return cast("Operator", build(REGISTRY[name], name, {**values, **parameters}))
    from invdiff.operator import Operator

    if not isinstance(operator, Operator):
        raise UsageError(
            f"operator={operator!r} is neither a name nor an Operator; write a spec such as 'gaussian_blur:sigma=2', "
            "or wrap a deepinv Physics with invdiff.bridge.as_operator"
        )
    if not parameters:
        return operator
    current = {d.name: getattr(operator, d.name) for d in declarations(type(operator))}
    return cast("Operator", build(type(operator), operator.name, {**current, **parameters}))


def names() -> list[str]:
    """The names of all operators, installed plug-ins included, sorted."""
    return list(REGISTRY)


def register(name: str, target: str) -> None:
    """Add an operator class: target is "module:attribute". Raises UsageError if the name belongs to another target."""
    REGISTRY.add(name, target)


def __getattr__(attribute: str) -> Any:
    if attribute in _CLASSES:
        return REGISTRY[_CLASSES[attribute]]
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}; classes: {', '.join(sorted(_CLASSES))}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_CLASSES])
