"""The shipped filters, one by one, on rows whose answer is known."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from benchmark.pool.pool import Pool
from benchmark.pool.uids import format_uids, parse_uids, sort_uids
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from benchmark.selection.views import PoolView
from tests.conftest import uid, user_error, write_pool

ENGLISH = "a photo of a small brown dog in the garden"


def verdict(strategies, texts, width=300, height=300, **options):
    count = len(texts)
    rows = pd.DataFrame(
        {
            "text": pd.Series(texts, dtype=str),
            "original_width": np.broadcast_to(width, count),
            "original_height": np.broadcast_to(height, count),
        }
    )
    return strategies["basic"].function(rows, **options).tolist()


def test_basic_keeps_long_english_captions_of_large_images(strategies):
    texts = [ENGLISH, "Ein kleiner brauner Hund im Garten vor dem Haus", "brown dog", "a b c"]
    assert verdict(strategies, texts) == [True, False, False, False]


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (200, 200, True),
        (199, 400, False),
        (600, 200, True),
        (601, 200, False),
        (200, 601, False),
        (0, 0, False),
        (-5, 300, False),
    ],
)
def test_basic_takes_shorter_sides_from_200_and_aspects_up_to_3(strategies, width, height, expected):
    assert verdict(strategies, [ENGLISH], width, height) == [expected]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (" ", True),
        ("\u00a0", True),  # no-break and ideographic spaces split, as in str.split()
        ("\u3000", True),
        ("\n", True),  # and is a space to the language model
        ("\u200b", False),  # a zero-width space does not split
        ("\ufeff", False),
    ],
)
def test_basic_counts_words_as_python_splits_them(strategies, between, expected):
    assert verdict(strategies, [f"a photo of a small dog in the{between}garden"], min_words=9) == [expected]


def test_basic_counts_characters_as_code_points(strategies):
    assert verdict(strategies, ["it is a"], min_characters=7) == [True]
    assert verdict(strategies, ["it is a"], min_characters=8) == [False]


def test_basic_has_missing_values_where_its_columns_do(strategies):
    assert verdict(strategies, [None, ENGLISH]) == [pd.NA, True]
    assert verdict(strategies, [ENGLISH, ENGLISH], width=np.array([np.nan, 300])) == [pd.NA, True]


def test_basic_names_a_missing_language_model(strategies, tmp_path):
    with user_error("asset-not-found", match="filters.basic.language_model"):
        verdict(strategies, [ENGLISH], language_model=str(tmp_path / "no.bin"))


def test_clip_score_keeps_the_pairs_of_highest_similarity(strategies, pico_pool):
    outcome = run_filters(Pool(pico_pool), [Rule("clip_score", {"arch": "b32"}, Cut("fraction", 0.3))])
    frame = pd.concat([pd.read_parquet(path) for path in sorted((pico_pool / "metadata").glob("*.parquet"))])
    ordered = frame.sort_values(["clip_b32_similarity_score", "uid"], ascending=[False, True])
    assert format_uids(outcome.subset.uids) == sorted(ordered["uid"][: round(0.3 * len(frame))])


def test_random_depends_on_uid_and_seed_alone(strategies):
    rows = pd.DataFrame({"uid": [uid(n) for n in range(1000)]})
    scores = strategies["random"].function(rows, seed=3)
    turned = strategies["random"].function(rows[::-1].reset_index(drop=True), seed=3)
    assert (scores == turned[::-1]).all()
    assert scores[0] == int.from_bytes(hashlib.sha256(f"3/{uid(0)}".encode()).digest()[:6]) / 2**48
    assert abs(scores.mean() - 0.5) < 0.03 and scores.min() >= 0 and scores.max() < 1
    assert (strategies["random"].function(rows, seed=4) != scores).all()


def test_no_filter_keeps_every_row_repeats_too(strategies, tmp_path):
    pool = write_pool(tmp_path / "p", {"uid": [uid(2), uid(1), uid(2)]})
    outcome = run_filters(Pool(pool), [Rule("no_filter")])
    assert format_uids(outcome.subset.uids) == [uid(1), uid(2), uid(2)]


def test_dedup_keeps_one_pair_per_image(strategies):
    hashes = ["a", "b", "a", None, "b", None, "a"]
    uids = parse_uids([uid(n) for n in (9, 4, 3, 8, 1, 7, 6)])
    view = PoolView(uids, pd.DataFrame({"sha256": pd.Series(hashes, dtype=str)}), {})
    dedup = strategies["dedup"].function
    keep = dedup(view, seed=0)
    assert format_uids(keep.uids) == [uid(n) for n in (1, 3, 7, 8)]  # the smaller uid of each image; nulls are unique
    hash_of = dict(zip(format_uids(uids), hashes, strict=True))
    others = {tuple(format_uids(dedup(view, seed=seed).uids)) for seed in range(1, 20)}
    assert len(others) > 1
    turned = PoolView(uids[::-1], view.columns[::-1].reset_index(drop=True), {})
    for seed in range(4):  # the order of files does not matter
        assert (dedup(turned, seed=seed).uids == dedup(view, seed=seed).uids).all()
    assert all(sorted(str(hash_of[text]) for text in chosen) == ["None", "None", "a", "b"] for chosen in others)


def test_planted_clean_reads_the_planted_labels(strategies, pico_pool):
    outcome = run_filters(Pool(pico_pool), [Rule("planted_clean")])
    labels = pd.read_parquet(pico_pool / "planted.parquet")
    assert (outcome.subset.uids == sort_uids(parse_uids(labels["uid"][labels["is_clean"]].tolist()))).all()
    assert strategies["planted_clean"].reference
    assert not any(strategy.planted for strategy in strategies.values() if not strategy.reference)


def test_planted_clean_needs_an_embedded_pool(strategies, tmp_path):
    with user_error("no-embedded-pool", match=r"planted\.parquet"):
        run_filters(Pool(write_pool(tmp_path / "p", {"uid": [uid(2)]})), [Rule("planted_clean")])
