"""The commands launch, status, logs and stop: mistakes before anything is written, and what is left behind."""

import json
import subprocess

import pytest

from diffusion_jax.cli import arguments
from diffusion_jax.cli.main import run
from diffusion_jax.launch import record
from diffusion_jax.launch.job import command
from diffusion_jax.workdir import open_workdir, read_config
from tests.launch.stand_ins import calls, stand_in
from tests.runs import TOY, launch

SLURM = ("--backend=slurm", "--time=1:00:00")


MISTAKES = {
    "no workdir": (["launch", "--config", TOY], "where should the run live? Give --workdir"),
    "no config": (["launch", "--workdir", "x"], "which config?"),
    "backend": (["--backend=slrum"], "unknown backend 'slrum'. Did you mean 'slurm'?"),
    "option": (["--processses=2"], "Did you mean: processes"),
    "another's option": (["--zone=us-west4-a"], "backend 'local' does not take 'zone'. It belongs to tpu."),
    "needs": (["--backend=slurm"], "backend 'slurm' needs 'time'"),
    "type": (["--processes=two"], "invalid literal for int() with base 10: 'two'"),
    "name": (
        ["--name=Toy 1"],
        "--name is 'Toy 1'; it may have a-z, 0-9 and -, from a letter on, up to 40. For example toy-1.",
    ),
    "nameless": (
        ["--workdir=runs/__"],
        "of --workdir runs/__ no name can be made for the launch; give one, as in --name",
    ),
    "repeats": (["--repeats=0"], "--repeats is 0"),
    "key": (["--config.training.stepz=5"], "config.training has no 'stepz'. Did you mean 'steps'?"),
    "value": (["--config.training.steps=many"], "invalid literal for int()"),
    "plan": (["--plan"], "give a --topology, or leave --plan out"),
    "topology": (["--backend=tpu", "--zone=a-b", "--topology=v5e:3x3"], "the topology is 'v5e:3x3'"),
    "status": (["status", "toy"], "no launch is called 'toy'. launches/ has none"),
    "no launches": (["status"], "there is no launch in launches/"),
    "logs": (["logs"], "of which launch? Give its name"),
    "names": (["stop", "one", "two"], "one and two are several names"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_one_line_before_anything_is_written(mistake, here, capsys):
    argv, answer = MISTAKES[mistake]
    code = run(argv) if not argv[0].startswith("-") else launch(*argv)
    said = capsys.readouterr().err
    assert code == 2 and answer in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--config.network=mpl", "unknown network 'mpl'. Did you mean 'mlp'?"),
        ("--config.sampling.solver=huen", "unknown solver 'huen'. Did you mean 'heun'"),
        ("--config.loss.times=logit_norm", "Did you mean 'logit_normal'?"),
    ],
)
def test_the_config_is_built_before_anything_is_paid_for(flag, answer, here, capsys):
    assert run(["launch", *SLURM, "--config", TOY, "--workdir", "runs/toy", flag]) == 2
    assert answer in capsys.readouterr().err and not list(here.iterdir())
    assert run(["launch", *SLURM, "--config", TOY, "--workdir", "runs/toy", "--dry_run"]) == 0


def test_what_is_given_reaches_train_as_it_was_given(here):
    flags = ["--config.schedule=cosine", "--config.network={'name': 'mlp', 'width': 9, 'depth': 1}", "--config.seed=4"]
    asked = arguments.read_launch(["--config", TOY, "--workdir", "runs/a b", "--config.training.tensorboard", *flags])
    assert asked.job.name == "a-b" and asked.seed == 4
    there, direct = (
        arguments.read(words) for words in (command(asked.job)[4:], ["--config", TOY, "--workdir", "runs/a b", *flags])
    )
    assert there.workdir == direct.workdir
    assert there.config.training.tensorboard is True
    assert there.config.network.to_dict() == direct.config.network.to_dict() == {"name": "mlp", "width": 9, "depth": 1}
    assert list(asked.job.overrides) == ["training.tensorboard", "schedule", "network", "seed"]
    spaced = arguments.read_launch(
        ["--config", TOY, "--workdir=x", "--config.seed", "5", "--config.seed=6", "--nocheck"]
    )
    assert spaced.job.overrides == {"seed": "6"} and not spaced.check


def test_a_dry_run_shows_a_script_and_does_nothing(here, capsys, monkeypatch):
    log = stand_in(here / "bin", monkeypatch, "sbatch")
    assert launch(*SLURM, "--repeats=2", "--dry_run", "--config.seed=5") == 0
    said = capsys.readouterr().out
    assert not (here / "launches").exists() and not calls(log)
    subprocess.run(["bash", "-euc", said], check=True, stdin=subprocess.DEVNULL)
    (call,) = calls(log)
    assert "--array=0-1" in call["words"]
    script = (here / "launches" / "toy.sh").read_text()
    assert "--workdir runs/toy/seed=5" in script and "--config.seed=6" in script


@pytest.mark.parametrize("place", ["slurm", "tpu"])
def test_no_line_of_a_value_becomes_a_line_of_the_script(place, here, capsys, monkeypatch):
    """Also where the value is in a comment, as of the command that says whether a config fits."""
    hostile = "--config.sampling.negative=x\ntouch pwned #\nEND\ntouch pwned; $(touch pwned) `touch pwned` '\""
    tpu = ["--backend=tpu", "--topology=v5e:4x4", "--zone=us-west4-a", "--image=registry/dj:1"]
    where = {"slurm": SLURM, "tpu": tpu}[place]
    for name in ("sbatch", "gcloud"):
        stand_in(here / "bin", monkeypatch, name, answers={name: ("ACTIVE", 0)})
    assert run(["launch", *where, "--config", TOY, "--workdir", "/mnt/toy", "--dry_run", hostile]) == 0
    said = capsys.readouterr().out
    subprocess.run(["bash", "-euc", said], check=True, stdin=subprocess.DEVNULL)
    assert (here / "launches" / "toy.sh").exists() and not list(here.rglob("pwned"))


def test_a_launch_is_found_again_by_its_name(here, capsys, monkeypatch):
    log = stand_in(here / "bin", monkeypatch, "sbatch", "squeue", "scancel", answers={"sbatch": ("7", 0)})
    assert launch(*SLURM) == 0
    assert "`status toy` says how it is" in capsys.readouterr().out
    assert json.loads((here / "launches" / "toy.json").read_text())["said"] == ["7"]
    assert launch(*SLURM) == 2
    assert "'toy' was launched before: see `status toy`" in capsys.readouterr().err
    assert launch(*SLURM, "--again") == 0
    calls(log)
    assert run(["status", "toy"]) == 0 and run(["status"]) == 0
    said = capsys.readouterr().out
    assert "runs/toy: its folder cannot be seen from here" in said
    assert run(["stop", "toy", "--dry_run"]) == 0
    assert capsys.readouterr().out == "scancel 7\n"
    assert run(["stop", "toy"]) == 0
    assert [(call["name"], call["words"][0]) for call in calls(log)] == [("squeue", "--jobs=7"), ("scancel", "7")]


def test_a_request_that_fails_says_so_and_can_be_made_again(here, capsys, monkeypatch):
    stand_in(here / "bin", monkeypatch, "sbatch", answers={"sbatch": ("no such partition", 1)})
    with pytest.raises(SystemExit, match="ended with exit code 1.*--again starts anew"):
        launch(*SLURM)
    stand_in(here / "better", monkeypatch, "sbatch", answers={"sbatch": ("8", 0)})
    assert launch(*SLURM, "--again") == 0
    assert record.read("toy").launch.said == ("8",)


def test_the_plan_of_a_slice_is_offered_and_can_refuse(here, capsys, monkeypatch):
    tpu = ("--backend=tpu", "--zone=us-west4-a", "--topology=v5e:4x4", "--image=registry/dj:1", "--config.seed=3")
    assert launch(*tpu, "--dry_run", workdir="/mnt/runs/toy") == 0
    asked = f"--config {TOY} --topology v5e:4x4 --work training --nolargest --config.seed=3"
    plan = f"# whether it fits: python -m diffusion_jax plan {asked}"
    assert plan in capsys.readouterr().out
    monkeypatch.setattr("diffusion_jax.cli.launch.sys.executable", "python")
    log = stand_in(here / "bin", monkeypatch, "python", "gcloud", answers={"plan": ("", 1), "describe": ("ACTIVE", 0)})
    assert launch(*tpu, "--plan", workdir="/mnt/runs/toy") == 2
    assert "the plan says that it does not fit" in capsys.readouterr().err and not (here / "launches").exists()
    (call,) = calls(log)
    assert call["words"] == plan.split("python ")[1].split()
    stand_in(here / "more", monkeypatch, "python")
    assert launch(*tpu, "--plan", workdir="/mnt/runs/toy") == 0


def test_the_folder_of_another_config_is_refused(here, capsys):
    config, workdir = arguments.read(["--config", TOY, "--workdir", "runs/toy", "--config.network.width=4"])
    open_workdir(workdir, config).close()
    assert launch(*SLURM) == 2
    assert "runs/toy holds the run of another config; network.width: 4 there, 8 now" in capsys.readouterr().err
    assert read_config(workdir).network.width == 4


def test_how_far_a_run_is_can_be_seen_where_its_folder_can(here):
    asked = arguments.read_launch(["--config", TOY, "--workdir", "runs/toy"])
    folder = here / "runs" / "toy"
    assert record.progress(asked.job) == "its folder cannot be seen from here"
    (folder / "checkpoints" / "20").mkdir(parents=True)
    (folder / "checkpoints" / "40.orbax-checkpoint-tmp-1").mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 25, "loss": 1.0}\n{"step"')
    assert record.progress(asked.job) == "step 25; checkpoint of step 20"
    (folder / "finished.json").write_text('{"step": 50}')
    assert record.progress(asked.job) == "finished at step 50"


def test_of_a_bar_only_the_last_state_is_shown(here, capsys):
    asked = arguments.read_launch(["--config", TOY, "--workdir", "runs/toy"])
    record.note(record.Record(record.Launch("toy", (asked.job,)), asked.backend))
    (here / "runs" / "toy").mkdir(parents=True)
    (here / "runs" / "toy" / "log.0.txt").write_text("first\n 1%\r 2%\nlast\n")
    assert run(["logs", "toy"]) == 0
    assert capsys.readouterr().out == "first\n 2%\nlast\n"


def test_what_runs_here_is_stopped_here(here, capsys):
    asked = arguments.read_launch(["--config", TOY, "--workdir", "runs/toy"])
    record.note(record.Record(record.Launch("toy", (asked.job,)), asked.backend))
    assert run(["stop", "toy"]) == 2
    assert "launches on local have no `stop`: they run in the process" in capsys.readouterr().err


def test_an_ablation_is_started_where_it_goes_on_by_itself(here, capsys, monkeypatch):
    log = stand_in(here / "bin", monkeypatch, "sbatch", answers={"sbatch": ("7", 0)})
    file = here / "widths.py"
    file.write_text(
        "from diffusion_jax.ablation.grid import param\n"
        "from diffusion_jax.ablation.question import Ablation\n"
        "def get_ablation(mode):\n"
        f"    return Ablation('Wide?', {TOY!r}, param('network.width', [4, 8]), 'sliced_distance', samples=20)\n"
    )
    asked = ["sweep", str(file), *SLURM, "--parallel=1"]
    assert run([*asked, "--dry_run"]) == 0
    assert "--array=0-1%1" in capsys.readouterr().out and not calls(log)
    assert run(asked) == 0
    assert "2 runs were started; see `status widths`" in capsys.readouterr().out
    assert run(asked) == 2  # they are under way
    assert "'widths' was launched before" in capsys.readouterr().err
    (call,) = calls(log)
    assert "--job-name=widths" in call["words"]
    assert "--workdir runs/widths/width-8" in (here / "launches" / "widths.sh").read_text()
