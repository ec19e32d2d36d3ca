"""What one accelerator can do at most, by the makers' data sheets.

    TPUs   docs.cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e and tpu7x (its table compares v5p and v6e), read in 2026
    GPUs   the data sheets of the SXM forms of A100 (80 GB), H100, H200 and B200

The makers give what goes over a TPU's links in both directions together; `network` is half of that, and of NVLink's.
A chip is one device of JAX, which on the generations named here it is.
"""

from typing import Any, NamedTuple


class Chip(NamedTuple):
    """The most of one chip: products in bfloat16 a second, bytes of memory, and bytes a second of it and into it."""

    flops: float
    memory: float
    bandwidth: float
    network: float


def chip_of(device: Any) -> Chip | None:
    """Return what a device can do, or None where that is not known; the first name that its own contains counts."""
    return next((chip for name, chip in CHIPS.items() if name in device.device_kind), None)


GIB = 2.0**30

CHIPS = {
    "TPU v6": Chip(918e12, 32 * GIB, 1638e9, 400e9),
    "TPU v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "B200": Chip(2250e12, 180e9, 8000e9, 900e9),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9),
    "A100": Chip(312e12, 80e9, 2039e9, 300e9),
}
