"""What `save` writes, diffusers and transformers open, and compute what ours does when it is called by their names."""

from typing import Any

import numpy as np
import pytest

from diffusion_jax.pretrained import FAMILIES, load, save
from tests.pretrained.folders import family

CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
IDS = np.array([[1, 2, 3, 47, 47], [5, 4, 3, 2, 47]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], np.int32)


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


DIT = {"hidden_states": normal(2, 8, 8, 4), "timestep": np.array([3, 800]), "class_labels": np.array([0, 7])}
# Of each family, the peer's class and what it is given; images are NHWC.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "UNet2DModel": ("diffusers.UNet2DModel", {"sample": normal(2, 16, 24, 3), "timestep": np.array([3, 800])}),
    "UNet2DConditionModel": (
        "diffusers.UNet2DConditionModel",
        {
            "sample": normal(2, 8, 16, 4),
            "timestep": np.array(7),
            "encoder_hidden_states": normal(2, 5, 24),
            "encoder_attention_mask": MASK,
        },
    ),
    "ControlNetModel": (
        "diffusers.ControlNetModel",
        {
            "sample": normal(2, 8, 8, 4),
            "timestep": np.array(7),
            "encoder_hidden_states": normal(2, 5, 24),
            "controlnet_cond": normal(2, 16, 16, 3),
            "conditioning_scale": 0.7,
        },
    ),
    "DiTTransformer2DModel": ("diffusers.DiTTransformer2DModel", DIT),
    "Transformer2DModel": ("diffusers.Transformer2DModel", DIT),
    "SD3Transformer2DModel": (
        "diffusers.SD3Transformer2DModel",
        {
            "hidden_states": normal(2, 8, 12, 4),
            "encoder_hidden_states": normal(2, 5, 20),
            "pooled_projections": normal(2, 24),
            "timestep": np.array([3.0, 800.0], np.float32),
        },
    ),
    "FluxTransformer2DModel": (
        "diffusers.FluxTransformer2DModel",
        {
            "hidden_states": normal(2, 12, 16),
            "encoder_hidden_states": normal(2, 5, 20),
            "pooled_projections": normal(2, 24),
            "timestep": np.array([0.1, 0.8], np.float32),
            "img_ids": np.stack([np.zeros(12), np.arange(12) // 4, np.arange(12) % 4], -1).astype(np.float32),
            "txt_ids": np.zeros((5, 3), np.float32),
        },
    ),
    "AutoencoderKL": ("diffusers.AutoencoderKL", {"sample": normal(2, 16, 24, 3)}),
    "VQModel": ("diffusers.VQModel", {"sample": normal(2, 16, 24, 3)}),
    "clip": ("transformers.CLIPModel", {"input_ids": IDS, "pixel_values": None, "attention_mask": MASK}),
    "clip_text_model": ("transformers.CLIPTextModel", {"input_ids": IDS, "attention_mask": MASK}),
    "clip_vision_model": ("transformers.CLIPVisionModelWithProjection", {"pixel_values": None}),
    "t5": ("transformers.T5EncoderModel", {"input_ids": IDS, "attention_mask": MASK}),
    "mt5": ("transformers.MT5EncoderModel", {"input_ids": IDS, "attention_mask": MASK}),
    "dinov2": ("transformers.Dinov2Model", {"pixel_values": normal(2, 28, 42, 3)}),
    "dinov2_with_registers": ("transformers.Dinov2WithRegistersModel", {"pixel_values": normal(2, 28, 42, 3)}),
}
FIELDS = ("last_hidden_state", "pooler_output", "text_embeds", "image_embeds", "logits_per_image", "logits_per_text")


def theirs_of(torch, value):
    """Return an input as they take it."""
    if isinstance(value, float):
        return value
    tensor = torch.tensor(value).long() if value.dtype.kind == "i" else torch.tensor(value)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def compare(found, known):
    """Hold what ours returned against theirs, images in their order of axes."""
    if hasattr(known, "mid_block_res_sample"):
        (down, middle), theirs = found, (*known.down_block_res_samples, known.mid_block_res_sample)
        for one, two in zip((*down, middle), theirs, strict=True):
            np.testing.assert_allclose(np.moveaxis(one, -1, 1), two.detach().numpy(), **CLOSE)
        return
    if not hasattr(found, "_fields"):
        known = known[0].detach().numpy()
        np.testing.assert_allclose(np.moveaxis(found, -1, 1) if known.ndim == 4 else found, known, **CLOSE)
        return
    names = [
        name for name in FIELDS if getattr(known, name, None) is not None and getattr(found, name, None) is not None
    ]
    assert names
    for name in names:
        np.testing.assert_allclose(getattr(found, name), getattr(known, name).detach().numpy(), err_msg=name, **CLOSE)
    for ours, theirs in zip(
        getattr(found, "hidden_states", ()), getattr(known, "hidden_states", None) or (), strict=False
    ):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("most", [10**9, 50_000], ids=["one", "shards"])
def test_what_is_written_is_opened_and_computes_the_same(name, most, tmp_path):
    torch = pytest.importorskip("torch")
    library, kind = PEERS[name][0].split(".")
    module = pytest.importorskip(library)
    ours = load(family(name, tmp_path / "theirs"))
    folder = save(ours, tmp_path / "ours", most=most)
    theirs, log = getattr(module, kind).from_pretrained(folder, output_loading_info=True)
    left = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}
    assert not set(log["missing_keys"]) - {"encoder.embed_tokens.weight", "embeddings.mask_token"}, log
    assert not set(log["unexpected_keys"]) - left and not log["mismatched_keys"], log
    inputs = dict(PEERS[name][1])
    if "pixel_values" in inputs and inputs["pixel_values"] is None:
        size = ours.module.network.vision.size if name == "clip" else ours.module.network.size
        inputs["pixel_values"] = normal(2, size, size, 3)
    more = {"output_hidden_states": True} if library == "transformers" and name != "clip" else {}
    with torch.no_grad():
        known = theirs.eval()(**{key: theirs_of(torch, value) for key, value in inputs.items()}, **more)
    compare(ours(**inputs), known)


@pytest.mark.slow
def test_half_precision_is_opened_as_it_is(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ours = load(family("clip_text_model", tmp_path), dtype="bfloat16")
    theirs = transformers.CLIPTextModel.from_pretrained(save(ours, tmp_path / "ours"))
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    for ours_, theirs_ in ((ours.params["tokens"], theirs.get_input_embeddings().weight),):
        np.testing.assert_array_equal(np.asarray(ours_, np.float32), theirs_.detach().float().numpy())


@pytest.mark.slow
def test_all_that_xl_is_told_has_the_names_of_diffusers(tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 6 * 8,
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "a")
    ours = load(tmp_path / "a")
    sample, states, texts = normal(2, 8, 8, 4), normal(2, 5, 24), normal(2, 12)
    numbers = np.array([[8, 8, 0, 1, 8, 6]] * 2, np.float32)
    told = {"text_embeds": texts, "time_ids": numbers}
    with torch.no_grad():
        added = {key: torch.tensor(value) for key, value in told.items()}
        known = theirs(theirs_of(torch, sample), 7, torch.tensor(states), added_cond_kwargs=added).sample
    found = ours(sample, 7, states, added_cond_kwargs=told)
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), known.numpy(), **CLOSE)
    again = diffusers.UNet2DConditionModel.from_pretrained(save(ours, tmp_path / "b"))
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.state_dict()[name].numpy())
