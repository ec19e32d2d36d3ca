"""Every config: it states its claim, builds whole, has the network its paper counts, and its smoke run finishes."""

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import trained
from diffusion_jax.data.blank import blank
from diffusion_jax.experiment import make_training
from diffusion_jax.nets.network import count
from diffusion_jax.sampler import conditions, make_sampler
from tests.laws import quick
from tests.runs import train

CONFIGS = {path.stem: path for path in (Path(__file__).parent.parent / "configs").glob("*.py") if path.stem != "base"}
ELSEWHERE = [name for name in CONFIGS if name.startswith(("cifar10", "imagenet"))]  # whose data are not embedded
TESTED_ELSEWHERE = {"exact_2d", "toy_2d", "quickstart"}
EMBEDDED = {"captions", "finetune", "finetune_lora", "finetune_controlnet"}
MILLIONS = {  # as the papers and their code count them
    "cifar10_ddpm": 35.7,
    "cifar10_edm": 55.7,
    "imagenet64_adm": 295.9,
    "imagenet256_dit": 675,
    "imagenet256_sit": 675,
}


def config_of(name, mode="") -> Any:
    return runpy.run_path(str(CONFIGS[name]))["get_config"](mode)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_config_states_its_claim_and_the_command_that_shows_it(name):
    text = CONFIGS[name].read_text(encoding="utf-8")
    assert f"configs/{name}.py" in text and "python -m diffusion_jax" in text
    assert "Claim:" in text or "Published: FID" in text or name == "exact_2d"


def test_every_config_is_known_to_these_tests():
    assert set(CONFIGS) == {*ELSEWHERE, *EMBEDDED, *TESTED_ELSEWHERE}


@pytest.mark.parametrize("name", quick(sorted(ELSEWHERE), "cifar10_ddpm", "imagenet256_dit"))
def test_a_config_builds_whole_and_has_the_network_of_its_paper(name):
    config = config_of(name)
    training = make_training(config, source=blank(config.expects))
    model, info = training.model, training.batches.info
    assert set(training.batches[0].get("cond", {})) == set(config.cond)
    x = jnp.zeros((1, *info.shapes["x"]))
    cond = {entry: jnp.zeros((1, *what.shape), what.dtype) for entry, what in model.told.items()}
    params = jax.eval_shape(model.module.init, jax.random.key(0), x, jnp.zeros(1), cond)["params"]
    if name in MILLIONS:
        assert abs(count(params) / 1e6 - MILLIONS[name]) < max(0.06, MILLIONS[name] * 2e-3)
    indices = np.arange(2)
    told = conditions(config, model, indices)
    samples = jax.eval_shape(make_sampler(config, model, info), params, jax.random.key(0), indices, told)
    assert samples.shape == (2, *info.shapes["x"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ELSEWHERE, *EMBEDDED}))
def test_a_smoke_run_trains_saves_and_samples(name, tmp_path):
    workdir = tmp_path / name
    assert train(workdir, f"{name}.py:smoke") == 0
    assert (workdir / "pictures" / "samples_00000002.png").exists()
    model = trained.load(workdir)
    assert model.step == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(model.params)))
