"""Checkpoints: everything that decides how a run goes on, whole or not there at all.

A checkpoint of step n holds the state, the position in the data, and `about`: what made it, and a sum over the bits of
every array, by which damage that a file system does not notice is noticed on reading. It is written beside the run
(orbax, asynchronously) under another name and renamed when it is complete. In resuming, in this order:

 1. the newest checkpoint is read onto the devices at hand, however many wrote it;
 2. the sums of its bits are compared with those written down;
 3. if either fails, it is set aside as `N.damaged`, loudly, and the one before is tried;
 4. the data go on from the saved position, and the step counter from the saved step;
 5. if every checkpoint is damaged the run stops: starting anew is for a person to decide.
"""

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from diffusion_jax.training.state import TrainState

ITEMS = ("state", "data", "about")


class Restored(NamedTuple):
    """What a checkpoint held: the state, the data iterator's state, and what was noted about it."""

    state: Any
    data: Any
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Any, *, keep_last: int = 2, keep_every: int | None = None):
        """Open the folder; the last `keep_last` stay, and for good those of every `keep_every`-th step."""
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"checkpoints: keep_last is {keep_last} and keep_every {keep_every}; both must be >= 1.")
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)

    def steps(self) -> list[int]:
        """List the steps that can be gone back to, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data: Any, about: dict[str, Any]) -> None:
        """Write a checkpoint in the background; one of the same step is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        about = {**about, "bits": fingerprint(state)}
        parts = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(data)}
        self._manager.save(step, args=ocp.args.Composite(**parts, about=ocp.args.JsonSave(about)))

    def restore(self, like: Any) -> Restored | None:
        """Read the newest sound checkpoint as `like`, a tree of shapes and shardings.

        Returns None if there never was one.
        """
        for tried in reversed(self.steps()):
            try:
                return self._read(tried, like)
            except Exception as error:  # whatever a damaged file makes of its reader
                _refuse_another(self.folder / str(tried) / "state", like)
                self._set_aside(tried, error)
        damaged = sorted(path.name for path in self.folder.glob("*.damaged"))
        if damaged:
            raise RuntimeError(
                f"no checkpoint in {self.folder} can be read ({', '.join(damaged)}). Take a copy back from elsewhere, "
                "or start anew in another workdir."
            )
        return None

    def part(self, *names: str, step: int | None = None) -> tuple[int, Any]:
        """Read only one part of the newest state (or that of `step`), such as "averages", "ema", as numpy arrays."""
        step = self._there(step)
        found = read_part(self.folder / str(step) / "state", *names)
        _check_bits(found, self.noted(step), "." + names[0] + "".join(f"['{name}']" for name in names[1:]))
        return step, found

    def shapes(self, *names: str, step: int | None = None) -> Any:
        """Return the shapes of what `part` reads."""
        return _within(self.folder / str(self._there(step)) / "state", *names)

    def _there(self, step):
        """Return the newest step, or this one if there is a checkpoint of it."""
        known = self.steps()
        if not known or (step is not None and step not in known):
            raise ValueError(
                f"no checkpoint {'' if step is None else f'of step {step} '}in {self.folder}; has {known}."
            )
        return known[-1] if step is None else step

    def noted(self, step: int) -> dict[str, int]:
        """Return the sums over the bits of a checkpoint's arrays, as they were written."""
        return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]["bits"]

    def wait(self) -> None:
        """Return when everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        self._manager.close()

    def _read(self, step, like):
        parts = {"state": ocp.args.StandardRestore(like), "data": ocp.args.JsonRestore()}
        read = self._manager.restore(step, args=ocp.args.Composite(**parts, about=ocp.args.JsonRestore()))
        _check_bits(read["state"], read["about"]["bits"])
        return Restored(read["state"], read["data"], read["about"])

    def _set_aside(self, step, error):
        reason = " ".join(str(error).split())[:300]
        warnings.warn(
            f"THE CHECKPOINT OF STEP {step} IS DAMAGED and set aside as {step}.damaged; going back to the one before. "
            f"({type(error).__name__}: {reason})",
            stacklevel=3,
        )
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(self.folder / f"{step}.damaged")
        self._manager.reload()


def parts_of(path: Path) -> Any:
    """Return the tree of what an array checkpoint holds, as shapes."""
    with _quiet():
        metadata: Any = ocp.PyTreeCheckpointer().metadata(path).item_metadata
    return metadata.tree


def read_part(path: Path, *names: str) -> Any:
    """Read one part of an array checkpoint, found by its names from the root, as numpy arrays."""
    wanted = _within(path, *names)
    for name in reversed(names):
        wanted = {name: wanted}
    how = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    reading = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
    with _quiet():
        found = ocp.PyTreeCheckpointer().restore(path, args=reading)
    for name in names:
        found = found[name]
    return found


def _within(path, *names):
    """Return the shapes of a part."""
    wanted = parts_of(path)
    for name in names:
        if name not in wanted:
            raise ValueError(f"the checkpoint in {path} has no '{name}'; there are {', '.join(sorted(wanted))}.")
        wanted = wanted[name]
    return wanted


def _refuse_another(path, like):
    """Refuse the state of another network, which is whole and not damaged."""
    try:
        found = _shapes(parts_of(path))
    except Exception:  # it is damaged so much that it does not say what it holds
        return
    wanted = _shapes(like)
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if other:
        raise ValueError(
            f"{path} holds the state of another network: {other[0]} is {found[other[0]]} there and {wanted[other[0]]} "
            "here. A version of the package that changed it may be why: go on with the one that run.json names, or "
            "train anew in another workdir."
        )


def _shapes(tree):
    """Map paths to the shapes of arrays, but for keys, which are stored as their words."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape") and path[-1] != jax.tree_util.GetAttrKey("key")
    }


@contextlib.contextmanager
def _quiet():
    """Leave out the warning that a part of a checkpoint has no metadata of its own: it is in the folder above."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def fingerprint(tree: Any) -> dict[str, int]:
    """Sum the bits of every array, as words modulo 2^32: the same whatever devices hold it."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: int(value) for name, value in jax.device_get(_sums(named)).items()}


def _check_bits(tree, noted, prefix=""):
    wrong = [name for name, bits in fingerprint(tree).items() if noted.get(prefix + name) != bits]
    if wrong:
        raise ValueError(f"the bits of {', '.join(wrong[:3])} are not those that were written")


@jax.jit
def _sums(named):
    return {name: _sum(leaf) for name, leaf in named.items()}


def _sum(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    word = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    return jnp.sum(jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32), dtype=jnp.uint32)
