"""The command line of every command that runs a config.

    --config configs/NAME.py[:MODE] --workdir DIR [--config.KEY=VALUE ...]

A key is a dotted path into the config. An entry such as `schedule`, which is a name with its keywords, is replaced
as a whole by `--config.schedule=cosine` or `--config.schedule="{'name': 'cosine', 'offset': 0.01}"`.
"""

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion_jax.config import load_config
from diffusion_jax.launch.backends import BACKENDS
from diffusion_jax.launch.job import Job, check_label, label
from diffusion_jax.naming import suggestion
from diffusion_jax.starts import inherited
from diffusion_jax.workdir import read_config


class SamplingArguments(NamedTuple):
    """Which run to sample, where to, from which checkpoint, and how."""

    workdir: Path
    out: Path | None
    step: int | None
    sampling: Any


class LaunchArguments(NamedTuple):
    """Which job to launch, as what, how often, on which backend with which options, and what to do at all."""

    job: Job
    seed: int
    repeats: int
    backend: dict[str, Any]
    again: bool
    check: bool
    plan: bool
    dry_run: bool


class Arguments(NamedTuple):
    """What a command was asked to do, and where to leave it."""

    config: Any  # a locked ConfigDict
    workdir: Path


class PlanArguments(NamedTuple):
    """Which config is compiled for which devices, and where what was found is kept."""

    config: Any
    topology: str
    work: str
    largest: bool
    out: Path | None


def read(argv: Sequence[str]) -> Arguments:
    """Read the command line, or raise an error that names the mistake and its remedy."""
    source, argv = _take_config(list(argv))
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder for the results", flag_values=values)
    _parse(values, load_config(source), argv)
    if not values.workdir:
        raise ValueError("where should the results go? Give --workdir, as in --workdir runs/toy.")
    if Path(values.workdir).exists() and not Path(values.workdir).is_dir():
        raise ValueError(f"--workdir {values.workdir} is a file; it must be a folder, or not be there yet.")
    return Arguments(inherited(values.config), Path(values.workdir))


def read_sampling(argv: Sequence[str]) -> SamplingArguments:
    """Read the command line of `sample`; --config.KEY changes the run's `sampling`."""
    values = flags.FlagValues()
    for name, what in (("workdir", "folder of the run"), ("out", "folder for the samples")):
        flags.DEFINE_string(name, None, what, flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint", flag_values=values)
    workdir = _parse_for_run(values, argv)
    return SamplingArguments(workdir, values.out and Path(values.out), values.step, values.config)


def read_evaluation(argv: Sequence[str]) -> tuple[dict[str, Any], Path | None]:
    """Read the command line of `evaluate`: what is asked, by keyword, and where to write the cards besides."""
    values = flags.FlagValues()
    for name, what in (
        ("workdir", "folder of the run"), ("images", "images to measure instead"), ("metrics", "names, with commas"),
        ("reference", "what to compare with"), ("features", "what to compare"), ("out", "file for the cards"),
    ):  # fmt: skip
        flags.DEFINE_string(name, None, what, flag_values=values)
    flags.DEFINE_integer("samples", None, "how many samples", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint", flag_values=values)
    flags.DEFINE_list("seeds", None, "seeds of sets of samples", flag_values=values)
    workdir = _workdir_of(argv)
    _parse(values, ConfigDict() if workdir is None else _sampling_of(workdir), list(argv))
    given: dict[str, Any] = {name: values[name].value for name in ("metrics", "samples", "reference", "step")}
    given |= {name: Path(str(values[name].value)) for name in ("workdir", "images") if values[name].value}
    if values.features:
        given["features"] = entry(values.features)
    if workdir is not None:
        given["sampling"] = values.config
    if values.seeds:
        given["seeds"] = _whole(values.seeds, "--seeds 0,1,2")
    return {name: value for name, value in given.items() if value is not None}, values.out and Path(values.out)


def read_likelihood(argv: Sequence[str]) -> dict[str, Any]:
    """Read the command line of `likelihood`: what was given, by keyword."""
    values = flags.FlagValues()
    for name in ("workdir", "way", "data", "dequantization"):
        flags.DEFINE_string(name, None, name, flag_values=values)
    for name in ("count", "steps", "probes", "step", "batch_size"):
        flags.DEFINE_integer(name, None, name, flag_values=values)
    workdir = _parse_for_run(values, argv)
    names = ("data", "dequantization", "count", "steps", "probes", "step", "batch_size")
    given: dict[str, Any] = {name: values[name].value for name in names if values[name].value is not None}
    if values.way:
        given["name"] = values.way
    return {"workdir": workdir, "sampling": values.config, **given}


def read_plan(argv: Sequence[str]) -> PlanArguments:
    """Read the command line of `plan`."""
    source, argv = _take_config(list(argv))
    values = flags.FlagValues()
    for name, default in (("topology", "local"), ("work", "both"), ("out", None)):
        flags.DEFINE_string(name, default, name, flag_values=values)
    flags.DEFINE_boolean("largest", True, "look for the largest batch", flag_values=values)
    _parse(values, load_config(source), argv)
    out = values.out and Path(values.out)
    return PlanArguments(inherited(values.config), values.topology, values.work, values.largest, out)


def options(argv: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read the command line of a command without a config: options of the types of their defaults."""
    values = flags.FlagValues()
    for name, default in defaults.items():
        _DEFINE[type(default)](name, default, name, flag_values=values)
    _parse(values, ConfigDict(), list(argv))
    return {name: values[name].value for name in defaults}


def entry(text: str) -> ConfigDict:
    """Read an entry as it is given on the command line: a bare name, or a dict of the name and its keywords."""
    return _EntryParser().parse(text)


def read_report(argv: Sequence[str]) -> dict[str, Any]:
    """Read the command line of `report`: folders after --workdirs, and what goes with them, by keyword."""
    argv, folders = _take_many(list(argv), "workdirs")
    values = flags.FlagValues()
    for name in ("out", "baseline"):
        flags.DEFINE_string(name, "", name, flag_values=values)
    for name in ("cumulative", "force"):
        flags.DEFINE_boolean(name, False, name, flag_values=values)
    _parse(values, ConfigDict(), argv)
    if not folders:
        raise ValueError("which runs? Give --workdirs, as in --workdirs runs/a runs/b.")
    # What a shell's * finds beside the runs is left: files silently, folders with a note.
    paths = [Path(folder) for folder in folders]
    workdirs = [path for path in paths if (path / "config.json").exists() or not path.exists()]
    notes = [f"{path} is no run's folder, and was left out" for path in paths if path.is_dir() and path not in workdirs]
    given = {name: values[name].value for name in ("baseline", "cumulative", "force")}
    return {"workdirs": workdirs, "out": Path(str(values.out or paths[0].parent)), "notes": notes, **given}


def read_ablation(argv: Sequence[str]) -> dict[str, Any]:
    """Read the command line of an ablation: its file, and how to carry it out, by keyword."""
    values = flags.FlagValues()
    flags.DEFINE_string("backend", "local", "where the runs run", flag_values=values)
    flags.DEFINE_string("out", None, "folder of the runs", flag_values=values)
    for name in ("again", "dry_run"):
        flags.DEFINE_boolean(name, False, name, flag_values=values)
    _define_options(values)
    source, *rest = argv
    _parse(values, ConfigDict(), rest)
    name = Path(source.partition(":")[0]).stem
    out = Path(str(values.out or Path("runs") / name))
    given = {"again": values["again"].value, "dry_run": values["dry_run"].value}
    return {"source": source, "out": out, "backend": _options(values), **given}


def read_launch(argv: Sequence[str]) -> LaunchArguments:
    """Read the command line of `launch`; the values of --config.KEY are handed on as they were given."""
    source, argv = _take_config(list(argv))
    values = flags.FlagValues()
    for name, default in (("backend", "local"), ("workdir", ""), ("name", "")):
        flags.DEFINE_string(name, default, name, flag_values=values)
    flags.DEFINE_integer("repeats", 1, "seeds", flag_values=values)
    for name, default in (("again", False), ("check", True), ("plan", False), ("dry_run", False)):
        flags.DEFINE_boolean(name, default, name, flag_values=values)
    _define_options(values)
    config = load_config(source)
    _parse(values, config, argv)
    if not values.workdir:
        raise ValueError("where should the run live? Give --workdir, as in --workdir runs/toy.")
    workdir = Path(str(values.workdir))
    made = str(values["name"].value or label(workdir.name))
    if not made:
        raise ValueError(f"of --workdir {workdir} no name can be made for the launch; give one, as in --name toy.")
    name = check_label(made, "--name")
    job = Job(name, source, workdir, _overrides(argv, config))
    settings: Any = values.config
    said: dict[str, Any] = {name: values[name].value for name in ("repeats", "again", "check", "plan", "dry_run")}
    return LaunchArguments(job, settings.seed, backend=_options(values), **said)


def read_name(argv: Sequence[str], example: str) -> tuple[str, bool]:
    """Read the command line of a command about a launch: its name, or "", and whether only to show what is run."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("dry_run", False, "only show", flag_values=values)
    names = [word for word in argv if not word.startswith("-")]
    _parse(values, ConfigDict(), [word for word in argv if word.startswith("-")])
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are several names; give one, as in `{example}`.")
    return (names[0] if names else ""), bool(values["dry_run"].value)


def _define_options(values):
    """Define the options of all backends, whose types are those of their keywords."""
    for backend in BACKENDS.values():
        for name, parameter in inspect.signature(backend).parameters.items():
            if name not in values:
                _DEFINE[parameter.annotation](name, None, name, flag_values=values)


def _options(values):
    """Return the backend that was asked for, with the options that were given."""
    names = dict.fromkeys(name for make in BACKENDS.values() for name in inspect.signature(make).parameters)
    given = {name: values[name].value for name in names if values[name].value is not None}
    return {"name": values["backend"].value, **given}


def _overrides(argv, config):
    """Return what --config.KEY=VALUE options say, as it was said, in their order."""
    found, argv = {}, list(argv)
    while argv:
        given = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argv.pop(0), re.DOTALL)
        if given is None:
            continue
        negated, key, value = given.groups()
        if value is None and not negated:
            value = "True" if isinstance(_value_at(config, key), bool) else argv.pop(0)
        found.pop(key, None)
        found[key] = "False" if negated else value
    return found


def _value_at(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def _take_many(argv, name):
    """Split --name and the words after it, up to the next option, off the command line."""
    rest, taken, taking = [], [], False
    for argument in argv:
        option, _, value = argument.partition("=")
        if option in (f"--{name}", f"-{name}"):
            taking = True
            taken += [value] if value else []
        elif argument.startswith("-") or not taking:
            taking = False
            rest.append(argument)
        else:
            taken.append(argument)
    return rest, taken


def _workdir_of(argv):
    """Return the folder that --workdir names, before the rest can be read."""
    given = re.findall(r"(?:^|\0)--?workdir[=\0]([^\0]+)", "\0".join(argv))
    return Path(given[-1]) if given else None


def _parse_for_run(values, argv):
    """Parse the options of a command about a run, whose folder is returned."""
    workdir = _workdir_of(argv)
    if workdir is None:
        raise ValueError("which run? Give --workdir, as in --workdir runs/quickstart.")
    _parse(values, _sampling_of(workdir), list(argv))
    return workdir


def _sampling_of(workdir) -> ConfigDict:
    config: Any = read_config(workdir)
    return config.sampling


def _whole(words, example):
    """Read whole numbers."""
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise ValueError(f"{','.join(words)} are no whole numbers; give them as in {example}.") from None


def _parse(values, config, argv):
    """Parse the options of `values` and those that change the config, which lands in values.config."""
    for argument in argv:
        _check_key(config, argument)
    config_flags.register_flag_parser_for_type(ConfigDict, _EntryParser())
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    extra = values(["diffusion_jax", *argv])[1:]
    if extra:
        raise ValueError(f"cannot place the argument '{extra[0]}'; options start with --, as in --config.seed=1.")


def _take_config(argv):
    """Split --config off the command line; ml_collections reads the rest."""
    for place, argument in enumerate(argv):
        given = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if not given:
            continue
        if given[1]:
            return given[1], argv[:place] + argv[place + 1 :]
        if given[1] is None and place + 1 < len(argv):
            return argv[place + 1], argv[:place] + argv[place + 2 :]
    raise ValueError("which config? Give --config, as in --config configs/toy_2d.py.")


def _check_key(config, argument):
    given = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    if not given:
        return
    here, path = config, "config"
    for key in given[1].split("."):
        if not isinstance(here, ConfigDict):
            raise ValueError(f"{path} is {here!r} and has no parts; give it a value with --{path}=...")
        if key not in here:
            whole = f" To give it other keywords, replace it: --{path}=\"{{'name': ..., '{key}': ...}}\"."
            raise ValueError(
                f"{path} has no '{key}'.{suggestion(key, here)} It has: {', '.join(sorted(here))}."
                f"{whole if 'name' in here else ''}"
            )
        here, path = here[key], f"{path}.{key}"


class _EntryParser(flags.ArgumentParser):
    """Read an entry of a config: a bare name, or a dict of the name and its keywords."""

    def parse(self, argument):
        if isinstance(argument, ConfigDict):
            return argument
        if re.fullmatch(r"\w+", argument):
            return ConfigDict({"name": argument})
        try:
            entry = ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            entry = None
        if not isinstance(entry, dict):
            raise ValueError("give a name, or a dict such as \"{'name': 'cosine', 'offset': 0.01}\"")
        return ConfigDict(entry)

    def flag_type(self):
        return "a name, or a dict of a name and its keywords"


_DEFINE = {int: flags.DEFINE_integer, bool: flags.DEFINE_boolean, str: flags.DEFINE_string}
