"""What a training run minimises, once the names are gone.

Path, prediction, weighting, the space it weighs and the density of times p are chosen independently, but a loss is

    integral of W(log_snr) E|eps - eps'|^2 d log_snr,        W = p(t) |dt / d log_snr| m(t) gain(t)^2,        (1)

with m(t) the factor on the network's own squared error and gain = |d output / d eps| (Kingma & Gao 2023). Two
choices with one W are one objective: the path only rescales the input of the network, the prediction its output.

m follows from the weighting w and the ratio of the errors in two spaces (`exchange`):

    m = w(log_snr) (gain_space / gain_prediction)^2, times |d log_snr / dt| / p for a w over log-SNR.         (2)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.losses.times import TIMES, Times, target_density
from diffusion_jax.losses.weighting import choose_weighting
from diffusion_jax.naming import choose
from diffusion_jax.process.prediction import PREDICTIONS, Prediction, check_prediction, eps
from diffusion_jax.process.schedule import as_float, derivative, rates
from diffusion_jax.types import Array, Estimate, Rates, Schedule

FARTHEST = 30.0  # weights are compared for log-SNRs no larger than this


class Objective(NamedTuple):
    """The five independent choices, each a name, a mapping or the thing itself.

    `space` is whose squared error the weighting multiplies: if None, the one it was published for, and for a
    weighting without one the network's own output.
    """

    schedule: Schedule
    prediction: Any
    weighting: Any = "constant"
    times: Any = "uniform"
    space: Any = None


class Verdict(NamedTuple):
    """Whether two objectives are one; true if so.

    Where both are defined W_a is `constant` times W_b up to a share of `deviation`, between 0 and 1, at the worst
    log-SNR. `reason` says it in words.
    """

    same: bool
    constant: float
    deviation: float
    reason: str

    def __bool__(self) -> bool:
        """Return `same`."""
        return self.same


def resolve(objective: Objective) -> Objective:
    """Turn every name in an objective into what it names."""
    weighting = choose_weighting(objective.weighting)
    prediction = choose(PREDICTIONS, objective.prediction, "prediction")
    space = objective.space if objective.space is not None else weighting.space
    space = prediction if space is None else choose(PREDICTIONS, space, "space")
    times = choose(TIMES, objective.times, "times")
    if not isinstance(times, Times):
        raise ValueError(
            f"times is {times!r}; it must be a name, a mapping or a Times. Known: {', '.join(sorted(TIMES))}."
        )
    return Objective(objective.schedule, prediction, weighting, times, space)


def check(objective: Objective) -> Objective:
    """Resolve an objective, refusing predictions and times that its schedule does not admit."""
    objective = resolve(objective)
    check_prediction(objective.prediction, objective.schedule)
    schedule, times = objective.schedule, objective.times
    low, high = schedule.span
    if times.given is None and not low < float(times.quantile(schedule, jnp.asarray(0.5))) < high:
        raise ValueError(
            f"times '{times.name}' have no median within the span of schedule '{schedule.name}', whose log-SNR runs "
            f"over {_range(support(schedule))}: choose others, such as uniform, or truncate(schedule, 0, 0.999)."
        )
    return objective


def multiplier(objective: Objective, t: Array) -> Array:
    """Evaluate m of Eq. (2), the factor on the network's own squared error at the times `t` (batch,)."""
    schedule, prediction, weighting, times, space = resolve(objective)
    weight = weighting(schedule.log_snr(t)) * exchange(space, prediction, rates(schedule, t, t))
    if weighting.measure == "log_snr":
        pace = _pace(schedule, t)
        # At a zero terminal SNR the pace is infinite and the weight 0; a single time does not matter.
        return jnp.where(jnp.isfinite(pace), weight * pace / target_density(times, schedule, t), 0)
    return weight


def exchange(space: Prediction, prediction: Prediction, rates: Rates) -> Array:
    """Return the squared error in one space over the squared error of the same estimate in another."""
    if space is prediction:
        return jnp.ones_like(rates.sigma)
    return (_size(space, rates) / _size(prediction, rates)) ** 2


def effective_weight(objective: Objective, log_snr: Any) -> Array:
    """Evaluate W of Eq. (1), the weight on the squared error in eps per unit of log-SNR; 0 where nothing is drawn.

    A learned uncertainty is left out of it: it depends on the network.
    """
    schedule, _, weighting, times, space = resolve(objective)
    log_snr = as_float(log_snr)
    flat = log_snr.ravel()
    low, high = support(schedule)
    t = jnp.clip(schedule.time(jnp.clip(flat, low, high)), *schedule.span)
    weight = weighting(flat) * exchange(space, eps(), rates(schedule, t, t))
    if weighting.measure == "time":
        weight = weight * target_density(times, schedule, t) / _pace(schedule, t)
    return jnp.where((flat >= low) & (flat <= high), weight, 0).reshape(log_snr.shape)


def support(schedule: Schedule) -> tuple[Array, Array]:
    """Return the least and the greatest log-SNR of the schedule's span."""
    low, high = (schedule.log_snr(end) for end in reversed(schedule.span))
    return low, high


def same_objective(a: Objective, b: Objective, *, tolerance: float = 1e-5, points: int = 1001) -> Verdict:
    """Say whether two training arms minimise the same thing up to a constant factor, by comparing W in float64."""
    with jax.enable_x64(True):
        a, b = check(a), check(b)
        learns = [arm.weighting.uncertainty is not None for arm in (a, b)]
        if learns[0] != learns[1]:
            return Verdict(False, float("nan"), 1.0, _ONE_LEARNS.format("first" if learns[0] else "second"))
        ends = [tuple(float(end) for end in support(arm.schedule)) for arm in (a, b)]
        low, high = max(ends[0][0], ends[1][0], -FARTHEST), min(ends[0][1], ends[1][1], FARTHEST)
        log_snr = jnp.linspace(low, high, points + 2)[1:-1]
        first, second = (np.asarray(effective_weight(arm, log_snr)) for arm in (a, b))
    both_learn = f" {_BOTH_LEARN}" if all(learns) else ""
    supports = f"the first trains on log-SNR {_range(ends[0])}, the second on {_range(ends[1])}"
    if not low < high:
        return Verdict(
            False, float("nan"), 1.0, f"Not the same objective: {supports}. {_differences(a, b, False)}{both_learn}"
        )
    constant, deviation, where = _compare(first, second, log_snr)
    equal, together = deviation <= tolerance, np.allclose(*ends, atol=1e-4)
    same = bool(equal and together)
    ratio = f"W of the first is {constant:.4g} times W of the second"
    if same:
        reason = f"The same objective: over log-SNR {_range(ends[0])}, {ratio}."
    elif equal:
        reason = f"Not the same objective: {supports}. It is the same where both train: there {ratio}."
    else:
        reason = (
            f"Not the same objective: {'' if together else supports + ', and '}the weights on the error in eps differ, "
            f"at log-SNR {where:.2f} by {deviation:.2g} of the larger; in the median {ratio}."
        )
    return Verdict(same, constant, deviation, f"{reason} {_differences(a, b, same)}{both_learn}")


def _size(kind, rates):
    """Return gain times alpha: both are finite where alpha = 0, and gain is not."""
    return jnp.abs(kind.compose(Estimate(rates.sigma, -rates.alpha), rates))


def _pace(schedule, t):
    return -derivative(schedule.log_snr, t)[1]


def _compare(first, second, log_snr):
    """Return the median ratio of two weights, their worst departure from it, and where that is."""
    both = (first > 0) & (second > 0)
    if not both.any():
        return float("nan"), float(np.any(first != second)), float(log_snr[0])
    constant = float(np.exp(np.median(np.log(first[both]) - np.log(second[both]))))
    larger = np.maximum(first, constant * second)
    # Weights that vanish beside the largest are equal whatever their ratio.
    counts = larger > 1e-30 * larger.max()
    departure = np.where(counts, np.abs(first - constant * second) / np.where(counts, larger, 1), 0)
    worst = int(departure.argmax())
    return constant, float(departure[worst]), float(log_snr[worst])


def _differences(a, b, same):
    """Name what two arms do not share and, where they are the same objective, what that leaves different."""
    means = {
        "path": ", which only rescales the input of the network (Kingma & Gao 2023)",
        "prediction": ", which only changes what the network outputs",
        "times": ", which only changes how noisy the loss is",
    }
    names = zip(("path", "prediction", "weighting", "times", "space"), a, b, strict=True)
    named = [
        f"{what} ({one.name}, {other.name}){means.get(what, '') if same else ''}"
        for what, one, other in names
        if one.name != other.name
    ]
    return f"They differ in {'; '.join(named)}." if named else "They bear the same names."


def _range(ends):
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


_ONE_LEARNS = (
    "Not the same objective: the {} divides the loss by an uncertainty learned from the network's own error, so that "
    "its weight moves during training; the other's is fixed."
)
_BOTH_LEARN = (
    "Both learn an uncertainty: one resolved by level would divide a difference of weights out in the end, a single "
    "number would not."
)
