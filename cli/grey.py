"""A grey measurement for a prior of colour images: repeated to three channels, where that is the same problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from invdiff.noise import NoiseModel
    from invdiff.operator.contract import Operator


def repeat_grey(grey: torch.Tensor, operator: Operator, noise: NoiseModel) -> tuple[torch.Tensor, NoiseModel]:
    """A grey image's measurement (c, h, w) as one of a colour image, (3 c, h, w), and the noise to solve it with: c = 1, or 2
    where y holds complex numbers.

    Three copies of one noise are not three measurements: with sqrt(3) sigma_y for each channel, the likelihood of a
    grey x is that of the grey measurement, 3 |y - A x|^2 / (2 * 3 sigma_y^2); counts have three times the gain. Raises
    UsageError if A does not commute with repeating, as for a mask of its own in each channel: the copies would then be
    no measurement.
    """
    import torch

    from invdiff.errors import UsageError

    def repeated(values: torch.Tensor) -> torch.Tensor:
        return values.repeat(*[1] * (values.ndim - 3), 3, 1, 1)

    refusal = UsageError(
        f"{operator} does not treat the channels of an image alike, so a grey measurement says nothing about a colour "
        "image: convert the picture to colour before it is measured, or give a grey prior with --prior"
    )
    shape = operator.image_shape(tuple(grey.shape))
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        once = operator.A(x)
        measured, expected = operator.A(repeated(x)), repeated(once)
        masks = [operator.observed((channels, *shape[1:])) for channels in (3, 1)]
    except UsageError as error:
        raise refusal from error
    if measured.shape != expected.shape or not torch.allclose(measured, expected, atol=1e-5):
        raise refusal
    seen, wanted = (
        torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)
        for y, mask in zip((expected, once), masks, strict=True)
    )
    if not torch.equal(seen, repeated(wanted)):
        raise refusal
    return repeated(grey), noise.tempered(3)
