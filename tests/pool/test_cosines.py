"""An .npz whose rows are not the parquet's: found before a rule reads it, by its cosines against the scores."""

import json
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.cli.main import main
from benchmark.pool import cosines
from benchmark.pool.check import check_pool
from benchmark.pool.cosines import APART, RUN_ROWS, RUNS, compare_cosines, sampled_rows
from benchmark.pool.pool import Pool
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import make_rule
from tests.conftest import uid, user_error


@pytest.fixture(autouse=True)
def _strategies(strategies):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cosines, "_KNOWN", {})
    return tmp_path / "cache"


@pytest.fixture
def pool_dir(pico_pool, tmp_path):
    """A copy of pico's metadata, sound."""
    for name in ("metadata", "assets"):
        shutil.copytree(pico_pool / name, tmp_path / "pool" / name)
    return tmp_path / "pool"


def shards_of(pool_dir):
    return sorted((pool_dir / "metadata").glob("*.parquet"))


def draw_shard(path, rows, *, dtype=np.float16, dimension=16, order=None, save=np.savez, scores=None):
    """Write a metadata shard with embeddings; `order` is that of the .npz's rows."""
    draw = np.random.default_rng(rows)
    arrays = {name: draw.standard_normal((rows, dimension)).astype(dtype) for name in ("l14_img", "l14_txt")}
    images, texts = (array.astype(float) for array in arrays.values())
    cosine = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "uid": [uid(number) for number in range(rows)],
            "clip_l14_similarity_score": pa.array((cosine if scores is None else scores).astype(np.float32)),
        }
    )
    pq.write_table(table, path)
    order = np.arange(rows) if order is None else order
    save(path.with_suffix(".npz"), **{name: array[order] for name, array in arrays.items()})
    return path


def sort_by_text(path):
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(np.argsort(table["text"].to_pylist(), kind="stable"))), path)


def test_metadata_that_was_sorted_without_its_npz_is_refused_by_every_rule_over_embeddings(pool_dir, capsys):
    assert check_pool(pool_dir).problems == []
    for path in shards_of(pool_dir):
        sort_by_text(path)
    assert main(["pool", "check", str(pool_dir), "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    for path in shards_of(pool_dir):
        assert any(str(path.with_suffix(".npz")) in each and "256 rows" in each for each in report["problems"])
    assert report["npz"]["cosines"]["clip_l14_similarity_score"]["difference"] > 0.2
    assert all("cosines" in report["filters"][name] for name in ("negcliploss", "near_dedup", "normsim"))
    assert report["filters"]["clip_score"] is None
    for name in ("negcliploss", "near_dedup", "image_based", "normsim"):
        with pytest.raises(ValueError) as error:
            run_filters(Pool(pool_dir), [make_rule(name, {})])
        assert error.value.code == "npz-order"
    assert main(["filter", "scale=pico", f"pool_dir={pool_dir}", "filters=normsim", f"exp_dir={pool_dir}/exp"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (pool_dir / "exp").exists()
    assert len(run_filters(Pool(pool_dir), [make_rule("clip_score", {})]).subset) == 1200  # it reads no .npz


def test_one_bad_shard_of_many_is_found_by_check_and_before_any_row_is_judged(pool_dir, monkeypatch):
    bad = shards_of(pool_dir)[-1]
    sort_by_text(bad)
    problems = check_pool(pool_dir).problems
    assert len(problems) == 2 and all(str(bad.with_suffix(".npz")) in problem for problem in problems)
    monkeypatch.setattr("benchmark.selection.engine._Engine", None)
    with pytest.raises(ValueError) as error:
        run_filters(Pool(pool_dir), [make_rule("normsim", {})])
    assert error.value.code == "npz-order" and bad.stem in str(error.value)


def test_reading_embeddings_without_a_check_before_it_is_refused_too(pool_dir):
    """As scripts do, and filters of a remote pool."""
    sort_by_text(shards_of(pool_dir)[0])
    first, second = shards_of(pool_dir)[:2]
    pool = Pool(pool_dir)
    assert pool.read_features(second, ["l14_img"])["l14_img"].shape[0] == pool.footer(second).num_rows
    with pytest.raises(ValueError) as error:
        pool.read_features(first, ["l14_img"])
    assert error.value.code == "npz-order"
    assert pool.read_features(first, []) == {}


def reorders(rows):
    return {
        "shuffled": np.random.default_rng(0).permutation(rows),
        "backwards": np.arange(rows)[::-1],
        "one row lost near the front": np.delete(np.r_[np.arange(rows), rows - 1], 5),
        "one row lost near the end": np.delete(np.r_[np.arange(rows), rows - 1], rows - rows // 8),
        "halves swapped": np.roll(np.arange(rows), rows // 2),
        "moved by one": np.roll(np.arange(rows), 1),
    }


@pytest.mark.parametrize("rows", [40, 256, 257, 3000])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_way_in_which_rows_move_is_seen_and_sound_ones_agree(tmp_path, rows, kind, save):
    (sound,) = compare_cosines(draw_shard(tmp_path / "sound.parquet", rows, dtype=kind, save=save))
    assert sound.agrees and sound.compared == min(rows, RUNS * RUN_ROWS) and sound.difference < 2e-5
    for name, order in reorders(rows).items():
        (found,) = compare_cosines(draw_shard(tmp_path / f"{name}.parquet", rows, dtype=kind, save=save, order=order))
        assert not found.agrees and found.difference > APART / 2, (name, found)


def test_the_rows_that_are_compared_are_those_that_numpy_reads(tmp_path):
    """A score is spoilt in one row at a time, which is seen where that row is among the compared ones."""
    rows = 1000
    compared = sampled_rows(rows)
    assert len(compared) == 256 and compared[0] == 0 and compared[-1] == rows - 1 and (np.diff(compared) > 0).all()
    path = draw_shard(tmp_path / "a.parquet", rows)
    table = pq.read_table(path)
    scores = table["clip_l14_similarity_score"].to_numpy()
    for row in (0, 1, 15, 16, 500, 983, 984, 999):
        spoilt = scores.copy()
        spoilt[row] += 1
        pq.write_table(table.set_column(1, "clip_l14_similarity_score", pa.array(spoilt)), path)
        (found,) = compare_cosines(path)
        assert found.apart == int(row in compared), row


def test_rows_without_a_score_or_an_embedding_count_for_nothing(tmp_path):
    path = draw_shard(tmp_path / "a.parquet", 64)
    table = pq.read_table(path)
    scores = table["clip_l14_similarity_score"].to_numpy().copy()
    scores[:10] = np.nan
    column = pa.array(scores, mask=np.arange(64) % 64 == 20)
    pq.write_table(table.set_column(1, "clip_l14_similarity_score", column), path)
    arrays = dict(np.load(path.with_suffix(".npz")))
    arrays["l14_img"][30:35] = 0
    arrays["l14_txt"][40:42] = np.nan
    np.savez(path.with_suffix(".npz"), **arrays)
    (found,) = compare_cosines(path)
    assert (found.compared, found.apart) == (64 - 10 - 1 - 5 - 2, 0)


@pytest.mark.parametrize("case", ["no text", "no score", "another length", "no matrix", "no row", "score as words"])
def test_what_cannot_be_compared_passes(tmp_path, case):
    path = draw_shard(tmp_path / "a.parquet", 0 if case == "no row" else 40)
    table, arrays = pq.read_table(path), dict(np.load(path.with_suffix(".npz")))
    if case == "no text":
        del arrays["l14_txt"]
    elif case == "no score":
        pq.write_table(table.select(["uid"]), path)
    elif case == "score as words":
        pq.write_table(table.set_column(1, "clip_l14_similarity_score", pa.array(["a"] * 40)), path)
    elif case == "another length":
        arrays["l14_img"] = arrays["l14_img"][1:]
    elif case == "no matrix":
        arrays["l14_img"] = arrays["l14_img"].reshape(40, 4, 4)
    np.savez(path.with_suffix(".npz"), **arrays)
    assert compare_cosines(path) == []


def test_a_damaged_npz_is_told_as_damaged(tmp_path):
    path = draw_shard(tmp_path / "pool" / "metadata" / "a.parquet", 3000)
    data = path.with_suffix(".npz").read_bytes()
    path.with_suffix(".npz").write_bytes(data[: len(data) // 2])
    pool = Pool(tmp_path / "pool")
    with user_error("file-damaged", match=r"a\.npz"):
        pool.read_features(path, ["l14_img"])
    assert any("a.npz is damaged" in problem for problem in check_pool(pool.dir).problems)


def test_a_pair_of_files_is_compared_once_and_again_when_one_of_them_changes(pool_dir, monkeypatch):
    calls = []
    compare = cosines.compare_cosines
    monkeypatch.setattr(cosines, "compare_cosines", lambda path: calls.append(path.name) or compare(path))
    names = [path.name for path in shards_of(pool_dir)]

    def asked():
        monkeypatch.setattr(cosines, "_KNOWN", {})  # as in another process
        calls.clear()
        run_filters(Pool(pool_dir), [make_rule("normsim", {})])
        return list(calls)

    assert asked() == names and asked() == []
    check_pool(pool_dir)
    assert calls == []
    path = shards_of(pool_dir)[1]
    with path.with_suffix(".npz").open("r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(data)
    assert asked() == [path.name] and asked() == []
    sort_by_text(path)
    with pytest.raises(ValueError):
        asked()
    assert calls == [path.name]


def test_comparing_reads_little_of_a_large_npz(tmp_path):
    """A hundredth or so of two arrays, not both of them whole."""
    path = draw_shard(tmp_path / "a.parquet", 40_000, dimension=64)
    read = []

    class Counting(zipfile.io.FileIO):
        def readinto(self, buffer):
            count = super().readinto(buffer)
            read.append(count)
            return count

    original = cosines.open_file
    cosines.open_file = lambda name, **_: zipfile.io.BufferedReader(Counting(name), 4096)
    try:
        (found,) = compare_cosines(path)
    finally:
        cosines.open_file = original
    assert found.agrees and sum(read) < path.with_suffix(".npz").stat().st_size / 20
