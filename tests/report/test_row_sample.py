"""Reports of large pools: a sample tells what counting every row tells, whatever the files, in bounded memory."""

import html
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli.main import main
from benchmark.pool.pool import Pool
from benchmark.pool.subset import load_subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import format_uids
from benchmark.report import row_sample
from benchmark.report.row_sample import take_rows
from benchmark.report.survey import survey_pool
from benchmark.selection import cuts, engine
from benchmark.selection.engine import write_filtered
from benchmark.selection.rules import make_rule
from tests.conftest import members, write_pool

NUM_ROWS, MAX_ROWS = 12_000, 3_000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, strategies):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def columns(num_rows=NUM_ROWS):
    rng = np.random.default_rng(7)
    scores = rng.normal(0.2, 0.1, num_rows).astype(np.float32)
    return {
        "uid": format_uids(rng.integers(2**63, size=(num_rows, 2), dtype=np.uint64).view("u8,u8")[:, 0]),
        "text": rng.choice(["a", "two words", "now three words", None], num_rows),
        "clip_l14_similarity_score": np.where(rng.random(num_rows) < 0.05, np.nan, scores).astype(np.float32),
        "clip_b32_similarity_score": scores + rng.normal(0, 0.05, num_rows).astype(np.float32),
        "original_width": rng.integers(20, 900, num_rows),
        "original_height": rng.integers(20, 900, num_rows),
    }


def shards_of(table, size=1000, order=None):
    """Return the columns, in some order, as metadata shards of `size` rows."""
    frame = pd.DataFrame(table)
    frame = frame if order is None else frame.iloc[order]
    return [frame.iloc[start : start + size].to_dict("list") for start in range(0, len(frame), size)]


def subset_of(pool, rules, path):
    write_filtered(pool, rules, path)
    return load_subset(path)


def plant(pool_dir, table):
    rng = np.random.default_rng(3)
    kinds = {"rare": rng.random(len(table["uid"])) < 0.1, "common": rng.random(len(table["uid"])) < 0.8}
    pd.DataFrame({"uid": table["uid"], **kinds}).to_parquet(pool_dir / "planted.parquet")


def test_a_sample_tells_what_all_rows_tell_within_binomial_error(folder, monkeypatch):
    table = columns()
    pool_dir = write_pool(folder / "pool", *shards_of(table))
    plant(pool_dir, table)
    pool = Pool(pool_dir)
    rules = [make_rule("clip_score", {"fraction": 0.3}).resolve(pool)]
    subset = subset_of(pool, [*rules, make_rule("random", {"fraction": 0.5}).resolve(pool)], folder / "subset.npy")
    exact = survey_pool(pool, subset, rules)
    monkeypatch.setattr(row_sample, "MAX_ROWS", MAX_ROWS)
    sampled = survey_pool(pool, subset, rules)

    assert exact.num_sampled is None and 2_700 < sampled.num_sampled < 3_300
    assert (sampled.num_rows, sampled.num_kept) == (exact.num_rows, exact.num_kept)
    share = sampled.num_sampled / NUM_ROWS
    assert [grouping.title for grouping in sampled.groupings] == [grouping.title for grouping in exact.groupings]
    compared = 0
    for few, all_rows in zip(sampled.groupings, exact.groupings, strict=True):
        by_label = {group.label: group for group in few.groups}
        for group in all_rows.groups:
            found = by_label.get(group.label)
            assert (found.rows if found else 0) == pytest.approx(
                share * group.rows, abs=5 * (share * group.rows) ** 0.5 + 1
            )
            if found and found.rows >= 20:
                p = group.kept / group.rows
                error = (max(p * (1 - p), 0.01) / found.rows) ** 0.5
                assert found.kept / found.rows == pytest.approx(p, abs=5 * error), (few.title, group.label)
                compared += 1
    assert compared > 20
    (few,) = [each for each in sampled.histograms if each.name == "clip_score"]
    (whole,) = [each for each in exact.histograms if each.name == "clip_score"]
    assert few.cut_score == pytest.approx(whole.cut_score, abs=0.002) and few.cut_score >= whole.cut_score
    for name in ("kept", "dropped", "dropped_by_others"):
        counted, total = getattr(few, name).sum(), getattr(whole, name).sum()
        assert counted == pytest.approx(share * total, abs=5 * (share * total) ** 0.5)
    for few, whole in zip(sampled.curves, exact.curves, strict=True):
        errors = 5 * 0.5 / np.minimum(few.rows, whole.rows)[:, None] ** 0.5
        assert (np.abs(few.shares - whole.shares) <= errors).all()


def test_with_one_rule_nothing_of_a_sample_is_dropped_by_another(folder, monkeypatch):
    """The rows that pass are those that pass in the whole pool, so the sample's own cut does not blur them."""
    monkeypatch.setattr(row_sample, "MAX_ROWS", MAX_ROWS)
    pool = Pool(write_pool(folder / "pool", *shards_of(columns())))
    rules = [make_rule("clip_score", {}).resolve(pool)]
    (histogram, *_) = survey_pool(pool, subset_of(pool, rules, folder / "subset.npy"), rules).histograms
    assert histogram.kept.sum() > 500 and histogram.dropped.sum() > 500 and histogram.dropped_by_others.sum() == 0


def test_the_sample_is_the_same_whatever_the_files_and_their_order(folder, monkeypatch):
    monkeypatch.setattr(row_sample, "MAX_ROWS", MAX_ROWS)
    table, order = columns(), np.random.default_rng(1).permutation(NUM_ROWS)
    pools = [Pool(write_pool(folder / "one", *shards_of(table)))]
    pools.append(Pool(write_pool(folder / "two", *shards_of(table, 1700, order))))
    subset = subset_of(pools[0], [make_rule("random", {}).resolve(pools[0])], folder / "subset.npy")
    first, second = (take_rows(pool, subset) for pool in pools)
    assert np.array_equal(np.sort(first.uids), np.sort(second.uids)) and not np.array_equal(first.uids, second.uids)
    assert set(first.uids[first.is_kept].tolist()) == set(second.uids[second.is_kept].tolist())
    assert survey_pool(pools[0], subset).groupings == survey_pool(pools[1], subset).groupings


def test_memory_does_not_grow_with_the_pool_beyond_a_byte_a_row(folder, monkeypatch):
    monkeypatch.setattr(row_sample, "MAX_ROWS", 1_000)
    monkeypatch.setattr(engine, "MAX_SORTED", 1_000)  # a million rows, which the engine holds of any pool
    monkeypatch.setattr(cuts, "MAX_GATHERED", 100)  # likewise
    sizes, peaks = (10_000, 40_000), []
    for num_rows in sizes:
        pool = Pool(write_pool(folder / f"pool-{num_rows}", *shards_of(columns(num_rows), 1_000)))
        rules = [make_rule("clip_score", {}).resolve(pool)]
        subset = subset_of(pool, rules, folder / f"{num_rows}.npy")
        survey_pool(pool, subset, rules)  # loads what is loaded once
        tracemalloc.start()
        survey_pool(pool, subset, rules)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < sizes[1] - sizes[0]


def test_a_sampled_report_says_so_and_keeps_exact_counts_exact(folder, monkeypatch):
    table = columns(400)
    pool_dir = write_pool(folder / "pool", *shards_of(table, 150))
    there = [members(f"{n:09d}", int(uid, 16), text=f"number {n}") for n, uid in enumerate(table["uid"])]
    write_tar(pool_dir / "shards" / "00000000.tar", [member for sample in there for member in sample])
    plant(pool_dir, table)
    options = ["scale=pico", "pool_dir=pool", "exp_dir=exp"]
    assert main(["filter", *options, "filters=clip_score", "filters.clip_score.fraction=0.25"]) == 0
    assert main(["report", *options]) == 0
    whole = json.loads(Path("exp/report/report.json").read_text())
    assert "sample" not in whole["made_from"] and "sample" not in whole["result"]
    exact = html.unescape(Path("exp/report/index.html").read_text())
    monkeypatch.setattr(row_sample, "MAX_ROWS", 200)
    assert main(["report", *options]) == 0
    sampled = json.loads(Path("exp/report/report.json").read_text())
    assert sampled["made_from"] == {**whole["made_from"], "sample": 200}
    number = sampled["result"]["sample"]["rows"]
    assert sampled["result"]["sample"]["of"] == 400 and 140 < number < 260
    page = html.unescape(Path("exp/report/index.html").read_text())
    assert f"from a sample of {number} of 400 rows" in page and "a sample of" not in exact
    assert page.count("number ") >= 50
    for title in ("Rule by rule", "Overlap with the shipped strategies"):
        assert table_after(page, title) == table_after(exact, title)


def table_after(page, title):
    return page.split(f"<h2>{title}</h2>")[1].split("</table>")[0]
