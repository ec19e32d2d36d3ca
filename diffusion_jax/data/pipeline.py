"""From a source to batches: a batch is a function of its step, and of nothing else.

Place g = step * batch_size + position of an endless row of examples (order.py) is filled the same way by whoever
fills it. Host h of H takes the positions from h batch_size / H up to the next host's. Hence

    the shards of a step, one after another, are the batch of a single host, for any number of hosts;         (1)
    a run resumes from the number of its steps alone, on any number of hosts and worker processes.            (2)

Threads and processes only compute batches ahead of time (ahead.py), which cannot change them.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.chance import TRANSFORM, check_seed, generator
from diffusion_jax.data.order import Order, in_order, shuffled
from diffusion_jax.data.source import Info, Source, many
from diffusion_jax.data.transforms import Transform, make_transforms

ENDLESS = 2**62  # examples: the place of the last one still fits 64 bits


class Reading(NamedTuple):
    """Who computes batches ahead of time: worker processes, or none, and batches ready in each."""

    workers: int
    prefetch: int


class Pipeline:
    """Batches by step: `pipeline[step]` is a dict of arrays (batch_size / hosts, ...), strings among them.

    Beside the entries of the examples there is `index` (int64), the number of each example in the whole row, which
    keys its noise; and in an evaluation `valid`, False for what only fills the last batch. `info` says what the
    examples are like after the transforms. Iterate from the first step, or by `iterate` from any.
    """

    def __init__(
        self,
        source: Source,
        transforms: Iterable[Any],
        order: Order,
        *,
        batch_size: int,
        shard: tuple[int, int],
        seed: int,
        steps: int,
        reading: Reading,
    ):
        self.batch_size, self.steps = batch_size, steps
        self._source, self._order, self._shard, self._seed, self._reading = source, order, shard, seed, reading
        self.transforms: tuple[Transform, ...]
        self.info: Info
        self.transforms, self.info = make_transforms(transforms, source.info)
        self._random = any(transform.random for transform in self.transforms)
        for name, shape in self.info.shapes.items():
            if None in shape:
                raise ValueError(
                    f"'{name}' of '{self.info.name}' varies in size, {shape}, and cannot be put into batches: add a "
                    "transform that gives one size, like {'name': 'adm_crop', 'side': 256}."
                )

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}.")
        host, hosts = self._shard
        share = self.batch_size // hosts
        index = step * self.batch_size + host * share + np.arange(share, dtype=np.int64)
        places = self._order(index)
        found = many(self._source, places.example)
        examples = [
            self._transformed(example, int(e), int(i))
            for example, e, i in zip(found, places.epoch, places.example, strict=True)
        ]
        batch = _stacked(examples) | {"index": index}
        return batch if places.valid is None else batch | {"valid": places.valid}

    def __iter__(self) -> Any:
        return self.iterate()

    def iterate(self, step: int = 0) -> Any:
        """Return an iterator from `step` on, with `get_state`, `set_state` and `close`: see `ahead.Batches`."""
        from diffusion_jax.data.ahead import Batches  # grain loads JAX wherever it is installed

        return Batches(self, step, workers=self._reading.workers, prefetch=self._reading.prefetch)

    def _transformed(self, example, epoch, index):
        draw: Any = generator(TRANSFORM, self._seed, epoch=epoch, example=index) if self._random else None
        for transform in self.transforms:
            example = transform.apply(example, draw)
        return example


def make_pipeline(
    source: Source,
    transforms: Iterable[Any] = (),
    *,
    batch_size: int,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    epochs: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
) -> Pipeline:
    """Return the batches of training: every epoch in an order of its own, without end unless `epochs` says so.

    `batch_size` is that of all hosts together, and `shard` this host and their number. Batches run on from one epoch
    into the next, so no example is left out; only the last of a finite run is dropped if it is not full. `workers`
    processes hold `prefetch` batches ready each, or as many threads of this process do if there are no workers.
    """
    _check(source, batch_size, shard, Reading(workers, prefetch))
    if epochs is not None and epochs * len(source) < batch_size:
        raise ValueError(
            f"make_pipeline: {epochs} epochs of {len(source)} examples do not fill a batch of {batch_size}. Make the "
            "batch smaller, or the run longer."
        )
    return Pipeline(
        source,
        transforms,
        shuffled(len(source), check_seed(seed, "make_pipeline")),
        batch_size=batch_size,
        shard=shard,
        seed=seed,
        steps=(ENDLESS if epochs is None else epochs * len(source)) // batch_size,
        reading=Reading(workers, prefetch),
    )


def make_evaluation(
    source: Source,
    transforms: Iterable[Any] = (),
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
    prefetch: int = 2,
) -> Pipeline:
    """Return the batches of one pass in order; the last is filled up with examples that are not `valid`.

    Transforms that draw at random are refused: what is measured is every example as it is, with its own label.
    """
    _check(source, batch_size, shard, Reading(workers, prefetch))
    pipeline = Pipeline(
        source,
        transforms,
        in_order(len(source)),
        batch_size=batch_size,
        shard=shard,
        seed=0,
        steps=-(-len(source) // batch_size),
        reading=Reading(workers, prefetch),
    )
    drawing = [transform.name for transform in pipeline.transforms if transform.random]
    if drawing:
        raise ValueError(f"make_evaluation: {', '.join(drawing)} would change examples at random; leave it out.")
    return pipeline


def examples(source: Source, transforms: Iterable[Any], indices: Any) -> dict[str, Any]:
    """Return the examples of these numbers, from the first again after the last, as one batch.

    Each is as it is: transforms that draw at random are left out.
    """
    steady = [one for one in make_transforms(transforms, source.info)[0] if not one.random]
    found = many(source, np.asarray(indices, np.int64) % len(source))
    nothing: Any = None  # to draw from
    for transform in steady:
        found = [transform.apply(example, nothing) for example in found]
    return _stacked(list(found))


def first(pipeline: Pipeline, count: int) -> Iterator[dict[str, Any]]:
    """Yield the batches that hold the first `count` examples of a pass; what is beyond them is not `valid`."""
    for batch in islice(pipeline, -(-count // pipeline.batch_size)):
        yield batch | {"valid": batch["valid"] & (batch["index"] < count)}


def _check(source, batch_size, shard, reading):
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard is {shard}; it must be (this host, number of hosts), counted from 0.")
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"batch_size is {batch_size}, of all hosts together; it must be a multiple of the {count}.")
    if len(source) < 1:
        raise ValueError(f"the source '{source.info.name}' has no examples.")
    if reading.workers < 0 or reading.prefetch < (1 if reading.workers else 0):
        raise ValueError(
            f"workers is {reading.workers} and prefetch {reading.prefetch}; they must not be negative, and workers "
            "need a prefetch of at least 1."
        )


def _stacked(examples):
    """Put the entries of examples, dicts within dicts too, on top of each other."""
    first = examples[0]
    batch = {}
    for name, value in first.items():
        values = [example[name] for example in examples]
        if isinstance(value, dict):
            batch[name] = _stacked(values)
            continue
        shapes = {np.shape(one) for one in values}
        if len(shapes) > 1:
            raise ValueError(
                f"'{name}' has the shapes {' and '.join(map(str, sorted(shapes)))} in one batch, though its source "
                "promises one; add a transform that gives one size."
            )
        batch[name] = np.stack(values)
    return batch
