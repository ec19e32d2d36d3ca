"""The paths command: what it leaves behind, and how every command answers mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.cli import arguments
from diffusion_jax.cli.main import COMMANDS, run
from diffusion_jax.files import replacing
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.types import Solver

ROOT = Path(__file__).parent.parent.parent
TOY = str(ROOT / "configs" / "exact_2d.py")


def paths(workdir, *more, config=f"{TOY}:smoke"):
    """Run the command in this process and return its exit code."""
    return run(["paths", "--config", config, "--workdir", str(workdir), *more])


def test_smoke_from_the_shell(tmp_path):
    workdir = tmp_path / "new" / "run"
    command = [sys.executable, "-m", "diffusion_jax", "paths", f"--config={TOY}:smoke", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert sorted(path.name for path in workdir.iterdir()) == ["metrics.json", "paths.png", "samples.npz"]
    assert "4/4" in done.stderr and "step/s" in done.stderr
    assert str(workdir) in done.stdout
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["evaluations"] == 4
    assert metrics["config"]["sampling"]["solver"]["name"] == "dpmpp_2m"
    assert (workdir / "paths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_sample_does_not_depend_on_their_number_and_steps_bring_it_to_the_exact_flow(tmp_path):
    results = {}
    for count in (16, 24):
        workdir = tmp_path / str(count)
        assert (
            paths(workdir, "--config.sampling.solver=rk4", "--config.sampling.steps=40", f"--config.count={count}") == 0
        )
        with np.load(workdir / "samples.npz") as saved:
            results[count] = dict(saved)
    for name in ("start", "samples", "exact"):
        np.testing.assert_allclose(results[24][name][:16], results[16][name], rtol=1e-4, atol=1e-5)
    away = np.linalg.norm(results[24]["samples"] - results[24]["exact"], axis=1)
    metrics = json.loads((tmp_path / "24" / "metrics.json").read_text())
    assert metrics["evaluations"] == 40 * 4 - 3
    assert metrics["error_to_exact_flow"]["max"] == pytest.approx(away.max(), rel=1e-5)
    assert np.median(away) < 1e-2 < np.linalg.norm(results[24]["start"] - results[24]["exact"], axis=1).min()


@pytest.mark.slow
def test_a_stochastic_solver_is_not_held_against_the_flow(tmp_path):
    assert paths(tmp_path, "--config.sampling.solver=ancestral") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["error_to_exact_flow"] is None


def test_samples_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    def broken(schedule):
        return Solver("broken", 1, lambda x: (), lambda denoise, x, now, memory: (x * jnp.nan, memory))

    monkeypatch.setitem(SOLVERS, "broken", broken)
    with pytest.raises(SystemExit, match="32 of 32 samples are not finite"):
        paths(tmp_path, "--config.sampling.solver=broken")
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "entry": (["--config.sampling.solver=ddmi"], "unknown solver 'ddmi'. Did you mean 'ddim'?"),
    "key": (["--config.sampling.step=5"], "config.sampling has no 'step'. Did you mean 'steps'?"),
    "keyword": (["--config.schedule.beta_mx=5"], "has no 'beta_mx'. Did you mean 'beta_max'?"),
    "depth": (["--config.sampling.steps.of=5"], "config.sampling.steps is 4 and has no parts"),
    "flag": (["--workdri=x"], "Did you mean: workdir"),
    "type": (["--config.sampling.steps=many"], "invalid literal for int() with base 10: 'many'"),
    "steps": (["--config.sampling.steps=0"], "config.sampling.steps is 0; it must be at least 1"),
    "count": (["--config.count=1"], "config.count is 1; it must be at least 2"),
    "value": (["--config.schedule.beta_min=-1"], "beta_min is -1.0; it must be greater than 0"),
    "no number": (["--config.schedule={'name': 'linear_beta', 'beta_min': 'low'}"], "config.schedule is"),
    "no entry": (["--config.schedule=[1, 2]"], "give a name, or a dict"),
    "no name": (["--config.schedule={'offset': 0.1}"], "schedule has no 'name'"),
    "no option": (["extra"], "cannot place the argument 'extra'"),
    "leftovers": (
        ["--config.schedule.name=cosine"],
        "'cosine' does not take 'beta_max'. It belongs to linear_beta, sub_vp. It takes: offset. Remove it. "
        "On the command line, --config.schedule=cosine replaces the whole entry",
    ),
    "no variance": (
        ["--config.sampling.solver={'name': 'ddpm', 'variance': 'learned'}"],
        "ddpm: variance 'learned' needs a network of prediction 'learned_variance'",
    ),
    "needs": (["--config.pace=shift"], "pace 'shift' needs 'factor'. On the command line, --config.pace=shift"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_one_line(mistake, tmp_path, capsys):
    more, answer = MISTAKES[mistake]
    workdir = tmp_path / "run"
    assert paths(workdir, *more) == 2
    _expect_one_line(capsys, answer)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["smaple"], "unknown command 'smaple'. Did you mean 'sample'?"),
        (["paths"], "which config?"),
        (["paths", "--config"], "which config?"),
        (["paths", "--config", TOY], "Give --workdir"),
        (["paths", f"--config={TOY}", f"--workdir={TOY}"], "is a file"),
        (["paths", f"--config={TOY}:smok", "--workdir=x"], "unknown mode 'smok' of a config. Known: smoke."),
        (["paths", f"--config={__file__}", "--workdir=x"], "has no function get_config"),
    ],
)
def test_incomplete_requests_are_answered_in_one_line(argv, answer, capsys):
    assert run(argv) == 2
    _expect_one_line(capsys, answer)


def test_a_config_that_is_no_python_is_said_to_be_none_and_where(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("x = 1\ndef get_config(:\n    return x\n")
    assert run(["paths", "--config", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run")]) == 2
    _expect_one_line(capsys, "mine.py, line 2: this is no Python, invalid syntax: def get_config(:")


def test_a_missing_config_file_suggests_another(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run(["paths", "--config=configs/exact2d.py", "--workdir=x"]) == 2
    _expect_one_line(capsys, "no config file at configs/exact2d.py. Did you mean 'configs/exact_2d.py'?")


def test_help_teaches(capsys):
    assert run([]) == 2
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_on_a_command_teaches(command, capsys):
    assert run([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "--workdir" in said or command in ("plan", "import_weights")
    assert f"python -m diffusion_jax {command}" in said
    assert "--config." in said or command in ("report", "status", "logs", "stop", "encode")  # which change no run


def test_entries_are_replaced_whole_or_in_part():
    argv = ["--config", TOY, "--workdir", "x", "--config.seed=7", "--config.pace.factor", "3"]
    config = arguments.read(
        [*argv, "--config.schedule=cosine", "--config.sampling.grid={'name': 'karras', 'rho': 5}"]
    ).config
    assert config.seed == 7
    assert config.pace.to_dict() == {"name": "shift", "factor": 3.0}
    assert config.schedule.to_dict() == {"name": "cosine"}
    assert config.sampling.grid.to_dict() == {"name": "karras", "rho": 5}
    with pytest.raises(AttributeError):
        config.sead = 8


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def _expect_one_line(capsys, answer):
    said = capsys.readouterr().err
    assert answer in said
    assert said.startswith("error: ") and said.count("\n") == 1
