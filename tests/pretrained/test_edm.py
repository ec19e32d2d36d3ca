"""EDM's networks from their pickles, against their definition written out in numpy, in float64."""

import functools
from collections import OrderedDict
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.denoisers.network import make_denoiser
from diffusion_jax.denoisers.precondition import precondition
from diffusion_jax.pretrained.edm import load_edm, table_of
from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays
from diffusion_jax.process.schedules import karras
from tests.pretrained.test_snapshot import layer, written

SONG: dict[str, Any] = {
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "resample_filter": [1, 1],
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "augment_dim": 9,
}
ADM: dict[str, Any] = {
    "model_type": "DhariwalUNet",
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 5,
    "model_channels": 32,
    "channel_mult": [1, 4],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "augment_dim": 9,
}
CLASSES = {"song": 0, "ncsnpp": 5, "adm": 5}
NCSNPP = SONG | {
    "label_dim": 5,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
KEYWORDS = {"song": SONG, "ncsnpp": NCSNPP, "adm": ADM}
KINDS = ["song", "ncsnpp", pytest.param("adm", marks=pytest.mark.slow)]


class Peer:
    """The networks of EDM on images (B, C, H, W); parameters are drawn where they are first used, by their names."""

    def __init__(self, keywords):
        self.keywords, self.weights, self.random = keywords, {}, np.random.default_rng(0)
        self.song = keywords["model_type"] == "SongUNet"
        self.epsilon, self.scale = (1e-6, 0.5**0.5) if self.song else (1e-5, 1.0)
        self.taps = np.array(keywords.get("resample_filter", [1, 1])) / np.sum(keywords.get("resample_filter", 2))
        self.fourier = keywords.get("embedding_type") == "fourier"

    def weight(self, name, *shape):
        if name not in self.weights:
            self.weights[name] = (self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return self.weights[name].astype(np.float64)

    def dense(self, name, x, width):
        return x @ self.weight(f"{name}.weight", width, x.shape[1]).T + self.weight(f"{name}.bias", width)

    def conv(self, name, x, width, size=3):
        kernel, r = self.weight(f"{name}.weight", width, x.shape[1], size, size), size // 2
        padded = np.pad(x, ((0, 0), (0, 0), (r, r), (r, r)))
        rows, columns = x.shape[2:]
        y = sum(
            np.einsum("bchw,oc->bohw", padded[:, :, i : i + rows, j : j + columns], kernel[:, :, i, j])
            for i in range(size)
            for j in range(size)
        )
        return y + self.weight(f"{name}.bias", width)[:, None, None]

    def norm(self, name, x):
        grouped = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
        grouped = grouped - grouped.mean(-1, keepdims=True)
        y = grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + self.epsilon)
        scale, shift = (self.weight(f"{name}.{end}", x.shape[1])[:, None, None] for end in ("weight", "bias"))
        return y.reshape(x.shape) * scale + shift

    def block(self, name, x, emb, width, *, resample=lambda x: x, attend=False):
        moved = resample(x)
        h = self.conv(f"{name}.conv0", resample(silu(self.norm(f"{name}.norm0", x))), width)
        told = self.dense(f"{name}.affine", emb, width if self.song else 2 * width)[:, :, None, None]
        if self.song:
            h = silu(self.norm(f"{name}.norm1", h + told))
        else:
            scale, shift = np.split(told, 2, 1)
            h = silu(self.norm(f"{name}.norm1", h) * (scale + 1) + shift)
        if width != x.shape[1] or (self.song and moved.shape != x.shape):
            moved = self.conv(f"{name}.skip", moved, width, 1)
        x = (self.conv(f"{name}.conv1", h, width) + moved) * self.scale
        return self.attention(name, x) if attend else x

    def attention(self, name, x):
        batch, width = x.shape[:2]
        heads = 1 if self.song else width // 64
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x), 3 * width, 1)
        q, k, v = np.moveaxis(qkv.reshape(batch * heads, width // heads, 3, -1), 2, 0)
        logits = np.einsum("ncq,nck->nqk", q, k) / np.sqrt(width // heads)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        answer = np.einsum("nqk,nck->ncq", weights / weights.sum(-1, keepdims=True), v)
        return (self.conv(f"{name}.proj", answer.reshape(x.shape), width, 1) + x) * self.scale

    def embedding(self, t, label):
        width, half = self.keywords["model_channels"], self.keywords["model_channels"] // 2
        angles = t[:, None] * 10000.0 ** -(np.arange(half) / (half - self.song))
        if self.fourier:
            angles = 2 * np.pi * t[:, None] * self.weight("map_noise.freqs", width)
        waves = (np.sin, np.cos) if self.song else (np.cos, np.sin)
        emb = np.concatenate([wave(angles) for wave in waves], 1)
        self.weight("map_augment.weight", emb.shape[1], 9)  # told nothing
        if label is not None and self.song:
            emb = emb + self.dense("map_label", label * np.sqrt(label.shape[1]), emb.shape[1])
        emb = self.dense("map_layer1", silu(self.dense("map_layer0", emb, 4 * width)), 4 * width)
        if label is not None and not self.song:
            emb = emb + label @ self.weight("map_label.weight", 4 * width, label.shape[1]).T
        return silu(emb)

    def halved(self, x):
        """Filter the plane on which an image lies and take every other pixel."""
        before = len(self.taps) // 2 - 1
        return self.filtered(np.pad(x, ((0, 0), (0, 0), (before, before), (before, before))))

    def filtered(self, x):
        for axis in (2, 3):
            x = np.moveaxis(x, axis, 0)
            count = (len(x) - len(self.taps)) // 2 + 1
            x = np.tensordot(self.taps, np.stack([x[k : k + 2 * count : 2] for k in range(len(self.taps))]), 1)
            x = np.moveaxis(x, 0, axis)
        return x

    def doubled(self, x):
        """Put zeros between pixels and filter; sums of squares grow by four."""
        for axis in (2, 3):
            x = np.moveaxis(x, axis, 0)
            spread = np.zeros((2 * len(x) + 2 * len(self.taps), *x.shape[1:]))
            for k, tap in enumerate(self.taps):
                spread[k : k + 2 * len(x) : 2] += 2 * tap * x
            before = len(self.taps) // 2 - 1
            x = np.moveaxis(spread[before : before + 2 * len(x)], 0, axis)
        return x

    def beside(self, name, image, width):
        """Convolve the plane on which an image lies, then halve it, as a network that sees no border would."""
        reach = len(self.taps) // 2 - 1
        wide = np.pad(image, ((0, 0), (0, 0), (reach + 1, reach + 1), (reach + 1, reach + 1)))
        return self.filtered(self.conv(name, wide, width)[:, :, 1:-1, 1:-1])

    def __call__(self, x, t, label=None):
        k, emb = self.keywords, self.embedding(t, label)
        sizes = [k["img_resolution"] >> level for level in range(len(k["channel_mult"]))]
        widths = [k["model_channels"] * factor for factor in k["channel_mult"]]
        kept, image = [], x
        for level, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            if level:
                x = self.block(f"enc.{size}x{size}_down", x, emb, x.shape[1], resample=self.halved)
                if k.get("encoder_type") == "residual":
                    image = self.beside(f"enc.{size}x{size}_aux_residual", image, x.shape[1])
                    x = image = (x + image) * self.scale
            else:
                x = self.conv(f"enc.{size}x{size}_conv", x, k["model_channels"])
            kept.append(x)
            for place in range(k["num_blocks"]):
                x = self.block(f"enc.{size}x{size}_block{place}", x, emb, width, attend=size in k["attn_resolutions"])
                kept.append(x)
        for size, width in reversed(list(zip(sizes, widths, strict=True))):
            if size == sizes[-1]:
                x = self.block(f"dec.{size}x{size}_in0", x, emb, width, attend=True)
                x = self.block(f"dec.{size}x{size}_in1", x, emb, width)
            else:
                x = self.block(f"dec.{size}x{size}_up", x, emb, x.shape[1], resample=self.doubled)
            for place in range(k["num_blocks"] + 1):
                attend = size in k["attn_resolutions"] and (not self.song or place == k["num_blocks"])
                both = np.concatenate([x, kept.pop()], 1)
                x = self.block(f"dec.{size}x{size}_block{place}", both, emb, width, attend=attend)
        last = f"dec.{sizes[0]}x{sizes[0]}_aux" if self.song else "out"
        return self.conv(f"{last}_conv", silu(self.norm(f"{last}_norm", x)), k["img_channels"])


def silu(x):
    return x / (1 + np.exp(-x))


def pickled(keywords, weights, precond="EDMPrecond"):
    """Return what a pickle holds: layers within layers, one for each part of a name."""

    def nested(entries):
        own = {name: array for name, array in entries.items() if "." not in name}
        inner: dict[str, dict] = {}
        for name, array in entries.items():
            if "." in name:
                first, rest = name.split(".", 1)
                inner.setdefault(first, {})[rest] = array
        filters = {"resample_filter": np.full((1, 1, 2, 2), 0.25, np.float32)}
        return layer("Layer", own, filters if own else {}, {name: nested(part) for name, part in inner.items()})

    net = layer(precond, modules={"model": nested(weights)}, _init_kwargs=keywords)
    return {"ema": net, "loss_fn": None, "dataset_kwargs": OrderedDict()}


@functools.cache
def answered(kind):
    """Return a peer's inputs and its answer; its weights are all drawn after that."""
    peer, rng = Peer(KEYWORDS[kind]), np.random.default_rng(1)
    x, t = rng.normal(size=(2, 3, 8, 8)), np.array([-0.4, 0.7])
    label = np.eye(5)[[3, 1]] * [[1], [0]] if CLASSES[kind] else None  # and an image of no class
    return peer, (x, t, label), peer(x, t, label)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return how networks are read from pickles, each once."""
    folder = tmp_path_factory.mktemp("edm")
    return functools.cache(lambda kind: load_edm(written(folder, pickled(KEYWORDS[kind], answered(kind)[0].weights))))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_computes_is_its_definition(kind, read):
    model, (_, (x, t, label), wanted) = read(kind), answered(kind)
    cond = {} if label is None else {"label": np.array([3, 5])}
    found = jax.jit(model.apply)(model.params, np.moveaxis(x, 1, -1).astype(np.float32), t.astype(np.float32), cond)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_import_export_import_is_the_same_bits(kind, read):
    model, weights = read(kind), answered(kind)[0].weights
    out = export(table_of(model.config), model.params)
    assert out.keys() == weights.keys() - {"map_augment.weight", "map_noise.freqs"}
    for name, array in out.items():
        np.testing.assert_array_equal(array, weights[name])
    again = convert(table_of(model.config), of_arrays(out, "memory"), model.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, again)


@pytest.mark.slow
def test_the_denoiser_is_edms(read):
    """By our preconditioning, on the path on which sigma is the noise level."""
    model, (peer, (x, _, _), _) = read("song"), answered("song")
    schedule = karras()
    t = schedule.time(-2 * np.log(np.float32(1.5)))
    x, sigma = x.astype(np.float32), 1.5
    denoise = make_denoiser(precondition(model.apply, schedule), model.params, schedule, prediction="edm")
    found = np.moveaxis(np.asarray(jax.jit(denoise)(np.moveaxis(x, 1, -1), t).x0), -1, 1)
    whole = sigma**2 + 0.25
    inner = peer(x / np.sqrt(whole), np.full(2, np.log(sigma) / 4))
    np.testing.assert_allclose(found, 0.25 / whole * x + sigma * 0.5 / np.sqrt(whole) * inner, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_type": "skip"}, "encoder_type='skip'; known is 'standard' or 'residual'"),
        ({"embedding_type": "fourier"}, "channel_mult_noise=1; known is 2"),
        ({"embedding_type": "fourier", "channel_mult_noise": 2}, "lacks the frequencies of its waves of time"),
        ({"encoder_type": "residual"}, "lacks enc.4x4_aux_residual.bias"),
        ({"label_dim": 10}, "lacks map_label.bias"),
        ({"model_type": "StyleUNet"}, "is a EDMPrecond of a 'StyleUNet'; known are SongUNet and DhariwalUNet"),
        ({"num_blocks": 2}, "lacks dec.4x4_block2"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        load_edm(written(tmp_path, pickled(SONG | change, answered("song")[0].weights)))
    with pytest.raises(ValueError, match="holds net, but no average"):
        load_edm(written(tmp_path, {"net": pickled(SONG, answered("song")[0].weights)["ema"]}))
