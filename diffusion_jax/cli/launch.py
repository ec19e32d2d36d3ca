"""Train somewhere: as processes of this machine, on a slice of TPUs, on Kubernetes, or on SLURM.

    python -m diffusion_jax launch --backend local --processes 2 --config configs/toy_2d.py --workdir runs/toy
    python -m diffusion_jax launch --backend slurm --time 24:00:00 --nodes 2 --gpus 8 \\
        --config configs/cifar10_edm.py --workdir /shared/runs/edm --repeats 3
    python -m diffusion_jax launch --backend tpu --topology v5e:16x16 --zone us-west4-a --capacity spot --watch \\
        --setup mount.sh --config configs/imagenet256_dit.py --workdir /mnt/runs/dit
    python -m diffusion_jax launch --backend kubernetes --topology v6e:4x4 --image registry/project/dj:1 \\
        --volume claim:runs:/runs --config configs/imagenet256_dit.py --workdir /runs/dit

--config, --workdir, --config.KEY=VALUE     the job, as in `train`
--repeats N            so many jobs, of seeds one after another, in the folders DIR/seed=K
--name NAME            what it is called in launches/NAME.json, by which `status`, `logs` and `stop` find it, and where
                       it runs; by default from the folder
--dry_run              print what would be run, as a script that does the same, and do nothing
--again                launch under a name that was launched before
--plan                 on TPUs: first ask `plan` whether it fits, and go no further if it does not
--nocheck              do not build the config here first, where its data are only where it runs

local        --processes N, joined over loopback; --restarts N without progress, by default 3; --parallel N jobs
tpu          --topology v4|v5p:AxBxC or v5e|v6e:AxB, --zone, --project, --capacity on_demand|spot|reserved,
             --image (else the files that git tracks are sent), --setup SCRIPT, --watch, --keep, --restarts N
kubernetes   --image, --volume claim|bucket:NAME:/PATH, --topology or --gpus N and --hosts N, --spot, --namespace,
             --queue, --account, --restarts N
slurm        --time, --nodes N, --gpus N, --tasks N and --memory on each, --cpus N for each task, --partition,
             --account, --qos, --constraint, --parallel N, --warning SECONDS, --restarts N, --setup SCRIPT, --python P

All of it is checked before anything is run or written; docs/launching.md has a page for each. A job that is stopped
from outside saves, ends with 75, and goes on where the backend starts it again: exactly as if it had not been
stopped.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from diffusion_jax.ablation.question import check
from diffusion_jax.cli import arguments
from diffusion_jax.data.blank import blank
from diffusion_jax.launch import record
from diffusion_jax.launch.action import Failed, script
from diffusion_jax.launch.backend import Backend, Ended, Launch
from diffusion_jax.launch.backends import make_backend
from diffusion_jax.launch.job import Job, command, repeated, shown
from diffusion_jax.launch.local import can_go_on
from diffusion_jax.launch.start import keep_off_devices, refuse, refuse_share, start
from diffusion_jax.training.loop import PREEMPTED
from diffusion_jax.workdir import refuse_another


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the job and where it is to run; return what launches it."""
    keep_off_devices()
    asked = arguments.read_launch(argv)
    backend = make_backend(asked.backend)
    launch = Launch(asked.job.name, repeated(asked.job, asked.repeats, seed=asked.seed))
    made = record.Record(launch, asked.backend)
    refuse_share(backend, *[_check(job, build=asked.check and job is launch.jobs[0]) for job in launch.jobs])
    refuse(backend, made, again=asked.again, dry_run=asked.dry_run)
    notes = _notes(backend, asked.job)
    if asked.dry_run:
        text = script(backend.start(launch), notes=notes)
        return lambda: print(text, end="")
    if asked.plan:
        _ask_plan(backend, asked.job)

    def go():
        for note in notes:
            print(note)
        if backend.run is None:
            start(made, backend)
            print(f"started; `status {launch.name}` says how it is, and so on with `logs` and `stop`")
            return
        record.note(made)
        code = _stay(backend, launch)
        if code:
            raise SystemExit(code)

    return go


def _check(job: Job, *, build: bool) -> Any:
    """Read a job as `train` will; refuse the folder of another run, where it can be seen from here."""
    config, workdir = arguments.read(command(job)[4:])
    refuse_another(workdir, config)
    try:
        if build:
            check(config, blank(config.expects) if config.expects else None)  # its data are where it runs
    except OSError as error:
        raise ValueError(f"{error}. If its data are only where the job runs, add --nocheck.") from None
    return config


def _notes(backend: Backend, job: Job) -> list[str]:
    plan = [f"whether it fits: {shown(_plan(backend, job))}"] if backend.topology else []
    return plan + ([f"note: {backend.note}"] if backend.note else [])


def _plan(backend, job):
    flags = [word for word in command(job)[4:] if word.startswith("--config.")]
    asked = ["--config", job.config, "--topology", backend.topology, "--work", "training", "--nolargest"]
    return ["python", "-m", "diffusion_jax", "plan", *asked, *flags]


def _ask_plan(backend: Backend, job: Job) -> None:
    """Run the plan of a job, and refuse to go on where it says that the job does not fit."""
    if not backend.topology:
        raise ValueError("--plan asks whether a job fits a slice of TPUs; give a --topology, or leave --plan out.")
    words = _plan(backend, job)
    if subprocess.run([sys.executable, *words[1:]], check=False).returncode:
        raise ValueError(f"the plan says that it does not fit, or could not be made: {shown(words)}")


def _stay(backend: Backend, launch: Launch) -> int:
    """Run the jobs to their ends; return 0, 75 if one was stopped from outside and can go on, or 1."""
    assert backend.run is not None
    codes = []
    try:
        with tqdm(bar_format="{desc}", disable=None, leave=False) as bar:
            for ended in backend.run(launch, bar.set_description_str):
                codes.append(PREEMPTED if can_go_on(ended) else min(abs(ended.code), 1))
                tqdm.write(f"{ended.job.name}: {_verdict(ended)}")
    except Failed as failed:
        raise SystemExit(f"error: {failed} See `status {launch.name}`; --again takes it up.") from None
    return 1 if 1 in codes else max(codes, default=0)


def _verdict(ended: Ended) -> str:
    if can_go_on(ended):
        return "stopped from outside, and saved; the same command goes on"
    how = "done" if ended.code == 0 else f"failed with exit code {ended.code}"
    return f"{how} after {ended.seconds:.0f} s; it said last:\n{ended.said}"
