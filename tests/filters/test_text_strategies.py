"""text_based and metaclip, each against what WordNet's and MetaCLIP's papers say by hand or by brute force."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmark.pool.pool import Pool
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule
from benchmark.selection.views import PoolView
from benchmark.toolbox import wordnet
from benchmark.toolbox.wordnet import TABLES_DIR, load_wordnet
from tests.conftest import loaded_plugin, uid, user_error, write_pool

PUNCTUATION = ",.;:?!`"


@pytest.fixture(scope="module")
def real_wordnet():
    return load_wordnet(TABLES_DIR)


@pytest.mark.parametrize(
    ("word", "offset"),
    [
        ("dog", 2084071),  # ImageNet's n02084071
        ("Dogs", 2084071),  # lower-cased, and the ending taken off
        ("children", 9917593),  # an irregular form of n09917593
        ("dog,", None),  # punctuation stays
        ("xyzzy", None),
        ("", None),
    ],
)
def test_a_word_means_its_first_synset(real_wordnet, word, offset):
    assert real_wordnet.first_offset(word) == offset


def test_nouns_come_first_and_suffixes_in_order(tmp_path, monkeypatch):
    licence = "  1 This software and database is being provided to you\n"
    entries = {
        "noun": "axe n 1 0 1 0 00000011\nbark n 2 1 @ 2 0 00000012 00000013\nglass n 1 0 1 0 00000014\n",
        "verb": "bark v 1 0 1 0 00000021\ngo v 1 0 1 0 00000022\n",
        "adj": "big a 1 0 1 0 00000031\nlarge a 1 0 1 0 00000032\n",
        "adv": "well r 1 0 1 0 00000041\n",
    }
    for part, lines in entries.items():
        (tmp_path / f"index.{part}").write_text(licence + lines)
        (tmp_path / f"{part}.exc").write_text("went go\n" if part == "verb" else "axes axe axis\n" * (part == "noun"))
    with user_error("wordnet-version"):
        load_wordnet(tmp_path)
    monkeypatch.setattr(wordnet, "NUM_LEMMAS", (3, 2, 2, 1))
    words = load_wordnet(tmp_path)
    found = {
        word: words.first_offset(word) for word in ("bark", "barking", "axes", "went", "larger", "well", "glasses")
    }
    assert found == {"bark": 12, "barking": 21, "axes": 11, "went": 22, "larger": 32, "well": 41, "glasses": 14}


def test_text_based_keeps_english_that_names_something_of_imagenet(strategies, tmp_path):
    texts = {
        1: "a small brown dog in the garden",
        2: "the weather has been very nice since then",  # nothing of ImageNet
        3: "ein kleiner Hund im Garten, dog",  # not English
        4: "we have got two Dogs and they are happy",
        5: "is this yours? a dog!",  # the punctuation belongs to the word
        6: None,
        7: "a very aromatic and pleasant thing",  # an adjective whose number a noun of ImageNet has
    }
    columns = {"uid": [uid(n) for n in texts], "text": list(texts.values())}
    pool = Pool(write_pool(tmp_path / "pool", columns))
    outcome = run_filters(pool, [Rule("text_based")])
    assert [int(text, 16) for text in format_uids(outcome.subset.uids)] == [1, 4, 7]
    assert outcome.reports[0].missing == 1


def make_view(texts: list[str | None]) -> PoolView:
    uids = parse_uids([uid(number) for number in range(1, len(texts) + 1)])
    return PoolView(uids, pd.DataFrame({"text": pd.Series(texts, dtype=str)}), {})


def chosen(strategies, view: PoolView, entries: Path, **options) -> list[int]:
    subset = strategies["metaclip"].function(view, entries=str(entries), **options)
    return [int(text, 16) for text in format_uids(subset.uids)]


def write_entries(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "entries.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def test_metaclip_matches_between_spaces_with_punctuation_apart(strategies, tmp_path):
    entries = write_entries(tmp_path, "red star", "star", "New York")
    texts = [
        "a star",
        "stars",
        "a red star!",
        "a red  star",
        "new york",
        "in New York, today",
        "Star",
        None,
        "star\tfish",
    ]
    assert chosen(strategies, make_view(texts), entries, max_count=100) == [1, 3, 4, 6, 9]


def brute_force(texts: list[str], entries: list[str], most: int) -> np.ndarray:
    """Return each caption's probability by substring search, entry by entry."""
    padded = []
    for text in texts:
        text = text.replace("\t", " ").replace("\n", " ")
        for sign in PUNCTUATION:
            text = text.replace(sign, f" {sign} ")
        padded.append(f" {text} ")
    matches = np.array([[f" {entry} " in text for entry in entries] for text in padded])  # (texts, entries)
    drawn = most / np.maximum(matches.sum(axis=0), most)
    return 1 - np.prod(np.where(matches, 1 - drawn, 1), axis=1)


def test_metaclip_draws_with_the_papers_probabilities(strategies, tmp_path):
    rng = np.random.default_rng(4)
    words = ["star", "cat", "red", "big", "of", "New York", "York", "dog", "blue car"]
    frequencies = np.array([30, 20, 10, 8, 40, 3, 2, 1, 5]) / 119
    texts = [" ".join(rng.choice(words, rng.integers(1, 5), p=frequencies)) for _ in range(300)]
    entries = ["star", "New York", "cat", "dog", "red star", "car", "blue car", "of"]
    path, view = write_entries(tmp_path, *entries), make_view(texts)
    kept = np.zeros(len(texts))
    for seed in range(300):
        kept[np.array(chosen(strategies, view, path, max_count=12, seed=seed)) - 1] += 1
    expected = brute_force(texts, entries, 12)
    assert np.abs(kept / 300 - expected).max() < 0.13  # 4.5 standard errors at most
    assert abs((kept / 300 - expected).mean()) < 0.01
    assert (kept[expected == 1] == 300).all() and (kept[expected == 0] == 0).all()


def test_metaclip_finds_the_count_that_keeps_a_share(strategies, tmp_path):
    texts = ["a star"] * 900 + ["a cat"] * 90 + ["a dog"] * 10 + ["nothing"] * 500
    path, view = write_entries(tmp_path, "star", "cat", "dog"), make_view(texts)
    kept = chosen(strategies, view, path, keep=0.2)
    # 10 dogs + 90 cats + 100 stars are a fifth of 1,000 matching captions.
    assert 70 < sum(number <= 900 for number in kept) < 130
    assert sum(number > 900 for number in kept) == 100 and max(kept) <= 1000
    assert len(chosen(strategies, view, path, keep=1.0)) == 1000


def test_metaclip_does_not_depend_on_the_order_of_rows(strategies, tmp_path):
    texts = ["a star"] * 50 + ["a cat"] * 50
    path, view = write_entries(tmp_path, "star", "cat"), make_view(texts)
    order = np.random.default_rng(0).permutation(100)
    mixed = PoolView(view.uids[order], view.columns.iloc[order].reset_index(drop=True), {})
    assert chosen(strategies, mixed, path, keep=0.3) == chosen(strategies, view, path, keep=0.3)
    assert chosen(strategies, view, path, keep=0.3) != chosen(strategies, view, path, keep=0.3, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"keep": 0.0}, "keep=0.0 "), ({"keep": 1.5}, "keep=1.5 "), ({"max_count": 0}, "max_count=0 ")],
)
def test_metaclip_refuses_options_outside_their_range(strategies, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        chosen(strategies, make_view(["a star"]), write_entries(tmp_path, "star"), **options)


def test_metaclip_refuses_an_empty_list(strategies, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with user_error("asset-invalid"):
        chosen(strategies, make_view(["a star"]), tmp_path / "empty.txt")


def test_clip_score_by_entry_keeps_the_best_part_of_every_entry(strategies, tmp_path):
    """Against a loop over entries; ties, missing scores and captions with several entries among them."""
    rng = np.random.default_rng(5)
    names = ["star", "cat", "red dog"]
    texts = [" and ".join(rng.choice([*names, "nothing"], rng.integers(1, 3))) for _ in range(300)]
    scores = np.round(rng.normal(size=300), 1)
    scores[rng.random(300) < 0.1] = np.nan
    view = make_view(texts)
    view.columns["clip_l14_similarity_score"] = scores
    path = write_entries(tmp_path, *names)
    expected = set()
    for name in names:
        rows = [row for row, text in enumerate(texts) if name in text and not np.isnan(scores[row])]
        rows.sort(key=lambda row: (-scores[row], row))
        expected |= set(rows[: -(-len(rows) * 3 // 10)])
    subset = strategies["clip_score_by_entry"].function(view, entries=str(path), keep=0.3)
    assert {int(text, 16) for text in format_uids(subset.uids)} == {row + 1 for row in expected}
    assert 0 < len(expected) < 150
    with pytest.raises(ValueError, match="keep="):
        strategies["clip_score_by_entry"].function(view, entries=str(path), keep=0)


def test_clip_score_by_entry_may_find_nothing(strategies, tmp_path):
    view = make_view(["a star"])
    view.columns["clip_b32_similarity_score"] = [np.nan]
    path = str(write_entries(tmp_path, "star"))
    assert len(strategies["clip_score_by_entry"].function(view, entries=path, arch="b32").uids) == 0


LANGUAGE_USER = '''"""A filter made for tests that uses the language."""

import pandas as pd

from benchmark import register_filter


@register_filter(signals=["language"])
def t_german(rows: pd.DataFrame) -> pd.Series:
    """Keep German captions."""
    return (rows["language"] == "de").mask(rows["language"].isna())
'''


def test_the_language_is_a_signal_for_filters_of_ones_own(strategies, tmp_path):
    texts = ["ein rotes Haus am großen See", "a red house at the large lake", None, "une maison rouge", ""]
    folder = write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(5)], "text": texts})
    with loaded_plugin(tmp_path / "uses_language.py", LANGUAGE_USER):
        outcome = run_filters(Pool(folder), [Rule("t_german")])
    assert format_uids(outcome.subset.uids) == [uid(0)] and outcome.reports[0].missing == 1
    kept = pq.read_table(next((folder / "signals").glob("language-*/*.parquet")))["value"].to_pylist()
    assert kept[:4] == ["de", "en", None, "fr"] and isinstance(kept[4], str)
