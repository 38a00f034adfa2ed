"""The training stage: every seed of an experiment that is not trained yet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.experiment.folder import open_experiment, own_shards, refuse_changed
from benchmark.pool.pool import Pool, PoolIdentity
from benchmark.pool.resharded import SHARDS_NAME, read_resharded
from benchmark.pool.subset import SUBSET_NAME, load_subset
from benchmark.runtime.console import say, warn
from benchmark.runtime.context import Context
from benchmark.runtime.files import Json
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record
from benchmark.scales import Scale

if TYPE_CHECKING:
    from benchmark.training.data import TrainingData


def train_stage(
    exp_dir: Path,
    pool: Pool | None,
    scale: Scale,
    seeds: Sequence[int],
    context: Context,
    *,
    accumulation: int = 1,
) -> None:
    """Train every seed that is not trained yet; of several ranks only the first reads records, locks and writes.

    The samples are read from the experiment's own shards where `winnow reshard` has cut them out (then no pool is
    needed), else in place from the pool's.
    """
    from benchmark.training.ranks import SINGLE_PROCESS, check_split
    from benchmark.training.train import train

    ranks = context.ranks or SINGLE_PROCESS
    ranks.run_on_rank0(lambda: check_split(scale.batch_size, ranks.size, accumulation))
    subset_path, subset_record = ranks.run_on_rank0(lambda: open_experiment(exp_dir, pool))
    shards = ranks.run_on_rank0(lambda: own_shards(exp_dir, subset_record))
    identity = ranks.run_on_rank0(lambda: _identity(pool, shards))
    if scale.is_comparable and identity.rows < scale.pool_size and ranks.is_first:
        warn(f"the pool has {identity.rows:,} rows; scale {scale.name!r} is for pools of {scale.pool_size:,} or more")
    data: TrainingData | None = None
    for seed in seeds:
        inputs = {
            "recipe": scale.identity,
            "pool": identity.as_json(),
            "subset": subset_record.result["sha256"],
            "seed": seed,
            "device": context.device,
        }
        checkpoint_dir = exp_dir / f"seed-{seed}" / "checkpoint"
        with ExitStack() as held:
            claim = partial(_claim, exp_dir, checkpoint_dir, inputs, held)
            if not ranks.run_on_rank0(claim):
                continue
            if data is None:
                data = _training_data(exp_dir, pool, shards, subset_path, scale)
            record = train(
                data,
                seed,
                checkpoint_dir,
                inputs,
                device=context.device,
                workers=context.workers,
                accumulation=accumulation,
                ranks=ranks,
                wandb=context.wandb,
            )
            if record is not None:
                say(
                    f"train: seed {seed}, {scale.steps:,} steps of {scale.batch_size}, final loss "
                    f"{record.result['final_loss']:.3f} ({checkpoint_dir})"
                )


def _identity(pool: Pool | None, shards: Record | None) -> PoolIdentity:
    """Return the identity of the pool that is trained on: of shards copied out of it, as it was then."""
    if shards is not None:
        return PoolIdentity(**shards.inputs["pool"])
    assert pool is not None
    return pool.identify()


def _training_data(
    exp_dir: Path, pool: Pool | None, shards: Record | None, subset_path: Path, scale: Scale
) -> TrainingData:
    """Return the samples to train on, of the experiment's own shards or in place; report how many are missing."""
    from benchmark.training.data import TrainingData

    if shards is not None:
        say(f"train: reading {exp_dir / SHARDS_NAME}")
        resharded = read_resharded(exp_dir, shards)
        lost = {"num_absent": shards.result["absent"], "num_damaged": shards.result["damaged_tars"]}
        data = TrainingData(resharded.index, resharded.samples, scale, **lost)
    else:
        assert pool is not None
        subset = load_subset(subset_path)
        data = TrainingData.of(pool.load_index(subset), subset, scale)
    if data.num_absent:
        say(f"train: {data.num_absent:,} chosen uids have no image in the pool; {len(data.samples):,} samples remain")
    return data


def _claim(exp_dir: Path, checkpoint_dir: Path, inputs: dict[str, Json], held: ExitStack) -> bool:
    """Lock a seed's folder for as long as `held` lasts; tell whether the seed is still to be trained."""
    from benchmark.training.state import STATE_NAMES, WEIGHTS_NAME
    from benchmark.training.train import checkpoint_if_finished

    checkpoint_if_finished(checkpoint_dir, inputs)  # before the folder is touched: a refusal leaves nothing behind
    held.enter_context(locked(checkpoint_dir.parent))
    record = checkpoint_if_finished(checkpoint_dir, inputs)
    if record is not None:
        refuse_changed(checkpoint_dir / WEIGHTS_NAME, record.result["weights"])
        for name in STATE_NAMES:  # what a kill between the record and this clean-up left
            (checkpoint_dir / name).unlink(missing_ok=True)
        say(f"train: up to date, skipping seed {inputs['seed']} ({checkpoint_dir})")
        return False
    refuse_changed(exp_dir / SUBSET_NAME, inputs["subset"])
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    return True
