"""The choice of the device and of the floating-point precision; nothing else chooses them."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

from invdiff.errors import InputWarning, UsageError, unknown

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PRECISION_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""The value of --precision for the name of a torch dtype, as records hold it."""


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for a name of DEVICES or such as "cuda:1"; auto is CUDA, else MPS, else CPU.

    Raises UsageError for any other name, and for a device that this machine does not have.
    """
    import torch

    kind, colon, index = name.partition(":")
    if kind not in DEVICES:
        raise unknown("device", name, DEVICES)
    if colon and (kind != "cuda" or not index.isdecimal() or not index.isascii()):
        raise UsageError(f"device {name!r} is not one of {', '.join(DEVICES)}; only cuda takes a number, e.g. cuda:1")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(key for key in ("cuda", "mps", "cpu") if available[key]))
    if not available[kind]:
        raise UsageError(
            f"device {name!r} is not available here; use --device auto, or one of: "
            + ", ".join(key for key, there in available.items() if there)
        )
    if colon and int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"device {name!r} is not available here; there are {count}: cuda:0 to cuda:{count - 1}")
    return torch.device(f"{kind}:{int(index)}" if colon else kind)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype the network computes in. auto: bfloat16 where the hardware has it, float32 elsewhere.

    Only the network runs in it: images, noise levels and the data step stay float32.
    """
    import torch

    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name == "auto":
        name = "bf16" if device.type != "mps" and _has_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UsageError("fp16 has no fast CPU kernels; use --precision bf16 or fp32 on the CPU")
    if name == "bf16" and not _has_bf16(device):
        if device.type == "cuda":
            raise UsageError("this GPU has no bf16 arithmetic; use --precision fp16 or fp32")
        warnings.warn("this processor has no bf16 instructions: --precision fp32 is faster here", InputWarning, 2)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def precisions(device: torch.device) -> list[str]:
    """The names of PRECISIONS, without auto, that the device computes in hardware."""
    return ["fp32", *(["bf16"] if _has_bf16(device) else []), *([] if device.type == "cpu" else ["fp16"])]


def _has_bf16(device: torch.device) -> bool:
    """True for GPUs with bfloat16 arithmetic, and for processors with its instructions (AVX512-BF16, AMX, Arm's)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return True
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def memory_format(device: torch.device) -> torch.memory_format:
    """The memory layout of weights in which networks run fastest on the device, as benchmarks/network_call.py measured it."""
    import torch

    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def check_compiler() -> None:
    """Raise UsageError unless `torch.compile` finds the compiler that it needs."""
    import torch

    if not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError(
            "--compile needs a C++ compiler and finds none (g++, or the one that CXX names); install it, or leave "
            "--compile out"
        )


def autocast(device: torch.device, dtype: torch.dtype, *, keep: bool = True) -> contextlib.AbstractContextManager[Any]:
    """A context of torch's autocast to dtype on the device, which does nothing for float32. keep: whether a weight is cast
    once inside the block, and not at every use."""
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=keep)


def keep_single_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Turn TF32 off for the whole process where float32 is asked for on a CUDA device: by default torch computes
    convolutions, forward and backward, in TF32, which has ten bits of precision."""
    import torch

    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False


def limit_threads() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless OMP_WAIT_POLICY is set. Call it before torch is imported.
    Spinning threads slow down every other process on a small machine."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
