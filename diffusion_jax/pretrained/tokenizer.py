"""CLIP's tokens: pieces of lower-case words, between a start and an end, as a folder of transformers describes them.

The whole description is in tokenizer.json; older folders have only the pieces, vocab.json, and the order in which they
are joined, merges.txt, and the rest is the same for every CLIP. Both are read by the library `tokenizers`.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.pretrained.tensors import identity_of, read_json, refuse_others

START, END = "<|startoftext|>", "<|endoftext|>"
LEGACY_END = 2  # of old configs, whose readers take the largest token for the end
# A piece never crosses from letters to digits or marks, and each digit is alone.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    """Tokens int32 (N, length), which of them exist, and what of each text there was no room for, mostly nothing."""

    ids: np.ndarray
    mask: np.ndarray
    cut: tuple[str, ...]


def clip_tokenizer(folder: str | Path, *, length: int = 77) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function from texts to int32 (N, length), the `ids` of `clip_tokens`."""
    tokens = clip_tokens(folder, length=length)
    return lambda texts: tokens(texts).ids


def clip_tokens(
    folder: str | Path, *, length: int = 77, vocabulary: int = 0, end: Any = None
) -> Callable[[Sequence[str]], Tokens]:
    """Return a function from texts to `Tokens`: start, pieces, end, and what fills the rest, which is mostly ends.

    A text that is too long loses its last pieces, not its end. `vocabulary` is how many tokens their reader
    knows, and `end` which of them it takes for the end, if that is known.
    """
    folder = Path(folder).expanduser()
    library = library_for("clip_tokenizer")
    with of_tokenizer(folder):
        tokenizer = _read(library, folder)
        pad = _pad(folder)
        pad = pad if tokenizer.token_to_id(pad) is not None else END
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    check_vocabulary(tokenizer, folder, vocabulary)
    last = tokenizer.token_to_id(END)
    if end not in (None, LEGACY_END, last):
        raise ValueError(
            f"text: the tokenizer of {folder} ends texts with the token {last}, and what reads them looks for {end}: "
            "they are not of one model."
        )

    def tokens(texts):
        texts = list(texts)
        found = tokenizer.encode_batch(texts)
        ids, mask = (
            np.array([getattr(text, name) for text in found], np.int32).reshape(-1, length)
            for name in ("ids", "attention_mask")
        )
        return Tokens(ids, mask.astype(bool), tuple(map(_cut, texts, found)))

    return tokens


@contextmanager
def of_tokenizer(folder: Path) -> Iterator[None]:
    """Say of files that cannot be read which they are; the library raises Exception itself."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} It is in {folder}." if str(folder) not in str(error) else str(error)) from None
    except Exception as error:
        raise ValueError(
            f"text: the tokenizer in {folder} cannot be read ({type(error).__name__}: {error}); download it again."
        ) from error


def _read(library, folder):
    if (folder / "tokenizer.json").is_file():
        return _checked(library.Tokenizer.from_file(str(folder / "tokenizer.json")), folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _of_pieces(library, folder)
    raise ValueError(
        f"clip_tokenizer: {folder} has neither tokenizer.json nor vocab.json with merges.txt, which lie in the "
        "folder of a whole CLIP and, in a folder of Stable Diffusion, in `tokenizer`."
    )


def check_words(folder: Path, known: str) -> None:
    """Refuse a tokenizer that is another than it was; "" is known of none."""
    refuse_others(folder, words_of(folder) if known else "", known)


def words_of(folder: Path) -> str:
    """Return 16 digits of the sha256 of a tokenizer's files."""
    return identity_of(sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt", ".model")))


def library_for(wanted: str) -> Any:
    """Return the library `tokenizers`; `wanted` says what for, in errors."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise ValueError(f"{wanted}: it needs the library `tokenizers`: pip install tokenizers.") from None


def check_vocabulary(tokenizer: Any, folder: Path, vocabulary: int) -> None:
    """Refuse a tokenizer of more tokens than their reader knows, if that is known."""
    count = 1 + max(tokenizer.get_vocab().values())
    if vocabulary and count > vocabulary:
        raise ValueError(
            f"text: the tokenizer of {folder} has {count} tokens, and what reads them knows {vocabulary}: they are not "
            "of one model."
        )


def _cut(text, found):
    """Return the text from the first piece that was left out; its start and its end are told, not taken from it."""
    if not found.overflowing:
        return ""
    rest = found.overflowing[0]
    first = next(place for place, told in enumerate(rest.special_tokens_mask) if not told)
    return text[rest.offsets[first][0] :].strip()


def _pad(folder):
    """Return the token that fills a row: what the folder says, or else the end."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            said = read_json(folder / name, "text").get("pad_token")
            word = said.get("content") if isinstance(said, dict) else said
            if word:
                return word
    return END


def _of_pieces(library, folder):
    model = library.models.BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=END, end_of_word_suffix="</w>"
    )
    tokenizer = _checked(library.Tokenizer(model), folder)
    clean, cut = library.normalizers, library.pre_tokenizers
    spaces = clean.Replace(library.Regex(r"\s+"), " ")
    tokenizer.normalizer = clean.Sequence([clean.NFC(), spaces, clean.Lowercase()])
    pieces = cut.Split(library.Regex(PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = cut.Sequence([pieces, cut.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.add_special_tokens([START, END])
    around = [(word, tokenizer.token_to_id(word)) for word in (START, END)]
    tokenizer.post_processor = library.processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=around)
    return tokenizer


def _checked(tokenizer, folder):
    if None in (tokenizer.token_to_id(START), tokenizer.token_to_id(END)):
        raise ValueError(f"clip_tokenizer: the tokenizer of {folder} has no {START} or no {END}; it is not CLIP's.")
    return tokenizer
