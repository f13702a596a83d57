"""Arrays that a user names by a file or hands over in Python, and a short text that tells them apart."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.errors import UsageError

_own: ContextVar[Mapping[str, np.ndarray] | None] = ContextVar("own", default=None)


@contextlib.contextmanager
def own_arrays(arrays: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Inside this block a text stands for the array whose `fingerprint` it is, one of these, and never for a file."""
    token = _own.set(arrays)
    try:
        yield
    finally:
        _own.reset(token)


def file_or_array(value: Any) -> str | np.ndarray:
    """file, tensor or array of numbers"""
    own = _own.get()
    if own is not None and isinstance(value, str):
        if value not in own:
            raise ValueError("the measurement file holds no such array")
        return own[value]
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().to(torch.float64).numpy()
    if value is None:  # to numpy it is NaN
        raise ValueError("nothing is given")
    array = np.array(value, dtype=np.float64)
    array.setflags(write=False)
    return array


def complex_file_or_array(value: Any) -> str | np.ndarray:
    """file, tensor or array of complex numbers"""
    if isinstance(value, (str, os.PathLike)) or value is None:
        return file_or_array(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().resolve_conj().numpy()
    array = np.array(value, dtype=np.complex128)
    array.setflags(write=False)
    return array


def fingerprint(array: np.ndarray) -> str:
    """A short text that differs between arrays of different shape or content."""
    digest = hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return f"<{'x'.join(map(str, array.shape))} {digest.hexdigest()[:12]}>"


def load(
    source: str | np.ndarray, owner: str, argument: str, key: str | None = None, dtype: type[np.number] = np.float64
) -> np.ndarray:
    """The array of a .npy or .npz file, or an array given as such; float64, or complex128 if asked for.

    key: which array of an .npz that holds several. Raises UsageError naming owner, argument, file and what is allowed.
    """
    if isinstance(source, np.ndarray):
        if key is not None:
            raise UsageError(
                f"{owner}: key={key!r} selects an array in an .npz file, but {argument} is an array; drop key"
            )
        array = source
    else:
        array = _load_file(Path(source).expanduser(), f"{owner}: {argument}={source!r}", key, dtype)
    if array.size == 0 or not np.isfinite(array).all():
        raise UsageError(f"{owner}: {argument} is empty or holds NaN or infinity; it must be finite numbers")
    return array


def _load_file(path: Path, what: str, key: str | None, dtype: type[np.number]) -> np.ndarray:
    if not path.is_file():
        raise UsageError(f"{what} is not a file; give the path of a .npy or .npz file")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise UsageError(f"{what} is not a .npy or .npz file; write one with numpy.save or numpy.savez")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if key is not None:
                raise UsageError(f"{what} holds a single array, so key={key!r} selects nothing; drop key")
            return _cast(loaded, what, dtype)
        with loaded:
            held = sorted(loaded.files)
            if key is None and len(held) != 1:
                raise UsageError(f"{what} holds {len(held)} arrays: choose one with key={'|'.join(held) or '...'}")
            chosen = key if key is not None else held[0]
            if chosen not in held:
                raise UsageError(f"{what} has no array {chosen!r}: choose one with key={'|'.join(held)}")
            return _cast(loaded[chosen], what, dtype)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what} cannot be read as numpy data ({error}); write it again with numpy.save") from None


def _cast(array: np.ndarray, what: str, dtype: type[np.number]) -> np.ndarray:
    if np.iscomplexobj(array) and dtype is np.float64:
        raise UsageError(f"{what} holds complex numbers where real ones are needed; write its real part or magnitude")
    return np.asarray(array, dtype=dtype)
