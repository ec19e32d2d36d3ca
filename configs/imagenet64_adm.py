"""ADM on ImageNet at 64 x 64 by class (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis").

Published: FID 2.07, precision 0.74 and recall 0.63 for "ADM (dropout)" without guidance, of 50,000 samples by 250 steps
of the chain, after 540,000 steps of training with batches of 2048 (Tables 5 and 11). Not trained here.

    python -m diffusion_jax train --config configs/imagenet64_adm.py --workdir runs/imagenet64_adm
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "tfds", "dataset": "imagenet2012", "split": "train"}
    config.expects = {"x": (None, None, 3), "dtype": "uint8", "classes": 1000}
    config.transforms = ({"name": "adm_crop", "side": 64}, {"name": "flip", "rate": 0.5}, {"name": "to_unit"})
    config.cond = ("label",)
    config.schedule = {"name": "discrete", "world": {"name": "squared_cosine", "steps": 1000}}
    config.input = {"name": "steps", "count": 1000}
    config.loss = {"name": "hybrid", "steps": 1000, "prediction": {"name": "eps"}, "vlb_weight": 1e-3}
    config.network = {
        "name": "unet",
        "width": 192,
        "multipliers": (1, 2, 3, 4),
        "depth": 3,
        "tell": "scale_shift",
        "resample": {"name": "average"},
        "attention": (32, 16, 8),
        "head_width": 64,
        "dropout": 0.1,
        "groups": 32,
        "epsilon": 1e-5,
        "time": {"name": "sinusoidal", "time_scale": 1.0},
        "dtype": "bfloat16",  # float16 in the paper
    }
    config.training.steps = 540_000
    config.training.batch_size = 2048
    config.training.optimizer = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    config.training.rate = {"name": "constant", "peak": 3e-4, "warmup": 0}
    config.training.averages = {"ema": {"name": "constant", "decay": 0.9999}}
    config.training.workers = 16
    config.training.save_every = 5000
    config.training.sample_every = 20_000
    config.sampling.grid = {"name": "linspace", "train_steps": 1000}
    config.sampling.steps = 250
    config.sampling.solver = {"name": "ddpm", "variance": "learned"}
    config.sampling.threshold = {"name": "static", "limit": 1.0}
    if mode == "smoke":
        base.shrink(config, width=8, multipliers=(1, 1), depth=1, attention=(8,), head_width=4, groups=4)
        config.transforms = ({"name": "adm_crop", "side": 16}, {"name": "flip", "rate": 0.5}, {"name": "to_unit"})
        config.training.workers = 0
    return config.lock()
