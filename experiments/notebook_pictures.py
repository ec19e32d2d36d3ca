"""The pictures of docs/notebooks.md: the notebooks are run, and the cells that name a picture leave it in docs/images.

    python -m experiments.notebook_pictures                    # all notebooks
    python -m experiments.notebook_pictures 00_the_process     # some

A cell of a notebook names its picture in its metadata, {"picture": "schedules"}. Needs `pip install -e .[notebooks]`.
"""

import base64
import io
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS, IMAGES = ROOT / "notebooks", ROOT / "docs" / "images"
LIMIT = 600  # seconds for one notebook
# Colours of a picture by the way they are chosen: the first keep shades smooth, the second keep rare colours from grey.
PALETTE = {Image.Quantize.MEDIANCUT: 96, Image.Quantize.MAXCOVERAGE: 160}


class ThisPython(AsyncKernelManager):
    """Starts kernels of the interpreter at hand, whatever kernels are registered on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Say how a kernel is started."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def execute(path: Path, folder: Path, *, seconds: int = LIMIT, environment: Mapping[str, str] | None = None) -> Any:
    """Run a notebook from top to bottom in a fresh kernel started in `folder`; return it with its outputs.

    The kernel sees this process's environment and `environment`. An error in a cell is raised, and so is a run longer
    than `seconds`.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, km=ThisPython(), timeout=seconds, resources={"metadata": {"path": str(folder)}})
    client.owns_km = True  # or the kernel would outlive its notebook
    return client.execute(env={**os.environ, **(environment or {})})


def pictures(notebook: Any) -> dict[str, bytes]:
    """Return the PNG files of the cells that name a picture; one that shows none is refused."""
    found = {}
    for cell in notebook.cells:
        name = cell.metadata.get("picture")
        if name is None:
            continue
        shown = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        if len(shown) != 1:
            raise ValueError(f"the cell '{cell.id}' promises the picture '{name}' and shows {len(shown)} pictures.")
        found[name] = base64.b64decode(shown[0])
    return found


def shrunk(picture: bytes) -> bytes:
    """Return a PNG file with few enough colours to be small: common ones, and such that cover the range."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for method, count in PALETTE.items() for value in _colours(image, method, count)])
    file = io.BytesIO()
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    return file.getvalue()


def _colours(image, method, count):
    return (image.quantize(count, method=method, kmeans=3).getpalette() or [])[: 3 * count]


def main(names: Sequence[str]) -> None:
    """Run the notebooks of these names, by default all, and write their pictures."""
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"no notebook {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
    for name in names or known:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            shown = pictures(execute(known[name], Path(folder)))
        print(f"{name}: {time.perf_counter() - begun:.0f} s")
        for word, picture in shown.items():
            small = shrunk(picture)
            (IMAGES / f"{word}.png").write_bytes(small)
            print(f"  {word}.png: {len(small) / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
