"""A grey measurement for a prior of colour images: repeated to three channels, where that is the same problem."""

from __future__ import annotations

import torch

from invdiff.errors import UsageError
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem


def is_grey_for(problem: Problem, prior: Prior) -> bool:
    """Whether the image of a problem is grey, and the prior's images are in colour."""
    return prior.channels == 3 and problem.y.ndim == 4 and len(problem.image_shape) == 3 and problem.image_shape[0] == 1


def repeated(problem: Problem) -> Problem:
    """The problem of a colour image, whose measurement is the grey image's three times: y (B, 3 c, h, w) for (B, c, h, w),
    with c = 1, or 2 where y holds complex numbers.

    Three copies of one noise are not three measurements: with sqrt(3) sigma_y for each channel, the likelihood of a grey x is
    that of the grey measurement, 3 |y - A x|^2 / (2 * 3 sigma_y^2); counts have three times the gain. Raises UsageError if A
    does not commute with repeating, as for a mask of its own in each channel: the copies would then be no measurement.
    """
    operator, shape = problem.operator, problem.image_shape

    def three(values: torch.Tensor) -> torch.Tensor:
        return values.repeat(1, 3, 1, 1)

    refusal = UsageError(
        f"{operator} does not treat the channels of an image alike, so a grey measurement says nothing about a colour "
        "image: convert the picture to colour before it is measured, or give a grey prior with --prior"
    )
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(problem.y)
    try:
        once = operator.A(x)
        measured, expected = operator.A(three(x)), three(once)
        masks = [operator.observed((channels, *shape[1:])) for channels in (3, 1)]
    except UsageError as error:
        raise refusal from error
    if measured.shape != expected.shape or not torch.allclose(measured, expected, atol=1e-5):
        raise refusal
    seen, wanted = (
        torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)
        for y, mask in zip((expected, once), masks, strict=True)
    )
    if not torch.equal(seen, three(wanted)):
        raise refusal
    return Problem.of(operator, three(problem.y), problem.noise_model.tempered(3), (3, *shape[1:]))
