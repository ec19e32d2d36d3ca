"""The loop of training: batches in, steps, and what happens every so many of them.

SIGTERM and SIGINT are answered after the step at hand: a checkpoint is written and `Stopped` raised. A second one ends
the process at once. Where several processes train as one, JAX's runtime passes a signal on to all of them and finds a
step that none has gone beyond, after which all of them stop.
"""

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from diffusion_jax.training.chips import chip_of
from diffusion_jax.training.flops import flops_of
from diffusion_jax.training.logbook import Logbook, Means
from diffusion_jax.training.parallel import Parallel
from diffusion_jax.types import Batch

COUNTERS = ("skipped", "in_a_row")
PREEMPTED = 75  # the exit code of a run that was told to stop and can go on: sysexits' "try again later"
AHEAD = 2  # steps that may be under way on the device before the loop waits


class Stopped(Exception):
    """The run was told to stop, and is saved."""


class Diverged(Exception):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class Hook(NamedTuple):
    """What is done with the state every `every` steps on the way, and, if `last`, after the last one."""

    every: int
    call: Callable[[Any, int], Any]
    last: bool = True


class Plan(NamedTuple):
    """How long to train, how often to log, and how many non-finite steps in a row end the run."""

    steps: int
    log_every: int = 100
    most_in_a_row: int = 10
    rate: Callable[[Any], Any] | None = None  # the learning rate, to be logged


def train(
    state: Any,
    parallel: Parallel,
    batches: Any,
    plan: Plan,
    logbook: Logbook,
    *,
    save: Callable[[Any], None],
    hooks: Sequence[Hook] = (),
) -> Any:
    """Train from the state's own step up to plan.steps and return the state; `save` writes a checkpoint of one."""
    step = int(parallel.get_state(state).step)
    clock, means, under_way = Clock(), Means(), collections.deque()
    run = counters = None
    shown = jax.process_index() == 0
    with Signals() as told, tqdm(total=plan.steps, initial=step, unit="step", disable=not shown) as bar:
        while step < plan.steps:
            with clock.waiting():
                fetched = next(batches)
            batch = parallel.put_batch(fetched)  # while the steps under way keep the devices busy
            if run is None:
                run, clock.flops = compiled(parallel.step, state, batch)
                clock.start(batch["x"].size // batch["x"][0].size)
            state, metrics = run(state, batch)
            step += 1
            counters = {name: metrics.pop(name) for name in COUNTERS}
            means.add(metrics)
            under_way.append(metrics["loss"])
            if len(under_way) > AHEAD:
                jax.block_until_ready(under_way.popleft())
            bar.update()
            if step % plan.log_every == 0 or step == plan.steps:
                found = means.take()
                bar.set_postfix_str(f"loss {float(found['loss']):.4f}")
                rate = {} if plan.rate is None else {"learning_rate": float(plan.rate(step))}
                logbook.scalars(step, {**found, **jax.device_get(counters), **rate, **clock.figures()})
                _check_sound(step, int(counters["in_a_row"]), plan)
            for hook in hooks:
                if step % hook.every == 0 if step < plan.steps else hook.last:
                    with clock.paused():
                        hook.call(state, step)
            stop = told.stop(step)
            if stop is not None:
                save(state)
                raise Stopped(f"stopped by {stop} after step {step}; it is saved, and the same command goes on.")
    return state


def compiled(step: Any, state: Any, batch: Batch) -> tuple[Any, float]:
    """Compile a jitted step ahead of its first call and count its operations; return any other as it is, and 0."""
    if not hasattr(step, "trace"):
        return step, 0.0
    traced = step.trace(state, batch)
    return traced.lower().compile(), flops_of(traced.jaxpr)


class Clock:
    """What the time went into since the last figures."""

    def __init__(self):
        self.flops = 0.0
        self._examples = 0
        self._reset()

    def start(self, examples: int) -> None:
        """Begin to count steps of so many examples: what came before was compiling."""
        self._examples = examples
        self._reset()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count this time as waiting for data, and a step."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave this time out."""
        begin = time.perf_counter()
        yield
        self._away += time.perf_counter() - begin

    def figures(self) -> dict[str, float]:
        """Return examples per second, the share of waiting for data, operations per second and of the peak."""
        length = max(time.perf_counter() - self._begin - self._away, 1e-9)
        rate = self._steps / length
        values = {"examples_per_second": rate * self._examples, "data_wait": self._waited / length}
        if self.flops:
            values["flops_per_second"] = rate * self.flops
            chip = chip_of(jax.devices()[0])
            if chip is not None:
                values["share_of_peak"] = values["flops_per_second"] / (chip.flops * jax.device_count())
        self._reset()
        return values

    def _reset(self):
        self._begin, self._waited, self._away, self._steps = time.perf_counter(), 0.0, 0.0, 0


class Signals:
    """While open, note SIGTERM and SIGINT in `signal`; the second of them ends the process at once."""

    def __init__(self):
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGTERM, signal.SIGINT]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def stop(self, step: int) -> str | None:
        """Return the signal after which to stop at this step, if any; all processes of a run get the same answer."""
        if jax.process_count() == 1:
            return self.signal
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX listens to


def _check_sound(step, in_a_row, plan):
    if in_a_row >= plan.most_in_a_row:
        raise Diverged(
            f"{in_a_row} steps in a row up to step {step} had a loss or gradient that is not finite and were left out. "
            "Lower the learning rate, clip the gradient, or look at the data; the last checkpoint is sound."
        )
