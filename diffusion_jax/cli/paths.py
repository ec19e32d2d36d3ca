"""Draw points from data whose diffusion is known in closed form, with any solver on any path.

    python -m diffusion_jax paths --config configs/exact_2d.py --workdir runs/exact
    python -m diffusion_jax paths --config configs/exact_2d.py:smoke --workdir runs/exact
    python -m diffusion_jax paths --config configs/exact_2d.py --workdir runs/exact \\
        --config.sampling.solver=heun --config.schedule=rectified --config.sampling.steps=40

--config PATH[:MODE]   a config file; MODE `smoke` makes it small
--workdir DIR          where the results go; the folder is made if need be
--config.KEY=VALUE     change any value of the config, as --config.seed=1
--config.KEY=NAME      replace an entry that has a name: data, schedule, pace, sampling.grid, sampling.solver
--config.KEY="{'name': 'cosine', 'offset': 0.01}"      the same, with keywords

The denoiser is exact, so what separates the samples from the data is the solver's error and chance. DIR receives
samples.npz (`samples`, where they started, and the same points carried along the exact flow), metrics.json and the
picture paths.png. Files that are there already are replaced.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import plots
from diffusion_jax.cli import arguments
from diffusion_jax.evaluation.distance import sliced_distance
from diffusion_jax.experiment import Exact, at_least, make_exact
from diffusion_jax.files import replacing
from diffusion_jax.process.forward import start_from
from diffusion_jax.process.noise import example_keys
from diffusion_jax.solvers.solver import evaluations, progress, sample
from diffusion_jax.workdir import versions

FLOW_STEPS = 200  # leave an error of 1e-5, which is float32's
PIXELS = 240  # along a side of the density's picture
SHOWN = 160  # paths in the picture; of those that jitter, far fewer can be told apart
SHOWN_STOCHASTIC = 12


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and build its parts; return the job."""
    config, workdir = arguments.read(argv)
    parts = make_exact(config)
    at_least(config, "count", 2)
    _rehearse(parts)
    workdir.mkdir(parents=True, exist_ok=True)
    return partial(_run, config, workdir, parts)


def _run(config: Any, workdir: Path, parts: Exact) -> None:
    start, samples, paths = _draw(config, parts)
    broken = int(jnp.sum(~jnp.all(jnp.isfinite(samples), axis=1)))
    if broken:
        raise SystemExit(
            f"error: {broken} of {config.count} samples are not finite: {parts.solver.name} is unstable on this grid. "
            "Take more steps or another grid. Nothing was written."
        )
    exact = parts.data.flow(parts.schedule, start, parts.times[0], parts.times[-1], steps=FLOW_STEPS)
    data_key = jax.random.fold_in(jax.random.key(config.seed), 3)
    metrics = _describe(config, parts) | _measure(parts, samples, exact, parts.data.draw(data_key, config.count))
    with replacing(workdir / "samples.npz") as file:
        np.savez(file, samples=samples, start=start, exact=exact, times=parts.times)
    with replacing(workdir / "metrics.json") as file:
        file.write((json.dumps(metrics, indent=2) + "\n").encode())
    with replacing(workdir / "paths.png") as file:
        _picture(config, parts, start=start, samples=samples, paths=paths).savefig(file, format="png", dpi=120)
    _report(metrics, workdir)


def _rehearse(parts):
    """Trace two samples without computing them: parts that do not fit each other say so here."""
    denoise = parts.data.denoiser(parts.schedule)
    x = jax.ShapeDtypeStruct((2, parts.data.means.shape[-1]), jnp.float32)
    jax.eval_shape(lambda x: sample(denoise, parts.solver, parts.times, x, jax.random.key(0)), x)


def _draw(config, parts):
    """Sample, and return the starting points, the end points, and every point between, (steps, count, d)."""
    start_key, noise_key, solver_key = (jax.random.fold_in(jax.random.key(config.seed), i) for i in range(3))
    x0 = parts.data.draw(start_key, config.count)
    start = start_from(parts.schedule, x0, example_keys(noise_key, config.count), parts.times[0])
    bar = progress(parts.times, label=f"{parts.solver.name} on {parts.schedule.name}")

    def observe(x, now):
        bar(x, now)
        return x

    denoise = parts.data.denoiser(parts.schedule)
    run = jax.jit(lambda x, key: sample(denoise, parts.solver, parts.times, x, key, observe=observe))
    samples, paths = jax.block_until_ready(run(start, solver_key))
    jax.effects_barrier()
    return start, samples, paths


def _describe(config, parts):
    return {
        "config": config.to_dict(),
        "evaluations": evaluations(parts.solver, parts.times, parts.schedule),
        "versions": versions(),
    }


def _measure(parts, samples, exact, data):
    """Compare with the exact flow, where the solver follows it, and with the data's moments and fresh examples."""
    away = np.linalg.norm(np.asarray(samples - exact, np.float64), axis=1)
    mean, covariance = np.asarray(parts.data.mean()), np.asarray(parts.data.covariance())
    along_flow = {"rms": float(np.sqrt(np.mean(away**2))), "median": float(np.median(away)), "max": float(away.max())}
    return {
        "error_to_exact_flow": None if parts.solver.stochastic else along_flow,
        "error_of_mean": float(np.linalg.norm(np.mean(samples, 0) - mean)),
        "error_of_covariance": float(np.linalg.norm(np.cov(samples, rowvar=False) - covariance)),
        "sliced_distance": sliced_distance(samples, data),
        "sliced_distance_of_exact_flow": sliced_distance(exact, data),
    }


def _picture(config, parts, *, start, samples, paths):
    schedule, times = parts.schedule, parts.times
    # On |(alpha, sigma)| = 1 every path is as wide as its data, exploding ones too.
    size = np.hypot(schedule.alpha(times), schedule.sigma(times))[:, None, None]
    shown = SHOWN_STOCHASTIC if parts.solver.stochastic else SHOWN
    paths = np.concatenate([start[None], paths])[:, :shown] / size
    limit = np.ceil(2.1 * max(np.abs(paths).max(), np.quantile(np.abs(samples), 0.999))) / 2
    side = np.linspace(-limit, limit, PIXELS)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), samples.dtype)
    log_density = np.asarray(parts.data.log_density(grid)).reshape(PIXELS, PIXELS)
    title = f"{config.data.name}   {parts.solver.name}, {config.sampling.steps} steps   {parts.schedule.name}"
    return plots.paths_and_samples(paths, times, samples, log_density, limit=limit, title=title)


def _report(metrics, workdir):
    flow = metrics["error_to_exact_flow"]
    print(f"evaluations of the denoiser      {metrics['evaluations']}")
    if flow:
        print(f"error to the exact flow          {flow['median']:.2e} median, {flow['rms']:.2e} rms")
    print(f"error of the mean                {metrics['error_of_mean']:.2e}")
    print(f"error of the covariance          {metrics['error_of_covariance']:.2e}")
    print(
        f"sliced distance to fresh data    {metrics['sliced_distance']:.2e}"
        f"  (exact flow: {metrics['sliced_distance_of_exact_flow']:.2e})"
    )
    print(f"wrote {workdir}/samples.npz, metrics.json and paths.png")
