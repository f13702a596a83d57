"""Why an adjoint is wrong, from inner products alone: A itself need not be differentiable.

A^T is right if <A x, y> = <x, B y> for all x and y, with B = A_adjoint. If B = f P A^T Q instead, with P and Q maps that
undo themselves (mirrors, a transpose, a conjugation), then <A x, y> = <x, P B Q y> / f: each guess can be tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import torch

from .subject import Subject, fit, inner

Map = Callable[[torch.Tensor], torch.Tensor]
PAIRS = 6
"""Random pairs (x, y): that a guess fits all of them to rounding by chance is out of the question."""
MARGINS = (1, 2, 3, 4, 6, 8, 12, 16)


def mirrored(*axes: int) -> Map:
    return lambda x: x.flip(axes)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.mT


def interleaved(x: torch.Tensor) -> torch.Tensor:
    """The conjugate of complex numbers whose parts are neighbouring channels."""
    return x * _signs(x, lambda k, n: k % 2 == 1)


def halves(x: torch.Tensor) -> torch.Tensor:
    """The conjugate of complex numbers whose real parts come first, then all imaginary ones."""
    return x * _signs(x, lambda k, n: k >= n // 2)


def last_axis(x: torch.Tensor) -> torch.Tensor:
    """The conjugate of complex numbers whose parts lie along the last axis."""
    return x * torch.tensor([1.0, -1.0], dtype=x.dtype, device=x.device)


def _signs(x: torch.Tensor, negative: Callable[[int, int], bool]) -> torch.Tensor:
    channels = x.shape[1]
    signs = [-1.0 if negative(k, channels) else 1.0 for k in range(channels)]
    return torch.tensor(signs, dtype=x.dtype, device=x.device).reshape(1, -1, *[1] * (x.ndim - 2))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def guesses(s: Subject) -> Iterator[tuple[Map, Map, str]]:
    """(P, Q, in words)."""
    planes = len(s.shape) >= 3 and len(s.out) >= 3
    if planes:
        yield (
            mirrored(-2, -1),
            mirrored(-2, -1),
            ("it is the adjoint of the mirrored kernel: convolution where correlation is meant, flip the kernel"),
        )
        yield mirrored(-2), mirrored(-2), "it is the adjoint of A with the kernel upside down: flip its rows"
        yield (
            mirrored(-1),
            mirrored(-1),
            "it is the adjoint of A with the kernel mirrored left to right: flip its columns",
        )
    square = {"x": len(s.shape) >= 2 and s.shape[-1] == s.shape[-2], "y": len(s.out) >= 2 and s.out[-1] == s.out[-2]}
    exchanged = "rows and columns are exchanged (H and W)"
    if square["x"]:
        yield transposed, same, f"{exchanged} in its answer"
    if square["y"]:
        yield same, transposed, f"{exchanged} in its input"
    if square["x"] and square["y"]:
        yield transposed, transposed, f"{exchanged} in its kernel or weights"
    conjugate = "a conjugate is missing: the adjoint of a complex map is the conjugate transpose"
    for P in _conjugations(s.shape):
        yield P, same, f"{conjugate} (the imaginary part of the answer has the wrong sign)"
    for Q in _conjugations(s.out):
        for P in (same, *_conjugations(s.shape)):
            yield P, Q, conjugate
    if planes:
        for axis, name in ((-2, "rows"), (-1, "columns")):
            yield mirrored(axis), same, f"its answer is mirrored: the {name} run backwards"
    if len(s.shape) >= 3 and s.shape[0] > 1:
        yield mirrored(1), same, "its answer has the channels in the opposite order"


def _conjugations(shape: tuple[int, ...]) -> list[Map]:
    maps: list[Map] = []
    if len(shape) >= 2 and shape[0] % 2 == 0:
        maps += [interleaved] if shape[0] == 2 else [interleaved, halves]
    if len(shape) >= 2 and shape[-1] == 2:
        maps.append(last_axis)
    return maps


def why_adjoint_differs(s: Subject) -> str:
    """The likely cause, or nothing if no guess fits."""
    x, y = s.images(11, PAIRS), s.measurements(12, PAIRS)
    Ax = s.A(x)
    allowed = 1e4 * s.tolerance

    def tried(
        P: Map = same, Q: Map = same, x: torch.Tensor = x, y: torch.Tensor = y, Ax: torch.Tensor = Ax
    ) -> float | None:
        """The factor f if B = f P A^T Q on these pairs, else None."""
        ours, theirs = inner(x, P(s.A_adjoint(Q(y)))), inner(Ax, y)
        factor, rest = fit(ours, theirs)
        # The inner products of random vectors are small differences of large terms: 1 / sqrt(n) of what they could be.
        return factor if rest <= allowed * math.sqrt(y[0].numel()) and factor else None

    if not float(s.A_adjoint(y).norm()):
        return "it answers zero, always"
    if (factor := tried()) is not None:
        return f"adjoint differs by a factor {number(factor)}: {_scale_cause(s, factor)}"
    for P, Q, words in guesses(s):
        if (factor := tried(P, Q)) is not None:
            return words if abs(factor - 1) <= allowed else f"{words}; and it is {number(factor)} times too large"
    if len(s.shape) == 3 and 1 < s.shape[0] <= 8:
        factors = [tried(x=part, Ax=s.A(part)) for part in (_only(x, k) for k in range(s.shape[0]))]
        if None not in factors:
            return (
                f"each channel has a factor of its own ({', '.join(number(f) for f in factors if f)}): weights of the \
channels, squared or left out?"
            )
    return _near_the_border(s, tried, x, y)


def _near_the_border(s: Subject, tried: Callable[..., float | None], x: torch.Tensor, y: torch.Tensor) -> str:
    """Whether all is well for images, or measurements, that vanish near the border."""
    for which, z in (("x", x), ("y", y)):
        if z.ndim < 3:
            continue
        for margin in MARGINS:
            if 4 * margin > min(z.shape[-2:]):
                break
            inside = torch.zeros_like(z)
            middle = (..., slice(margin, -margin), slice(margin, -margin))
            inside[middle] = z[middle]
            pair = {"x": inside, "Ax": s.A(inside)} if which == "x" else {"y": inside}
            factor = tried(**pair)
            if factor is not None and abs(factor - 1) <= 1e-3:
                return (
                    f"boundary: it is right for every {which} that vanishes within {margin} px of the border, and wrong "
                    "there. The adjoint of padding adds what lies outside back to where it came from"
                )
    return ""


def _only(x: torch.Tensor, channel: int) -> torch.Tensor:
    part = torch.zeros_like(x)
    part[:, channel] = x[:, channel]
    return part


def _scale_cause(s: Subject, factor: float) -> str:
    """What a constant factor may come from, by the sizes at hand."""
    pixels, measured = (math.prod(shape[-2:]) for shape in (s.shape, s.out))
    f = abs(factor)

    def near(value: float) -> bool:
        return abs(f - value) <= 1e-3 * value

    if factor < 0 and near(1):
        return "the sign is wrong"
    if pixels != measured and (near(measured / pixels) or near(pixels / measured)):
        blocks = math.sqrt(max(pixels, measured) / min(pixels, measured))
        return (
            f"a missing scale in downsampling? There is one y pixel for every {number(pixels / measured)} x pixels"
            + (f", so the block is {blocks:g} x {blocks:g}" if blocks == int(blocks) else "")
        )
    if any(near(size) or near(1 / size) for n in {pixels, measured} for size in (n, math.sqrt(n)) if n > 1):
        return f'the FFT is not unitary? That is a power of the {pixels} pixels: use norm="ortho" both ways'
    return "a missing scale"


def number(value: float) -> str:
    """1/4 rather than 0.25, where a fraction of small numbers is exact to six digits."""
    simple = Fraction(value).limit_denominator(64)
    if simple and simple.denominator > 1 and abs(float(simple) / value - 1) < 1e-6:
        return f"{simple.numerator}/{simple.denominator}"
    return f"{value:.6g}"
