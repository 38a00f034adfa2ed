"""WordNet 3.0 (Miller 1995), read from its own files: a word's first synset, as nltk finds it, and synsets' names."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from benchmark.assets import user_assets_dir
from benchmark.errors import NotFoundError, UserError

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")  # a word's meanings come in this order
NUM_LEMMAS = (117_798, 11_529, 21_479, 4_481)  # of version 3.0; offsets differ between versions

# What morphy takes off, in its order (WordNet's manual, morphy(7WN)).
_SUFFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}


@dataclass(frozen=True)
class WordNet:
    """First meanings and irregular forms, by part of speech."""

    first_offsets: dict[str, dict[str, int]]  # part of speech -> lemma -> offset of its most frequent synset
    exceptions: dict[str, dict[str, list[str]]]  # part of speech -> inflected form -> lemmas

    def first_offset(self, word: str) -> int | None:
        """Return the offset of the first synset of a word, lower-cased and lemmatised; None where it has none."""
        word = word.lower()
        for part in PARTS_OF_SPEECH:
            for lemma in self._lemmas(word, part):
                return self.first_offsets[part][lemma]
        return None

    def _lemmas(self, word: str, part: str) -> list[str]:
        """Return the lemmas that a form may stand for (morphy, as nltk 3.8.1 has it, which DataComp ran).

        Endings are taken off until something is left that is a lemma. Later versions of nltk take one ending off.
        """
        known = self.first_offsets[part]
        irregular = self.exceptions[part].get(word)
        if irregular is not None:
            return [lemma for lemma in (word, *irregular) if lemma in known]
        forms = _without_ending([word], part)
        found = [lemma for lemma in (word, *forms) if lemma in known]
        while forms and not found:
            forms = _without_ending(forms, part)
            found = [lemma for lemma in forms if lemma in known]
        return found


def _without_ending(forms: list[str], part: str) -> list[str]:
    """Return what is left of the forms when each ending of that part of speech is taken off."""
    pairs = [(form, suffix, ending) for form in forms for suffix, ending in _SUFFIXES[part]]
    return [form.removesuffix(suffix) + ending for form, suffix, ending in pairs if form.endswith(suffix)]


def find_wordnet(given: str | None, *, option: str) -> Path:
    """Return where WordNet's files are: the place given, else in the user's assets, Debian's, or nltk's data.

    It is a folder, or nltk's wordnet.zip. Raises FileNotFoundError naming `option` and how to get the files.
    """
    candidates = [Path(given).expanduser()] if given else [user_assets_dir() / "wordnet", *_installed()]
    for place in candidates:
        if place.exists() and (_inside(place) / "index.noun").is_file():
            return place
    if given:
        raise NotFoundError(f"{option}: {given} holds no index.noun of WordNet")
    raise NotFoundError(
        f"WordNet's files are in none of {', '.join(map(str, candidates))}; `apt install wordnet-base` or "
        f"`nltk.download('wordnet')` brings them, or give {option}"
    )


def hash_wordnet(place: Path) -> str:
    """Return the sha256 of the bytes that tell a word's first synset: of the indexes and the lists of exceptions."""
    texts = [_text(_inside(place) / name) for part in PARTS_OF_SPEECH for name in (f"index.{part}", f"{part}.exc")]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


@lru_cache
def load_wordnet(place: Path) -> WordNet:
    """Read WordNet's indexes, once per process; raises ValueError where they are not version 3.0's."""
    folder = _inside(place)
    offsets = {part: _read_index(_text(folder / f"index.{part}")) for part in PARTS_OF_SPEECH}
    counts = tuple(len(offsets[part]) for part in PARTS_OF_SPEECH)
    if counts != NUM_LEMMAS:
        raise UserError(f"{place} is not WordNet 3.0: it has {counts} lemmas instead of {NUM_LEMMAS}")
    return WordNet(offsets, {part: _read_exceptions(_text(folder / f"{part}.exc")) for part in PARTS_OF_SPEECH})


def synset_names(place: Path) -> list[str]:
    """Return what synsets are called, each name once and sorted: the first lemma, lower-cased, up to its first dot.

    MetaCLIP (arXiv 2309.16671) cuts nltk's names in this way; with the numbers 0 to 99 they are the 86,654 entries that
    its table of sources counts.
    """
    names = set()
    for part in PARTS_OF_SPEECH:
        for line in _entries(_text(_inside(place) / f"data.{part}")):
            lemma = line.split(maxsplit=5)[4]
            name, _, _ = lemma.partition("(")[0].partition(".")  # "(a)" marks where an adjective stands
            names.add(name.lower().replace("_", " "))
    return sorted(names - {""})


def _read_index(text: str) -> dict[str, int]:
    """Return each lemma's first offset; the format is WordNet's wndb(5WN)."""
    offsets = {}
    for line in _entries(text):
        fields = line.split()
        num_pointers = int(fields[3])
        offsets[fields[0]] = int(fields[6 + num_pointers])
    return offsets


def _read_exceptions(text: str) -> dict[str, list[str]]:
    lines = [line.split() for line in text.splitlines()]
    return {form: lemmas for form, *lemmas in lines}


def _entries(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(" ")]  # the licence is indented


def _text(path: Path | zipfile.Path) -> str:
    return path.read_text(encoding="utf-8")


def _inside(place: Path) -> Path | zipfile.Path:
    return zipfile.Path(place, "wordnet/") if place.suffix == ".zip" else place


def _installed() -> list[Path]:
    homes = [Path.home(), Path(sys.prefix), Path(sys.prefix) / "share", Path("/usr/share"), Path("/usr/local/share")]
    nltk_dirs = [Path(text) for text in os.environ.get("NLTK_DATA", "").split(os.pathsep) if text]
    nltk_dirs += [home / "nltk_data" for home in homes]
    # nltk's downloader may leave the archive as it came.
    nltk_places = [folder / "corpora" / name for folder in nltk_dirs for name in ("wordnet", "wordnet.zip")]
    return [Path("/usr/share/wordnet"), *nltk_places]
