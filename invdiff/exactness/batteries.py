"""The cases of a validation, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from invdiff.errors import PluginError, UsageError
from invdiff.exactness.problems import FAMILIES, GAUSSIAN, MIXTURE, TOYS, TOYS_2D, Case, gaussian_case, toy_case


@dataclass(frozen=True)
class Size:
    """How much is computed.

    steps: noise levels on the Gaussian priors and the toys; samples: drawn for each problem; mixture_steps: the numbers of
    noise levels in the mixture benchmark; mixture_problems: dimension d -> the number of problems in a cell.
    """

    steps: int
    samples: int
    mixture_steps: tuple[int, ...]
    mixture_problems: Mapping[int, int]


# Problems in more dimensions take longer, so that there are fewer of them.
FULL = Size(steps=100, samples=1000, mixture_steps=(20, 100), mixture_problems={8: 3, 80: 2, 800: 1})
QUICK = Size(steps=20, samples=300, mixture_steps=(20,), mixture_problems={8: 1})


def plan(
    families: Sequence[str] = (),
    operators: Sequence[str] = (),
    *,
    quick: bool = False,
    seed: int = 0,
    steps: int | None = None,
    samples: int | None = None,
) -> tuple[list[Case], list[tuple[str, str]]]:
    """The cases, and the operators left out with the reason.

    families: of FAMILIES, default all; operators: names or specs, with which only the Gaussian priors remain; default every
    registered one. steps, samples: instead of those of the size.
    Raises UsageError for operators that cannot be used, and for operators together with families that do not use them.
    """
    size = QUICK if quick else FULL
    if operators and families and GAUSSIAN not in families:
        raise UsageError(
            f"--operator chooses among the {GAUSSIAN} problems, which --problem leaves out; drop one of them"
        )
    wanted = (GAUSSIAN,) if operators else tuple(families) or FAMILIES
    count, levels = samples or size.samples, steps or size.steps
    cases: list[Case] = []
    skipped: list[tuple[str, str]] = []
    if GAUSSIAN in wanted:
        from invdiff import operators as registry

        for spec in dict.fromkeys(operators or registry.names()):
            try:
                cases.append(gaussian_case(spec, seed, levels, count))
            except (UsageError, PluginError) as error:
                if operators:
                    raise
                skipped.append((spec, str(error)))
    if MIXTURE in wanted:
        from invdiff.exactness.mixture import mixture_cases

        cases += mixture_cases(size.mixture_problems, (steps,) if steps else size.mixture_steps, count, seed)
    if TOYS in wanted:
        cases += [toy_case(name, levels, count) for name in TOYS_2D]
    return cases, skipped
