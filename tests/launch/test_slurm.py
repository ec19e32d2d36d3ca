"""The script of an array: what its processes are given, and when a job goes back into the queue."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from diffusion_jax.launch.action import Run
from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.backends import make_backend
from diffusion_jax.launch.job import command
from diffusion_jax.launch.slurm import slurm
from tests.launch.stand_ins import calls, hostile_job, stand_in


def made(tmp_path, **more) -> tuple[Launch, Any]:
    jobs = tuple(hostile_job(f"job-{number}", tmp_path / f"job {number}") for number in range(3))
    launch = Launch("toy", jobs, ("7;cluster",))
    return launch, slurm(time="1:00:00", python="python", **more)


def carried_out(script, tmp_path, monkeypatch, *, task, code=0, state="RUNNING", restarts=0):
    """Run the script as SLURM would for a task of the array; return the calls that it made and its exit code."""
    answers = {"srun": ("", code), "squeue": (state, 0)}
    log = stand_in(tmp_path / "bin", monkeypatch, "srun", "squeue", "scontrol", "sleep", answers=answers)
    environment = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_RESTART_COUNT": str(restarts)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "script.sh").write_text(script)
    ended = subprocess.run(["bash", "script.sh"], stdin=subprocess.DEVNULL, check=False, cwd=tmp_path)
    return calls(log), ended.returncode


def script_of(backend, launch):
    write, _ = backend.start(launch)
    return write.text


@pytest.mark.parametrize("task", range(3))
def test_each_task_of_the_array_runs_its_job_word_by_word(task, tmp_path, monkeypatch):
    launch, backend = made(tmp_path, nodes=2, gpus=2, cpus=8)
    (step, *after), code = carried_out(script_of(backend, launch), tmp_path, monkeypatch, task=task)
    words = command(launch.jobs[task], python="python")
    assert step["words"][-len(words) :] == words and "--cpus-per-task=8" in step["words"]
    assert "--kill-on-bad-exit=0" in step["words"] and step["place"] == "auto"
    assert code == 0 and not after and not list(tmp_path.rglob("pwned"))


def test_a_single_process_joins_nobody(tmp_path, monkeypatch):
    launch, backend = made(tmp_path, gpus=1)
    (step,), _ = carried_out(script_of(backend, launch), tmp_path, monkeypatch, task=0)
    assert step["place"] == "" and "--label" not in step["words"]


@pytest.mark.parametrize(
    ("code", "state", "restarts", "again"),
    [
        (75, "RUNNING", 0, True),
        (75, "RUNNING", 99, True),  # a stop from outside does not count
        (75, "COMPLETING", 0, False),  # it was cancelled
        (75, "PENDING", 0, False),  # SLURM has put it back
        (9, "RUNNING", 1, True),
        (9, "RUNNING", 2, False),
        (2, "RUNNING", 0, False),
        (0, "RUNNING", 0, False),
    ],
)
def test_what_goes_back_into_the_queue(code, state, restarts, again, tmp_path, monkeypatch):
    launch, backend = made(tmp_path, restarts=2)
    script = script_of(backend, launch)
    done, ended = carried_out(script, tmp_path, monkeypatch, task=1, code=code, state=state, restarts=restarts)
    requeued = [call["words"] for call in done if call["name"] == "scontrol"]
    assert requeued == ([["requeue", "7_1"]] if again else []) and ended == code


def test_the_request_says_what_was_asked(tmp_path):
    launch, backend = made(tmp_path, nodes=2, gpus=4, memory="200G", partition="a,b", parallel=2, warning=300)
    _, run = backend.start(launch)
    assert isinstance(run, Run)
    wanted = {
        "--parsable", "--job-name=toy", "--array=0-2%2", "--output=launches/toy.%a.txt", "--time=1:00:00", "--nodes=2",
        "--ntasks-per-node=4", "--gpus-per-node=4", "--mem=200G", "--partition=a,b", "--requeue", "--open-mode=append",
        "--signal=TERM@300",
    }  # fmt: skip
    assert set(run.words) == {"sbatch", *wanted, "launches/toy.sh"}
    assert backend.stop(launch)[0].words == ("scancel", "7")
    with pytest.raises(ValueError, match="has no number of a job"):
        backend.stop(launch._replace(said=()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "--nodes is 0; it must be 1 or more"),
        ({"gpus": -1}, "--gpus is -1"),
        ({"time": "soon"}, "--time is 'soon'; it must be minutes"),
        ({"nodes": 2, "gpus": 8, "tasks": 1}, "of several processes each has one GPU: leave --tasks out"),
        ({"memory": "1 G"}, "--memory is '1 G'"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_backend({"name": "slurm", "time": "1:00:00", **options})


@pytest.mark.parametrize(
    "time", ["30", "0", "90:00", "100:00:00", "7-0", "2-12", "1-23:59:59", "UNLIMITED", "unlimited", "INFINITE"]
)
def test_times_are_taken_as_sbatch_takes_them(time):
    _, run = slurm(time=time).start(Launch("toy", (hostile_job("a", Path("a")),)))
    assert isinstance(run, Run) and f"--time={time}" in run.words


@pytest.mark.parametrize("time", ["", "1:2:3:4", "99:99:99", "1-24", "1-2-3", "-5", "1:60", "\u0663\u0660", "5\n"])
def test_times_that_no_clock_shows_are_refused(time):
    with pytest.raises(ValueError, match="--time is"):
        slurm(time=time)
