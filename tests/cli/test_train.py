"""Training and sampling from the command line: whole runs, killed runs, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.cli.main import run
from diffusion_jax.config import load_config
from diffusion_jax.training.logbook import read
from diffusion_jax.training.loop import PREEMPTED
from diffusion_jax.workdir import open_workdir, read_config
from tests.runs import CONFIGS, IMAGES, POINTS, train

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small trained run of images by class."""
    workdir = tmp_path_factory.mktemp("quick")
    assert train(workdir, *IMAGES, "--config.training.save_every=1", "--config.training.tensorboard=True") == 0
    return workdir


def final(workdir):
    """Everything the newest checkpoint holds, by name."""
    from diffusion_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps()[-1]
    about = json.loads((workdir / "checkpoints" / str(step) / "about" / "metadata").read_text())
    checkpoints.close()
    return step, about["bits"]


def test_a_run_leaves_its_record(trained, capsys):
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "run.json", "data.json", "parameters.txt", "metrics.jsonl", "events", "pictures"} <= names
    lines = read(trained)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2]
    wanted = {
        "mse",
        "bin_loss",
        "bin_share",
        "grad_norm",
        "learning_rate",
        "examples_per_second",
        "data_wait",
        "skipped",
    }
    assert wanted <= set(lines[0])
    assert np.isclose(sum(lines[0]["bin_loss"]), lines[0]["loss"], rtol=1e-4)
    (start,) = json.loads((trained / "run.json").read_text())
    assert start["from_step"] == 0 and "jax" in start["versions"]
    with Image.open(trained / "pictures" / "samples_00000002.png") as picture:
        assert picture.size[0] > 100


def test_a_config_comes_back_as_it_was(trained):
    config: Any = read_config(trained)
    assert config.network.size.to_dict() == {"name": "custom", "width": 8, "depth": 1, "heads": 1}
    assert config.sampling.captions == ("",)
    assert config.to_dict()["transforms"][1] == {"name": "drop_label", "rate": 0.1}


def test_samples_depend_on_seed_and_index_alone(trained, tmp_path):
    drawn = {}
    for name, more in {
        "whole": (),
        "parts": ("--config.batch_size=5",),
        "fewer": ("--config.count=7", "--config.batch_size=7"),
        "other": ("--config.seed=1",),
    }.items():
        assert run(["sample", "--workdir", str(trained), "--out", str(tmp_path / name), *more]) == 0
        with np.load(tmp_path / name / "samples.npz") as saved:
            drawn[name] = saved["samples"]
    np.testing.assert_allclose(drawn["parts"], drawn["whole"], atol=1e-5)
    np.testing.assert_allclose(drawn["fewer"], drawn["whole"][:7], atol=1e-5)
    assert np.abs(drawn["other"] - drawn["whole"]).max() > 0.1
    assert len(list((tmp_path / "fewer").glob("0*.png"))) == 7


def test_sampling_takes_a_class_a_checkpoint_and_another_way(trained, tmp_path):
    more = ("--step=1", "--config.label=3", "--config.solver=ddim", "--config.average=params", "--config.guidance=none")
    assert run(["sample", "--workdir", str(trained), "--out", str(tmp_path), *more]) == 0
    with np.load(tmp_path / "samples.npz") as saved:
        assert (saved["labels"] == 3).all()


@pytest.mark.slow
def test_going_on_is_exact_and_the_record_has_every_step_once(tmp_path):
    """4 steps = 2 steps, another start, 2 steps: every array of the state, bit for bit."""
    four = (*IMAGES, "--config.training.steps=4")
    assert train(tmp_path / "whole", *four) == 0
    assert train(tmp_path / "parts", *IMAGES) == 0
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.0}\n{"step"')  # as a kill would leave it
    assert train(tmp_path / "parts", *four) == 0
    assert final(tmp_path / "whole") == final(tmp_path / "parts")
    records = [
        [(line["step"], line["loss"]) for line in read(tmp_path / name) if "loss" in line]
        for name in ("whole", "parts")
    ]
    assert records[0] == records[1]
    assert [start["from_step"] for start in json.loads((tmp_path / "parts" / "run.json").read_text())] == [0, 2]


@pytest.mark.slow
def test_sigterm_saves_and_says_that_the_run_can_go_on(tmp_path):
    command = [sys.executable, "-m", "diffusion_jax", "train", f"--config={CONFIGS}/{POINTS[0]}", *POINTS[1:]]
    command += [f"--workdir={tmp_path}", "--config.training.steps=1000000", "--config.training.log_every=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not read(tmp_path) and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == PREEMPTED
    assert "stopped by SIGTERM after step" in said
    assert f"after step {final(tmp_path)[0]};" in said


def test_another_config_in_the_same_folder_is_refused_with_the_difference(tmp_path, capsys):
    assert train(tmp_path, *POINTS) == 0
    before = (tmp_path / "config.json").read_bytes()
    capsys.readouterr()
    assert train(tmp_path, *POINTS, "--config.training.batch_size=32", "--config.network.width=16") == 2
    said = capsys.readouterr().err
    assert "network.width: 8 there, 16 now; training.batch_size: 16 there, 32 now" in said
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path, capsys):
    config = load_config(f"{CONFIGS / 'toy_2d.py'}:smoke")
    first = open_workdir(tmp_path / "run", config)
    assert train(tmp_path / "run", "toy_2d.py:smoke", "--config.training.tensorboard=True") == 2
    assert "is in use by another process; wait" in capsys.readouterr().err
    first.close()
    open_workdir(tmp_path / "run", config).close()


MISTAKES = {
    "key": (["--config.training.stepz=5"], "config.training has no 'stepz'. Did you mean 'steps'?"),
    "network": (["--config.network=mpl"], "unknown network 'mpl'. Did you mean 'mlp'?"),
    "optimizer": (["--config.training.optimizer=adm"], "unknown optimizer 'adm'. Did you mean 'adam'?"),
    "times": (["--config.loss.times=logit_norm"], "unknown times 'logit_norm'. Did you mean 'logit_normal'?"),
    "batch": (["--config.training.batch_size=12"], "batch_size is 12; 8 devices and 1 parts must share it evenly"),
    "average": (["--config.sampling.average=emma"], "config.sampling.average is 'emma'; it must be one of params, ema"),
    "guidance": (["--config.sampling.guidance={'name': 'classifier_free', 'scale': 2.0}"], "has no conditions"),
    "mapping": (["--config.training.mapping=pmpa"], "unknown mapping 'pmpa'. Did you mean 'pmap'?"),
    "steps": (["--config.training.steps=0"], "config.training.steps is 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_one_line_before_anything_is_written(mistake, tmp_path, capsys):
    more, answer = MISTAKES[mistake]
    assert train(tmp_path / "run", *POINTS, *more) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        ([], "which run? Give --workdir"),
        (["--workdir", "nowhere"], "nowhere is no run's folder"),
        (["--workdir", "RUN", "--config.solver=hun"], "unknown solver 'hun'. Did you mean 'heun'?"),
        (["--workdir", "RUN", "--config.sead=1"], "config has no 'sead'. Did you mean 'seed'?"),
        (["--workdir", "RUN", "--step=9"], "no checkpoint of step 9"),
        (["--workdir", "RUN", "--config.label=12"], "label is 12; classes are 0 to 11"),
        (["--workdir", "RUN", "--config.average=0.1"], "no snapshots"),
    ],
)
def test_mistakes_in_sampling_are_answered_in_one_line(argv, answer, trained, tmp_path, capsys):
    argv = [str(trained) if word == "RUN" else word for word in argv]
    assert run(["sample", *argv, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
