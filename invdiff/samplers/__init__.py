"""Samplers: how a prior alone becomes pictures. `get(name, **settings)`, `names()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invdiff.errors import UsageError
from invdiff.specs.parameters import build, parse_spec
from invdiff.specs.registry import Registry

if TYPE_CHECKING:
    from invdiff.samplers.sampler import Sampler

REGISTRY = Registry(
    "sampler",
    {
        "ancestral": "invdiff.samplers.ancestral:Ancestral",
        "ddim": "invdiff.samplers.ddim:DDIMSampler",
        "sde": "invdiff.samplers.euler:ReverseSDE",
        "ode": "invdiff.samplers.euler:ProbabilityFlow",
        "heun": "invdiff.samplers.heun:Heun",
        "dpmpp": "invdiff.samplers.dpmpp:DPMSolverPP",
    },
)
DEFAULT = "dpmpp"  # the fewest calls to a converged sample: docs/sampling.md


def names() -> list[str]:
    """Names of all samplers, sorted."""
    return list(REGISTRY)


def get(sampler: str | Sampler | None = None, **settings: Any) -> Sampler:
    """A sampler from its name or spec ("ddim:eta=0.5"), or a Sampler as it is; None is "ddim" if eta is set, otherwise
    the default one.

    Raises UsageError for an unknown name, a setting the sampler does not have, one given twice or out of range.
    """
    from invdiff.samplers.sampler import Sampler

    if isinstance(sampler, Sampler):
        own = {key: value for key, value in sampler.settings().items() if key != "name"}
        return build(type(sampler), sampler.name, {**own, **settings}) if settings else sampler
    name, values = parse_spec(sampler if sampler is not None else "ddim" if "eta" in settings else DEFAULT)
    if twice := sorted(values.keys() & settings.keys()):
        raise UsageError(f"{twice[0]} is given both in {sampler!r} and on its own; give it once")
    cls = REGISTRY[name]
    if "eta" in settings and not hasattr(cls, "eta"):
        raise UsageError(f"eta is a setting of ddim, not of {name}; leave it out, or choose ddim")
    return build(cls, name, {**values, **settings})
