"""Curves that act on each value alone: clipping highlights, a gamma curve, and rounding to a few levels.

Their proximal step has one unknown for each value, so it is solved exactly, whatever the curve's derivative does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator import Operator, Shape
from invdiff.specs.parameters import parameter, whole

from .tools.shapes import channels_and_size, require_batch
from .tools.straight_through import straight_through

SATURATED = 0.9
"""A measured value above it is taken as clipped, in a first guess: noise may have lowered it."""
PIECES, BISECTIONS = 16, 45
"""Points of a search, and halvings of an interval between them: to the last bits of float64."""
TOE = 1e-3
"""Below it the slope of a gamma curve is the slope of its chord: at 0 it is zero or has no bound."""


@dataclass(frozen=True, eq=False)
class Tone(Operator):
    """y = c(x), value by value: (C, H, W) -> (C, H, W). A subclass gives `_curve`, `first_guess` and `_candidates`."""

    linear: ClassVar[bool] = False
    family: ClassVar[str] = "tone"

    def _curve(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _candidates(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> list[torch.Tensor]:
        """Points among which the proximal point is, value by value."""
        raise NotImplementedError

    def A(self, x: torch.Tensor) -> torch.Tensor:
        require_batch(self.name, x)
        return self._curve(x)

    def measurement_shape(self, shape: Shape) -> Shape:
        channels_and_size(self.name, shape)
        return shape

    def image_shape(self, shape: Shape) -> Shape:
        return self.measurement_shape(shape)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """The global minimum, value by value (a gamma curve: to the resolution of a search)."""
        best, least = z, gamma * (self._curve(z) - y) ** 2
        for x in self._candidates(z, y, gamma):
            cost = gamma * (self._curve(x) - y) ** 2 + (x - z) ** 2
            best, least = torch.where(cost < least, x, best), torch.minimum(cost, least)
        return best


@dataclass(frozen=True, eq=False)
class Saturate(Tone):
    """y = gain x, clipped to [0, 1]: a sensor whose highlights saturate (high dynamic range from one exposure).

    (C, H, W) -> (C, H, W). No derivative where it clips: what lies there is up to the prior.
    """

    name: ClassVar[str] = "saturate"
    family: ClassVar[str] = "saturation"

    gain: float = parameter(2.0, above=0, high=1000, help="exposure; what is brighter than 1 / gain is lost")

    def _curve(self, x: torch.Tensor) -> torch.Tensor:
        return (self.gain * x).clamp(0, 1)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """y / gain; halfway from 1 / gain to white where y is clipped."""
        lost = max(1 / self.gain, (1 / self.gain + 1) / 2)
        return torch.where(y > SATURATED, lost, y.clamp(0, 1) / self.gain)

    def _candidates(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> list[torch.Tensor]:
        top = 1 / self.gain
        between = (gamma * self.gain * y + z) / (gamma * self.gain**2 + 1)
        return [between.clamp(0, top), z.clamp(min=top), z.clamp(max=0)]


@dataclass(frozen=True, eq=False)
class Gamma(Tone):
    """y = x^exponent on [0, 1], and -|x|^exponent below 0: the curve of a display (2.2), or of an encoding (1 / 2.2).

    (C, H, W) -> (C, H, W). Within 0.001 of 0 derivatives are those of the chord, which neither vanish nor explode.
    """

    name: ClassVar[str] = "gamma"

    exponent: float = parameter(2.2, above=0, high=10, help="the exponent; 1 is the identity")

    def _curve(self, x: torch.Tensor) -> torch.Tensor:
        chord = x * x.abs().clamp(min=TOE) ** (self.exponent - 1)
        return straight_through(lambda x: x.sign() * x.abs() ** self.exponent, x, chord)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """The inverse curve of y between 0 and 1."""
        return y.clamp(0, 1) ** (1 / self.exponent)

    def _candidates(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> list[torch.Tensor]:
        # From z to where the curve is y the distance from z grows and the misfit falls, with more than one valley where the
        # curve is flat: the best of a few points first, then the root of the derivative around it.
        goal = y.sign() * y.abs() ** (1 / self.exponent)
        best, least = z, torch.full_like(z, torch.inf)
        for k in range(PIECES + 1):
            x = z + k / PIECES * (goal - z)
            cost = gamma * (self._curve(x) - y) ** 2 + (x - z) ** 2
            best, least = torch.where(cost < least, x, best), torch.minimum(cost, least)
        piece = (goal - z) / PIECES
        near, far = best - piece * (best != z), best + piece * (best != goal)
        for _ in range(BISECTIONS):
            x = (near + far) / 2
            slope = self.exponent * x.abs() ** (self.exponent - 1)
            down = (gamma * (self._curve(x) - y) * slope + x - z) * (z - goal) > 0
            near, far = torch.where(down, x, near), torch.where(down, far, x)
        return [best, (near + far) / 2]


@dataclass(frozen=True, eq=False)
class Quantize(Tone):
    """y = x clipped to [0, 1] and rounded to the nearest of 2^bits even levels, from 0 to 1.

    (C, H, W) -> (C, H, W). Derivatives are those of the clipped x: rounding counts as the identity.
    """

    name: ClassVar[str] = "quantize"

    bits: int = parameter(3, kind=whole, low=1, high=16, help="2^bits levels")

    @property
    def _steps(self) -> int:
        return 2**self.bits - 1

    def _curve(self, x: torch.Tensor) -> torch.Tensor:
        inside = x.clamp(0, 1)
        return straight_through(lambda inside: (inside * self._steps).round() / self._steps, inside, inside)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """y between 0 and 1."""
        return y.clamp(0, 1)

    def _candidates(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> list[torch.Tensor]:
        # For a level q the nearest point to z that rounds to q is (|z - q| - half a step) away. With q continuous the
        # cost is convex and its minimiser below; so the best level is one of the two around it, clipped to [0, 1].
        half = 0.5 / self._steps
        offset = (z - y).clamp(-half, half)
        q = (gamma * y + z - offset) / (gamma + 1)
        low = (q.clamp(0, 1) * self._steps).floor()
        found = []
        for level in (low, low + 1):
            centre = level.clamp(0, self._steps) / self._steps
            # The outermost levels also hold all that is clipped; ties are kept off by a hair.
            bottom = torch.where(level <= 0, -torch.inf, centre - half * (1 - 1e-6))
            top = torch.where(level >= self._steps, torch.inf, centre + half * (1 - 1e-6))
            found.append(torch.minimum(torch.maximum(z, bottom), top))
        return found
