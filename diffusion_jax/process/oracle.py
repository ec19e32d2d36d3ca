"""Data whose diffusion is known in closed form: Gaussian mixtures and finite sets of points.

For x0 ~ sum_k w_k N(mu_k, S_k) and x = alpha x0 + sigma eps, with C_k = alpha^2 S_k + sigma^2 I:

    p_t(x) = sum_k w_k N(x; alpha mu_k, C_k),        r_k = the share of component k in p_t(x)              (1)
    E[x0 | x] = sum_k r_k (mu_k + alpha S_k C_k^-1 (x - alpha mu_k))                                       (2)
    E[eps | x] = sigma sum_k r_k C_k^-1 (x - alpha mu_k) = -sigma grad log p_t(x)                          (3)

A finite data set is a mixture with S_k = 0. Nothing in (1)-(3) is divided by alpha or sigma, so both ends are finite.

The probability flow depends on the path only through its end points. In the angle phi = atan2(sigma, c alpha) and
the state y = x / |(c alpha, sigma)|, where c is the size of the data, it is the same smooth equation on every path:

    dy / dphi = cos(phi) E[eps | y] - sin(phi) E[x0 | y] / c                                                (4)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.noise import example_keys, normal_like
from diffusion_jax.process.schedule import levels, wide
from diffusion_jax.types import Array, Denoiser, Estimate, Key, Schedule, Time

FLOOR = 1e-24  # the least variance: keeps points without spread finite at sigma = 0, in float32 too


class Mixture(NamedTuple):
    """A Gaussian mixture in d dimensions, known to every digit at every noise level.

    Covariances are kept as `variances` (K, d) along the columns of `basis` (K, d, d), or along the axes where it is
    None. `labels` (K,) gives each component's class. Examples may have any shape of d entries. Parameters are held
    in float64 and used in the dtype of x.
    """

    weights: Any
    means: Any
    basis: Any
    variances: Any
    labels: Any

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """Return the exact posterior means, Eq. (2) and (3)."""

        def denoise(x, t):
            flat = _flat(x)
            alpha, sigma = levels(schedule, t, flat)
            x0, pull = _posterior_means(self, flat, alpha, sigma)
            return Estimate(x0.reshape(x.shape), (sigma * pull).reshape(x.shape))

        return denoise

    def score(self, schedule: Schedule) -> Callable[[Array, Time], Array]:
        """Return the exact gradient of the log-density of x at t, finite where sigma = 0."""

        def score(x, t):
            flat = _flat(x)
            return -_posterior_means(self, flat, *levels(schedule, t, flat))[1].reshape(x.shape)

        return score

    def flow(self, schedule: Schedule, x: Array, t: Time, s: Time, *, steps: int = 4000) -> Array:
        """Carry `x` along the probability flow from `t` to `s`, either way.

        In closed form for one component; otherwise Eq. (4) with `steps` steps of the classic Runge-Kutta method.
        """
        flat = _flat(x)
        start, end = levels(schedule, t, flat), levels(schedule, s, flat)
        carried = _linear_flow(self, flat, start, end) if _one(self) else _integrate(self, flat, start, end, steps)
        return carried.reshape(x.shape)

    def log_density(self, x: Array, schedule: Schedule | None = None, t: Time | None = None) -> Array:
        """Evaluate the log-density of the data at `x`, or of x_t if given a schedule and a time; shape (batch,)."""
        flat = _flat(x)
        alpha, sigma = (1.0, 0.0) if schedule is None else levels(schedule, t, flat)
        return jax.nn.logsumexp(_log_joint(self, flat, alpha, sigma)[0], axis=1)

    def class_log_prob(self, schedule: Schedule) -> Callable[[Array, Time, Any], Array]:
        """Return (x, t, label) -> log p(label | x_t); `label` is a scalar or one per example."""

        def log_prob(x, t, label):
            flat = _flat(x)
            joint = _log_joint(self, flat, *levels(schedule, t, flat))[0]
            member = jnp.asarray(self.labels, jnp.int32)[None] == jnp.reshape(jnp.asarray(label, jnp.int32), (-1, 1))
            share = jax.nn.logsumexp(jnp.where(member, joint, -jnp.inf), axis=1)
            return share - jax.nn.logsumexp(joint, axis=1)

        return log_prob

    def draw(self, key: Key, n: int) -> Array:
        """Draw (n, d) examples; example i does not depend on n."""
        return self.draw_labelled(key, n)[0]

    def draw_labelled(self, key: Key, n: int) -> tuple[Array, Array]:
        """Draw (n, d) examples and their classes (n,)."""
        weights, means, basis, variances = _in(jnp.result_type(float), self)
        keys = jax.vmap(jax.random.split)(example_keys(key, n))
        component = jax.vmap(jax.random.categorical, (0, None))(keys[:, 0], jnp.log(weights))
        z = jnp.sqrt(variances)[component] * normal_like(keys[:, 1], means[component])
        z = z if basis is None else _einsum("nij,nj->ni", basis[component], z)
        return means[component] + z, jnp.asarray(self.labels, jnp.int32)[component]

    def mean(self) -> Array:
        """Return the mean (d,) of the data."""
        weights, means, _, _ = _in(jnp.result_type(float), self)
        return _einsum("k,ki->i", weights, means)

    def covariance(self) -> Array:
        """Return the covariance (d, d) of the data."""
        weights, means, _, _ = _in(jnp.result_type(float), self)
        away = means - self.mean()[None]
        within = jnp.asarray(_covariances(self), means.dtype)
        return _einsum("k,kij->ij", weights, within) + _einsum("k,ki,kj->ij", weights, away, away)

    def std(self) -> Array:
        """Return the standard deviation (d,) of each dimension of the data."""
        return jnp.sqrt(jnp.diagonal(self.covariance()))

    def conditional(self, label: int) -> "Mixture":
        """Return the data of one class."""
        mine = np.asarray(self.labels) == label
        if not mine.any():
            raise ValueError(f"no component has label {label}. Known: {sorted(set(np.asarray(self.labels).tolist()))}.")
        weights = np.asarray(self.weights)[mine]
        return Mixture(
            weights / weights.sum(), *(None if value is None else np.asarray(value)[mine] for value in self[1:])
        )

    def measured(self, matrix: Any, value: Any, noise_std: Any) -> "Mixture":
        """Return the exact posterior of x0 given value = matrix x0 + noise: `matrix` (m, d), `noise_std` () or (m,)."""
        matrix, value = np.asarray(matrix, np.float64), np.asarray(value, np.float64).ravel()
        if matrix.shape != (value.size, self.means.shape[1]):
            raise ValueError(
                f"measured: matrix is {matrix.shape} for a value of {value.size} entries and data of "
                f"{self.means.shape[1]} dimensions; it must be {(value.size, self.means.shape[1])}."
            )
        noise = np.diag(np.broadcast_to(np.asarray(noise_std, np.float64) ** 2, value.shape))
        prior = np.asarray(_covariances(self), np.float64)
        means = np.asarray(self.means, np.float64)
        spread = matrix @ prior @ matrix.T + noise
        gain = np.swapaxes(np.linalg.solve(spread, matrix @ prior), 1, 2)
        surprise = value - means @ matrix.T
        # Joseph's form of the posterior covariance: a sum of squares, so never indefinite
        kept = np.eye(means.shape[1]) - gain @ matrix
        posterior = kept @ prior @ np.swapaxes(kept, 1, 2) + gain @ noise @ np.swapaxes(gain, 1, 2)
        fit = np.einsum("ki,ki->k", surprise, np.linalg.solve(spread, surprise[..., None])[..., 0])
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.asarray(self.weights, np.float64)) - (fit + np.linalg.slogdet(spread)[1]) / 2
        weights = np.exp(log_weights - log_weights.max())
        basis, variances = _principal(posterior)
        moved = means + np.einsum("kij,kj->ki", gain, surprise)
        return Mixture(weights / weights.sum(), moved, basis, variances, self.labels)


def gaussian(mean: Any, std: Any = None, *, covariance: Any = None) -> Mixture:
    """Describe Gaussian data by its mean and a standard deviation (one, or one per dimension) or a covariance."""
    mean = np.asarray(mean, np.float64).reshape(1, -1)
    stds = None if std is None else np.broadcast_to(np.asarray(std, np.float64).ravel(), mean.shape[1:])[None]
    covariances = None if covariance is None else np.asarray(covariance, np.float64)[None]
    return mixture([1.0], mean, stds, covariances=covariances)


def mixture(weights: Any, means: Any, stds: Any = None, *, covariances: Any = None, labels: Any = None) -> Mixture:
    """Describe a mixture: weights (K,), means (K, d), and stds (K,) or (K, d), or covariances (K, d, d).

    Weights are normalised. Without labels every component is its own class.
    """
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    means = means.reshape(len(means), -1)
    if weights.shape != (len(means),) or not (np.all(weights >= 0) and weights.sum() > 0):
        raise ValueError(f"mixture: weights {weights.tolist()} must be {len(means)} numbers >= 0, one per mean.")
    if (stds is None) == (covariances is None):
        raise ValueError("mixture: give either stds or covariances, and not both.")
    if covariances is None:
        stds = np.asarray(stds, np.float64)
        if stds.shape not in ((len(means),), means.shape):
            raise ValueError(f"mixture: stds are {stds.shape}; they must be {(len(means),)} or {means.shape}.")
        spread = np.broadcast_to(stds[:, None] if stds.ndim == 1 else stds, means.shape)
        basis, variances = None, spread**2
    else:
        covariances = np.asarray(covariances, np.float64)
        if covariances.shape != (*means.shape, means.shape[1]):
            raise ValueError(
                f"mixture: covariances are {covariances.shape}; they must be {(*means.shape, means.shape[1])}."
            )
        basis, variances = _principal(covariances)
    labels = np.arange(len(means), dtype=np.int32) if labels is None else np.asarray(labels, np.int32)
    if labels.shape != (len(means),):
        raise ValueError(f"mixture: labels are {labels.shape}; they must be {(len(means),)}, one per component.")
    return Mixture(weights / weights.sum(), means, basis, variances, labels)


def dataset(points: Any, *, weights: Any = None, labels: Any = None) -> Mixture:
    """Describe a finite data set: examples of any shape, equally likely unless weighted."""
    points = np.asarray(points, np.float64)
    return mixture(np.ones(len(points)) if weights is None else weights, points, np.zeros(len(points)), labels=labels)


def mixture_2d() -> Mixture:
    """Four round Gaussians of different sizes and weights, each its own class."""
    means = [[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.6], [0.8, 2.0]]
    return mixture([0.4, 0.3, 0.2, 0.1], means, [0.15, 0.25, 0.4, 0.1])


def ring(*, count: int = 8, radius: float = 2.0, std: float = 0.15) -> Mixture:
    """Gaussians evenly spaced on a circle, each its own class."""
    angle = 2 * np.pi * np.arange(count) / count
    return mixture(np.ones(count), radius * np.stack([np.cos(angle), np.sin(angle)], 1), np.full(count, std))


def moons(*, std: float = 0.1, count: int = 32) -> Mixture:
    """Two interleaved half circles, one class each, of `count` Gaussians each."""
    angle = np.pi * (np.arange(count) + 0.5) / count
    arc = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)
    return _evenly([arc, -arc], std)


def spiral(*, arms: int = 2, turns: float = 1.25, std: float = 0.08, count: int = 64) -> Mixture:
    """Spiral arms out to radius 2, one class each, of `count` Gaussians each."""
    _positive("spiral", arms=arms, turns=turns, std=std, count=count)
    # Square-root spacing puts the components at even distances along an arm.
    angle = 2 * np.pi * turns * np.sqrt((np.arange(count) + 0.5) / count)
    radius = 2 * angle / (2 * np.pi * turns)
    turned = [angle + 2 * np.pi * arm / arms for arm in range(arms)]
    return _evenly([np.stack([radius * np.cos(a), radius * np.sin(a)], 1) for a in turned], std)


def checkerboard(*, cells: int = 4, fine: int = 4) -> Mixture:
    """The dark squares of a board on [-2, 2]^2, one class each, every one of fine x fine Gaussians."""
    _positive("checkerboard", cells=cells, fine=fine)
    side = 4 / cells
    inner = (np.arange(fine) + 0.5) / fine * side
    patch = np.stack(np.meshgrid(inner, inner), -1).reshape(-1, 2)
    dark = [(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0]
    return _evenly([patch + np.array([i, j]) * side - 2 for i, j in dark], side / fine / 2)


def _positive(what, **values):
    for word, value in values.items():
        if not value > 0:
            raise ValueError(f"{what}: {word} is {value}; it must be greater than 0.")


def _evenly(classes, std):
    means = np.concatenate(classes)
    labels = np.repeat(np.arange(len(classes)), [len(points) for points in classes])
    return mixture(np.ones(len(means)), means, np.full(len(means), std), labels=labels)


def _flat(x):
    return x.reshape(x.shape[0], -1).astype(wide(x.dtype))


def _in(dtype: Any, mixture: Mixture) -> Any:
    """Return weights, means, basis and variances as arrays of one dtype."""
    return [None if value is None else jnp.asarray(value, dtype) for value in mixture[:4]]


def _one(mixture):
    return mixture.weights.shape[0] == 1


def _log_joint(mixture, x, alpha, sigma):
    """Return log w_k N(x; alpha mu_k, C_k) as (B, K), and x - alpha mu_k and C_k along the principal axes."""
    weights, means, basis, variances = _in(x.dtype, mixture)
    # Levels are () or (B, 1); everything here is (B, K, d).
    alpha, sigma = (value[:, None] if jnp.ndim(value) else value for value in (alpha, sigma))
    away = x[:, None] - alpha * means[None]
    away = away if basis is None else _einsum("kij,bki->bkj", basis, away)
    spread = jnp.maximum(alpha**2 * variances[None] + sigma**2, FLOOR)
    log_normal = -(away**2 / spread + jnp.log(spread) + math.log(2 * math.pi)).sum(-1) / 2
    return jnp.log(weights)[None] + log_normal, away, spread


def _posterior_means(mixture, x, alpha, sigma):
    """Return E[x0 | x] and sum_k r_k C_k^-1 (x - alpha mu_k), Eq. (2) and (3)."""
    _, means, basis, variances = _in(x.dtype, mixture)
    joint, away, spread = _log_joint(mixture, x, alpha, sigma)
    share = jax.nn.softmax(joint, axis=1)
    pull = away / spread
    gain = (alpha[:, None] if jnp.ndim(alpha) else alpha) * variances[None] * pull

    def blend(per_component):
        if basis is None:
            return _einsum("bk,bki->bi", share, per_component)
        return _einsum("bk,kij,bkj->bi", share, basis, per_component)

    return _einsum("bk,ki->bi", share, means) + blend(gain), blend(pull)


def _linear_flow(mixture, x, start, end):
    """Carry x by the one affine map that takes N(alpha_t mu, C_t) to N(alpha_s mu, C_s) along the flow."""
    _, means, basis, variances = _in(x.dtype, mixture)
    spread_t, spread_s = (alpha**2 * variances + sigma**2 for alpha, sigma in (start, end))
    ratio = jnp.sqrt(spread_s / jnp.maximum(spread_t, FLOOR))
    away = x - start[0] * means
    if basis is None:
        return end[0] * means + ratio * away
    return end[0] * means + _einsum("ij,bj->bi", basis[0], ratio * _einsum("ij,bi->bj", basis[0], away))


def _integrate(mixture, x, start, end, steps):
    """Solve Eq. (4) in u with phi = a sinh u, which steps finely where the sharpest component appears."""
    size = jnp.asarray(_size(mixture), x.dtype)
    sharp = jnp.sqrt(jnp.asarray(mixture.variances, x.dtype).min()) / size
    sharp = jnp.clip(sharp, 1e-3, 1.0)
    (y, first), (_, last) = (_to_angle(x, level, size) for level in (start, end))
    scale_end = jnp.hypot(size * end[0], end[1])
    first, last = jnp.arcsinh(first / sharp), jnp.arcsinh(last / sharp)
    h = (last - first) / steps

    def slope(y, u):
        phi = sharp * jnp.sinh(u)
        cos, sin = jnp.cos(phi), jnp.sin(phi)
        x0, pull = _posterior_means(mixture, y, cos / size, sin)
        return sharp * jnp.cosh(u) * (cos * sin * pull - sin / size * x0)

    def step(i, y):
        u = first + h * i
        k1 = slope(y, u)
        k2 = slope(y + h / 2 * k1, u + h / 2)
        k3 = slope(y + h / 2 * k2, u + h / 2)
        k4 = slope(y + h * k3, u + h)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    y = jax.lax.fori_loop(0, steps, lambda i, y: step(jnp.asarray(i, y.dtype), y), y)
    return scale_end * y


def _to_angle(x, level, size):
    alpha, sigma = level
    return x / jnp.hypot(size * alpha, sigma), jnp.arctan2(sigma, size * alpha)


def _size(mixture):
    """Return the root mean square spread of the data, or 1 where it has none."""
    weights, means, _, variances = _in(jnp.result_type(float), mixture)
    away = means - _einsum("k,ki->i", weights, means)[None]
    square = _einsum("k,ki->", weights, away**2 + variances) / means.shape[1]
    return jnp.where(square > 0, jnp.sqrt(square), 1.0)


def _covariances(mixture):
    variances = np.asarray(mixture.variances, np.float64)
    if mixture.basis is None:
        return variances[:, :, None] * np.eye(variances.shape[1])
    basis = np.asarray(mixture.basis, np.float64)
    return (basis * variances[:, None, :]) @ np.swapaxes(basis, 1, 2)


def _principal(covariances):
    """Return eigenvectors and eigenvalues of symmetric matrices, refusing indefinite ones."""
    variances, basis = np.linalg.eigh((covariances + np.swapaxes(covariances, 1, 2)) / 2)
    if np.any(variances < -1e-9 * np.abs(variances).max()):
        raise ValueError(f"a covariance has the negative eigenvalue {variances.min():.3g}; it must be semidefinite.")
    return basis, np.maximum(variances, 0.0)


def _einsum(form, *operands):
    return jnp.einsum(form, *operands, precision=jax.lax.Precision.HIGHEST)


DENSITIES = {
    "mixture_2d": mixture_2d,
    "ring": ring,
    "moons": moons,
    "spiral": spiral,
    "checkerboard": checkerboard,
}
