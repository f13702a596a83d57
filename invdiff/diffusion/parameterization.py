"""The forms in which a diffusion network may answer, and the conversion of each into any other.

With x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, in the network's units:

    epsilon         x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar)
    sample          x_0
    v_prediction    v = sqrt(abar) eps - sqrt(1 - abar) x_0
                    x_0 = sqrt(abar) x_t - sqrt(1 - abar) v,  eps = sqrt(1 - abar) x_t + sqrt(abar) v
    score           score = grad log q(x_t) = -eps / sqrt(1 - abar)
    mean            mu = (x_t - beta / sqrt(1 - abar) eps) / sqrt(alpha), the mean of q(x_{t-1} | x_t, x_0)
    edm             F with D(x; sigma) = c_skip x + c_out F(c_in x), x = x_t / sqrt(abar), for sigma_data = 1

with alpha = 1 - beta = abar_t / abar_{t-1}; mu is also a x_0 + b x_t (Ho et al. 2020, eq. 7 and 11; a and b:
`Schedule.posterior_coefficients`). In EDM's preconditioning (Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1)

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2),  c_out = sigma sigma_data c_in,  c_in = 1 / sqrt(sigma^2 + sigma_data^2)

and with sigma^2 = (1 - abar) / abar, sigma_data = 1 they are c_skip = abar, c_out = sqrt(1 - abar), c_in = sqrt(abar). So the
network sees c_in x = x_t, answers x_0 = sqrt(abar) x_t + sqrt(1 - abar) F, and F = -v: that network is a v network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.errors import UsageError, unknown

if TYPE_CHECKING:
    import torch

PREDICTIONS = ("epsilon", "sample", "v_prediction")
"""The outputs that a prior's network may have, by diffusers' names."""

FORMS = (*PREDICTIONS, "score", "mean", "edm")
"""The forms that `convert` takes and gives."""


def check_prediction(name: str) -> str:
    """The name itself, or UsageError if no network output is called that."""
    if name not in PREDICTIONS:
        raise unknown("prediction type", name, PREDICTIONS)
    return name


def to_clean(prediction: str, output: torch.Tensor, x_t: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """E[x_0 | x_t] from a network's output; abar a float or broadcastable to x_t."""
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    if check_prediction(prediction) == "epsilon":
        return (x_t - noise * output) / signal
    if prediction == "v_prediction":
        return signal * x_t - noise * output
    return output


def to_epsilon(clean: torch.Tensor, x_t: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar)."""
    return (x_t - abar**0.5 * clean) / (1 - abar) ** 0.5


def to_score(epsilon: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """grad log q(x_t) = -eps / sqrt(1 - abar)."""
    return -epsilon / (1 - abar) ** 0.5


def to_velocity(clean: torch.Tensor, epsilon: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0  (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512)."""
    return abar**0.5 * epsilon - (1 - abar) ** 0.5 * clean


def convert(
    source: str,
    target: str,
    value: torch.Tensor,
    x_t: torch.Tensor,
    abar: torch.Tensor | float,
    alpha: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """The answer `value` to x_t, given in the form `source`, in the form `target`; both of FORMS.

    value, x_t: one shape. abar = abar_t and alpha = abar_t / abar_{t-1}: floats in (0, 1), or broadcastable to x_t; alpha is
    needed by "mean" alone. Raises UsageError for an unknown form, and for "mean" without alpha.
    """
    for form in (source, target):
        if form not in FORMS:
            raise unknown("form of a network's answer", form, FORMS)
    if source == target:
        return value
    if alpha is None:
        if "mean" in (source, target):
            raise UsageError("the mean of the reverse step needs alpha_t as well; pass alpha=schedule.alphas[t]")
        alpha = 1.0  # no other form depends on it
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    if source in ("v_prediction", "edm"):
        velocity = value if source == "v_prediction" else -value
        clean, epsilon = to_clean("v_prediction", velocity, x_t, abar), noise * x_t + signal * velocity
    elif source == "sample":
        clean, epsilon = value, to_epsilon(value, x_t, abar)
    else:
        if source == "mean":
            value = (x_t - alpha**0.5 * value) * noise / (1 - alpha)
        epsilon = -noise * value if source == "score" else value
        clean = to_clean("epsilon", epsilon, x_t, abar)
    if target == "mean":
        return (x_t - (1 - alpha) / noise * epsilon) / alpha**0.5
    velocity = to_velocity(clean, epsilon, abar)
    answers = {"sample": clean, "epsilon": epsilon, "v_prediction": velocity, "edm": -velocity}
    return to_score(epsilon, abar) if target == "score" else answers[target]
