"""LPIPS, DISTS and FID by torchmetrics, where the weights of their networks are on this machine; none are downloaded.

    lpips, lpips_vgg    R. Zhang, P. Isola, A. A. Efros, E. Shechtman, O. Wang, "The Unreasonable Effectiveness of Deep
                        Features as a Perceptual Metric", 2018, https://arxiv.org/abs/1801.03924, version 0.1, with AlexNet
                        or VGG16
    dists               K. Ding, K. Ma, S. Wang, E. P. Simoncelli, "Image Quality Assessment: Unifying Structure and Texture
                        Similarity", 2020, https://arxiv.org/abs/2004.07728
    fid                 M. Heusel, H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter, "GANs Trained by a Two Time-Scale
                        Update Rule Converge to a Local Nash Equilibrium", 2017, https://arxiv.org/abs/1706.08500; two sets,
                        no pairs, and far too large for sets of a few hundred images

torchmetrics comes with deepinv and holds the layers that LPIPS and DISTS learned on top of classifiers. The classifiers are
looked for where torch keeps downloads, `torch.hub.get_dir()`/checkpoints: $TORCH_HOME/hub/checkpoints where that is set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import InvdiffError, UsageError, unknown
from invdiff.priors.stored.tensor_files import load_tensors
from invdiff.scores.metrics import check, clipped

SMALLEST = 32
"""The least number of pixels a side: below it AlexNet's pooling leaves no features to compare."""

_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
_INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True)
class Kind:
    """A metric. url: of its weights, whose file name ends in the first eight digits of their SHA-256; package: what it needs
    besides torchmetrics."""

    title: str
    url: str
    package: str = "torchmetrics"

    @property
    def file(self) -> Path:
        """Where the weights are looked for."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]


PAIRS = {
    "lpips": Kind("LPIPS (AlexNet, version 0.1)", _ALEXNET),
    "lpips_vgg": Kind("LPIPS (VGG16, version 0.1)", _VGG16),
    "dists": Kind("DISTS", _VGG16),
}
"""Metrics of an image and its truth."""
KINDS = {**PAIRS, "fid": Kind("FID (Inception v3 of 2015, 2048 features)", _INCEPTION, "torch_fidelity")}


def missing(name: str) -> str:
    """Why a metric cannot be computed here and how to change that, in one line; "" if it can be.

    Raises UsageError for an unknown name.
    """
    if name not in KINDS:
        raise unknown("perceptual metric", name, KINDS)
    kind = KINDS[name]
    for package in ("torchmetrics", "torchvision", kind.package):
        if find_spec(package) is None:
            return f"the package {package} is not installed: pip install {package.replace('_', '-')}"
    file = kind.file
    if not file.is_file():
        return f"its weights are not at {file}: curl -L --create-dirs -o '{file}' {kind.url}"
    state = file.stat()
    if not _as_published(file, state.st_size, state.st_mtime_ns):
        return f"{file} is not what was published (its SHA-256 is another): delete it and download {kind.url} again"
    return ""


@lru_cache
def _as_published(file: Path, size: int, changed: int) -> bool:
    """Whether the hash in a file's name is that of its content. size, changed: so that a changed file is hashed again."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().startswith(file.stem.rpartition("-")[2])


def distances(name: str, x: torch.Tensor, truth: torch.Tensor, *, eight_bit: bool = True) -> torch.Tensor:
    """LPIPS or DISTS of each image from its truth, (B,) float32, smaller is better.

    x, truth: (B, C, H, W) floats in [0, 1] (clipped to it; eight_bit: rounded to it), RGB or grey, at least 32 x 32 pixels.
    Raises UsageError for other images, and InvdiffError where the metric is not available.
    """
    if name not in PAIRS:
        raise unknown("metric of pairs", name, PAIRS)
    check(x, truth)
    if min(x.shape[-2:]) < SMALLEST:
        raise UsageError(
            f"{name} needs images of at least {SMALLEST} x {SMALLEST} pixels, got {x.shape[-2]} x {x.shape[-1]}"
        )
    _require(name)
    measure = _load(name, x.device, KINDS[name].file)
    with torch.no_grad():
        pairs = zip(_colour(x, eight_bit).split(1), _colour(truth, eight_bit).split(1), strict=True)
        return torch.stack([measure(*pair).reshape(()) for pair in pairs])


def frechet_distance(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], device: Any = "cpu") -> float:
    """FID of a set of restored images from the set of truths; smaller is better.

    pairs: batches (restored, truth), each (B, C, H, W) as for `distances`, rounded to 8 bits as the network wants them.
    Raises UsageError for fewer than two images, and InvdiffError where FID is not available.
    """
    _require("fid")
    metric = _inception().to(device)
    count = 0
    for x, truth in pairs:
        check(x, truth)
        count += len(x)
        for images, real in ((x, False), (truth, True)):
            metric.update((_colour(images, True) * 255).round().byte().to(device), real=real)
    if count < 2:
        raise UsageError(f"FID compares sets of at least two images, and means little below thousands; got {count}")
    return float(metric.compute())


def _inception() -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    file = KINDS["fid"].file
    load_tensors(file)  # refuses files that hold anything but tensors, whose code torch-fidelity would run
    return FrechetInceptionDistance(feature_extractor_weights_path=str(file))


def _colour(images: torch.Tensor, eight_bit: bool) -> torch.Tensor:
    """(B, 3, H, W) float32 in [0, 1]."""
    if images.shape[1] not in (1, 3):
        raise UsageError(f"perceptual metrics are for RGB or grey images, got {images.shape[1]} channels")
    return clipped(images, eight_bit).to(images.device, torch.float32).expand(-1, 3, -1, -1)


def _require(name: str) -> None:
    if reason := missing(name):
        raise InvdiffError(f"{KINDS[name].title} is not available: {reason}")


@lru_cache(maxsize=4)
def _load(name: str, device: torch.device, file: Path) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The distance of two batches of one image. file: so that another $TORCH_HOME gives another network."""
    if name == "dists":
        from torchmetrics.functional.image.dists import DISTSNetwork

        return DISTSNetwork().to(device)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity("vgg" if name == "lpips_vgg" else "alex").net.to(device)
    return lambda x, truth: network(x, truth, normalize=True)
