"""The language of grids: sizes, orders and names, and what cannot be meant."""

import numpy as np
import pytest

from diffusion_jax.ablation.grid import (
    chain,
    choice,
    log_uniform,
    names,
    param,
    prefix,
    product,
    sample,
    seeds,
    uniform,
    zipped,
)

A, B, C = param("a", [1, 2]), param("b", ["x", "y", "z"]), param("c", [{"name": "cosine"}])


def test_a_product_has_every_combination_once_and_the_last_varies_fastest():
    grid = product(A, B, seeds(2))
    assert len(grid) == 12 == len({str(arm) for arm in grid})
    assert [arm["seed"] for arm in grid] == [0, 1] * 6
    assert [arm["a"] for arm in grid] == [1] * 6 + [2] * 6
    assert product(A) == A and product() == ({},)
    assert product(product(A, B), C) == product(A, product(B, C))


def test_zipping_chaining_and_prefixing():
    assert zipped(A, param("b", "xy")) == ({"a": 1, "b": "x"}, {"a": 2, "b": "y"})
    assert chain(A, B) == A + B
    assert prefix("training", product(A, B)) == product(prefix("training", A), prefix("training", B))
    assert prefix("x", A) == ({"x.a": 1}, {"x.a": 2})


def test_what_is_drawn_belongs_to_its_place():
    laws = {"rate": log_uniform(1e-4, 1e-2), "drop": uniform(0.0, 0.5), "kind": choice(["p", "q"])}
    many = sample(200, laws, seed=3)
    assert sample(5, laws, seed=3) == many[:5] != sample(5, laws, seed=4)
    rates = np.log10([arm["rate"] for arm in many])
    assert rates.min() >= -4 and rates.max() <= -2
    assert abs(rates.mean() + 3) < 5 * 2 / np.sqrt(12 * 200)
    assert {arm["kind"] for arm in many} == {"p", "q"}
    assert all(0 <= arm["drop"] <= 0.5 for arm in many)


def test_names_tell_arms_apart_and_can_be_folders():
    grid = product(param("loss.prediction", ["eps", {"name": "v", "of": 2.5}]), param("x.name", ["a/b", "a"]), seeds(2))
    found = names(grid)
    assert len(set(found)) == len(grid)
    assert all("/" not in name and " " not in name for name in found)
    assert found[0] == "prediction-eps_name-a~b_seed-0" and "prediction-v(of=2.5)" in found[4]
    assert names(product(param("a.rate", [1]), param("b.rate", [2]))) == ["a.rate-1_b.rate-2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product(A, A), "'a' and 'a' would both be set"),
        (lambda: product(param("loss", [1]), param("loss.times", [2])), "'loss' and 'loss.times'"),
        (lambda: zipped(A, B), "2 and 3 arms"),
        (lambda: chain(A, A), "comes twice"),
        (lambda: param("a", []), "0 values"),
        (lambda: sample(0, {}, seed=0), "count is 0"),
        (lambda: log_uniform(0, 1), "must be positive"),
        (lambda: names(param("a", ["x y", "x~y"])), "both be called 'a-x~y'"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
