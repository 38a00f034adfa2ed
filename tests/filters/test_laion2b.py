"""laion2b's language: CLD3 where it is installed, fastText and one warning where not, and a record that says which.

`data/cld3.json` holds captions and what gcld3 3.0.13, which DataComp ran, answers to each.
"""

import importlib.metadata
import inspect
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli.main import main
from benchmark.pool.pool import Pool
from benchmark.runtime.files import sha256_of
from benchmark.selection.rules import make_rule
from tests.conftest import uid, write_pool

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "cld3.json").read_text())
VERSION = importlib.metadata.version("cld3-py")
# Which the two judge differently: fastText takes the first for English, CLD3 the second.
FASTTEXT_ONLY, CLD3_ONLY = "Costa Rica", "Southern East Cree Swampy Cree"


@pytest.fixture
def laion2b(strategies):
    return strategies["laion2b"].function


@contextmanager
def without_cld3(function):
    """Work as where the package is not installed."""
    real = importlib.metadata.version

    def version(name):
        if name == "cld3-py":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", version)
        patch.setitem(inspect.unwrap(function).__globals__, "version", version)
        inspect.unwrap(function).__globals__["_cld3"].cache_clear()
        yield
    inspect.unwrap(function).__globals__["_cld3"].cache_clear()


def verdicts(function, texts, similarity=0.3):
    scores = np.full(len(texts), similarity, dtype=np.float32)
    rows = pd.DataFrame({"text": pd.Series(texts, dtype=str), "clip_b32_similarity_score": scores})
    return function(rows).tolist()


def test_it_answers_as_gcld3_did(laion2b):
    texts = [text for text, _ in GOLDEN]
    assert verdicts(laion2b, texts) == [language == "en" for _, language in GOLDEN]
    find_language = inspect.unwrap(laion2b).__globals__["_cld3"]()
    assert [find_language(text) for text in texts] == [language for _, language in GOLDEN]
    assert len(GOLDEN) > 400 and len({language for _, language in GOLDEN}) > 100


def test_the_golden_captions_have_control_characters_and_more_than_cld3_reads():
    lengths = [len(text.encode()) for text, _ in GOLDEN]
    assert min(lengths) == 0 and sum(length > 1000 for length in lengths) > 20
    assert {character for text, _ in GOLDEN for character in text} >= {"\0", "\n", "\t", "\r"}


def test_without_cld3_fasttext_finds_english(laion2b):
    with without_cld3(laion2b):
        assert verdicts(laion2b, [FASTTEXT_ONLY, CLD3_ONLY]) == [True, False]


def test_with_cld3_the_language_model_has_no_say(laion2b):
    assert verdicts(laion2b, [FASTTEXT_ONLY, CLD3_ONLY]) == [False, True]


def test_the_record_says_which_and_other_rules_say_nothing(strategies, tmp_path):
    columns = {"text": ["a"], "clip_b32_similarity_score": [0.3], "original_width": [9], "original_height": [9]}
    pool = Pool(write_pool(tmp_path / "p", {"uid": [uid(1)], **columns}))
    assert make_rule("laion2b", {}).resolve(pool).as_json()["packages"] == {"cld3-py": VERSION}
    assert "packages" not in make_rule("basic", {}).resolve(pool).as_json()


def test_the_fall_back_is_told_once_and_recorded(laion2b, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    columns = {"text": [FASTTEXT_ONLY, CLD3_ONLY], "clip_b32_similarity_score": np.float32([0.3, 0.3])}
    write_pool(tmp_path / "p", *({"uid": [uid(2 * n), uid(2 * n + 1)], **columns} for n in range(3)))
    command = ["filter", "pool_dir=p", "filters=laion2b"]
    with without_cld3(laion2b):
        assert main([*command, "exp_dir=without"]) == 0
    told = capsys.readouterr().err
    assert told == (
        "warning: filter 'laion2b': CLD3 is not installed, so fastText finds English and some captions are scored "
        "differently; pip install 'winnow-bench[cld3]'\n"
    )
    record = json.loads(Path("without/subset.json").read_text())
    assert record["made_from"]["filters"][0]["packages"] == {"cld3-py": None}
    assert main([*command, "exp_dir=with"]) == 0
    assert capsys.readouterr().err == ""
    assert sha256_of(Path("with/subset.npy")) != sha256_of(Path("without/subset.npy"))
    assert main([*command, "exp_dir=without"]) != 0
    assert f'packages.cld3-py is null there and "{VERSION}" now' in capsys.readouterr().err
