"""Autoencoders from their files, against the numbers of another implementation."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays, open_tensors
from diffusion_jax.pretrained.vae import (
    complete,
    diffusers_table,
    ldm_table,
    load_vae,
    load_vae_file,
    statistics,
)
from tests.laws import quick
from tests.pretrained.folders import REFERENCE, write

FOLDER = REFERENCE / "models" / "vae_sd"
IO = np.load(FOLDER / "io.npz")
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
WIDTHS = (16, 32)


def nhwc(array):
    return np.asarray(array).transpose(0, 2, 3, 1)


@functools.cache
def network(dtype="float32"):
    return load_vae(FOLDER, dtype=dtype)


@functools.cache
def results(dtype="float32"):
    net = network(dtype)
    run = jax.jit(lambda params, x, z: (net.encode(params, x), net.decode(params, z)))
    return run(net.params, nhwc(IO["in/image"]), nhwc(IO["in/latent"]))


@functools.cache
def weights():
    return safetensors.numpy.load_file(FOLDER / "diffusion_pytorch_model.safetensors")


@functools.cache
def config():
    return {key: value for key, value in network().config.items() if key != "act_fn"} | {"_class_name": "AutoencoderKL"}


def test_moments_and_images_are_those_of_diffusers():
    posterior, images = results()
    np.testing.assert_allclose(posterior.mean, nhwc(IO["out/mean"]), **CLOSE)
    np.testing.assert_allclose(posterior.log_variance, nhwc(IO["out/logvar"]), **CLOSE)
    np.testing.assert_allclose(images, nhwc(IO["out/decoded"]), **CLOSE)
    np.testing.assert_allclose(network().std, 1 / 0.18215, rtol=1e-6)
    np.testing.assert_array_equal(network().mean, np.zeros(4))


@pytest.mark.slow
def test_half_precision_is_near():
    for rough, exact in zip(jax.tree.leaves(results("bfloat16")), jax.tree.leaves(results()), strict=True):
        assert rough.dtype == np.float32
        assert np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("table", [diffusers_table(WIDTHS), ldm_table(WIDTHS)], ids=["diffusers", "ldm"])
def test_import_export_import_is_the_same_bits(table):
    out = export(table, network().params)
    if table.spellings != ({},):
        assert out.keys() == weights().keys()
        for name, array in out.items():
            np.testing.assert_array_equal(array, weights()[name])
    again = convert(table, of_arrays(out, "memory"), network().params)
    jax.tree.map(np.testing.assert_array_equal, network().params, again)


def test_attention_as_diffusers_once_spelled_it_is_read(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def spelled(name):
        for new, word in old.items():
            name = name.replace(f".{new}.", f".{word}.")
        return name

    write(tmp_path, config(), {spelled(name): array for name, array in weights().items()})
    jax.tree.map(np.testing.assert_array_equal, load_vae(tmp_path).params, network().params)


@pytest.mark.parametrize(
    "prefix", quick(["", "first_stage_model.", "state_dict.first_stage_model."], "first_stage_model.")
)
def test_single_files_are_read_without_a_config(tmp_path, prefix):
    """In their authors' names the decoder's levels count from the finest, and attention is convolutions."""
    single = export(ldm_table(WIDTHS), network().params)
    assert single["decoder.up.1.upsample.conv.weight"].shape == (32, 32, 3, 3)
    np.testing.assert_array_equal(
        single["decoder.up.0.block.1.conv1.weight"], weights()["decoder.up_blocks.1.resnets.1.conv1.weight"]
    )
    np.testing.assert_array_equal(
        single["encoder.mid.attn_1.k.weight"][:, :, 0, 0], weights()["encoder.mid_block.attentions.0.to_k.weight"]
    )
    beside = {"model.diffusion_model.out.weight": np.zeros(2, np.float32)} if prefix else {"loss.a": np.zeros(1)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({f"{prefix}{name}": array for name, array in single.items()} | beside, path)
    found = load_vae_file(path, scale=0.18215, groups=8)
    assert found.module.frame[:4] == network().module.frame[:4] and found.module.codes == network().module.codes
    jax.tree.map(np.testing.assert_array_equal, found.params, network().params)
    np.testing.assert_array_equal(found.std, network().std)


def test_statistics_are_a_scale_and_a_shift_or_one_of_each_for_a_channel():
    silent = complete({"latent_channels": 4})
    mean, std = statistics(silent | {"scaling_factor": 1.5305, "shift_factor": 0.0609}, "here")
    np.testing.assert_allclose((2.0 - mean) / std, np.full(4, (2.0 - 0.0609) * 1.5305), rtol=1e-6)
    each = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [1.0, 2.0, 3.0, 4.0], "scaling_factor": 0.5}
    mean, std = statistics(silent | each, "here")
    np.testing.assert_allclose(mean, [1, 2, 3, 4])
    np.testing.assert_allclose(std, [2, 4, 6, 8])
    for wrong in ({"shift_factor": 1.0}, {"latents_std": None}):
        with pytest.raises(ValueError, match="here: .* both latents_mean and latents_std, and then no shift_factor"):
            statistics(silent | each | wrong, "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "VQModel"}, "load_vae: .* is of a 'VQModel'"),
        ({"block_out_channels": [16, 36]}, r"norm_num_groups=8, which must divide each of .* \[16, 36\]"),
        ({"block_out_channels": [16, 32, 32]}, "3 block_out_channels, down_block_types"),
        ({"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "the second must mirror the first"),
        ({"down_block_types": ["DownEncoderBlock2D", "DownBlock2D"]}, "unknown down_block_types .* 'DownBlock2D'"),
        ({"use_quant_conv": False}, "has unknown quant_conv.bias, quant_conv.weight"),
        ({"mid_block_add_attention": False}, "has unknown decoder.mid_block.attentions.0.group_norm.bias"),
        ({"layers_per_block": 2}, "lacks decoder.up_blocks.0.resnets.2.conv1.bias"),
        ({"latent_channels": 16}, r"'decoder.conv_in.weight' is \(32, 4, 3, 3\) and not \(32, 16, 3, 3\)"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "are no statistics of 4 channels"),
        ({"act_fn": "prelu"}, "unknown activation of vae 'prelu'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        load_vae(write(tmp_path, config() | change, weights()))


def test_files_of_other_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="A folder of diffusers is read by load_vae"):
        load_vae_file(FOLDER / "diffusion_pytorch_model.safetensors", scale=1.0)
    twice = {
        name: np.zeros((1, 1, 3, 3), np.float32) for name in ("a.encoder.conv_in.weight", "encoder.conv_in.weight")
    }
    safetensors.numpy.save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match="several autoencoders, behind '', 'a.'"):
        load_vae_file(tmp_path / "twice.safetensors", scale=1.0)
    with pytest.raises(ValueError, match="nothing.safetensors is no file"):
        load_vae_file(tmp_path / "nothing.safetensors", scale=1.0)


SIZES = {
    "sd3": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06},
    "deep": {"block_out_channels": [8, 16, 24], "layers_per_block": 2, "norm_num_groups": 4},
    "bare": {"mid_block_add_attention": False, "norm_num_groups": 1, "use_post_quant_conv": False, "in_channels": 1},
    "attends": {"attention": (1,), "act_fn": "relu", "block_out_channels": [8, 8], "norm_num_groups": 8},
    "flat": {"block_out_channels": [12], "norm_num_groups": 6, "out_channels": 5, "act_fn": "gelu"},
}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_networks_of_diffusers_are_read(tmp_path, size):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    spec = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 4} | SIZES[size]
    attention = spec.pop("attention", ())
    kinds = [("Attn" if level in attention else "") for level in range(len(spec["block_out_channels"]))]
    spec["down_block_types"] = [f"{kind}DownEncoderBlock2D" for kind in kinds]
    spec["up_block_types"] = [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)]
    model = diffusers.AutoencoderKL(**spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    net = load_vae(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 16, 24, spec.get("in_channels", 3))).astype(np.float32)
    with torch.no_grad():
        known = model.encode(torch.tensor(x).permute(0, 3, 1, 2)).latent_dist
        decoded = nhwc(model.decode(known.mean).sample)
    posterior, images = jax.jit(lambda p, x, z: (net.encode(p, x), net.decode(p, z)))(net.params, x, nhwc(known.mean))
    np.testing.assert_allclose(posterior.mean, nhwc(known.mean), **CLOSE)
    np.testing.assert_allclose(posterior.log_variance, nhwc(known.logvar), **CLOSE)
    np.testing.assert_allclose(images, decoded, **CLOSE)
    out = export(diffusers_table(net.module.frame.widths), net.params)
    assert out.keys() == open_tensors(tmp_path).shapes.keys()
