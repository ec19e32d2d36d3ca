"""Files of adapters, however they are spelled, against the numbers of another implementation, and back."""

import functools
import json
import math
import re
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from diffusion_jax.nets.lora import joined, merged, scaled, start
from diffusion_jax.pretrained.clip import TEXT, load_clip_text
from diffusion_jax.pretrained.lora import STYLES, export_lora, load_lora, parts_of, save_lora
from diffusion_jax.pretrained.lora_names import layers_of, spellings_of
from diffusion_jax.pretrained.rules import export
from diffusion_jax.pretrained.unet import load_unet, table_of
from tests.nets.tiny import stirred
from tests.pretrained.folders import CLIP_TEXT, REFERENCE

UNET, LORA = REFERENCE / "models" / "unet_sd15", REFERENCE / "models" / "lora_sd15"
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
merging = jax.jit(merged)


@functools.cache
def network(name="unet"):
    """Return a network, its rules, and what adapters call its part."""
    if name == "text":
        return load_clip_text(CLIP_TEXT), TEXT, "text_encoder"
    model = load_unet(UNET)
    return model, table_of(model.config), "denoiser"


def read(path, name="unet", **more):
    model, table, part = network(name)
    return load_lora(path, table, model.params, part=part, **more)


@functools.cache
def reference():
    return read(LORA)


def tensors():
    return safetensors.numpy.load_file(LORA / "pytorch_lora_weights.safetensors")


def write(path, arrays, **noted):
    """Write a file, its config in the header if there is one."""
    header = {"lora_adapter_metadata": json.dumps(noted)} if noted else None
    safetensors.numpy.save_file({name: np.asarray(array) for name, array in arrays.items()}, path, header)
    return path


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@functools.cache
def computing():
    model, _, _ = network()
    return jax.jit(lambda *inputs: model.apply(*inputs))


@pytest.mark.parametrize(("scale", "wanted"), [(0.0, "base"), (0.5, "scale0.5"), (1.0, "scale1")])
def test_what_it_computes_is_what_theirs_does(scale, wanted):
    model, _, _ = network()
    io = np.load(UNET / "io.npz")
    t = np.asarray(io["in/timestep"], np.float32)
    params = merging(model.params, reference(), scale)
    found = computing()(params, np.moveaxis(io["in/sample"], 1, -1), t, {"text": io["in/encoder_hidden_states"]})
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(found), -1, 1), np.load(LORA / "io.npz")[f"out/{wanted}"], **CLOSE
    )


def test_what_is_exported_is_what_was_read(tmp_path):
    model, table, _ = network()
    exported = export_lora(reference(), table, model.params, style="diffusers")
    wanted = tensors()
    assert exported.arrays.keys() == wanted.keys()
    same(exported.arrays, wanted)
    with safetensors.safe_open(LORA / "pytorch_lora_weights.safetensors", "np") as file:
        theirs = json.loads(file.metadata()["lora_adapter_metadata"])
    assert {word: theirs[word] for word in exported.noted if "target" not in word} == {
        word: value for word, value in exported.noted.items() if "target" not in word
    }


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("name", ["unet", "text"])
def test_every_layer_of_a_network_there_and_back(name, style, tmp_path):
    """Convolutions, layers side by side, layers of a stack, each of its own rank and alpha; some layers have none."""
    model, table, part = network(name)
    arrays, changed, random = {}, {}, np.random.default_rng(0)
    base = export(table, model.params)
    prefix = {"denoiser": "lora_unet", "text_encoder": "lora_te"}[part]
    for number, (layer, slot) in enumerate(layers_of(table, model.params).items()):
        if number % 7 == 3:
            continue
        rank, alpha = 1 + number % 3, 0.5 + number % 4
        shape = slot.shape
        down = random.normal(size=(rank, *shape[1:])).astype(np.float32)
        up = random.normal(size=(shape[0], rank, *(1,) * (len(shape) - 2))).astype(np.float32)
        arrays |= {
            f"{prefix}_{layer.replace('.', '_')}.lora_{way}.weight": a for way, a in (("down", down), ("up", up))
        }
        arrays[f"{prefix}_{layer.replace('.', '_')}.alpha"] = np.float32(alpha)
        product = (up.reshape(-1, rank) @ down.reshape(rank, -1)).reshape(shape)
        changed[f"{layer}.weight"] = base[f"{layer}.weight"] + 0.3 * alpha / rank * product
    found = read(write(tmp_path / "a.safetensors", arrays), name)
    out = export(table, merging(model.params, found, 0.3))
    for theirs, array in (base | changed).items():
        np.testing.assert_allclose(out[theirs], array, rtol=1e-4, atol=1e-5, err_msg=theirs)
    save_lora(tmp_path / "b.safetensors", export_lora(found, table, model.params, part=part, style=style))
    same(read(tmp_path / "b.safetensors", name), found)
    assert parts_of(tmp_path / "b.safetensors") == [part]


def _processors(name):
    return re.sub(r"\.(to_[qkv]|to_out)(?:\.0)?\.lora\.", r".processor.\1_lora.", name.removeprefix("unet."))


def _kohya(name):
    layer, _, rest = name.removeprefix("unet.").partition(".lora.")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{rest}"


def _authors(name):
    places = {"down_blocks_0_attentions_0": "input_blocks_1_1", "mid_block_attentions_0": "middle_block_1"}
    places |= {f"up_blocks_1_attentions_{place}": f"output_blocks_{2 + place}_1" for place in (0, 1)}
    for ours, theirs in places.items():
        name = name.replace(ours, theirs)
    return name


SPELLINGS: dict[str, Any] = {
    "peft": lambda name: name.replace("lora.down", "lora_A").replace("lora.up", "lora_B"),
    "peft, named": lambda name: name.replace("lora.down", "lora_A.default").replace("lora.up", "lora_B.default"),
    "peft's own": lambda name: SPELLINGS["peft"](name).replace("unet.", "base_model.model."),
    "no prefix": lambda name: name.removeprefix("unet."),
    "processors": _processors,
    "kohya": _kohya,
    "kohya, as the authors": lambda name: _authors(_kohya(name)),
}


@pytest.mark.parametrize("way", SPELLINGS)
def test_every_spelling_is_read(way, tmp_path):
    arrays = {SPELLINGS[way](name): array for name, array in tensors().items()}
    if "kohya" in way:
        arrays |= {name.replace("lora_down.weight", "alpha"): np.float32(4) for name in arrays if "lora_down" in name}
        found = read(write(tmp_path / "a.safetensors", arrays))
    else:
        config = {"r": 2, "lora_alpha": 4}
        noted = config if way in ("no prefix", "peft's own") else {f"unet.{word}": v for word, v in config.items()}
        found = read(write(tmp_path / "a.safetensors", arrays, **noted))
    same(found, reference())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_files_of_half_precision_are_read_into_float32(tmp_path, dtype):
    half = {name: array.astype(jax.numpy.dtype(dtype)) for name, array in tensors().items()}
    found = read(write(tmp_path / "a.safetensors", half, **{"unet.lora_alpha": 4}))
    again = {name: array.astype(np.float32) for name, array in half.items()}
    same(found, read(write(tmp_path / "b.safetensors", again, **{"unet.lora_alpha": 4})))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_texts_of_before_are_read(tmp_path):
    model, table, _ = network("text")
    adapter = start(model.params, jax.random.key(0), targets=("*/attention/*",), rank=2)
    adapter = adapter._replace(factors=stirred(adapter.factors))
    arrays = export_lora(adapter, table, model.params, part="text_encoder").arrays
    wanted = read(write(tmp_path / "a.safetensors", arrays), "text")
    ways: Any = (
        lambda name: re.sub(r"(q|k|v|out)_proj\.lora_([AB])", r"to_\1_lora.\2", name),
        lambda name: re.sub(r"lora_([AB])", r"lora_linear_layer.\1", name),
    )
    for spelled in ways:
        old = {spelled(name).replace(".A.", ".down.").replace(".B.", ".up."): array for name, array in arrays.items()}
        assert old.keys() != arrays.keys()
        same(read(write(tmp_path / "b.safetensors", old), "text"), wanted)
    # What went down alike is one again, so nothing has grown.
    same(merging(model.params, wanted), merging(model.params, adapter))
    assert {path: part["a"].shape for path, part in wanted.factors.items()} == {
        path: part["a"].shape for path, part in adapter.factors.items()
    }


def test_the_authors_names_of_xl():
    """As they are in files of XL: with two blocks a level, of which the first has no attention."""
    layers = {
        "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
        "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.1.attentions.0.transformer_blocks.1.norm": "input_blocks.4.1.transformer_blocks.1.norm",
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
        "up_blocks.0.attentions.2.proj_in": "output_blocks.2.1.proj_in",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.2.resnets.0.conv_shortcut": "output_blocks.6.0.skip_connection",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_out": "out.2",
    }
    _, table, _ = network()
    found = spellings_of(table, layers)
    for layer, name in layers.items():
        assert found[name] == found[name.replace(".", "_")] == layer


def test_a_folder_of_peft_is_read(tmp_path):
    arrays = {SPELLINGS["peft's own"](name): array for name, array in tensors().items()}
    write(tmp_path / "adapter_model.safetensors", arrays)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {r"attn2\.to_k": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = read(tmp_path)
    gains = found.gains["middle_mixer/layer_0/to_text/kv/kernel"], found.gains["middle_mixer/layer_0/to_text/q/kernel"]
    root = math.sqrt(2)
    np.testing.assert_allclose(gains[0], np.diag([2 / root, 8 / root])[[0, 0, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(gains[1], np.full((2, 1), 8 / root), rtol=1e-6)
    same(found.factors, reference().factors)


def test_what_was_joined_is_written_and_has_the_same_effect(tmp_path):
    model, table, _ = network()
    other = start(model.params, jax.random.key(0), targets=("*attention/qkv", "first"), rank=3)
    both = joined([scaled(reference(), 0.5), other._replace(factors=stirred(other.factors, 0.1))])
    save_lora(tmp_path / "a.safetensors", export_lora(both, table, model.params))
    wanted, found = (merging(model.params, one) for one in (both, read(tmp_path / "a.safetensors")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_several_networks_share_a_file_and_none_is_passed_over(tmp_path):
    model, table, part = network("text")
    text = start(model.params, jax.random.key(0), targets=("*/dense_1",), rank=2)
    unet, rules, _ = network()
    exported = export_lora(reference(), rules, unet.params), export_lora(text, table, model.params, part=part)
    save_lora(tmp_path / "a.safetensors", *exported)
    assert parts_of(tmp_path / "a.safetensors") == ["denoiser", "text_encoder"]
    with pytest.raises(ValueError, match="also has adapters of text_encoder; read them with their own table"):
        read(tmp_path / "a.safetensors")
    same(read(tmp_path / "a.safetensors", leave=("text_encoder",)), reference())
    same(read(tmp_path / "a.safetensors", "text", leave=("denoiser",)), text)
    with pytest.raises(ValueError, match="two networks have adapters of the same names"):
        save_lora(tmp_path / "b.safetensors", exported[0], exported[0])


PLACE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = f"{PLACE}.lora.down.weight", f"{PLACE}.lora.up.weight"


@pytest.mark.parametrize(
    ("change", "noted", "words"),
    [
        ({UP: None}, {}, f"is not whole: {PLACE[5:]} has no up"),
        ({DOWN: None}, {}, "has no down"),
        ({f"{PLACE}.alpha": np.float32(1), UP: None, DOWN: None}, {}, "has no down, .* has no up"),
        ({UP: np.zeros((32, 3), np.float32)}, {}, r"down by \(2, 32\) and up by \(32, 3\), which are of no one rank"),
        ({DOWN: np.zeros((2, 40), np.float32)}, {}, r"to_q is \(32, 32\) and its adapter is for \(32, 40\)"),
        ({UP: np.zeros((40, 2), np.float32)}, {}, r"to_q is \(32, 32\) and its adapter is for \(40, 32\)"),
        ({DOWN: np.zeros((2, 32), np.int8)}, {}, "is int8; adapters are of floating point"),
        (
            {f"{PLACE}.lora_magnitude_vector": np.zeros(32, np.float32)},
            {},
            "1 tensors that are no adapters of layers.*vec",
        ),
        (
            {"unet.mid.to_q.lora.up.weight": np.zeros((1, 1), np.float32)},
            {},
            "no adapters of layers .* unet.mid.to_q.lora",
        ),
        ({f"{PLACE}.lora_A.weight": np.zeros((2, 32), np.float32)}, {}, "two adapters of mid_block.*attn1.to_q"),
        ({f"{PLACE}.alpha": np.ones(2, np.float32)}, {}, r"alpha is of shape \(2,\) and not one number"),
        ({}, {"unet.r": 3}, "noted to be of another rank than 2"),
        ({}, {"unet.use_dora": True}, "use_dora=True; known is False"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, noted, words):
    arrays = {name: array for name, array in (tensors() | change).items() if array is not None}
    with pytest.raises(ValueError, match=words):
        read(write(tmp_path / "a.safetensors", arrays, **noted))


def test_what_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has none of pytorch_lora_weights.safetensors"):
        read(tmp_path)
    with pytest.raises(ValueError, match="it has nothing for text_encoder"):
        read(LORA, "text", leave=("denoiser",))
    with pytest.raises(ValueError, match="unknown part 'unet'"):
        load_lora(LORA, TEXT, {}, part="unet")
    model, table, _ = network()
    with pytest.raises(ValueError, match="nothing to write"):
        save_lora(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="unknown style 'kohya'. Known: diffusers, peft"):
        export_lora(reference(), table, model.params, style="kohya")


def pipeline(unet, text):
    """Build their pipeline of the two that adapters are for."""
    diffusers: Any = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    parts: Any = dict.fromkeys(("vae", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.DDIMScheduler()
    return diffusers.StableDiffusionPipeline(
        unet=unet, text_encoder=text, scheduler=scheduler, requires_safety_checker=False, **parts
    )


@pytest.mark.slow
@pytest.mark.parametrize("style", sorted(STYLES))
def test_what_is_written_is_opened_by_diffusers(style, tmp_path):
    """Of convolutions too, with ranks and alphas of their own, and of the text encoder in the same file."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    unet, table, _ = network()
    text, rules, part = network("text")
    one, two = (
        start(model.params, jax.random.key(3), targets=targets, rank=rank, alpha={"*qkv": 3, "*": 2})
        for model, targets, rank in (
            (unet, ("*attention/*", "*/dense_1", "*conv_1", "*/in", "first"), {"*qkv": 2, "*conv*": 3, "*": 1}),
            (text, ("*attention/*", "*/dense_2"), {"*": 2}),
        )
    )
    one, two = (adapter._replace(factors=stirred(adapter.factors, 0.2)) for adapter in (one, two))
    exported = (
        export_lora(one, table, unet.params, style=style),
        export_lora(two, rules, text.params, part=part, style=style),
    )
    save_lora(tmp_path / "pytorch_lora_weights.safetensors", *exported)
    pipe = pipeline(
        diffusers.UNet2DConditionModel.from_pretrained(UNET), transformers.CLIPTextModel.from_pretrained(CLIP_TEXT)
    )
    pipe.load_lora_weights(tmp_path)
    io, words = np.load(UNET / "io.npz"), np.load(CLIP_TEXT / "io.npz")["in/input_ids"]
    inputs = [torch.tensor(io[f"in/{name}"]) for name in ("sample", "timestep", "encoder_hidden_states")]
    with torch.no_grad():
        image, told = (
            pipe.unet(*inputs).sample.numpy(),
            pipe.text_encoder(torch.tensor(words)).last_hidden_state.numpy(),
        )
    t = np.asarray(io["in/timestep"], np.float32)
    params, cond = merging(unet.params, one), {"text": io["in/encoder_hidden_states"]}
    found = np.moveaxis(np.asarray(computing()(params, np.moveaxis(io["in/sample"], 1, -1), t, cond)), -1, 1)
    np.testing.assert_allclose(found, image, **CLOSE)
    np.testing.assert_allclose(text.apply(merging(text.params, two), words).tokens, told, **CLOSE)


@pytest.mark.slow
def test_what_diffusers_writes_is_read(tmp_path):
    """With ranks by pattern and rank-stabilised alphas (Kalajdzievski 2023)."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(UNET)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["to_q", "to_k", "conv1", "proj_in", "ff.net.0.proj", "time_emb_proj"],
        rank_pattern={"attn1.to_q": 4, r"mid_block.*conv1": 1},
        alpha_pattern={"attn1.to_q": 5},
        use_rslora=True,
    )
    theirs.add_adapter(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    theirs.save_lora_adapter(tmp_path)
    model, table, _ = network()
    found = load_lora(tmp_path, table, model.params)
    io = np.load(UNET / "io.npz")
    inputs = [torch.tensor(io[f"in/{name}"]) for name in ("sample", "timestep", "encoder_hidden_states")]
    with torch.no_grad():
        wanted = theirs(*inputs).sample.numpy()
    t = np.asarray(io["in/timestep"], np.float32)
    inputs = np.moveaxis(io["in/sample"], 1, -1), t, {"text": io["in/encoder_hidden_states"]}
    ours = computing()(merging(model.params, found), *inputs)
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 1), wanted, **CLOSE)
