"""A trained network as a prior. Images are in [0, 1] outside and in the network's [-1, 1] inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from invdiff.diffusion.parameterization import check_prediction, to_clean
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import UsageError
from invdiff.machine.device import autocast, check_compiler, keep_single_precision, memory_format
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.priors.gpu.cuda_network import CudaNetwork
from invdiff.priors.gpu.group_norm import use_fast_gradients
from invdiff.priors.prior import Prior, Sigma, per_sample


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """x (B, C, H, W) extended at the bottom and right to multiples, by mirroring (repeating, where x is too small)."""
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if down == right == 0:
        return x
    mode = "reflect" if down < height and right < width else "replicate"
    return functional.pad(x, (0, right, 0, down), mode=mode)


class NetworkPrior(Prior):
    """A DDPM network eps/x_0/v(x_t, t) with its schedule, as E[x_0 | x_0 + sigma n].

    network: a module called as network(x_t, t) that returns a tensor, or an object with `.sample`, of C or 2C channels
        (2C: a learned variance, which is ignored: only the mean matters to a denoiser).
    schedule: its training schedule; prediction: "epsilon", "sample" or "v_prediction".
    multiple: images are padded to a multiple of this many pixels and cropped back, so every H x W works.
    precision: dtype of the network's arithmetic (autocast); everything around it keeps x's dtype.
    compile: whether torch compiles the network for calls without a gradient, once for each size of image. None: it does
        not, but a CUDA device in half precision runs the network by `CudaNetwork`. False: neither.
    high_noise: a Gaussian model of the images, which replaces the network above sigma_start.
    """

    channels: int

    def __init__(
        self,
        network: torch.nn.Module,
        schedule: Schedule,
        *,
        channels: int,
        prediction: str = "epsilon",
        multiple: int = 1,
        precision: torch.dtype = torch.float32,
        compile: bool | None = None,
        high_noise: GaussianImages | None = None,
        name: str = "network",
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.network: torch.nn.Module = network.eval().requires_grad_(False)
        use_fast_gradients(self.network)
        self.schedule = schedule
        self.channels = channels
        self.prediction: str = check_prediction(prediction)
        self.multiple = multiple
        self.precision: torch.dtype = precision
        self.compile = compile
        if compile:
            check_compiler()
        self._compiled: Any = None
        self._quick: CudaNetwork | None = None
        self._plain = False
        self.high_noise = high_noise
        self.name = name
        self.identity: dict[str, Any] = identity or {}
        # sigma is halved on the way out: [0, 1] is half as wide as [-1, 1].
        self.sigma_max: float = float(schedule.sigmas[-1]) / 2
        self.sigma_min: float = float(schedule.sigmas[0]) / 2
        # Eight standard deviations of a natural image (about 1/4 on [0, 1]); calls above it contribute almost nothing.
        self.sigma_start: float | None = min(2.0, self.sigma_max)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def coarse(self) -> bool:
        return self.precision in (torch.float16, torch.bfloat16)

    def to(self, device: torch.device | str, precision: torch.dtype | None = None) -> NetworkPrior:
        """Move the network to a device and choose its arithmetic; returns self."""
        self.network.to(device).to(memory_format=memory_format(torch.device(device)))
        self.precision = precision or self.precision
        keep_single_precision(torch.device(device), self.precision)
        self._quick = None
        return self

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """E[x_0 | x_0 + sigma n = x]. x (B, C, H, W), x_0 in [0, 1]; sigma in the same units, float or (B,).

        For sigma outside the schedule's range the network is called at its nearest noise level.
        Raises UsageError for a wrong number of channels or dimensions, and for sigma <= 0.
        """
        if x.ndim != 4:
            raise UsageError(f"a network prior takes images (B, C, H, W), got a tensor of shape {tuple(x.shape)}")
        self.check_shape(x.shape[1:])
        if self.high_noise is not None:
            above = _to_numpy(sigma).reshape(-1) > self.sigma_start
            if above.all():
                return self.high_noise.denoise(x, sigma)
            if above.any():
                chosen = torch.from_numpy(above).to(x.device).reshape(-1, 1, 1, 1)
                return torch.where(chosen, self.high_noise.denoise(x, sigma), self._denoise_by_network(x, sigma))
        return self._denoise_by_network(x, sigma)

    def in_closed_form(self, sigma: Sigma) -> bool:
        """Whether the Gaussian model alone denoises at these noise levels; it needs the image as a whole."""
        return self.high_noise is not None and bool((_to_numpy(sigma) > self.sigma_start).all())

    def _denoise_by_network(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        levels = per_sample(sigma, x) * 2
        times = self.schedule.t(_to_numpy(sigma).reshape(-1) * 2)
        if len(times) == 1:  # one number is created on the device, which then need not wait for a copy
            t = torch.full((1,), float(times[0]), dtype=torch.float32, device=x.device)
        else:
            t = torch.as_tensor(times, dtype=torch.float32, device=x.device)
        abar = 1 / (1 + levels**2)
        x_t = (2 * x - 1) * abar**0.5
        clean = to_clean(self.prediction, self._predict(x_t, t.expand(x.shape[0])), x_t, abar)
        return (clean + 1) / 2

    def _predict(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        height, width = x_t.shape[-2:]
        output = self.call_network(pad_to_multiple(x_t, self.multiple), t)[:, : x_t.shape[1], :height, :width]
        # Contiguous planes, whatever the network's own layout, because data steps transform rows and columns.
        return output.to(x_t.dtype, memory_format=torch.contiguous_format)

    def call_network(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The network's output for x_t (B, C, H, W) on [-1, 1], with H and W multiples of `multiple`, and t (B,)."""
        no_gradient = not torch.is_grad_enabled()
        weights = next(self.network.parameters()).dtype
        with torch.inference_mode(no_gradient), autocast(x_t.device, self.precision):
            output = self._callable(no_gradient)(x_t.to(weights), t)
        return getattr(output, "sample", output)

    def _callable(self, no_gradient: bool) -> Any:
        """The network, or its fastest form on this device. A compiled network allows one backward pass only, so it is used
        for calls without a gradient."""
        if self._plain:
            return self.network
        if self.compile is None and self.device.type == "cuda" and self.precision != torch.float32:
            if self._quick is None or self._quick.precision != self.precision or self._quick.device != self.device:
                with torch.inference_mode(False):  # so that its weights can be used where gradients are wanted, too
                    self._quick = CudaNetwork(self.network, self.precision)
            return self._quick
        if not (self.compile and no_gradient):
            return self.network
        if self._compiled is None:
            self._compiled = torch.compile(self.network)
        return self._compiled

    @contextlib.contextmanager
    def plain_network(self) -> Iterator[None]:
        """A context in which `network` itself is called and no faster form of it, so that its modules can be replaced."""
        before, self._plain = self._plain, True
        try:
            yield
        finally:
            self._plain = before

    def forget_graphs(self) -> None:
        """Free the CUDA memory that is held only to make later calls faster."""
        if self._quick is not None:
            self._quick.forget_graphs()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the faster forms of the network, which are made again when they are needed."""
        return self.__dict__ | {"_quick": None, "_compiled": None}

    def describe(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "name": self.name,
            "channels": self.channels,
            "prediction": self.prediction,
            "precision": str(self.precision).removeprefix("torch."),
            **({} if self.compile is None else {"compiled": self.compile}),
            "above sigma_start": "network" if self.high_noise is None else "Gaussian images",
            **self.identity,
        }


def _to_numpy(sigma: Sigma) -> np.ndarray:
    return np.asarray(sigma.detach().cpu() if isinstance(sigma, torch.Tensor) else sigma, dtype=np.float64)
