"""T5's tokens, by hand and by another implementation."""

import numpy as np
import pytest

from diffusion_jax.pretrained.t5_tokenizer import t5_tokenizer

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁cat", "c", "a", "t", "s", "at", "."]
WORDS = {word: place for place, word in enumerate(PIECES)}
SCORES = [0.0, 0.0, 0.0, -2.0, -2.5, -3.0, -5.0, -5.0, -5.0, -4.0, -6.0, -4.0]


@pytest.fixture(autouse=True)
def library():
    return pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path, library):
    """A tokenizer with the parts of T5's, and with settings for padding that are not those asked for."""
    model = library.models.Unigram(list(zip(PIECES, SCORES, strict=True)), unk_id=2)
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = library.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a cat", ["▁a", "▁cat"]),
        ("cats.", ["▁cat", "s", "."]),
        ("t", ["▁", "t"]),
        ("a dog", ["▁a", "▁", "<unk>"]),
        ("", []),
    ],
)
def test_texts_become_pieces_and_an_end(folder, text, pieces):
    found = t5_tokenizer(folder, length=6)([text, "a"])
    expected = [*(WORDS[piece] for piece in pieces), WORDS["</s>"]]
    assert found.ids.dtype == np.int32 and found.mask.shape == (2, 6)
    np.testing.assert_array_equal(found.ids[0], expected + [0] * (6 - len(expected)))
    np.testing.assert_array_equal(found.mask.sum(1), [len(expected), 2])
    assert found.cut == ("", "")


def test_long_texts_keep_their_end_and_what_is_cut_is_said(folder):
    found = t5_tokenizer(folder, length=3)(["a cat a cats.", "a cat", "cats at"])
    np.testing.assert_array_equal(found.ids[0], [WORDS["▁a"], WORDS["▁cat"], WORDS["</s>"]])
    assert found.mask.all()
    assert found.cut == ("a cats.", "", "at")
    assert t5_tokenizer(folder, length=1)(["a"]).cut == ("a",)
    assert t5_tokenizer(folder, length=4)([]).ids.shape == (0, 4)


def test_folders_without_a_tokenizer_of_t5_are_refused(tmp_path, library):
    with pytest.raises(ValueError, match=r"has no tokenizer.json. `transformers.AutoTokenizer"):
        t5_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match="spiece.model alone cannot be read without sentencepiece"):
        t5_tokenizer(tmp_path)
    library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no <pad> or no </s>; it is not T5's"):
        t5_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="t5_tokenizer: length is 0"):
        t5_tokenizer(tmp_path, length=0)


@pytest.mark.slow
def test_tokens_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    known = transformers.T5Tokenizer(vocab=list(zip(PIECES, SCORES, strict=True)), extra_ids=0)
    texts = ["a cat", "cats at a t.", "", "a  cat\n", "a </s> cat", "c é"]
    known.backend_tokenizer.save(str(folder / "tokenizer.json"))
    for length in (3, 12):
        expected = known(texts, padding="max_length", max_length=length, truncation=True)
        found = t5_tokenizer(folder, length=length)(texts)
        np.testing.assert_array_equal(found.ids, expected["input_ids"])
        np.testing.assert_array_equal(found.mask, expected["attention_mask"])
