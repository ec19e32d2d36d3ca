"""NCSN++ on CIFAR-10 in continuous time (Song et al. 2021, "Score-Based Generative Modeling through SDEs", Appendix C).

Published: FID 2.38 and Inception Score 9.83 for "NCSN++ cont. (VE)", of 50,000 samples against the training set, by
1000 steps of predictor and corrector, the best checkpoint of 1.3 million steps with batches of 128. Not trained here.

The paper's images lie in [0, 1] and its noise levels go from 0.01 to 50; here images lie in [-1, 1] and the levels are
twice theirs. Its predictor, "reverse diffusion", is on this path DDPM's step of the larger variance.

    python -m diffusion_jax train --config configs/cifar10_ncsnpp_ve.py --workdir runs/cifar10_ncsnpp_ve
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "tfds", "dataset": "cifar10", "split": "train"}
    config.expects = {"x": (32, 32, 3), "dtype": "uint8", "classes": 10}
    config.transforms = ({"name": "to_unit"}, {"name": "flip", "rate": 0.5}, {"name": "keep", "entries": ("x",)})
    config.schedule = {"name": "geometric", "sigma_min": 0.02, "sigma_max": 100.0}
    config.input = {"name": "log_sigma"}
    config.loss.prediction.name = "eps"
    config.network = {
        "name": "unet",
        "width": 128,
        "multipliers": (1, 2, 2, 2),
        "depth": 4,
        "attention": (16,),
        "decoder_attention": "last",
        "resample": {"name": "fir", "taps": (1, 3, 3, 1)},
        "image_skip": "residual",
        "skip_scale": 2**-0.5,
        "shortcut": "projected",
        "dropout": 0.1,
        "groups": 32,
        "time": {"name": "fourier", "scale": 16.0},
    }
    config.training.steps = 1_300_000
    config.training.batch_size = 128
    config.training.rate = {"name": "constant", "peak": 2e-4, "warmup": 5000}
    config.training.clip = 1.0
    config.training.averages = {"ema": {"name": "constant", "decay": 0.999}}
    config.training.save_every = 10_000
    config.training.keep_every = 50_000
    config.training.sample_every = 50_000
    config.sampling.steps = 1000
    config.sampling.solver = {
        "name": "predictor_corrector",
        "predictor": {"name": "ddpm", "variance": "fixed_large"},
        "corrections": 1,
        "snr": 0.16,
    }
    config.sampling.returned = "x0"
    if mode == "smoke":
        base.shrink(config, width=8, multipliers=(1, 1), depth=1, attention=(8,), groups=4)
    return config.lock()
