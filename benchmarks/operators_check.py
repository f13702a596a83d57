"""The sample outputs in docs/operators-check.md: a good operator, and a broken copy of it.

    python benchmarks/operators_check.py [--page docs/operators-check.md]

Runs the doctor on both and replaces what stands between the markers <!-- begin NAME --> and <!-- end NAME -->.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import torch

from invdiff import doctor
from invdiff.cli.operators import text
from invdiff.operators import Downsample


class Broken(Downsample):
    """Its adjoint repeats every pixel, as the transpose of a mean does, and forgets the mean's 1 / factor^2."""

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("docs/operators-check.md"))
    arguments = parser.parse_args()
    os.environ["COLUMNS"] = "100"
    page = arguments.page.read_text()
    for name, operator, cost in (("good", Downsample(factor=2), True), ("broken", Broken(factor=2), False)):
        block = f"<!-- begin {name} -->\n```text\n{text(doctor.check(operator, cost=cost))}\n```\n<!-- end {name} -->"
        page = re.sub(f"<!-- begin {name} -->.*<!-- end {name} -->", lambda _, b=block: b, page, flags=re.DOTALL)
    arguments.page.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
