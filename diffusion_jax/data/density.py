"""Densities in the plane, known in closed form: mixtures of round Gaussians, drawn without JAX.

    p(u) = sum_k w_k N(u; m_k, s_k^2 I),        H = -int p log p du, by the trapezoid rule                    (1)

They are the data of `process/oracle.py` under the same names, so a network trained on them can be held against the
exact denoiser. In `dimensions` above two the plane is embedded by a fixed orthonormal map, x = Q u: data of two
dimensions in a space of many. There `log_density` is that on the plane, per unit of its area.
"""

import functools
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from diffusion_jax.data.chance import PLANE, POINTS, check_seed, generator, uniforms, words
from diffusion_jax.data.source import Example, Info, place
from diffusion_jax.naming import choose


class Rounds(NamedTuple):
    """Round Gaussians: weights (K,), means (K, 2), standard deviations (K,) and each one's class (K,)."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    labels: np.ndarray


class Density:
    """A source of points `x` (dimensions,) with the class of the component each came from as `label`."""

    def __init__(self, name: str, rounds: Rounds, examples: int, seed: int, basis: np.ndarray):
        self.rounds, self.basis = rounds, basis
        classes = tuple(str(label) for label in range(int(rounds.labels.max()) + 1))
        self.info = Info(name, {"x": (len(basis),), "label": ()}, classes)
        self._examples, self._seed = examples, seed
        self._up_to = np.cumsum(rounds.weights)

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: SupportsIndex) -> Example:
        return self.many(np.array([place(index, len(self))]))[0]

    def many(self, indices: np.ndarray) -> list[Example]:
        """Return the examples of some indices at once, which takes a tenth of the time."""
        which, radius, angle = uniforms(words(POINTS, self._seed, indices)).T[:3]
        k = np.minimum(np.searchsorted(self._up_to, which, side="right"), len(self._up_to) - 1)
        length, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle  # Box & Muller 1958
        normal = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        u = self.rounds.means[k] + self.rounds.stds[k][:, None] * normal
        x, labels = (u @ self.basis.T).astype(np.float32), self.rounds.labels[k].astype(np.int32)
        return [{"x": one, "label": label} for one, label in zip(x, labels, strict=True)]

    def log_density(self, x: Any) -> np.ndarray:
        """Return log p at points (..., dimensions) on the plane, Eq. (1)."""
        u = np.asarray(x, np.float64) @ self.basis
        away = ((u[..., None, :] - self.rounds.means) ** 2).sum(-1) / self.rounds.stds**2
        log_joint = np.log(self.rounds.weights / (2 * np.pi * self.rounds.stds**2)) - away / 2
        top = log_joint.max(-1, keepdims=True)
        return (top + np.log(np.exp(log_joint - top).sum(-1, keepdims=True)))[..., 0]

    @functools.cached_property
    def entropy(self) -> float:
        """The differential entropy in nats, Eq. (1): the expected loss of a perfect model of the density."""
        spacing = float(self.rounds.stds.min()) / 3  # twice as fine changes the entropy by less than 1e-9
        reach = 9 * float(self.rounds.stds.max())
        low, high = self.rounds.means.min(0) - reach, self.rounds.means.max(0) + reach
        columns, rows = (np.arange(a, b, spacing) for a, b in zip(low, high, strict=True))
        total = 0.0
        for row in rows:
            log_p = self.log_density(np.stack([columns, np.full_like(columns, row)], -1) @ self.basis.T)
            total -= float((np.exp(log_p) * log_p).sum())
        return total * spacing**2


def density(*, kind: Any = "mixture_2d", examples: int = 2**16, seed: int = 0, dimensions: int = 2) -> Density:
    """Draw `examples` points of an entry of DENSITIES: a name, or a mapping of `name` and its keywords."""
    if dimensions < 2 or examples < 1:
        raise ValueError(
            f"density: dimensions is {dimensions} and examples {examples}; they must be at least 2 and at least 1."
        )
    check_seed(seed, "density")
    rounds = choose(DENSITIES, kind, "density")
    basis = np.eye(2)
    if dimensions > 2:
        basis = np.linalg.qr(generator(PLANE, seed).normal(size=(dimensions, 2)))[0]
    name = kind if isinstance(kind, str) else kind["name"] if hasattr(kind, "items") else "density"
    return Density(name, rounds, examples, seed, basis)


def mixture_2d() -> Rounds:
    """Four Gaussians of different sizes and weights, each its own class."""
    means = np.array([[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.6], [0.8, 2.0]])
    return Rounds(np.array([0.4, 0.3, 0.2, 0.1]), means, np.array([0.15, 0.25, 0.4, 0.1]), np.arange(4))


def ring(*, count: int = 8, radius: float = 2.0, std: float = 0.15) -> Rounds:
    """Gaussians evenly spaced on a circle, each its own class."""
    angle = 2 * np.pi * np.arange(count) / count
    return _evenly(radius * np.stack([np.cos(angle), np.sin(angle)], 1)[:, None], std)


def moons(*, std: float = 0.1, count: int = 32) -> Rounds:
    """Two interleaved half circles, one class each, of `count` Gaussians each."""
    angle = np.pi * (np.arange(count) + 0.5) / count
    arc = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)
    return _evenly([arc, -arc], std)


def spiral(*, arms: int = 2, turns: float = 1.25, std: float = 0.08, count: int = 64) -> Rounds:
    """Spiral arms out to radius 2, one class each, of `count` Gaussians each at even distances along the arm."""
    share = np.sqrt((np.arange(count) + 0.5) / count)
    angles = [2 * np.pi * (turns * share + arm / arms) for arm in range(arms)]
    return _evenly([2 * share[:, None] * np.stack([np.cos(a), np.sin(a)], 1) for a in angles], std)


def checkerboard(*, cells: int = 4, fine: int = 4) -> Rounds:
    """The dark squares of a board on [-2, 2]^2, one class each, every one of fine x fine Gaussians."""
    side = 4 / cells
    inner = (np.arange(fine) + 0.5) / fine * side
    patch = np.stack(np.meshgrid(inner, inner), -1).reshape(-1, 2)
    dark = [(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0]
    return _evenly([patch + np.array([i, j]) * side - 2 for i, j in dark], side / fine / 2)


def _evenly(classes, std):
    """Give every mean of every class the same weight and spread."""
    means = np.concatenate(list(classes))
    labels = np.repeat(np.arange(len(classes)), [len(points) for points in classes])
    return Rounds(np.full(len(means), 1 / len(means)), means, np.full(len(means), std), labels)


DENSITIES = {
    "mixture_2d": mixture_2d,
    "ring": ring,
    "moons": moons,
    "spiral": spiral,
    "checkerboard": checkerboard,
}
