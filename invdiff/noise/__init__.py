"""Noise models: how a measurement y scatters around z = A x. `noise_model("poisson:gain=0.02")`, `names()`, `estimate(y, A)`.

    model                spec                      variance of an entry    log-likelihood, score    solvers see
    gaussian             sigma=0.05                sigma^2                 exact                    itself
    gaussian_channels    sigma=0.02x0.05x0.1       sigma_c^2               exact                    itself, whitened
    gaussian_map         sigma=map.npy             sigma_i^2               exact                    itself, whitened
    gaussian_correlated  sigma=0.05,kernel=k.npy   sigma^2                 exact                    itself, whitened
    poisson              gain=0.02                 gain z                  exact                    N(0, gain z), whitened
    poisson_gaussian     gain=0.02,sigma=0.01      gain z + sigma^2        of a moved Poisson       N(0, ..), whitened
    laplace              scale=0.05                2 scale^2               exact                    N(0, 2 scale^2)
    uniform              width=0.1                 width^2 / 12            exact, Gaussian's        N(0, width^2 / 12)
    quantization         step=1/15                 step^2 / 12             exact, Gaussian's        N(0, step^2 / 12)
    salt_and_pepper      p=0.1,sigma=1/255         sigma^2 of the others   of the mixture           0 and 1 left out

`Problem.log_likelihood` and `likelihood_score` are those of the model; `Problem.whitened` is what solvers see: Gaussian
noise of one size (invdiff/problem/whitening.py).
"""

from __future__ import annotations

import re
from typing import Any

from invdiff.errors import UsageError
from invdiff.specs.parameters import build, fraction, parse_spec
from invdiff.specs.registry import Registry

from .correlated import CorrelatedGaussian
from .counting import Poisson, PoissonGaussian
from .estimation import NoiseEstimate, estimate
from .gaussian import Gaussian, GaussianChannels, GaussianMap
from .impulse import SaltAndPepper
from .laplace import Laplace
from .model import NoiseModel
from .uniform import Quantization, Uniform

REGISTRY = Registry(
    "noise model",
    {
        cls.name: f"invdiff.noise:{cls.__name__}"
        for cls in (
            Gaussian, GaussianChannels, GaussianMap, CorrelatedGaussian, Poisson, PoissonGaussian, Laplace, Uniform,
            Quantization, SaltAndPepper,
        )
    },
)  # fmt: skip

__all__ = [
    "REGISTRY", "CorrelatedGaussian", "Gaussian", "GaussianChannels", "GaussianMap", "Laplace", "NoiseEstimate",
    "NoiseModel", "Poisson", "PoissonGaussian", "Quantization", "SaltAndPepper", "Uniform", "check_noise", "estimate",
    "names", "noise_model",
]  # fmt: skip


def names() -> list[str]:
    """Names of all noise models, sorted."""
    return list(REGISTRY)


def check_noise(noise: Any, *, zero: bool = False) -> float:
    """sigma_y as a float in [0, 1] units, from a number or text such as "12.75/255".

    Raises UsageError unless it is more than 0 (zero=True: or equal to it, for simulating) and finite.
    """
    try:
        value = fraction(noise)
    except (TypeError, ValueError):
        raise UsageError(f"noise {noise!r} is not a number; write 0.05 or 12.75/255 (images are in [0, 1])") from None
    if zero and value == 0:
        return 0.0
    if not 0 < value < float("inf"):
        raise UsageError(
            f"noise must be more than 0, got {noise}; for a measurement that looks free of noise give its rounding "
            "error, e.g. 0.3/255 for an 8-bit file"
        )
    return value


def noise_model(noise: Any, *, zero: bool = False) -> NoiseModel:
    """A NoiseModel from itself, from sigma_y (a number, or text such as "12.75/255"), or from a spec "poisson:gain=0.02".

    Raises UsageError for an unknown model or parameter, a value out of range, and sigma_y = 0 unless zero=True.
    """
    if isinstance(noise, NoiseModel):
        model = noise
    elif isinstance(noise, str) and _is_spec(noise):
        name, values = parse_spec(noise)
        if name not in REGISTRY:
            raise UsageError(
                f"noise {noise!r} is neither a number nor a noise model; write 0.05 or 12.75/255 (images are in [0, 1]), "
                f"or one of {', '.join(names())}, as in poisson:gain=0.02"
            )
        model = build(REGISTRY[name], name, REGISTRY[name].read(values))
    else:
        model = Gaussian(check_noise(noise, zero=zero))
    if isinstance(model, Gaussian):
        check_noise(model.sigma, zero=zero)
    return model


def _is_spec(text: str) -> bool:
    """Whether it begins with a name; nan and inf are numbers."""
    try:
        fraction(text)
    except ValueError:
        return re.match(r"\s*[A-Za-z_]", text) is not None
    return False
