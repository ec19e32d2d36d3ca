"""Autoencoders of latent diffusion: folders of diffusers (AutoencoderKL), and single files as their authors wrote them.

The two spell one network. A single file has no config: its shapes say how it was built, but not how many groups were
normalised, nor the scale of its latents, which are 0.18215 for Stable Diffusion 1 and 2, 0.13025 for XL, 1.5305 with a
shift of 0.0609 for 3, and 0.3611 with a shift of 0.1159 for FLUX.1.

    latent of diffusion = (z - mean) / std,        std = 1 / scaling_factor,  mean = shift_factor               (1)
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.naming import lookup
from diffusion_jax.nets.autoencoder import factor
from diffusion_jax.nets.vae import VAE, Posterior, vae
from diffusion_jax.nets.vq import VQ
from diffusion_jax.pretrained.blocks import BEFORE, RESIDUAL, activation_of, attention, check_groups, levels, residual
from diffusion_jax.pretrained.rules import CONV, POINTWISE, Call, Put, Rule, Table, linear, load, norm
from diffusion_jax.pretrained.tensors import Tensors, behind, of_config, open_file, open_tensors, read_config
from diffusion_jax.types import Array, Params


class Autoencoder(NamedTuple):
    """A network, its parameters, and the mean and the spread of its latents, (latent_channels,), Eq. (1)."""

    module: VAE | VQ
    params: Params
    config: dict[str, Any]
    mean: np.ndarray
    std: np.ndarray

    def encode(self, params: Params, x: Array) -> Any:
        """Return q(z | x) of images (B, H, W, C) in [-1, 1], or z where latents are quantised; a pure function."""
        return self.module.apply({"params": params}, x, method="encode")

    def decode(self, params: Params, z: Array) -> Array:
        """Return images of z, which is the network's own and not yet Eq. (1)."""
        return self.module.apply({"params": params}, z, method="decode")  # pyright: ignore[reportReturnType]


def load_vae(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Autoencoder:
    """Read a folder of diffusers; the network computes, and is kept, in `dtype`."""
    config = complete(read_config(folder, ("AutoencoderKL",), "load_vae"))
    with of_config(folder):
        table = table_of(config)
    return _read(config, open_tensors(folder, variant=variant), dtype, table, put)


def _read(config, tensors, dtype, table, put) -> Autoencoder:
    """Read the autoencoder of a config."""
    with of_config(tensors.source):
        found = statistics(config, tensors.source)
        module = vae(
            channels=config["in_channels"],
            out_channels=config["out_channels"],
            latent_channels=config["latent_channels"],
            encoder_code=config["use_quant_conv"],
            decoder_code=config["use_post_quant_conv"],
            dtype=dtype,
            **shape_of(config, tensors.source),
        )
    params = load(table, tensors, module, example_of(module), dtype=dtype, put=put)
    return Autoencoder(module, params, config, *found)


def load_vae_file(
    path: str | Path, *, scale: float, shift: float = 0.0, groups: int = 32, dtype: str = "float32", put: Put = None
) -> Autoencoder:
    """Read a single file of the authors' spelling: an autoencoder's, or a whole model's, of which the rest is left.

    What the file does not say is `scale`, `shift` and `groups`; the file's docstring lists the first two.
    """
    return read_vae_file(open_file(path), scale=scale, shift=shift, groups=groups, dtype=dtype, put=put)


def read_vae_file(
    tensors: Tensors, *, scale: float, shift: float = 0.0, groups: int = 32, dtype: str = "float32", put: Put = None
) -> Autoencoder:
    """Read what `load_vae_file` does, of a file that is open."""
    tensors = _own(tensors)
    found = {"scaling_factor": scale, "shift_factor": shift, "norm_num_groups": groups}
    with of_config(tensors.source):
        config = complete(config_of(tensors) | found)
    return _read(config, tensors, dtype, ldm_table(config["block_out_channels"]), put)


class VAECall(Call):
    """An AutoencoderKL, called by its names."""

    def __call__(self, sample: Array) -> Array:
        return self.network(sample)

    def encode(self, x: Array) -> Posterior:
        """Return q(z | x)."""
        return self.network.encode(x)

    def decode(self, z: Array) -> Array:
        """Return images of z, which is the network's own and not yet Eq. (1)."""
        return self.network.decode(z)


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    return diffusers_table(config["block_out_channels"])


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with what diffusers takes where it is silent."""
    return _DEFAULTS | config


def shape_of(config: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """Return the keywords that a config of diffusers has for both halves of any of its autoencoders."""
    widths = tuple(config["block_out_channels"])
    check_groups(config, folder)
    kinds = [tuple(config[f"{way}_block_types"]) for way in ("down", "up")]
    attends = tuple(lookup(_ATTENDS, kind, f"down_block_types of {folder}") for kind in kinds[0])
    mirrored = tuple(kind.replace("DownEncoder", "UpDecoder") for kind in reversed(kinds[0]))
    if len(attends) != len(widths) or kinds[1] != mirrored:
        raise ValueError(
            f"{folder}: its config.json has {len(widths)} block_out_channels, down_block_types {kinds[0]} and "
            f"up_block_types {kinds[1]}; there must be one of each for a level, and the second must mirror the first."
        )
    return {
        "widths": widths,
        "depth": config["layers_per_block"],
        "attention": tuple(level for level, here in enumerate(attends) if here),
        "middle": "attention" if config["mid_block_add_attention"] else "none",
        "groups": config["norm_num_groups"],
        "activation": activation_of(config),
    }


def diffusers_table(widths: Sequence[int]) -> Table:
    """Return the rules of diffusers."""
    rules = list(_ends("conv_norm_out"))
    for half in ("encoder", "decoder"):
        for place in (0, 1):
            rules += residual(f"{half}.mid_block.resnets.{place}", f"{half}/middle_block_{place}")
        rules += attention(f"{half}.mid_block.attentions.0", f"{half}/middle_mixer")
    theirs, ours = ("encoder.down_blocks", "decoder.up_blocks"), ("encoder/down", "decoder/up")
    rules += levels(len(widths), attention, theirs=theirs, ours=ours)
    return Table(tuple(rules), spellings=({}, BEFORE))


def ldm_table(widths: Sequence[int]) -> Table:
    """Return the rules of the authors' files, whose attention is made of 1 x 1 convolutions."""
    rules = list(_ends("norm_out"))
    for half in ("encoder", "decoder"):
        for place in (0, 1):
            rules += residual(f"{half}.mid.block_{place + 1}", f"{half}/middle_block_{place}", _RESIDUAL)
        rules += attention(f"{half}.mid.attn_1", f"{half}/middle_mixer", _LDM, POINTWISE)
    for level in range(len(widths)):
        for half, way in (("encoder", "down"), ("decoder", "up")):
            theirs, ours = f"{half}.{way}.{level}", f"{half}/{way}_{level}"
            rules += residual(f"{theirs}.block.{{j}}", f"{ours}_block_{{j}}", _RESIDUAL)
            rules += attention(f"{theirs}.attn.{{j}}", f"{ours}_mixer_{{j}}", _LDM, POINTWISE)
        rules += linear(f"encoder.down.{level}.downsample.conv", f"encoder/down_{level + 1}_resample", CONV)
        rules += linear(f"decoder.up.{level}.upsample.conv", f"decoder/up_{level - 1}_resample/conv", CONV)
    harmless = {"loss.*": "the discriminator and the features of its training", "model_ema.*": "averages of training"}
    return Table(tuple(rules), harmless=harmless)


def _ends(last):
    """Give the rules of what both spell alike but for the last norm."""
    for half in ("encoder", "decoder"):
        yield from linear(f"{half}.conv_in", f"{half}/first", CONV)
        yield from norm(f"{half}.{last}", f"{half}/last_norm")
        yield from linear(f"{half}.conv_out", f"{half}/last", CONV)
    yield Rule("quantize.embedding.weight", "codebook")
    yield from linear("quant_conv", "encoder/code", CONV)
    yield from linear("post_quant_conv", "decoder/code", CONV)


_LDM = ("norm", "q", "k", "v", "proj_out")
_RESIDUAL = (*RESIDUAL[:-1], "nin_shortcut")


def example_of(module: VAE | VQ) -> tuple[Any]:
    """Return what an autoencoder is called with: the smallest image, by shape and dtype."""
    side = factor(module.frame)
    return (jax.ShapeDtypeStruct((1, side, side, module.channels), jnp.float32),)


def statistics(config: dict[str, Any], source: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the spread of Eq. (1), one of each for a channel."""
    given = config["latents_mean"], config["latents_std"]
    shift, count = config["shift_factor"], config["latent_channels"]
    if (given[0] is None) != (given[1] is None) or (given[0] is not None and shift):
        raise ValueError(
            f"{source}: its config.json must have both latents_mean and latents_std, and then no shift_factor, or "
            f"neither; they are {given[0]}, {given[1]} and {shift}."
        )
    mean, std = ([shift or 0.0], [1.0]) if given[0] is None else given
    if not config["scaling_factor"] or {len(mean), len(std)} - {1, count}:
        raise ValueError(
            f"{source}: scaling_factor {config['scaling_factor']}, mean {mean} and std {std} are no statistics of "
            f"{count} channels; there must be one number for each channel, and the factor must not be 0."
        )
    std = np.asarray(std, np.float32) / np.float32(config["scaling_factor"])
    return np.broadcast_to(np.asarray(mean, np.float32), (count,)), np.broadcast_to(std, (count,))


def _own(tensors: Tensors) -> Tensors:
    """Return the autoencoder's tensors, without the prefix that they have in a whole model's file."""
    first = "encoder.conv_in.weight"
    found = [name.removesuffix(first) for name in tensors.shapes if f".{name}".endswith(f".{first}")]
    if len(found) > 1:
        raise ValueError(f"{tensors.source} holds several autoencoders, behind {', '.join(map(repr, sorted(found)))}.")
    return behind(tensors, found[0] if found else "")


def config_of(tensors: Tensors) -> dict[str, Any]:
    """Return the config that diffusers would have of a file's shapes."""
    shapes = tensors.shapes
    block = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv2\.weight")
    places = [found for name in shapes if (found := block.fullmatch(name))]
    ends = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
    if not places or any(end not in shapes for end in ends):
        raise ValueError(
            f"load_vae_file: {tensors.source} has no {ends[0]} or no encoder.down.0.block.0.conv2.weight, also not "
            "behind a prefix. A folder of diffusers is read by load_vae."
        )
    levels = range(1 + max(int(place[1]) for place in places))
    kinds = ["Attn" * (f"encoder.down.{level}.attn.0.norm.weight" in shapes) for level in levels]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes[ends[0]][1],
        "out_channels": shapes[ends[2]][0],
        "latent_channels": shapes[ends[1]][1],
        "block_out_channels": [shapes.get(f"encoder.down.{level}.block.0.conv2.weight", (0,))[0] for level in levels],
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "layers_per_block": 1 + max(int(place[2]) for place in places),
        "mid_block_add_attention": "encoder.mid.attn_1.norm.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


_ATTENDS: dict[str, bool] = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}

_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
