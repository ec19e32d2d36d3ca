"""DINOv2 from its files, against the numbers of another implementation."""

from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.nets.dinov2 import POSITIONS
from diffusion_jax.pretrained.dinov2 import DINOV2, GATED, load_dinov2
from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays
from tests.pretrained.folders import REFERENCE, stored, write

KNOWN = np.load(REFERENCE / "dinov2_tiny.npz")
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
# As transformers interpolates the positions of each.
KINDS = {"plain": "plain", "gated": "plain", "registered": "antialiased"}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_described_as_by_transformers(tmp_path, kind):
    """At the trained size it is the same by any rule, elsewhere by the one of transformers."""
    folder = write(tmp_path, *stored("dinov2_tiny.npz", f"{kind}/"))
    for name, positions in {"square": "original", "oblong": KINDS[kind]}.items():
        network = load_dinov2(folder, positions=positions)
        found = jax.jit(network.apply)(network.params, KNOWN[f"in/{name}"])
        np.testing.assert_allclose(found, KNOWN[f"{kind}/out/{name}"], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_import_export_import_is_the_same_bits(tmp_path, kind):
    config, weights = stored("dinov2_tiny.npz", f"{kind}/")
    params = load_dinov2(write(tmp_path, config, weights)).params
    table = GATED if kind == "gated" else DINOV2
    out = export(table, params)
    assert weights.keys() - out.keys() == {"embeddings.mask_token"}
    for name, array in out.items():
        np.testing.assert_array_equal(array, weights[name])
    again = convert(table, of_arrays(out, "memory"), params)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_positions_are_those_of_its_authors_unless_named(tmp_path):
    kinds = {"plain": "original", "registered": "antialiased"}
    for kind, positions in kinds.items():
        folder = write(tmp_path / kind, *stored("dinov2_tiny.npz", f"{kind}/"))
        assert load_dinov2(folder).module.resized is POSITIONS[positions]
    with pytest.raises(ValueError, match="unknown positions of dinov2 'plane'. Did you mean 'plain'"):
        load_dinov2(folder, positions="plane")


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("plain", {"model_type": "dinov3"}, "load_dinov2: .* is of a 'dinov3'.*'dinov2_with_registers'"),
        (
            "plain",
            {"use_swiglu_ffn": True},
            "lacks encoder.layer.0.mlp.weights_in.bias.*unknown encoder.layer.0.mlp.fc1",
        ),
        ("plain", {"model_type": "dinov2_with_registers"}, "lacks embeddings.register_tokens"),
        ("registered", {"model_type": "dinov2"}, "has unknown embeddings.register_tokens"),
        ("registered", {"num_register_tokens": 4}, r"register_tokens' is \(1, 3, 16\) and not \(1, 4, 16\)"),
        ("plain", {"image_size": 35}, r"position_embeddings' is \(1, 17, 16\) and not \(1, 26, 16\)"),
        ("plain", {"num_attention_heads": 5}, "heads = 5 does not divide width = 16"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, kind, change, words):
    config, weights = stored("dinov2_tiny.npz", f"{kind}/")
    with pytest.raises(ValueError, match=words):
        load_dinov2(write(tmp_path, config | change, weights))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_networks_of_transformers_are_read(tmp_path, kind):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "image_size": 40, "patch_size": 8}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name or "lambda" in name:
                parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    network = load_dinov2(tmp_path, positions="plain" if kind == "Dinov2" else "antialiased")
    for size in ((40, 40), (24, 56)):
        images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
        with torch.no_grad():
            known = model(torch.tensor(images).permute(0, 3, 1, 2)).pooler_output
        np.testing.assert_allclose(jax.jit(network.apply)(network.params, images), known.numpy(), **CLOSE)
