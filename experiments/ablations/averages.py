"""How long should the average of the parameters be?

    python -m diffusion_jax sweep experiments/ablations/averages.py --backend local --parallel 2 --out runs/averages

One run a seed, which keeps several averages at once, named by their length in steps, and is sampled with each.
"""

from diffusion_jax.ablation.grid import param
from diffusion_jax.ablation.question import Ablation
from experiments.ablations.scales import asked, of_images


def get_ablation(mode: str = "") -> Ablation:
    """Return the question at the scale that the mode names."""
    scale = of_images(mode)
    kept = {f"ema{length}": {"name": "warmup", "decay": 1 - 1 / length} for length in (10, 30, 100, 300)}
    fixed = {**scale.fixed, "training.averages": kept, "sampling.average": "params"}
    grid = param("sampling.average", ("params", *kept))
    return asked("How long should the average of the parameters be?", grid, scale._replace(fixed=fixed))
