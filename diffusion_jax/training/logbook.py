"""What a run leaves to be read: `metrics.jsonl`, TensorBoard's event files, pictures, and a line on the terminal.

A run that goes on after a kill strikes out what lies after its checkpoint, so each step is told once.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics

from diffusion_jax.files import replacing
from diffusion_jax.types import Metrics

FILE = "metrics.jsonl"


class Means:
    """Means over steps, kept on the device by clu's `Average`, elementwise for what is not a scalar."""

    def __init__(self):
        self._sums: Any = None

    def add(self, metrics: Metrics) -> None:
        """Take one step's metrics in."""
        new = {
            name: clu_metrics.Average(total=value, count=np.int32(1))  # pyright: ignore[reportCallIssue]
            for name, value in metrics.items()
        }
        self._sums = new if self._sums is None else _merged(self._sums, new)

    def take(self) -> dict[str, np.ndarray]:
        """Return the means since the last time, on the host, and start again."""
        sums, self._sums = self._sums, None
        return {name: np.asarray(total.compute()) for name, total in (sums or {}).items()}


@jax.jit
def _merged(sums, new):
    return {name: sums[name].merge(new[name]) for name in new}


class Logbook:
    """The record of one run in its workdir; on hosts other than the first it writes nothing."""

    def __init__(self, workdir: Path, *, step: int = 0, tensorboard: bool = True, wandb: str = ""):
        """Open the record after `step` steps; `wandb` names the project there, if it is to be told too."""
        self._writes = jax.process_index() == 0
        self._events = self._wandb = None
        self.workdir = Path(workdir)
        if not self._writes:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        _strike_out(self.workdir / FILE, step)
        self._lines = (self.workdir / FILE).open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter  # half a second, for those who want it

            self._events = SummaryWriter(str(self.workdir / "events"), purge_step=step + 1, filename_suffix=f".{step}")
        if wandb:
            self._wandb = _start_wandb(wandb, self.workdir)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Record numbers, and rows of numbers, of one step."""
        if not self._writes:
            return
        plain = {name: _plain(value) for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **plain}) + "\n")
        self._lines.flush()
        numbers = {name: value for name, value in plain.items() if isinstance(value, int | float)}
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Record an image (height, width, 3) in uint8 as `pictures/NAME_STEP.png` and to TensorBoard."""
        if not self._writes:
            return
        from PIL import Image

        folder = self.workdir / "pictures"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}_{step:08d}.png")
        if self._events is not None:
            self._events.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb  # pyright: ignore[reportMissingImports]

            self._wandb.log({name: wandb.Image(pixels)}, step=step)

    def say(self, text: str) -> None:
        """Tell the person who watches, beside the progress bar."""
        if self._writes:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the files."""
        if self._writes:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def read(workdir: Any) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; a last one cut off by a kill is left out."""
    path = Path(workdir) / FILE
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _plain(value):
    """Turn numbers, in rows or not, into json: what is not finite is null there."""
    value = np.asarray(value)
    return [_plain(each) for each in value] if value.ndim else (value.item() if np.isfinite(value) else None)


def _strike_out(path, step):
    """Keep the lines up to `step`; written anew under another name and renamed."""
    if not path.exists():
        return
    kept = [line for line in read(path.parent) if line["step"] <= step]
    with replacing(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def _start_wandb(project, workdir):
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("the config asks for wandb, which is not installed: pip install wandb.") from None
    return wandb.init(project=project, dir=str(workdir), name=workdir.name, resume="allow")
