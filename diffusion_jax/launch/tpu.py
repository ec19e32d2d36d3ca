"""Slices of Cloud TPUs, asked for with gcloud, each worker of which runs the job.

A queued resource is asked for and waited for; the code, as git tracks it, and a script are copied to all workers, and
the script is started, which goes on without this machine. It makes an environment with uv, since the VMs' own Python
is older than 3.11, or runs an image with docker. With `watch` this process stays: what was preempted is given back
and asked for again, what ended with 75 is started again, and a slice is given back when its job has ended, unless
`keep`.

Sources: https://cloud.google.com/tpu/docs/queued-resources (states, deletion, spot and reserved),
https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create and .../tpu-vm/ssh (options),
https://docs.jax.dev/en/latest/installation.html (jax[tpu]).
"""

import contextlib
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.launch import source
from diffusion_jax.launch.action import PAUSE, Action, Failed, Run, Write, carry_out
from diffusion_jax.launch.backend import Backend, Ended, Launch
from diffusion_jax.launch.distributed import VARIABLE
from diffusion_jax.launch.job import Job, check_counts, check_image, check_label, check_script, command
from diffusion_jax.launch.record import FOLDER
from diffusion_jax.launch.topology import Topology, read_topology
from diffusion_jax.naming import lookup
from diffusion_jax.training.loop import PREEMPTED

PATIENCE = 60  # times in a row that the cloud cannot be asked, or does not do what is asked, before this ends
GONE = ("SUSPENDED", "FAILED")  # states from which a queued resource does not come back


class Slice(NamedTuple):
    """What is asked for, and what is run on it."""

    topology: Topology
    where: tuple[str, ...]  # the options that every gcloud command has
    asked: tuple[str, ...]  # further options of the request
    image: str
    setup: str
    keep: bool
    restarts: int


def tpu(
    *,
    topology: str,
    zone: str,
    project: str = "",
    capacity: str = "on_demand",
    image: str = "",
    setup: str = "",
    watch: bool = False,
    keep: bool = False,
    restarts: int = 3,
) -> Backend:
    """Run each job on a slice of its own; see docs/launching.md for the options."""
    check_counts({"restarts": (restarts, 0)})
    where = [f"--zone={check_label(zone, '--zone')}"]
    if project:
        where.append(f"--project={check_label(project, '--project')}")
    asked = Slice(
        read_topology(topology),
        tuple(where),
        lookup(CAPACITIES, capacity, "capacity"),
        check_image(image),
        Path(setup).read_text(encoding="utf-8") if Path(setup).is_file() else "",  # if not, no job is started
        keep,
        restarts,
    )
    return Backend(
        start=lambda launch: [action for job in launch.jobs for action in _start(asked, launch.name_of(job), job)],
        status=lambda launch: [_state(asked, launch.name_of(job)) for job in launch.jobs],
        logs=lambda launch: [_tail(asked, launch.name_of(job)) for job in launch.jobs],
        stop=lambda launch: [_give_back(asked, launch.name_of(job)) for job in launch.jobs],
        run=partial(run, asked) if watch else None,
        refuse=partial(_refuse, asked, setup),
        devices=lambda: (asked.topology.chips, asked.topology.chips // asked.topology.hosts),
        topology=topology,
        note="the workdir must be a folder that all workers share: NFS, or a bucket mounted by --setup",
    )


def run(
    asked: Slice, launch: Launch, show: Callable[[str], None], *, pause: Callable[[float], None] = time.sleep
) -> Iterator[Ended]:
    """Start the jobs, stay with them, and yield each when it is done or has failed."""
    under_way, begin = {launch.name_of(job): job for job in launch.jobs}, time.monotonic()
    tries, troubles = dict.fromkeys(under_way, 0), dict.fromkeys(under_way, 0)
    while under_way:
        for name, job in list(under_way.items()):
            try:
                move = next_move(*_seen(asked, name), asked.topology.hosts)
                tries[name] += move in ("ask again", "try again")
                move = "fail" if tries[name] > asked.restarts else move
                show(f"{name}: {MOVES[move]}")
                said = _make(move, asked, name, job)
            except Failed as trouble:
                troubles[name] += 1
                if troubles[name] > PATIENCE or shutil.which(QUEUED[0]) is None:
                    raise
                show(f"{name}: {trouble}")
                continue
            troubles[name] = 0
            if move in ("finish", "fail"):
                del under_way[name]
                yield Ended(job, int(move == "fail"), time.monotonic() - begin, said)
        if under_way:
            pause(PAUSE)


def next_move(state: str, workers: Sequence[str], hosts: int) -> str:
    """Say what follows from the state of a queued resource and from what its workers say of the job."""
    if state == "NOT_FOUND":
        return "ask"
    if state == "SUSPENDED":
        return "take up"
    if state == "FAILED":
        return "ask again"
    if state != "ACTIVE" or len(workers) < hosts or "running" in workers:
        return "wait"
    if "none" in workers:
        return "send"
    codes = {word for word in workers if word != "0"}
    if not codes:
        return "finish"
    if "2" in codes:
        return "fail"  # a mistake in the request
    return "go on" if codes == {str(PREEMPTED)} else "try again"


def _make(move, asked, name, job):
    """Carry a move out, and return the end of the log where it is the last."""
    begin = [_shell(asked, name, f"bash {name}.sh start")]
    moves: dict[str, Sequence[Action]] = {
        "ask": [_ask(asked, name)],
        "ask again": [_give_back(asked, name), _ask(asked, name)],
        "take up": [_give_back(asked, name), _ask(asked, name)],
        "send": [*_files(asked, name, job), _send(asked, name), *begin],
        "go on": begin,
        "try again": begin,
    }
    said = []
    if move in ("finish", "fail"):
        with contextlib.suppress(Failed):  # there may be no slice to ask
            said = carry_out([_tail(asked, name)])
        carry_out([] if asked.keep else [_give_back(asked, name)])
    carry_out(moves.get(move, ()))
    return "\n".join(said)


def _seen(asked, name):
    """Return the state of a queued resource, and the last word of every worker that can be asked."""
    try:
        (state,) = carry_out([_state(asked, name)])
    except Failed as failed:
        if "NOT_FOUND" in str(failed):
            return "NOT_FOUND", []
        raise
    if state != "ACTIVE":
        return state, []
    (said,) = carry_out([_shell(asked, name, f"bash {name}.sh poll || echo diffusion_jax: none")])
    return state, re.findall(r"^diffusion_jax: (\w+)$", said, re.MULTILINE)


def _start(asked, name, job) -> list[Action]:
    waited = _state(asked, name)._replace(until="ACTIVE", unless=GONE)
    begin = _shell(asked, name, f"bash {name}.sh start")
    return [*_files(asked, name, job), _ask(asked, name), waited, _send(asked, name), begin]


def _refuse(asked: Slice, setup: str, job: Job) -> None:
    check_script(setup, "--setup")
    if str(job.workdir).startswith("gs:/") or not job.workdir.is_absolute():
        raise ValueError(
            f"--workdir {job.workdir} is no folder that all workers share; it must begin with /. Mount a bucket by a "
            "script after --setup (`gcsfuse --implicit-dirs BUCKET /mnt/runs`) and give --workdir /mnt/runs/NAME."
        )
    if asked.image and ":" in str(job.workdir):
        raise ValueError(f"--workdir {job.workdir} has a colon, which docker takes for the end of a path.")
    if not asked.image:
        source.inside(job.config)


def _files(asked, name, job) -> list[Action]:
    made: list[Action] = [Write(FOLDER / f"{name}.sh", worker_script(asked, name, job))]
    if asked.setup:
        made.append(Write(FOLDER / f"{name}.setup.sh", asked.setup.rstrip("\n") + "\n"))
    return made if asked.image else [*made, source.packed(FOLDER / f"{name}.tar.gz")]


def _ask(asked, name):
    kind = (f"--accelerator-type={asked.topology.type}", f"--runtime-version={asked.topology.runtime}")
    return Run((*QUEUED, "create", name, f"--node-id={name}", *kind, *asked.asked, *asked.where))


def _state(asked, name):
    return Run((*QUEUED, "describe", name, "--format=value(state.state)", *asked.where))


def _give_back(asked, name):
    return Run((*QUEUED, "delete", name, "--force", "--quiet", *asked.where))


def _send(asked, name):
    endings = ["sh", *(["setup.sh"] if asked.setup else []), *([] if asked.image else ["tar.gz"])]
    files = [str(FOLDER / f"{name}.{ending}") for ending in endings]
    return Run((*VM, "scp", *files, f"{name}:", "--worker=all", *asked.where))


def _shell(asked, name, line, worker="all"):
    return Run((*VM, "ssh", name, f"--worker={worker}", f"--command={line}", *asked.where))


def _tail(asked, name):
    return _shell(asked, name, f"tail -n 50 {name}/log.txt", worker="0")


def worker_script(asked: Slice, name: str, job: Job) -> str:
    """Return what a worker runs: `start` sets the job going and returns, `poll` says how it is."""
    if asked.image:
        folder = shlex.quote(str(job.workdir))
        docker = ["sudo", "docker", "run", "--rm", "--privileged", "--network=host", "--stop-timeout=120"]
        docker.append(f"--env={VARIABLE}=auto")
        words = [*docker, f"--volume={job.workdir}:{job.workdir}", asked.image, *command(job, python="python")]
        prepare = f"sudo mkdir -p -- {folder}"
    else:
        words = command(job._replace(config=source.inside(job.config)), python="../venv/bin/python")
        prepare = _ENVIRONMENT.format(name=name)
    setup = f"bash ../{name}.setup.sh\n    " if asked.setup else ""
    return _SCRIPT.format(name=name, prepare=setup + prepare, variable=VARIABLE, words=shlex.join(words))


_SCRIPT = """\
#!/bin/bash
# {name} on one worker of its slice: `start` sets it going and returns, `poll` says how it is.
home="$HOME/{name}"
case "$1" in
start)
    mkdir -p "$home"
    rm -f "$home/exit_code"
    setsid nohup bash "$0" run < /dev/null >> "$home/log.txt" 2>&1 &
    echo $! > "$home/pid"
    ;;
run)
    trap 'echo $? > "$home/exit_code"' EXIT
    trap : TERM # which the job answers; this script tells of its end
    set -e
    cd "$home"
    {prepare}
    export {variable}=auto
    code=0
    {words} || code=$?
    exit $code
    ;;
poll)
    if [ -e "$home/exit_code" ]; then
        echo "diffusion_jax: $(cat "$home/exit_code")"
    elif kill -0 "$(cat "$home/pid" 2> /dev/null)" 2> /dev/null; then
        echo "diffusion_jax: running"
    else
        echo "diffusion_jax: lost"
    fi
    ;;
esac
"""

_ENVIRONMENT = """\
if [ ! -e ready ]; then
        mkdir -p code
        tar -xzf ../{name}.tar.gz -C code
        python3 -m pip install -q --user uv
        python3 -m uv venv -q --clear --python 3.12 venv
        python3 -m uv pip install -q --python venv/bin/python 'jax[tpu]' ./code
        touch ready
    fi
    cd code"""

MOVES = {
    "wait": "under way, or waited for",
    "ask": "a slice is asked for",
    "ask again": "the request failed, and is made again",
    "take up": "preempted; another slice is asked for",
    "send": "the job is sent to its workers and started",
    "go on": "stopped from outside; it goes on",
    "try again": "it failed; it goes on from its last checkpoint",
    "finish": "done",
    "fail": "failed",
}

QUEUED = ("gcloud", "compute", "tpus", "queued-resources")
VM = ("gcloud", "compute", "tpus", "tpu-vm")

CAPACITIES = {"on_demand": (), "spot": ("--spot",), "reserved": ("--reserved",)}
