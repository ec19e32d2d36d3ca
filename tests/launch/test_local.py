"""Jobs on this machine: processes that join, die, hang, are told to stop, and start again."""

import contextlib
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffusion_jax.launch import local
from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.distributed import VARIABLE
from diffusion_jax.launch.job import Job
from diffusion_jax.launch.local import How, free_address, last_lines, newest, run_all, together
from diffusion_jax.training.loop import PREEMPTED
from tests.launch.stand_ins import calls, hostile_job, stand_in


def jobs(folder, count=1):
    return [Job(f"job-{number}", "toy.py", folder / f"job-{number}") for number in range(count)]


def shell(line, job):
    """Run a line of shell in the folder of the job; $place is the process, of those from 0 on."""
    return ["bash", "-c", f'place=${{{VARIABLE}%%/*}}; cd "$0"; {line}', str(job.workdir)]


def run(folder, line, *, count=1, parallel=1, **more):
    how = How(words=partial(shell, line), **more)
    return list(run_all(jobs(folder, count), parallel=parallel, how=how))


def test_one_that_fails_leaves_the_others_and_what_it_said_is_told(tmp_path):
    ended = run(tmp_path, "echo 1%; printf '2%%\\r3%%\\n'; exit $((5 * (${PWD: -1} == 1)))", count=3, parallel=2)
    assert sorted((one.job.name, one.code) for one in ended) == [("job-0", 0), ("job-1", 5), ("job-2", 0)]
    assert all(one.said == "1%\n2%\n3%" for one in ended)
    with pytest.raises(ValueError, match="parallel is 0"):
        next(run_all([], parallel=0))


def test_processes_of_a_job_know_each_other_and_have_a_log_each(tmp_path, monkeypatch):
    """Words and environment are those that are shown, whatever is in them."""
    log = stand_in(tmp_path / "bin", monkeypatch, "python")
    job = hostile_job("one", tmp_path)
    how = How(processes=2, words=lambda job: ["python", *job.overrides.values()])
    (ended,) = run_all([job], how=how)
    assert ended.code == 0 and (job.workdir / "log.1.txt").exists()
    seen = sorted(calls(log), key=lambda call: call["place"])
    shown = together(job, how, "127.0.0.1:1").runs
    assert [call["words"] for call in seen] == [list(one.words[1:]) for one in shown]
    places = [call["place"].partition("@") for call in seen]
    assert [place for place, _, _ in places] == ["0/2", "1/2"] and places[0][2] == places[1][2]
    assert not list(tmp_path.rglob("pwned"))


def test_gpus_that_are_named_are_shared(tmp_path):
    how = How(processes=2, environment={"CUDA_VISIBLE_DEVICES": "0,1,4,5"})
    job = jobs(tmp_path)[0]
    shares = [one.environment["CUDA_VISIBLE_DEVICES"] for one in together(job, how, free_address()).runs]
    assert shares == ["0,1", "4,5"]
    with pytest.raises(ValueError, match="names 4 devices, which 3 processes cannot share"):
        together(job, how._replace(processes=3), free_address())


def test_one_that_dies_takes_the_others_along_and_the_job_goes_on_while_there_is_progress(tmp_path, capsys):
    """Each start makes a checkpoint and dies, to the fourth; the other process would wait for ever."""
    line = (
        "if [ $place = 1 ]; then until [ -e done ]; do sleep 0.05; done; exit 0; fi;"
        "n=$(ls checkpoints | wc -l); mkdir checkpoints/$(((n + 1) * 10));"
        "if [ $n -ge 3 ]; then touch done; exit 0; fi; kill -9 $$"
    )
    (tmp_path / "job-0" / "checkpoints").mkdir(parents=True)
    (ended,) = run(tmp_path, line, processes=2, restarts=1)
    assert ended.code == 0 and newest(tmp_path / "job-0") == 40
    said = capsys.readouterr().out
    assert "process 0 of 2 was ended by SIGKILL; it goes on from the checkpoint of step 30 (try 1 of 1)" in said


def test_without_progress_it_is_tried_so_often_and_no_more(tmp_path, capsys):
    (ended,) = run(tmp_path, "echo x >> starts; exit 7", restarts=2)
    assert ended.code == 7 and (tmp_path / "job-0" / "starts").read_text() == "x\n" * 3
    assert "it goes on from the beginning (try 2 of 2)" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 2, PREEMPTED])
def test_the_end_a_mistake_and_a_stop_from_outside_are_not_tried_again(code, tmp_path):
    (ended,) = run(tmp_path, f"echo x >> starts.$place; exit {code}", processes=2, restarts=3)
    assert ended.code == code and (tmp_path / "job-0" / "starts.0").read_text() == "x\n"


def test_one_that_hangs_is_ended_with_what_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.3)
    hang = "trap : TERM; sleep 97 & echo $! > child; while :; do sleep 0.05; done"
    (ended,) = run(tmp_path, f"[ $place = 1 ] && {{ {hang}; }}; until [ -s child ]; do :; done; exit 3", processes=2)
    assert ended.code == 3 and ended.seconds < 20
    child = int((tmp_path / "job-0" / "child").read_text())
    for _ in range(100):
        if not _alive(child):
            break
        time.sleep(0.05)
    assert not _alive(child)


def _alive(number):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().split(")")[-1].split()[0] != "Z"
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_every_process_and_nothing_is_begun_after_it(number, tmp_path):
    line = "trap 'echo told >> told.$place; exit 75' TERM; touch up.$place; while :; do sleep 0.05; done"
    before = signal.getsignal(number)

    def tell():
        while len(list(tmp_path.glob("job-0/up.*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=tell)
    thread.start()
    ended = []
    with pytest.raises(SystemExit) as left:
        how = How(processes=2, restarts=3, words=partial(shell, line))
        for one in run_all(jobs(tmp_path, 2), how=how):
            ended.append((one.job.name, one.code))
    thread.join()
    assert left.value.code == PREEMPTED and ended == [("job-0", PREEMPTED)]
    assert [(tmp_path / "job-0" / f"told.{place}").read_text() for place in range(2)] == ["told\n"] * 2
    assert signal.getsignal(number) is before and not (tmp_path / "job-1").exists()


def test_a_caller_that_stops_tells_what_is_under_way(tmp_path):
    stay = "trap 'touch told; exit 75' TERM; touch up; while :; do sleep 0.05; done"
    line = f"if [ ${{PWD: -1}} = 1 ]; then until [ -e ../job-0/up ]; do :; done; exit; fi; {stay}"
    running: Any = run_all(jobs(tmp_path, 2), parallel=2, how=How(words=partial(shell, line)))
    assert next(running).job.name == "job-1"
    running.close()
    assert (tmp_path / "job-0" / "told").exists()


def test_what_passes_is_the_last_line_of_the_first_process(tmp_path):
    shown = []
    how = How(processes=2, words=partial(shell, "echo line of $place; sleep 1.2"))
    list(run_all(jobs(tmp_path), how=how, show=shown.append))
    assert "job-0: line of 0" in shown


def test_only_the_end_of_a_log_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_text("x" * 50_000 + "\nsecond\n\n  50%\r 100%\n")
    assert last_lines(log, 2) == "  50%\n 100%" and last_lines(tmp_path / "none") == ""


@pytest.mark.parametrize("option", ["processes", "restarts", "parallel"])
def test_counts_are_checked(option):
    with pytest.raises(ValueError, match=f"--{option} is -1; it must be"):
        local.local(**{option: -1})


def test_what_is_shown_is_what_runs(tmp_path):
    launch = Launch("toy", tuple(jobs(tmp_path)))
    shown: Any = local.local(processes=2).start(launch)[0]
    assert [run.words for run in shown.runs] == [run.words for run in together(launch.jobs[0], How(2), "x").runs]
    assert shown.runs[0].words[0] == sys.executable
