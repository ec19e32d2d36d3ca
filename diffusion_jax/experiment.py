"""From a config to the parts it names. This file alone knows every room."""

from typing import Any, NamedTuple

from diffusion_jax.naming import KeywordError, choose
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.oracle import DENSITIES, Mixture
from diffusion_jax.process.pace import PACES
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.types import Array, Schedule, Solver


class Sampling(NamedTuple):
    """Everything that sampling data known in closed form needs."""

    data: Mixture
    schedule: Schedule
    times: Array
    solver: Solver


def make_sampling(config: Any) -> Sampling:
    """Build the parts of a config with `data`, `schedule`, `pace`, `grid`, `steps` and `solver`."""
    schedule = make_schedule(config)
    return Sampling(
        data=_entry(config, "data", DENSITIES),
        schedule=schedule,
        times=_entry(config, "grid", GRIDS, schedule, at_least(config, "steps", 1)),
        solver=_entry(config, "solver", SOLVERS, schedule),
    )


def make_schedule(config: Any) -> Schedule:
    """Build the path that `schedule` names, at the pace that `pace` names."""
    return _entry(config, "pace", PACES, _entry(config, "schedule", SCHEDULES))


def at_least(config: Any, key: str, least: int) -> int:
    """Return a number of the config, or refuse it."""
    if config[key] < least:
        raise ValueError(f"config.{key} is {config[key]}; it must be at least {least}.")
    return config[key]


def _entry(config, key, table, *args):
    """Build one entry of the config; errors say where it is and how to set it right from the command line."""
    spec = config[key]
    try:
        return choose(table, spec, key, *args)
    except KeywordError as error:
        name, entry = (spec if isinstance(spec, str) else spec["name"]), f"--config.{key}"
        raise ValueError(
            f"{error} On the command line, {entry}={name} replaces the whole entry, and "
            f"{entry}=\"{{'name': '{name}', ...}}\" gives it keywords; {entry}.name={name} keeps the old ones."
        ) from None
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"config.{key} is {' '.join(str(spec).split())}: {error}.") from None
