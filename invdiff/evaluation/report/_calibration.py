"""Calibration records of several images, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pooled(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """coverage and crps: means over the images; spread, error: root mean squares; spread_over_error: about 1 if calibrated;
    ranks: shares, summing to 1."""
    shares = np.mean([np.asarray(one["ranks"]) / sum(one["ranks"]) for one in records], 0)
    n = len(shares) - 1
    spread, error = (float(np.sqrt(np.mean([one[key] ** 2 for one in records]))) for key in ("spread", "error"))
    levels = records[0]["coverage"]
    return {
        "images": len(records),
        "coverage": {level: float(np.mean([one["coverage"][level] for one in records])) for level in levels},
        "spread": spread,
        "error": error,
        "spread_over_error": float(np.sqrt(1 + 1 / n)) * spread / error if error > 0 else None,
        "crps": float(np.mean([one["crps"] for one in records])),
        "ranks": shares.tolist(),
    }
