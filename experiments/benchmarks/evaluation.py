"""What evaluation costs: features against torch, the Frechet distance, and memory as samples grow.

    pip install -e '.[peers]'
    python experiments/benchmarks/evaluation.py --batch 16 --rounds 5

The Inception network and the same network in torch take turns in one process, in float32, with as many threads as there
are cores; what is compared is the ratio within a round, and before that their features. torch runs it twice: as the
packages for FID do, a convolution and then its normalisation, and with the two folded and channels last. The Frechet
distance is timed on full covariances at 2048 dimensions, and, with `--sqrtm`, against scipy's root of their product.
"""

import argparse
import json
import os
import platform
import time
import tracemalloc
from importlib import import_module
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from diffusion_jax.evaluation.features import inception_random
from diffusion_jax.evaluation.fid import fid
from diffusion_jax.evaluation.metrics import METRICS, Tally
from diffusion_jax.evaluation.moments import accumulate, covariance, empty
from diffusion_jax.nets.inception import EPSILON, STAGES, Averaged, Conv, fold, inception, random_weights


def in_torch(weights: dict[str, np.ndarray], folded: bool) -> Any:
    """Return images (N, 299, 299, 3) -> pool of the same network in torch."""
    torch = cast(Any, import_module("torch"))
    torch.set_num_threads(os.cpu_count() or 1)
    call, tensors = torch.nn.functional, {name: torch.from_numpy(array) for name, array in weights.items()}
    order = torch.channels_last if folded else torch.contiguous_format
    merged = {}
    for name, kernel in tensors.items():
        if name.endswith("conv.weight"):
            conv = name.removesuffix(".conv.weight")
            gain, bias, mean, variance = (
                tensors[f"{conv}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gain / (variance + EPSILON).sqrt()
            merged[conv] = ((kernel * scale[:, None, None, None]).to(memory_format=order), bias - mean * scale)

    def convolve(plan, x):
        stride, same = (plan.stride, plan.padding == "SAME") if isinstance(plan, Conv) else (1, True)
        padding = tuple(size // 2 for size in plan.window) if same else 0
        if folded:
            return call.conv2d(x, *merged[plan.name], stride, padding).relu_()
        y = call.conv2d(x, tensors[f"{plan.name}.conv.weight"], None, stride, padding)
        statistics = (tensors[f"{plan.name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return call.batch_norm(y, *statistics, eps=EPSILON).relu_()

    def run(plan, x):
        if isinstance(plan, Averaged):
            return convolve(plan, call.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        if isinstance(plan, Conv):
            return convolve(plan, x)
        if plan in ("halve", "densest"):
            return call.max_pool2d(x, 3, 2) if plan == "halve" else call.max_pool2d(x, 3, 1, 1)
        if isinstance(plan, list):
            return torch.cat([run(part, x) for part in plan], 1)
        for part in plan:
            x = run(part, x)
        return x

    def pool(images):
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=order)
            return run(tuple(plan for _, plan in STAGES), x).mean((2, 3)).numpy()

    return pool


def features(batch: int, rounds: int) -> dict[str, Any]:
    """Time the network in turn with torch's."""
    weights = random_weights()
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 299, 299, 3)).astype(np.float32)
    params, run = fold(weights), jax.jit(inception)
    plain, folded = in_torch(weights, folded=False), in_torch(weights, folded=True)
    sides = {
        "ours": lambda: np.asarray(run(params, jnp.asarray(images))["pool"]),
        "torch": lambda: plain(images),
        "torch, folded": lambda: folded(images),
    }
    begin = time.perf_counter()
    first = sides["ours"]()
    compiled = time.perf_counter() - begin
    apart = {side: float(np.abs(call() - first).max()) for side, call in sides.items()}
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        for side, call in sides.items():
            begin = time.perf_counter()
            call()
            seconds[side].append(time.perf_counter() - begin)
    found: dict[str, Any] = {"batch": batch, "first_call": compiled, "largest_difference": apart}
    for side, times in seconds.items():
        ratios = np.asarray(times) / np.asarray(seconds["ours"])
        found[side] = {
            "images_per_second": batch / float(np.median(times)),
            "ours_is_faster_by": float(np.median(ratios)),
            "from": float(ratios.min()),
            "to": float(ratios.max()),
        }
        print(
            f"{side:<14} {found[side]['images_per_second']:6.2f} images/s"
            f"  ours is faster by {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
            flush=True,
        )
    extractor = inception_random(batch=batch)
    small = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), np.uint8)
    extractor.extract(small)
    begin = time.perf_counter()
    extractor.extract(small)
    found["extractor"] = batch / (time.perf_counter() - begin)
    print(f"{'extractor':<14} {found['extractor']:6.2f} images/s from 64 x 64 bytes to features on the host")
    return found


def distance(sqrtm: bool, dimension: int = 2048, count: int = 6000) -> dict[str, float]:
    """Time the Frechet distance of full covariances."""
    generator = np.random.default_rng(0)
    spectrum = np.exp(-np.linspace(0, 6, dimension))
    a, b = (
        accumulate(empty(dimension), (generator.normal(size=(count, dimension)) * spectrum + shift).astype(np.float32))
        for shift in (0.0, 0.01)
    )
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        value = fid(a, b)
        seconds.append(time.perf_counter() - begin)
    found = {"seconds": float(np.median(seconds)), "fastest": min(seconds), "value": value, "itself": fid(a, a)}
    print(f"distance at {dimension}: {found['seconds']:.2f} s; of a set from itself {found['itself']:.1e}", flush=True)
    if sqrtm:
        begin = time.perf_counter()
        root = np.real(np.trace(cast(Any, scipy.linalg.sqrtm(covariance(a) @ covariance(b)))))
        found["sqrtm"] = time.perf_counter() - begin
        apart = a.mean - b.mean
        other = apart @ apart + np.trace(covariance(a)) + np.trace(covariance(b)) - 2 * root
        found["sqrtm_value"] = float(other)
        print(f"by scipy's root: {found['sqrtm']:.2f} s; values apart by {abs(other - value) / value:.1e}", flush=True)
    return found


def memory(dimension: int = 256) -> dict[str, float]:
    """Measure the peak memory of tallies, in MB."""
    found = {}
    for name in ("fid", "kid"):
        for count in (2000, 20_000):
            tracemalloc.start()
            tally = Tally(METRICS[name]().samples)
            generator = np.random.default_rng(0)
            for _ in range(count // 100):
                tally.add({"pool": generator.normal(size=(100, dimension)).astype(np.float32)})
            tally.held()
            found[f"{name} of {count}"] = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
    print("peak memory: " + ", ".join(f"{what} {size:.1f} MB" for what, size in found.items()), flush=True)
    return found


def main() -> None:
    """Run everything and print it, at the end as json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sqrtm", action="store_true")
    arguments = parser.parse_args()
    found = {
        "distance": distance(arguments.sqrtm),
        "memory": memory(),
        "features": features(arguments.batch, arguments.rounds),
    }
    print(json.dumps({"jax": jax.__version__, "machine": platform.processor(), "cores": os.cpu_count(), **found}))


if __name__ == "__main__":
    main()
