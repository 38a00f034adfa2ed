"""The folder of an experiment: what lies in it, and how it is opened.

exp_dir/subset.npy, subset.json       the filter stage's choice, made once
exp_dir/seed-N/checkpoint/, eval/     a folder per training seed
exp_dir/entry.json                    the scores of all evaluated seeds, as the leaderboard reads them
exp_dir/report/                       what was kept and dropped, as a page (benchmark/report)
exp_dir/costs.jsonl, logs/            times and hosts, outside every hash
"""

from __future__ import annotations

from pathlib import Path

from benchmark.pool.pool import Pool
from benchmark.pool.resharded import SHARDS_NAME, resharded_record
from benchmark.pool.subset import SUBSET_NAME, SUBSET_RECORD_NAME
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import sha256_of
from benchmark.runtime.records import Record, read_record
from benchmark.scales import Scale

ENTRY_NAME = "entry.json"


def open_experiment(exp_dir: Path, pool: Pool | None) -> tuple[Path, Record]:
    """Return the experiment's subset file and record; raises where there is none or it was made from another pool."""
    record = read_record(exp_dir / SUBSET_RECORD_NAME)
    if record is None:
        raise NotFoundError(
            f"{exp_dir} has no subset yet; run `winnow filter exp_dir={exp_dir} ...` first", code="subset-not-found"
        )
    if pool is not None and record.inputs["pool"] != pool.compute_fingerprint():
        raise UserError(
            f"{exp_dir} was filtered from pool {record.inputs['pool'][:12]}, but {pool.dir} is pool "
            f"{pool.compute_fingerprint()[:12]}; give pool_dir= of the pool that it was filtered from",
            code="pool-differs",
        )
    return exp_dir / SUBSET_NAME, record


def refuse_changed(path: Path, sha256: str) -> None:
    """Raise where a file is not the one that its record speaks of."""
    if not path.is_file():
        raise NotFoundError(
            f"{path} is gone, though its record is there; run `winnow run` again to make it anew", code="output-lost"
        )
    if sha256_of(path) != sha256:
        raise UserError(
            f"{path} was changed after it was made: its sha256 is not the one in its record; "
            "restore it, or delete it and run `winnow run` again to make it anew",
            code="file-changed",
        )


def own_shards(exp_dir: Path, subset_record: Record) -> Record | None:
    """Return the record of the experiment's own shards; raises ValueError where they are another subset's."""
    shards = resharded_record(exp_dir)
    if shards is not None and (
        shards.inputs["subset"] != subset_record.result["sha256"]
        or shards.inputs["pool"]["fingerprint"] != subset_record.inputs["pool"]
    ):
        raise UserError(
            f"{exp_dir / SHARDS_NAME} was cut out by another subset or of another pool than the experiment's; delete "
            "it, or choose another folder",
            code="record-differs",
        )
    return shards


def curve_dir(seed_dir: Path, step: int) -> Path:
    """Return the folder of the results of the weights that were kept after a step."""
    return seed_dir / "curve" / f"step-{step:09d}"


def trained_record(exp_dir: Path, scale: Scale, seed: int, subset_record: Record) -> Record:
    """Return the record of a seed's training; raises where there is none, or it was another training."""
    from benchmark.training.train import CHECKPOINT_RECORD_NAME

    seed_dir = exp_dir / f"seed-{seed}"
    trained = read_record(seed_dir / "checkpoint" / CHECKPOINT_RECORD_NAME)
    if trained is None:
        raise NotFoundError(
            f"{seed_dir} has no checkpoint yet; run `winnow train scale={scale.name} exp_dir={exp_dir} seeds={seed}`",
            code="checkpoint-not-found",
        )
    refuse_foreign_checkpoint(seed_dir, trained, subset_record)
    if trained.inputs["recipe"]["hash"] != scale.hash:
        there = trained.inputs["recipe"]
        raise UserError(
            f"{seed_dir} was trained by recipe {there['version']} of scale {there['scale']!r}, "
            f"not by recipe {scale.recipe} of {scale.name!r}",
            code="record-differs",
        )
    return trained


def refuse_foreign_checkpoint(seed_dir: Path, trained: Record, subset_record: Record) -> None:
    """Raise ValueError where a checkpoint was trained on another subset or pool than the experiment's."""
    if trained.inputs["subset"] != subset_record.result["sha256"]:
        raise UserError(
            f"{seed_dir} was trained on another subset ({trained.inputs['subset'][:12]}) than the experiment's "
            f"({subset_record.result['sha256'][:12]}); delete it or choose another folder",
            code="record-differs",
        )
    if trained.inputs["pool"]["fingerprint"] != subset_record.inputs["pool"]:
        raise UserError(
            f"{seed_dir} was trained on another pool than the experiment's; choose another folder",
            code="record-differs",
        )
