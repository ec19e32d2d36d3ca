"""T5's tokens: the likeliest pieces of a text (a unigram model, Kudo 2018), an end, and padding.

The pieces lie in tokenizer.json, which the library `tokenizers` reads. Older folders have them in spiece.model alone,
which only the library sentencepiece reads; transformers turns it into the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.nets import checks
from diffusion_jax.pretrained.tokenizer import Tokens, check_vocabulary, library_for, of_tokenizer

PAD, END = "<pad>", "</s>"


def t5_tokenizer(folder: str | Path, *, length: int = 512, vocabulary: int = 0) -> Callable[[Sequence[str]], Tokens]:
    """Return a function from texts to `Tokens`: pieces, an end, and padding up to `length`.

    A text that is too long loses its last pieces, not its end. `vocabulary` is how many tokens their reader knows, if
    that is known.
    """
    checks.whole("t5_tokenizer", 1, length=length)
    folder = Path(folder).expanduser()
    library = library_for("t5_tokenizer")
    if not (folder / "tokenizer.json").is_file():
        only = (
            " spiece.model alone cannot be read without sentencepiece;" if (folder / "spiece.model").is_file() else ""
        )
        raise ValueError(
            f"t5_tokenizer: {folder} has no tokenizer.json.{only} `transformers.AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder)` writes it. In a folder of FLUX.1 it is in `tokenizer_2`, of Stable Diffusion 3 "
            "in `tokenizer_3`."
        )
    with of_tokenizer(folder):
        tokenizer = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad, end = (tokenizer.token_to_id(word) for word in (PAD, END))
    if None in (pad, end):
        raise ValueError(f"t5_tokenizer: the tokenizer of {folder} has no {PAD} or no {END}; it is not T5's.")
    check_vocabulary(tokenizer, folder, vocabulary)
    tokenizer.no_truncation()  # the file may say otherwise
    tokenizer.no_padding()

    def tokens(texts):
        texts = list(texts)
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = np.full((len(texts), length), pad, np.int32)
        counts = np.array([min(len(pieces.ids), length - 1) for pieces in found], int)
        for row, pieces, count in zip(ids, found, counts, strict=True):
            row[: count + 1] = [*pieces.ids[:count], end]
        cut = tuple(map(_cut, texts, found, counts))
        return Tokens(ids, np.arange(length) <= counts[:, None], cut)

    return tokens


def _cut(text, pieces, count):
    """Return the text from the first piece that was left out."""
    return text[pieces.offsets[count][0] :].strip() if len(pieces.ids) > count else ""
