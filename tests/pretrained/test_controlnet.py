"""Control networks from their files, against the numbers of another implementation."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.nets.controlnet import ControlNet, example
from diffusion_jax.nets.network import count, shapes_of
from diffusion_jax.pretrained.controlnet import ControlNetCall, load_controlnet, module_of, table_of
from diffusion_jax.pretrained.rules import convert, export, plan
from diffusion_jax.pretrained.tensors import of_arrays, open_tensors
from diffusion_jax.pretrained.unet import load_unet
from tests.pretrained.folders import REFERENCE, write

FOLDER = REFERENCE / "models" / "controlnet"
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@functools.cache
def network():
    return load_controlnet(FOLDER)


def called(model, *inputs, **keywords):
    """Call ours as theirs is called; images, the first and the fourth, in their order of axes."""
    module = model.module
    assert isinstance(module, ControlNet)
    last = [np.moveaxis(one, 1, -1) if place in (0, 3) else one for place, one in enumerate(inputs)]
    run = jax.jit(lambda params, *inputs: ControlNetCall(module).apply({"params": params}, *inputs, **keywords))
    return jax.tree.map(lambda h: np.moveaxis(np.asarray(h), -1, 1), run(model.params, *last))


@functools.cache
def answered():
    io = np.load(FOLDER / "io.npz")
    names = ("sample", "timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale")
    return called(network(), *(io[f"in/{name}"].astype(np.float32) for name in names))


def test_what_it_computes_is_what_theirs_does():
    io, (down, middle) = np.load(FOLDER / "io.npz"), answered()
    assert isinstance(down, tuple) and len(down) == 4
    for place, found in enumerate(down):
        np.testing.assert_allclose(found, io[f"out/down{place}"], **CLOSE)
    np.testing.assert_allclose(middle, io["out/mid"], **CLOSE)


def test_what_it_answers_steers_their_network_as_it_steers_ours():
    io, model, (down, middle) = np.load(FOLDER / "io.npz"), load_unet(REFERENCE / "models" / "unet_sd15"), answered()
    cond = {"text": io["in/encoder_hidden_states"], "control": tuple(np.moveaxis(h, 1, -1) for h in (*down, middle))}
    x, t = np.moveaxis(io["in/sample"], 1, -1), io["in/timestep"].astype(np.float32)
    found = jax.jit(model.apply)(model.params, x, t, cond)
    wanted = np.load(FOLDER / "unet_sd15_with_control.npz")["out"]
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), wanted, **CLOSE)


def test_import_export_import_is_the_same_bits():
    model, weights = network(), safetensors.numpy.load_file(FOLDER / WEIGHTS)
    out = export(table_of(model.config), model.params)
    assert out.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, out, weights)
    again = convert(table_of(model.config), of_arrays(out, "memory"), model.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, again)


def test_blue_first_is_the_same_network_with_its_first_kernel_turned(tmp_path):
    config = json.loads((FOLDER / "config.json").read_text()) | {"controlnet_conditioning_channel_order": "bgr"}
    weights = safetensors.numpy.load_file(FOLDER / WEIGHTS)
    model = load_controlnet(write(tmp_path, config, weights, WEIGHTS))
    ours, theirs = (one.params["hint"]["first"]["kernel"] for one in (model, network()))
    np.testing.assert_array_equal(ours[:, :, ::-1], theirs)
    jax.tree.map(np.testing.assert_array_equal, export(table_of(config), model.params), weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "it must be of 'ControlNetModel'"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type='UNetMidBlock2DSimpleCrossAttn'; known"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "order='gbr'; known are"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type='text_proj'; known is None"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]}, "down_block_types .* not known"),
        ({"layers_per_block": 2}, "lacks controlnet_down_blocks"),
        ({"conditioning_embedding_out_channels": [8, 8, 16]}, "lacks controlnet_cond_embedding.blocks.2"),
        ({"conditioning_channels": 1}, "does not fit its config.json"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, change, words):
    config = json.loads((FOLDER / "config.json").read_text()) | change
    folder = write(tmp_path, config, safetensors.numpy.load_file(FOLDER / WEIGHTS), WEIGHTS)
    with pytest.raises(ValueError, match=words):
        load_controlnet(folder)


XL: dict[str, Any] = {
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "guessing": ({"use_linear_projection": True, "attention_head_dim": [2, 4]}, {"guess_mode": True}),
    "xl": (XL, {}),
    "xl small": (XL | {"down_block_types": ["DownBlock2D"] * 2, "transformer_layers_per_block": [0, 0]}, {}),
    "one block": ({"down_block_types": ["DownBlock2D"] * 2, "mid_block_type": "UNetMidBlock2D"}, {}),
    "deeper": (
        {
            "layers_per_block": 2,
            "block_out_channels": [16, 16, 32],
            "down_block_types": [*["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
            "attention_head_dim": 2,
            "conditioning_channels": 1,
            "conditioning_embedding_out_channels": [8, 8, 12, 16],
        },
        {},
    ),
    "pooled": (
        {"global_pool_conditions": True, "controlnet_conditioning_channel_order": "bgr"},
        {"guess_mode": True},
    ),
    "classes": ({"num_class_embeds": 7, "resnet_time_scale_shift": "scale_shift"}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_are_those_of_diffusers(name, tmp_path):
    """Of the control networks of Stable Diffusion 1 and 2, of XL and its small one, of "shuffle" and others."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    changes, keywords = VARIANTS[name]
    config = json.loads((FOLDER / "config.json").read_text()) | changes
    torch.manual_seed(0)
    theirs = diffusers.ControlNetModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # none of them zero
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    ours, generator = load_controlnet(tmp_path), np.random.default_rng(0)
    side = 8 * 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    shapes = {"sample": (2, 4, 8, 8), "text": (2, 5, 24), "hint": (2, config["conditioning_channels"], side, side)}
    sample, text, hint = (generator.normal(size=shape).astype(np.float32) for shape in shapes.values())
    more: dict[str, Any] = {}
    if "addition_embed_type" in changes:
        pooled, numbers = generator.normal(size=(2, 24)), [[8, 8, 0, 1, 8, 6]] * 2
        more["added_cond_kwargs"] = {
            "text_embeds": pooled.astype(np.float32),
            "time_ids": np.array(numbers, np.float32),
        }
    if "num_class_embeds" in changes:
        more["class_labels"] = np.array([1, 6])
    with torch.no_grad():
        told = jax.tree.map(torch.tensor, more)
        inputs = torch.tensor(sample), torch.tensor(7), torch.tensor(text), torch.tensor(hint), 0.7
        wanted = theirs(*inputs, **told, **keywords, return_dict=False)
    found = called(ours, sample, np.float32(7), text, hint, np.float32(0.7), **more, **keywords)
    assert len(found[0]) == len(wanted[0])
    for ours_, theirs_ in zip((*found[0], found[1]), (*wanted[0], wanted[1]), strict=True):
        np.testing.assert_allclose(ours_, theirs_.numpy(), **CLOSE)
    assert export(table_of(ours.config), ours.params).keys() == open_tensors(tmp_path).shapes.keys()


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "1.5": ({"cross_attention_dim": 768}, 361_279_120),
    "xl": (
        {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        1_251_014_160,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_networks_have_their_tensors(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    changes, numbers = PUBLISHED[name]
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**changes)
    config = {**theirs.config, "_class_name": "ControlNetModel"}
    module = module_of(config, "memory")
    shapes = shapes_of(module, example(module))
    wanted = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: slot.shape for name, slot in plan(table_of(config).rules, shapes).items()} == wanted
    assert count(shapes) == numbers
