"""Two processes over loopback, really: one is killed in mid-run, then both are told to stop; the end is the same."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.launch.local import newest
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.logbook import read
from diffusion_jax.training.loop import PREEMPTED
from tests.runs import CONFIGS, POINTS

STEPS = 400  # so that a fast machine too is still under way when it is told to stop
FLAGS = (
    *POINTS[1:], f"--config.training.steps={STEPS}", "--config.training.save_every=50",
    "--config.training.log_every=50", "--config.training.tensorboard=False",
)  # fmt: skip


def begin(workdir: Path) -> subprocess.Popen:
    """Launch the run as two processes."""
    words = ["launch", "--backend=local", "--processes=2", "--nocheck", "--config", f"{CONFIGS / POINTS[0]}", *FLAGS]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_jax", *words, "--workdir", str(workdir)],
        env=environment, cwd=workdir.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def children(process: subprocess.Popen) -> list[int]:
    """List the processes that a process has begun, first those that were begun first."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(number) for number in found)


def wait_for_checkpoint(process, workdir, beyond=-1):
    """Wait until there is a checkpoint, or a newer one, and the run is not at its end."""
    while newest(workdir) <= beyond and process.poll() is None:
        time.sleep(0.02)
    assert newest(workdir) < STEPS


def end(workdir):
    """Return the last step, and the bits of everything that its checkpoint holds."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps()[-1]
    with contextlib.closing(checkpoints):
        return step, checkpoints.noted(step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run of two processes ends with."""
    workdir = tmp_path_factory.mktemp("launch") / "whole"
    process = begin(workdir)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert end(workdir)[0] == STEPS
    return end(workdir)


@pytest.mark.slow
def test_one_is_killed_and_then_all_are_told_to_stop_and_the_end_is_the_same(whole, tmp_path):
    workdir = tmp_path / "interrupted"
    process = begin(workdir)
    wait_for_checkpoint(process, workdir)
    killed = newest(workdir)
    os.kill(children(process)[1], signal.SIGKILL)
    wait_for_checkpoint(process, workdir, beyond=killed)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == PREEMPTED, said
    assert "it goes on from the checkpoint of step" in said and "(try 1 of 3)" in said
    assert "stopped from outside, and saved; the same command goes on" in said
    assert killed < newest(workdir) < STEPS
    again = begin(workdir)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert end(workdir) == whole
    assert [line["step"] for line in read(workdir) if "loss" in line] == list(range(50, STEPS + 1, 50))
