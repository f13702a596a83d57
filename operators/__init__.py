"""Forward operators, one physics per file, found by name.

    invdiff.operators.get("gaussian_blur", sigma=2)      invdiff.operators.get("inpaint:box=16x16")
    invdiff.operators.GaussianBlur(sigma=2)              invdiff.operators.Linear(matrix)
    invdiff.operators.get("my_op.py:MyOp(gain=2)")       # runs that file
    invdiff.operators.get("gaussian_blur:sigma=1 | downsample:factor=4")          one after the other, left to right

What is built in is registered as a plug-in is: a name and a "module:Class", which the package's metadata holds for a plug-in
(entry-point group `invdiff.operators`) and the table below for ours, so that a checkout needs no installation. From there
on nothing tells them apart: the class's declared parameters give its specs, help, range checks and records.

Importing this package imports no physics and no torch: names are looked up when first asked for.
"""

if __name__ == "operators":
    raise ImportError("this folder is not a package of its own: write `import invdiff.operators`")

from typing import TYPE_CHECKING, Any, cast

from invdiff.errors import UsageError
from invdiff.operator.from_file import check_class, is_file_spec, load_class
from invdiff.specs.parameters import build, declarations, parse_spec, split_links
from invdiff.specs.registry import Registry, import_target

if TYPE_CHECKING:
    from invdiff.operator.contract import Operator

_BUILT_IN = {
    "identity": "invdiff.operators.identity:Identity",
    "gaussian_blur": "invdiff.operators.blur:GaussianBlur",
    "anisotropic_blur": "invdiff.operators.blur:AnisotropicBlur",
    "uniform_blur": "invdiff.operators.blur:UniformBlur",
    "defocus_blur": "invdiff.operators.blur:DefocusBlur",
    "motion_blur": "invdiff.operators.motion:MotionBlur",
    "kernel_blur": "invdiff.operators.kernel_blur:KernelBlur",
    "varying_blur": "invdiff.operators.varying_blur:VaryingBlur",
    "downsample": "invdiff.operators.downsample:Downsample",
    "inpaint": "invdiff.operators.inpaint:Inpaint",
    "random_subsample": "invdiff.operators.subsample:RandomSubsample",
    "grayscale": "invdiff.operators.grayscale:Grayscale",
    "spectral_mixing": "invdiff.operators.mixing:SpectralMixing",
    "demosaic": "invdiff.operators.demosaic:Demosaic",
    "pansharpen": "invdiff.operators.pansharpen:Pansharpen",
    "linear": "invdiff.operators.linear:Linear",
    "compressed_sensing": "invdiff.operators.compressed_sensing:CompressedSensing",
    "fourier_subsample": "invdiff.operators.mri:FourierSubsample",
    "mri_multicoil": "invdiff.operators.mri:MultiCoil",
    "tomography": "invdiff.operators.tomography:Tomography",
    "phase_retrieval": "invdiff.operators.phase_retrieval:PhaseRetrieval",
    "saturate": "invdiff.operators.tone:Saturate",
    "gamma": "invdiff.operators.tone:Gamma",
    "quantize": "invdiff.operators.tone:Quantize",
    "jpeg": "invdiff.operators.jpeg:JPEG",
}
_CLASSES = {target.rpartition(":")[2]: name for name, target in _BUILT_IN.items()}

REGISTRY = Registry("operator", _BUILT_IN, group="invdiff.operators", check=check_class)

__all__ = ["REGISTRY", "find", "get", "names", "register", "resolve_operator"]


def get(operator: "str | Operator", **parameters: Any) -> "Operator":
    """The operator of a name, a spec such as "gaussian_blur:sigma=2" or "my_op.py:MyOp(gain=2)" (which runs that file), a
    chain of specs "a | b" that act from left to right, or an Operator (given back as it is).

    parameters: values that are added to those of the spec (or of the Operator), and win over them.
    Raises UsageError, with the closest match, for an unknown name or parameter, and for a value out of range;
    PluginError if a plug-in's code cannot be imported.
    """
    if isinstance(operator, str) and len(links := split_links(operator)) > 1:
        return _chain(operator, links, parameters)
    if isinstance(operator, str):
        cls, values = find(operator)
        return cast("Operator", build(cls, cls.name, {**values, **parameters}))
    from invdiff.operator.contract import Operator

    if not isinstance(operator, Operator):
        raise UsageError(
            f"operator={operator!r} is neither a name nor an Operator; write a spec such as 'gaussian_blur:sigma=2', "
            "or wrap a deepinv Physics with invdiff.operator.deepinv_physics.as_operator"
        )
    if not parameters:
        return operator
    current = {d.name: getattr(operator, d.name) for d in declarations(type(operator))}
    return cast("Operator", build(type(operator), operator.name, {**current, **parameters}))


def resolve_operator(operator: Any) -> "Operator":
    """An Operator from an Operator, a name or spec, or a deepinv Physics. Raises UsageError for anything else."""
    if isinstance(operator, str):
        return get(operator)
    from invdiff.operator.deepinv_physics import as_operator

    return as_operator(operator)


def find(spec: str) -> "tuple[type[Operator], dict[str, str]]":
    """The class that a spec names, and the parameters it gives, as text. Raises as `get`."""
    if is_file_spec(spec):
        return load_class(spec)
    name, values = parse_spec(spec)
    return REGISTRY[name], values


def _chain(spec: str, links: list[str], parameters: dict[str, Any]) -> "Operator":
    if parameters:
        given = ",".join(f"{key}={value}" for key, value in parameters.items())
        raise UsageError(
            f"{given} cannot be added to the chain {spec!r}: write it into one link, as in {links[0]}:{given}"
        )
    if "" in links:
        raise UsageError(f"link {links.index('') + 1} of {spec!r} is empty; write NAME:key=value | NAME:key=value")
    first, *following = map(get, links)
    return first.then(*following)


def names() -> list[str]:
    """The names of all operators, installed plug-ins included, sorted."""
    return list(REGISTRY)


def register(name: str, target: str) -> None:
    """Add an operator class: target is "module:attribute". Raises UsageError if the name belongs to another target."""
    REGISTRY.add(name, target)


def __getattr__(attribute: str) -> Any:
    if attribute in _CLASSES:
        return import_target(_BUILT_IN[_CLASSES[attribute]])
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}; classes: {', '.join(sorted(_CLASSES))}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_CLASSES])
