"""Every physics that deepinv ships: how to build a small one, or why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepinv
import torch
from deepinv import physics as p
from deepinv.physics.functional.blur import gaussian_blur

RGB, GREY, COMPLEX = (3, 16, 16), (1, 16, 16), (2, 16, 16)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def kernel() -> torch.Tensor:
    return gaussian_blur(sigma=(0.7, 0.7))


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=seeded())


def half() -> torch.Tensor:
    return (uniform(16, 16) > 0.5).float()


def coils() -> torch.Tensor:
    return torch.complex(uniform(1, 4, 16, 16), uniform(1, 4, 16, 16).flip(-1))


def squared() -> Any:
    return p.Physics(A=lambda x, **kwargs: x**2)


def virtual() -> Any:
    shift = deepinv.transform.Shift(rng=seeded())
    return p.VirtualLinearPhysics(
        physics=p.Inpainting(RGB, mask=0.5, rng=seeded()),
        transform=shift,
        g_params=shift.get_params(torch.zeros(1, *RGB)),
    )


def ring(count: int) -> torch.Tensor:
    angles = torch.arange(count) * 2 * torch.pi / count
    return torch.stack([angles.cos(), angles.sin()])


def ultrasound() -> Any:
    elements = torch.stack([torch.linspace(-1e-3, 1e-3, 4), torch.zeros(4)], -1)
    return p.UltrasoundPlaneWave((16, 16), [-0.2, 0.2], elements, n_samples=64, sampling_frequency=40e6)


BUILDERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Blur": (lambda: p.Blur(filter=kernel(), padding="circular"), RGB),
    "BlurFFT": (lambda: p.BlurFFT(img_size=RGB, filter=kernel()), RGB),
    "BlurMultiScaler": (lambda: p.BlurMultiScaler(p.Blur(filter=kernel(), padding="circular"), RGB, factors=[2]), RGB),
    "BlurFFTMultiScaler": (lambda: p.BlurFFTMultiScaler(p.BlurFFT(img_size=RGB, filter=kernel()), RGB, factors=[2]), RGB),
    "ComposedLinearPhysics": (lambda: p.ComposedLinearPhysics(p.Decolorize(), p.Blur(kernel(), padding="valid")), RGB),
    "ComposedPhysics": (lambda: p.ComposedPhysics(p.Decolorize(), squared()), RGB),
    "CompressedSensing": (lambda: p.CompressedSensing(m=50, img_size=GREY, rng=seeded()), GREY),
    "CompressiveSpectralImaging": (lambda: p.CompressiveSpectralImaging((4, 16, 16), rng=seeded()), (4, 16, 16)),
    "Decolorize": (p.Decolorize, RGB),
    "Demosaicing": (lambda: p.Demosaicing(img_size=RGB), RGB),
    "Denoising": (p.Denoising, RGB),
    "Downsampling": (lambda: p.Downsampling(img_size=RGB, factor=2, filter="gaussian"), RGB),
    "DownsamplingMatlab": (lambda: p.DownsamplingMatlab(factor=2), RGB),
    "DynamicMRI": (lambda: p.DynamicMRI(mask=half()[None].repeat(3, 1, 1)), (2, 3, 16, 16)),
    "HyperSpectralUnmixing": (lambda: p.HyperSpectralUnmixing(E=2, C=4), COMPLEX),
    "Inpainting": (lambda: p.Inpainting(img_size=RGB, mask=0.5, rng=seeded()), RGB),
    "InpaintingMultiScaler": (
        lambda: p.InpaintingMultiScaler(p.Inpainting(RGB, mask=0.5, rng=seeded()), RGB, factors=[2]), RGB),
    "LinearPhysicsMultiScaler": (lambda: p.LinearPhysicsMultiScaler(p.Denoising(), RGB, factors=[2]), RGB),
    "MRI": (lambda: p.MRI(img_size=(16, 16), mask=half()), COMPLEX),
    "MultiCoilMRI": (lambda: p.MultiCoilMRI(mask=half(), coil_maps=coils()), COMPLEX),
    "Pansharpen": (lambda: p.Pansharpen(img_size=RGB, factor=4, filter="bilinear"), RGB),
    "PhaseRetrieval": (
        lambda: p.PhaseRetrieval(p.LinearPhysics(A=lambda x, **k: x * (1 + 1j), A_adjoint=lambda y, **k: y * (1 - 1j))),
        GREY),
    "PhysicsCropper": (lambda: p.PhysicsCropper(p.Denoising(), (2, 2)), RGB),
    "PhysicsMultiScaler": (lambda: p.PhysicsMultiScaler(squared(), RGB, factors=[2]), RGB),
    "Ptychography": (lambda: p.Ptychography(img_size=GREY), GREY),
    "PtychographyLinearOperator": (lambda: p.PtychographyLinearOperator(img_size=GREY), GREY),
    "RandomPhaseRetrieval": (lambda: p.RandomPhaseRetrieval(m=300, img_size=GREY, dtype=torch.float32, rng=seeded()), GREY),
    "SinglePhotonLidar": (lambda: p.SinglePhotonLidar(bins=20), (3, 8, 8)),
    "Scattering": (
        lambda: p.Scattering(16, receivers=ring(8), transmitters=ring(4), background_wavenumber=5.0, dtype=torch.complex64),
        GREY),
    "SequentialMRI": (lambda: p.SequentialMRI(mask=half()[None].repeat(3, 1, 1)), COMPLEX),
    "SinglePixelCamera": (lambda: p.SinglePixelCamera(m=100, img_size=GREY, rng=seeded()), GREY),
    "SpaceVaryingBlur": (
        lambda: p.SpaceVaryingBlur(filters=uniform(1, 1, 2, 5, 5), multipliers=uniform(1, 1, 2, 16, 16), padding="valid"),
        RGB),
    "SpatialUnwrapping": (p.SpatialUnwrapping, GREY),
    "StackedLinearPhysics": (lambda: p.StackedLinearPhysics([p.Denoising(), p.Decolorize(), p.Demosaicing(RGB)]), RGB),
    "StackedPhysics": (lambda: p.StackedPhysics([p.Denoising(), squared()]), RGB),
    "StructuredRandom": (lambda: p.StructuredRandom(img_size=GREY, output_size=(1, 8, 8)), GREY),
    "StructuredRandomPhaseRetrieval": (
        lambda: p.StructuredRandomPhaseRetrieval(img_size=GREY, output_size=GREY, n_layers=2), GREY),
    "TiledSpaceVaryingBlur": (
        lambda: p.TiledSpaceVaryingBlur(patch_size=(8, 8), stride=(4, 4), img_size=(16, 16), filters=uniform(1, 1, 9, 5, 5)),
        RGB),
    "Tomography": (lambda: p.Tomography(angles=12, img_width=16), GREY),
    "UltrasoundPlaneWave": (ultrasound, GREY),
    "Upsampling": (lambda: p.Upsampling(img_size=(3, 32, 32), filter="bilinear", factor=2), RGB),
    "VirtualLinearPhysics": (virtual, RGB),
}  # fmt: skip
# These take a batch of one only: their own code mixes up larger ones.
ONE_AT_A_TIME = ("SequentialMRI", "SinglePhotonLidar")
NOT_BUILT = {
    "Haze": "its x is a tuple of image, depth and airlight, of different shapes",
    "NonCartesianMRI": "needs the package mri-nufft",
    "PET": "needs the package parallelproj",
    "RadioInterferometry": "needs the package torchkbnufft",
    "TomographyWithAstra": "needs the package astra-toolbox, and a GPU",
}
