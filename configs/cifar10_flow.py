"""Rectified flow on CIFAR-10 (Liu, Gong & Liu 2023, "Flow Straight and Fast", Section 5.1): the first flow.

Published: FID 2.58, Inception Score 9.60 and recall 0.57 for "1-Rectified Flow", of 50,000 samples by an adaptive
Runge-Kutta method of order 5 with tolerances of 1e-5, 127 evaluations on average. Not trained here.

    python -m diffusion_jax train --config configs/cifar10_flow.py --workdir runs/cifar10_flow
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "tfds", "dataset": "cifar10", "split": "train"}
    config.expects = {"x": (32, 32, 3), "dtype": "uint8", "classes": 10}
    config.transforms = ({"name": "to_unit"}, {"name": "flip", "rate": 0.5}, {"name": "keep", "entries": ("x",)})
    config.schedule = {"name": "rectified"}
    config.network = {
        "name": "unet",
        "width": 128,
        "multipliers": (1, 2, 2, 2),
        "depth": 4,
        "attention": (16,),
        "decoder_attention": "last",
        "resample": {"name": "average"},
        "skip_scale": 2**-0.5,
        "shortcut": "projected",
        "dropout": 0.15,
        "groups": 32,
        "time": {"name": "positional", "time_scale": 999.0},
        "dtype": "float32",
    }
    config.training.steps = 1_300_000
    config.training.batch_size = 128
    config.training.rate = {"name": "constant", "peak": 2e-4, "warmup": 5000}
    config.training.clip = 1.0
    config.training.averages = {"ema": {"name": "warmup", "decay": 0.999999}}
    config.training.save_every = 10_000
    config.training.keep_every = 50_000
    config.training.sample_every = 50_000
    config.sampling.solver = {"name": "adaptive", "method": "Dopri5", "rtol": 1e-5, "atol": 1e-5}
    config.sampling.steps = 1  # between which the solver chooses its own
    if mode == "smoke":
        base.shrink(config, width=8, multipliers=(1,), depth=1, attention=(16,), groups=4)
        config.sampling.solver = {"name": "adaptive", "method": "Dopri5", "rtol": 0.1, "atol": 0.1}
    return config.lock()
