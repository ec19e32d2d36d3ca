"""Vector-quantised autoencoders from their files, against the numbers of another implementation."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays
from diffusion_jax.pretrained.vae import diffusers_table
from diffusion_jax.pretrained.vq import load_vq
from tests.pretrained.folders import REFERENCE, stored, write

CONFIG, WEIGHTS = stored("vq_tiny.npz")
KNOWN = np.load(REFERENCE / "vq_tiny.npz")
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}


@functools.cache
def network():
    return load_vq(write(Path(tempfile.mkdtemp()), CONFIG, WEIGHTS))


def test_latents_entries_and_images_are_those_of_diffusers():
    """With attention in a level and entries narrower than the latents."""
    net = network()

    @jax.jit
    def run(params, x, z):
        quantised = net.module.apply({"params": params}, z, method="quantise")
        return net.encode(params, x), quantised, net.decode(params, z)

    encoded, quantised, images = run(net.params, KNOWN["in/images"], KNOWN["in/latents"])
    np.testing.assert_allclose(encoded, KNOWN["out/encoded"], **CLOSE)
    np.testing.assert_array_equal(quantised.indices, KNOWN["out/indices"])
    np.testing.assert_allclose(quantised.latent, KNOWN["out/quantised"], **CLOSE)
    np.testing.assert_allclose(images, KNOWN["out/decoded"], **CLOSE)
    np.testing.assert_allclose(net.std, np.full(3, 1 / 0.18215), rtol=1e-6)


def test_import_export_import_is_the_same_bits():
    table = diffusers_table((8, 16))
    out = export(table, network().params)
    assert out.keys() == WEIGHTS.keys()
    for name, array in out.items():
        np.testing.assert_array_equal(array, WEIGHTS[name])
    again = convert(table, of_arrays(out, "memory"), network().params)
    jax.tree.map(np.testing.assert_array_equal, network().params, again)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "load_vq: .* is of a 'AutoencoderKL'"),
        ({"norm_type": "spatial"}, "norm_type 'spatial'; only 'group'"),
        ({"num_vq_embeddings": 17}, r"'quantize.embedding.weight' is \(16, 3\) and not \(17, 3\)"),
        ({"vq_embed_dim": None}, r"is \(16, 3\) and not \(16, 4\)"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        load_vq(write(tmp_path, CONFIG | change, WEIGHTS))
