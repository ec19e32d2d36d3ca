"""DiT-XL/2 on latents of ImageNet at 256 x 256 by class (Peebles & Xie 2023, "Scalable Diffusion Models with
Transformers").

Published: FID 2.27, sFID 4.60, Inception Score 278.24, precision 0.83 and recall 0.57 with guidance of scale 1.5, of
50,000 samples by 250 steps of the chain, after 7 million steps with batches of 256 (Table 2). Not trained here. The
paper guides the first three of four channels; here all are guided.

The data are latents of the autoencoder of Stable Diffusion (32 x 32 x 4, times 0.18215), of every image and of its
mirror image, written once; with the autoencoder's folder as config.latent samples are images.

    python -m diffusion_jax encode --latent VAE --data ENTRY --side 256 --mirrored --out latents.array_record
    python -m diffusion_jax train --config configs/imagenet256_dit.py --workdir runs/imagenet256_dit \\
        --config.data.path=latents.array_record
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "array", "path": "imagenet256_latents.array_record"}
    config.expects = {"x": (32, 32, 4), "dtype": "float32", "classes": 1000}
    config.transforms = ({"name": "drop_label", "rate": 0.1},)
    config.cond = ("label",)
    config.schedule = {
        "name": "discrete",
        "world": {"name": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    }
    config.input = {"name": "steps", "count": 1000}
    config.loss = {"name": "hybrid", "steps": 1000, "prediction": {"name": "eps"}, "vlb_weight": 1e-3}
    config.network = {
        "name": "dit",
        "size": {"name": "XL"},
        "patch": 2,
        "time": {"name": "sinusoidal", "time_scale": 1.0},
        "dtype": "bfloat16",
        "remat": "dots",
    }
    config.training.steps = 7_000_000
    config.training.batch_size = 256
    config.training.optimizer = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    config.training.rate = {"name": "constant", "peak": 1e-4, "warmup": 0}
    config.training.averages = {"ema": {"name": "constant", "decay": 0.9999}}
    config.training.workers = 4
    config.training.save_every = 10_000
    config.training.keep_every = 400_000
    config.sampling.guidance = {"name": "classifier_free", "scale": 1.5}
    config.sampling.grid = {"name": "linspace", "train_steps": 1000}
    config.sampling.steps = 250
    config.sampling.solver = {"name": "ddpm", "variance": "learned"}
    if mode == "smoke":
        tiny = {"name": "custom", "width": 16, "depth": 2, "heads": 2}
        base.shrink(config, size=tiny, patch=4)
        config.transforms = ({"name": "to_unit"}, *config.transforms)
        config.training.workers = 0
    return config.lock()
