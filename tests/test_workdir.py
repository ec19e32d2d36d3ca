"""What a run's folder says of itself, to later versions too."""

import functools
import json
from typing import Any

from diffusion_jax.config import load_config
from diffusion_jax.workdir import LATER, config_differences, open_workdir, plain, read_config
from tests.runs import CONFIGS

QUICK = f"{CONFIGS / 'quickstart.py'}:smoke"


def test_what_was_added_to_configs_says_by_default_what_it_said_unsaid():
    config: Any = load_config(QUICK)
    for key, value in LATER.items():
        assert plain(functools.reduce(getattr, key.split("."), config)) == plain(value), key


def test_a_run_of_an_older_version_is_read_and_goes_on(tmp_path):
    config: Any = load_config(QUICK)
    open_workdir(tmp_path, config).close()
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    for key in LATER:
        *parts, last = key.split(".")
        del functools.reduce(lambda here, name: here[name], parts, said)[last]
    path.write_text(json.dumps(said))
    assert config_differences(tmp_path, config) == []
    assert read_config(tmp_path).to_dict() == config.to_dict()
