"""What does computing in bfloat16 cost?

    python -m diffusion_jax sweep experiments/ablations/precision.py --backend local --parallel 2 --out runs/precision

The parameters, the norms and the optimizer are float32 in both arms.
"""

from diffusion_jax.ablation.grid import param
from diffusion_jax.ablation.question import Ablation
from experiments.ablations.scales import asked, of_images


def get_ablation(mode: str = "") -> Ablation:
    """Return the question at the scale that the mode names."""
    grid = param("network.dtype", ("float32", "bfloat16"))
    return asked("What does computing in bfloat16 cost?", grid, of_images(mode))
