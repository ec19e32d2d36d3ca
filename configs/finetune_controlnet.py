"""A model of captions that is there, steered by edges: a clone of its way down reads them (Zhang et al. 2023).

Only the clone has gradients and moments; the network is held, and the clone speaks through convolutions that are zero
at first. The data are drawings with captions and their edges; samples are steered by the edges of the first of them,
or of `config.sampling.hints`.

Claim: the first step meets the model as it was left, and after any number of steps its network has the same bits.

    python -m diffusion_jax train --config configs/captions.py --workdir runs/captions
    python -m diffusion_jax train --config configs/finetune_controlnet.py --workdir runs/captions_edges
"""

from typing import Any

from configs import base

INHERITED = ("schedule", "pace", "input", "network", "latent", "text", "loss")


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds, on a small network that begins anew."""
    config = base.get_training(mode)
    with config.ignore_type():  # entries become names of what they will be
        for entry in INHERITED:
            config[entry] = {"name": "inherited"}
        for entry in ("grid", "solver", "guidance"):
            config.sampling[entry] = {"name": "inherited"}
    config.start = {"name": "run", "folder": "runs/captions"}
    config.adapter = {"name": "control", "hint_widths": (16,)}  # of pixels; latents take (16, 32, 96, 256)
    config.data = {"name": "shapes", "side": 16, "entries": ("x", "caption", "edges")}
    config.transforms = (
        {"name": "to_unit"},
        {"name": "hint", "of": "edges", "channels": 1},
        {"name": "drop_caption", "rate": 0.5},  # so that the edges are read, and not the words alone
        {"name": "words", "length": 10, "width": 32},
        {"name": "keep", "entries": ("x", "hint", "text", "text_mask")},
    )
    config.cond = ("text", "text_mask", "hint")
    config.training.steps = 300
    config.training.batch_size = 64
    config.training.optimizer = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    config.training.rate = {"name": "cosine", "peak": 1e-3, "steps": 300, "warmup": 20, "end": 0.0}
    config.training.clip = 1.0
    config.training.averages = {}  # an average holds the whole network once more
    config.training.sample_every = 100
    config.training.log_every = 50
    config.sampling.average = "params"
    config.sampling.steps = 20
    config.sampling.count = 16
    config.sampling.batch_size = 16
    if mode == "smoke":
        _shrink(config)
    return config.lock()


def _shrink(config):
    """Take a small model of pixels and words for what is inherited."""
    anew, data = base.get_training("smoke"), config.data
    with config.ignore_type():
        for entry in (*INHERITED, "start", "sampling"):
            config[entry] = anew.get(entry, {})
    config.network = {"name": "unet", "groups": 4, "mixer": "transformer"}
    base.shrink(config, width=8, multipliers=(1,), depth=1, attention=(16,))
    config.data = data
    config.training.averages = {}
    config.sampling.average = "params"
    config.sampling.guidance = {"name": "classifier_free", "scale": 3.0}
