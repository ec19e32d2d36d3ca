"""Image data sets of the TensorFlow Datasets catalogue, read by index and without TensorFlow.

Only data prepared on disk as array_record can be read at any place; preparing is a step of its own, done once.
"""

from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from diffusion_jax.data.source import BYTES, Example, Info, place
from diffusion_jax.naming import lookup


class Tfds:
    """A source of one split of a prepared data set; what is open is opened anew in every process."""

    def __init__(self, *, dataset, split, data_dir, entries):
        self._which = (dataset, split, data_dir)
        self._entries = entries
        builder, self._records = _opened(*self._which)
        self.info = _info(builder, entries)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self._records[place(index, len(self))]
        return {ours: _value(record[theirs]) for ours, theirs in self._entries.items()}

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_records"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._records = _opened(*self._which)[1]


def tfds(
    *,
    dataset: str,
    split: str = "train",
    data_dir: str | None = None,
    image: str = "image",
    label: str | None = "label",
    caption: str | None = None,
) -> Tfds:
    """Read a split of the data set that the catalogue calls `dataset`, prepared below `data_dir`.

    `image`, `label` and `caption` are its names for what an example calls x, label and caption; None leaves it out.
    """
    entries = {"x": image, "label": label, "caption": caption}
    return Tfds(
        dataset=dataset,
        split=split,
        data_dir=None if data_dir is None else str(Path(data_dir).expanduser()),
        entries={ours: theirs for ours, theirs in entries.items() if theirs is not None},
    )


def _opened(dataset, split, data_dir):
    """Return the data set's builder and the records of its split."""
    import tensorflow_datasets

    where = data_dir or "~/tensorflow_datasets"
    prepare = (
        f"Prepare it once, on a machine with TensorFlow, by "
        f"`tfds build {dataset} --file_format=array_record --data_dir={where}`, or give the data_dir it is in."
    )
    try:
        builder: Any = tensorflow_datasets.builder(dataset, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError:
        message = f"tfds: there is no data set '{dataset}' in {where}, nor in the catalogue. {prepare}"
        raise ValueError(message) from None
    if not builder.info.splits:
        raise ValueError(f"tfds: the data set '{dataset}' is not prepared in {where}. {prepare}")
    try:
        return builder, builder.as_data_source(split=split)
    except NotImplementedError:
        kind = builder.info.file_format
        message = f"tfds: '{dataset}' is prepared in {where}, but as {kind and kind.value}. {prepare}"
        raise ValueError(message) from None
    except (KeyError, ValueError) as error:
        known = ", ".join(sorted(builder.info.splits))
        raise ValueError(f"tfds: '{dataset}' has no split '{split}' ({error}). Known: {known}.") from None


def _info(builder, entries) -> Info:
    features: Any = builder.info.features
    for ours, theirs in entries.items():
        if theirs not in features:
            lookup(dict.fromkeys(features), theirs, f"feature of '{builder.name}' for {ours}")
    classes = ()
    if "label" in entries:
        classes = tuple(getattr(features[entries["label"]], "names", None) or ())
        if not classes:
            raise ValueError(
                f"tfds: '{entries['label']}' of '{builder.name}' is no class label. Name one by label=, or label=None."
            )
    shapes = {ours: tuple(features[theirs].shape) for ours, theirs in entries.items()}
    return Info(builder.name, shapes, classes, BYTES)


def _value(value):
    """Return text as a string, numbers as numpy's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return np.asarray(value) if getattr(value, "ndim", 0) else value if isinstance(value, str) else np.int32(value)
