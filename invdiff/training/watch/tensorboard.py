"""Scalars and pictures for TensorBoard, by the event format of the package `tensorboard` (optional, imported here alone).

Written in the thread of the caller, unlike torch's SummaryWriter: a full disk is then an error where the numbers come
from, and not the end of a thread; and what was written before a kill -9 is on disk.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from invdiff.errors import UsageError


class EventFile:
    """A new event file in `folder`, beside those of the runs before it, for the steps after `step`.

    Its first event makes TensorBoard forget whatever they hold beyond `step`: a resumed training goes through those
    steps again. Raises UsageError if tensorboard is not installed, OSError where nothing can be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise UsageError(f"TensorBoard's files need a package ({error}): pip install tensorboard") from error
        self._event, self._summary = event_pb2, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names: this one has to come last, even if the clock went back.
        seconds = int(time.time())
        earlier = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        seconds = max([seconds, *(int(text) + 1 for text in earlier if text.isdigit())])
        self.path: Path = folder / f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(self.path.open("xb"))
        self._write(file_version="brain.Event:2")
        log = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=step + 1, session_log=log)
        self._records.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One number under each tag. Raises OSError."""
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=points))
        self._records.flush()

    def picture(self, step: int, tag: str, path: Path) -> None:
        """A PNG file, as it is. Raises OSError."""
        from PIL import Image

        with Image.open(path) as image:
            width, height = image.size
        picture = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self._write(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, image=picture)]))
        self._records.flush()

    def close(self) -> None:
        """Raises OSError."""
        self._records.close()

    def _write(self, **content: object) -> None:
        self._records.write(self._event.Event(wall_time=time.time(), **content).SerializeToString())
