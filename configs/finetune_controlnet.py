"""A model that is there, steered by edges: a clone of its way down reads them (Zhang et al. 2023).

Only the clone has gradients and moments; the network is held, and the clone speaks through convolutions that are zero
at first. What the model is, its network, path, autoencoder and reader of prompts, is inherited from the run that
`start` names. The data are latents with captions and hints, as `encode --hint` writes them; samples are steered by the
hints of the first of them, and told their captions, or by those of another such file, `config.sampling.hints`.

Claim: the first step meets the model as it was left, and after any number of steps its network has the same bits.

    python -m diffusion_jax import_weights --from stable-diffusion-v1-5 --to runs/sd15
    python -m diffusion_jax encode --workdir runs/sd15 --side 512 --out edges.array_record --hint edges \\
        --data "{'name': 'folder', 'path': 'photos'}"
    python -m diffusion_jax train --config configs/finetune_controlnet.py --workdir runs/edges \\
        --config.start.folder=runs/sd15 --config.data.path=edges.array_record
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds, on a small network that begins anew."""
    config = base.get_finetuning(mode, folder="runs/sd15")
    with config.ignore_type():
        config.cond = {"name": "inherited", "also": ("hint",)}
    config.adapter = {"name": "control", "hint_widths": (16, 32, 96, 256)}  # images of 8 times the latents' size
    config.data = {"name": "array", "path": "edges.array_record"}
    # Half of the captions are empty, so that the edges are read, and not the words alone
    config.transforms = ({"name": "hint", "of": "hint", "channels": 3}, {"name": "drop_caption", "rate": 0.5})
    config.training.steps = 20_000
    config.training.batch_size = 32
    config.training.rate = {"name": "constant", "peak": 1e-5, "warmup": 500}
    config.training.averages = {}  # an average holds the whole network once more
    config.training.sample_every = 1000
    config.sampling.average = "params"
    config.sampling.count = 16
    config.sampling.batch_size = 4
    if mode == "smoke":
        base.shrink_finetuning(config, "edges")
        with config.ignore_type():
            config.cond = ("text", "text_mask", "hint")
        config.adapter = {"name": "control", "hint_widths": (16,)}  # images of the size of what is diffused
        config.transforms = (
            {"name": "to_unit"},
            {"name": "hint", "of": "edges", "channels": 1},
            {"name": "drop_caption", "rate": 0.5},
            {"name": "words", "length": 10, "width": 32},
            {"name": "keep", "entries": ("x", "hint", "text", "text_mask")},
        )
        config.training.averages = {}
        config.sampling.average = "params"
        config.sampling.guidance = {"name": "none"}
    config.sampling.captions = ()  # those of the hints
    return config.lock()
