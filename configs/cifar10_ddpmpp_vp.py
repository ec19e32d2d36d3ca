"""DDPM++ on CIFAR-10 in continuous time (Song et al. 2021, "Score-Based Generative Modeling through SDEs", Appendix C).

Published: FID 2.55 and Inception Score 9.58 for "DDPM++ cont. (VP)", of 50,000 samples against the training set, by
1000 Euler-Maruyama steps, the best checkpoint of 1.3 million steps with batches of 128. Not trained here.

    python -m diffusion_jax train --config configs/cifar10_ddpmpp_vp.py --workdir runs/cifar10_ddpmpp_vp
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "tfds", "dataset": "cifar10", "split": "train"}
    config.expects = {"x": (32, 32, 3), "dtype": "uint8", "classes": 10}
    config.transforms = ({"name": "to_unit"}, {"name": "flip", "rate": 0.5}, {"name": "keep", "entries": ("x",)})
    config.schedule = {"name": "linear_beta", "beta_min": 0.1, "beta_max": 20.0}
    config.loss.prediction.name = "eps"
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
        "dropout": 0.1,
        "groups": 32,
        "time": {"name": "positional", "time_scale": 999.0},
    }
    config.training.steps = 1_300_000
    config.training.batch_size = 128
    config.training.rate = {"name": "constant", "peak": 2e-4, "warmup": 5000}
    config.training.clip = 1.0
    config.training.averages = {"ema": {"name": "constant", "decay": 0.9999}}
    config.training.save_every = 10_000
    config.training.keep_every = 50_000
    config.training.sample_every = 50_000
    config.sampling.steps = 1000
    config.sampling.solver = {"name": "euler_maruyama", "diffusion": "reverse_sde"}
    if mode == "smoke":
        base.shrink(config, width=8, multipliers=(1,), depth=1, attention=(16,), groups=4)
    return config.lock()
