"""Copy docs/tables/NAME.md between the markers <!-- table:NAME --> and <!-- /table:NAME --> of README.md.

python benchmarks/update_readme.py
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name in re.findall(r"<!-- table:([\w-]+) -->", text):
        table = (ROOT / "docs" / "tables" / f"{name}.md").read_text().strip()
        block = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
        text = block.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
