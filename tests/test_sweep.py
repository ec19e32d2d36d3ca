"""Many settings of one checkpoint: each is measured as on its own, and only new shapes are compiled."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import trained
from diffusion_jax.assess import Question, evaluate
from diffusion_jax.cli.main import run as command
from diffusion_jax.config import changed
from diffusion_jax.sampler import make_sampler
from diffusion_jax.sweep import sweep
from tests.runs import POINTS, train

ASKED = {"metrics": "sliced_distance", "samples": 30}


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("points")
    assert train(workdir, *POINTS) == 0
    return workdir


def test_a_setting_of_a_sweep_is_measured_as_on_its_own(points):
    over = {"solver": ("euler", "heun"), "steps": (1, 3)}
    sets = sweep(Question(points, **ASKED), over)
    assert [cards[0].samples["evaluations"] for cards in sets] == [1, 3, 1, 5]
    sampling: Any = trained.load(points).config.sampling
    alone = evaluate(points, sampling=changed(sampling, {"solver": "heun", "steps": 3}), **ASKED)
    assert sets[-1]["sliced_distance"].value == alone["sliced_distance"].value
    averages = sweep(Question(points, **ASKED), {"average": ("ema", "params")})
    assert averages[0][0].value != averages[1][0].value


def test_values_are_not_compiled_anew_and_shapes_are(points):
    loaded: Any = trained.load(points)
    compiled: dict[str, Any] = {}
    made, traces = [], [0]

    def counted(*inputs):
        traces[0] += 1  # a trace is a compilation
        return loaded.model.apply(*inputs)

    model = loaded._replace(model=loaded.model._replace(apply=counted))
    counts = []
    for values in ({"steps": 2}, {"steps": 2, "grid.start": 0.9}, {"steps": 2, "seed": 3}, {"steps": 3}):
        config = model.config.copy_and_resolve_references()
        config.sampling = changed(config.sampling, values)
        draw = make_sampler(config, model.model, model.info, compiled=compiled)
        made.append(draw(model.params, jax.random.key(0), jnp.arange(4), {}))
        counts.append(traces[0])
    assert counts[0] == counts[1] == counts[2] < counts[3] and len(compiled) == 1
    assert np.abs(made[0] - made[1]).max() > 0


@pytest.mark.parametrize(
    ("key", "message"),
    [("stpes", "Did you mean 'steps'"), ("grid.strat", "Did you mean 'start'"), ("steps.more", "has no 'steps.more'")],
)
def test_keys_that_are_not_there_are_refused(points, key, message):
    with pytest.raises(ValueError, match=message):
        sweep(Question(points, **ASKED), {key: (1, 2)})


@pytest.mark.slow
def test_the_command_leaves_a_table_and_a_picture(points, capsys):
    told = ["--workdir", str(points), "--metrics", "sliced_distance,surplus_nats", "--samples", "30"]
    assert command(["sweep", *told, "--over", "steps=1,2", "--over=solver=euler,heun"]) == 0
    assert "steps 2, solver heun" in capsys.readouterr().out
    folder = points / "sweeps"
    assert (folder / "steps-solver.md").read_text().count("\n") == 6
    with Image.open(folder / "steps-solver.png") as picture:
        assert picture.size[0] > 400 and picture.size[1] > 2 * 400  # two metrics
    for more, message in (([], "what should vary"), (["--over", "steps"], "names no values")):
        assert command(["sweep", *told, *more]) == 2
        assert message in capsys.readouterr().err
