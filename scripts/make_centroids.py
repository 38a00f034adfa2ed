"""Cluster a pool's images as DataComp's image-based filter has them: k-means, L2, 20 iterations, 100,000 centroids.

    python scripts/make_centroids.py --pool-dir pools/mine
    python scripts/make_centroids.py --pool-dir pools/mine --sample-ratio 0.03 --device cuda

Rows whose captions pass that filter's caption rule (or all: --any-caption) are taken, or drawn from them with
replacement; the first centroids are rows drawn by the seed. A centroid without rows moves beside the one that has most.
The result goes to <pool_dir>/assets, where `filters=image_based` finds it; a JSON beside it says what it was made from.
Killed, the same line resumes: with the next metadata shard while rows are drawn, with the next iteration afterwards.

What is drawn lies on disk beside the result, in `<out>.work`. Memory holds one shard's embeddings while drawing, then
centroids (twice, once in float64) and a block of distances; `--device cuda` holds these on the GPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, the package not installed

import numpy as np
from tqdm import tqdm

from benchmark.pool.pool import ASSETS_NAME, Pool
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import end_of_script
from benchmark.runtime.files import Json, atomic_path, digest, read_json, sha256_of, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import as_location, is_remote
from benchmark.runtime.records import Record, describe_differences, read_record, write_record
from benchmark.runtime.storage import file_hash, hash_file
from benchmark.selection.assets import find_file
from benchmark.toolbox.embeddings import has_embedding
from benchmark.toolbox.language import are_described_in_english, load_language_model

if TYPE_CHECKING:
    import torch

CENTROIDS_VERSION = 1
CLUSTERS, ITERATIONS = 100_000, 20
ROWS_NAME, DRAWN_NAME = "rows.bin", "drawn.json"
BLOCKS = {"cpu": (4096, 4096), "cuda": (32_768, 16_384)}  # rows and centroids whose distances are held at once
SPLIT = 1 / 1024  # by which two centroids of one cluster are set apart


@dataclass(frozen=True)
class Settings:
    """What centroids are made from, beside the pool."""

    arch: str = "l14"
    clusters: int = CLUSTERS
    iterations: int = ITERATIONS
    sample_ratio: float | None = None  # None: every row once
    seed: int = 0
    any_caption: bool = False
    language_model: str = "lid.176.ftz"

    def __post_init__(self) -> None:
        for name in ("clusters", "iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} is below 1", code="option-value")
        if self.sample_ratio is not None and not self.sample_ratio > 0:
            raise UserError(
                f"--sample-ratio {self.sample_ratio} is not above 0; 0.03 draws 3 rows of a hundred",
                code="option-value",
            )
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is not a whole number from 0 on", code="option-value")


@dataclass(frozen=True)
class Drawn:
    """What of a pool has been drawn so far."""

    shards: int = 0
    rows: int = 0
    dimension: int = 0
    dtype: str = ""


def make_centroids(pool_dir: Path, out: Path, settings: Settings, *, device: str = "cpu") -> Record:
    """Write centroids (clusters, dimension), float32, to `out` and what they were made from beside it, as JSON.

    What is finished and fits is left as it is, what a killed call left is resumed. Raises ValueError, before
    anything expensive, where the pool lacks texts or embeddings or has fewer rows than clusters, and where something
    else lies there.
    """
    pool = Pool(pool_dir)
    feature = f"{settings.arch}_img"
    model_path = None
    if not settings.any_caption:
        pool.check_columns(["text"], "the caption rule")
        model_path = find_file(settings.language_model, pool.dir, "--language-model")
    pool.check_features([feature], "make_centroids")
    _refuse_few(round(pool.count_rows() * (settings.sample_ratio or 1)), settings.clusters, "the pool has at most")
    inputs: dict[str, Json] = {
        "pool": pool.compute_fingerprint(),
        "feature": feature,
        "embeddings": digest([file_hash(s.npz_path, str(s.npz_state)) for s in pool.shards]),
        "clusters": settings.clusters,
        "iterations": settings.iterations,
        "sample_ratio": settings.sample_ratio,
        "seed": settings.seed,
        "language_model": model_path and hash_file(model_path),  # null: whatever the caption
    }
    work_dir = out.with_name(out.name + ".work")
    if not work_dir.exists() and out.exists():
        record = _read_finished(out, inputs)
        if record is None:
            raise UserError(
                f"{out} is there, and no record says that this made it; delete it, or give another --out",
                code="record-differs",
            )
        return record
    with locked(work_dir):
        record = _read_finished(out, inputs)
        if record is None:
            _check_work(work_dir, inputs)
            rows = draw_rows(pool, feature, work_dir, settings, model_path)
            _refuse_few(len(rows), settings.clusters, "with the caption rule and what was drawn there are")
            centroids = _cluster(rows, work_dir, settings, device)
            with atomic_path(out) as temporary, temporary.open("wb") as file:
                np.save(file, centroids)
            result = {"rows": len(rows), "sha256": sha256_of(out)}
            record = Record("centroids", CENTROIDS_VERSION, inputs, result)
            write_record(out.with_suffix(".json"), record)
        shutil.rmtree(work_dir)
    return record


def draw_rows(pool: Pool, feature: str, work_dir: Path, settings: Settings, model_path: Path | None) -> np.ndarray:
    """Draw rows shard by shard into a file; return it, mapped: (rows, dimension) in the embeddings' own type.

    Which rows of a shard are drawn depends on the seed and on its place among the pool's shards.
    """
    drawn_path, rows_path = work_dir / DRAWN_NAME, work_dir / ROWS_NAME
    drawn = Drawn(**read_json(drawn_path)) if drawn_path.exists() else Drawn()
    model = None if model_path is None else load_language_model(str(model_path), option="--language-model")
    paths = pool.metadata_paths
    rows_path.touch()
    bar = tqdm(total=len(paths), initial=drawn.shards, desc="draw", unit="shard", disable=None, leave=False)
    with bar, rows_path.open("r+b") as file:
        for path in paths[drawn.shards :]:
            images = pool.read_features(path, [feature])[feature]
            if drawn.shards and (drawn.dimension, drawn.dtype) != (images.shape[1], str(images.dtype)):
                raise UserError(
                    f"{path.with_suffix('.npz')}: {feature} has {images.shape[1]} columns of {images.dtype}, "
                    f"{drawn.dimension} of {drawn.dtype} in the shards before",
                    code="array-shape",
                )
            chosen = has_embedding(images)
            if model is not None:
                texts = pool.read_columns(path, ["text"])["text"].fillna("")
                chosen &= np.array(are_described_in_english(model, texts.tolist()), dtype=bool)
            rows = np.flatnonzero(chosen)
            if settings.sample_ratio is not None and len(rows):
                rng = np.random.default_rng([settings.seed, drawn.shards])
                rows = rng.choice(rows, int(len(rows) * settings.sample_ratio))
            file.seek(drawn.rows * images.shape[1] * images.dtype.itemsize)
            file.truncate()  # what a killed call wrote of this shard
            file.write(images[rows].tobytes())
            file.flush()
            drawn = Drawn(drawn.shards + 1, drawn.rows + len(rows), images.shape[1], str(images.dtype))
            write_json(drawn_path, asdict(drawn))
            bar.update()
    if not drawn.rows:
        raise UserError(
            f"{pool.dir}: no row was drawn; none may have a caption that passes (--any-caption takes all)",
            code="no-samples",
        )
    return np.memmap(rows_path, np.dtype(drawn.dtype), mode="r", shape=(drawn.rows, drawn.dimension))


def first_centroids(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Return different rows, drawn by the seed: (clusters, dimension) float32."""
    chosen = np.random.default_rng(seed).choice(len(rows), clusters, replace=False)
    return np.asarray(rows[chosen], dtype=np.float32)


def improve(
    rows: np.ndarray, centroids: np.ndarray, device: str = "cpu", advance: Callable[[int], object] = lambda rows: None
) -> np.ndarray:
    """Return the means of the rows that are nearest to each centroid, (clusters, dimension) float32: one iteration.

    Ties go to the first centroid. `advance` is called for every block with the number of its rows.
    """
    import torch

    block_rows, _ = BLOCKS[device]
    centres = torch.from_numpy(centroids).to(device)
    sums = torch.zeros(centres.shape, dtype=torch.float64, device=device)
    counts = torch.zeros(len(centres), dtype=torch.int64, device=device)
    halves = (centres.double() ** 2).sum(dim=1).float() / 2  # half the squared norms: (clusters,)
    for start in range(0, len(rows), block_rows):
        block = torch.from_numpy(np.asarray(rows[start : start + block_rows], dtype=np.float32)).to(device)
        nearest = _nearest(block, centres, halves)
        torch.use_deterministic_algorithms(True)  # a GPU would else add in another order each time
        sums.index_add_(0, nearest, block.double())
        torch.use_deterministic_algorithms(False)
        counts += torch.bincount(nearest, minlength=len(centres))
        advance(len(block))
    means = (sums / counts.clamp(min=1)[:, None]).float().cpu().numpy()
    return split_largest(means, counts.cpu().numpy())


def split_largest(means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Move each centroid without rows beside the one that has most; they share its rows evenly from then on."""
    means, counts = means.copy(), counts.copy()
    signs = np.where(np.arange(means.shape[1]) % 2 == 0, SPLIT, -SPLIT).astype(np.float32)
    for empty in np.flatnonzero(counts == 0):
        largest = counts.argmax()
        means[empty] = means[largest] * (1 + signs)
        means[largest] *= 1 - signs
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
    return means


def _nearest(block: torch.Tensor, centres: torch.Tensor, halves: torch.Tensor) -> torch.Tensor:
    """Return which centroid each row is nearest to: (rows,) int64."""
    import torch

    _, block_centres = BLOCKS[block.device.type]
    best = torch.full((len(block),), -torch.inf, device=block.device)
    nearest = torch.zeros(len(block), dtype=torch.int64, device=block.device)
    for start in range(0, len(centres), block_centres):
        some = slice(start, start + block_centres)
        # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2)
        highest, place = (block @ centres[some].T - halves[some]).max(dim=1)
        is_nearer = highest > best
        nearest[is_nearer] = place[is_nearer] + start
        best = torch.maximum(best, highest)
    return nearest


def _cluster(rows: np.ndarray, work_dir: Path, settings: Settings, device: str) -> np.ndarray:
    """Iterate from the first centroids, or from those of the last iteration that was finished."""
    done = max((int(path.stem.removeprefix("after-")) for path in work_dir.glob("after-*.npy")), default=0)
    if done:
        centroids = np.load(work_dir / f"after-{done}.npy")
    else:
        centroids = first_centroids(rows, settings.clusters, settings.seed)
    bar = tqdm(
        total=settings.iterations * len(rows),
        initial=done * len(rows),
        desc="k-means",
        unit="row",
        unit_scale=True,
        disable=None,
        leave=False,
    )
    for number in range(done + 1, settings.iterations + 1):
        centroids = improve(rows, centroids, device, bar.update)
        with atomic_path(work_dir / f"after-{number}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, centroids)
        (work_dir / f"after-{number - 1}.npy").unlink(missing_ok=True)
    bar.close()
    return centroids


def _read_finished(out: Path, inputs: dict[str, Json]) -> Record | None:
    """Return the record of centroids that are there; raises ValueError where they were made from something else."""
    record = read_record(out.with_suffix(".json")) if out.exists() else None
    wanted = {"version": CENTROIDS_VERSION, **inputs}
    if record and (shown := describe_differences(wanted, {"version": record.version, **record.inputs})):
        raise UserError(
            f"{out} was made with other settings: {shown}; delete it, or give another --out", code="record-differs"
        )
    return record


def _check_work(work_dir: Path, inputs: dict[str, Json]) -> None:
    """Begin a folder of work, or go on with one that was begun with the same settings."""
    path = work_dir / "made_from.json"
    if not path.exists():
        write_json(path, inputs)
    elif read_json(path) != inputs:
        raise UserError(
            f"{work_dir} was begun with other settings ({path.name}); repeat those, or delete it", code="record-differs"
        )


def _refuse_few(rows: int, clusters: int, what: str) -> None:
    if rows < clusters:
        raise UserError(
            f"--clusters {clusters:,} are more than the rows: {what} {rows:,}; give fewer clusters", code="option-value"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, after one sentence where it is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool-dir", required=True, help="the pool's folder or URL; it has .npz files")
    parser.add_argument("--out", type=Path, help="the file [<pool_dir>/assets/image_centroids_<arch>.npy]")
    parser.add_argument("--arch", default="l14", choices=["l14", "b32"], help="which CLIP's embeddings (default: l14)")
    parser.add_argument("--clusters", type=int, default=CLUSTERS, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="default: %(default)s")
    parser.add_argument("--sample-ratio", type=float, help="draw so many rows with replacement [every row once]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--any-caption", action="store_true", help="take rows whatever their caption")
    parser.add_argument("--language-model", default="lid.176.ftz", help="fastText's (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=list(BLOCKS), help="default: cpu")
    options = parser.parse_args(arguments)

    def work() -> int:
        pool_dir = as_location(options.pool_dir)
        if options.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise UserError("--device cuda: torch sees no GPU here", code="no-gpu")
        if options.out is None and is_remote(pool_dir):
            raise UserError(
                f"{pool_dir} is remote; give --out, and the result as filters.image_based.centroids",
                code="option-missing",
            )
        out = options.out or pool_dir / ASSETS_NAME / f"image_centroids_{options.arch}.npy"
        if out.suffix != ".npy":
            raise UserError(f"--out {out} does not end in .npy", code="option-value")
        settings = Settings(
            options.arch,
            options.clusters,
            options.iterations,
            options.sample_ratio,
            options.seed,
            options.any_caption,
            options.language_model,
        )
        record = make_centroids(pool_dir, out, settings, device=options.device)
        say(f"{settings.clusters:,} centroids of {record.result['rows']:,} rows: {out}")
        return 0

    return end_of_script(__file__, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
