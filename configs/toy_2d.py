"""A rectified flow of four round Gaussians in the plane, by a small residual network.

Claim: its likelihood comes within 0.05 nats of the entropy of the density, and its samples are as far from fresh data,
by sliced Wasserstein distance, as fresh data are from each other. Measured: 0.006 nats above it; 0.128 against 0.123.

    python -m diffusion_jax train --config configs/toy_2d.py --workdir runs/toy
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds."""
    config = base.get_training(mode)
    config.data = {"name": "density", "kind": "mixture_2d", "examples": 1_000_000}
    config.transforms = ({"name": "keep", "entries": ("x",)},)
    config.schedule = {"name": "rectified"}
    config.network = {"name": "mlp", "width": 128, "depth": 4}
    config.training.steps = 5000
    config.training.batch_size = 256
    config.training.rate = {"name": "cosine", "peak": 2e-3, "steps": 5000, "warmup": 200, "end": 0.0}
    config.training.save_every = 2000
    config.sampling.count = 2000
    config.sampling.batch_size = 2000
    config.sampling.solver = {"name": "heun"}
    if mode == "smoke":
        config.training.steps, config.training.batch_size, config.training.log_every = 4, 16, 2
        config.network = {"name": "mlp", "width": 8, "depth": 1}
        config.sampling.count, config.sampling.steps = 16, 2
    return config.lock()
