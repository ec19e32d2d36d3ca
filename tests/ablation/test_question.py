"""From a question to runs: what arms share, what is refused before time is spent, what is not done twice."""

import re

import numpy as np
import pytest

from diffusion_jax.ablation import carry_out
from diffusion_jax.ablation.grid import param, product, seeds, zipped
from diffusion_jax.ablation.question import FIELDS, Ablation, load_ablation, runs_of, twins
from diffusion_jax.cli.main import run as command
from diffusion_jax.config import changed, load_config
from diffusion_jax.experiment import make_training
from diffusion_jax.launch.backend import Ended
from diffusion_jax.launch.job import Job, plainly
from diffusion_jax.launch.job import command as words
from diffusion_jax.training.loop import PREEMPTED
from diffusion_jax.workdir import note_end, open_workdir, plain
from tests.runs import CONFIGS, TOY

FOLDER = CONFIGS.parent / "experiments" / "ablations"
ABLATIONS = sorted({*FOLDER.glob("*.py")} - {FOLDER / "scales.py"})


def ablation(grid, **more) -> Ablation:
    return Ablation("Which?", TOY, grid, "sliced_distance", samples=20, **more)


def done(job, code=0):
    """Leave what a finished run leaves."""
    return Ended(job, code, 1.0, "said")


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_ablation_builds_and_states_its_command(path, tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    assert f"experiments/ablations/{path.name}" in path.read_text(encoding="utf-8")
    assert load_ablation(str(path)).question.endswith("?")
    assert len(runs_of(load_ablation(f"{path}:smoke"), tmp_path)) >= 2
    for mode in ("", ":cifar10", ":imagenet"):
        found = load_ablation(f"{path}{mode}")
        base = load_config(found.config)
        assert len({str(changed(base, {**found.fixed, **arm})) for arm in found.grid}) == len(found.grid)


def test_arms_that_differ_in_sampling_share_a_run(tmp_path):
    ways = product(param("sampling.solver", ["euler", "heun"]), param("sampling.steps", [1, 2]))
    runs = runs_of(ablation(product(param("schedule", ["cosine", "rectified"]), ways, seeds(2))), tmp_path)
    assert len(runs) == 4 and {len(run.config.evaluation.settings) for run in runs} == {4}
    assert runs[0].config.evaluation.settings[1] == {"solver": "euler", "steps": 2}
    assert [run.job.workdir.name for run in runs[:2]] == ["schedule-cosine_seed-0", "schedule-cosine_seed-1"]


def test_the_command_of_a_job_means_its_config(tmp_path):
    """What the command line reads back is what the arm says, dicts, tuples and all."""
    from diffusion_jax.cli import arguments

    fixed = {"training.rate": {"name": "constant", "peak": 2e-3, "warmup": 1}, "training.tensorboard": False}
    grid = product(
        param("schedule", [{"name": "linear_beta", "beta_min": 0.2, "beta_max": 9.0}]),
        param("sampling.guidance", [{"name": "none"}]),
        seeds(2),
    )
    for run in runs_of(ablation(grid, fixed=fixed), tmp_path):
        read = arguments.read(words(run.job)[4:])
        assert read.workdir == run.job.workdir
        assert read.config.to_dict() == run.config.to_dict()


NUMPY = {
    "training.rate.peak": [np.float64(1e-3), np.float32(0.5), np.array(2e-3), float("inf")],
    "network.width": np.array([4, 8]),
    "training.tensorboard": [np.bool_(True), False],
    "sampling.steps": np.arange(1, 3),
    "schedule": [{"name": "linear_beta", "beta_min": np.float64(0.2), "beta_max": float("inf")}],
    "evaluation.metrics": [np.array(["a", "b"]), ("c",), ()],
}


@pytest.mark.parametrize("key", NUMPY)
def test_a_job_can_be_told_every_value_that_an_arm_can_have(key, tmp_path):
    """Numpy's numbers are numbers, and what is infinite is."""
    from diffusion_jax.cli import arguments

    for place, value in enumerate(NUMPY[key]):
        said = {key: plainly(value, key)}
        job = Job("a", TOY, tmp_path / str(place), said)
        assert plain(arguments.read(words(job)[4:]).config) == plain(changed(load_config(TOY), said))
    with pytest.raises(ValueError, match="of an arm is <object .*, which no command line can say; give a number"):
        runs_of(ablation(param("network.width", [object()])), tmp_path)
    (run,) = runs_of(ablation(param("network.width", np.array([4]))), tmp_path)
    assert run.config.network.width == 4 and run.name == "width-4"


GRID = "param('network.width', [4])"
SPELLINGS = {
    "type of a value": ("param('network.width', ('eight',))", "", "network.width is 8, of type int; 'eight' is of an"),
    "samples": (GRID, ", samples='many'", "samples of .*wide.py is 'many'; it must be a whole number"),
    "metrics": (GRID, ", metrics=['fid']", "metrics of .* it must be names with commas"),
    "numbers as grid": ("[8, 9]", "", "every arm must be a mapping"),
    "text as grid": ("'abc'", "", "grid of .* it must be a tuple of arms"),
    "dict as grid": ("{'a': 1}", "", "grid of .* it must be a tuple of arms"),
    "fixed": (GRID, ", fixed=None", "fixed of .* is None; it must be a mapping"),
    "seeds": ("seeds('3')", "", "wide.py, line 6: seeds: count is '3'; it must be a whole number"),
    "name": ("parm('network.width', [4])", "", "wide.py, line 6: NameError: name 'parm' is not defined"),
    "keyword": (GRID, ", metric='fid'", "wide.py, line 6: TypeError: .*unexpected keyword argument 'metric'"),
}
FILES = {
    "no function": ("get_ablation = 3\n", "get_ablation of .* is 3; it must be a function of a mode"),
    "no mode": ("def get_ablation():\n    return 3\n", "TypeError: get_ablation.* takes 0 positional arguments"),
    "import": ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named"),
    "no text": ("\0\1", "this is no Python"),
}


def one_line(capsys, argv, message):
    assert command(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and re.search(message, said), said


@pytest.mark.parametrize("mistake", [*SPELLINGS, *FILES])
def test_a_mistake_in_a_file_is_said_in_one_line_with_its_place(mistake, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if mistake in FILES:
        text, message = FILES[mistake]
    else:
        grid, more, message = SPELLINGS[mistake]
        given = {"config": repr(TOY), "metrics": "'sliced_distance'", "samples": "20"}
        said = "".join(f", {name}={value}" for name, value in given.items() if f", {name}=" not in more)
        text = (
            "from diffusion_jax.ablation.grid import param, seeds\n"
            "from diffusion_jax.ablation.question import Ablation\n"
            "\n"
            "\n"
            "def get_ablation(mode):\n"
            f"    return Ablation('Wide?', grid={grid}{said}{more})\n"
        )
    (tmp_path / "wide.py").write_text(text)
    one_line(capsys, ["sweep", "wide.py"], message)
    assert [path.name for path in tmp_path.iterdir()] == ["wide.py"]


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_of_an_ablation_is_of_its_type(field, tmp_path, capsys):
    (tmp_path / "wide.py").write_text(
        "from diffusion_jax.ablation.question import Ablation\n"
        "def get_ablation(mode):\n"
        f"    return Ablation('Wide?', {TOY!r}, ({{'seed': 1}},), 'sliced_distance')._replace({field}=3.5)\n"
    )
    one_line(capsys, ["sweep", str(tmp_path / "wide.py")], f"{field} of .* is 3.5; it must be {FIELDS[field][1]}")


def test_where_a_report_cannot_be_written_is_said_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "wide.py").write_text(
        "from diffusion_jax.ablation.grid import param\n"
        "from diffusion_jax.ablation.question import Ablation\n"
        f"def get_ablation(mode):\n    return Ablation('Wide?', {TOY!r}, {GRID}, 'sliced_distance', samples=20)\n"
    )
    for out in ("file", "file/under"):
        asked = ["sweep", str(tmp_path / "wide.py"), "--out", str(tmp_path / out)]
        one_line(capsys, asked, "--out is .* is a file; give another folder")
    plan = ["plan", "--config", TOY, "--out"]
    one_line(capsys, [*plan, str(tmp_path / "file" / "a.json")], "--out is .*file is a file")
    one_line(capsys, [*plan, str(tmp_path)], "--out is .* which is a folder; give a file")
    one_line(capsys, [*plan, "/proc/zz/a.json"], "a folder that cannot be written to")


def test_seeds_share_the_order_of_the_data_across_arms(tmp_path):
    grid = product(param("schedule", ["cosine", "rectified"]), seeds(2))
    first = [make_training(run.config).batches[0]["x"] for run in runs_of(ablation(grid), tmp_path)]
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], first[3])
    assert np.abs(first[0] - first[1]).max() > 0


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (param("schedul", ["cosine"]), "arm 'schedul-cosine': config has no 'schedul'. Did you mean 'schedule'"),
        (param("schedule", ["cosin"]), "unknown schedule 'cosin'. Did you mean 'cosine'"),
        (param("sampling.solver", ["huen"]), "unknown solver 'huen'. Did you mean 'heun'"),
        (param("network.width", [8, 8]), "both be called 'width-8'"),
        (param("loss", [3]), "neither a name nor a mapping"),
    ],
)
def test_a_mistake_in_an_arm_is_said_before_any_run(grid, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs_of(ablation(grid), tmp_path)
    assert not list(tmp_path.iterdir())


def test_arms_of_one_objective_are_pointed_out(tmp_path):
    """With the published weight of the noise's error in every space, only the network's output differs."""
    spaces = param("loss.prediction", ["eps", "v"])
    same = runs_of(ablation(product(spaces, param("loss.weighting", ["sigmoid"]), seeds(2))), tmp_path)
    (found,) = twins(same)
    assert "prediction-eps_weighting-sigmoid_seed-0 and prediction-v_weighting-sigmoid_seed-0" in found
    assert not twins(runs_of(ablation(product(spaces, seeds(2))), tmp_path))
    wider = zipped(param("network.width", [8, 16]), param("loss.prediction", ["eps", "v"]))
    assert not twins(runs_of(ablation(product(wider, param("loss.weighting", ["sigmoid"]))), tmp_path))


def finish(run):
    open_workdir(run.job.workdir, run.config).close()
    note_end(run.job.workdir, run.config.training.steps, run.config)


def test_what_is_done_is_not_done_again_and_what_fails_does_not_stop_the_rest(tmp_path):
    runs, asked = runs_of(ablation(product(param("network.width", [8, 16]), seeds(2))), tmp_path), []
    finish(runs[0])

    def backend(jobs):
        for job in jobs:
            asked.append(job.name)
            if job.name == runs[1].name:
                yield done(job, 1)
                continue
            if asked.count(job.name) == 1 and job.name == runs[2].name:
                yield done(job, PREEMPTED)
                continue
            finish(next(run for run in runs if run.job is job))
            yield done(job)

    outcome = carry_out.carry_out(runs, backend)
    assert asked == [runs[1].name, runs[2].name, runs[3].name, runs[2].name]
    assert (outcome.total, outcome.before, [ended.job.name for ended in outcome.failed]) == (4, 1, [runs[1].name])
    assert [run.name for run in carry_out.waiting(runs)] == [runs[1].name]
    longer = runs_of(ablation(product(param("network.width", [8]), seeds(1)), fixed={"training.steps": 9}), tmp_path)
    assert carry_out.waiting(longer)  # more steps are to be done


def test_the_folder_of_another_run_is_left_alone(tmp_path):
    (first,) = runs_of(ablation(param("network.width", [8])), tmp_path)
    finish(first)
    before = (first.job.workdir / "config.json").read_bytes()
    (other,) = runs_of(ablation(param("network.width", [8]), fixed={"training.batch_size": 32}), tmp_path)
    with pytest.raises(ValueError, match="holds the run of another config; training.batch_size: 16 there, 32 now"):
        carry_out.waiting([other])
    assert (first.job.workdir / "config.json").read_bytes() == before


def test_a_run_that_is_stopped_from_outside_again_and_again_is_reported(tmp_path):
    runs, asked = runs_of(ablation(param("network.width", [8])), tmp_path), []

    def backend(jobs):
        for job in jobs:
            asked.append(job.name)
            yield done(job, PREEMPTED)

    outcome = carry_out.carry_out(runs, backend)
    assert len(asked) == carry_out.AGAIN and [ended.code for ended in outcome.failed] == [PREEMPTED]


@pytest.mark.slow
def test_one_command_leads_from_a_question_to_its_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    file = tmp_path / "widths.py"
    file.write_text(
        "from diffusion_jax.ablation.grid import param, product, seeds\n"
        "from diffusion_jax.ablation.question import Ablation\n"
        "def get_ablation(mode):\n"
        "    grid = product(param('network.width', [4, 8]), param('sampling.steps', [1, 2]), seeds(1))\n"
        f"    return Ablation('Wide?', {TOY!r}, grid, 'sliced_distance', samples=20)\n"
    )
    out = tmp_path / "out"
    asked = ["sweep", str(file), "--out", str(out), "--parallel", "2"]
    assert command(asked) == 0
    said = capsys.readouterr().out
    assert "2 runs, of which 2 are to be done" in said and "mlp width=8, evaluations 3" in said
    page = (out / "report.html").read_text()
    assert "Wide?" in page and page.count("data:image/png;base64,") >= 4 and "://" not in page
    before = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoints/*")}
    assert command(asked) == 0
    assert "2 runs, of which 0 are to be done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("checkpoints/*")}
    folders = [str(path) for path in out.iterdir() if path.is_dir()]
    assert command(["report", "--workdirs", *folders, "--out", str(tmp_path / "again"), "--cumulative"]) == 0
    assert (tmp_path / "again" / "rows.csv").read_text().count("\n") == 5


def test_the_command_line_of_a_report(tmp_path, capsys):
    assert command(["report"]) == 2
    assert "which runs? Give --workdirs" in capsys.readouterr().err
    assert command(["report", "--workdirs", str(tmp_path / "nowhere")]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert command(["sweep", "nowhere.py"]) == 2
    assert "no ablation file at nowhere.py" in capsys.readouterr().err
    assert command(["sweep", str(ABLATIONS[0]), "--backend", "locl"]) == 2
    assert "Did you mean 'local'" in capsys.readouterr().err
