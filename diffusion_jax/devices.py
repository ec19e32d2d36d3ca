"""Where arrays lie: a batch over the devices of this process."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


class Layout(NamedTuple):
    """Where a batch lies, and what is `whole` on each of its devices."""

    split: NamedSharding
    whole: NamedSharding


def layout(count: int) -> Layout:
    """Lay batches of `count` out over as many of this process's devices as divide them evenly."""
    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices[: math.gcd(count, len(devices))]), (AXIS,))
    return Layout(NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec()))
