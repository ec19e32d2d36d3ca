"""What a launch would disturb or could not carry out is said before anything is written or paid for."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from diffusion_jax.cli import arguments
from diffusion_jax.cli.main import run
from diffusion_jax.launch import record
from diffusion_jax.launch.action import Write
from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.backends import make_backend
from diffusion_jax.launch.job import Job
from diffusion_jax.workdir import open_workdir
from tests.launch.stand_ins import calls, executable, stand_in
from tests.runs import TOY
from tests.runs import launch as launch_toy

SLURM = ("--backend=slurm", "--time=1:00:00")
TPU = ("--backend=tpu", "--zone=us-west4-a", "--topology=v5e:4x4", "--image=registry/dj:1")
PODS = ("--backend=kubernetes", "--image=registry/dj:1", "--volume=claim:runs:/runs")
CLOUD = ("sbatch", "squeue", "scancel", "kubectl", "gcloud")


launch = partial(launch_toy, workdir="/runs/toy")  # which pods and slices take


def refused(capsys, here, *argv, workdir=""):
    """Launch what is refused in one line, and return the line; nothing is written."""
    away = any(word.startswith("--backend") for word in argv)
    workdir = workdir or ("/runs/toy" if away else "toy")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert launch(*argv, workdir=workdir) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    return said


SHARES = {
    "chips": ((*TPU, "--config.training.mesh.fsdp=3"), "16 devices do not fill"),
    "batch on chips": ((*PODS, "--topology=v5e:4x4", "--config.training.batch_size=17"), "make it a multiple of 16"),
    "pods": ((*PODS, "--hosts=2", "--gpus=4", "--config.training.batch_size=15"), "make it a multiple of 8"),
    "nodes": ((*SLURM, "--gpus=3"), "batch_size is 16; 3 devices and 1 parts must share it evenly"),
    "one process": ((*SLURM, "--gpus=3", "--tasks=1"), "batch_size is 16; 3 devices"),
    "tensor": ((*SLURM, "--gpus=2", "--config.training.mesh.tensor=2"), "tensor must divide the 1 devices of a host"),
    "CPUs": ((*SLURM, "--nodes=2", "--tasks=3"), "16; 6 devices"),
    "processes": (("--processes=3",), "make it a multiple of 3"),
    "mesh here": (("--config.training.mesh.fsdp=3",), "devices do not fill"),
    "parts": ((*SLURM, "--config.training.parts=0"), "config.training.parts is 0; it must be 1 or more"),
    "no batch": ((*SLURM, "--config.training.batch_size=0"), "config.training.batch_size is 0"),
}


@pytest.mark.parametrize("case", SHARES)
def test_a_batch_that_the_devices_cannot_share_is_refused(case, here, capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    log = stand_in(here / "bin", monkeypatch, *CLOUD)
    argv, answer = SHARES[case]
    assert answer in refused(capsys, here, *argv)
    assert not calls(log)


def test_devices_are_those_that_a_job_gets(monkeypatch):
    slices = {"name": "tpu", "topology": "v5e:4x4", "zone": "a-b", "image": "a/b:1"}
    cases = {
        (16, 4): slices,
        (8, 8): {**slices, "topology": "v5e:2x4"},
        (8, 4): {"name": "kubernetes", "image": "a/b:1", "volume": "claim:runs:/runs", "hosts": 2, "gpus": 4},
        (8, 1): {"name": "slurm", "time": "1", "nodes": 2, "gpus": 4},
        (4, 4): {"name": "slurm", "time": "1", "tasks": 1, "gpus": 4},
        (3, 1): {"name": "slurm", "time": "1", "nodes": 3},
        (10, 5): {"name": "local", "processes": 2},
    }
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=5")
    for expected, spec in cases.items():
        assert make_backend(spec).devices() == expected
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ValueError, match="JAX finds no devices on this machine"):
        make_backend({"name": "local"}).devices()


def test_an_old_job_can_be_stopped_until_there_is_a_new_one(here, capsys, monkeypatch):
    """A second launch keeps the number of the first until it has its own, and then says how the first is ended."""
    stand_in(here / "bin", monkeypatch, *CLOUD, answers={"sbatch": ("7", 0)})
    assert launch(*SLURM) == 0
    executable(here / "bin" / "sbatch", "#!/bin/sh\ncp launches/toy.json meanwhile.json\nexit 1\n")
    with pytest.raises(SystemExit, match="exit code 1"):
        launch(*SLURM, "--again")
    assert json.loads((here / "meanwhile.json").read_text())["said"] == ["7"]
    assert record.read("toy").launch.said == ("7",)
    capsys.readouterr()
    assert run(["stop", "toy", "--dry_run"]) == 0
    assert capsys.readouterr().out == "scancel 7\n"
    stand_in(here / "bin", monkeypatch, *CLOUD, answers={"sbatch": ("8", 0)})
    assert launch(*SLURM, "--again") == 0
    assert "what may be left of that is ended by: scancel 7\n" in capsys.readouterr().out
    assert record.read("toy").launch.said == ("8",)


ELSEWHERE = {
    "here": ((), "the backend was 'tpu' and is 'local' now"),
    "another backend": (SLURM, "the backend was 'tpu' and is 'slurm' now"),
    "another zone": ((*TPU, "--zone=us-east1-b"), "the zone was 'us-west4-a' and is 'us-east1-b' now"),
    "another project": ((*TPU, "--project=other"), "the project was '' and is 'other' now"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
@pytest.mark.parametrize("again", [(), ("--again",)])
def test_a_launch_elsewhere_is_not_forgotten(case, again, here, capsys, monkeypatch):
    stand_in(here / "bin", monkeypatch, *CLOUD, answers={"describe": ("ACTIVE", 0)})
    assert launch(*TPU) == 0
    capsys.readouterr()
    argv, answer = ELSEWHERE[case]
    said = refused(capsys, here, *argv, *again)
    assert answer in said and "remove launches/toy.json when that has ended" in said


def test_a_folder_in_use_is_left_alone(here, capsys, monkeypatch):
    stand_in(here / "bin", monkeypatch, *CLOUD)
    config, folder = arguments.read(["--config", TOY, "--workdir", "toy"])
    with open_workdir(folder, config):
        for backend in ((), SLURM):
            assert "toy is in use by another process" in refused(capsys, here, *backend, workdir="toy")
        assert launch(*SLURM, "--dry_run", workdir="toy") == 0
    assert launch(*SLURM, workdir="toy") == 0


@pytest.mark.parametrize(("backend", "name"), [(SLURM, "sbatch"), (TPU, "gcloud"), ((*PODS, "--gpus=1"), "kubectl")])
def test_a_command_that_is_not_here_is_said_before_anything_is_noted(backend, name, here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    assert f"there is no '{name}' on this machine" in refused(capsys, here, *backend)
    assert launch(*backend, "--dry_run") == 0


def test_folders_that_cannot_be_made_are_refused(here, capsys):
    assert "--workdir is /proc/zz" in refused(capsys, here, workdir="/proc/zz")
    (here / "launches").write_text("")
    assert "launches is a file" in refused(capsys, here, workdir="toy")


@pytest.mark.parametrize("options", [SLURM, TPU])
def test_what_is_launched_is_found_without_the_script_that_prepared_it(options, here, capsys, monkeypatch):
    stand_in(here / "bin", monkeypatch, *CLOUD, answers={"sbatch": ("7", 0), "describe": ("ACTIVE", 0)})
    assert "--setup setup.sh is no file" in refused(capsys, here, *options, "--setup=setup.sh")
    (here / "setup.sh").write_text("true\n")
    assert launch(*options, "--setup=setup.sh") == 0
    (here / "setup.sh").unlink()
    for asked in ("status", "logs", "stop"):
        assert run([asked, "toy", "--dry_run"]) == 0


def test_the_script_of_a_launch_is_what_it_was_when_it_was_launched(here):
    """A slice is asked for, and asked for again, for hours; what prepares its workers does not change under it."""
    (here / "setup.sh").write_text("true\n")
    spec = {"name": "tpu", "topology": "v5e:4x4", "zone": "a-b", "image": "a/b:1", "setup": "setup.sh"}
    backend, job = make_backend(spec), Job("toy", TOY, Path("/runs/toy"))
    (here / "setup.sh").unlink()
    written = [action.text for action in backend.start(Launch("toy", (job,))) if isinstance(action, Write)]
    assert written[1] == "true\n"


def test_failures_that_are_less_than_none_are_refused(here, capsys):
    for backend in (TPU, (*PODS, "--gpus=1"), SLURM, ()):
        assert "--restarts" in refused(capsys, here, *backend, "--restarts=-4")


def test_a_damaged_record_hides_no_other(here, capsys, monkeypatch):
    stand_in(here / "bin", monkeypatch, *CLOUD, answers={"sbatch": ("7", 0)})
    assert launch(*SLURM) == 0
    for name, text in (("a", "{}"), ("b", "{"), ("Notes_1", "{}"), ("c", "[]"), ("d", json.dumps({"jobs": 3}))):
        (here / "launches" / f"{name}.json").write_text(text)
    capsys.readouterr()
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "toy   slurm" in said and said.count("note: ") == 5 and "launches/Notes_1.json: " in said
    for name in "abcd":
        assert run(["status", name]) == 2
        assert f"launches/{name}.json is no record of a launch, or a damaged one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("training.parts=0", "config.training.parts is 0; it must be 1 or more"),
        ("training.parts=-2", "config.training.parts is -2"),
        ("sampling.batch_size=0", "config.sampling.batch_size is 0; it must be at least 1"),
        ("sampling.batch_size=-3", "config.sampling.batch_size is -3"),
    ],
)
def test_a_plan_is_of_what_can_be_run(flag, answer, here, capsys):
    assert run(["plan", "--config", TOY, f"--config.{flag}"]) == 2
    assert answer in capsys.readouterr().err
