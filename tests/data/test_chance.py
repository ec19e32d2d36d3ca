"""Streams of random numbers have names, and no two names have the same."""

import itertools

import numpy as np

from diffusion_jax.data.chance import SCENE, TRANSFORM, generator, uniforms, words


def test_every_part_of_the_name_matters_and_nothing_else():
    names = itertools.product((SCENE, TRANSFORM), (0, 1, 2**63 - 1), (0, 1, 2**40), (0, 1, 2**40))
    drawn = {name: generator(*name[:2], epoch=name[2], example=name[3]).random(4) for name in names}
    for name in reversed(drawn):
        np.testing.assert_array_equal(generator(*name[:2], epoch=name[2], example=name[3]).random(4), drawn[name])
    assert len(np.unique(np.concatenate(list(drawn.values())))) == 4 * len(drawn)


def test_the_words_of_many_examples_are_those_of_each():
    examples = np.array([0, 1, 2, 12345, 2**32, 2**40 + 7, 2**63], np.uint64)
    for purpose, seed in ((SCENE, 0), (TRANSFORM, 2**63 - 1)):
        found = words(purpose, seed, examples)
        for row, example in zip(found, examples, strict=True):
            np.testing.assert_array_equal(
                row, generator(purpose, seed, example=int(example)).bit_generator.random_raw(4)
            )
    numbers = uniforms(np.array([0, 2**64 - 1], np.uint64))
    assert numbers[0] == 0 and 1 - 2**-52 < numbers[1] < 1


def test_neighbours_are_not_alike():
    rows = np.array([generator(SCENE, 0, example=i).normal(size=50) for i in range(400)])
    near = np.einsum("ik,ik->i", rows[1:], rows[:-1]) / 50
    assert abs(near.mean()) < 5 / np.sqrt(near.size * 50)
    assert abs(rows.mean()) < 5 / np.sqrt(rows.size)
