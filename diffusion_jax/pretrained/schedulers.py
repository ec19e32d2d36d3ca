"""The scheduler_config.json of a folder of diffusers, in our words: a path, what is predicted, and how to sample.

Theirs mixes what is apart here: the noise of T steps (`schedule` at its `pace`), what the network is told and says
(`input`, `prediction`), and a solver on a grid. All of it is data: entries of a config.

    theirs                               ours
    beta_schedule, trained_betas         the steps of a discrete world
    timestep_spacing, steps_offset       the grid
    set_alpha_to_one = False             a grid that ends at step 0 and not at clean data
    shift, use_dynamic_shifting          the pace of the straight path
    clip_sample, thresholding            the threshold

Their Euler is our DDIM, which is Euler's step in sigma / alpha, and on the straight path in sigma. Their PNDM has no
like here, and DPM-Solver++, which needs fewer steps, stands for it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.naming import lookup
from diffusion_jax.pretrained.parts import SCHEDULER
from diffusion_jax.pretrained.tensors import check_known, read_json


class Recipe(NamedTuple):
    """Entries of a config by their names there; `steps` is T, and `times` what training draws."""

    steps: int
    schedule: dict[str, Any]
    pace: dict[str, Any]
    input: dict[str, Any]
    prediction: dict[str, Any]
    times: dict[str, Any]
    grid: dict[str, Any]
    solver: dict[str, Any]
    threshold: dict[str, Any]
    weighting: Mapping[str, Any] = {"name": "constant"}


def read_scheduler(folder: str | Path) -> Recipe:
    """Read a scheduler's folder; where the pace depends on the tokens of an image, they are of the largest."""
    path = Path(folder).expanduser() / SCHEDULER
    if not path.is_file():
        raise ValueError(f"schedulers: there is no {path}; download the rest.")
    config = read_json(path, "schedulers")
    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise ValueError(f"schedulers: {path} has no _class_name, the scheduler's kind; download it again.")
    solver, flow = lookup(SCHEDULERS, kind, f"scheduler of {path}"), kind.startswith("FlowMatch")
    check_known(config, (_KNOWN_FLOW if flow else _KNOWN) | _KNOWN_OF.get(kind, {}), path)
    if config.get("trained_betas") is not None and config.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path}: its config has trained_betas and rescale_betas_zero_snr; known is one of them.")
    try:
        return (_flow if flow else _discrete)(config, solver)
    except (KeyError, TypeError) as error:
        raise ValueError(f"schedulers: {path} has a value that is not known: {error}.") from None


def plain_recipe() -> Recipe:
    """Return what a network of 1000 steps of DDPM means, where there is no scheduler beside it."""
    return _discrete({"_class_name": "DDIMScheduler"}, SCHEDULERS["DDIMScheduler"])


def _discrete(config, solver) -> Recipe:
    count = config.get("num_train_timesteps", 1000)
    predictions = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    schedule = {"name": "discrete", "world": _world(config, count)}
    if config.get("trained_betas") is not None:
        schedule = {"name": "betas", "values": tuple(config["trained_betas"])}
    if config.get("rescale_betas_zero_snr"):
        schedule["terminal"] = "zero"
    return Recipe(
        steps=count,
        schedule=schedule,
        pace={"name": "shift", "factor": 1.0},
        input={"name": "steps", "count": count},
        prediction={"name": predictions[config.get("prediction_type", "epsilon")]},
        times={"name": "steps", "count": count},
        grid=_grid(config, count),
        solver=solver(config),
        threshold=_threshold(config),
    )


def _flow(config, solver) -> Recipe:
    pace = {"name": "shift", "factor": float(config.get("shift", 1.0))}
    if config.get("use_dynamic_shifting"):
        pace = {
            "name": "sequence_shift",
            "tokens": config.get("max_image_seq_len", 4096),
            "base_tokens": config.get("base_image_seq_len", 256),
            "max_tokens": config.get("max_image_seq_len", 4096),
            "base_shift": config.get("base_shift", 0.5),
            "max_shift": config.get("max_shift", 1.15),
            "form": config.get("time_shift_type", "exponential"),
        }
    return Recipe(
        steps=config.get("num_train_timesteps", 1000),
        schedule={"name": "rectified"},
        pace=pace,
        input={"name": "sigma"},
        prediction={"name": "flow"},
        times={"name": "logit_normal"},
        grid={"name": "uniform", "start": 1.0, "end": 0.0},
        solver=solver(config),
        threshold={"name": "none"},
    )


def _world(config, count):
    name = config.get("beta_schedule", "linear")
    if name == "squaredcos_cap_v2":
        return {"name": "squared_cosine", "steps": count}
    known = {"linear": "linear", "scaled_linear": "scaled_linear", "sigmoid": "sigmoid"}
    first = {"HeunDiscreteScheduler": (0.00085, 0.012)}.get(config["_class_name"], (1e-4, 0.02))
    ends = {end: config.get(end, other) for end, other in zip(("beta_start", "beta_end"), first, strict=True)}
    return {"name": known[name], "steps": count, **ends}


def _grid(config, count):
    """Return the grid; solvers of several steps place one more than they take, and leave out the last."""
    kind = config["_class_name"]
    for theirs, ours in (("karras", "karras"), ("exponential", "exponential"), ("beta", "beta")):
        if config.get(f"use_{theirs}_sigmas"):
            return {"name": ours}
    several = kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
    silent = "leading" if kind in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler") else "linspace"
    spacing = config.get("timestep_spacing", silent)
    last = 0 if kind == "DDIMScheduler" and not config.get("set_alpha_to_one", True) else -1
    if spacing == "leading":
        offset = config.get("steps_offset", 0)
        last = last if offset else -1  # from step 0 to step 0 is nowhere
        return {"name": spacing, "train_steps": count, "offset": offset, "include_zero": not several, "last": last}
    if spacing == "linspace":
        whole = several or kind in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
        return {"name": spacing, "train_steps": count, "include_zero": not several, "whole": whole}
    return {"trailing": {"name": "trailing", "train_steps": count, "last": last}}[spacing]


def _threshold(config):
    if config.get("thresholding"):
        shares = {"percentile": config.get("dynamic_thresholding_ratio", 0.995)}
        return {"name": "dynamic", "limit": config.get("sample_max_value", 1.0), **shares}
    if config["_class_name"] in ("DDIMScheduler", "DDPMScheduler") and config.get("clip_sample", True):
        return {"name": "static", "limit": config.get("clip_sample_range", 1.0)}
    return {"name": "none"}


def _variance(config):
    names = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}
    names |= {"fixed_large_log": "fixed_large", "learned_range": "learned"}
    return {"name": "ddpm", "variance": names[config.get("variance_type", "fixed_small")]}


def _multistep(config):
    names = {1: "ddim", 2: "dpmpp_2m", 3: "dpmpp_3m"}
    if config.get("algorithm_type") == "sde-dpmsolver++":
        names = {2: "dpmpp_2m_sde"}
    return {"name": names[config.get("solver_order", 2)]}


def _unipc(config):
    variant = "bh1" if config.get("solver_type") == "bh1" else "bh2"  # which they too take for another's names
    return {"name": "unipc", "order": config.get("solver_order", 2), "variant": variant}


# Entries that would change what is sampled, with the values of which that is known.
_OFF: tuple[Any, ...] = (False, None)
_KNOWN: dict[str, tuple[Any, ...]] = {
    "final_sigmas_type": ("zero",),
    "use_lu_lambdas": _OFF,
    "use_flow_sigmas": _OFF,
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
}
_KNOWN_FLOW: dict[str, tuple[Any, ...]] = {
    "stochastic_sampling": _OFF,
    "invert_sigmas": _OFF,
    "shift_terminal": (None,),
    "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
}
_KNOWN_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "DDPMScheduler": {
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")
    },
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),  # theirs takes the others' names for its own
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    },
    "UniPCMultistepScheduler": {
        "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),
        "predict_x0": (True,),
        "disable_corrector": ([],),
    },
}


SCHEDULERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "DDIMScheduler": lambda config: {"name": "ddim"},
    "DDPMScheduler": _variance,
    "PNDMScheduler": lambda config: {"name": "dpmpp_2m"},
    "EulerDiscreteScheduler": lambda config: {"name": "ddim"},
    "EulerAncestralDiscreteScheduler": lambda config: {"name": "euler_ancestral"},
    "HeunDiscreteScheduler": lambda config: {"name": "heun", "variable": "sigma"},
    "LMSDiscreteScheduler": lambda config: {"name": "lms"},
    "DPMSolverMultistepScheduler": _multistep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": lambda config: {"name": "deis", "order": config.get("solver_order", 2)},
    "FlowMatchEulerDiscreteScheduler": lambda config: {"name": "ddim"},
}
