"""Samples on disk, batch by batch, so that a kill loses none that were finished.

A file `first-stop.npy` holds the samples from `first` up to `stop`, in uint8, and is whole or not there. Sample i is
fixed by its index, so files of other batch sizes and other devices fit together, and asking for more goes on where the
last time ended. Several hosts fill one folder together, each the batches that are its own by number.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffusion_jax.files import replacing


def generate(
    draw: Callable[[np.ndarray], np.ndarray], count: int, folder: Path, *, batch: int, progress: bool = True
) -> Iterator[np.ndarray]:
    """Yield the first `count` samples in order, in batches of uint8: from the folder, or drawn and put there.

    `draw` takes indices (batch,), always as many, and returns as many samples.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"generate: count is {count} and batch {batch}; both must be 1 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=count, unit="sample", desc="samples", disable=not progress) as bar:
        for samples, drawn in _range(draw, (0, count), folder, batch):
            if not drawn:
                bar.initial = getattr(bar, "initial", 0) + len(samples)  # the rate is that of drawing
            bar.update(len(samples))
            yield samples


def fill(
    draw: Callable[[np.ndarray], np.ndarray], count: int, folder: Path, *, batch: int, share: tuple[int, int]
) -> None:
    """Draw what the folder lacks of one host's share, (host, hosts), of the first `count` samples."""
    folder.mkdir(parents=True, exist_ok=True)
    host, hosts = share
    for first in range(host * batch, count, hosts * batch):
        for _ in _range(draw, (first, min(first + batch, count)), folder, batch):
            pass


def stored(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the files of samples in a folder by the range of what they hold, in order."""
    return dict(sorted((span(path), path) for path in folder.glob("*-*.npy")))


def span(path: Path) -> tuple[int, int]:
    """Return the range of samples that a file holds, by its name."""
    first, stop = path.stem.split("-")
    return int(first), int(stop)


def _range(draw, bounds, folder, batch):
    """Yield the samples from the first bound up to the second, and whether they had to be drawn."""
    first, last = bounds
    held = stored(folder)
    while first < last:
        file = next((path for (start, stop), path in held.items() if start <= first < stop), None)
        if file is not None:
            start = span(file)[0]
            samples = np.load(file, allow_pickle=False)[first - start : last - start]
        else:
            stop = min([first + batch, last, *(start for start, _ in held if start > first)])
            indices = np.minimum(np.arange(first, first + batch), stop - 1)
            samples = np.asarray(draw(indices))[: stop - first]
            with replacing(folder / f"{first:08d}-{stop:08d}.npy") as opened:
                np.save(opened, samples)
        first += len(samples)
        yield samples, file is None
