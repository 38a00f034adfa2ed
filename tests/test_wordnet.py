"""WordNet's reader against nltk 3.8.1, which DataComp pins; WordNet's files must be installed, as `.ci/run` does it."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmark import wordnet
from benchmark.wordnet import PARTS_OF_SPEECH, find_wordnet, load_wordnet, synset_names

ROOT = Path(__file__).resolve().parent.parent
ENDINGS = ("s", "es", "ies", "ses", "sses", "men", "ed", "ing", "ings", "er", "est", "ers", "'s", ",")


@pytest.fixture(scope="module")
def place():
    return find_wordnet(None, option="wordnet_dir")


def read_by_nltk(place):
    """Open WordNet's files by nltk's own reader."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def open(self, file):
            # Names of lexicographer files: nltk wants 45, Debian has no such file, and no offset hangs on them.
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d} name{number} 1\n" for number in range(45)))
            return super().open(file)

    with pytest.warns(UserWarning, match="multilingual"):
        return Reader(str(place), None)


@pytest.fixture(scope="module")
def oracle(place):
    reader = read_by_nltk(place)

    def first_offset(word):
        synsets = reader.synsets(word)
        return synsets[0].offset() if synsets else None

    return first_offset


def differences(place, oracle, words):
    ours = load_wordnet(place)
    return [(word, ours.first_offset(word), oracle(word)) for word in words if ours.first_offset(word) != oracle(word)]


def test_lemmas_have_nltks_first_synset(place, oracle):
    lemmas = sorted({lemma for offsets in load_wordnet(place).first_offsets.values() for lemma in offsets})
    assert len(lemmas) == 147_306
    assert differences(place, oracle, lemmas[::25]) == []
    assert differences(place, oracle, [lemma.title() for lemma in lemmas[5::250]]) == []


def test_inflected_words_have_nltks_first_synset(place, oracle):
    rng = np.random.default_rng(0)
    loaded = load_wordnet(place)
    for part in PARTS_OF_SPEECH:
        stems = sorted(lemma for lemma in loaded.first_offsets[part] if "_" not in lemma)
        drawn = [stems[number] for number in rng.choice(len(stems), 60, replace=False)]
        # Also without the last letter, so that "baking" and "happier" are among them.
        forms = [stem[: len(stem) - cut] + ending for stem in drawn for cut in (0, 1) for ending in ENDINGS]
        assert differences(place, oracle, forms) == []
        assert differences(place, oracle, sorted(loaded.exceptions[part])[::10]) == []


def test_endings_are_taken_off_until_a_lemma_is_left(place):
    """Later versions of nltk take one off, and find neither."""
    first_offset = load_wordnet(place).first_offset
    assert first_offset("headingsses") == first_offset("heading") == 6343971
    assert first_offset("puzzleded") == 622402  # the verb's: no noun loses "ed"


def test_an_endless_word_ends(place):
    assert load_wordnet(place).first_offset("x" + "s" * 3000) is not None  # "x" is a lemma
    assert load_wordnet(place).first_offset("q7" + "es" * 3000) is None


def test_nltks_archive_is_read_as_it_comes(place, tmp_path, monkeypatch):
    archive = tmp_path / "corpora" / "wordnet.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(place.iterdir()):
            if path.is_file():
                file.write(path, f"wordnet/{path.name}")
    found = find_wordnet(str(archive), option="wordnet_dir")
    assert load_wordnet(found) == load_wordnet(place)
    assert synset_names(found) == synset_names(place)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert found in wordnet._installed()


def test_the_users_assets_come_first(place, tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_ASSETS_DIR", str(tmp_path))
    shutil.copytree(place, tmp_path / "wordnet", ignore=shutil.ignore_patterns("data.*", "wnres", "bin"))
    assert find_wordnet(None, option="wordnet_dir") == tmp_path / "wordnet"


def test_metaclips_names_from_wordnet_are_as_many_as_in_its_paper(tmp_path):
    path = tmp_path / "assets" / "entries.txt"
    command = [sys.executable, str(ROOT / "scripts" / "make_metaclip_entries.py"), "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    names = path.read_text().split("\n")
    assert names.pop() == ""
    assert len(names) == len(set(names)) == 86_654
    assert names == sorted(names)
    # "hot dog" is a second name of frank; "Ph.D." is cut at its dot, "galore(ip)" loses its mark, "Paris" its capital.
    assert {"0", "99", "dog", "living thing", "frank", "galore", "paris", "ph"} <= set(names)
    assert not {"100", "hot dog", "living_thing", "ph.d.", "Paris", ""} & set(names)
