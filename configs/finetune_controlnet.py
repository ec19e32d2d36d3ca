"""A model of captions that is there, steered by edges: a clone of its way down reads them (Zhang et al. 2023).

Only the clone has gradients and moments; the network is held, and the clone speaks through convolutions that are zero
at first. The data are drawings with captions and their edges; samples are steered by the edges of the first of them,
or of `config.sampling.hints`.

Claim: the first step meets the model as it was left, and after any number of steps its network has the same bits.

    python -m diffusion_jax train --config configs/captions.py --workdir runs/captions
    python -m diffusion_jax train --config configs/finetune_controlnet.py --workdir runs/captions_edges
"""

from typing import Any

from configs import base


def get_config(mode: str = "") -> Any:
    """Return the config; `smoke` finishes in seconds, on a small network that begins anew."""
    config = base.get_finetuning(mode, folder="runs/captions")
    config.adapter = {"name": "control", "hint_widths": (16,)}  # as large as the image
    config.data = {"name": "shapes", "side": 16, "entries": ("x", "caption", "edges")}
    config.transforms = (
        {"name": "to_unit"},
        {"name": "hint", "of": "edges", "channels": 1},
        {"name": "drop_caption", "rate": 0.5},  # so that the edges are read, and not the words alone
        {"name": "words", "length": 10, "width": 32},
        {"name": "keep", "entries": ("x", "hint", "text", "text_mask")},
    )
    with config.ignore_type():
        config.cond = cond = ("text", "text_mask", "hint")
    config.training.steps = 300
    config.training.batch_size = 64
    config.training.rate = {"name": "cosine", "peak": 1e-3, "steps": 300, "warmup": 20, "end": 0.0}
    config.training.averages = {}  # an average holds the whole network once more
    config.training.sample_every = 100
    config.training.log_every = 50
    config.sampling.average = "params"
    config.sampling.guidance = {"name": "none"}  # nothing is asked for but the edges
    config.sampling.steps = 20
    config.sampling.count = 16
    config.sampling.batch_size = 16
    if mode == "smoke":
        base.shrink_finetuning(config, "edges")
        config.cond = cond
        config.training.averages = {}
        config.sampling.average = "params"
        config.sampling.guidance = {"name": "none"}
    return config.lock()
