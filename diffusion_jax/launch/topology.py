"""Slices of TPUs: `v5e:16x16` in the words of those who lend them.

    v4, v5p     three sides; a host has 4 chips; a type counts TensorCores, two a chip: v5p:2x2x2 is v5p-16
    v5e, v6e    two sides; a host has all chips of a slice of up to 8, and 4 of a larger one; a type counts chips

Sources: https://cloud.google.com/tpu/docs/v4, /v5p, /v5e and /v6e (shapes, VMs and types),
https://cloud.google.com/tpu/docs/runtimes (software), https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
(labels of nodes).
"""

import math
import re
from typing import NamedTuple

from diffusion_jax.naming import lookup


class Generation(NamedTuple):
    """The slices of a generation, whether they grow cube by cube, and what they and their VMs are called."""

    shapes: tuple[str, ...]
    grows: bool
    most: int  # chips in a slice
    alone: int  # chips of the largest slice with one host
    type: str  # before the number in an accelerator's type
    counts: int  # what that number counts, in a chip
    runtime: str  # the software of its VMs
    node: str  # the label of its nodes on GKE


class Topology(NamedTuple):
    """A slice: its generation, its sides, its chips, its hosts, and the names that it goes by."""

    name: str
    shape: str
    chips: int
    hosts: int
    type: str
    runtime: str
    node: str


def read_topology(text: str) -> Topology:
    """Read a slice, as `v5e:16x16`."""
    generation, _, shape = text.partition(":")
    known = lookup(GENERATIONS, generation, "generation of a TPU topology")
    sides = [int(side) for side in shape.split("x")] if re.fullmatch(r"\d{1,3}(x\d{1,3})*", shape) else []
    chips = math.prod(sides)
    if shape not in known.shapes and not (known.grows and _grown(sides) and chips <= known.most):
        larger = f", or three multiples of 4, none less than the one before, up to {known.most} chips"
        allowed = f"{', '.join(known.shapes)}{larger if known.grows else ''}"
        raise ValueError(f"the topology is '{text}'; slices of {generation} are {allowed}.")
    hosts = 1 if chips <= known.alone else chips // 4
    kind = f"{known.type}-{chips * known.counts}"
    return Topology(text, shape, chips, hosts, kind, known.runtime, known.node)


def _grown(sides):
    return len(sides) == 3 and all(side and side % 4 == 0 for side in sides) and sides == sorted(sides)


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

GENERATIONS = {
    "v4": Generation(DEEP, True, 4096, 4, "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5p": Generation(DEEP, True, 6144, 4, "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v5e": Generation(FLAT, False, 256, 8, "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v6e": Generation(FLAT, False, 256, 8, "v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
}
