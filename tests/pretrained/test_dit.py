"""DiT from its files, in the form of its authors and in that of diffusers."""

import argparse
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.denoisers.guidance import classifier_free
from diffusion_jax.denoisers.network import doubled, make_denoiser, on_steps
from diffusion_jax.nets.attention import grid_waves
from diffusion_jax.nets.dit import SIZES
from diffusion_jax.pretrained.dit import DiTCall, load_dit, load_dit_file, table_of, velocity_of_sit
from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays, open_tensors
from diffusion_jax.process.discrete import linear
from diffusion_jax.process.noise import normal_like
from diffusion_jax.process.schedules import rectified
from diffusion_jax.solvers.ode import ddim
from diffusion_jax.solvers.stochastic import ddpm
from diffusion_jax.types import Interval
from tests.pretrained.folders import REFERENCE, write
from tests.pretrained.test_weights import plain, write_zip

FOLDER = REFERENCE / "models" / "dit"
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
STEM = "diffusion_pytorch_model.safetensors"


def weights_of(folder=FOLDER):
    return safetensors.numpy.load_file(folder / STEM)


def authors(weights, positions):
    """Spell weights of diffusers, with the embedders of the first block, as their authors did."""
    emb, blocks = "transformer_blocks.0.norm1.emb", sum(name.endswith("norm1.linear.bias") for name in weights)
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": f"{emb}.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{emb}.timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    inner = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
    found = {
        "pos_embed": positions,
        "y_embedder.embedding_table.weight": weights[f"{emb}.class_embedder.embedding_table.weight"],
    }
    for index in range(blocks):
        theirs = f"transformer_blocks.{index}"
        names |= {f"blocks.{index}.{ours}": f"{theirs}.{name}" for ours, name in inner.items()}
        names[f"blocks.{index}.adaLN_modulation.1"] = f"{theirs}.norm1.linear"
        for end in ("weight", "bias"):
            parts = [weights[f"{theirs}.attn1.to_{part}.{end}"] for part in "qkv"]
            found[f"blocks.{index}.attn.qkv.{end}"] = np.concatenate(parts)
    return found | {
        f"{ours}.{end}": weights[f"{name}.{end}"] for ours, name in names.items() for end in ("weight", "bias")
    }


@functools.cache
def spelled():
    return authors(weights_of(), grid_waves(4, 4, 32)[None])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return one network of each form, read from where it was written."""
    path = tmp_path_factory.mktemp("dit") / "dit.safetensors"
    safetensors.numpy.save_file(spelled(), path)
    return {"diffusers": (load_dit(FOLDER), weights_of()), "authors": (load_dit_file(path, heads=2), spelled())}


def called(model, x, t, label):
    """Call ours by the names of theirs, images in their order of axes."""
    run = jax.jit(lambda params, *inputs: DiTCall(model.module).apply({"params": params}, *inputs))
    return np.moveaxis(np.asarray(run(model.params, np.moveaxis(x, 1, -1), t, label)), -1, 1)


@pytest.mark.parametrize("form", ["diffusers", "authors"])
def test_what_it_computes_is_what_theirs_does(form, files):
    io = np.load(FOLDER / "io.npz")
    own = io if form == "diffusers" else np.load(REFERENCE / "dit_authors.npz")
    found = called(files[form][0], io["in/hidden_states"], own["in/timestep"], io["in/class_labels"])
    np.testing.assert_allclose(found, own["out/sample"], **CLOSE)


@pytest.mark.parametrize("form", ["diffusers", "authors"])
def test_import_export_import_is_the_same_bits(form, files):
    model, weights = files[form]
    out = export(table_of(model.config), model.params)
    assert out.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, out, dict(weights))
    again = convert(table_of(model.config), of_arrays(out, "memory"), model.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, again)


def test_shapes_say_how_a_file_was_built(files):
    assert files["authors"][0].config == {
        "_class_name": "DiT",
        "input_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 4,
        "num_classes": 10,
    }


def test_of_a_checkpoint_the_average_is_read(tmp_path, files):
    """And nothing of its optimizer's state and its options."""
    average, _ = plain(spelled())
    storages = {str(place): array for place, array in enumerate(spelled().values())}
    options = argparse.Namespace(model="DiT-XL/2", epochs=1400)
    other = dict.fromkeys(average, average["pos_embed"])
    tree = {"model": other, "ema": average, "opt": {"state": {0: {"exp_avg": average["pos_embed"]}}}, "args": options}
    write_zip(tmp_path / "0400000.pt", tree, storages)
    found = load_dit_file(tmp_path / "0400000.pt", heads=2)
    jax.tree.map(np.testing.assert_array_equal, found.params, files["authors"][0].params)


@pytest.mark.parametrize("size", SIZES)
def test_published_networks_have_their_heads(size, tmp_path):
    if size == "custom":
        with pytest.raises(ValueError, match=r"32 wide and 2 deep.*XL \(1152, 28\).*give `heads`"):
            load_dit_file(_file(tmp_path, spelled()))
        return
    width, depth, heads = SIZES[size]()
    one = {name: array for name, array in spelled().items() if not name.startswith("blocks.")}
    last = f"blocks.{depth - 1}.attn.qkv.bias"
    fake = {
        **one,
        "x_embedder.proj.weight": np.zeros((width, 4, 2, 2), np.float16),
        "blocks.0.mlp.fc1.weight": np.zeros((4 * width, 1), np.float16),
        last: np.zeros(1, np.float16),
    }
    with pytest.raises(ValueError, match="lacks blocks") as error:
        load_dit_file(_file(tmp_path, fake))
    assert "heads" not in str(error.value) and heads in (6, 12, 16)


def _file(folder, weights):
    safetensors.numpy.save_file(weights, folder / "file.safetensors")
    return folder / "file.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {**w, "blocks.0.attn.q_norm.weight": w["pos_embed"]}, "has unknown blocks.0.attn.q_norm.weight"),
        (lambda w: {n: a for n, a in w.items() if n != "blocks.1.mlp.fc2.bias"}, "lacks blocks.1.mlp.fc2.bias"),
        (lambda w: {n: a for n, a in w.items() if n != "pos_embed"}, "lacks pos_embed; it is no file of DiT's"),
        (lambda w: {**w, "pos_embed": w["pos_embed"][:, :15]}, "pos_embed of 15 patches, which are no square"),
        (lambda w: {f"{way}.{n}": a for n, a in w.items() for way in "ab"}, "several networks, behind 'a.', 'b.'"),
        (lambda w: weights_of(), "has no x_embedder.proj.weight.*A folder of diffusers is read by load_dit"),
    ],
)
def test_files_of_other_networks_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        load_dit_file(_file(tmp_path, change(spelled())), heads=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single'; known is 'ada_norm_zero'"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'; known is 'gelu-approximate'"),
        ({"attention_bias": False}, "attention_bias=False; known is True"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"num_layers": 3}, "lacks transformer_blocks.2"),
        ({"num_embeds_ada_norm": 9}, "does not fit its config.json.*embedding_table"),
        ({"_class_name": "PixArtTransformer2DModel"}, "it must be of 'DiTTransformer2DModel' or 'Transformer2DModel'"),
    ],
)
def test_folders_of_other_networks_are_refused(tmp_path, change, words):
    config = json.loads((FOLDER / "config.json").read_text()) | change
    with pytest.raises(ValueError, match=words):
        load_dit(write(tmp_path, config, weights_of(), STEM))


def test_the_name_that_it_had_before_is_read(tmp_path, files):
    config = json.loads((FOLDER / "config.json").read_text()) | {"_class_name": "Transformer2DModel"}
    found = load_dit(write(tmp_path / "a", config, weights_of(), STEM))
    jax.tree.map(np.testing.assert_array_equal, found.params, files["diffusers"][0].params)
    del config["norm_type"]
    with pytest.raises(ValueError, match="norm_type='layer_norm'"):
        load_dit(write(tmp_path / "b", config, weights_of(), STEM))


def test_sit_runs_from_noise_to_data():
    """A network that knows one image's path exactly: what SiT calls its velocity is the way from noise to data."""
    data, noise = (np.random.default_rng(seed).normal(size=(2, 4, 4, 1)).astype(np.float32) for seed in (0, 1))

    def sit(params, x, t, cond):
        slope = (data - x) / (1 - t)[:, None, None, None]  # x = t data + (1 - t) noise
        return jnp.concatenate([slope, jnp.full_like(slope, jnp.nan)], -1)

    t = jnp.array([0.3, 0.8])
    x = (1 - t)[:, None, None, None] * data + t[:, None, None, None] * noise
    denoise = make_denoiser(velocity_of_sit(sit), {}, rectified(), prediction="velocity")
    estimate = denoise(x, t)
    np.testing.assert_allclose(estimate.x0, data, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimate.eps, noise, rtol=1e-4, atol=1e-5)


VARIANTS: dict[str, dict[str, Any]] = {
    "wide": {"num_attention_heads": 3, "attention_head_dim": 24, "num_layers": 3, "num_embeds_ada_norm": 5},
    "coarse": {"patch_size": 4, "sample_size": 16, "in_channels": 3, "out_channels": 6},
    "plain": {"patch_size": 1, "sample_size": 4, "out_channels": None, "attention_head_dim": 6, "norm_eps": 1e-3},
}


def peer(folder, seed=0, **changes):
    """Make a network of diffusers none of whose parameters is neutral, and write it to a folder."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = json.loads((FOLDER / "config.json").read_text()) | changes
    torch.manual_seed(seed)
    theirs = diffusers.DiTTransformer2DModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs


def answer(theirs, x, t, label):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return theirs(torch.tensor(x), torch.tensor(t), torch.tensor(label)).sample.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("factor", [1, 2])
def test_variants_are_those_of_diffusers(name, factor, tmp_path):
    """Also of images that are larger than those of their training."""
    theirs = peer(tmp_path, **VARIANTS[name])
    ours = load_dit(tmp_path)
    side = factor * ours.config["sample_size"]
    x = np.random.default_rng(0).normal(size=(2, ours.config["in_channels"], side, side)).astype(np.float32)
    t, label = np.array([3, 301]), np.array([1, ours.config["num_embeds_ada_norm"]])
    np.testing.assert_allclose(called(ours, x, t, label), answer(theirs, x, t, label), **CLOSE)
    assert export(table_of(ours.config), ours.params).keys() == open_tensors(tmp_path).shapes.keys()


@pytest.mark.slow
def test_the_form_of_the_authors_is_diffusers_with_one_embedder(tmp_path):
    """Theirs with the waves and the epsilon of the authors, out of a file that torch wrote."""
    torch = pytest.importorskip("torch")
    theirs = peer(tmp_path, sample_size=12, num_layers=3)
    for block in theirs.transformer_blocks:
        block.norm1.emb, block.norm3.eps = theirs.transformer_blocks[0].norm1.emb, 1e-6
    theirs.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 0
    positions = theirs.pos_embed.pos_embed.numpy()
    np.testing.assert_allclose(positions[0], grid_waves(6, 6, 32), atol=1e-6)
    weights = {name: torch.tensor(array) for name, array in authors(weights_of(tmp_path), positions).items()}
    torch.save({"ema": weights, "args": argparse.Namespace(epochs=1)}, tmp_path / "dit.pt")
    ours = load_dit_file(tmp_path / "dit.pt", heads=2)
    x = np.random.default_rng(0).normal(size=(2, 4, 12, 12)).astype(np.float32)
    t, label = np.array([3, 301]), np.array([1, 10])
    np.testing.assert_allclose(called(ours, x, t, label), answer(theirs, x, t, label), **CLOSE)
    assert export(table_of(ours.config), ours.params).keys() == weights.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_a_guided_step_is_that_of_the_pipeline(name, tmp_path, monkeypatch):
    """Of its loop around network, guidance and scheduler; DDPM's with the variance that was learned."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs, ours, world, scale, t, s = peer(tmp_path), load_dit(tmp_path), linear(), 3.0, 300, 200
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    own = jnp.moveaxis(x, 1, -1)
    label, null, keys = np.array([1, 7]), np.array([10, 10]), jax.random.split(jax.random.key(0), 2)

    learned = {"variance_type": "learned_range"} if name == "DDPMScheduler" else {}
    scheduler = getattr(diffusers, name)(1000, clip_sample=False, **learned)
    scheduler.set_timesteps(10)
    assert t in scheduler.timesteps and t - 100 == s
    eps, rest = np.split(answer(theirs, np.concatenate([x, x]), np.full(4, t), np.concatenate([label, null])), 2, 1)
    guided = eps[2:] + scale * (eps[:2] - eps[2:])
    output = np.concatenate([guided, rest[:2]], 1) if learned else guided
    noise = np.moveaxis(np.asarray(normal_like(keys, own)), -1, 1)
    home = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(home, lambda *args, **kwargs: torch.tensor(noise))
    wanted = scheduler.step(torch.tensor(output), t, torch.tensor(x)).prev_sample.numpy()

    pair = doubled(
        on_steps(ours.apply),
        ours.params,
        world.schedule,
        prediction="learned_variance",
        cond={"label": label},
        null={"label": null},
    )
    solver = ddpm(world.schedule, variance="learned") if learned else ddim(world.schedule)
    now = Interval(jnp.float32(world.time(t)), jnp.float32(world.time(s)), keys)
    found, _ = solver.step(classifier_free(*pair, scale), own, now, ())
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), wanted, **CLOSE)
