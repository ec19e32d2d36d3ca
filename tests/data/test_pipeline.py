"""The law of the pipeline: a batch is a function of its step, whoever computes which part of it, and when."""

import json
from typing import Any

import numpy as np
import pytest

from diffusion_jax.data import make_evaluation, make_pipeline, make_source
from diffusion_jax.data.array import from_arrays

TRANSFORMS = ["flip", "to_unit", "drop_label", {"name": "condition", "entries": ("label", "caption")}]


def pictures(count=50):
    return make_source({"name": "shapes", "side": 12, "examples": count, "entries": ("x", "label", "caption")})


def numbers(count=50):
    """Examples that say which they are."""
    return from_arrays({"x": np.arange(count, dtype=np.float32)[:, None], "label": np.arange(count) % 7})


def pipeline(**keywords):
    return make_pipeline(pictures(), TRANSFORMS, **{"batch_size": 8, "seed": 3, **keywords})


def leaves(batch):
    for name, value in sorted(batch.items()):
        yield from leaves(value) if isinstance(value, dict) else [(name, value)]


def assert_same(one, other):
    for (name, a), (also, b) in zip(leaves(one), leaves(other), strict=True):
        assert name == also and a.dtype.kind == b.dtype.kind
        np.testing.assert_array_equal(a, b, err_msg=name)


def joined(batches) -> Any:
    """Put the shards of hosts one after another."""
    first = batches[0]
    return {
        name: joined([batch[name] for batch in batches])
        if isinstance(value, dict)
        else np.concatenate([batch[name] for batch in batches])
        for name, value in first.items()
    }


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_shards_of_hosts_are_the_batch_of_one(hosts):
    whole = pipeline()
    shards = [pipeline(shard=(host, hosts)) for host in range(hosts)]
    for step in (0, 1, 6, 7, 1000):  # 6 runs on into the second epoch
        assert_same(joined([shard[step] for shard in shards]), whole[step])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_shards_of_an_evaluation_are_the_pass_of_one(hosts):
    whole = make_evaluation(pictures(), ["to_unit"], batch_size=8)
    shards = [make_evaluation(pictures(), ["to_unit"], batch_size=8, shard=(host, hosts)) for host in range(hosts)]
    assert len({len(shard) for shard in [*shards, whole]}) == 1
    for step in range(len(whole)):
        assert_same(joined([shard[step] for shard in shards]), whole[step])


@pytest.mark.parametrize("batch_size", [1, 8, 50, 64])
def test_the_row_of_examples_does_not_depend_on_the_batch(batch_size):
    long, short = pipeline(batch_size=batch_size), pipeline(batch_size=2)
    row = joined([short[step] for step in range(64)])
    found = joined([long[step] for step in range(128 // batch_size)])
    for (name, a), (_, b) in zip(leaves(found), leaves(row), strict=True):
        np.testing.assert_array_equal(a, b[: len(a)], err_msg=name)


def test_every_epoch_holds_every_example_once_and_epochs_differ():
    count, batch_size = 50, 8
    batches = make_pipeline(numbers(count), batch_size=batch_size)
    row = np.concatenate([batches[step]["x"][:, 0] for step in range(25)]).astype(int)
    epochs = row.reshape(4, count)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.broadcast_to(np.arange(count), (4, count)))
    for one in range(4):
        for other in range(one):
            assert (epochs[one] == epochs[other]).mean() < 0.2
    index = np.concatenate([batches[step]["index"] for step in range(25)])
    np.testing.assert_array_equal(index, np.arange(200))
    assert index.dtype == np.int64


def test_a_seed_chooses_the_order_and_the_chances():
    one, other = pipeline(seed=1), pipeline(seed=2)
    assert (one[0]["cond"]["caption"] != other[0]["cond"]["caption"]).any()
    always = [make_pipeline(pictures(1), ["flip", "to_unit"], batch_size=64, seed=seed)[0]["x"] for seed in (1, 2)]
    assert (always[0] != always[1]).any()  # one example, so only the flips differ
    assert len({image.tobytes() for image in always[0]}) == 2


def test_a_run_ends_after_its_epochs_without_a_rest():
    finite = make_pipeline(numbers(50), batch_size=8, epochs=3)
    assert len(finite) == 150 // 8
    assert len(list(finite)) == 150 // 8
    with pytest.raises(IndexError):
        _ = finite[18]


def test_an_evaluation_is_one_pass_in_order_filled_up():
    batches = list(make_evaluation(numbers(50), batch_size=16))
    assert [len(batch["x"]) for batch in batches] == [16] * 4
    valid = np.concatenate([batch["valid"] for batch in batches])
    row = np.concatenate([batch["x"][:, 0] for batch in batches])
    np.testing.assert_array_equal(row[valid], np.arange(50))
    np.testing.assert_array_equal(valid, np.arange(64) < 50)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_reading_ahead_changes_nothing(prefetch):
    ahead = pipeline(prefetch=prefetch)
    iterator = iter(ahead)
    for step in range(10):
        assert_same(next(iterator), ahead[step])
    iterator.close()


def run(iterator, steps):
    batches = [next(iterator) for _ in range(steps)]
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    return batches, state


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_run_resumes_where_it_was_on_any_number_of_hosts(hosts):
    whole, _ = run(iter(pipeline()), 14)
    _, state = run(iter(pipeline(shard=(1, 2))), 5)
    parts = []
    for host in range(hosts):
        iterator = iter(pipeline(shard=(host, hosts)))
        next(iterator)
        iterator.set_state(state)
        parts.append(run(iterator, 9)[0])
    for step in range(9):
        assert_same(joined([part[step] for part in parts]), whole[5 + step])


def test_the_state_is_the_number_of_the_next_step_and_an_epoch_may_be_over():
    finite = pipeline(epochs=1)
    iterator = finite.iterate(len(finite) - 1)
    assert_same(next(iterator), finite[len(finite) - 1])
    assert iterator.get_state() == {"step": len(finite)}
    assert not list(iterator)
    iterator.set_state({"step": 2})
    assert_same(next(iterator), finite[2])
    with pytest.raises(ValueError, match="is it the same run"):
        iterator.set_state({"step": len(finite) + 1})


def test_grains_checkpoints_take_the_iterator(tmp_path):
    import grain

    iterator = pipeline().iterate(3)
    expected = [next(iterator) for _ in range(2)]
    iterator.set_state({"step": 4})
    handler = grain.checkpoint.CheckpointHandler()
    handler.save(tmp_path, iterator)
    restored = handler.restore(tmp_path, pipeline().iterate())
    assert restored.get_state() == {"step": 4}
    assert_same(next(restored), expected[1])


def test_an_error_in_a_batch_is_raised_and_the_step_stays():
    class Broken:
        info = numbers().info

        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 5 and fails:
                raise OSError("the disk is gone")
            return numbers()[index]

    fails = [True]
    batches = make_evaluation(Broken(), batch_size=2)
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    assert iterator.get_state() == {"step": 2}
    fails.clear()
    assert next(iterator)["index"].tolist() == [4, 5]


def test_worker_processes_give_the_same_batches_and_resume():
    whole = pipeline()
    iterator = pipeline(workers=2).iterate(1)
    for step in range(1, 7):
        assert_same(next(iterator), whole[step])
    assert iterator.get_state() == {"step": 7}
    iterator.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pipeline(batch_size=9, shard=(0, 2)), "must be a multiple of the 2"),
        (lambda: pipeline(batch_size=0), "must be a multiple"),
        (lambda: pipeline(shard=(2, 2)), "counted from 0"),
        (lambda: pipeline(seed=-1), "seed is -1"),
        (lambda: pipeline(batch_size=64, epochs=1), "do not fill a batch"),
        (lambda: pipeline(workers=-1), "must not be negative"),
        (lambda: pipeline(workers=1, prefetch=0), "at least 1"),
        (lambda: make_evaluation(pictures(), ["flip"], batch_size=2), "flip would change examples at random"),
        (lambda: make_evaluation(pictures(), ["drop_label"], batch_size=2), "drop_label would change"),
        (lambda: make_pipeline(pictures(), ["to_unti"], batch_size=2), "Did you mean 'to_unit'"),
        (lambda: pipeline().iterate(-1), "step -1"),
    ],
)
def test_bad_pipelines_are_refused_with_a_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_examples_of_different_shapes_are_named():
    source = numbers()
    ragged = [{"x": np.zeros(1 + i % 2), "label": np.int32(0)} for i in range(50)]

    class Ragged:
        info = source.info

        def __len__(self):
            return 50

        def __getitem__(self, index):
            return ragged[index]

    with pytest.raises(ValueError, match=r"'x' has the shapes \(1,\) and \(2,\)"):
        _ = make_pipeline(Ragged(), batch_size=16)[0]
