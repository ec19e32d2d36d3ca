"""What every config starts from. A config changes values here and adds what only it needs.

An entry with a name is a part: the name is looked up in its room's table, the rest are its keywords. Every keyword
with a default that is worth changing is written out, so that it can be changed from the command line.
"""

from ml_collections import ConfigDict

MODES = ("", "smoke")


def get_config(mode: str = "") -> ConfigDict:
    """Return the defaults; `smoke` is for configs to make themselves small."""
    if mode not in MODES:
        raise ValueError(f"unknown mode '{mode}' of a config. Known: {', '.join(filter(None, MODES))}.")
    config = ConfigDict()
    config.seed = 0
    config.schedule = {"name": "linear_beta", "beta_min": 0.1, "beta_max": 20.0}
    config.pace = {"name": "shift", "factor": 1.0}  # a factor of 1 changes nothing
    config.grid = {"name": "uniform", "start": 1.0, "end": 0.0}
    config.steps = 32
    config.solver = {"name": "dpmpp_2m"}
    return config
