"""log.csv: the curves of a training, one row for each validation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from invdiff.training.checkpoint import replacing


class Curves:
    """Rows of log.csv. Those beyond the step of the checkpoint (a killed run wrote them, and the resumed one will write
    them again) are dropped, and so is a last row that was cut short."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if step > 0 and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            whole = [row for row in rows if None not in row.values() and str(row.get("step")).isdigit()]
            self.rows = [row for row in whole if int(row["step"]) <= step]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row (its "step" first) and write the file, whole or not at all: it stays small."""
        self.rows = [*(known for known in self.rows if int(known["step"]) < row["step"]), row]
        columns = list(dict.fromkeys(key for known in self.rows for key in known))
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
