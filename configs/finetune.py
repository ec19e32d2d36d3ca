"""A model that is there, trained on with other data: every parameter, from those of a run or of an imported model.

What the model is, its network, path, autoencoder and reader of prompts, is inherited from the run that `start` names.
The data are latents with captions, as `encode` writes them.

Claim: the first step meets the model as it was left: its loss is that of the run it starts from, to the last bit.

    python -m diffusion_jax import_weights --from stable-diffusion-v1-5 --to runs/sd15
    python -m diffusion_jax encode --workdir runs/sd15 --side 512 --out photos.array_record \\
        --data "{'name': 'folder', 'path': 'photos'}"
    python -m diffusion_jax train --config configs/finetune.py --workdir runs/photos \\
        --config.start.folder=runs/sd15 --config.data.path=photos.array_record
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds, on a small network that begins anew."""
    config = base.get_finetuning(mode, folder="runs/sd15")
    config.data = {"name": "array", "path": "photos.array_record"}
    config.transforms = ({"name": "drop_caption", "rate": 0.1},)
    config.training.steps = 10_000
    config.training.batch_size = 32
    config.training.rate = {"name": "constant", "peak": 1e-5, "warmup": 500}
    config.training.averages = {"ema": {"name": "constant", "decay": 0.9999}}
    config.training.sample_every = 1000
    config.sampling.count = 16
    config.sampling.batch_size = 4
    if mode == "smoke":
        base.shrink_finetuning(config)
        config.transforms = ({"name": "to_unit"}, *config.transforms, {"name": "words", "length": 10, "width": 32})
    return config.lock()
