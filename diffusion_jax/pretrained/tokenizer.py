"""CLIP's tokens: pieces of lower-case words, between a start and an end, as a folder of transformers describes them.

The whole description is in tokenizer.json; older folders have only the pieces, vocab.json, and the order in which they
are joined, merges.txt, and the rest is the same for every CLIP. Both are read by the library `tokenizers`.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"
# A piece never crosses from letters to digits or marks, and each digit is alone.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(folder: str | Path, *, length: int = 77) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function from texts to int32 (N, length): start, pieces, end, and ends to fill the rest.

    A text that is too long loses its last pieces, not its end.
    """
    folder = Path(folder).expanduser()
    library = library_for("clip_tokenizer")
    if (folder / "tokenizer.json").is_file():
        tokenizer = _checked(library.Tokenizer.from_file(str(folder / "tokenizer.json")), folder)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _of_pieces(library, folder)
    else:
        raise ValueError(
            f"clip_tokenizer: {folder} has neither tokenizer.json nor vocab.json with merges.txt, which lie in the "
            "folder of a whole CLIP and, in a folder of Stable Diffusion, in `tokenizer`."
        )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(END), pad_token=END)

    def tokens(texts):
        return np.array([text.ids for text in tokenizer.encode_batch(list(texts))], np.int32).reshape(-1, length)

    return tokens


def library_for(wanted: str) -> Any:
    """Return the library `tokenizers`; `wanted` says what for, in errors."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise ValueError(f"{wanted}: it needs the library `tokenizers`: pip install tokenizers.") from None


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
