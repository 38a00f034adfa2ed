"""WordNet 3.0 (Miller 1995), read from its own files: which synset a word means first, as nltk's reader finds it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from benchmark.assets import user_assets_dir

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
    """Return the folder of WordNet's files: the one given, else in the user's assets, Debian's, or nltk's data.

    Raises FileNotFoundError naming `option` and how to get them.
    """
    candidates = [Path(given).expanduser()] if given else [user_assets_dir() / "wordnet", *_installed()]
    for folder in candidates:
        if (folder / "index.noun").is_file():
            return folder
    if given:
        raise FileNotFoundError(f"{option}: {given} holds no index.noun of WordNet")
    raise FileNotFoundError(
        f"WordNet's files are in none of {', '.join(map(str, candidates))}; `apt install wordnet-base` or "
        f"`nltk.download('wordnet')` brings them, or give {option}"
    )


@lru_cache
def load_wordnet(folder: Path) -> WordNet:
    """Read WordNet's files, once per process; raises ValueError where they are not version 3.0's."""
    offsets = {part: _read_index(folder / f"index.{part}") for part in PARTS_OF_SPEECH}
    counts = tuple(len(offsets[part]) for part in PARTS_OF_SPEECH)
    if counts != NUM_LEMMAS:
        raise ValueError(f"{folder} is not WordNet 3.0: it has {counts} lemmas instead of {NUM_LEMMAS}")
    return WordNet(offsets, {part: _read_exceptions(folder / f"{part}.exc") for part in PARTS_OF_SPEECH})


def _read_index(path: Path) -> dict[str, int]:
    """Return each lemma's first offset; the format is WordNet's wndb(5WN)."""
    offsets = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue  # the licence
            fields = line.split()
            num_pointers = int(fields[3])
            offsets[fields[0]] = int(fields[6 + num_pointers])
    return offsets


def _read_exceptions(path: Path) -> dict[str, list[str]]:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return {form: lemmas for form, *lemmas in lines}


def _installed() -> list[Path]:
    homes = [Path.home(), Path(sys.prefix), Path(sys.prefix) / "share", Path("/usr/share"), Path("/usr/local/share")]
    return [Path("/usr/share/wordnet"), *(home / "nltk_data" / "corpora" / "wordnet" for home in homes)]
