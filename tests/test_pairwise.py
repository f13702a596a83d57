"""What thinning keeps, and what the command line adds to it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from pairwise import chosen, pairs, thinned

pytest_plugins = ["pytester"]
FACTORS = {"a": range(4), "b": "xyz", "c": (True, False)}
ROWS = [pairs(**dict(zip(FACTORS, values, strict=True))) for values in product(*FACTORS.values())]


def test_every_pair_of_values_is_kept_in_few_rows() -> None:
    kept = chosen(ROWS)
    assert set().union(*(ROWS[index] for index in kept)) == set().union(*ROWS)
    assert 12 <= len(kept) <= 14 < len(ROWS)  # 4 x 3 pairs of the largest two factors need a row each


def test_a_pair_that_no_row_has_asks_for_none() -> None:
    rows = [row for row in ROWS if (("a", 0), ("b", "x")) not in row]
    assert set().union(*(rows[index] for index in chosen(rows))) == set().union(*rows)
    assert chosen([]) == set()


def test_left_out_rows_keep_their_marks_and_names() -> None:
    params = [pytest.param(index, marks=pytest.mark.slow, id=f"row {index}") for index in range(len(ROWS))]
    table = thinned(params, ROWS)
    assert [param.id for param in table] == [param.id for param in params]
    out = {param.values[0] for param in table if pytest.mark.full.mark in [mark.mark for mark in param.marks]}
    assert out == set(range(len(ROWS))) - chosen(ROWS)
    assert all("slow" in [mark.name for mark in param.marks] for param in table)


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        ([], {"a", "slow"}),
        (["-m", "not slow"], {"a"}),
        (["-m", "full"], {"b"}),
        (["--full"], {"a", "b", "slow"}),
        (["--full", "-m", "not slow"], {"a", "b"}),
        (["test_table.py::test_case[b]"], {"b"}),
    ],
)
def test_cases_marked_full_run_when_asked_for(options: list[str], ran: set[str], pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = full\n  slow")
    pytester.makepyfile(
        test_table="""
        import pytest
        b, slow = pytest.param("b", marks=pytest.mark.full), pytest.param("slow", marks=pytest.mark.slow)
        @pytest.mark.parametrize("name", ["a", b, slow])
        def test_case(name): pass
        """
    )
    result = pytester.inline_run("--strict-markers", *options)
    assert {report.nodeid.split("[")[1][:-1] for report in result.getreports("pytest_runtest_logreport")} == ran
