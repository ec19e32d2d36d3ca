"""Laws of paths through tables."""

import numpy as np
import pytest

from diffusion_jax.process import table
from diffusion_jax.process.schedule import reaches_clean
from tests.laws import at, slope_at

ROWS = 20
BETAS = np.linspace(1e-3, 0.4, ROWS)
KEPT = np.cumprod(1 - BETAS)
TIMES = np.arange(1, ROWS + 1) / ROWS
RISE = np.arange(1, ROWS + 2) / (ROWS + 1)  # the straight path, pure noise included


def straight():
    return table.tabulated(1 - RISE[:-1], RISE[:-1])


def test_rows_are_met_at_their_times(x64):
    tables = table.betas(BETAS), table.alpha_bar(KEPT), table.tabulated(np.sqrt(KEPT), np.sqrt(1 - KEPT))
    for path in tables:
        np.testing.assert_allclose(at(path.alpha, TIMES), np.sqrt(KEPT), rtol=1e-13)
        np.testing.assert_allclose(at(path.sigma, TIMES), np.sqrt(1 - KEPT), rtol=1e-13)
        np.testing.assert_allclose(at(path.time, at(path.log_snr, TIMES)), TIMES, rtol=1e-13)


def test_rows_are_met_in_float32():
    path = table.betas(BETAS)
    np.testing.assert_allclose(at(path.alpha, TIMES), np.sqrt(KEPT), rtol=2e-6)
    np.testing.assert_allclose(at(path.sigma, TIMES), np.sqrt(1 - KEPT), rtol=2e-6)


def test_small_betas_lose_nothing(x64):
    """1 - prod(1 - beta) cancels; the table must not."""
    path = table.betas(np.full(ROWS, 1e-12))
    np.testing.assert_allclose(at(path.sigma, TIMES) ** 2, np.arange(1, ROWS + 1) * 1e-12, rtol=1e-10)


def test_logarithms_are_linear_between_rows(x64):
    path = straight()
    rows = at(path.log_snr, TIMES)
    between = at(path.log_snr, TIMES[:-1] + 0.25 / ROWS)
    np.testing.assert_allclose(between, 0.75 * rows[:-1] + 0.25 * rows[1:], rtol=1e-11, atol=1e-12)
    nodes = np.append(0, TIMES)
    log_size = lambda t: np.log(np.hypot(at(path.alpha, t), at(path.sigma, t)))
    middle = log_size((nodes[1:] + nodes[:-1]) / 2)
    np.testing.assert_allclose(middle, (log_size(nodes[1:]) + log_size(nodes[:-1])) / 2, rtol=1e-11, atol=1e-14)


def test_clean_data_lie_before_the_first_row():
    path = table.betas(BETAS)
    assert reaches_clean(path) and at(path.alpha, 0.0) == 1
    near, far = at(path.sigma, np.asarray([0.01, 0.02]))
    assert far**2 / near**2 == pytest.approx(2, rel=2e-3)  # the variance grows like t


def test_a_first_row_without_noise_is_the_clean_end(x64):
    with_clean = table.tabulated(np.append(1, 1 - RISE[:-1]), np.append(0, RISE[:-1]))
    for form in ("alpha", "sigma"):
        mine, other = getattr(with_clean, form), getattr(straight(), form)
        np.testing.assert_array_equal(at(mine, np.linspace(0, 1, 64)), at(other, np.linspace(0, 1, 64)))


@pytest.mark.parametrize(("t", "h"), [(0.0, 1e-7), (1 / ROWS, 1e-7), (0.35, 1e-7), (1.0, -1e-7)])
def test_derivatives_hold_at_the_nodes(t, h, x64):
    """Even at both ends, where t sits on a boundary: the limit of difference quotients, from the right inside."""
    for form in (straight().alpha,) if t == 0 else (straight().alpha, straight().sigma):
        here, there = at(form, np.asarray([t, t + h]))
        assert float(slope_at(form, t)) == pytest.approx((there - here) / h, rel=1e-4)


def test_pure_noise_in_the_last_row_is_a_time_of_the_table():
    path = table.tabulated(1 - RISE, RISE)
    assert path.span[1] == 1.0
    assert at(path.alpha, 1.0) == 0 and at(path.sigma, 1.0) == 1
    assert np.isneginf(at(path.log_snr, 1.0)) and at(path.time, -np.inf) == 1
    t = np.asarray([0.955, 0.98, 0.999, 1.0])
    for form in (path.alpha, path.sigma):
        assert np.all(np.isfinite(at(form, t))) and np.all(np.isfinite(slope_at(form, t)))
    assert float(slope_at(path.alpha, 1.0)) == pytest.approx(float(-at(path.alpha, 0.999) / 0.001), rel=1e-2)
    np.testing.assert_allclose(at(path.time, at(path.log_snr, t)), t, atol=2e-6)
    assert np.all(np.diff(at(path.log_snr, t)) < 0)


def test_a_beta_of_one_ends_in_pure_noise():
    path = table.betas(np.append(BETAS, 1.0))
    assert at(path.alpha, 1.0) == 0 and path.span[1] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table.tabulated([1.0, 0.5], [0.5]), "rows of one length"),
        (lambda: table.tabulated([[1.0]], [[0.5]]), "rows of one length"),
        (lambda: table.tabulated([], []), "rows of one length"),
        (lambda: table.tabulated([1.0, np.nan], [0.1, 0.2]), "finite and not negative"),
        (lambda: table.tabulated([1.0, -0.5], [0.1, 0.2]), "finite and not negative"),
        (lambda: table.tabulated([0.5, 0.9], [0.8, 0.3]), "order the rows from clean to noisy"),
        (lambda: table.tabulated([0.5, 0.5], [0.8, 0.8]), "must fall strictly"),
        (lambda: table.tabulated([1.0, 0.0], [0.0, 1.0]), "at least one row with both signal and noise"),
        (lambda: table.alpha_bar([0.9, 1.1]), r"alpha_bar: .*in \[0, 1\]"),
        (lambda: table.alpha_bar([[0.9, 0.8]]), "alpha_bar: values must be one row"),
        (lambda: table.betas([0.1, 0.0]), r"betas: .*in \(0, 1\]"),
        (lambda: table.betas(0.1), "betas: values must be one row"),
    ],
)
def test_bad_tables_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
