"""Chips are known by the names that their devices have."""

from types import SimpleNamespace

import pytest

from diffusion_jax.training.chips import CHIPS, chip_of


@pytest.mark.parametrize("name", sorted(CHIPS))
def test_a_chip_is_known_by_its_name_and_its_figures_are_of_one_kind(name):
    chip = CHIPS[name]
    assert chip_of(SimpleNamespace(device_kind=name)) == chip
    assert chip.flops > 100 * chip.bandwidth > 100 * chip.network > 1e11 and 1e10 < chip.memory < 1e12


def test_devices_are_told_apart():
    assert chip_of(SimpleNamespace(device_kind="cpu")) is None
    assert chip_of(SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")) == CHIPS["H100"]
    assert chip_of(SimpleNamespace(device_kind="TPU v5 lite")) == CHIPS["TPU v5e"]
    assert chip_of(SimpleNamespace(device_kind="TPU v5")) == CHIPS["TPU v5p"]
