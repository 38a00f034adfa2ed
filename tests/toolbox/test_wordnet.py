"""WordNet's tables and files: what is read of them, against nltk 3.8.1's answers, which DataComp pins."""

import gzip
import hashlib
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from benchmark.runtime.errors import UserError
from benchmark.toolbox import wordnet
from benchmark.toolbox.wordnet import (
    FIRST_SYNSETS,
    SYNSET_NAMES,
    TABLES_DIR,
    WordNet,
    find_wordnet,
    hash_wordnet,
    load_wordnet,
    synset_names,
)
from scripts import make_wordnet_oracle, make_wordnet_tables
from scripts.make_wordnet_oracle import draw_words, read_oracle
from scripts.make_wordnet_tables import write_tables
from tests.wordnet_files import write_wordnet_files

ROOT = Path(__file__).resolve().parents[2]
SMALL = WordNet(
    {
        "noun": {"axe": 200, "bark": 300, "hot_dog": 400},
        "verb": {"bark": 200, "go": 300},
        "adj": {"big": 200, "ph.d.": 300},
        "adv": {"well": 200},
    },
    {"noun": {"axes": ["axe", "axis"]}, "verb": {"went": ["go"], "gone": ["go"]}, "adj": {}, "adv": {"best": ["well"]}},
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of files in WordNet's format, with few words."""
    monkeypatch.setattr(wordnet, "NUM_LEMMAS", (3, 2, 2, 1))
    return write_wordnet_files(tmp_path / "small", SMALL)


def refused(code, function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert caught.value.code == code
    return str(caught.value)


# --- Against nltk ----------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_words_have_nltks_first_synset():
    oracle, ours = read_oracle(), load_wordnet(find_wordnet(None, option="x"))
    assert [(word, offset) for word, offset in oracle.items() if ours.first_offset(word) != offset] == []
    lemmas = {lemma for offsets in ours.first_offsets.values() for lemma in offsets}
    irregular = {form for forms in ours.exceptions.values() for form in forms}
    assert len(oracle) == 100_000 and len(lemmas) == 147_306
    known = lemmas | irregular
    assert irregular <= set(oracle) and len(lemmas & set(oracle)) > 45_000
    found = {word for word, offset in oracle.items() if offset is not None}
    assert len(found) == 59_774
    assert len({word for word in found if word != word.lower()}) > 3000
    assert len({word for word in found if word.lower() not in known}) > 5000  # inflected
    assert len({word for word in oracle if not word.isascii()}) > 2000


def test_endings_are_taken_off_until_a_lemma_is_left():
    """Later versions of nltk take one off, and find neither."""
    first_offset = load_wordnet(TABLES_DIR).first_offset
    assert first_offset("headingsses") == first_offset("heading") == 6343971
    assert first_offset("puzzleded") == 622402  # the verb's: no noun loses "ed"


def test_an_endless_word_ends():
    assert load_wordnet(TABLES_DIR).first_offset("x" + "s" * 3000) is not None  # "x" is a lemma
    assert load_wordnet(TABLES_DIR).first_offset("q7" + "es" * 3000) is None


def test_the_oracles_words_are_a_function_of_the_seed_without_white_space(small):
    words = draw_words(small, 2000)
    assert words == sorted(set(words)) == draw_words(small, 2000) != draw_words(small, 2000, seed=1)
    assert len(words) == 2000 and {"axes", "went", "best", "axe", "Hot_Dog"} <= set(words)
    assert all(word.split() == [word] for word in words)


def test_the_oracle_is_written_again_with_the_same_bytes(small, tmp_path, monkeypatch):
    for name in ("a.txt.gz", "b.txt.gz"):
        out = ["--words", "300", "--out", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["make_wordnet_oracle.py", str(small), *out])
        make_wordnet_oracle.main()
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()
    answers = read_oracle(tmp_path / "a.txt.gz")
    assert len(answers) == 300 and answers["went"] == 300 and answers["axes"] == 200
    ours = load_wordnet(small)
    assert all(ours.first_offset(word) == offset for word, offset in answers.items())
    assert None in answers.values()


def test_the_oracle_is_of_one_version_of_nltk(small, monkeypatch):
    monkeypatch.setattr(make_wordnet_oracle, "version", lambda name: "3.9.1")
    monkeypatch.setattr(sys, "argv", ["make_wordnet_oracle.py", str(small)])
    with pytest.raises(SystemExit, match=r"nltk 3\.9\.1 is installed, and DataComp ran 3\.8\.1"):
        make_wordnet_oracle.main()


# --- The tables that the package brings ------------------------------------------------------------------------------


def test_the_tables_are_the_wordnet_of_the_shipped_entry():
    entry = json.loads((ROOT / "leaderboard" / "nano" / "entries" / "text_based.json").read_text())
    assert hash_wordnet(find_wordnet(None, option="x")) == entry["strategy"][0]["options"]["wordnet_dir"]


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        (FIRST_SYNSETS, "143503e89153481ac2550edd761ddea4d831359c19f117b60cc6ed31063342ab"),
        (SYNSET_NAMES, "028c5c433335c7e2890343b59b785c0087b2951f5883fdf9694266a5feee27e6"),
    ],
)
def test_the_tables_hold_what_was_read_of_wordnet_3_0(name, sha256):
    """The script made them from the files of Debian's wordnet-base 1:3.0-37; the tables state these files' hash."""
    assert hashlib.sha256(gzip.decompress((TABLES_DIR / name).read_bytes())).hexdigest() == sha256


def test_tables_say_what_the_files_say_and_are_made_again_with_the_same_bytes(small, tmp_path, monkeypatch):
    made = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["make_wordnet_tables.py", str(small), "--out", str(made)])
    make_wordnet_tables.main()
    write_tables(small, tmp_path / "again")
    files = sorted(path.name for path in made.iterdir())
    assert files == ["LICENSE", FIRST_SYNSETS, SYNSET_NAMES]
    assert all((made / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert load_wordnet(made) == load_wordnet(small) == SMALL
    assert synset_names(made) == synset_names(small) == ["axe", "bark", "big", "go", "hot dog", "ph", "well"]
    assert hash_wordnet(made) == hash_wordnet(small)
    (small / "noun.exc").write_text("axes axe\n")
    assert hash_wordnet(made) != hash_wordnet(small)
    licence = ["May be copied with this notice.", "", "WordNet 3.0 Copyright 2006 by Princeton University."]
    assert (made / "LICENSE").read_text().splitlines() == licence


def test_princetons_licence_lies_beside_the_tables_and_is_named_in_the_package():
    licence = (TABLES_DIR / "LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in licence
    assert "Permission to use, copy, modify and distribute this software and" in licence
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in project["license-files"]:
        assert (ROOT / name).is_file()
    assert (TABLES_DIR / "LICENSE").relative_to(ROOT).as_posix() in project["license-files"]


def test_no_wordnet_of_the_machine_is_taken_unless_it_is_named(tmp_path, monkeypatch):
    """Its copy in nltk's or the user's folders may be another version."""
    for folder in ("nltk/corpora/wordnet", "mine/wordnet"):
        write_wordnet_files(tmp_path / folder, SMALL)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    monkeypatch.setenv("WINNOW_ASSETS_DIR", str(tmp_path / "mine"))
    assert find_wordnet(None, option="x") == TABLES_DIR
    assert find_wordnet(str(TABLES_DIR), option="x") == TABLES_DIR  # a record's options are resolved again
    named = tmp_path / "mine" / "wordnet"
    assert find_wordnet(str(named), option="x") == named


def test_the_tables_are_read_when_a_word_is_first_looked_up():
    """`winnow list filters` and the like do without."""
    code = (
        "import gzip, sys\n"
        "def refuse(*_): raise AssertionError('read')\n"
        "gzip.open = gzip.decompress = refuse\n"
        "from benchmark.registry import load_strategies\n"
        "load_strategies()\n"
        "import benchmark.toolbox.wordnet\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


# --- WordNet's own files ---------------------------------------------------------------------------------------------


def test_nltks_archive_is_read_as_it_comes(small, tmp_path):
    archive = tmp_path / "wordnet.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(small.iterdir()):
            file.write(path, f"wordnet/{path.name}")
    found = find_wordnet(str(archive), option="x")
    assert load_wordnet(found) == SMALL and hash_wordnet(found) == hash_wordnet(small)
    assert synset_names(found) == synset_names(small)


def test_another_version_is_refused(tmp_path):
    folder = write_wordnet_files(tmp_path / "small", SMALL)
    assert "it has (3, 2, 2, 1) lemmas" in refused("wordnet-version", load_wordnet, folder)


@pytest.mark.parametrize("name", ["index.verb", "adj.exc"])
def test_a_file_that_is_not_there_is_named(small, name):
    (small / name).unlink()
    for function in (load_wordnet, hash_wordnet):
        assert f"{small} lacks {name}" in refused("wordnet-not-found", function, small)


@pytest.mark.parametrize("content", [b"bark v 1\n", b"bark v 1 one 1 0 00000200\n", b"bark v 1 0 1 0 x\n", b"\xff\xfe"])
def test_a_damaged_index_is_one_sentence(small, content):
    (small / "index.verb").write_bytes(content)
    refused("wordnet-damaged", load_wordnet, small)


@pytest.mark.parametrize("name", ["empty", "file", "junk.zip", "nowhere", "other.zip"])
def test_a_place_without_wordnet_is_named_with_its_option(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "junk.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("something/else", "")
    given = str(tmp_path / name)
    option = "filters.text_based.wordnet_dir"
    assert refused("wordnet-not-found", find_wordnet, given, option=option).startswith(f"{option}: {given} holds no")


# --- What comes from it ----------------------------------------------------------------------------------------------


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
