"""Slices of TPUs: their numbers are consistent, and those that are not lent are refused."""

import math

import pytest

from diffusion_jax.launch.topology import GENERATIONS, read_topology

# Published: https://cloud.google.com/tpu/docs/v4, v5p, v5e, v6e.
PUBLISHED = {
    "v4": [("2x2x1", "v4-8", 1), ("2x2x4", "v4-32", 4), ("4x4x4", "v4-128", 16), ("8x16x16", "v4-4096", 512)],
    "v5p": [("2x2x1", "v5p-8", 1), ("2x2x2", "v5p-16", 2), ("2x4x4", "v5p-64", 8), ("16x16x24", "v5p-12288", 1536)],
    "v5e": [("1x1", "v5litepod-1", 1), ("2x4", "v5litepod-8", 1), ("4x4", "v5litepod-16", 4)],
    "v6e": [("1x1", "v6e-1", 1), ("2x2", "v6e-4", 1), ("2x4", "v6e-8", 1), ("16x16", "v6e-256", 64)],
}


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_slices_have_their_published_types_and_hosts(generation):
    for shape, kind, hosts in PUBLISHED[generation]:
        found = read_topology(f"{generation}:{shape}")
        assert (found.type, found.hosts, found.shape) == (kind, hosts, shape)
        assert found.chips == math.prod(int(side) for side in shape.split("x"))
        assert found.chips % found.hosts == 0 and found.chips // found.hosts in (1, 4, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:3x3", "the topology is 'v5e:3x3'; slices of v5e are 1x1, 2x2"),
        ("v5e:2x2x2", "slices of v5e are"),
        ("v4:2x2", "slices of v4 are 2x2x1.*or three multiples of 4, none less than the one before, up to 4096"),
        ("v4:8x4x4", "slices of v4"),
        ("v4:16x16x32", "slices of v4"),
        ("v4:0x0x0", "slices of v4"),
        ("v5p:4x4x", "slices of v5p"),
        ("v5e", "slices of v5e"),
        ("v5:4x4", "unknown generation of a TPU topology 'v5'. Did you mean"),
        ("v5e:4x4\n", "slices of v5e"),
    ],
)
def test_slices_that_are_not_lent_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_topology(text)
