"""Measure every solver on data whose probability flow is known exactly.

Order: the slope of the error between two numbers of steps, on the inner part of the path, where log-SNR goes from -1.5
to 1. Error: from pure noise to clean data on a budget of denoiser calls, the last step onto t = 0 among them. Calls
are counted while the solver runs. Everything is in float64, so what is left is the solvers' own error.

Run it with `python -m experiments.solver_table`; it refreshes the tables of docs/solvers.md and their picture.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.files import replacing
from diffusion_jax.naming import choose
from diffusion_jax.process.forward import start_from
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.noise import advance, example_keys
from diffusion_jax.process.oracle import DENSITIES
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.ode import ONE_STEP
from diffusion_jax.solvers.solver import evaluations
from diffusion_jax.types import Array, Interval, Schedule, Solver
from experiments.solver_picture import Line, errors_and_calls

BUDGETS = (5, 10, 20, 50)
GRID_BUDGET, ON_GRIDS = 20, ("uniform", "quadratic", "karras", "uniform_log_snr")  # all start at t = 1
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
FIRST, LAST = -1.5, 1.0  # log-SNR at the ends of the path on which orders are measured
POINTS, SAMPLES, LINES, FLOW_STEPS = 512, 16384, 64, 1500
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
# Tiny programs, hundreds of them: optimising them takes longer than running them.
QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Row(NamedTuple):
    """A solver with its keywords, the panel that shows it, and the steps at which its order shows."""

    name: str
    keywords: Mapping[str, Any] = MappingProxyType({})
    panel: str = ""
    steps: tuple[int, int] = (40, 80)

    @property
    def label(self) -> str:
        """Write it as it would be called."""
        inside = ", ".join(f"{word}={value}" for word, value in self.keywords.items())
        return f"{self.name}({inside})" if inside else self.name

    def make(self, schedule: Schedule) -> Solver:
        """Build it on a path."""
        return choose(SOLVERS, {"name": self.name, **self.keywords}, "solver", schedule)

    def starting(self, schedule: Schedule) -> int:
        """Count the calls that `start` adds to the first steps."""
        if "start" not in self.keywords:
            return 0
        order = self.keywords.get("order", {"deis": 3, "lms": 4}.get(self.name, 2))
        return (order - 1) * ONE_STEP[self.keywords["start"]](schedule).evaluations


class Study(NamedTuple):
    """What all solvers are measured on."""

    schedule: Schedule
    data: Any
    grid: Callable[..., Array]
    start: Array  # pure noise, and where the exact flow takes it
    truth: Array
    inner: Array  # points where log-SNR is FIRST, and where the exact flow takes them
    inner_truth: Array


def main() -> None:
    """Measure, and replace the tables and the picture when all is measured."""
    options = _arguments()
    text = options.output.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"error: {options.output} must have one line '{BEGIN}' and, below it, one line '{END}'.")
    with jax.enable_x64(True):
        study = _study(options)
        flows = [(row, *_measured(study, row)) for row in tqdm(ODE, desc="ODE solvers")]
        noisy = [(row, _noisy(study, row)) for row in tqdm(SDE, desc="stochastic solvers")]
        floor = _floor(study)
        free = [(value, *_adaptive(study, value)) for value in tqdm(TOLERANCES, desc="tolerances")]
        grids = [(name, _grid_errors(study._replace(grid=GRIDS[name]))) for name in tqdm(ON_GRIDS, desc="grids")]
    where = f"schedule `{options.schedule}`, grid `{options.grid}`, data `{options.data}`"
    tables = "\n".join(_tables(study.schedule, where, flows, noisy, floor))
    tables += "\n".join(_more_tables(free, grids)) + "\n"
    lines = [Line(row.panel, row.label, *zip(*filter(None, errors), strict=True)) for row, _, errors in flows]
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.figure) as file:
        errors_and_calls(lines, PANELS, BUDGETS).savefig(file, format="png", dpi=150)
    with replacing(options.output) as file:
        file.write(f"{before}{BEGIN}\n\n{tables}\n{END}{after}".encode())
    print(f"wrote {options.output} and {options.figure}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.solver_table",
        description="Measure order and error of every solver against an exact probability flow; takes some minutes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/solvers.md"), help="page whose marked part to replace"
    )
    parser.add_argument("--figure", type=Path, default=Path("docs/images/solvers.png"), help="picture to write")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="linear_beta", help="path", metavar="NAME")
    parser.add_argument("--grid", choices=sorted(GRIDS), default="karras", help="times of the budgets", metavar="NAME")
    parser.add_argument("--data", choices=sorted(DENSITIES), default="mixture_2d", help="density", metavar="NAME")
    return parser.parse_args()


def _study(options) -> Study:
    schedule, data = SCHEDULES[options.schedule](), DENSITIES[options.data]()
    grid = GRIDS[options.grid]
    times = grid(schedule, 2)
    ends = [schedule.time(jnp.asarray(value)) for value in (FIRST, LAST)]
    keys = example_keys(jax.random.key(1), POINTS)
    x0 = data.draw(jax.random.key(0), POINTS)
    start, inner = (start_from(schedule, x0, keys, t) for t in (times[0], ends[0]))
    flow = jax.jit(lambda x, t, s: data.flow(schedule, x, t, s, steps=FLOW_STEPS))
    return Study(schedule, data, grid, start, flow(start, times[0], times[-1]), inner, flow(inner, *ends))


def _runner(study: Study, solver: Solver) -> Callable[..., tuple[np.ndarray, int]]:
    """Return (times, x, seed) -> the sample and the denoiser's calls: `sample`, but compiled once for all lengths."""
    calls, exact = [], study.data.denoiser(study.schedule)

    def denoise(x, t):
        jax.debug.callback(lambda _: calls.append(1), jnp.ravel(t)[0])
        return exact(x, t)

    def step(x, memory, now):
        return solver.step(denoise, x, now._replace(key=advance(now.key, now.index)), memory)

    step = jax.jit(step, compiler_options=QUICK)

    def run(times, x, seed=0):
        calls.clear()
        times, count = np.asarray(times), len(times) - 1
        keys, memory = example_keys(jax.random.key(seed), len(x)), solver.init(x)
        for index, ends in enumerate(itertools.pairwise(times)):
            x, memory = step(x, memory, Interval(*ends, keys, index, count))
        jax.block_until_ready(x)
        jax.effects_barrier()
        return np.asarray(x), len(calls)

    return run


def _measured(study: Study, row: Row) -> tuple[float, list[tuple[int, float] | None]]:
    """Measure a deterministic solver's order, even in log-SNR, and its (calls, error) on each budget."""
    run = _runner(study, row.make(study.schedule))
    errors = []
    for steps in row.steps:
        times = study.schedule.time(jnp.linspace(FIRST, LAST, steps + 1))
        errors.append(_rms(run(times, study.inner)[0], study.inner_truth))
    slope = math.log(errors[0] / errors[1]) / math.log(row.steps[1] / row.steps[0])
    return slope, _on_budgets(study, row, lambda times: run(times, study.start), lambda x: _rms(x, study.truth))


def _noisy(study: Study, row: Row) -> list[tuple[int, float] | None]:
    """Measure a stochastic solver's (calls, sliced distance to the data) on each budget."""
    run = _runner(study, row.make(study.schedule))
    x0, keys = study.data.draw(jax.random.key(2), SAMPLES), example_keys(jax.random.key(3), SAMPLES)
    data = np.asarray(study.data.draw(jax.random.key(5), SAMPLES))

    def sampled(times):
        return run(times, start_from(study.schedule, x0, keys, times[0]), seed=4)

    return _on_budgets(study, row, sampled, lambda x: _sliced(x, data))


def _on_budgets(study, row, run, error) -> list[tuple[int, float] | None]:
    """Return (calls, error) on each budget, or None where not even one step can be paid."""
    found: list[tuple[int, float] | None] = []
    for budget in BUDGETS:
        times = _affordable(study, row, budget)
        x, calls = (None, 0) if times is None else run(times)
        if calls > budget:
            raise RuntimeError(f"{row.label} made {calls} calls on a budget of {budget}: its claim is too low.")
        found.append(None if times is None else (calls, error(x)))
    return found


def _floor(study: Study) -> float:
    """Return the sliced distance of two sets of data: what no solver can be told from."""
    return _sliced(*(np.asarray(study.data.draw(jax.random.key(seed), SAMPLES)) for seed in (6, 5)))


def _adaptive(study: Study, tolerance: float) -> tuple[int, float]:
    solver = SOLVERS["adaptive"](study.schedule, rtol=tolerance, atol=tolerance)
    times = study.grid(study.schedule, 2)
    x, calls = _runner(study, solver)(np.asarray([times[0], times[-1]]), study.start)
    return calls, _rms(x, study.truth)


def _grid_errors(study: Study) -> list[float]:
    """Measure the error of some solvers on the study's grid."""
    found = []
    for row in OF_GRIDS:
        times = _affordable(study, row, GRID_BUDGET)
        x, _ = _runner(study, row.make(study.schedule))(times, study.start)
        found.append(_rms(x, study.truth))
    return found


def _affordable(study: Study, row: Row, budget: int) -> Array | None:
    """Return the finest grid on which the row costs no more than the budget."""
    solver, extra = row.make(study.schedule), row.starting(study.schedule)
    end = float(study.grid(study.schedule, 2)[-1])
    for steps in range(budget, 0, -1):
        # A grid compiles its schedule for its own length; its cost follows from its length and its end.
        if evaluations(solver, np.full(steps + 1, end), study.schedule) + extra <= budget:
            return study.grid(study.schedule, steps)
    return None


def _rms(x: Any, truth: Any) -> float:
    """Return the root mean square distance of points."""
    return float(np.sqrt(np.mean(np.sum((np.asarray(x) - np.asarray(truth)) ** 2, axis=1))))


def _sliced(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean square of the 2-Wasserstein distances along random lines."""
    lines = np.random.default_rng(0).normal(size=(a.shape[1], LINES))
    lines /= np.linalg.norm(lines, axis=0)
    return float(np.sqrt(np.mean((np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)) ** 2)))


def _tables(schedule, where, flows, noisy, floor) -> Iterator[str]:
    yield f"Made by `python -m experiments.solver_table`: {where}, float64.\n"
    yield (
        "**Deterministic solvers.** Orders are measured from 40 to 80 steps unless said otherwise, errors are root mean"
        f" square distances of {POINTS} points to the exact flow from noise to clean data. Where the budget is not"
        " spent whole, the calls that were made are in parentheses; a dash says that not even one step can be paid."
        f" Calls are those of a step inside the path; with `start` the first steps cost more, which is counted.\n"
    )
    yield _line("solver", "order claimed", "measured", "calls a step", *(f"{budget} calls" for budget in BUDGETS))
    yield _line("---", *["---:"] * (3 + len(BUDGETS)))
    for row, order, errors in flows:
        at = "" if row.steps == (40, 80) else f" ({row.steps[0]} to {row.steps[1]})"
        solver = row.make(schedule)
        yield _line(f"`{row.label}`", solver.order, f"{order:.2f}{at}", solver.evaluations, *_cells(errors))
    yield (
        "\n**Stochastic solvers.** They follow no flow, so the error is the sliced 2-Wasserstein distance"
        f" ({LINES} lines) of {SAMPLES} samples to as many examples of the data; two sets of examples are {floor:.3f}"
        " apart, and what is near that cannot be told from it. `eta=0` draws no noise: it is `ddim` and `dpmpp_2m`.\n"
    )
    yield _line("solver", "calls a step", *(f"{budget} calls" for budget in BUDGETS))
    yield _line("---", *["---:"] * (1 + len(BUDGETS)))
    for row, errors in noisy:
        yield _line(f"`{row.label}`", row.make(schedule).evaluations, *_cells(errors, digits="{:.3f}"))


def _more_tables(free, grids) -> Iterator[str]:
    yield "\n\n**Adaptive**, one interval from noise to clean data; the points share their steps.\n"
    yield _line("`rtol` = `atol`", "calls", "error to the exact flow")
    yield _line("---:", "---:", "---:")
    for tolerance, calls, error in free:
        yield _line(f"{tolerance:g}", calls, f"{error:.1e}")
    yield f"\n**Grids**: the error to the exact flow on {GRID_BUDGET} calls.\n"
    yield _line("grid", *(f"`{row.label}`" for row in OF_GRIDS))
    yield _line("---", *["---:"] * len(OF_GRIDS))
    for name, errors in grids:
        yield _line(f"`{name}`", *(f"{error:.1e}" for error in errors))


def _cells(errors, digits="{:.1e}"):
    for budget, found in zip(BUDGETS, errors, strict=True):
        if found is None:
            yield "–"
            continue
        calls, error = found
        yield digits.format(error) + ("" if calls == budget else f" ({calls})")


def _line(*cells: Any) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


PANELS = IN_TIME, IN_NOISE, OF_DATA, OF_NOISE = (
    "One step, in time",
    "One step, in the noise level or log-SNR",
    "Multistep, on x0",
    "Multistep, on eps",
)

ODE = (
    Row("ddim", panel=IN_NOISE),
    Row("euler", panel=IN_TIME),
    Row("heun", panel=IN_TIME),
    Row("heun", {"variable": "sigma"}, IN_NOISE),
    Row("edm"),
    Row("midpoint", panel=IN_TIME),
    Row("midpoint", {"variable": "sigma"}, IN_NOISE),
    Row("rk4", panel=IN_TIME),
    Row("rk4", {"variable": "sigma"}, IN_NOISE),
    Row("dpmpp_2s", panel=IN_NOISE),
    Row("diffrax_step", {"method": "Bosh3"}, IN_NOISE),
    Row("diffrax_step", panel=IN_NOISE),
    Row("dpmpp_2m", panel=OF_DATA),
    Row("dpmpp_3m", panel=OF_DATA),
    Row("unipc", panel=OF_DATA),
    Row("unipc", {"variant": "bh1"}, OF_DATA),
    Row("unipc", {"order": 3}, OF_DATA, (160, 320)),
    Row("unipc", {"order": 3, "start": "rk4"}, OF_DATA, (160, 320)),
    Row("deis", panel=OF_NOISE),
    Row("deis", {"start": "heun"}, OF_NOISE),
    Row("deis", {"variable": "time"}, OF_NOISE),
    Row("deis", {"order": 4, "start": "rk4"}, OF_NOISE, (160, 320)),
    Row("lms", panel=OF_NOISE),
    Row("lms", {"start": "rk4"}, OF_NOISE, (160, 320)),
    Row("ipndm", panel=OF_NOISE),
)
"""Every deterministic solver of SOLVERS, with the variants worth knowing; `edm` draws on the line of `heun`."""

SDE = (
    Row("ancestral", {"eta": 0.0}),
    Row("ancestral", {"eta": 0.5}),
    Row("ancestral"),
    Row("ddpm"),
    Row("ddpm", {"variance": "fixed_large"}),
    Row("euler_ancestral"),
    Row("euler_maruyama"),
    Row("edm", {"churn": 10.0}),
    Row("dpmpp_sde"),
    Row("dpmpp_2m_sde", {"eta": 0.0}),
    Row("dpmpp_2m_sde", {"eta": 0.5}),
    Row("dpmpp_2m_sde"),
    Row("predictor_corrector"),
    Row("predictor_corrector", {"predictor": "dpmpp_2s"}),
    Row("annealed_langevin"),
)
"""Every solver that draws noise; with eta = 0 two of them draw none, which shows what it costs."""

OF_GRIDS = (Row("ddim"), Row("heun", {"variable": "sigma"}), Row("dpmpp_2m"), Row("unipc"), Row("deis"))

if __name__ == "__main__":
    main()
