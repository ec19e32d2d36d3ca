"""Which solver needs the fewest evaluations of the network?

    python -m diffusion_jax sweep experiments/ablations/solvers.py --backend local --parallel 2 --out runs/solvers

One run a seed, sampled in every way; the steps of the solvers of two evaluations are half as many.
"""

from diffusion_jax.ablation.grid import chain, param, product
from diffusion_jax.ablation.question import Ablation
from experiments.ablations.scales import asked, of_points


def get_ablation(mode: str = "") -> Ablation:
    """Return the question at the scale that the mode names."""
    single = product(param("sampling.solver", ("euler", "dpmpp_2m", "unipc")), param("sampling.steps", (4, 8, 16, 32)))
    double = product(param("sampling.solver", ("heun", "midpoint")), param("sampling.steps", (2, 4, 8, 16)))
    return asked("Which solver needs the fewest evaluations of the network?", chain(single, double), of_points(mode))
