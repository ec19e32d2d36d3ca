"""Kill a run at random moments, start it again each time, and compare its end with that of a run left in peace.

    python experiments/kill_and_resume.py --kills 20
    python experiments/kill_and_resume.py --kills 20 --devices 8 --then 1
    XLA_FLAGS=--xla_gpu_deterministic_ops=true python experiments/kill_and_resume.py --kills 5 --gpu

SIGKILL gives a process no chance to put anything in order. Both runs must end with the same sums over the bits of every
array of their state: parameters, averages, moments, key, counters. With --then the interrupted run goes on, after its
last kill, on another number of simulated devices; then sums are taken in another order, and the largest difference of
a parameter is told instead. With --gpu the runs use the GPU at hand; there, XLA must be told to add in one order.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.logbook import read

ROOT = Path(__file__).parent.parent


def start(workdir: Path, asked: argparse.Namespace, devices: int) -> subprocess.Popen:
    """Start the run, or go on with it."""
    command = [sys.executable, "-m", "diffusion_jax", "train", "--config", asked.config]
    changes = {"steps": asked.steps, "log_every": 10, "save_every": 25, "tensorboard": False}
    command += ["--workdir", str(workdir), *(f"--config.training.{key}={value}" for key, value in changes.items())]
    flags = f"--xla_force_host_platform_device_count={devices}"
    where = {} if asked.gpu else {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | where
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(workdir: Path, arguments: argparse.Namespace, chance: random.Random) -> int:
    """Run with kills and return how often the run really was killed before its end."""
    for number in tqdm(range(arguments.kills), desc="kills", unit="kill"):
        process = start(workdir, arguments, arguments.devices)
        # Mostly while training, or in the middle of a checkpoint; now and then while starting.
        time.sleep(chance.uniform(0.5, arguments.patience))
        if process.poll() is not None:
            return number
        process.send_signal(signal.SIGKILL)
        process.wait()
    return arguments.kills


def state(workdir: Path) -> tuple[list[np.ndarray], dict[str, int]]:
    """Return the last parameters and the sums over the bits of the whole last state."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, params = checkpoints.part("params")
    bits = checkpoints.noted(step)
    checkpoints.close()
    return jax.tree.leaves(params), {"step": step, **bits}


def main() -> None:
    """Carry the experiment out and exit with 1 if the ends differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--patience", type=float, default=14.0, help="seconds a run lives at most before it is killed")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--then", type=int, default=None)
    parser.add_argument("--config", default="configs/toy_2d.py:smoke")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peace, war = Path(folder) / "peace", Path(folder) / "war"
        assert start(peace, arguments, arguments.devices).wait() == 0
        kills = killed(war, arguments, random.Random(arguments.seed))
        assert start(war, arguments, arguments.then or arguments.devices).wait() == 0
        (params, bits), (others, other_bits) = state(peace), state(war)
        lines = [[line["step"] for line in read(workdir) if "loss" in line] for workdir in (peace, war)]
    away = max(float(np.abs(one - other).max()) for one, other in zip(params, others, strict=True))
    same = bits == other_bits
    print(f"kills                      {kills}")
    print(f"state bit for bit the same {'yes' if same else 'no'} ({len(bits)} arrays)")
    print(f"largest difference         {away:.3g}")
    print(f"record has every step once {'yes' if lines[0] == lines[1] else 'no'}")
    sys.exit(0 if same or (arguments.then and away < 1e-4) else 1)


if __name__ == "__main__":
    main()
