"""Write what nltk 3.8.1, which DataComp pins, answers for 100,000 words: the offset of each one's first synset.

    pip install nltk==3.8.1
    python scripts/make_wordnet_oracle.py DIR

DIR is a folder of WordNet 3.0's own files. The words are its irregular forms, and lemmas: as they are, inflected,
capitalised, joined, misspelt, with digits, punctuation and letters of other scripts. tests/data/wordnet_oracle.txt.gz
has a word a line, sorted, and behind it the offset where there is one.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from benchmark.runtime.files import write_bytes

ORACLE_PATH = Path(__file__).resolve().parent.parent / "tests" / "data" / "wordnet_oracle.txt.gz"
NLTK_VERSION = "3.8.1"  # later versions take one ending off, and no more
NUM_WORDS = 100_000
SUFFIXES = ("noun", "verb", "adj", "adv")
COMMON_ENDINGS = ("s", "s", "s", "s", "es", "ed", "ing", "er", "est", "ies")
ENDINGS = (
    *("s", "es", "ies", "ses", "ves", "xes", "zes", "ches", "shes", "men", "ed", "ing", "er", "est"),  # morphy's
    *("sses", "ings", "ers", "ied", "ying", "iest", "ly", "ness", "'s", "s'"),
)
PUNCTUATION = (",", ".", "!", "?", ":", ";", "...", ")", '"', "'", "/", "&amp;", "™")
LOOK_ALIKES = {  # accents, widths, ligatures, other scripts, and what lower() turns into ASCII or into two characters
    "a": "åáаＡ",
    "b": "ßВ",
    "c": "çС",
    "d": "ðđ",
    "e": "éêｅ",
    "f": "ﬁﬀ",
    "g": "ğ",
    "i": "İıìі",
    "k": "\u212aк",
    "l": "łĿ",
    "n": "ñŉ",
    "o": "öøΟ",
    "s": "ſšṩ",
    "t": "ﬆť",
    "u": "üů",
    "z": "žʒ",
}
SCRIPTS = (
    "абвгдеКЛМН",
    "αβγδΕΙΚΛςΣ",
    "אבגדהולמנת",
    "ابتدرسكلمن",
    "कखगतदनमरलस",
    "กขคงจดตนมล",
    "狗红色房花园图片",
    "いぬ赤家のです",
    "개집빨간정원",
)
SIGNS = ("🎉", "👩\u200d👧", "❤\ufe0f", "\u0301", "\u200b", "\ufeff", "\0", "\x1b", "\xad", "№", "Ⅷ", "½", "²")


def open_reader(wordnet_dir: Path) -> Any:
    """Open a folder of WordNet's files by nltk's own reader."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        def open(self, file: str) -> Any:
            # Debian has no such file; nltk wants 45 names of lexicographers' files, and no offset depends on them.
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d} name{number} 1\n" for number in range(45)))
            return super().open(file)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")
        return Reader(str(wordnet_dir), None)


def first_offset(reader: Any, word: str) -> int | None:
    """Return the offset of a word's first synset, as nltk finds it."""
    synsets = reader.synsets(word)
    return int(synsets[0].offset()) if synsets else None


def read_oracle(path: Path = ORACLE_PATH) -> dict[str, int | None]:
    """Return the words of the file with their offsets."""
    lines = gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")
    return {word: int(offset) if offset else None for word, _, offset in (line.partition(" ") for line in lines)}


def draw_words(wordnet_dir: Path, count: int, seed: int = 0) -> list[str]:
    """Return so many different words, sorted; none holds white space."""
    rng = Random(seed)
    lemmas = sorted({lemma for suffix in SUFFIXES for lemma in _first_fields(wordnet_dir / f"index.{suffix}")})
    words = {form for suffix in SUFFIXES for form in _first_fields(wordnet_dir / f"{suffix}.exc")}
    while len(words) < count:
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        word = kind(rng, rng.choice(lemmas))
        if word.split() == [word]:
            words.add(word)
    return sorted(words)


def _first_fields(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(" ")]


def as_it_is(rng: Random, lemma: str) -> str:
    """Return a lemma as it is."""
    return lemma


def capitalised(rng: Random, lemma: str) -> str:
    """Write some letters large."""
    return rng.choice((lemma.title(), lemma.upper(), lemma.capitalize(), lemma[:-1] + lemma[-1:].upper()))


def inflected(rng: Random, lemma: str) -> str:
    """Add an ending or several, also in place of the last letter or two, as in "baking" and "happier"."""
    endings = "".join(
        rng.choices(rng.choice((COMMON_ENDINGS, COMMON_ENDINGS, ENDINGS)), k=rng.choice((1, 1, 1, 1, 2, 3)))
    )
    return lemma[: len(lemma) - rng.choice((0, 0, 0, 0, 1, 2))] + endings


def joined(rng: Random, lemma: str) -> str:
    """Put a hyphen or nothing for an underscore, or a word of another kind behind one."""
    if "_" in lemma:
        return lemma.replace("_", rng.choice(("-", "", "/")))
    return lemma + rng.choice(("-", "_", "--", "/")) + rng.choice(("dog", "like", "free", "in", "up", "2", "s"))


def number(rng: Random, lemma: str) -> str:
    """Write a number, alone or beside the word."""
    digits = str(rng.randrange(10 ** rng.randrange(1, 6)))
    kinds = (digits, f"{digits}th", f"{digits}s", f"{digits}%", f"{digits}.{digits[:1]}", f"-{digits}", f"{digits},000")
    return rng.choice((*kinds, lemma + digits, f"{digits}-{lemma}", "".join(rng.choices("ivxlcIVX", k=3))))


def punctuated(rng: Random, lemma: str) -> str:
    """Leave a word's punctuation at it, as splitting a caption does."""
    before = rng.choice(("", "", "", "(", '"', "#", "@", "-"))
    return before + lemma + rng.choice(PUNCTUATION)


def foreign(rng: Random, lemma: str) -> str:
    """Put in letters of other scripts, or write a word of these only."""
    if rng.random() < 0.3:
        return "".join(rng.choices(rng.choice(SCRIPTS), k=rng.randrange(1, 7)))
    if rng.random() < 0.2:
        return lemma + rng.choice(SIGNS)
    at = rng.randrange(len(lemma))
    return lemma[:at] + rng.choice(LOOK_ALIKES.get(lemma[at], lemma[at])) + lemma[at + 1 :]


def misspelt(rng: Random, lemma: str) -> str:
    """Lose, double or exchange letters, or make a word of random ones."""
    if rng.random() < 0.3:
        return "".join(rng.choices("abcdefghiklmnoprstuvwy", k=rng.randrange(1, 10)))
    at = rng.randrange(len(lemma))
    return lemma[:at] + rng.choice(("", lemma[at] * 2, lemma[at : at + 2][::-1])) + lemma[at + 1 :]


KINDS: dict[Callable[[Random, str], str], int] = {
    as_it_is: 55,
    inflected: 30,
    capitalised: 5,
    punctuated: 5,
    misspelt: 4,
    joined: 4,
    foreign: 3,
    number: 2,
}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet_dir", metavar="DIR", type=Path, help="the folder of WordNet 3.0's files")
    parser.add_argument("--out", type=Path, default=ORACLE_PATH, help="the file (default: the tests')")
    parser.add_argument("--words", type=int, default=NUM_WORDS, help=f"how many (default: {NUM_WORDS:,})")
    arguments = parser.parse_args()
    if version("nltk") != NLTK_VERSION:
        sys.exit(
            f"nltk {version('nltk')} is installed, and DataComp ran {NLTK_VERSION}: pip install nltk=={NLTK_VERSION}"
        )
    reader = open_reader(arguments.wordnet_dir)
    lines = []
    for word in draw_words(arguments.wordnet_dir, arguments.words):
        offset = first_offset(reader, word)
        lines.append(f"{word}\n" if offset is None else f"{word} {offset}\n")
    write_bytes(arguments.out, gzip.compress("".join(lines).encode(), compresslevel=9, mtime=0))
    found = sum(" " in line for line in lines)
    print(f"{len(lines):,} words, {found:,} of them with a synset: {arguments.out}")


if __name__ == "__main__":
    main()
