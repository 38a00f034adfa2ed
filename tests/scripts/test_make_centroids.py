"""Centroids of a pool, against scikit-learn's k-means and a loop; killed calls; what is refused before it starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans

from benchmark.pool.pool import Pool
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import make_rule
from scripts import make_centroids
from scripts.make_centroids import Settings, first_centroids, improve, main, split_largest
from tests.conftest import uid, write_pool

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, GERMAN = "a photo of a small brown dog in the garden", "Ein kleiner brauner Hund im Garten vor dem Haus"


def blobs(seed, count, dimension=6, centres=7):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(centres, dimension))[rng.integers(0, centres, count)] * 3) + rng.normal(
        size=(count, dimension)
    )


def pool_of(folder, *shards, texts=None, dtype=np.float16):
    """Write a pool with one metadata shard per array of embeddings."""
    write_pool(folder, *({"uid": [uid(1000 * n + i) for i in range(len(s))]} for n, s in enumerate(shards)))
    for number, images in enumerate(shards):
        path = folder / "metadata" / f"{number:032x}.parquet"
        table = pd.read_parquet(path)
        table["text"] = ENGLISH if texts is None else texts[number]
        table.to_parquet(path)
        np.savez(path.with_suffix(".npz"), l14_img=np.asarray(images, dtype=dtype))
    return folder


def made(pool_dir, out, *options):
    assert main(["--pool-dir", str(pool_dir), "--out", str(out), *map(str, options)]) == 0
    return np.load(out)


def test_it_is_scikit_learns_k_means_from_the_same_rows(tmp_path):
    images = np.float16(blobs(0, 600))
    pool_dir = pool_of(tmp_path / "p", images[:250], images[250:])
    centroids = made(pool_dir, tmp_path / "c.npy", "--clusters", 9, "--seed", 3)
    first = first_centroids(images, 9, 3)
    assert sorted(map(tuple, first)) == sorted({tuple(row) for row in first}) and {tuple(row) for row in first} <= {
        tuple(row) for row in np.float32(images)
    }
    kmeans = KMeans(9, init=first, n_init=1, max_iter=20, tol=0).fit(np.float32(images))
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(centroids, kmeans.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize("blocks", [(64, 5), (1000, 1000)])
def test_an_iteration_is_the_mean_of_the_nearest_whatever_the_blocks(monkeypatch, blocks):
    monkeypatch.setitem(make_centroids.BLOCKS, "cpu", blocks)
    rows = np.float32(blobs(1, 333))
    centres = first_centroids(rows, 20, 0)
    told = []
    means = improve(rows, centres, advance=told.append)
    nearest = np.array([((row - centres) ** 2).sum(axis=1).argmin() for row in rows.astype(np.float64)])
    np.testing.assert_allclose(means, [rows[nearest == k].mean(axis=0) for k in range(20)], atol=1e-5)
    assert sum(told) == 333


def test_a_centroid_without_rows_moves_beside_the_one_that_has_most():
    means = np.float32([[1, 1], [0, 0], [5, 5], [0, 0]])
    moved = split_largest(means, np.array([10, 0, 3, 0]))
    step = np.float32(1 / 1024)
    assert moved[1].tolist() == [1 + step, 1 - step]
    assert moved[2].tolist() == [5, 5]
    assert np.abs(moved[[0, 3]] - 1).max() < 0.003 and len({tuple(row) for row in moved}) == 4


def test_rows_that_are_all_the_same_end_with_as_many_centroids_as_asked_for(tmp_path):
    pool_dir = pool_of(tmp_path / "p", np.ones((50, 4)))
    assert np.abs(made(pool_dir, tmp_path / "c.npy", "--clusters", 3) - 1).max() < 0.01


def test_the_caption_rule_and_missing_embeddings_leave_rows_out(tmp_path):
    images = blobs(2, 8)
    images[6], images[7] = np.nan, 0
    texts = [[ENGLISH, GERMAN, "dog", None, "a dog in the park", "wedding\n", ENGLISH, ENGLISH]]
    pool_dir = pool_of(tmp_path / "p", images, texts=texts)
    centroids = made(pool_dir, tmp_path / "c.npy", "--clusters", 3)
    assert sorted(map(tuple, centroids)) == sorted(map(tuple, np.float32(np.float16(images[[0, 4, 5]]))))
    assert json.loads((tmp_path / "c.json").read_text())["result"]["rows"] == 3
    made(pool_dir, tmp_path / "all.npy", "--clusters", 3, "--any-caption")
    record = json.loads((tmp_path / "all.json").read_text())
    assert record["result"]["rows"] == 6 and record["made_from"]["language_model"] is None


def test_a_sample_is_drawn_with_replacement_shard_by_shard(tmp_path):
    first, second = np.arange(1, 41).reshape(40, 1), np.arange(101, 121).reshape(20, 1)
    pool_dir = pool_of(tmp_path / "p", first, second)

    def drawn(name, **options):
        (tmp_path / name).mkdir()
        settings = Settings(any_caption=True, **options)
        return make_centroids.draw_rows(Pool(pool_dir), "l14_img", tmp_path / name, settings, None)[:, 0].tolist()

    assert drawn("all") == [*range(1, 41), *range(101, 121)]
    half = drawn("half", sample_ratio=0.55)
    assert len(half) == 22 + 11 and max(half[:22]) <= 40 and min(half[22:]) >= 101
    assert drawn("again", sample_ratio=0.55) == half != drawn("other", sample_ratio=0.55, seed=1)
    more = drawn("more", sample_ratio=3)
    assert len(more) == 180 and len(set(more)) > 55


def test_what_a_killed_call_left_is_gone_on_with(tmp_path):
    """Killed while drawing and while iterating, the result has the same bytes."""
    images = blobs(3, 30_000, dimension=16)
    pool_dir = pool_of(tmp_path / "p", *np.split(images, 3))
    options = ["--clusters", 200, "--any-caption", "--sample-ratio", 1.5, "--iterations", 12]
    expected = made(pool_dir, tmp_path / "whole.npy", *options)
    out = tmp_path / "killed.npy"
    command = [sys.executable, "scripts/make_centroids.py", "--pool-dir", pool_dir, "--out", out, *options]
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (work := list((tmp_path / "killed.npy.work").glob("after-[2-9].npy"))) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert work and not out.exists()
    drawn_path = tmp_path / "killed.npy.work" / "drawn.json"
    assert json.loads(drawn_path.read_text())["shards"] == 3
    assert made(pool_dir, out, *options).tobytes() == expected.tobytes()
    assert not (tmp_path / "killed.npy.work").exists()


def test_a_call_interrupted_while_drawing_goes_on_with_the_next_shard(tmp_path, monkeypatch, capsys):
    pool_dir = pool_of(tmp_path / "p", *np.split(blobs(4, 90), 3))
    expected = made(pool_dir, tmp_path / "whole.npy", "--clusters", 5)
    read, reads = Pool.read_features, []

    def interrupted(self, path, names):
        if len(reads) == 2:
            raise KeyboardInterrupt
        reads.append(path)
        return read(self, path, names)

    monkeypatch.setattr(Pool, "read_features", interrupted)
    out = tmp_path / "c.npy"
    arguments = ["--pool-dir", str(pool_dir), "--out", str(out), "--clusters", "5"]
    assert main(arguments) == 130
    assert "run the same command again" in capsys.readouterr().err
    with (tmp_path / "c.npy.work" / "rows.bin").open("ab") as file:
        file.write(b"half of a shard")
    reads[:] = [None]
    assert main(arguments) == 0 and len(reads) == 2
    assert np.load(out).tobytes() == expected.tobytes()


def test_what_is_there_is_left_and_what_does_not_fit_is_refused(tmp_path, capsys):
    pool_dir, out = pool_of(tmp_path / "p", blobs(5, 60)), tmp_path / "c.npy"

    def refused(*options):
        assert main(["--pool-dir", str(pool_dir), "--out", str(out), *map(str, options)]) == 2
        return capsys.readouterr().err

    made(pool_dir, out, "--clusters", 5)
    before = out.stat().st_mtime_ns
    made(pool_dir, out, "--clusters", 5)
    assert out.stat().st_mtime_ns == before
    assert "was made with other settings: seed is 0 there and 1 now" in refused("--clusters", 5, "--seed", 1)
    (tmp_path / "c.json").unlink()
    assert f"{out} is there, and no record says that this made it" in refused("--clusters", 5)
    out.unlink()
    assert "--clusters 61 are more than the rows: the pool has at most 60" in refused("--clusters", 61)
    assert "the pool has at most 30; give fewer" in refused("--clusters", 31, "--sample-ratio", 0.5)
    assert "--sample-ratio 0.0 is not above 0" in refused("--sample-ratio", 0)
    assert "--iterations 0 is below 1" in refused("--iterations", 0)
    assert "needs the array 'b32_img'" in refused("--arch", "b32", "--clusters", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


def test_image_based_finds_them_in_the_pools_folder(tmp_path, strategies):
    images = np.repeat(np.eye(2), 3, axis=0)
    pool_dir = pool_of(tmp_path / "p", images)
    assert main(["--pool-dir", str(pool_dir), "--clusters", "2"]) == 0
    np.save(pool_dir / "assets" / "image_targets_l14.npy", np.float32([[0, 1]]))
    subset = run_filters(Pool(pool_dir), [make_rule("image_based", {})]).subset
    assert subset.uids["f1"].tolist() == [3, 4, 5]
