"""Other paces of every path obey the laws of paths, and are those of the papers and of the reference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.naming import choose
from diffusion_jax.process import discrete, pace
from diffusion_jax.process.pace import PACES
from tests import laws
from tests.laws import at, slope_at

NAMES = sorted(laws.SCHEDULE_CASES)
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def case(name):
    return laws.SCHEDULE_CASES[name]()


def paced(name, kind, factor=None):
    """The schedule at that pace; `factor` replaces the usual one."""
    return PACES[kind](case(name), **({"factor": factor} if factor else laws.PACE_CASES[kind]))


def allowed(name, kind):
    beyond = kind == "shift_log_snr" and name == "tabulated"
    # The sigmoid path has alpha(1) = 0 already, with an infinite slope.
    return (
        not beyond
        and (name, kind) != ("sigmoid", "zero_terminal")
        and (kind != "zero_terminal" or name in laws.VARIANCE_PRESERVING)
    )


KINDS_OF_PATH = ("linear_beta", "karras", "cosine", "rectified", "betas")
pairs = pytest.mark.parametrize(("name", "kind"), [(n, k) for n in KINDS_OF_PATH for k in PACES if allowed(n, k)])


def test_every_pace_has_a_case():
    assert set(laws.PACE_CASES) == set(PACES)


@pairs
def test_laws_of_paths_hold_at_any_pace(name, kind):
    path = paced(name, kind)
    laws.assert_finite(path, np.float32)
    laws.assert_ends(path, np.float32)
    laws.assert_falls(path, np.float32)


@pairs
def test_any_pace_is_one_path_and_inverts(name, kind, x64):
    path = paced(name, kind)
    laws.assert_times_invert(path, np.float64)
    laws.assert_consistent(path)
    square = path.alpha(laws.inside(path)) ** 2 + path.sigma(laws.inside(path)) ** 2
    assert (np.max(np.abs(square - 1)) < 1e-12) == (name in laws.VARIANCE_PRESERVING)


@every
def test_shifting_by_one_changes_nothing(name):
    assert pace.shift(case(name), 1.0) is case(name)
    assert pace.shift_log_snr(case(name), 1.0) is case(name)
    assert pace.truncate(case(name), 0.0, 1.0) is case(name)


@every
@pytest.mark.parametrize("kind", ["shift", "shift_log_snr"])
def test_shifts_compose_and_undo_each_other(name, kind, x64):
    if name in ("tabulated", "geometric", "karras", "sub_vp") and kind == "shift_log_snr":
        kind = "shift"  # beyond their ends there is no point to return from
    move, t = PACES[kind], laws.inside(case(name))
    back = move(move(case(name), 3.0), 1 / 3.0)
    twice, once = move(move(case(name), 3.0), 2.0), move(case(name), 6.0)
    for form in ("alpha", "sigma"):
        np.testing.assert_allclose(getattr(back, form)(t), getattr(case(name), form)(t), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(getattr(twice, form)(t), getattr(once, form)(t), rtol=1e-9, atol=1e-15)


@every
def test_a_shift_is_the_mobius_map_of_time_and_keeps_its_ends(name, x64):
    t, f = np.linspace(0, 1, laws.COUNT), 3.0
    path = pace.shift(case(name), f)
    for form in ("alpha", "sigma"):
        want = getattr(case(name), form)(f * t / (1 + (f - 1) * t))
        np.testing.assert_allclose(getattr(path, form)(t), want, rtol=1e-11, atol=1e-15)


def test_a_shift_of_the_straight_path_lowers_log_snr(x64):
    t = np.linspace(0.01, 0.99, laws.COUNT)
    path, other = pace.shift(case("rectified"), 3.0), pace.shift_log_snr(case("rectified"), 3.0)
    np.testing.assert_allclose(path.log_snr(t), case("rectified").log_snr(t) - 2 * math.log(3), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(other.sigma(t), path.sigma(t), rtol=1e-11)
    np.testing.assert_allclose(other.alpha(t), path.alpha(t), rtol=1e-11)


@pytest.mark.parametrize("factor", [0.25, 2.0, 8.0])
@pytest.mark.parametrize("name", laws.VARIANCE_PRESERVING)
def test_the_shift_of_log_snr_is_uniform_and_reaches_beyond_the_end(name, factor, x64):
    path, t = paced(name, "shift_log_snr", factor), laws.inside(case(name))
    np.testing.assert_allclose(path.log_snr(t), case(name).log_snr(t) - 2 * math.log(factor), rtol=1e-12)
    np.testing.assert_allclose(
        path.sigma(t) / path.alpha(t), factor * case(name).sigma(t) / case(name).alpha(t), rtol=1e-11
    )
    assert path.span == case(name).span


def test_variance_exploding_paths_are_scaled(x64):
    t = np.linspace(0.3, 1, laws.COUNT)
    for name in ("karras", "geometric"):
        np.testing.assert_allclose(paced(name, "shift_log_snr").sigma(t), 2 * case(name).sigma(t), rtol=1e-12)


def test_a_shift_that_leaves_the_path_is_refused():
    with pytest.raises(ValueError, match=r"shift_log_snr: at t = 1 schedule 'tabulated' .*not reach. Use `shift`"):
        pace.shift_log_snr(case("tabulated"), 2.0)


def test_resolution_and_sequence_shifts_are_shifts(x64):
    t = np.linspace(0, 1, laws.COUNT)
    base = case("rectified")
    np.testing.assert_array_equal(
        pace.resolution_shift(base, pixels=1024**2, base_pixels=256**2).sigma(t), pace.shift(base, 4.0).sigma(t)
    )
    for form, factor in (("exponential", math.exp(0.5)), ("linear", 0.5)):
        got = pace.sequence_shift(base, tokens=256, form=form)
        np.testing.assert_array_equal(got.sigma(t), pace.shift(base, factor).sigma(t))


@pytest.mark.parametrize("factor", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 4, 10, 28])
def test_shifted_uniform_times_are_the_reference(reference, factor, steps):
    want = reference("schedules.npz")[f"flow/explicit/shift{factor}/n{steps}"]
    got = at(pace.shift(case("rectified"), factor).sigma, np.linspace(1, 0, steps + 1))
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("form", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_sequence_shifts_are_the_reference(reference, form, tokens):
    path = pace.sequence_shift(case("rectified"), tokens=tokens, form=form)
    for steps in (4, 10, 28):
        want = reference("schedules.npz")[f"flow/dynamic_{form}/L{tokens}/n{steps}"]
        np.testing.assert_allclose(at(path.sigma, np.linspace(1, 0, steps + 1)), want, atol=2e-6)


def test_a_sequence_shift_with_a_terminal_is_the_reference(reference):
    """The levels 1 ... 1/n at mu = 1, stretched so that the last of them is 0.1."""
    want = reference("schedules.npz")["flow/shift_terminal0.1/n10"]
    path = pace.shift(case("rectified"), math.e)
    last = float(at(path.sigma, 0.1))
    left = at(path.alpha, np.linspace(1, 0.1, 10)) * 0.9 / (1 - last)
    np.testing.assert_allclose(np.append(1 - left, 0), want, atol=2e-6)


@every
def test_truncation_spreads_the_part(name, x64):
    path, t = pace.truncate(case(name), 0.2, 0.7), np.linspace(0, 1, laws.COUNT)
    for form in ("alpha", "sigma", "log_snr"):
        np.testing.assert_allclose(getattr(path, form)(t), getattr(case(name), form)(0.2 + 0.5 * t), rtol=1e-10)
    assert at(path.alpha, 1.0) == at(case(name).alpha, 0.7)
    assert path.span == pytest.approx((max(0.0, (case(name).span[0] - 0.2) / 0.5), 1.0), rel=1e-14)


@pytest.mark.parametrize("name", laws.VARIANCE_PRESERVING)
def test_zero_terminal_ends_in_exactly_pure_noise(name):
    path = pace.zero_terminal(case(name))
    for alpha in (at(path.alpha, 1.0), at(jax.jit(path.alpha), 1.0)):
        assert alpha == 0
    assert path.span == (case(name).span[0], 1.0)
    assert at(path.sigma, 1.0) == pytest.approx(1, abs=2e-7)
    assert np.isneginf(at(path.log_snr, 1.0))
    assert at(path.time, -np.inf) == pytest.approx(1, abs=2e-6)
    # The derivative at the end is that of the old path, rescaled; and alpha falls to the end without a jump.
    old = float(at(case(name).alpha, 1.0))
    if name not in laws.ENDS_IN_NOISE:
        assert slope_at(path.alpha, 1.0) == pytest.approx(slope_at(case(name).alpha, 1.0) / (1 - old), rel=1e-5)
    assert np.all(np.diff(at(path.alpha, np.asarray([0.99, 0.999, 0.9999, 1.0]))) < 0)
    assert pace.zero_terminal(path) == path


@pytest.mark.parametrize("name", laws.VARIANCE_PRESERVING)
def test_zero_terminal_is_exact_in_float64_and_rescales_the_square_root(name, x64):
    path, t = pace.zero_terminal(case(name)), laws.inside(case(name))
    last = float(at(case(name).alpha, 1.0))
    np.testing.assert_allclose(path.alpha(t), (case(name).alpha(t) - last) / (1 - last), atol=1e-14)
    assert at(path.alpha, 1.0) == 0


def test_zero_terminal_is_the_limit_of_the_discrete_rescaling(x64):
    """The discrete one keeps the first alpha-bar, ours keeps alpha(0) = 1: they differ by that first step."""
    world = discrete.scaled_linear()
    rescaled = discrete.from_betas(discrete.rescale_zero_terminal(world.betas))
    t = world.time(np.resize(np.asarray([0, 10, 200, 500, 900, 998, 999]), laws.COUNT))
    ours = pace.zero_terminal(world.schedule)
    np.testing.assert_allclose(ours.alpha(t), rescaled.schedule.alpha(t), rtol=world.betas[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in laws.VARIANCE_PRESERVING])
def test_zero_terminal_refuses_paths_that_do_not_preserve_variance(name):
    with pytest.raises(ValueError, match=f"zero_terminal: schedule '{name}' does not preserve variance"):
        pace.zero_terminal(case(name))


@pytest.mark.parametrize("closed", [True, False])
def test_a_path_from_its_log_snr(closed, x64):
    """The trigonometric path from its log-SNR alone, its inverse given or found."""
    known = case("trigonometric")
    path = pace.from_log_snr(known.log_snr, inverse=known.time if closed else None, span=known.span)
    laws.assert_times_invert(path, np.float64)
    laws.assert_consistent(path)
    laws.assert_ends(path, np.float64)
    t = np.linspace(0, 1, laws.COUNT)
    np.testing.assert_allclose(path.alpha(t), known.alpha(t), rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(path.sigma(t), known.sigma(t), rtol=1e-11, atol=1e-15)


def test_a_found_inverse_has_its_derivative_and_stays_in_the_span():
    path = pace.from_log_snr(lambda t: 10 - 20 * t - 2 * t**2, name="quadratic")
    assert path.name == "quadratic" and path.span == (0.0, 1.0)
    laws.assert_times_invert(path, np.float32)
    laws.assert_finite(path, np.float32)
    t = laws.inside(path, np.float32)[1:-1]
    np.testing.assert_allclose(slope_at(path.time, at(path.log_snr, t)), 1 / slope_at(path.log_snr, t), rtol=1e-4)
    np.testing.assert_allclose(at(path.time, np.asarray([50.0, -50.0])), [0, 1], atol=1e-7)
    backward = at(jax.grad(lambda value: path.time(value).sum()), at(path.log_snr, t))
    np.testing.assert_allclose(backward, 1 / slope_at(path.log_snr, t), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: pace.shift(s, 0.0), "shift: factor is 0.0; it must be finite and greater than 0"),
        (lambda s: pace.shift(s, math.inf), "shift: factor is inf"),
        (lambda s: pace.shift_log_snr(s, -1.0), r"shift_log_snr: factor is -1\.0"),
        (lambda s: pace.resolution_shift(s, pixels=0, base_pixels=1), "resolution_shift: pixels is 0"),
        (lambda s: pace.sequence_shift(s, tokens=0), "sequence_shift: tokens is 0"),
        (lambda s: pace.sequence_shift(s, tokens=1, base_tokens=9, max_tokens=9), "base_tokens is 9 and max_tokens 9"),
        (lambda s: pace.sequence_shift(s, tokens=9, form="exp"), "unknown form of sequence_shift 'exp'"),
        (lambda s: pace.sequence_shift(s, tokens=9, base_shift=-2.0, form="linear"), "shift: factor is -"),
        (lambda s: pace.truncate(s, 0.5, 0.5), r"truncate: the part is \[0.5, 0.5\]"),
        (lambda s: pace.truncate(s, 0.0, 1.5), r"0 <= low < high <= 1"),
        (lambda s: pace.from_log_snr(lambda t: t), "must be finite and fall strictly"),
        (lambda s: pace.from_log_snr(lambda t: -jnp.log(t)), "Give the span on which it does"),
        (lambda s: pace.from_log_snr(lambda t: -t, span=(0.5, 0.5)), r"span is \(0.5, 0.5\)"),
        (lambda s: pace.from_log_snr(lambda t: -jnp.log(t - 0.1), span=(0.2, 1)), "log_snr is nan at t = 0"),
        (lambda s: pace.from_log_snr(lambda t: -t, inverse=lambda value: value), r"inverse\(log_snr\(t\)\) is not t"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make(case("rectified"))


def test_paces_are_chosen_by_name():
    path = choose(PACES, {"name": "shift", "factor": 3.0}, "pace", case("rectified"))
    assert path.name == "shift(rectified, 3)"
    with pytest.raises(ValueError, match="pace 'shift' needs 'factor'"):
        choose(PACES, "shift", "pace", case("rectified"))
