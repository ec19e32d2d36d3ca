"""End the jobs of a launch, and give back what they held.

    python -m diffusion_jax stop toy

--dry_run              print what would be run, as a script

On SLURM the jobs save first; on Kubernetes they have two minutes to; a slice of TPUs is given back at once, with what
was on its disks. The workdir stays, and the same `python -m diffusion_jax launch --workdir ... --again` goes on from
its last checkpoint. What runs on this machine is ended with Ctrl-C where it was launched.
"""

from collections.abc import Callable, Sequence

from diffusion_jax.cli.logs import asking


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the record; return what stops the jobs."""
    return asking(argv, "stop")
