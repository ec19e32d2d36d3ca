"""Control networks: they begin as nothing, learn alone, and say what fits where."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.nets.controlnet import clone, controlled, controlnet, example, falling, scaled, summed
from diffusion_jax.nets.network import apply_of, initialize, shapes_of
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import start_state
from diffusion_jax.training.step import make_train_step
from tests.laws import quick
from tests.nets.tiny import build, inputs, started, stirred

HINTED: Any = {"hint_channels": 1, "hint_widths": (3, 5)}
PLAIN: Any = {"attention": ()}
TINIEST: Any = {"attention": (), "multipliers": (1,)}  # what compiles fastest


def control_of(kind, **changes):
    """Return the control network of a kind of U-Net."""
    return controlnet(build(kind, **changes), **HINTED)  # pyright: ignore[reportArgumentType]


def hinted(kind, batch=2, **changes):
    """Return (x, t, cond) with a hint twice as large as x."""
    x, t, cond = inputs(kind, batch, **changes)
    return x, t, {**cond, "hint": np.random.default_rng(3).normal(size=(batch, 16, 16, 1)).astype(np.float32)}


@functools.cache
def pair(kind, **changes):
    """Return the two as one, and the parameters of a U-Net that has learned and of what starts from it."""
    module, (apply, params) = control_of(kind, **changes), started(kind, **changes)
    params = stirred(params)
    both = {"network": params, "control": clone(params, module, jax.random.key(0))}
    return controlled(apply, answers_of(module)), both


def answers_of(module) -> Any:
    """Return a control network as a pure function."""
    return apply_of(module)


@pytest.mark.parametrize("kind", quick(["tiniest", "ddpm", "ncsnpp", "adm", "text"], "tiniest"))
def test_a_clone_changes_nothing(kind):
    """To the bit, operation by operation; a compiler may sum in another order beside more to compute."""
    kind, changes = ("ddpm", TINIEST) if kind == "tiniest" else (kind, {})
    apply, params = pair(kind, **changes)
    x, t, cond = hinted(kind)
    alone = started(kind, **changes)[0](params["network"], x, t, {name: cond[name] for name in cond if name != "hint"})
    np.testing.assert_array_equal(apply(params, x, t, cond), alone)
    moved = {**params["control"], "zero_0": stirred(params["control"]["zero_0"])}
    assert np.abs(apply({**params, "control": moved}, x, t, cond) - alone).max() > 1e-2


def test_only_the_control_network_learns_its_zeros_first():
    """Whatever the optimizer decays, the U-Net keeps its bits; the last of the hint learns once they are not zero."""
    apply, params = pair("ddpm", **TINIEST)
    x, _, cond = hinted("ddpm")
    spec = {"name": "adamw", "weight_decay": 0.5, "decayed": "all"}
    optimizer, _ = make_optimizer(spec, {"name": "constant", "peak": 1e-2}, held=("network",))
    loss = denoising_loss(apply, SCHEDULES["rectified"](), prediction="velocity")
    state = start_state(params, optimizer, {}, jax.random.key(0))
    step = jax.jit(make_train_step(loss, optimizer, {}))
    for taken in (1, 2):
        state, metrics = step(state, {"x": x, "cond": cond})
        assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
        for name, value in state.params["control"].items():
            if name.startswith("zero_"):
                assert all((leaf != 0).any() for leaf in jax.tree.leaves(value)), f"{name} does not learn"
        assert (state.params["control"]["hint"]["last"]["kernel"] != 0).any() == (taken == 2)
    jax.tree.map(np.testing.assert_array_equal, state.params["network"], params["network"])


def test_every_parameter_counts_and_examples_are_kept_apart():
    module = control_of("ddpm", **PLAIN)
    params = stirred(initialize(module, jax.random.key(0), example(module)))
    x, t, cond = hinted("ddpm", **PLAIN)

    @jax.jit
    def run(params, hint):
        def first(params, hint):
            return sum(jnp.sum(h[0] ** 2) for h in answers_of(module)(params, x, t, {"hint": hint}))

        return jax.grad(first, (0, 1))(params, hint)

    slope, of_hint = run(params, cond["hint"])
    for path, leaf in jax.tree.leaves_with_path(slope):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, f"{jax.tree_util.keystr(path)} plays no part"
    assert np.abs(of_hint[0]).max() > 0
    np.testing.assert_array_equal(of_hint[1], 0)


@pytest.mark.parametrize("kind", quick(["ddpm", "ncsnpp", "adm", "text"], "text"))
def test_every_residual_unet_takes_what_its_control_network_answers(kind):
    """In bfloat16 too, with parameters and answers in float32; and by one pixel, which is for all of them."""
    module, base = control_of(kind, dtype="bfloat16"), build(kind, dtype="bfloat16")
    x, t, cond = hinted(kind)
    params = shapes_of(module, (x, t, cond))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    control = jax.eval_shape(apply_of(module), params, x, t, cond)
    assert {h.dtype for h in control} == {jnp.dtype("float32")}
    assert [h.shape[1] for h in control] == [8, 8, 4, 4, 4]
    del cond["hint"]
    params = shapes_of(base, (x, t, cond))
    for given in (control, tuple(jax.ShapeDtypeStruct((2, 1, 1, h.shape[-1]), h.dtype) for h in control)):
        out = jax.eval_shape(apply_of(base), params, x, t, {**cond, "control": given})
        assert out.shape[:3] == x.shape[:3] and out.dtype == jnp.float32


def test_answers_are_scaled_and_added():
    answers = [tuple(jnp.full((1, 2, 2, 3), 10.0 * n + k) for k in range(3)) for n in range(2)]
    assert [float(h.max()) for h in scaled(answers[1], 0.5)] == [5.0, 5.5, 6.0]
    assert [float(h.max()) for h in scaled(answers[1], (1.0, 0.0, 2.0))] == [10.0, 0.0, 24.0]
    assert [float(h.max()) for h in summed(*answers)] == [10.0, 12.0, 14.0]
    np.testing.assert_allclose(falling(3), [0.1, 10**-0.5, 1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="one number, or one for each of 3"):
        scaled(answers[0], (1.0, 2.0))
    with pytest.raises(ValueError, match=r"are \[2, 3\] arrays"):
        summed(answers[0], answers[1][1:])


def test_a_clone_is_of_its_unet():
    module, (_, params) = control_of("ddpm"), started("ddpm")
    cloned = clone(params, module, jax.random.key(0))
    own = {name for name in cloned if name == "hint" or name.startswith("zero_")}
    assert own == {"hint", "zero_middle", *(f"zero_{place}" for place in range(4))}
    for name in cloned.keys() - own:
        jax.tree.map(np.testing.assert_array_equal, cloned[name], params[name])
    with pytest.raises(ValueError, match="down_1_mixer_0/attention/out/bias is not there; it must be .16,."):
        clone(started("ddpm", **PLAIN)[1], module, jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hint": None}, "needs 'hint'"),
        (
            {"hint": np.zeros((2, 8, 8, 1))},
            r"must be \(2, 16, 16, 1\).*2 by 2 pixels of it are one",
        ),
        ({"control": ()}, "only a U-Net hears"),
    ],
)
def test_hints_that_do_not_fit_are_refused(change, words):
    x, t, cond = hinted("ddpm")
    cond = {name: value for name, value in {**cond, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        shapes_of(control_of("ddpm"), (x, t, cond))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("ddpm", {"hint": np.zeros((2, 16, 16, 1))}, "for a control network beside it: see nets/controlnet.py"),
        ("ddpm", {"control": np.zeros((2, 8, 8, 8))}, "this U-Net takes a tuple of 5"),
        ("ddpm", {"control": (np.zeros((2, 8, 8, 8)),) * 4}, "is 4 arrays.*each of the 4 features"),
        (
            "ddpm",
            {"control": (np.zeros((2, 8, 8, 8)),) * 5},
            r"\[2\] has shape \(2, 8, 8, 8\); it must be \(2, 4, 4, 8\)",
        ),
        ("dit", {"control": ()}, "only a U-Net hears"),
    ],
)
def test_control_that_does_not_fit_is_refused(kind, change, words):
    x, t, cond = inputs(kind)
    with pytest.raises(ValueError, match=words):
        shapes_of(build(kind), (x, t, {**cond, **change}))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("2015", {}, "blocks are plain"),
        ("ddpm", {"hint_channels": 0}, "hint_channels is 0"),
        ("ddpm", {"hint_widths": ()}, "the number of hint_widths is 0"),
        ("ddpm", {"hint_widths": (3, 0)}, "hint_widths.1. is 0"),
        ("ddpm", {"pool": "max"}, "unknown pool of controlnet"),
        ("ddpm", {"middle_blocks": 3}, "middle_blocks is 3"),
    ],
)
def test_control_networks_that_cannot_be_are_refused(kind, change, words):
    with pytest.raises(ValueError, match=words):
        controlnet(build(kind), **{**HINTED, **change})  # pyright: ignore[reportArgumentType]
