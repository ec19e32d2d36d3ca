"""How many images a second one core brings from a source into batches, with a crop, a flip, scaling and label dropout.

The images are 32 x 32; the folder's are PNG files just written, so the disk has them in memory. Batches are computed
one after another in this process, and images are counted against its processor time, which other processes do not
slow as they slow the clock; `--workers` adds a row for reading ahead by so many processes, against the clock.

Run it with `python experiments/benchmarks/data.py`.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data import make_pipeline, make_source
from diffusion_jax.data.array import write_records

SIDE, COUNT = 32, 2048
TRANSFORMS = {
    "scaled": [{"name": "center_crop", "side": SIDE}, "to_unit"],
    "crop, flip": [{"name": "random_crop", "side": SIDE, "padding": 4}, "flip", "to_unit", "drop_label", "condition"],
}


def main() -> None:
    """Write the data, read it in every way, and print a table."""
    parser = argparse.ArgumentParser(description="Count images a second through the whole pipeline.")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time to spend on each row")
    parser.add_argument("--workers", type=int, default=0, help="also read by so many worker processes")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, batches of {options.batch_size}\n")
    print(f"{'source':<14}{'transforms':<14}{'images / s / core':>18}{'us / image':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in _written(Path(folder)).items():
            source = make_source(spec)
            for label, transforms in TRANSFORMS.items():
                pipeline = make_pipeline(source, transforms, batch_size=options.batch_size)
                rate = _rate(pipeline, options.seconds)
                print(f"{name:<14}{label:<14}{rate:>18,.0f}{1e6 / rate:>12.0f}")
            if options.workers:
                ahead = make_pipeline(
                    source, TRANSFORMS["crop, flip"], batch_size=options.batch_size, workers=options.workers
                )
                rate = _rate_ahead(ahead, options.seconds)
                print(f"{name:<14}{f'{options.workers} workers':<14}{rate:>18,.0f}  / s by the clock, all of them")


def _written(folder: Path) -> dict[str, dict]:
    """Write smooth random images as an npz file, as records and as PNG files, and name the sources of all."""
    draw = np.random.default_rng(0)
    images = np.kron(draw.integers(0, 256, (COUNT, 8, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    labels = np.arange(COUNT) % 10
    np.savez(folder / "images.npz", x=images, label=labels)
    rows = ({"x": x, "label": np.int32(label)} for x, label in zip(images, labels, strict=True))
    write_records(folder / "images.array_record", rows, classes=[str(label) for label in range(10)])
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "png" / str(label) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return {
        "array (npz)": {"name": "array", "path": str(folder / "images.npz")},
        "array_record": {"name": "array", "path": str(folder / "images.array_record")},
        "folder (PNG)": {"name": "folder", "path": str(folder / "png")},
        "shapes": {"name": "shapes", "side": SIDE},
    }


def _rate(pipeline, seconds) -> float:
    """Return images per second of processor time, in one process."""
    step, _ = 1, pipeline[0]
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        _ = pipeline[step]
        step += 1
    return (step - 1) * pipeline.batch_size / (time.process_time() - begin)


def _rate_ahead(pipeline, seconds) -> float:
    """Return images per second of wall time with worker processes, once all of them have started."""
    iterator = pipeline.iterate()
    for _ in range(20):
        next(iterator)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        next(iterator)
        count += 1
    rate = count * pipeline.batch_size / (time.perf_counter() - begin)
    iterator.close()
    return rate


if __name__ == "__main__":
    main()
