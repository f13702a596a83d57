"""Diffusion priors: E[x_0 | x_0 + sigma n] from a trained network, from deepinv, or in closed form."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invdiff.priors.base import Prior
    from invdiff.priors.bridge import DeepinvPrior
    from invdiff.priors.export import write_folder
    from invdiff.priors.gaussian import GaussianPrior
    from invdiff.priors.loading import describe_checkpoint, load_prior, open_checkpoint, shipped
    from invdiff.priors.mixture import GaussianMixturePrior
    from invdiff.priors.network import NetworkPrior
    from invdiff.priors.verify import verify_prior

_HOMES = {
    "Prior": "base",
    "NetworkPrior": "network",
    "GaussianPrior": "gaussian",
    "GaussianMixturePrior": "mixture",
    "DeepinvPrior": "bridge",
    "load_prior": "loading",
    "shipped": "loading",
    "describe_checkpoint": "loading",
    "open_checkpoint": "loading",
    "write_folder": "export",
    "verify_prior": "verify",
}
__all__ = [
    "DeepinvPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "NetworkPrior",
    "Prior",
    "describe_checkpoint",
    "load_prior",
    "open_checkpoint",
    "shipped",
    "verify_prior",
    "write_folder",
]


def __getattr__(name: str) -> Any:
    # torch is imported by the first name that is used, not by `import invdiff`.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
