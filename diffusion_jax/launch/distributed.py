"""Several processes as one run.

On TPU pods, SLURM and GKE JAX finds the others by itself; elsewhere the launcher says where they are:

    DIFFUSION_JAX_PROCESSES=auto                                   ask the cluster
    DIFFUSION_JAX_PROCESSES=0/2@127.0.0.1:9876                     this process, of so many, and the first one's address
"""

import os
import re
from collections.abc import Mapping

VARIABLE = "DIFFUSION_JAX_PROCESSES"


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run, if the environment names any; to be called before any device is used."""
    said = environment.get(VARIABLE, "")
    if not said:
        return
    import jax

    if said == "auto":
        jax.distributed.initialize()
        return
    found = re.fullmatch(r"(\d+)/(\d+)@([\w.-]+:\d+)", said)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"{VARIABLE} is '{said}'; it must be 'auto', or like 0/2@127.0.0.1:9876, counted from 0.")
    jax.distributed.initialize(found[3], num_processes=int(found[2]), process_id=int(found[1]))


def described(process: int | str, processes: int, address: str) -> dict[str, str]:
    """Return what `join` reads in one of the processes."""
    return {VARIABLE: f"{process}/{processes}@{address}"}
