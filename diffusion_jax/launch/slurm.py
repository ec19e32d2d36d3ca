"""Jobs on SLURM: one array job, a task of the array for each job, with its processes as a step.

 1. SLURM warns the processes by SIGTERM some time before theirs is up (`--signal`), or when it preempts them. They save
    and end with 75; the script, which lives through the signal, puts its job back into the queue, and it goes on.
 2. A job that is cancelled saves too and is not put back: only one that SLURM calls RUNNING is.
 3. Any other failure is tried again up to `restarts` times, which SLURM counts; a mistake in the request is not.
 4. A process that ends is not to take the others with it while they save (`--kill-on-bad-exit=0`); where one has died,
    JAX ends the others in less than two minutes.

Several processes find each other by themselves, and each takes the GPU of its number on its node.

Sources: https://slurm.schedmd.com/sbatch.html, https://slurm.schedmd.com/srun.html (--kill-on-bad-exit; the number of
CPUs is not handed down to srun), https://slurm.schedmd.com/job_array.html, https://slurm.schedmd.com/preempt.html.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.launch.action import Action, Run, Write
from diffusion_jax.launch.backend import Backend, Launch
from diffusion_jax.launch.distributed import VARIABLE
from diffusion_jax.launch.job import check_counts, check_script, command
from diffusion_jax.launch.local import MISTAKE
from diffusion_jax.launch.record import FOLDER
from diffusion_jax.training.loop import PREEMPTED


class Asked(NamedTuple):
    """What a job is given."""

    options: tuple[str, ...]  # of sbatch
    tasks: int  # on all nodes
    cpus: int
    parallel: int
    restarts: int
    setup: str
    python: str


def slurm(
    *,
    time: str,
    nodes: int = 1,
    gpus: int = 0,
    tasks: int = 0,
    cpus: int = 0,
    memory: str = "",
    partition: str = "",
    account: str = "",
    qos: str = "",
    constraint: str = "",
    parallel: int = 0,
    warning: int = 120,
    restarts: int = 3,
    setup: str = "",
    python: str = sys.executable,
) -> Backend:
    """Run the jobs as one array; see docs/launching.md for the options."""
    counts = {"nodes": (nodes, 1), "gpus": (gpus, 0), "tasks": (tasks, 0), "cpus": (cpus, 0)}
    counts |= {"parallel": (parallel, 0), "warning": (warning, 0), "restarts": (restarts, 0)}
    check_counts(counts)
    if gpus and tasks not in (0, gpus) and nodes * tasks > 1:
        raise ValueError(
            f"--tasks is {tasks} and --gpus {gpus}; of several processes each has one GPU: leave --tasks out."
        )
    if not re.fullmatch(TIME, time, re.ASCII | re.IGNORECASE):
        raise ValueError(
            f"--time is '{time}'; it must be minutes, hours:minutes:seconds, days-hours or unlimited, as 24:00:00."
        )
    each = tasks or max(gpus, 1)  # of a node
    options = [f"--time={time}", f"--nodes={nodes}", f"--ntasks-per-node={each}"]
    options += [f"--gpus-per-node={gpus}"] if gpus else []
    options += [f"--cpus-per-task={cpus}"] if cpus else []
    named = {"mem": memory, "partition": partition, "account": account, "qos": qos, "constraint": constraint}
    options += [f"--{name}={_word(value, name)}" for name, value in named.items() if value]
    options += ["--requeue", "--open-mode=append", f"--signal=TERM@{warning}"]
    script = str(Path(setup).absolute()) if setup else ""
    asked = Asked(tuple(options), nodes * each, cpus, parallel, restarts, script, python)
    return Backend(
        start=partial(_start, asked),
        status=lambda launch: [Run(("squeue", f"--jobs={_number(launch)}", "--states=all", f"--format={SHOWN}"))],
        logs=lambda launch: [Run(("tail", "-n", "20", "--", *(str(_log(launch, place)) for place in _places(launch))))],
        stop=lambda launch: [Run(("scancel", _number(launch)))],
        refuse=lambda job: check_script(setup, "--setup"),
        devices=lambda: (gpus, gpus) if gpus and nodes * each == 1 else (nodes * each, 1),
        note="the workdir must be a folder that all nodes share",
    )


def batch_script(asked: Asked, launch: Launch) -> str:
    """Return the script of the array."""
    cases = "\n".join(
        f"{place}) set -- {shlex.join(command(job, python=asked.python))} ;;" for place, job in enumerate(launch.jobs)
    )
    step = ["srun", "--kill-on-bad-exit=0", "--wait=0", *(["--label"] if asked.tasks > 1 else [])]
    step += [f"--cpus-per-task={asked.cpus}"] if asked.cpus else []
    lines = [f"export {VARIABLE}=auto"] if asked.tasks > 1 else []
    lines += [f". {shlex.quote(asked.setup)}"] if asked.setup else []
    return _SCRIPT.format(
        name=launch.name,
        cases=cases,
        prepare="\n".join(lines),
        step=shlex.join(step),
        preempted=PREEMPTED,
        mistake=MISTAKE,
        restarts=asked.restarts,
    )


def _start(asked: Asked, launch: Launch) -> Sequence[Action]:
    last, most = len(launch.jobs) - 1, f"%{asked.parallel}" if asked.parallel else ""
    own = (f"--job-name={launch.name}", f"--array=0-{last}{most}", f"--output={FOLDER / launch.name}.%a.txt")
    path = FOLDER / f"{launch.name}.sh"
    return [Write(path, batch_script(asked, launch)), Run(("sbatch", "--parsable", *own, *asked.options, str(path)))]


def _number(launch: Launch) -> str:
    """Return the array's number, which sbatch said."""
    found = re.match(r"\d+", launch.said[-1]) if launch.said else None
    if found is None:
        raise ValueError(f"the record of '{launch.name}' has no number of a job; it did not come as far as the queue.")
    return found[0]


def _places(launch):
    return range(len(launch.jobs))


def _log(launch, place):
    return FOLDER / f"{launch.name}.{place}.txt"


def _word(value, name):
    if not re.fullmatch(r"[\w.:,@&|*+\[\]()-]{1,200}", value) or value.startswith("-"):
        raise ValueError(f"--{'memory' if name == 'mem' else name} is '{value}', which cannot be a name on SLURM.")
    return value


_SCRIPT = """\
#!/bin/bash
# {name}: one job of the array, which goes on from its last checkpoint.
case "$SLURM_ARRAY_TASK_ID" in
{cases}
esac
{prepare}
trap : TERM # which the processes answer; this script sees to what comes after them
{step} "$@"
code=$?
number="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
again=no
if [ $code -eq {preempted} ]; then again=yes; fi
case $code in
0 | {mistake} | {preempted}) ;;
*) if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then again=yes; fi ;;
esac
if [ $again = yes ] && [ "$(squeue --noheader --jobs="$number" --format=%T)" = RUNNING ]; then
    echo "$number ended with $code and goes back into the queue"
    scontrol requeue "$number"
    sleep 60 # until SLURM ends this script
fi
exit $code
"""

# Minutes, minutes:seconds, hours:minutes:seconds, days-hours, and further parts of an hour after these.
TIME = r"\d+(:[0-5]?\d){0,2}|\d+-([01]?\d|2[0-3])(:[0-5]?\d){0,2}|unlimited|infinite"

SHOWN = "%i %j %T %M %l %r"
