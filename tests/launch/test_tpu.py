"""Slices of TPUs on a stand-in for the cloud, which runs what it is sent; and every move that can follow."""

import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from diffusion_jax.launch import source
from diffusion_jax.launch.action import Failed, carry_out
from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.backends import make_backend
from diffusion_jax.launch.job import Job, command
from diffusion_jax.launch.tpu import MOVES, next_move
from tests.launch.stand_ins import HOSTILE, calls, executable, stand_in

# A cloud of one zone: a slice is a folder, each worker's home a folder in it, and `ssh` runs there what it is told.
CLOUD = """#!{python} -SE
import contextlib, os, pathlib, shutil, signal, subprocess, sys
cloud, words = pathlib.Path({cloud!r}), sys.argv[1:]
named = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
kind, verb, names = words[2], words[3], [word for word in words[4:] if not word.startswith("--")]
home = cloud / names[-1].rstrip(":")
with open(cloud / "verbs", "a") as file:
    file.write(verb + "\\n")
if verb != "create" and not home.exists():
    sys.exit("ERROR: NOT_FOUND: no such resource")
state = home / "state"
workers = sorted(home.glob("worker*")) if home.exists() else []
if verb == "create":
    for number in range({hosts}):
        (home / ("worker%d" % number)).mkdir(parents=True)
    state.write_text("ACTIVE")
elif verb == "describe":
    print(state.read_text())
elif verb == "delete":
    for pid in home.rglob("pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(home)
elif verb == "scp":
    for worker in workers:
        for name in names[:-1]:
            shutil.copy(name, worker)
elif verb == "ssh":
    asked = workers if named["worker"] == "all" else [workers[int(named["worker"])]]
    for worker in asked:
        subprocess.run(["bash", "-c", named["command"]], cwd=worker, env=dict(os.environ, HOME=str(worker)), check=True)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A cloud, and a repository of one config to launch from."""
    folder, code = tmp_path / "cloud", tmp_path / "code"
    folder.mkdir()
    code.mkdir()
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a", "--allow-empty"]):
        subprocess.run(["git", *words], check=True, cwd=code)
    monkeypatch.chdir(code)
    stand_in(tmp_path / "bin", monkeypatch)
    executable(tmp_path / "bin" / "gcloud", CLOUD.format(python=sys.executable, cloud=str(folder), hosts=4))
    return folder


def slices(**more) -> Any:
    return make_backend({"name": "tpu", "topology": "v5e:4x4", "zone": "us-west4-a", "watch": True, **more})


def test_a_preempted_slice_is_asked_for_again_and_the_job_goes_on_to_its_end(cloud, tmp_path, monkeypatch):
    """Preempted while it runs, then stopped from outside, then done: each worker was begun three times."""
    workdir = tmp_path / "shared"
    workdir.mkdir()
    begun = f'echo "$HOME" >> {workdir}/begun'
    wait = f"while [ ! -e {workdir}/go ]; do sleep 0.05; done; exit $(cat {workdir}/go)"
    executable(tmp_path / "bin" / "sudo", f'#!/bin/bash\n[ "$1" = docker ] || exec "$@"\n{begun}\n{wait}\n')
    events = iter([(0, ""), (4, ""), (4, "preempt"), (4, ""), (8, "75"), (12, ""), (12, "0")])
    told = []

    def pause(_):
        began, event = next(events)
        until(lambda: len(list_of(workdir / "begun")) == began)
        if event == "preempt":
            (cloud / "toy" / "state").write_text("SUSPENDED")
        elif event:
            (workdir / "go").write_text(event)
            until(lambda: len(list(cloud.rglob("exit_code"))) == 4)
            (workdir / "go").unlink()

    backend = slices(image="registry/dj:1")
    ended = list(backend.run(Launch("toy", (Job("toy", "toy.py", workdir),)), told.append, pause=pause))
    assert [one.code for one in ended] == [0]
    moves = [text.removeprefix("toy: ") for text in told]
    named = [next(name for name, text in MOVES.items() if text == move) for move in moves]
    shortened = [name for place, name in enumerate(named) if name != "wait" and named[place - 1 : place] != [name]]
    assert shortened == ["ask", "send", "take up", "send", "go on", "finish"]
    assert not (cloud / "toy").exists()  # given back
    assert len(list_of(workdir / "begun")) == 12


def until(true):
    """Wait for what comes soon."""
    for _ in range(100):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def list_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("state", "workers", "move"),
    [
        ("NOT_FOUND", [], "ask"),
        ("WAITING_FOR_RESOURCES", [], "wait"),
        ("PROVISIONING", [], "wait"),
        ("UNKNOWN", [], "wait"),
        ("SUSPENDING", [], "wait"),
        ("SUSPENDED", [], "take up"),
        ("FAILED", [], "ask again"),
        ("ACTIVE", [], "wait"),  # it does not answer yet
        ("ACTIVE", ["none", "none"], "send"),
        ("ACTIVE", ["none", "running"], "wait"),
        ("ACTIVE", ["running", "running"], "wait"),
        ("ACTIVE", ["75", "running"], "wait"),
        ("ACTIVE", ["0", "0"], "finish"),
        ("ACTIVE", ["75", "75"], "go on"),
        ("ACTIVE", ["75", "0"], "go on"),
        ("ACTIVE", ["75", "134"], "try again"),
        ("ACTIVE", ["137", "lost"], "try again"),
        ("ACTIVE", ["2", "75"], "fail"),
    ],
)
def test_what_follows_from_what_is_seen(state, workers, move):
    assert next_move(state, workers, 2) == move and move in MOVES


@pytest.mark.parametrize("move", sorted(MOVES))
def test_every_move_can_follow(move):
    states = ("NOT_FOUND", "SUSPENDED", "FAILED", "ACTIVE")
    said = ([], ["none"], ["running"], ["0"], ["2"], ["75"], ["9"])
    assert move in {next_move(state, workers, 1) for state in states for workers in said}


def test_what_fails_without_end_is_told_and_given_back(cloud, tmp_path):
    executable(tmp_path / "bin" / "sudo", '#!/bin/bash\n[ "$1" = docker ] || exec "$@"\necho so it is; exit 9\n')
    backend = slices(image="registry/dj:1", restarts=1)
    pause = lambda _: until(lambda: len(list(cloud.rglob("exit_code"))) in (0, 4))
    (ended,) = backend.run(Launch("toy", (Job("toy", "toy.py", tmp_path / "w"),)), lambda text: None, pause=pause)
    assert ended.code == 1 and "so it is" in ended.said and not (cloud / "toy").exists()


def test_without_gcloud_it_ends_with_why_and_an_outage_is_waited_out(cloud, tmp_path, monkeypatch):
    executable(tmp_path / "bin" / "sudo", "#!/bin/bash\nexit 0\n")
    launch = Launch("toy", (Job("toy", "toy.py", tmp_path / "w"),))
    backend, shown, looks = slices(image="registry/dj:1"), [], []
    gcloud = (tmp_path / "bin" / "gcloud").read_text()

    def pause(_):
        looks.append(1)
        until(lambda: len(list(cloud.rglob("exit_code"))) in (0, 4))
        out = 1 <= len(looks) < 6
        executable(tmp_path / "bin" / "gcloud", "#!/bin/bash\necho no network >&2; exit 1\n" if out else gcloud)

    (ended,) = backend.run(launch, shown.append, pause=pause)
    assert ended.code == 0 and len([text for text in shown if "no network" in text]) == 5
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failed, match="there is no 'gcloud' on this machine"):
        list(backend.run(launch, shown.append, pause=pause))


def tracked(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    subprocess.run(["git", "add", name], check=True, cwd=folder)


def test_the_files_that_git_tracks_are_sent_as_they_lie_here(cloud, tmp_path):
    code = tmp_path / "code"
    tracked(code, "configs/toy.py", "old")
    (code / "configs" / "toy.py").write_text("new")
    (code / "secret").write_text("not tracked")
    first, again = (source.packed(Path("launches/toy.tar.gz")) for _ in range(2))
    assert first == again
    (code / "launches").mkdir()
    carry_out([first])
    with tarfile.open(code / "launches" / "toy.tar.gz") as archive:
        assert archive.getnames() == ["configs", "configs/toy.py"]
        sent: Any = archive.extractfile("configs/toy.py")
        assert sent.read() == b"new"
    assert source.inside("configs/toy.py:smoke") == "configs/toy.py:smoke"
    with pytest.raises(ValueError, match="secret is not among the files that git tracks"):
        source.inside("secret")


def test_a_worker_runs_the_code_that_it_was_sent_word_by_word(cloud, tmp_path, monkeypatch):
    """In the folder of the code, with the environment that was made before, after the script of --setup."""
    code, home = tmp_path / "code", tmp_path / "home"
    tracked(code, "toy.py", "")
    (tmp_path / "setup.sh").write_text("touch was_set_up")
    job = Job("toy", "toy.py:smoke", tmp_path / "runs" / "it's $(touch pwned)", HOSTILE)
    backend = slices(setup=str(tmp_path / "setup.sh"))
    script, setup, *_ = backend.start(Launch("toy", (job,)))
    (home / "toy" / "code").mkdir(parents=True)
    (home / "toy" / "ready").touch()
    log = stand_in(home / "toy" / "venv" / "bin", monkeypatch, "python", answers={"train": ("", 75)})
    for file in (script, setup):
        (home / file.path.name).write_text(file.text)
    monkeypatch.setenv("HOME", str(home))
    ask = lambda verb: subprocess.run(["bash", "toy.sh", verb], cwd=home, check=True, capture_output=True, text=True)
    assert ask("poll").stdout == "diffusion_jax: lost\n"
    ask("start")
    until(lambda: re.fullmatch(r"diffusion_jax: \d+\n", ask("poll").stdout))
    assert ask("poll").stdout == "diffusion_jax: 75\n"
    (call,) = calls(log)
    assert call["words"] == command(job)[1:] and call["place"] == "auto"
    assert (home / "toy" / "was_set_up").exists() and not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("workdir", ["runs/toy", "gs://bucket/toy"])
def test_a_workdir_that_workers_cannot_share_is_refused(workdir):
    with pytest.raises(ValueError, match="is no folder that all workers share; .* Mount a bucket"):
        slices(image="registry/dj:1").refuse(Job("toy", "toy.py", Path(workdir)))
    with pytest.raises(ValueError, match="has a colon"):
        slices(image="registry/dj:1").refuse(Job("toy", "toy.py", Path("/mnt/a:b")))
