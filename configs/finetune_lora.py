"""A model that is there, with adapters of low rank trained beside it (Hu et al. 2022), as `finetune` trains the whole.

Only the adapters have gradients and moments; the network is held. The data are latents with captions, as `encode`
writes them.

Claim: the first step meets the model as it was left, and after any number of steps its network has the same bits.

    python -m diffusion_jax train --config configs/finetune_lora.py --workdir runs/photos_lora \\
        --config.start.folder=runs/sd15 --config.data.path=photos.array_record
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds, on a small network that begins anew."""
    config: Any = base.get_finetuning(mode, folder="runs/sd15")
    config.adapter = {
        "name": "lora",
        "targets": ("*attention/qkv", "*attention/out", "*to_text/q", "*to_text/kv", "*to_text/out"),
        "rank": 16,
    }
    config.data = {"name": "array", "path": "photos.array_record"}
    config.transforms = ({"name": "drop_caption", "rate": 0.1},)
    config.training.steps = 2000
    config.training.batch_size = 16
    config.training.rate = {"name": "constant", "peak": 1e-4, "warmup": 100}
    config.training.averages = {}  # an average holds the whole network once more
    config.training.sample_every = 500
    config.sampling.average = "params"
    config.sampling.count = 16
    config.sampling.batch_size = 4
    if mode == "smoke":
        base.shrink_finetuning(config)
        config.adapter.update(rank=2)
        config.transforms = ({"name": "to_unit"}, *config.transforms, {"name": "words", "length": 10, "width": 32})
    return config.lock()
