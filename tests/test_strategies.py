"""The published strategies beyond DataComp's baselines, each against a brute-force version of its rule."""

import numpy as np
import pandas as pd
import pytest

ENGLISH = "a photo of a small brown dog in the garden"
GERMAN = "Ein kleiner brauner Hund im Garten vor dem Haus"


def laion2b_verdicts(strategies, texts, similarity, **options):
    rows = pd.DataFrame({"text": pd.Series(texts, dtype=str), "clip_b32_similarity_score": similarity})
    return strategies["laion2b"].function(rows, **options).tolist()


def test_laion2b_keeps_english_pairs_of_similarity_028(strategies):
    similarity = np.array([0.3, 0.3, 0.27, 0.27], dtype=np.float32)
    assert laion2b_verdicts(strategies, [ENGLISH, GERMAN, ENGLISH, GERMAN], similarity) == [True, False, False, False]
    assert laion2b_verdicts(strategies, [ENGLISH] * 4, similarity, min_similarity=0.2) == [True] * 4


def test_laion2b_compares_in_the_columns_own_type(strategies):
    rounded = np.float32(0.26)  # below 0.26 as a float64 number
    assert laion2b_verdicts(strategies, [ENGLISH], np.array([rounded]), min_similarity=0.26) == [True]
    wide = np.array([rounded], dtype=np.float64)
    assert laion2b_verdicts(strategies, [ENGLISH], wide, min_similarity=0.26) == [False]


def test_laion2b_has_no_verdict_on_missing_values(strategies):
    similarity = np.array([0.3, np.nan, 0.3], dtype=np.float32)
    assert laion2b_verdicts(strategies, [None, ENGLISH, ENGLISH], similarity) == [pd.NA, pd.NA, True]


def test_laion2b_names_a_missing_language_model(strategies, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"filters.laion2b.language_model: there is no file"):
        laion2b_verdicts(strategies, [ENGLISH], np.array([0.3]), language_model=str(tmp_path / "no.bin"))
