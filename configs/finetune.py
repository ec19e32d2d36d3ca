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

INHERITED = ("schedule", "pace", "input", "network", "latent", "text", "loss", "cond")


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds, on a small network that begins anew."""
    config = base.get_training(mode)
    with config.ignore_type():  # entries become names of what they will be
        for entry in INHERITED:
            config[entry] = {"name": "inherited"}
        for entry in ("grid", "solver", "guidance"):
            config.sampling[entry] = {"name": "inherited"}
    config.start = {"name": "run", "folder": "runs/sd15"}
    config.data = {"name": "array", "path": "photos.array_record"}
    config.transforms = ({"name": "drop_caption", "rate": 0.1},)
    config.training.steps = 10_000
    config.training.batch_size = 32
    config.training.optimizer = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    config.training.rate = {"name": "constant", "peak": 1e-5, "warmup": 500}
    config.training.clip = 1.0
    config.training.averages = {"ema": {"name": "constant", "decay": 0.9999}}
    config.training.sample_every = 1000
    config.sampling.count = 16
    config.sampling.batch_size = 4
    if mode == "smoke":
        _shrink(config)
    return config.lock()


def _shrink(config):
    """Take a small model of pixels and words for what is inherited."""
    anew = base.get_training("smoke")
    with config.ignore_type():
        for entry in (*INHERITED, "start", "sampling"):
            config[entry] = anew.get(entry, {})
    config.network = {"name": "unet", "groups": 4, "mixer": "transformer"}
    base.shrink(config, width=8, multipliers=(1,), depth=1, attention=(16,))
    config.data = {"name": "shapes", "side": 16, "entries": ("x", "caption")}
    config.transforms = ({"name": "to_unit"}, *config.transforms, {"name": "words", "length": 10, "width": 32})
    config.cond = ("text", "text_mask")
    config.sampling.guidance = {"name": "classifier_free", "scale": 3.0}
