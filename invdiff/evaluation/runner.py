"""The loop of an evaluation: images are read ahead of the restorations, scores computed and written behind them, and an image
that fails does not stop the others."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from invdiff.errors import InvdiffError, UsageError
from invdiff.evaluation.datasets import Source, batches, fitted
from invdiff.evaluation.pictures import Album
from invdiff.evaluation.plan import Plan, Task
from invdiff.evaluation.protocol import Protocol
from invdiff.evaluation.scoring import result_lines
from invdiff.evaluation.store import Line, Place, Run, Store
from invdiff.machine.memory import is_out_of_memory, peak_memory
from invdiff.machine.threads import Background, prepared
from invdiff.priors.prior import Prior
from invdiff.priors.tiled import WHOLE
from invdiff.problem.simulation import degrade
from invdiff.restoration.api import default_batch_size, restore
from invdiff.restoration.solution import Solution

AHEAD = 2
"""Batches that are read ahead of, or wait to be scored behind, the one being restored."""
OUT_OF_MEMORY = "not enough memory for one image of this size; take smaller ones (--crop), or another --device"


@dataclass(frozen=True)
class Share:
    """The part of the work of one process: the batches whose number modulo count is index."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"shard {self.index + 1}/{self.count}: the first number goes from 1 to the second")


EVERYTHING = Share()


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one data set for one task, some of which may be done. wanted: the keys of those still to do."""

    task: Task
    sources: Sequence[Source]
    wanted: frozenset[str]


@dataclass
class Outcome:
    """How a run ended. done: new results; failed: (cell, image) -> the error."""

    done: int = 0
    failed: dict[Place, str] = field(default_factory=dict)


Progress = Callable[[Task, Line, Line | None], None]


def schedule(plan: Plan, done: set[Place], batch_size: int | None, limit: int | None, share: Share) -> Iterator[Batch]:
    """The batches with anything left to do, cell by cell. What is done already does not change which images share a batch."""
    number = 0
    for task in plan.tasks:
        size = batch_size or default_batch_size(task.prior.device)
        for sources in batches(task.sources[:limit], size):
            mine = number % share.count == share.index
            number += 1
            wanted = frozenset(source.key for source in sources if (task.id, source.key) not in done)
            if mine and wanted:
                yield Batch(task, sources, wanted)


def evaluate(
    plan: Plan,
    store: Store,
    run: Run,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    share: Share = EVERYTHING,
    pictures: int | None = 4,
    progress: Progress = lambda task, line, timing: None,
) -> Outcome:
    """Restore and score what is not done, and append it to the store; an image that fails gets a line that says why.

    run: what the store held when it was opened. limit: only the first images of each data set. pictures: the number of
    images of each data set whose restorations are kept as PNG, None for all. progress: called in order with the task
    and the lines of a result and of its timing (None where it failed). When interrupted, what has been restored is
    written before the exception goes on.
    """
    outcome = Outcome()
    album = Album(store.folder, plan, pictures)

    def finish(restored: Restored) -> None:
        results, timings = restored.lines(plan.suite.protocol, album)
        fresh = [line for line in results if run.failures.get((line["cell"], line["image"])) != line.get("error", "")]
        store.append(fresh, timings)
        by_image = {line["image"]: line for line in timings}
        for line in results:
            if "error" in line:
                outcome.failed[line["cell"], line["image"]] = line["error"]
            else:
                outcome.done += 1
            progress(restored.batch.task, line, by_image.get(line["image"]))

    with Background(AHEAD) as behind:
        for batch, images in prepared(read, schedule(plan, run.done, batch_size, limit, share), AHEAD):
            behind.submit(finish, Restored(batch, list(_restored(batch, images.result(), batch_size))))
    return outcome


Images = dict[str, torch.Tensor | str]
"""Key -> the true image (C, H, W), or why there is none."""


def read(batch: Batch) -> Images:
    """The images of a batch in the form that the task takes, or why they cannot be read."""
    task, images = batch.task, Images()
    for source in batch.sources:
        try:
            images[source.key] = fitted(source.read(), task.operator, task.prior, task.data.crop)
        except InvdiffError as error:
            images[source.key] = " ".join(str(error).split())
    return images


@dataclass(frozen=True, eq=False)
class Group:
    """Images of one size that were restored together. error: instead of a solution, why an image failed; memory: peak, MB."""

    keys: list[str]
    truth: torch.Tensor | None
    y: torch.Tensor | None = None
    solution: Solution | None = None
    error: str = ""
    memory: float = 0.0


def _restored(batch: Batch, images: Images, batch_size: int | None) -> Iterator[Group]:
    """Restore the images of a batch, those of one shape together."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for key, image in images.items():
        if isinstance(image, str):
            yield Group([key], None, error=image)
        else:
            shapes.setdefault(tuple(image.shape), []).append(key)
    for keys in shapes.values():
        # Images that are done run again beside those that are not, so that a resumed batch equals the original one; they are
        # not written again.
        if not batch.wanted.isdisjoint(keys):
            yield from _attempt(batch.task, keys, images, batch_size)


def _attempt(task: Task, keys: list[str], images: Images, batch_size: int | None) -> Iterator[Group]:
    truth = torch.stack([images[key] for key in keys])  # type: ignore[misc]
    try:
        yield _solve(task, keys, truth, batch_size or default_batch_size(task.prior.device))
        return
    except InvdiffError as error:
        failure = " ".join(str(error).split())
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = OUT_OF_MEMORY
    # One bad image must not take the others with it. Outside the except blocks, whose traceback would keep the failed
    # attempt's tensors in memory.
    if len(keys) > 1:
        for key in keys:
            yield from _attempt(task, [key], images, batch_size)
    else:
        yield Group(keys, truth, error=failure)


def _solve(task: Task, keys: list[str], truth: torch.Tensor, batch_size: int) -> Group:
    cell, device = task.cell, task.prior.device
    y = degrade(truth, task.operator, cell.noise, seed=cell.seed, ids=keys)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    solution = restore(
        y,
        task.operator,
        cell.noise,
        task.prior,
        task.solver,
        cell.steps if task.solver == "auto" else None,
        samples=cell.samples,
        seed=cell.seed,
        batch_size=batch_size,
        ids=keys,
        # Tiles depend on the memory that is free, and results a little on the tiles: not where an image does without.
        tile="off" if truth.shape[-2] * truth.shape[-1] <= WHOLE else "auto",
    )
    return Group(keys, truth, y, solution, memory=peak_memory(device))


@dataclass(frozen=True, eq=False)
class Restored:
    """A batch and its solutions, to be scored and written."""

    batch: Batch
    groups: list[Group]

    def lines(self, protocol: Protocol, album: Album) -> tuple[list[Line], list[Line]]:
        """The lines of results and of timings, for the images that were wanted."""
        task, hashes = self.batch.task, {source.key: source.content for source in self.batch.sources}
        results: list[Line] = []
        timings: list[Line] = []
        for group in self.groups:
            if group.solution is None or group.truth is None or group.y is None:
                results += [{"cell": task.id, "image": key, "error": group.error} for key in group.keys]
                continue
            lines = result_lines(task.cell, group.solution, group.truth, group.y, protocol)
            for row, (key, line) in enumerate(zip(group.keys, lines, strict=True)):
                results.append({"cell": task.id, "image": key, "file": hashes[key](), **line})
                timings.append(self._timing(task, key, group))
                album.add(task, key, group.solution, group.truth, group.y, row)
        wanted = self.batch.wanted
        return [line for line in results if line["image"] in wanted], [
            line for line in timings if line["image"] in wanted
        ]

    def _timing(self, task: Task, key: str, group: Group) -> Line:
        assert group.solution is not None
        return {
            "cell": task.id,
            "image": key,
            "seconds": round(group.solution.seconds / len(group.keys), 4),
            "peak_memory_mb": round(group.memory, 1),
            "device": device_name(task.prior),
            "batch": len(group.keys),
            "host": platform.node(),
        }


def device_name(prior: Prior) -> str:
    """The name of a prior's device: that of the GPU, or cpu with its threads."""
    if prior.device.type == "cuda":
        return torch.cuda.get_device_name(prior.device)
    return f"{prior.device.type}, {torch.get_num_threads()} threads"


def launched_share() -> Share:
    """The share of a process that `accelerate launch` or torchrun started, from the environment variables they set; else
    everything. The processes do not communicate: each appends its share to one folder, and one that dies stops no other."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def launched_device(device: str) -> str:
    """The device of this process of a launch: an accelerator of its own where the machine has several."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{int(rank) % torch.cuda.device_count()}"
    return device
