"""The loop calls what it was given when it said, records every step's share, and stops for good reasons."""

import functools
import json
import os
import signal
import sys
import time

import jax
import numpy as np
import optax
import pytest

from diffusion_jax.training.logbook import Logbook, Means, read
from diffusion_jax.training.loop import Clock, Diverged, Hook, Plan, Signals, Stopped, train
from diffusion_jax.training.parallel import MAPPINGS, make_mesh, parallelize
from diffusion_jax.training.state import start_state
from diffusion_jax.training.step import make_train_step
from tests.training import small


def batches(spoil=()):
    """An endless row of batches, some of them not finite."""
    step = 0
    while True:
        batch = small.batch(step)
        if step in spoil:
            batch["x"] = batch["x"] * np.nan
        yield batch
        step += 1


def loop(folder, plan, *, mapping="jit", data=None, save=lambda state: None, hooks=()):
    """Train the small network by the loop."""
    optimizer = optax.adam(1e-2)
    make_step = functools.partial(make_train_step, small.loss(), optimizer, small.AVERAGE)
    parallel = parallelize(make_step, make_mesh(jax.devices()[:2]), mapping=mapping)
    state = parallel.put_state(start_state(small.params(), optimizer, small.AVERAGE, jax.random.key(0)))
    logbook = Logbook(folder, tensorboard=False)
    try:
        state = train(state, parallel, data or batches(), plan, logbook, save=save, hooks=hooks)
    finally:
        logbook.close()
    return parallel.get_state(state)


@pytest.mark.parametrize("mapping", sorted(MAPPINGS))
def test_it_trains_to_the_last_step_and_records_on_the_way(tmp_path, mapping):
    plan = Plan(steps=7, log_every=3, rate=lambda step: 0.5 * step)
    state = loop(tmp_path, plan, mapping=mapping)
    assert int(state.step) == 7
    lines = read(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["learning_rate"] for line in lines] == [1.5, 3.0, 3.5]
    for line in lines:
        assert 0 <= line["data_wait"] <= 1 and line["examples_per_second"] > 0 and line["loss"] > 0
        assert ("flops_per_second" in line) == (mapping == "jit")


def test_hooks_are_called_when_they_said(tmp_path):
    called = {"often": [], "once": []}
    hooks = [
        Hook(2, lambda state, step: called["often"].append(step)),
        Hook(4, lambda state, step: called["once"].append(step), last=False),
    ]
    loop(tmp_path, Plan(steps=5), hooks=hooks)
    assert called == {"often": [2, 4, 5], "once": [4]}


def test_a_few_bad_batches_are_left_out_and_counted(tmp_path):
    state = loop(tmp_path, Plan(steps=6, log_every=2, most_in_a_row=3), data=batches(spoil={1, 2}))
    assert int(state.skipped) == 2
    assert [line["skipped"] for line in read(tmp_path)] == [1, 2, 2]
    assert [line["loss"] is None for line in read(tmp_path)] == [True, True, False]
    assert all(np.isfinite(leaf).all() for leaf in small.host(state))


def test_too_many_in_a_row_end_the_run_with_advice(tmp_path):
    with pytest.raises(Diverged, match="4 steps in a row up to step 6 .* Lower the learning rate"):
        loop(tmp_path, Plan(steps=100, log_every=2, most_in_a_row=3), data=batches(spoil=set(range(2, 100))))


def test_a_signal_saves_after_the_step_at_hand(tmp_path):
    saved = []

    def told(state, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 3; it is saved"):
        loop(tmp_path, Plan(steps=9), save=lambda state: saved.append(int(state.step)), hooks=[Hook(1, told)])
    assert saved == [3]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with Signals() as told:
        os.kill(os.getpid(), signal.SIGINT)
        assert told.signal == "SIGINT" and not codes
        os.kill(os.getpid(), signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]


def test_the_clock_tells_waiting_from_working_and_leaves_pauses_out():
    clock = Clock()
    clock.start(10)
    clock.flops = 5.0
    with clock.waiting():
        time.sleep(0.1)
    time.sleep(0.1)
    with clock.paused():
        time.sleep(0.3)
    figures = clock.figures()
    assert 0.3 < figures["data_wait"] < 0.6
    assert 10 / 0.35 < figures["examples_per_second"] < 10 / 0.2
    assert figures["flops_per_second"] == pytest.approx(figures["examples_per_second"] / 2)


def test_means_are_means_also_of_rows():
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": np.float32(value), "row": np.asarray([value, -value], np.float32)})
    found = means.take()
    assert found["a"] == 3 and found["row"].tolist() == [3, -3]
    means.add({"a": np.float32(7)})
    assert means.take()["a"] == 7
    assert means.take() == {}


def test_the_record_goes_on_after_the_step_it_resumes_from(tmp_path):
    first = Logbook(tmp_path)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": step, "row": [step, float("nan")], "bad": float("inf")})
    first.picture(3, "noise", np.zeros((4, 5, 3), np.uint8))
    first.close()
    again = Logbook(tmp_path, step=2)
    again.scalars(3, {"loss": 30})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]
    assert lines[0]["row"] == [1, None] and lines[0]["bad"] is None
    assert (tmp_path / "pictures" / "noise_00000003.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "events").iterdir())) == 2


def test_a_missing_wandb_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        Logbook(tmp_path, wandb="project")
