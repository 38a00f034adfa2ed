"""`dry_run=true`: what a stage says it will read is what it then reads, and nothing is written."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmark.cli import dry_run
from benchmark.cli.dry_run import cutting_reads, filter_reads, training_reads
from benchmark.cli.main import main
from benchmark.pool import images
from benchmark.pool.index import PoolIndex
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.pool import Pool
from benchmark.pool.shards import Tar
from benchmark.pool.subset import Subset
from benchmark.pool.uids import parse_uids
from benchmark.runtime.ranges import BLOCK_BYTES, SEQUENTIAL_BLOCK_BYTES, RangeReader
from benchmark.runtime.storage import format_bytes
from benchmark.scales import SCALES
from benchmark.selection import pilot, shard_evaluation
from benchmark.selection.engine import run_filters
from benchmark.selection.pilot import pilot_lines, spell_times
from benchmark.selection.rules import make_rule, resolve_rules
from tests.conftest import loaded_plugin, uid, user_error, write_pool

MIB = 1 << 20


def index_of(tar_sizes, image_places, tmp_path):
    """An index of samples at (tar, offset, length), captions of 10 bytes right behind the image."""
    tars = [Tar(tmp_path / f"{n}.tar", size, "") for n, size in enumerate(tar_sizes)]
    tar, offset, length = (np.array(each, dtype=np.int64) for each in zip(*image_places, strict=True))
    zeros = np.zeros(len(tar), dtype=np.dtype("u8,u8"))
    return PoolIndex(IndexSummary(tars, []), zeros, tar, offset, length, offset + length, np.full(len(tar), 10))


def seen(samples):
    return replace(SCALES["pico"], samples_seen=samples, batch_size=1)


def test_in_place_on_a_local_disk_reads_the_bytes_of_the_samples(tmp_path):
    index = index_of([100 * MIB], [(0, 0, 90), (0, 50 * MIB, 190)], tmp_path)
    reads = training_reads(index, np.array([0, 1, 1]), seen(6), is_held=False)
    assert (reads.passes, reads.written_bytes) == (2.0, 3 * 7 * 512)
    assert (reads.in_place.num_bytes, reads.in_place.num_requests) == (1000, 12)
    assert not reads.resharding_pays and "in place is cheaper" in reads.lines()[-1]
    held = training_reads(index, np.array([0, 1, 1]), seen(6), is_held=True)
    assert (held.in_place.num_bytes, held.in_place.num_requests) == (500, 6)


def test_in_place_on_a_remote_pool_reads_blocks_and_resharding_may_pay(tmp_path, monkeypatch):
    """Two samples in different blocks of 8 MiB of one tar, one in the short last block of another."""
    monkeypatch.setattr(dry_run, "is_remote", lambda path: True)
    monkeypatch.setenv("WINNOW_BLOCK_CACHE_BYTES", "1000")
    places = [(0, 5, 90), (0, BLOCK_BYTES + 5, 90), (1, 2 * BLOCK_BYTES + 1, 90)]
    index = index_of([40 * MIB, 2 * BLOCK_BYTES + 300], places, tmp_path)
    once = 2 * BLOCK_BYTES + 300
    reads = training_reads(index, np.arange(3), seen(12), is_held=False)
    assert (reads.in_place.num_bytes, reads.in_place.num_requests) == (4 * once, 4 * 3)
    assert cutting_reads(index, np.arange(3)).num_bytes == SEQUENTIAL_BLOCK_BYTES + 2 * BLOCK_BYTES + 300
    assert reads.resharding_pays and "`winnow reshard` first" in reads.lines()[-1]
    monkeypatch.setenv("WINNOW_BLOCK_CACHE_BYTES", str(once))
    assert training_reads(index, np.arange(3), seen(12), is_held=False).in_place.num_bytes == once, "kept blocks"


def test_a_sample_across_two_blocks_needs_both(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "is_remote", lambda path: True)
    index = index_of([40 * MIB], [(0, BLOCK_BYTES - 5, 90)], tmp_path)
    assert training_reads(index, np.array([0]), seen(1), is_held=False).in_place.num_requests == 2


def test_filters_read_their_columns_and_arrays(pico_pool, strategies):
    pool = Pool(pico_pool)
    (columns,) = filter_reads(pool, [make_rule("clip_score", {}).resolve(pool)])
    footers = [pq.read_metadata(path) for path in pool.metadata_paths]
    wanted = ("uid", "clip_l14_similarity_score")
    chunks = [
        footer.row_group(group).column(number)
        for footer in footers
        for group in range(footer.num_row_groups)
        for number in range(footer.num_columns)
        if footer.schema.column(number).name in wanted
    ]
    assert columns.num_bytes == sum(chunk.total_compressed_size for chunk in chunks)
    assert columns.num_requests == len(chunks) + len(footers)
    _, arrays = filter_reads(pool, [make_rule("semdedup", {}).resolve(pool)])
    rows = pool.count_rows()
    sizes = [np.load(path.with_suffix(".npz"))["l14_img"].nbytes for path in pool.metadata_paths]
    assert sum(sizes) <= arrays.num_bytes <= sum(sizes) + 200 * len(sizes) and rows


def test_images_are_counted(pico_pool, strategies):
    pool = Pool(pico_pool)
    *_, images = filter_reads(pool, [make_rule("text_masked_clip", {}).resolve(pool)])
    assert images.num_requests == len(pool.load_index())
    assert images.num_bytes == int(pool.load_index().image_length.sum())


def test_training_reads_what_was_said(pico_pool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=e"]
    assert main(["filter", *at, "filters=no_filter"]) == 0
    capsys.readouterr()
    assert main(["train", *at, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    counted = {"bytes": 0, "requests": 0}
    real = RangeReader.read

    def counting(self, path, offset, length, **more):
        counted["bytes"] += length
        counted["requests"] += 1
        return real(self, path, offset, length, **more)

    monkeypatch.setattr(RangeReader, "read", counting)
    assert not (tmp_path / "e" / "seed-0").exists()
    assert main(["train", *at]) == 0
    assert f"in place: {format_bytes(counted['bytes'])} in {counted['requests']:,} requests" in said


@pytest.mark.parametrize("verb", ["run", "filter", "reshard", "train"])
def test_nothing_is_written(pico_pool, tmp_path, capsys, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    at = ["scale=pico", f"pool_dir={pico_pool}"]
    if verb in ("reshard", "train"):
        at.append("exp_dir=e")
        assert main(["filter", *at]) == 0
    before = {path for path in tmp_path.rglob("*") if path.is_file() and "logs" not in path.parts}
    signals = set((pico_pool / "signals").rglob("*"))
    capsys.readouterr()
    more = ["filters=[decontaminated,basic]"] if verb in ("run", "filter") else []
    assert main([verb, *at, *more, "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert " requests" in out and ("kB in" in out or "MB in" in out)
    assert set((pico_pool / "signals").rglob("*")) == signals
    assert {path for path in tmp_path.rglob("*") if path.is_file() and "logs" not in path.parts} == before


def test_bytes_are_spelt_with_their_unit():
    assert [format_bytes(n) for n in (0, 999, 1000, 1_250_000, 3 * 10**9, 4 * 10**14)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.2 MB",
        "3.0 GB",
        "400.0 TB",
    ]


PILOT = '''"""Strategies made for pilots."""

import time

import pandas as pd

from benchmark import register_filter, register_signal


@register_signal(columns=["score"])
def p_slow(rows: pd.DataFrame) -> pd.Series:
    """Take two milliseconds a row."""
    time.sleep(0.002 * len(rows))
    return rows["score"] * 3


@register_filter(signals=["p_slow", "my_score"], fraction=0.5)
def p_sum(rows: pd.DataFrame) -> pd.Series:
    """Score by both."""
    return rows["p_slow"] + rows["my_score"]


@register_filter(columns=["score"], fraction=0.5)
def p_copy(rows: pd.DataFrame) -> pd.Series:
    """Score by the column."""
    return rows["score"]
'''


def test_a_pilot_tells_what_the_whole_will_take_and_what_is_kept(tmp_path, strategies, monkeypatch):
    monkeypatch.setattr(pilot, "PILOT_ROWS", 20)
    shards = [{"uid": [uid(n) for n in part], "score": [n / 7 for n in part]} for part in (range(30), range(30, 100))]
    folder = write_pool(tmp_path / "pool", *shards)
    (folder / "signals").mkdir()
    mine = {"uid": [uid(n).upper() for n in range(100)], "my_score": [float(n) for n in range(100)]}
    pd.DataFrame(mine).to_parquet(folder / "signals" / "mine.parquet")
    with loaded_plugin(tmp_path / "for_pilots.py", PILOT):
        pool = Pool(folder)
        rules = [make_rule(name, {}) for name in ("p_sum", "p_copy", "dedup")]
        with user_error("column-missing", match="selector 'dedup' needs the column 'sha256'"):
            resolve_rules(pool, rules)
        first, reading, slow, copied, total, together = pilot_lines(pool, resolve_rules(pool, rules[:2]))
        assert first.startswith("pilot: 20 rows of ")
        assert "columns and arrays read: 100 rows to evaluate" in reading
        rate = float(re.search(r"signal 'p_slow': 100 rows to evaluate; ([\d,]+) rows/s; < 1 minute", slow)[1])
        assert 0 < rate <= 500 and re.search(r"; [\d.,]+ (bytes|kB) to cache", slow)
        assert "filter 'p_copy': 100 rows to evaluate" in copied and "only copies score, so nothing is cached" in copied
        assert (
            "filter 'p_sum': 100 rows to evaluate" in total
            and together.strip() == "together: < 1 minute of one process"
        )
        assert [path.name for path in (folder / "signals").iterdir()] == ["mine.parquet"]

        within = Subset.of(parse_uids([uid(n) for n in range(10, 60)]))
        run_filters(pool, rules[:1], within=within)
        lines = pilot_lines(pool := Pool(folder), resolve_rules(pool, rules[:1]))
        assert lines[0].startswith("pilot: 20 rows") and "'p_slow': 50 rows to evaluate, 50 cached; " in lines[2]
        lines = pilot_lines(pool := Pool(folder), resolve_rules(pool, rules[:1]), within=within)
        assert [line.strip() for line in lines[1:3]] == [
            "signal 'p_slow': all 50 rows are cached",
            "filter 'p_sum': all 50 rows are cached",
        ]


def test_times_are_spelt_for_one_process_and_for_all():
    assert spell_times(59, 8) == "< 1 minute of one process"
    assert spell_times(3600, 0) == "60 minutes of one process"
    assert spell_times(36_000_000, 8) == "10,000.0 hours of one process, 1,250.0 hours with workers=8"


def test_a_pilot_over_images_reads_those_of_its_rows_alone(pico_pool, strategies, monkeypatch, tmp_path):
    monkeypatch.setattr(pilot, "PILOT_ROWS", 40)
    seen = []
    read = images.read_images
    monkeypatch.setattr(shard_evaluation, "read_images", lambda places: seen.append(len(places.rows)) or read(places))
    pool = Pool(pico_pool, signals_dir=tmp_path / "signals")
    lines = pilot_lines(
        pool, resolve_rules(pool, [make_rule(name, {}) for name in ("clip_similarity", "decontaminated")]), workers=2
    )
    told = "\n".join(lines)
    assert len(seen) == 1 and 30 < seen[0] <= 40  # one pass for both
    assert "images read and decoded: 4,000 rows to evaluate" in told and "signal 'eval_similarity': 4,000 rows" in told
    assert not (tmp_path / "signals").exists()
