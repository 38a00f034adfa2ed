"""Pools, scores and choices from Python: what a frame gives is what the engine gives, and what is missing is named."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import winnow as wb
from benchmark.cli.main import main
from benchmark.pool.images import locate_images, read_images
from benchmark.pool.uids import parse_uids
from benchmark.registry import STRATEGIES
from benchmark.selection.scoring import score_pool
from tests.conftest import loaded_plugin, uid, user_error, write_pool

ROOT = Path(__file__).resolve().parents[2]
# The first is a signal; the other two take half a minute each, and use images as `clip_similarity` does.
LEFT_OUT = ("language", "text_masked_clip", "decontaminated")
FILTERS = sorted(path.stem for path in (ROOT / "filters").glob("*.py") if path.stem not in LEFT_OUT)


@pytest.fixture
def pool(pico_pool):
    return wb.open_pool(pico_pool)


def features_of(pool, names):
    """Return arrays of all shards, one behind the other."""
    parts = [pool.read_features(path, names) for path in pool.metadata_paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def images_of(pool, num_rows):
    images, start = [None] * num_rows, 0
    for path, places in zip(pool.metadata_paths, locate_images(pool), strict=True):
        for rows, found, _ in read_images(places):
            for row, image in zip(rows.tolist(), found, strict=True):
                images[start + row] = image
        start += pool.footer(path).num_rows
    return images


def test_a_frame_has_all_shards_in_order(tmp_path):
    shards = [{"uid": [uid(2), uid(0)], "text": ["b", None], "width": [3, 4]}, {"uid": [uid(1)], "text": ["c"]}]
    shards[1]["width"] = [5]
    pool = wb.open_pool(str(write_pool(tmp_path / "pool", *shards)))
    frame = pool.to_pandas(["uid", "text"])
    assert frame["uid"].tolist() == [uid(2), uid(0), uid(1)] and list(frame.index) == [0, 1, 2]
    assert frame["text"].tolist()[0] == "b" and frame["text"].isna().tolist() == [False, True, False]
    assert list(pool.to_pandas().columns) == ["uid", "text", "width"] and pool.to_pandas([]).shape == (3, 0)
    with user_error("pool-too-large", match="max_rows=3"):
        pool.to_pandas(max_rows=2)
    assert len(pool.to_pandas(max_rows=3)) == len(pool.to_pandas(max_rows=None)) == 3
    with user_error("column-missing", match="Did you mean 'text'"):
        pool.to_pandas(["tex"])
    with user_error("pool-not-found"):
        wb.open_pool(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILTERS)
def test_a_frame_is_scored_as_the_engine_scores_the_pool(name, pool, pico_pool, strategies):
    """To the last bit, on rows in another order and with another index."""
    strategy = strategies[name]
    frame = pool.to_pandas()
    if strategy.planted:
        planted = pd.read_parquet(pico_pool / "planted.parquet")
        frame = frame.merge(planted[["uid", *strategy.planted]], on="uid", how="left")
    if strategy.kind == "selector":
        with user_error("scores-expected"):
            wb.score(frame, name)
        return
    features = features_of(pool, ["l14_img"]) if strategy.features else {}
    images = images_of(pool, len(frame)) if strategy.images or strategy.signals else None
    given = {"language_model", "checkpoint", "wordnet_dir", "synsets"}
    assets = {o: f.format(arch="l14") for o, f in strategy.assets.items() if o not in given}
    options = {
        option: [str(pico_pool / "assets" / file)] if strategy.options[option].is_list else pico_pool / "assets" / file
        for option, file in assets.items()
    }
    options = {option: value if isinstance(value, list) else str(value) for option, value in options.items()}
    rows = np.random.default_rng(0).permutation(len(frame))[:300]
    found = wb.score(
        frame.iloc[rows],
        name,
        features={key: array[rows] for key, array in features.items()},
        images=None if images is None else [images[row] for row in rows],
        **options,
    )
    values, is_scored = score_pool(pool, wb.rule(name).resolve(pool))
    assert list(found.index) == rows.tolist() and found.name == name
    np.testing.assert_array_equal(found.notna().to_numpy(), is_scored[rows])
    kept = found[found.notna()].to_numpy(dtype=values.dtype)
    np.testing.assert_array_equal(kept, values[rows][is_scored[rows]])
    assert is_scored.any()


def test_a_signal_may_be_scored_itself():
    frame = pd.DataFrame({"text": ["the dog sleeps in the sun", None]}, index=["x", "y"])
    assert wb.score(frame, "language").to_dict()["x"] == "en" and wb.score(frame, "language").isna()["y"]


def test_a_signal_of_images_is_computed_from_the_pictures_given(pool):
    frame = pool.to_pandas(["uid", "text"]).iloc[:40]
    images = images_of(pool, pool.count_rows())[:40]
    images[3] = None
    found = wb.score(frame, "clip_similarity", images=images)
    assert np.isnan(found[3]) and found.notna().sum() >= 30 and found.dtype == np.float32
    pd.testing.assert_series_equal(found, wb.score(frame, "clip_cosine", images=images), check_names=False)


def test_what_a_frame_lacks_is_named_in_one_sentence(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path))
    frame = pool.to_pandas(["uid", "text"])
    with user_error("column-missing", match="'clip_b32_similarity_score'"):
        wb.score(frame, "clip_score", arch="b32")
    with user_error("array-missing", match=r"'l14_img'.*targets=PATH"):
        wb.score(frame, "normsim")
    with user_error("images-missing", match="images="):
        wb.score(frame, "clip_similarity")
    with user_error("asset-not-found", match="eval_dir=PATH"):
        wb.score(frame, "decontaminated", images=[None] * len(frame))
    with user_error("array-shape"):
        wb.score(frame, "normsim", features={"l14_img": np.zeros((3, 4))})
    with user_error("unknown-option", match="Did you mean 'arch'"):
        wb.score(frame, "clip_score", arc="b32")
    with user_error("option-conflict"):
        wb.score(frame, "clip_score", fraction=0.3)
    with user_error("unknown-filter", match="Did you mean 'clip_score'"):
        wb.score(frame, "clip_scor")
    assert list(tmp_path.iterdir()) == [], "nothing on disk"


def test_scores_of_no_rows_and_rows_without_a_value(tmp_path):
    frame = pd.DataFrame({"text": ["one", None, "three words here"]}, index=["a", "b", "c"])
    code = (
        "from benchmark import register_filter\n"
        "@register_filter(columns=['text'])\ndef api_copies(rows):\n    return rows['text'].str.len()\n"
        "@register_filter(columns=['text'])\ndef api_keeps(rows):\n"
        "    return (rows['text'].str.len() > 3).astype('boolean').mask(rows['text'].isna())\n"
    )
    with loaded_plugin(tmp_path / "plugin.py", code):
        assert wb.score(frame, "api_keeps").tolist() == [False, pd.NA, True]
        assert wb.score(frame.dropna(), "api_keeps").dtype == bool
        assert wb.score(frame, "api_copies").astype("Int64").tolist() == [3, pd.NA, 16]
        assert len(wb.score(frame.iloc[:0], "api_copies")) == 0


def test_select_chooses_what_the_command_chooses(pool, pico_pool, tmp_path):
    rules = [wb.rule("basic"), wb.rule("clip_score", fraction=0.2)]
    subset = wb.select(pool, rules)
    subset.write(tmp_path / "mine.npy")
    at = [f"pool_dir={pico_pool}", "scale=pico", f"exp_dir={tmp_path / 'exp'}"]
    assert main(["filter", *at, "filters=[basic,clip_score]", "filters.clip_score.fraction=0.2"]) == 0
    assert (tmp_path / "mine.npy").read_bytes() == (tmp_path / "exp" / "subset.npy").read_bytes()
    again = wb.read_subset(tmp_path / "mine.npy")
    pd.testing.assert_series_equal(again.to_series(), subset.to_series())
    inner = wb.select(pool, [wb.rule("clip_score", threshold=0.5)], within=subset, workers=2)
    assert set(inner.to_series().index) <= set(subset.to_series().index)
    scores = pool.to_pandas(["uid"]).assign(score=wb.score(pool.to_pandas(), "clip_score"))
    high = set(scores[scores.score >= np.float32(0.5)].uid)
    assert set(inner.to_series().index) == high & set(subset.to_series().index)
    with user_error("option-missing"):
        wb.select(pool, [])


def test_rules_are_checked_when_they_are_made():
    with user_error("unknown-option", match="fraction"):
        wb.rule("basic", fraction=0.3)
    with user_error("option-conflict"):
        wb.rule("clip_score", fraction=0.3, threshold=0.1)
    with user_error("option-value"):
        wb.rule("clip_score", fraction=3.0)
    with user_error("option-type"):
        wb.rule("clip_score", arch=14)
    assert wb.rule("clip_score", fraction=0.3) == wb.rule("clip_score", arch="l14")


def test_selectors_and_copies_come_through(tmp_path):
    pool = wb.open_pool(write_pool(tmp_path / "pool", {"uid": [uid(1), uid(2), uid(3)], "copies": [2, 0, 1]}))
    code = (
        "from benchmark import Subset, register_selector, register_filter\n"
        "@register_filter(columns=['copies'])\ndef api_many(rows):\n    return rows['copies']\n"
        "@register_selector(columns=['copies'])\ndef api_first(pool, *, seed: int = 0):\n"
        "    return Subset.of(pool.uids[:2])\n"
    )
    with loaded_plugin(tmp_path / "plugin.py", code):
        assert wb.select(pool, [wb.rule("api_many")]).to_series().to_dict() == {uid(1): 2, uid(3): 1}
        assert wb.select(pool, [wb.rule("api_first")], workers=1).to_series().to_dict() == {uid(1): 1, uid(2): 1}
        everything = wb.Subset.of(parse_uids([uid(1), uid(3)]))
        assert set(wb.select(pool, [wb.rule("api_many")], within=everything).to_series()) == {2, 1}


NOTEBOOK = """
import sys
from pathlib import Path

import winnow as wb

pool = wb.open_pool(sys.argv[1])


def cell(power):
    @wb.register_filter(columns=["text"], fraction=0.2)
    def in_a_cell(rows, *, exponent: int = power):
        return rows["text"].str.len().astype(float) ** exponent


cell(1)
first = wb.select(pool, [wb.rule("in_a_cell")], workers=2)
assert len(first) == round(0.2 * pool.count_rows())
cell(-1)  # the cell was changed, and run again
second = wb.select(pool, [wb.rule("in_a_cell"), wb.rule("basic", min_side=1)], workers=2)
assert not set(first.to_series().index) & set(second.to_series().index)
assert wb.score(pool.to_pandas(), "in_a_cell").max() <= 1
found = [path.name for path in pool.signals_dir.iterdir()]
assert not [name for name in found if "in_a_cell" in name], found
assert [name for name in found if name.startswith("basic")], found
"""


@pytest.mark.parametrize("how", ["script", "prompt"])
def test_a_strategy_of_a_notebook_may_be_registered_again_and_runs_in_this_process(how, tmp_path):
    """A script is `__main__`, as a notebook is; at a prompt there is not even a file."""
    texts = [f"{'word ' * (number % 17)}red square {number}" for number in range(200)]
    columns = {"uid": [uid(n) for n in range(200)], "text": texts, "original_width": [300] * 200}
    pool_dir = write_pool(tmp_path / "pool", columns | {"original_height": [300] * 200})
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    command = [sys.executable, "notebook.py"] if how == "script" else [sys.executable, "-c", NOTEBOOK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, pool_dir], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "in_a_cell" in line and "this process" in line]
    assert len(told) == 2, done.stderr  # one line for each time that it was another
    assert "in_a_cell" not in STRATEGIES
