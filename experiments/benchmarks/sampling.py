"""What sampling costs beside the network: the time of a jitted `sample` over that of its network calls alone.

The network is a stack of plain JAX layers, widened until one call takes 12 ms or more. Calls alone and samplers are
timed in turn, and each sampler is divided by the calls just before and after it, so that a busy machine slows both;
processor time is counted beside wall time, since other processes do not add to it. The target is a ratio of at most
1.03. Compilations are counted while times, guidance scale, weights and keys change.

Run it with `python experiments/benchmarks/sampling.py`.
"""

import argparse
import functools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.denoisers.guidance import classifier_free
from diffusion_jax.denoisers.network import doubled, make_denoiser
from diffusion_jax.files import replacing
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.schedules import linear_beta
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import evaluations, sample

NAMES = ("ddim", "dpmpp_2m", "unipc", "heun", "ancestral")
TARGET = 1.03
BATCH, SIDE, LAYERS, HIDDEN = 8, 32, 4, 4
WIDTHS = {"convolution": (16, 24, 32, 48, 64, 96, 128), "dense": (256, 384, 512, 768, 1024, 1536, 2048)}
COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Calibrate a network, time the samplers beside it, count compilations, and report."""
    options = _arguments()
    network, width, alone = _calibrated(options.network, options.milliseconds / 1000)
    rows = _time(network, options.steps, options.repeats)
    extra = {name: _recompilations(network, name) for name in tqdm(NAMES, desc="compilations")}
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "network": {"kind": options.network, "width": width, "seconds": alone},
        "steps": options.steps,
        "repeats": options.repeats,
        "solvers": [{**row, "extra_compilations": extra[row["name"]]} for row in rows],
    }
    _show(report)
    if options.json:
        with replacing(options.json) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
    if any(extra.values()):
        raise SystemExit("error: a change of values compiled anew.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time jitted sampling over the time of its network calls alone, and count compilations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--network", choices=sorted(WIDTHS), default="convolution", help="layers to stack")
    parser.add_argument("--milliseconds", type=float, default=12.0, help="least time of one call to calibrate to")
    parser.add_argument("--steps", type=int, default=10, help="steps of the grid")
    parser.add_argument("--repeats", type=int, default=31, help="rounds of interleaved timings")
    parser.add_argument("--json", type=Path, default=None, help="also write the report there")
    return parser.parse_args()


def _dense(params, x, t, cond):
    h = x.reshape(x.shape[0], -1) + t[:, None] + (0 if cond is None else cond[:, None])
    shape = h.shape
    h = h @ params["first"]
    for weight in params["inner"]:
        h = h + jnp.tanh(h @ weight)
    return jnp.tanh(h @ params["last"]).reshape(shape).reshape(x.shape)


def _convolution(params, x, t, cond):
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    moved = t if cond is None else t + cond
    h = conv(x + moved[:, None, None, None], params["first"])
    for weight in params["inner"]:
        h = h + jnp.tanh(conv(h, weight))
    return jnp.tanh(conv(h, params["last"]))


def _params(kind: str, width: int, seed: int) -> dict[str, Any]:
    around = {"dense": (), "convolution": (3, 3)}[kind]
    outer = {"dense": SIDE * SIDE * 3, "convolution": 3}[kind]
    draw = np.random.default_rng(seed)

    def weight(inputs, outputs):
        size = (*around, inputs, outputs)
        return jnp.asarray(draw.normal(size=size) / np.sqrt(np.prod(size[:-1])), jnp.float32)

    inner = [weight(width, width) for _ in range(LAYERS)]
    return {"first": weight(outer, width), "inner": inner, "last": weight(width, outer)}


class _Network:
    """A network of some kind and width, its weights, and its jitted call."""

    def __init__(self, kind, width):
        self.apply = {"dense": _dense, "convolution": _convolution}[kind]
        self.params, self.others = (_params(kind, width, seed) for seed in range(2))
        self.call = jax.jit(lambda params, x, t: self.apply(params, x, t, None))
        self.x = jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, SIDE, SIDE, 3)), jnp.float32)
        self.t = jnp.full(BATCH, 0.5)

    def calls(self, count):
        """Time `count` calls, each of the output of the one before, as they are in sampling."""

        def chain():
            x = self.x
            for _ in range(count):
                x = self.call(self.params, x, self.t)
            return x

        return _timed(chain)


def _timed(work) -> np.ndarray:
    """Return the wall time and the processor time of some work, in seconds."""
    begin = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return np.asarray([time.perf_counter() - begin[0], time.process_time() - begin[1]])


def _calibrated(kind: str, least: float) -> tuple[_Network, int, float]:
    """Return the narrowest network whose call takes long enough, its width and its time."""
    for width in tqdm(WIDTHS[kind], desc="widths"):
        network = _Network(kind, width)
        network.calls(3)
        alone = min(network.calls(5)[0] / 5 for _ in range(5))
        if alone >= least:
            return network, width, alone
    raise SystemExit(f"error: no {kind} network in the list takes {1000 * least:g} ms here. Ask for fewer.")


def _time(network: _Network, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Time every sampler between network calls; ratios are taken within a round, and their median reported."""
    schedule = linear_beta()
    times = GRIDS["karras"](schedule, steps)
    runs, calls = {}, {}
    for name in NAMES:
        solver = SOLVERS[name](schedule)
        calls[name] = evaluations(solver, times, schedule)

        def run(params, x, times, key, solver=solver):
            denoise = make_denoiser(network.apply, params, schedule, prediction="v")
            return sample(denoise, solver, times, x, key)[0]

        runs[name] = jax.jit(run)
        jax.block_until_ready(runs[name](network.params, network.x, times, jax.random.key(0)))
    sampled = {name: [] for name in NAMES}
    alone = {name: [] for name in NAMES}
    key = jax.random.key(0)
    for _ in tqdm(range(repeats), desc="rounds"):
        for name in NAMES:
            half = (calls[name] + 1) // 2
            before = network.calls(half)
            sampled[name].append(_timed(functools.partial(runs[name], network.params, network.x, times, key)))
            alone[name].append((before + network.calls(half)) / (2 * half) * calls[name])
    return [_row(name, calls[name], np.asarray(sampled[name]), np.asarray(alone[name])) for name in NAMES]


def _row(name, calls, sampled, alone):
    wall, processor = np.median(sampled / alone, axis=0)
    return {
        "name": name,
        "calls": calls,
        "call_seconds": float(np.median(alone[:, 0])) / calls,
        "sampling_seconds_per_call": float(np.median(sampled[:, 0])) / calls,
        "ratio": float(wall),
        "ratio_of_minima": float(sampled[:, 0].min() / alone[:, 0].min()),
        "ratio_of_processor_time": float(processor),
    }


def _recompilations(network: _Network, name: str) -> int:
    """Count what XLA compiles when times, guidance scale, weights and key change their values."""
    schedule = linear_beta()
    solver = SOLVERS[name](schedule)
    cond, null = jnp.ones(BATCH), jnp.zeros(BATCH)

    @jax.jit
    def run(params, x, times, scale, key):
        halves = doubled(network.apply, params, schedule, prediction="v", cond=cond, null=null)
        return sample(classifier_free(*halves, scale), solver, times, x, key)[0]

    grids = [GRIDS[grid](schedule, 4) for grid in ("karras", "uniform_log_snr")]
    scales = [jnp.asarray(value) for value in (1.0, 7.5)]
    keys = [jax.random.key(seed) for seed in range(2)]
    jax.block_until_ready(run(network.params, network.x, grids[0], scales[0], keys[0]))
    compiled = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        compiled.append(event == COMPILED)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for params in (network.params, network.others):
        for times in grids:
            for scale, key in zip(scales, keys, strict=True):
                jax.block_until_ready(run(params, network.x, times, scale, key))
    jax.monitoring.clear_event_listeners()
    return sum(compiled)


def _show(report: dict[str, Any]) -> None:
    network = report["network"]
    print(f"{report['machine']} ({report['device']}), jax {report['versions']['jax']}")
    print(f"{network['kind']} network, width {network['width']}, {1000 * network['seconds']:.1f} ms a call\n")
    print(f"{'':<39}{'ratio of':>19}{'compiled':>21}")
    print(
        f"{'solver':<12}{'calls':>6}{'call':>10}{'sampling':>11}{'wall':>8}{'minima':>11}{'processor':>11}{'anew':>10}"
    )
    for row in report["solvers"]:
        milliseconds = [f"{1000 * row[word]:.1f} ms" for word in ("call_seconds", "sampling_seconds_per_call")]
        mark = "" if row["ratio"] <= TARGET else f"  above {TARGET}"
        print(
            f"{row['name']:<12}{row['calls']:>6}{milliseconds[0]:>10}{milliseconds[1]:>11}{row['ratio']:>8.3f}"
            f"{row['ratio_of_minima']:>11.3f}{row['ratio_of_processor_time']:>11.3f}{row['extra_compilations']:>10}{mark}"
        )


if __name__ == "__main__":
    main()
