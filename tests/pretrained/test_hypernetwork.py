"""Hypernetworks from files as the web interface writes them."""

from collections import OrderedDict

import numpy as np
import pytest

from diffusion_jax.pretrained.hypernetwork import load_hypernetwork
from tests.pretrained.test_weights import Storage, strides_of, tensor, write_zip


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def halves(width, numbers=(0, 2), norms=(), inner=2):
    """Make the state dicts of keys and of values; dense layers and norms have these numbers."""
    shapes = dict(zip(numbers, [(inner * width, width), (width, inner * width)], strict=True))
    shapes |= dict(zip(norms, [(inner * width,), (width,)], strict=False))
    return [
        {
            f"linear.{number}.{end}": normal(*(shape if end == "weight" else shape[:1]), seed=100 * half + number)
            for number, shape in sorted(shapes.items())
            for end in ("weight", "bias")
        }
        for half in (1, 2)
    ]


def write(path, pairs, **more):
    """Write a file: pairs of state dicts by width, and words."""
    storages, tree = {}, dict(more)
    for width, pair in pairs.items():
        noted = []
        for named in pair:
            state = OrderedDict()
            for name, array in named.items():
                key = str(len(storages))
                storages[key] = array
                state[name] = tensor(Storage(key, array), array.shape, strides_of(array))
            noted.append(state)
        tree[width] = tuple(noted)
    write_zip(path, tree, storages)
    return path


def layers(named, numbers, x, bend, bent_end):
    """Evaluate f as the file has it."""
    h = x
    for place, number in enumerate(numbers):
        h = h @ named[f"linear.{number}.weight"].T + named[f"linear.{number}.bias"]
        h = bend(h) if place == 0 or bent_end else h
    return h


@pytest.mark.parametrize(("words", "bent_end"), [({"activate_output": False}, False), ({}, True)])
def test_it_computes_what_the_file_says(tmp_path, words, bent_end):
    pairs = {4: halves(4), 6: halves(6)}
    words = {
        "activation_func": "relu",
        "layer_structure": [1, 2, 1],
        "name": "a",
        "step": 7,
        "use_dropout": False,
        **words,
    }
    found = load_hypernetwork(write(tmp_path / "a.pt", pairs, **words))
    assert found.config == words
    for width in pairs:
        x = normal(2, width)
        for got, named in zip(found.apply(found.params, x[None]), pairs[width], strict=True):
            wanted = x + layers(named, (0, 2), x, lambda h: np.maximum(h, 0), bent_end)
            np.testing.assert_allclose(got[0], wanted, rtol=1e-4, atol=1e-5)


def test_what_the_file_does_not_say_is_in_its_shapes(tmp_path):
    """No words at all, and the names of the first files, whose two layers were linear1 and linear2."""
    pair = halves(4, (0, 1), inner=3)
    first = [
        {name.replace("linear.0", "linear1").replace("linear.1", "linear2"): a for name, a in half.items()}
        for half in pair
    ]
    found, x = load_hypernetwork(write(tmp_path / "a.pt", {4: first})), normal(2, 4)
    got = found.apply(found.params, x[None])[0][0]
    np.testing.assert_allclose(got, x + layers(pair[0], (0, 1), x, lambda h: h, False), rtol=1e-4, atol=1e-5)


def test_norms_are_told_from_dense_layers(tmp_path):
    found = load_hypernetwork(write(tmp_path / "a.pt", {4: halves(4, (0, 4), (2, 5))}, activation_func="swish"))
    assert found.params["keys_4"].keys() == {"dense_0", "norm_0", "dense_1", "norm_1"}


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not map widths to pairs"):
        load_hypernetwork(write(tmp_path / "a.pt", {"4": halves(4)}))
    with pytest.raises(ValueError, match="activation_func of .* 'Softmax2d'"):
        load_hypernetwork(write(tmp_path / "b.pt", {4: halves(4)}, activation_func="Softmax2d"))
    with pytest.raises(ValueError, match="does not fit"):
        load_hypernetwork(write(tmp_path / "c.pt", {4: halves(4)}, layer_structure=[1, 3, 1]))
    with pytest.raises(ValueError, match=r"lacks 4.values.linear.2.bias|lacks"):
        broken = halves(4)
        del broken[1]["linear.2.bias"]
        load_hypernetwork(write(tmp_path / "d.pt", {4: broken}))


@pytest.mark.slow
def test_torch_writes_what_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    own = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)) for _ in range(2)]
    pair = tuple(OrderedDict((f"linear.{name}", part) for name, part in one.state_dict().items()) for one in own)
    torch.save({4: pair, "activation_func": "tanh", "activate_output": False}, tmp_path / "a.pt")
    found, x = load_hypernetwork(tmp_path / "a.pt"), normal(2, 4)
    for got, one in zip(found.apply(found.params, x[None]), own, strict=True):
        np.testing.assert_allclose(got[0], x + one(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
