"""The notebooks: clean as committed, and each runs from top to bottom in a fresh kernel, wherever it is started."""

import re

import nbformat
import pytest

from experiments.notebook_pictures import IMAGES, NOTEBOOKS, ROOT, execute, pictures

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PAGE = ROOT / "docs" / "notebooks.md"
LIMIT = 240  # seconds for a notebook that says it takes less than one minute, on a machine that does other things too
LARGEST = 150_000  # bytes of a picture

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    """Return a notebook as it is in its file."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def promised(notebook):
    """List the pictures that a notebook's cells name."""
    return [cell.metadata["picture"] for cell in notebook.cells if "picture" in cell.metadata]


def test_there_are_notebooks():
    assert len(PATHS) >= 5


@each
def test_a_notebook_is_clean(path):
    notebook = read(path)
    assert notebook.nbformat == 4
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", cell.id), f"'{cell.id}' is no name for a cell"
        if cell.cell_type == "code":
            assert not cell.outputs, f"{cell.id} has outputs"
            assert cell.execution_count is None, f"{cell.id} has been executed"
            assert not re.search(r"""["'](/|~|[A-Za-z]:\\)""", cell.source), f"{cell.id} holds an absolute path"


@each
def test_the_first_cell_says_what_is_asked_and_how_long_it_takes(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)
    assert re.search(r"\*\*[^*]+\?\*\*", first.source), "no question"
    assert re.search(r"About \d+ seconds", first.source), "no duration"
    assert "$$" in first.source, "no mathematics"


@each
def test_the_page_shows_the_notebook_and_its_pictures(path):
    page = PAGE.read_text(encoding="utf-8")
    assert f"(../notebooks/{path.name})" in page
    for name in promised(read(path)):
        assert f"(images/{name}.png)" in page
        assert (IMAGES / f"{name}.png").stat().st_size < LARGEST


def test_the_page_shows_nothing_else():
    shown = re.findall(r"\(images/(.+?)\.png\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(name for path in PATHS for name in promised(read(path)))


@pytest.mark.slow
@each
def test_a_notebook_runs(path, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    environment = {
        "DIFFUSION_JAX_CACHE": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    executed = execute(path, here, seconds=LIMIT, environment=environment)
    assert list(pictures(executed)) == promised(read(path))
    showing = [cell for cell in executed.cells if cell.id.endswith(("-plot", "-check"))]
    assert all(cell.outputs for cell in showing), [cell.id for cell in showing if not cell.outputs]
    assert not any(here.iterdir()), "it leaves files where it was started"
