"""EDM's networks (Karras et al. 2022) from their authors' pickles: DDPM++ and NCSN++ (SongUNet), ADM (DhariwalUNet).

All are ours (`nets/unet.py`) by other names. What is read is F, called with c_noise for a time, of the denoiser

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise),                                                        (1)

    make_denoiser(precondition(model.apply, schedule), model.params, schedule, prediction="edm", ...),        (2)

unless `config["precond"]` is another than EDMPrecond. The random frequencies of NCSN++ are in its file, and become
`config["frequencies"]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nets.unet import unet
from diffusion_jax.pretrained.rules import (
    CONV,
    DENSE,
    POINTWISE,
    Layout,
    Pretrained,
    Put,
    Rule,
    Table,
    linear,
    load,
    norm,
    swapped,
)
from diffusion_jax.pretrained.schedulers import Recipe
from diffusion_jax.pretrained.snapshot import read_snapshot
from diffusion_jax.pretrained.tensors import behind, check_known, of_arrays


def load_edm(path: str | Path, *, dtype: str = "float32", put: Put = None) -> Pretrained:
    """Read the average of a network's weights; it computes, and is kept, in `dtype`.

    It is called as `apply(params, x, t, cond)`, and where it was trained with labels, `cond` has `label` (B,).
    """
    snapshot = read_snapshot(path)
    if "ema" not in snapshot.built:
        raise ValueError(f"load_edm: {path} holds {', '.join(snapshot.built)}, but no average under the name 'ema'.")
    precond, keywords = snapshot.built["ema"]
    known = " and ".join(_DEFAULTS)
    kind = keywords.get("model_type", _INNER.get(precond))
    if kind not in _DEFAULTS or not {"img_resolution", "img_channels"} <= keywords.keys():
        raise ValueError(f"load_edm: {path} is a {precond} of a {kind!r}; known are {known}, built by keywords.")
    config = {"precond": precond, **_DEFAULTS[kind], **keywords, "model_type": kind}
    check_known(config, _KNOWN[kind], path)
    if kind == "SongUNet":
        fourier = config["embedding_type"] == "fourier"
        check_known(config, {"channel_mult_noise": (2 if fourier else 1,)}, path)
        if fourier:
            config["frequencies"] = _frequencies(snapshot, path)
    module = unet(**keywords_of(config), dtype=dtype)
    side, channels = config["img_resolution"], config["img_channels"]
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, side, side, channels), (1,)))
    cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)} if config["label_dim"] else {}
    tensors = behind(of_arrays(snapshot.tensors, str(path)), "ema.model.")
    params = load(table_of(config), tensors, module, (x, t, cond), dtype=dtype, put=put)
    return Pretrained(module, params, config)


def _frequencies(snapshot, path):
    drawn = snapshot.tensors.get("ema.model.map_noise.freqs")
    if drawn is None or drawn.ndim != 1:
        raise ValueError(f"load_edm: {path} lacks the frequencies of its waves of time, map_noise.freqs.")
    return tuple(drawn.astype(float).tolist())


def keywords_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as keywords of `unet`."""
    sizes = _sizes(config)
    return {
        "channels": config["img_channels"],
        "out_channels": config["img_channels"] * (2 if config["precond"] == "iDDPMPrecond" else 1),
        "image_size": config["img_resolution"],
        "width": config["model_channels"],
        "multipliers": tuple(config["channel_mult"]),
        "depth": config["num_blocks"],
        "attention": tuple(size for size in sizes if size in config["attn_resolutions"]),
        "num_classes": config["label_dim"],
        "dropout": config["dropout"],
        **(_song(config) if config["model_type"] == "SongUNet" else _ADM),
    }


def recipe_of(config: Mapping[str, Any], source: str) -> Recipe:
    """Return the path of a network, how it is trained and how samples are drawn; `source` is for errors."""
    check_known(config, {"precond": ("EDMPrecond",), "sigma_data": (0.5,)}, source)
    data = {"sigma_data": 0.5}
    return Recipe(
        steps=0,
        schedule={"name": "karras", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        pace={"name": "shift", "factor": 1.0},
        input={"name": "edm", **data},
        prediction={"name": "edm", **data},
        times={"name": "log_normal_sigma", "mean": -1.2, "std": 1.2},
        grid={"name": "karras", "rho": 7.0},
        solver={"name": "edm"},
        threshold={"name": "none"},
        weighting={"name": "edm", **data},
    )


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config; names are those within the network."""
    sizes = _sizes(config)
    last = f"{sizes[-1]}x{sizes[-1]}"
    whole = f"dec.{sizes[0]}x{sizes[0]}_aux" if config["model_type"] == "SongUNet" else "out"
    fourier = config.get("embedding_type") == "fourier"  # whose sines are first in theirs, and last in ours
    adm = [Rule("map_label.weight", "conditioning/label", _LABELS)]
    song = [*(swapped if fourier else linear)("map_label", "conditioning/label")]
    rules = [
        *linear("map_layer0", "conditioning/time_1", _TURNED if fourier else DENSE),
        *linear("map_layer1", "conditioning/time_2"),
        *(song if config["model_type"] == "SongUNet" else adm),
        *linear(f"enc.{sizes[0]}x{sizes[0]}_conv", "first", CONV),
        *_block(f"dec.{last}_in0", "middle_block_0", "middle_mixer"),
        *_block(f"dec.{last}_in1", "middle_block_1"),
        *norm(f"{whole}_norm", "last_norm"),
        *linear(f"{whole}_conv", "last", CONV),
    ]
    for level, size in enumerate(sizes):
        for half, way in (("enc", "down"), ("dec", "up")):
            theirs, ours = f"{half}.{size}x{size}", f"{way}_{level}"
            rules += _block(f"{theirs}_block{{j}}", f"{ours}_block_{{j}}", f"{ours}_mixer_{{j}}")
            rules += _block(f"{theirs}_{way}", f"{ours}_resample")
        rules += linear(f"enc.{size}x{size}_aux_residual", f"down_{level}_image", CONV)
    return Table(tuple(rules), harmless=_HARMLESS)


def _block(theirs, ours, mixer=""):
    """Give the rules of a block, and of the attention after it if it may have one."""
    yield from norm(f"{theirs}.norm0", f"{ours}/norm_1")
    yield from linear(f"{theirs}.conv0", f"{ours}/conv_1", CONV)
    yield from linear(f"{theirs}.affine", f"{ours}/tell")
    yield from norm(f"{theirs}.norm1", f"{ours}/norm_2")
    yield from linear(f"{theirs}.conv1", f"{ours}/conv_2", CONV)
    yield from linear(f"{theirs}.skip", f"{ours}/shortcut", CONV)
    if mixer:
        yield from norm(f"{theirs}.norm2", f"{mixer}/norm")
        yield Rule(f"{theirs}.qkv.weight", f"{mixer}/attention/qkv/kernel", _TRIPLES)
        yield Rule(f"{theirs}.qkv.bias", f"{mixer}/attention/qkv/bias", _TRIPLE)
        yield from linear(f"{theirs}.proj", f"{mixer}/attention/out", POINTWISE)


def _sizes(config):
    return [config["img_resolution"] >> level for level in range(len(config["channel_mult"]))]


def _song(config):
    fourier = config["embedding_type"] == "fourier"
    return {
        "tell": "add",
        "join": "waves",
        "image_skip": "residual" if config["encoder_type"] == "residual" else "none",
        "resample": {"name": "fir", "taps": tuple(config["resample_filter"])},
        "decoder_attention": "last",
        "skip_scale": 0.5**0.5,
        "shortcut": "projected",
        "epsilon": 1e-6,
        "time": {
            "name": "fourier" if fourier else "positional",
            "time_scale": 1.0,
            **({"frequencies": tuple(config["frequencies"])} if fourier else {}),
        },
    }


_ADM = {
    "tell": "scale_shift",
    "resample": "average",
    "head_width": 64,
    "epsilon": 1e-5,
    "initial": "fan_in",
    "time": {"name": "sinusoidal", "time_scale": 1.0},
}

# Of every channel its query, key and value, one after the other -> all queries, all keys, all values.
_TRIPLE = Layout(lambda x: x.reshape(-1, 3).T.reshape(-1), lambda x: x.reshape(3, -1).T.reshape(-1))
_TRIPLES = Layout(
    lambda x: x.reshape(-1, 3, x.shape[1]).transpose(2, 1, 0).reshape(x.shape[1], -1),
    lambda x: x.reshape(x.shape[0], 3, -1).transpose(2, 1, 0).reshape(-1, x.shape[0], 1, 1),
)
_TURNED = Layout(lambda x: np.roll(x.T, x.shape[1] // 2, 0), lambda x: np.roll(x, x.shape[0] // 2, 0).T)
# A column for each class; of no class nothing is said -> a row for each class, and one of zeros.
_LABELS = Layout(lambda x: np.concatenate([x.T, np.zeros_like(x.T[:1])]), lambda x: x[:-1].T)

_HARMLESS = {
    "*.resample_filter": "numbers that the config gives",
    "map_noise.freqs": "numbers that became part of the config",
    "map_augment.weight": "for training only: of images that were not augmented nothing is said",
}

_INNER = {
    "EDMPrecond": "DhariwalUNet",
    "iDDPMPrecond": "DhariwalUNet",
    "VPPrecond": "SongUNet",
    "VEPrecond": "SongUNet",
}
_BOTH = {"label_dim": 0, "dropout": 0.1, "channel_mult_emb": 4}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        **_BOTH,
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "resample_filter": [1, 1],
        "channel_mult_noise": 1,
        "embedding_type": "positional",
        "encoder_type": "standard",
    },
    "DhariwalUNet": {
        **_BOTH,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
_KNOWN: dict[str, dict[str, tuple]] = {
    "SongUNet": {
        "channel_mult_emb": (4,),
        "embedding_type": ("positional", "fourier"),
        "encoder_type": ("standard", "residual"),
        "decoder_type": ("standard",),
    },
    "DhariwalUNet": {"channel_mult_emb": (4,)},
}
