"""A network prior for large images, evaluated tile by tile in bounded memory; the result does not depend on the tiles.

Three things tie a pixel of E[x_0 | x] to the rest of the image:

- convolutions, which reach `REACH` times the network's downsampling in practice (docs/tiles.md). Tiles overlap by more
  than twice as much and start at multiples of the downsampling. They are blended by weights that sum to one and vanish
  where the edge of the tile has an effect;
- GroupNorm, which averages over the network's whole input, so that each tile alone would be treated as another image.
  Mean and variance of every such layer are computed once for each call, over windows spread across the image (over all
  of it, if it is small), and all tiles share them;
- attention, which is confined to the tile.

The gradient is exactly that of this function: a backward pass computes each tile again and keeps one graph at a time.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from invdiff.errors import InputWarning, InvdiffError, UsageError
from invdiff.machine.memory import free_memory, is_out_of_memory, until_it_fits
from invdiff.priors.network import NetworkPrior, pad_to_multiple
from invdiff.priors.prior import Prior, Sigma, WrappedPrior, per_sample
from invdiff.priors.tiles import Place, Tiles, windows
from invdiff.specs.parameters import whole

REACH = 3
"""How far a change of one pixel reaches, its effect on the averages aside, in units of the network's downsampling."""
TILE = 512
"""The side of a tile in pixels, where the memory allows: larger ones take longer for each pixel on a CPU."""
WHOLE = 1024**2
"""Images of at most so many pixels are not cut, where the memory allows."""
WINDOWS, WINDOW = 4, 128
"""Averages are taken over WINDOWS x WINDOWS windows of WINDOW pixels a side."""
TOGETHER = 16
"""How many tiles of side TILE an accelerator computes at once, where the memory allows; a CPU computes one."""
BYTES = {torch.float32: 56, torch.bfloat16: 33, torch.float16: 33}
"""Bytes of activations for each pixel and each channel of the first layer, without a gradient (docs/tiles.md)."""
WITH_GRADIENT = 4
"""How many times as much a call takes whose gradient is wanted."""

Statistics = list[torch.Tensor]
"""Mean and variance (groups,) of each GroupNorm's input: [mean_1, variance_1, mean_2, ...]."""
Forward = Callable[[torch.Tensor], torch.Tensor]


def at_once(count: int, kind: str) -> str:
    """ "1 tile at once", "4 images at once"."""
    return f"{count} {kind}{'' if count == 1 else 's'} at once"


def check_tile(tile: Any) -> int | str:
    """A number of pixels, "auto" or "off". Raises UsageError for anything else."""
    if tile in ("auto", "off"):
        return str(tile)
    try:
        pixels = whole(tile)
    except (TypeError, ValueError, OverflowError):
        pixels = 0
    if pixels < 1:
        raise UsageError(f'tile must be a number of pixels, "auto" or "off", got {tile!r}')
    return pixels


def tiled(prior: Prior, tile: int | str = "auto") -> Prior:
    """The prior, evaluated by tiles of at most `tile` pixels a side for larger images; "auto" chooses the side by the free
    memory. The prior itself if tile is "off", if it is a TiledPrior, or if tile is "auto" and it is no NetworkPrior.

    Raises UsageError for a tile that is too small for the network, and for a number of pixels where there is no network.
    """
    tile = check_tile(tile)
    if tile == "off" or isinstance(prior, TiledPrior):
        return prior
    if isinstance(prior, NetworkPrior):
        return TiledPrior(prior, tile)
    if tile == "auto":
        return prior
    raise UsageError(
        f"tile={tile} is for networks that load_prior reads; a {type(prior).__name__} answers for the image as a whole: "
        "leave tile out"
    )


class TiledPrior(WrappedPrior):
    """A NetworkPrior that is evaluated by tiles of an image, and whole for a small one.

    tile: the largest side of a tile in pixels, or "auto". Where the memory does not suffice, fewer are computed at once,
    then smaller ones, from there on, and an InputWarning says so once. Not so for several images whole that keep their
    graphs, which take the same memory one by one, nor in their backward pass: `restore` takes fewer of them.
    Raises UsageError for a tile below `smallest`.
    """

    prior: NetworkPrior

    def __init__(self, prior: NetworkPrior, tile: int | str = "auto") -> None:
        super().__init__(prior)
        self.overlap: int = (2 * REACH + 2) * prior.multiple
        self.smallest: int = 2 * self.overlap
        if isinstance(tile, int) and tile < self.smallest:
            raise UsageError(
                f"tile={tile} is too small: this network needs {self.overlap} pixels of overlap, so tiles of at least "
                f"{self.smallest}; or leave it to tile=auto"
            )
        self.tile = tile
        self.used: int | None = None
        """The largest side of the tiles of the latest image; None if it was not cut."""
        self._sides: dict[tuple[int, int], int | None] = {}  # the side of the tiles for each size of image
        self._together = 1  # images or tiles in the latest call
        self._most: int | None = None  # the most images or tiles in one call, after one ran out of memory
        self._limit: int | None = None  # the largest side, after a call ran out of memory
        self.told: bool = False
        """Whether the warning that the memory does not suffice was given."""
        self.batch: int | None = None
        """How many images a restoration takes at once at most; None until one ran out of memory."""

    def describe(self) -> dict[str, Any]:
        return {**self.prior.describe(), "tile": "off" if self.used is None else self.used}

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """As the network's own. Raises InvdiffError if there is not the memory for one tile."""
        if x.ndim != 4 or self.prior.in_closed_form(sigma):
            return self.prior.denoise(x, sigma)
        kept = torch.is_grad_enabled() and x.requires_grad and len(x) > 1
        return until_it_fits(
            lambda: self._denoise(x, sigma),
            lambda: self.take_less(x.shape, self.used),
            lambda: not kept or self.used is not None,
        )

    def _denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        self.used = side = self._side(x)
        # Image by image where tiles are used, because each has statistics of its own.
        rows = 1 if side is not None else min(len(x), self._most or len(x))
        self._together = rows
        if rows == len(x):
            return self._rows(x, sigma, side)
        per_sample(sigma, x)  # raises UsageError for a wrong number of noise levels
        several = isinstance(sigma, torch.Tensor) and sigma.numel() > 1
        levels = sigma.reshape(-1).split(rows) if several else [sigma] * -(-len(x) // rows)  # type: ignore[union-attr]
        return torch.cat([self._rows(*part, side) for part in zip(x.split(rows), levels, strict=True)])

    def _rows(self, x: torch.Tensor, sigma: Sigma, side: int | None) -> torch.Tensor:
        """Images whole, or a single one by tiles."""
        if side is None or self.prior.in_closed_form(sigma):
            return self.prior.denoise(x, sigma)
        padded = pad_to_multiple(x, self.prior.multiple)
        tiles = self.tiles(padded, side)
        if torch.is_grad_enabled() and x.requires_grad:
            answer = _ByTiles.apply(padded, self, sigma, tiles)
        else:
            answer = self.blend(padded, sigma, tiles)
        return answer[..., : x.shape[-2], : x.shape[-1]]

    def tiles(self, x: torch.Tensor, side: int) -> Tiles:
        """The tiles of at most this side for images like x, whose sides are multiples of the network's downsampling."""
        return Tiles(x.shape[-2:], side, self.overlap, self.prior.multiple)

    def blend(self, x: torch.Tensor, sigma: Sigma, tiles: Tiles) -> torch.Tensor:
        """E[x_0 | x] of one image (1, C, H, W), blended from its tiles."""
        statistics = self.statistics(x, sigma)
        answer = torch.zeros_like(x)
        with self._normalised_by(statistics):
            for places in self._chunks(x, tiles):
                crops = self.prior.denoise(torch.cat([x[place] for place in places]), sigma)
                for place, crop in zip(places, crops, strict=True):
                    answer[place] += crop * tiles.weight(place, x)
        return answer

    def pull_back(self, x: torch.Tensor, sigma: Sigma, tiles: Tiles, v: torch.Tensor) -> torch.Tensor:
        """J(x)^T v of `blend`, (1, C, H, W): through the tiles, and through the statistics that they share. Where the memory
        runs out, by fewer of them at once, then smaller ones."""

        def smaller() -> None:
            nonlocal tiles
            side = self.take_less(x.shape, max(tiles.size))
            tiles = tiles if side is None else self.tiles(x, side)

        return until_it_fits(lambda: self._pull_back(x, sigma, tiles, v), smaller)

    def _pull_back(self, x: torch.Tensor, sigma: Sigma, tiles: Tiles, v: torch.Tensor) -> torch.Tensor:
        # Cloned, because without gradients the network computes in inference mode.
        statistics = [value.clone().requires_grad_() for value in self.statistics(x, sigma)]
        gradient = torch.zeros_like(x)
        shares = [torch.zeros_like(value) for value in statistics]
        for places in self._chunks(x, tiles):
            weighted = torch.cat([v[place] * tiles.weight(place, x) for place in places])
            with torch.enable_grad(), self._normalised_by(statistics):
                crops = torch.cat([x[place] for place in places]).requires_grad_()
                answer = self.prior.denoise(crops, sigma)
                found, *through = torch.autograd.grad(answer, [crops, *statistics], weighted)
            for place, crop in zip(places, found, strict=True):
                gradient[place] += crop
            for share, value in zip(shares, through, strict=True):
                share += value
        if not statistics:
            return gradient
        with torch.enable_grad(), self._needed(x):
            leaf = x.detach().requires_grad_()
            return gradient + torch.autograd.grad(self.statistics(leaf, sigma), leaf, shares)[0]

    def statistics(self, x: torch.Tensor, sigma: Sigma) -> Statistics:
        """Mean and variance of every GroupNorm's input over the windows of one image (1, C, H, W)."""
        found: dict[torch.nn.GroupNorm, tuple[torch.Tensor, torch.Tensor]] = {}

        def taking(norm: torch.nn.GroupNorm) -> Forward:
            def forward(z: torch.Tensor) -> torch.Tensor:
                values = z if z.dtype == torch.float64 else z.float()
                grouped = values.unflatten(1, (norm.num_groups, -1)).flatten(3)
                variance, mean = torch.var_mean(grouped, (0, 2, 3), correction=0)
                found[norm] = mean, variance
                return normalise(norm, z, mean, variance)

            return forward

        norms = self._norms()
        if not norms:
            return []
        with self.prior.plain_network(), replaced({norm: taking(norm) for norm in norms}), self._needed(x):
            self.prior.denoise(windows(x, WINDOWS, self._window, self.prior.multiple), sigma)
        return [value for norm in norms for value in found[norm]]

    @contextlib.contextmanager
    def _normalised_by(self, statistics: Statistics) -> Iterator[None]:
        def using(norm: torch.nn.GroupNorm, mean: torch.Tensor, variance: torch.Tensor) -> Forward:
            return lambda z: normalise(norm, z, mean, variance)

        norms = self._norms()
        parts = zip(norms, statistics[::2], statistics[1::2], strict=True)
        with (
            self.prior.plain_network(),
            replaced({norm: using(norm, mean, variance) for norm, mean, variance in parts}),
        ):
            yield

    def _norms(self) -> list[torch.nn.GroupNorm]:
        return [module for module in self.prior.network.modules() if isinstance(module, torch.nn.GroupNorm)]

    @property
    def _window(self) -> int:
        return max(WINDOW, 4 * self.prior.multiple)

    def _chunks(self, x: torch.Tensor, tiles: Tiles) -> Iterator[list[Place]]:
        """The places of the tiles, in lists of as many as one call takes."""
        pixels = tiles.size[0] * tiles.size[1]
        room = min((1 if x.device.type == "cpu" else TOGETHER) * TILE**2, int(self._room()))
        self._together = max(1, min(room // pixels, self._most or room, len(tiles.places)))
        for first in range(0, len(tiles.places), self._together):
            yield tiles.places[first : first + self._together]

    def _side(self, x: torch.Tensor) -> int | None:
        """The largest side of the tiles for images like x (B, C, H, W); None where they are not cut."""
        size = (x.shape[-2], x.shape[-1])
        if size not in self._sides:
            self._sides[size] = self._choose(size) if self.tile == "auto" else int(self.tile)
        side = self._sides[size]
        side = side if self._limit is None else min(side or self._limit, self._limit)
        return None if side is None or max(size) <= side else side

    def _choose(self, size: tuple[int, int]) -> int | None:
        room = self._room()
        if size[0] * size[1] <= min(WHOLE, room):
            return None
        if self._least(size) > free_memory(self.device):
            raise self._too_little(size)
        return max(self.smallest, min(TILE, int(math.sqrt(room)) // 64 * 64))

    def _room(self) -> float:
        """How many pixels a call with a gradient can take in half of the free memory."""
        return free_memory(self.device) / (2 * WITH_GRADIENT * self._bytes_per_pixel())

    def _bytes_per_pixel(self) -> int:
        """Memory of the network's activations for one pixel, without a gradient."""
        width = next(weight.shape[0] for weight in self.prior.network.parameters() if weight.ndim == 4)
        return int(width * BYTES[self.prior.precision])

    def _least(self, size: tuple[int, int]) -> int:
        """The least memory in bytes for images of this size: that of one tile or of all windows together."""
        pixels = min(size[0] * size[1], (WINDOWS * self._window) ** 2) if self._norms() else 0
        return max(self.smallest**2, pixels) * self._bytes_per_pixel()

    def take_less(self, shape: Sequence[int], side: int | None) -> int | None:
        """Halve what one call computes of images of this shape, which ran out of memory by tiles of this side (None: whole).
        The largest side of their tiles from now on; None: as before, but fewer at once.

        Raises InvdiffError where it cannot be less.
        """
        self.prior.forget_graphs()
        largest = max(shape[-2:]) if side is None else side
        if self._together > 1:
            self._most, limit = self._together // 2, None
            self._together = self._most
            words = at_once(self._most, "image" if side is None else "tile")
        elif largest <= self.smallest:
            raise self._too_little((shape[-2], shape[-1]))
        else:
            limit = max(self.smallest, largest // 2 // self.prior.multiple * self.prior.multiple)
            self._limit = min(limit, self._limit or limit)
            words = f"tiles of {limit} pixels"
        self.tell(words)
        return limit

    def tell(self, words: str) -> None:
        """Warn that there was not enough memory, and what it goes on with; once."""
        if not self.told:
            self.told = True
            warnings.warn(f"not enough memory: going on with {words}", InputWarning, stacklevel=4)

    @contextlib.contextmanager
    def _needed(self, x: torch.Tensor) -> Iterator[None]:
        """A context for computations that smaller tiles do not make smaller: out of memory there is an InvdiffError."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_little((x.shape[-2], x.shape[-1])) from None

    def _too_little(self, size: tuple[int, int]) -> InvdiffError:
        needed, free = (value / 2**20 for value in (self._least(size), free_memory(self.device)))
        return InvdiffError(
            f"not enough memory: the network takes about {needed:.0f} MiB for the smallest tiles of a "
            f"{size[0]} x {size[1]} image, and {free:.0f} MiB are free; end other programs, raise the limit (ulimit -v, the "
            "container's), or use another --device"
        )


class _ByTiles(torch.autograd.Function):
    """`TiledPrior.blend` with the backward pass `TiledPrior.pull_back`; only x is kept in between."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, prior: TiledPrior, sigma: Sigma, tiles: Tiles) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.settings = prior, sigma, tiles
        return prior.blend(x, sigma, tiles)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        prior, sigma, tiles = ctx.settings
        if torch.is_grad_enabled():  # create_graph=True
            raise UsageError("images cut into tiles have first derivatives only; give tile='off' for further ones")
        return prior.pull_back(*ctx.saved_tensors, sigma, tiles, gradients[0]), None, None, None


def normalise(norm: torch.nn.GroupNorm, z: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """GroupNorm of z (B, C, ...) with given mean and variance (groups,), in z's dtype."""
    share = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(share)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean.repeat_interleave(share) * scale
    shift = shift if norm.bias is None else shift + norm.bias
    over = (-1, *[1] * (z.ndim - 2))
    return torch.addcmul(shift.view(over), z, scale.view(over)).to(z.dtype)


@contextlib.contextmanager
def replaced(forwards: dict[torch.nn.GroupNorm, Forward]) -> Iterator[None]:
    """A context in which `forward` of these modules is another function."""
    for module, forward in forwards.items():
        module.forward = forward  # type: ignore
    try:
        yield
    finally:
        for module in forwards:
            del module.forward
