"""T5's encoder from its files, against the numbers of another implementation."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.nets.t5 import bucket
from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.t5 import GATED, load_t5
from diffusion_jax.pretrained.tensors import of_arrays
from tests.pretrained.folders import REFERENCE, write

FOLDER = REFERENCE / "models" / "t5_encoder"
CONFIG = json.loads((FOLDER / "config.json").read_text())
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}


@functools.cache
def network(dtype="float32"):
    return load_t5(FOLDER, dtype=dtype)


@functools.cache
def weights():
    return safetensors.numpy.load_file(FOLDER / "model.safetensors")


def test_states_are_those_of_transformers():
    io = np.load(FOLDER / "io.npz")
    found = jax.jit(network().apply)(network().params, io["in/input_ids"], io["in/attention_mask"])
    np.testing.assert_allclose(found, io["out/last_hidden_state"], **CLOSE)


def test_import_export_import_is_the_same_bits():
    out = export(GATED, network().params)
    assert out.keys() == weights().keys()
    for name, array in out.items():
        np.testing.assert_array_equal(array, weights()[name])
    again = convert(GATED, of_arrays(out, "memory"), network().params)
    jax.tree.map(np.testing.assert_array_equal, network().params, again)


def test_tokens_may_be_the_encoders_own_or_shared_or_both_and_a_decoder_is_left(tmp_path):
    own = "encoder.embed_tokens.weight"
    rest = {name: array for name, array in weights().items() if name != "shared.weight"}
    tokens = weights()["shared.weight"]
    more = {own: tokens, "decoder.block.0.layer.0.layer_norm.weight": tokens[0], "lm_head.weight": tokens}
    for name, tensors in (("own", rest | {own: tokens}), ("both", dict(weights()) | more)):
        found = load_t5(write(tmp_path / name, CONFIG, tensors))
        jax.tree.map(np.testing.assert_array_equal, found.params, network().params)
    with pytest.raises(ValueError, match="encoder.embed_tokens.weight and shared.weight differ"):
        load_t5(write(tmp_path / "untied", CONFIG, dict(weights()) | {own: 2 * tokens}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "umt5"}, "load_t5: .* is of a 'umt5'; it must be of 't5' or 'mt5'"),
        ({"feed_forward_proj": "relu"}, "lacks encoder.block.0.layer.1.DenseReluDense.wi.weight"),
        ({"feed_forward_proj": "doubly-gelu"}, "feed_forward_proj 'doubly-gelu'; it must be like"),
        ({"feed_forward_proj": "gated-gelo"}, "unknown activation of t5 'gelo'"),
        ({"num_layers": 3}, "lacks encoder.block.2.layer.0.SelfAttention.k.weight"),
        ({"num_layers": 1}, "has unknown encoder.block.1.layer.0.SelfAttention.k.weight"),
        ({"d_kv": 16}, r"SelfAttention.k.weight' is \(24, 24\) and not \(48, 24\)"),
        ({"relative_attention_num_buckets": 16}, r"relative_attention_bias.weight' is \(8, 3\) and not \(16, 3\)"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        load_t5(write(tmp_path, CONFIG | change, weights()))


@pytest.mark.parametrize(("kind", "feed", "count"), [("t5", "plain", 6 * 8 + 3), ("mt5", "gated", 8 * 9 + 3)])
def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path, kind, feed, count):
    write(tmp_path, {"model_type": kind}, {"lm_head.weight": weights()["shared.weight"]})
    with pytest.raises(ValueError, match=f"does not hold the {count} tensors"):
        load_t5(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("feed", ["relu", "gated-gelu", "gated-silu"])
def test_networks_of_transformers_are_read(tmp_path, feed):
    """Encoders alone and halves of a whole T5, with heads that are not a share of the width."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = {"d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 3, "num_heads": 4, "vocab_size": 50}
    kind = transformers.T5ForConditionalGeneration if feed == "relu" else transformers.T5EncoderModel
    model = kind(transformers.T5Config(**sizes, feed_forward_proj=feed)).eval()
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 50, (2, 150))
    mask = np.arange(150)[None] < np.array([[150], [90]])
    with torch.no_grad():
        known = model.double().get_encoder()(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()
    net = load_t5(tmp_path)
    found = np.asarray(jax.jit(net.apply)(net.params, ids.astype(np.int32), mask))
    np.testing.assert_allclose(found[mask], known[mask], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 12), (16, 20), (64, 512), (4, 100)])
def test_buckets_are_those_of_transformers(buckets, reach):
    module, torch = pytest.importorskip("transformers.models.t5.modeling_t5"), pytest.importorskip("torch")
    apart = np.arange(-1100, 1100)
    known = module.T5Attention._relative_position_bucket(torch.tensor(apart), True, buckets, reach)
    np.testing.assert_array_equal(bucket(apart, buckets, reach), known.numpy())
