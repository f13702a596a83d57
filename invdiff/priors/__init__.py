"""Diffusion priors: E[x_0 | x_0 + sigma n] from a trained network, from deepinv, or in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.specs.faces import face

if TYPE_CHECKING:
    from invdiff.priors.deepinv_denoiser import DeepinvPrior
    from invdiff.priors.gaussian import GaussianPrior
    from invdiff.priors.mixture import GaussianMixturePrior
    from invdiff.priors.network import NetworkPrior
    from invdiff.priors.prior import Prior
    from invdiff.priors.stored.export import write_folder
    from invdiff.priors.stored.loading import describe_checkpoint, load_prior, open_checkpoint, shipped
    from invdiff.priors.stored.verify import verify_prior

__getattr__, __dir__ = face(
    __name__,
    {
        "DeepinvPrior": "invdiff.priors.deepinv_denoiser", "GaussianMixturePrior": "invdiff.priors.mixture",
        "GaussianPrior": "invdiff.priors.gaussian", "NetworkPrior": "invdiff.priors.network",
        "Prior": "invdiff.priors.prior", "describe_checkpoint": "invdiff.priors.stored.loading",
        "load_prior": "invdiff.priors.stored.loading", "open_checkpoint": "invdiff.priors.stored.loading",
        "shipped": "invdiff.priors.stored.loading", "verify_prior": "invdiff.priors.stored.verify",
        "write_folder": "invdiff.priors.stored.export",
    },
)  # fmt: skip
__all__ = [
    "DeepinvPrior", "GaussianMixturePrior", "GaussianPrior", "NetworkPrior", "Prior", "describe_checkpoint", "load_prior",
    "open_checkpoint", "shipped", "verify_prior", "write_folder",
]  # fmt: skip
