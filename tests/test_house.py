"""The plan of docs/architecture.md, held against the code."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion_jax"

MATHS = {"process", "denoisers", "solvers", "losses"}
EVERY_ROOM = MATHS | {"editing", "distill", "nets", "pretrained", "evaluation", "training", "data"}

BESIDE = {"adapters", "codecs", "prompts"}  # what a model needs beside its network
ABOVE = BESIDE | {
    "starts",
    "assess",
    "config",
    "experiment",
    "plots",
    "sampler",
    "samples",
    "sides",
    "trained",
    "truth",
    "workdir",
}

# Who may import whom: a room, or a file of the first level. `types`, `naming`, `files` and `devices` are everybody's;
# `types` and `devices` load JAX, which data must not.
MAY_IMPORT = {
    "types": set(),
    "naming": set(),
    "files": set(),
    "devices": set(),
    "process": set(),
    "denoisers": {"process"},
    "solvers": {"process"},
    "losses": {"process"},
    "editing": {"process", "denoisers", "solvers"},
    "distill": {"process", "denoisers", "solvers", "losses"},
    "nets": set(),
    "pretrained": {"nets"},
    "evaluation": {"nets", "pretrained", "data"},
    "training": set(),
    "data": set(),
    "plots": set(),
    "adapters": EVERY_ROOM,
    "codecs": EVERY_ROOM,
    "prompts": EVERY_ROOM,
    "starts": EVERY_ROOM | {"workdir"},
    "experiment": EVERY_ROOM | BESIDE | {"starts"},
    "sampler": EVERY_ROOM | {"experiment", "prompts"},
    "config": set(),
    "workdir": set(),
    "trained": EVERY_ROOM | {"config", "experiment", "workdir"},
    "samples": EVERY_ROOM | {"experiment", "plots", "trained", "workdir", "sampler"},
    "truth": EVERY_ROOM | {"experiment", "samples", "trained", "sampler"},
    "sides": EVERY_ROOM | {"samples", "trained", "workdir"},
    "assess": EVERY_ROOM | {"experiment", "samples", "sides", "trained", "truth", "workdir", "sampler"},
    "sweep": EVERY_ROOM | {"assess", "trained"},
    "bits": EVERY_ROOM | {"assess", "experiment", "prompts", "samples", "sides", "trained", "workdir", "sampler"},
    "encoded": EVERY_ROOM | {"codecs"},
    "imported": EVERY_ROOM | {"codecs", "config", "experiment", "workdir", "sampler"},
    "run": EVERY_ROOM
    | {"assess", "experiment", "plots", "prompts", "sampler", "samples", "sweep", "trained", "truth", "workdir"},
    "ablation": EVERY_ROOM | ABOVE | {"launch", "sweep"},
    "launch": EVERY_ROOM | {"config", "experiment", "prompts", "workdir", "sampler"},
    "cli": EVERY_ROOM | ABOVE | {"bits", "encoded", "imported", "run", "sweep", "ablation", "launch"},
    "__main__": {"cli"},
    "__init__": EVERY_ROOM,
}
EVERYBODYS = {"types", "naming", "files", "devices"}

# What the rooms of mathematics may import beside the standard library, at module level.
THIRD_PARTY = {
    "types": {"jax"},
    "naming": set(),
    "process": {"jax", "numpy"},
    "denoisers": {"jax", "numpy"},
    "solvers": {"jax", "numpy"},
    "losses": {"jax", "numpy"},
    "__init__": set(),
}
NAMELESS = {"utils", "util", "common", "misc", "helpers", "helper", "core", "base", "lib"}


def sources(*folders):
    """List the Python files below some folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def tree(path):
    """Parse a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room(path):
    """Name the room a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(node):
    """List the dotted names that a tree imports anywhere, and `a.b.c` for `from a.b import c`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            assert inner.level == 0, "imports are written out in full"
            yield from (f"{inner.module}.{alias.name}" for alias in inner.names)


def functions(node):
    """List the functions of a tree, nested ones and methods too."""
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]


def shown(path):
    """Name a file in a test's identity."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("diffusion_jax"), ids=shown)
def test_imports_follow_the_plan(path):
    here = room(path)
    assert here in MAY_IMPORT, f"the room '{here}' is not in the plan"
    allowed = MAY_IMPORT[here] | {here} | (EVERYBODYS - {"types", "devices"} if here == "data" else EVERYBODYS)
    for name in imports(tree(path)):
        package, _, rest = name.partition(".")
        if package == "diffusion_jax" and rest:
            other = rest.split(".")[0]
            if other != "__version__":
                assert other in allowed, f"{here} imports {name}; it may import {sorted(allowed)}"
        assert package not in {"tensorflow", "torch"}, f"{shown(path)} imports {name}"
        assert here != "data" or package not in {"jax", "flax"}, f"{shown(path)} imports {name}"


@pytest.mark.parametrize("path", sources("diffusion_jax"), ids=shown)
def test_mathematics_needs_little(path):
    allowed = THIRD_PARTY.get(room(path))
    if allowed is None:
        return
    for name in imports(ast.Module([node for node in tree(path).body if not isinstance(node, ast.If)], [])):
        package = name.split(".")[0]
        local = {"diffrax", "tqdm"}  # imported where they are used
        assert package in allowed | {"diffusion_jax"} | local | set(sys.stdlib_module_names), f"it imports {name}"


@pytest.mark.parametrize("path", sources("configs"), ids=shown)
def test_configs_are_data(path):
    for name in imports(tree(path)):
        assert name.split(".")[0] in ("ml_collections", "typing") or name == "configs.base", f"it imports {name}"


@pytest.mark.parametrize("path", sources("diffusion_jax", "configs", "experiments", "tests"), ids=shown)
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for function in functions(tree(path)):
        assert (function.end_lineno or 0) - function.lineno < 60, f"{function.name} is too long"
        positional = [a.arg for a in function.args.posonlyargs + function.args.args if a.arg != "self"]
        # What a test takes are cases and fixtures, by name.
        assert len(positional) <= 5 or function.name.startswith("test_"), f"{function.name} takes {positional}"


@pytest.mark.parametrize("path", sources("diffusion_jax"), ids=shown)
def test_everything_public_is_explained(path):
    body = tree(path)
    if path.read_text().strip() and path.name != "__init__.py":
        assert ast.get_docstring(body), "the file has no docstring"
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").split("\n\n")[0]
            assert first.endswith((".", ":")), f"{node.name} has no docstring that starts with a sentence"


@pytest.mark.parametrize("path", sources("diffusion_jax"), ids=shown)
def test_names_say_something(path):
    parts = [part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts]
    assert not NAMELESS & set(parts)
    assert len(parts) <= 2, "three levels and no more"


def test_the_public_names_are_written_once_each():
    """The names that type checkers see are the names that load."""
    package = importlib.import_module("diffusion_jax")
    seen = {}
    (checked_only,) = (node for node in tree(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    for line in checked_only.body:
        assert isinstance(line, ast.ImportFrom)
        seen |= {alias.name: line.module for alias in line.names}
    assert seen == package.HOMES
    assert set(package.__all__) == {*package.HOMES, "__version__"}
    for name, module in package.HOMES.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="smaple.*Did you mean 'sample'"):
        _ = package.smaple


def test_importing_is_light():
    code = (
        "import sys, diffusion_jax; assert 'jax' not in sys.modules\n"
        "for name in diffusion_jax.__all__: getattr(diffusion_jax, name)\n"
        "heavy = {'tensorflow', 'torch', 'matplotlib', 'diffrax', 'tqdm', 'ml_collections'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def fences(language):
    """List the README's fenced blocks of one language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_of_the_readme_runs(capsys):
    (example,) = fences("python")
    assert len(example.strip().splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    error = float(capsys.readouterr().out.split()[-1])
    assert 0 < error < 0.01


def test_the_readme_gives_two_commands_and_ci_runs_the_tests_one():
    job, tests = (block.strip().splitlines()[-1] for block in fences("sh"))
    assert "-m diffusion_jax train --config configs/quickstart.py" in job
    assert "-m pytest tests" in tests
    assert all(command.startswith("python3 -m venv .venv && ") for command in (job, tests))
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    set_up, run_tests = tests.rsplit(" && ", 1)
    assert set_up.removeprefix("python3 -m venv .venv && ") in script
    assert script.rstrip().splitlines()[-1].startswith(run_tests)


def tables():
    """Find the package's tables: public names in capitals, each bound to a literal dict from names to functions."""
    for path in sources("diffusion_jax"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in tree(path).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Dict)
                and isinstance(node.targets[0], ast.Name)
            ):
                name = node.targets[0].id
                if name.isupper() and not name.startswith("_") and module != "diffusion_jax":
                    yield pytest.param(module, name, id=name)


@functools.cache
def laws():
    """List what every parametrised test of the repository runs over: (test module, names)."""
    found = []
    for path in sources("tests"):
        if not path.name.startswith("test_") or path == Path(__file__):
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for test in vars(module).values():
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            found += [(module, set(words(mark.args[1]))) for mark in marks]
    return found


def words(values):
    """List the strings in the values of a parametrised argument, however deep."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | tuple):
            yield from words(value)


@pytest.mark.parametrize(("module", "name"), list(tables()))
def test_every_entry_of_every_table_is_under_a_law(module, name):
    """Some test, in a file that knows the table or its cases, runs over every one of its names."""
    table = getattr(importlib.import_module(module), name)
    cases = (ROOT / "tests" / "laws.py").read_text(encoding="utf-8")
    knows = [names for test, names in laws() if name in Path(str(test.__file__)).read_text() + cases]
    best = max(knows, key=lambda names: len(names & set(table)), default=set())
    assert set(table) <= best, f"no law of {name} runs over {sorted(set(table) - best)}"
