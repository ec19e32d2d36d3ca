"""Data encoded once, and training that begins from another run."""

import json
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.adapters import ADAPTERS
from diffusion_jax.cli.main import run
from diffusion_jax.codecs import make_codec
from diffusion_jax.config import changed, load_config
from diffusion_jax.data import make_source
from diffusion_jax.data.pipeline import examples
from diffusion_jax.encoded import Encoding, encode, hinted
from diffusion_jax.experiment import make_training, start
from diffusion_jax.imported import read_imported, write_imported
from diffusion_jax.launch.work import sampling_work
from diffusion_jax.prompts import hear
from diffusion_jax.sampler import captions_of, check_hints, conditions, make_sampler
from diffusion_jax.starts import STARTS, inherited, make_start
from diffusion_jax.trained import load
from diffusion_jax.training.step import make_train_step
from tests import pipelines
from tests.nets.tiny import stirred

CONFIG = Path(__file__).parent.parent / "configs" / "finetune.py"
CONTROL = CONFIG.with_name("finetune_controlnet.py")
SHAPES = {"name": "shapes", "side": 16, "examples": 6, "entries": ("x", "caption")}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """An imported run and latents for it."""
    root = tmp_path_factory.mktemp("parent")
    write_imported(read_imported(pipelines.stable_diffusion(root / "sd")), root / "run")
    config: Any = load(root / "run").config
    codec = make_codec(config.latent)
    assert codec is not None
    asked = Encoding(make_source(SHAPES), ({"name": "to_unit"},), codec, batch_size=4, mirrored=True)
    encode(asked, root / "latents.npz", side=16)
    return root


def config_of(root, **changes) -> Any:
    made = runpy.run_path(str(CONFIG))["get_config"]()
    values = {"start.folder": str(root / "run"), "data.path": str(root / "latents.npz"), "training.batch_size": 4}
    return inherited(changed(made, values | changes))


def test_latents_are_those_of_the_images_in_their_order_and_their_mirror_images(parent):
    source, images = make_source({"name": "array", "path": str(parent / "latents.npz")}), make_source(SHAPES)
    assert len(source) == 12 and source.info.shapes["x"] == (8, 8, 4)
    codec = make_codec(load(parent / "run").config.latent)
    assert codec is not None
    run = jax.jit(lambda params, x: codec.ways(params).encode(x))
    # The batches are 0 to 3, their mirror images, 4 and 5, and theirs.
    for place, number, mirrored in ((1, 1, False), (5, 1, True), (8, 4, False), (11, 5, True)):
        image = images[number]["x"].astype(np.float32) / 127.5 - 1
        image = image[:, ::-1] if mirrored else image
        np.testing.assert_allclose(source[place]["x"], run(codec.params(), image[None])[0], atol=1e-5)
        assert source[place]["caption"] == images[number]["caption"]
    noted = json.loads((parent / "latents.npz.json").read_text())
    held = np.stack([source[place]["x"] for place in range(12)]).reshape(-1, 4)
    np.testing.assert_allclose(noted["mean"], held.mean(0), atol=1e-6)
    np.testing.assert_allclose(noted["std"], held.std(0), atol=1e-6)
    assert noted["count"] == 12 and noted["side"] == 16


def test_a_run_begins_with_what_it_starts_from_and_inherits_the_rest(parent):
    config = config_of(parent)
    imported = load(parent / "run")
    for entry in ("network", "schedule", "input", "latent", "text", "loss"):
        assert config[entry].to_dict() == imported.config[entry].to_dict()
    assert config.cond == ("text",) and config.sampling.grid.to_dict() == imported.config.sampling.grid.to_dict()
    training = make_training(config)
    state = start(config, training)
    jax.tree.map(np.testing.assert_array_equal, state.params, imported.params)
    jax.tree.map(np.testing.assert_array_equal, state.averages["ema"], imported.params)
    batch = hear(training.model.prompts, training.batches[0], training.model.told)
    assert batch["cond"]["text"].shape == (4, 16, 24) and set(batch["cond"]) == {"text"}


def test_what_is_inherited_may_have_other_keywords(parent):
    config = config_of(parent, network={"name": "inherited", "dtype": "bfloat16", "remat": "blocks"})
    assert config.network.dtype == "bfloat16" and config.network.width == 16


@pytest.mark.parametrize("name", sorted(STARTS))
def test_every_start_gives_the_parameters_of_a_network_like_its_own(parent, name):
    begin = make_start({"name": name} | ({"folder": str(parent / "run")} if name == "run" else {}))
    if name == "scratch":
        assert begin is None
        return
    params = load(parent / "run").params
    assert begin is not None
    begin.check(params)
    jax.tree.map(np.testing.assert_array_equal, begin.read(params), params)
    other = params | {"last": {"bias": np.zeros(3, np.float32), "kernel": params["last"]["kernel"]}}
    for call in begin:
        with pytest.raises(ValueError, match=r"another, in 1 of .* \(last/bias: \(4,\) there, \(3,\) here\)"):
            call(other)


def test_what_cannot_be_inherited_is_refused(parent):
    made = runpy.run_path(str(CONFIG))["get_config"]()
    with pytest.raises(ValueError, match="names scratch. Give --config.start"):
        inherited(changed(made, {"start": {"name": "scratch"}}))
    with pytest.raises(ValueError, match="is no run's folder"):
        inherited(changed(made, {"start.folder": "nowhere"}))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--side=16"], "give --data"),
        (["--side=15", "--data=shapes"], "sides that are multiples of 2"),
        (["--side=16", "--data=shapes", "--out=latents.zip"], "must end in .array_record or .npz"),
        (["--side=16", "--data=shapes", "--latent=vae"], "and not both"),
        (["--side=16", "--data=shapes", "--hint=mask"], "hint: examples of 'shapes' have no 'mask'"),
        (["--side=16", "--data=shapes", "--hint=edge"], "unknown image of a hint 'edge'. Did you mean 'edges'"),
    ],
)
def test_mistakes_in_encoding_are_answered_in_one_line(parent, tmp_path, capsys, more, words):
    given = more if any("--out" in word for word in more) else [*more, f"--out={tmp_path / 'latents.npz'}"]
    assert run(["encode", "--workdir", str(parent / "run"), *given]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_what_is_held_stays_and_what_is_trained_begins_without_effect(parent, name):
    spec = {"name": name} | ({"rank": 2} if name == "lora" else {})
    rate = {"training.rate": {"name": "constant", "peak": 0.1}}
    if name == "control":  # of a model of images, which have edges
        config: Any = changed(runpy.run_path(str(CONTROL))["get_config"]("smoke"), rate)
    else:
        config = config_of(parent, adapter=spec, **rate)
    training = make_training(config)
    state = start(config, training)
    if name != "control":
        held = state.params["network"] if name == "lora" else state.params
        jax.tree.map(np.testing.assert_array_equal, held, load(parent / "run").params)
    if name == "none":
        assert training.model.adapted.held == ()
        return
    if name == "control":  # a network that begins anew is silent, and nothing could be learned of what steers it
        state = state._replace(params={**state.params, "network": stirred(state.params["network"])})
    batch = hear(training.model.prompts, training.batches[0], training.model.told)
    before = jax.device_get(state.params["network"])
    step = jax.jit(make_train_step(training.loss_fn, training.optimizer, training.averages))
    after, metrics = step(state, batch)
    assert np.isfinite(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, after.params["network"], before)
    if name == "control":
        last = [part["kernel"] for layer, part in after.params["control"].items() if layer.startswith("zero_")]
        assert len(last) == 3 and all(np.abs(kernel).max() > 0 for kernel in last)
        assert np.abs(batch["cond"]["hint"]).max() == 1 and batch["cond"]["hint"].shape == (8, 16, 16, 1)
        return
    moved = [np.abs(pair["b"]).max() for pair in jax.device_get(after.params["lora"]).values()]
    assert len(moved) > 4 and min(moved) > 0
    assert all(np.abs(pair["b"]).max() == 0 for pair in state.params["lora"].values())


@pytest.fixture(scope="module")
def steered(parent):
    """A config of latents with hints, which a control network reads beside the imported run."""
    codec = make_codec(load(parent / "run").config.latent)
    assert codec is not None
    source = make_source({**SHAPES, "side": 20})
    transforms = ({"name": "adm_crop", "side": 16}, *hinted("edges", source.info, {"name": "to_unit"}))
    encode(Encoding(source, transforms, codec, batch_size=4, mirrored=True), parent / "edges.npz", side=16)
    values = {"start.folder": str(parent / "run"), "data.path": str(parent / "edges.npz"), "training.batch_size": 4}
    values |= {"adapter.hint_widths": (16, 32), "training.rate": {"name": "constant", "peak": 0.01, "warmup": 0}}
    return inherited(changed(runpy.run_path(str(CONTROL))["get_config"](), values))


def test_hints_go_with_their_latents(parent, steered):
    """Cut and turned as the image is, and found in what was cut."""
    found, images = make_source(steered.data), make_source({**SHAPES, "side": 20})
    crop = ({"name": "adm_crop", "side": 16}, {"name": "edges"})
    wanted = examples(images, crop, np.arange(6))["edges"]
    for place, number, turn in ((0, 0, 1), (4, 0, -1), (7, 3, -1), (9, 5, 1), (11, 5, -1)):
        np.testing.assert_array_equal(found[place]["hint"], wanted[number][:, ::turn])
        assert found[place]["hint"].dtype == np.uint8 and found[place]["hint"].shape == (16, 16, 1)
        assert found[place]["caption"] == images[number]["caption"]
    assert 0 < wanted.mean() / 255 < 0.5


def test_an_imported_model_is_steered_and_begins_as_it_was(parent, steered):
    training, imported = make_training(steered), load(parent / "run")
    state = start(steered, training)
    jax.tree.map(np.testing.assert_array_equal, state.params["network"], imported.params)
    batch = hear(training.model.prompts, training.batches[0], training.model.told)
    assert batch["cond"]["hint"].shape == (4, 16, 16, 3) and set(np.unique(batch["cond"]["hint"])) <= {0.0, 1.0}
    x, t, text = batch["x"], np.full(4, 0.3, np.float32), batch["cond"]["text"]
    with_hint = jax.jit(training.model.apply)(state.params, x, t, batch["cond"])
    alone = jax.jit(imported.model.apply)(imported.params, x, t, {"text": text})
    np.testing.assert_allclose(with_hint, alone, atol=5e-6)  # it is another program
    step = jax.jit(make_train_step(training.loss_fn, training.optimizer, training.averages))
    after = step(step(state, batch)[0], batch)[0]
    jax.tree.map(np.testing.assert_array_equal, after.params["network"], state.params["network"])
    moved = jax.jit(training.model.apply)(after.params, x, t, batch["cond"])
    other = jax.jit(training.model.apply)(after.params, x, t, batch["cond"] | {"hint": 1 - batch["cond"]["hint"]})
    assert np.abs(moved - alone).max() > 1e-4 and np.abs(moved - other).max() > 1e-5


@pytest.mark.filterwarnings("ignore:the caption .* is too long")
def test_samples_are_told_the_captions_of_their_hints(steered):
    model, source = make_training(steered).model, make_source(steered.data)
    places = np.array([7, 2])
    assert captions_of(steered, model, places) == [source[place]["caption"] for place in places]
    found = conditions(steered, model, places)["hint"]
    np.testing.assert_array_equal(found[..., :1], np.stack([source[place]["hint"] for place in places]) / 255)
    asked = changed(steered, {"sampling.captions": ("a cat",)})
    assert captions_of(asked, model, places) == ["a cat", "a cat"]


def test_a_hint_of_another_size_than_the_image_is_refused(steered):
    with pytest.raises(ValueError, match="of shape .* it must be"):
        make_training(changed(steered, {"adapter.hint_widths": (16, 32, 64)}))


def test_such_a_run_is_planned(steered):
    work = sampling_work(changed(steered, {"sampling.batch_size": 1, "sampling.steps": 2}), jax.devices()[:1])
    assert work.build(1).flops > 0


def test_a_sample_is_steered_by_the_hint_of_its_number():
    config: Any = runpy.run_path(str(CONTROL))["get_config"]("smoke")
    training = make_training(config)
    source = make_source(config.data)
    hints = conditions(config, training.model, np.array([5, 0]))["hint"]
    np.testing.assert_array_equal(hints, np.stack([source[5]["edges"], source[0]["edges"]]) / np.float32(255))
    with pytest.raises(ValueError, match="hints are of the data's size"):
        make_sampler(changed(config, {"sampling.size": (32, 32)}), training.model, training.batches.info)


@pytest.mark.parametrize(
    "transforms",
    [
        ("to_unit", {"name": "random_crop", "side": 16}, {"name": "hint", "channels": 1}),
        ("to_unit", {"name": "hint", "channels": 1}, {"name": "center_crop", "side": 16}),
        ({"name": "adm_random_crop", "side": 16}, {"name": "to_unit"}, {"name": "hint", "channels": 1}, "flip"),
    ],
)
def test_hints_of_samples_have_the_size_of_those_of_training(transforms):
    config: Any = runpy.run_path(str(CONTROL))["get_config"]("smoke")
    words = (*transforms, {"name": "words", "length": 10, "width": 32})
    data = {"name": "shapes", "side": 20, "entries": ("x", "caption", "edges")}
    config = changed(config, {"data": data, "transforms": words})
    model = make_training(config).model
    check_hints(config, model)
    assert conditions(config, model, np.arange(3))["hint"].shape == (3, 16, 16, 1)
    small = changed(config, {"sampling.hints": data | {"side": 24}, "transforms": config.transforms[-3:]})
    with pytest.raises(ValueError, match="gives hints of shape|no images|edges"):
        check_hints(changed(small, {"transforms": ("to_unit", {"name": "hint", "channels": 1})}), model)


def test_a_word_in_a_path_inherits_nothing():
    config = changed(load_config(str(CONFIG.with_name("quickstart.py"))), {"training.wandb": "inherited"})
    assert inherited(config) is config


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"average": "0.1"}, "has no average '0.1' to begin with; it has params"),
        ({"average": "params", "step": 7}, "no checkpoint of step 7"),
    ],
)
def test_a_run_that_has_no_such_parameters_is_refused_before_anything(parent, more, words):
    with pytest.raises(ValueError, match=words):
        make_start({"name": "run", "folder": str(parent / "run"), **more})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": "none"}, "which config.adapter none does not hear"),
        ({"adapter": "lora"}, "which config.adapter lora does not hear"),
        ({"cond": ("text", "text_mask")}, "no hint is told: add the transform"),
        ({"adapter": {"name": "control", "hint_widths": (4, 8)}}, "of shape .* it must be"),
        ({"network": {"name": "dit"}}, "which steers a unet; config.network is a DiT"),
    ],
)
def test_what_cannot_be_steered_is_refused(changes, words):
    config: Any = runpy.run_path(str(CONTROL))["get_config"]("smoke")
    with pytest.raises(ValueError, match=words):
        make_training(changed(config, changes))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the caption .* is too long")
def test_the_commands_lead_from_a_pipeline_to_a_model_of_other_pictures(tmp_path):
    """Import, encode, train from there, and sample."""
    source, root = pipelines.stable_diffusion(tmp_path / "sd"), tmp_path
    assert run(["import_weights", "--from", str(source), "--to", str(root / "run")]) == 0
    told = ["--side=16", "--data", str(SHAPES), "--out", str(root / "latents.array_record"), "--batch_size=8"]
    told += ["--hint=edges"]
    assert run(["encode", "--workdir", str(root / "run"), *told]) == 0
    words = {"start.folder": root / "run", "data.path": root / "latents.array_record", "training.batch_size": 8}
    words |= {"training.steps": 2, "sampling.steps": 2, "sampling.count": 4, "training.tensorboard": False}
    flags = [f"--config.{key}={value}" for key, value in words.items()]
    assert run(["train", "--config", str(CONFIG), "--workdir", str(root / "tuned"), *flags]) == 0
    assert run(["sample", "--workdir", str(root / "tuned"), "--config.captions=('a red circle',)"]) == 0
    with np.load(root / "tuned" / "samples" / "samples.npz") as saved:
        assert saved["samples"].shape == (4, 16, 16, 3)
    flags.append("--config.adapter.hint_widths=(16, 32)")
    assert run(["train", "--config", str(CONTROL), "--workdir", str(root / "steered"), *flags]) == 0
    assert run(["sample", "--workdir", str(root / "steered")]) == 0
    with np.load(root / "steered" / "samples" / "samples.npz") as saved:
        assert saved["samples"].shape == (4, 16, 16, 3)
