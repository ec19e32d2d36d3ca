"""Batches ahead of time, by grain's threads or worker processes, and where a run is among them.

Since a batch is a function of its step, the whole state of a run over the data is the number of the next step. It
does not say how many hosts or workers there were, and so a run may resume with other numbers of both.

Importing this file imports JAX, because grain does where it is installed.
"""

from typing import Any

import grain
import numpy as np
from absl import flags


class Batches(grain.DatasetIterator):
    """Iterate over the batches of a pipeline from a step on.

    `get_state()` is {"step": the next step}: json, the same on every host. Being grain's iterator, grain's own
    checkpoint handler takes it too, but writes a file for each host and wants as many of them back.
    """

    def __init__(self, pipeline: Any, step: int = 0, *, workers: int = 0, prefetch: int = 2):
        super().__init__()
        self._pipeline, self._workers, self._prefetch = pipeline, workers, prefetch
        self._reader: Any = None
        self.set_state({"step": step})

    def __next__(self) -> dict[str, Any]:
        if self._step >= len(self._pipeline):
            self._stop()
            raise StopIteration
        self.start_prefetch()
        try:
            batch = next(self._reader)
        except BaseException:
            self._stop()  # after an error the reader would go on one batch too far
            raise
        self._step += 1
        return _own(batch) if self._workers else batch

    def get_state(self) -> dict[str, Any]:
        """Return the next step, in a dict."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to the step of a state, from before or from a run of another shape."""
        step = int(state["step"])
        if not 0 <= step <= len(self._pipeline):
            raise ValueError(f"step {step} of a pipeline with {len(self._pipeline)} steps: is it the same run?")
        self._stop()
        self._step = step

    def start_prefetch(self) -> None:
        """Begin to compute batches before the first is asked for."""
        if self._reader is None and self._step < len(self._pipeline):
            self._reader = iter(_reading(_From(self._pipeline, self._step), self._workers, self._prefetch))
            self._reader.start_prefetch()

    def close(self) -> None:
        """Stop the threads or processes; they also stop when the iterator is gone."""
        self._stop()
        super().close()

    def _stop(self):
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _own(batch):
    """Copy a batch out of the memory that it shares with the worker, which then can use it again."""
    return {name: _own(value) if isinstance(value, dict) else np.array(value) for name, value in batch.items()}


class _From:
    """The batches of a pipeline from one step on, as grain's random access source."""

    def __init__(self, pipeline, step):
        self._pipeline, self._step = pipeline, step

    def __len__(self):
        return len(self._pipeline) - self._step

    def __getitem__(self, index):
        return self._pipeline[self._step + index]


def _reading(batches, workers, prefetch):
    """Read batches by processes, each of which needs no threads, or by threads of this process."""
    threads = 0 if workers else prefetch
    read = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, threads))
    if not workers:
        return read
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's processes ask absl's flags, which only absl's programs parse
    return read.mp_prefetch(grain.MultiprocessingOptions(min(workers, len(batches)), prefetch))
