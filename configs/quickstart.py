"""Coloured shapes by class, by a rectified flow: minutes on two cores of a CPU.

Claim: guided samples show the shape and colour asked for in at least 95 of 100 cases, read back from their pixels.
Measured: 93 of 96, after 5 and a half minutes of training.

    python -m diffusion_jax train --config configs/quickstart.py --workdir runs/quickstart
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "shapes", "side": 16}
    config.transforms = ({"name": "to_unit"}, {"name": "drop_label", "rate": 0.1})
    config.cond = ("label",)
    config.schedule = {"name": "rectified"}
    config.loss.times.name = "logit_normal"
    config.network = {
        "name": "unet",
        "width": 32,
        "multipliers": (1, 2, 2),
        "depth": 1,
        "attention": (4,),
        "groups": 8,
        "tell": "scale_shift",
        "dtype": "float32",
    }
    config.training.steps = 400
    config.training.batch_size = 64
    config.training.rate = {"name": "cosine", "peak": 2e-3, "steps": 400, "warmup": 40, "end": 0.0}
    config.training.averages = {"ema": {"name": "warmup", "decay": 0.995}}
    config.training.save_every = 200
    config.training.sample_every = 200
    config.training.log_every = 50
    config.sampling.guidance = {"name": "classifier_free", "scale": 2.0}
    config.sampling.steps = 20
    config.sampling.solver = {"name": "heun"}
    config.sampling.count = 96
    config.sampling.batch_size = 96
    if mode == "smoke":
        config.training.steps, config.training.batch_size, config.training.log_every = 2, 8, 1
        config.network.update(width=8, multipliers=(1, 1), attention=(), groups=4)
        config.sampling.count, config.sampling.batch_size, config.sampling.steps = 12, 12, 2
    return config.lock()
