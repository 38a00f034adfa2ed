"""WordNet 3.0 (Miller 1995): a word's first synset, as nltk finds it, and synsets' names.

They are read from two tables that come with the package, or from a folder of WordNet's own files. Made by
scripts/make_wordnet_tables.py, the tables are UTF-8 and gzipped: FIRST_SYNSETS is blocks with an empty line between,
`sha256 <of the files that it was made from>`, then for each part of speech its lemmas with the offsets of their first
synsets, and its irregular forms with their lemmas, an entry a line; SYNSET_NAMES is what `synset_names` returns.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from benchmark.runtime.errors import NotFoundError, UserError

TABLES_DIR = Path(__file__).parent / "wordnet_tables"
FIRST_SYNSETS, SYNSET_NAMES = "first_synsets.txt.gz", "synset_names.txt.gz"
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
    """Return the place given, a folder of WordNet's files or nltk's wordnet.zip; without one, that of our tables.

    Raises FileNotFoundError naming `option`.
    """
    if given is None:
        return TABLES_DIR
    place = Path(given).expanduser()
    has_files = (_is_archive(place) or place.is_dir()) and (_inside(place) / "index.noun").is_file()
    if has_files or place == TABLES_DIR:
        return place
    raise NotFoundError(
        f"{option}: {given} holds no index.noun of WordNet; leave the option out for the one that Winnow brings",
        code="wordnet-not-found",
    )


def hash_wordnet(place: Path) -> str:
    """Return the sha256 of the bytes that tell a word's first synset: of the indexes and the lists of exceptions.

    Of our tables, it is that of the files that they were made from.
    """
    if _has_tables(place):
        with gzip.open(place / FIRST_SYNSETS, "rt", encoding="utf-8") as file:
            return file.readline().split()[1]
    texts = [_text(place, name) for part in PARTS_OF_SPEECH for name in (f"index.{part}", f"{part}.exc")]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


@lru_cache
def load_wordnet(place: Path) -> WordNet:
    """Read first synsets and exceptions, once per process; raises ValueError where they are not version 3.0's."""
    if _has_tables(place):
        _, *blocks = _read_gzip(place / FIRST_SYNSETS).split("\n\n")
        offsets = {part: _read_offsets(text) for part, text in zip(PARTS_OF_SPEECH, blocks[::2], strict=True)}
        exceptions = {part: _read_exceptions(text) for part, text in zip(PARTS_OF_SPEECH, blocks[1::2], strict=True)}
    else:
        offsets = {part: _read_index(_text(place, f"index.{part}")) for part in PARTS_OF_SPEECH}
        exceptions = {part: _read_exceptions(_text(place, f"{part}.exc")) for part in PARTS_OF_SPEECH}
    counts = tuple(len(offsets[part]) for part in PARTS_OF_SPEECH)
    if counts != NUM_LEMMAS:
        raise UserError(
            f"{place} is not WordNet 3.0: it has {counts} lemmas instead of {NUM_LEMMAS}", code="wordnet-version"
        )
    return WordNet(offsets, exceptions)


def synset_names(place: Path) -> list[str]:
    """Return what synsets are called, each name once and sorted: the first lemma, lower-cased, up to its first dot.

    MetaCLIP (arXiv 2309.16671) cuts nltk's names in this way; with the numbers 0 to 99 they are the 86,654 entries that
    its table of sources counts.
    """
    if _has_tables(place):
        return _read_gzip(place / SYNSET_NAMES).splitlines()
    names = set()
    for part in PARTS_OF_SPEECH:
        for line in _entries(_text(place, f"data.{part}")):
            lemma = line.split(maxsplit=5)[4]
            name, _, _ = lemma.partition("(")[0].partition(".")  # "(a)" marks where an adjective stands
            names.add(name.lower().replace("_", " "))
    return sorted(names - {""})


def _has_tables(place: Path) -> bool:
    return (place / FIRST_SYNSETS).is_file()


def _read_gzip(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def _read_offsets(text: str) -> dict[str, int]:
    words = text.split()  # lemma, offset, lemma, offset, ...
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _read_index(text: str) -> dict[str, int]:
    """Return each lemma's first offset; the format is WordNet's wndb(5WN)."""
    offsets = {}
    for line in _entries(text):
        fields = line.split()
        try:
            num_pointers = int(fields[3])
            offsets[fields[0]] = int(fields[6 + num_pointers])
        except (IndexError, ValueError):
            raise UserError(
                f"an index of WordNet holds {line[:60]!r}, which is no entry", code="wordnet-damaged"
            ) from None
    return offsets


def _read_exceptions(text: str) -> dict[str, list[str]]:
    lines = [line.split() for line in text.splitlines()]
    return {form: lemmas for form, *lemmas in lines}


def _entries(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(" ")]  # the licence is indented


def _text(place: Path, name: str) -> str:
    try:
        return (_inside(place) / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{place} lacks {name} of WordNet", code="wordnet-not-found") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} of {place} is no file of WordNet: it is not text", code="wordnet-damaged") from None


def _inside(place: Path) -> Path | zipfile.Path:
    return zipfile.Path(place, "wordnet/") if _is_archive(place) else place


def _is_archive(place: Path) -> bool:
    return place.suffix == ".zip" and zipfile.is_zipfile(place)
