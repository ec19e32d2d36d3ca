"""CLIP's tokens, by hand and by another implementation."""

import json

import numpy as np
import pytest

from diffusion_jax.pretrained.tokenizer import clip_tokenizer

PIECES = [
    "a",
    "c",
    "t",
    "s",
    "1",
    "2",
    "!",
    "'",
    "a</w>",
    "c</w>",
    "t</w>",
    "s</w>",
    "1</w>",
    "2</w>",
    "!</w>",
    "'</w>",
]
JOINED = ["at</w>", "cat</w>", "'s</w>", "11</w>"]
WORDS = {word: place for place, word in enumerate([*PIECES, *JOINED, "<|startoftext|>", "<|endoftext|>"])}
START, END = WORDS["<|startoftext|>"], WORDS["<|endoftext|>"]


@pytest.fixture(autouse=True)
def library():
    return pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(WORDS))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n' s</w>\n1 1</w>\n")
    return tmp_path


def ids(*words, length=8):
    return [START, *(WORDS[word] for word in words), *[END] * (length - 1 - len(words))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat", ["cat</w>"]),
        ("  CAT\n\tat ", ["cat</w>", "at</w>"]),
        ("cat's", ["cat</w>", "'s</w>"]),
        ("cats", ["c", "a", "t", "s</w>"]),
        ("cat!11", ["cat</w>", "!</w>", "1</w>", "1</w>"]),  # digits stand alone
        ("", []),
    ],
)
def test_texts_become_pieces_of_words(folder, text, words):
    found = clip_tokenizer(folder, length=8)([text])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [ids(*words)])


def test_long_texts_keep_their_end(folder):
    found = clip_tokenizer(folder, length=5)(["cat " * 9, "at"])
    np.testing.assert_array_equal(found, [[START, *[WORDS["cat</w>"]] * 3, END], ids("at</w>", length=5)])


def test_a_description_is_read_first(folder, library):
    """The parts that a folder gives are those of its tokenizer.json, if it has one."""
    other = library.Tokenizer(library.models.WordLevel({"cat": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
    other.save(str(folder / "tokenizer.json"))
    np.testing.assert_array_equal(clip_tokenizer(folder, length=3)(["cat"]), [[0, 2, 2]])


def test_folders_without_a_tokenizer_of_clip_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor vocab.json with merges.txt"):
        clip_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match=r"has no <.startoftext.> or no <.endoftext.>; it is not CLIP's"):
        clip_tokenizer(tmp_path)


@pytest.mark.slow
def test_tokens_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    texts = ["A cat's  CAT!\n11 at", "cats'!!", "tac 2 1 12", "", "cat <|endoftext|> cat", "séa"]
    known = transformers.CLIPTokenizer(vocab=WORDS, merges=merges)
    expected = known(texts, padding="max_length", max_length=12, truncation=True)["input_ids"]
    np.testing.assert_array_equal(clip_tokenizer(folder, length=12)(texts), expected)
    known.backend_tokenizer.save(str(folder / "tokenizer.json"))
    np.testing.assert_array_equal(clip_tokenizer(folder, length=12)(texts), expected)
