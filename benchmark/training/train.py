"""Training, the fixed loop: the same scale, pool, subset and seed give the same weights, however often it is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import nn

from benchmark.pool.samples import MAX_UNDECODABLE, decoder_name
from benchmark.runtime.console import number_of_environment, warn
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, remove_temporary, sha256_of, write_bytes
from benchmark.runtime.records import Record, finished, write_record
from benchmark.runtime.stopping import OtherRankFailed, Stopped, stop_signals
from benchmark.scales import Scale
from benchmark.training.data import (
    Batch,
    TrainingData,
    batches_from,
)
from benchmark.training.exact import order_advice, recipe_threads, repeatable_sums
from benchmark.training.health import Health, WandbRun
from benchmark.training.memory import keep_freed_memory, memory_advice
from benchmark.training.ranks import SINGLE_PROCESS, Ranks, check_split
from benchmark.training.state import (
    STATE_NAMES,
    WEIGHTS_NAME,
    TrainState,
    check_space,
    kept_name,
    newest_state,
    write_weights,
)
from benchmark.training.step import (
    StepStats,
    train_step,
)
from benchmark.training.undecodable import UndecodablePictures

TRAIN_VERSION = 1
CHECKPOINT_RECORD_NAME = "checkpoint.json"
PACKAGES = ("winnow-bench", "torch", "open_clip_torch", "numpy", "pillow")  # whose versions a checkpoint names
NUM_SAVES = 20  # of the state, at even parts of the run
SECONDS_UNSAVED = 600.0  # and whenever that long has passed without one
SECONDS_CHEAP, MAX_SAVING = 1.0, 0.02  # a save that takes longer waits until it is no more than that share of the time


def train(
    data: TrainingData,
    seed: int,
    checkpoint_dir: Path,
    inputs: dict[str, Json],
    *,
    device: str,
    workers: int | None = 0,
    accumulation: int = 1,
    ranks: Ranks = SINGLE_PROCESS,
    wandb: str = "disabled",
) -> Record | None:
    """Train one seed into `checkpoint_dir`, going on from the state that a killed run left there.

    Returns the checkpoint's record, on the first rank. Neither `workers` (None: as many as fit), `accumulation` nor
    `ranks` change the result, the latter two but for the rounding of sums. Raises ValueError where the loss is not
    finite or too many samples cannot be decoded; the last state stays. Raises Stopped after a signal that asks for it,
    with the step saved, and MemoryError that says what would fit.
    """
    scale, seed_dir = data.scale, checkpoint_dir.parent
    check_split(scale.batch_size, ranks.size, accumulation)
    config = {**scale.as_json(), **inputs, "recipe_hash": scale.hash}
    with (
        _cost(seed_dir.parent, ranks, seed=seed, device=device, accumulation=accumulation) as numbers,
        recipe_threads(scale),
        repeatable_sums(device),
        WandbRun(wandb if ranks.is_first else "disabled", seed_dir.parent, seed).opened(config) as wandb_run,
        stop_signals(insist=ranks.size == 1) as stops,
    ):
        batches = data.batches(seed, ranks)
        keep_freed_memory(device)
        state = TrainState.begin(scale, seed, device)
        # A state is of one order of samples only; the record says which it was.
        of_state = {**inputs, "order": data.hash_order()} if ranks.is_first else inputs
        name = ranks.run_on_rank0(partial(_prepare, checkpoint_dir, of_state, state.model, scale))
        if name is not None:
            state.load(checkpoint_dir / name)
        first_step = state.step
        if workers is None:
            workers = 0 if batches.held is not None else default_workers()
        start = time.perf_counter()
        pictures = UndecodablePictures(seed_dir / "logs", data.reader.index, data.samples)
        with Health(seed_dir, seed, scale, first_step, device, ranks, wandb_run) as health:
            for batch in health.waited_for(batches_from(batches, first_step, workers, device)):
                _take_step(state, batch, scale, accumulation, ranks, checkpoint_dir, pictures)
                health.note(state.step, state.curves)
                stop_requested = ranks.sums(len(stops))[0] > 0
                if ranks.is_first and state.step < scale.steps:
                    _save_if_due(state, checkpoint_dir, of_state, scale, stop_requested)
                if stop_requested and state.step < scale.steps:
                    what = f"step {state.step:,} of {scale.steps:,} of seed {seed} is saved"
                    raise Stopped(stops[0] if stops else signal.SIGTERM, what)
        seconds = time.perf_counter() - start
        numbers["samples_per_second"] = round((scale.steps - first_step) * scale.batch_size / max(seconds, 1e-9), 1)
        numbers["waiting"] = round(health.total_waited / max(seconds, 1e-9), 4)
        numbers["workers"] = workers
        record = _finish(checkpoint_dir, state, data, inputs) if ranks.is_first else None
        if ranks.sums(len(stops))[0]:
            raise Stopped(stops[0] if stops else signal.SIGTERM, f"seed {seed} is trained")
        return record


def checkpoint_if_finished(checkpoint_dir: Path, inputs: dict[str, Json]) -> Record | None:
    """Return the finished checkpoint's record, None if there is none; raises ValueError where it is another run's."""
    record = finished(checkpoint_dir / CHECKPOINT_RECORD_NAME, "train", TRAIN_VERSION, inputs)
    return record if (checkpoint_dir / WEIGHTS_NAME).exists() else None


def default_workers() -> int:
    """Return a loader process for every core of this rank."""
    # macOS cannot tell which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (number_of_environment("LOCAL_WORLD_SIZE", 1) or 1))


def _cost(exp_dir: Path, ranks: Ranks, **numbers: Json) -> AbstractContextManager[dict[str, Json]]:
    return cost(exp_dir, "train", ranks=ranks.size, **numbers) if ranks.is_first else nullcontext({})


def _prepare(folder: Path, inputs: dict[str, Json], model: nn.Module, scale: Scale) -> str | None:
    """Clean and check the folder; return the name of the state to go on from."""
    remove_temporary(folder)
    check_space(folder, model, scale)
    return newest_state(folder, inputs)


def _take_step(
    state: TrainState,
    batch: Batch,
    scale: Scale,
    accumulation: int,
    ranks: Ranks,
    folder: Path,
    pictures: UndecodablePictures,
) -> None:
    """Take one step; raises ValueError, on the first rank, where the run has gone wrong."""
    advice = memory_advice(state.model, batch, scale, state.step, accumulation, ranks)
    with advice, order_advice(scale, ranks):
        stats = train_step(
            state.model_on(ranks),
            state.optimizer,
            batch.images,
            batch.tokens,
            scale,
            state.step,
            accumulation=accumulation,
            scaler=state.scaler,
            ranks=ranks,
        )
    undecodable, repeats = ranks.sums(batch.undecodable, batch.repeats)
    state.curves.add(stats, int(undecodable), int(repeats))
    if undecodable:
        failed = [place for places in ranks.collect(batch.failed) for place in places]
        if ranks.is_first:
            pictures.note(failed)
    refusal = _refuse_bad_step(stats, state, scale, folder)
    is_too_bad = state.curves.undecodable > MAX_UNDECODABLE * scale.samples_seen
    if (refusal is not None or is_too_bad) and not ranks.is_first:
        raise OtherRankFailed
    if refusal is not None:
        raise UserError(refusal, code="training-failed")
    if is_too_bad:
        seen = (state.step + 1) * scale.batch_size
        raise UserError(
            f"{state.curves.undecodable:,} samples of the first {seen:,} could not be decoded, more than "
            f"{MAX_UNDECODABLE:.0%} of the samples seen, {pictures.tell()}",
            code="image-undecodable",
        )
    state.step += 1


def _save_if_due(state: TrainState, folder: Path, inputs: dict[str, Json], scale: Scale, stop_requested: bool) -> None:
    """Keep the weights where the recipe does, and save the state there, at even parts, now and then, and before a stop.

    Even parts are skipped where a state of gigabytes would be written too often: a short run on a GPU.
    """
    is_kept = state.step in scale.kept_steps
    if is_kept:
        write_weights(folder / kept_name(state.step), state.model)
    unsaved = time.monotonic() - state.saved
    is_cheap = state.saving < SECONDS_CHEAP or state.saving < MAX_SAVING * unsaved
    is_even = state.step % max(1, scale.steps // NUM_SAVES) == 0
    if stop_requested or is_kept or unsaved > SECONDS_UNSAVED or (is_even and is_cheap):
        state.save(folder, inputs)


def _refuse_bad_step(stats: StepStats, state: TrainState, scale: Scale, folder: Path) -> str | None:
    """Return what is wrong with a step, the same on every rank; None where it is well."""
    is_finite = math.isfinite(stats.loss) and (math.isfinite(stats.grad_norm) or state.scaler.is_needed)
    if not is_finite or state.scaler.has_failed:
        saved = f"the last state, of step {state.saved_step}, is in {folder}"
        return (
            f"training diverged at step {state.step}: loss {stats.loss}, gradient norm {stats.grad_norm}; "
            f"{saved if state.saved_step is not None else 'no state is saved yet'}"
        )
    return None


def _finish(folder: Path, state: TrainState, data: TrainingData, inputs: dict[str, Json]) -> Record:
    scale, curves = data.scale, state.curves
    write_weights(folder / WEIGHTS_NAME, state.model)
    lines = [json.dumps({"step": step, **_finite(asdict(stats))}) for step, stats in enumerate(curves.stats)]
    write_bytes(folder / "train.jsonl", ("\n".join(lines) + "\n").encode())
    last = curves.stats[-max(1, len(curves.stats) // 20) :]
    result = {
        "steps": scale.steps,
        "samples": len(data.samples),
        "absent_uids": data.num_absent,
        "damaged_tars": data.num_damaged,
        "order": data.hash_order(),
        "final_loss": float(np.mean([stats.loss for stats in last])),  # over the last 5 % of the steps
        "undecodable": curves.undecodable,
        "repeats_in_batch": curves.repeats,
        "weights": sha256_of(folder / WEIGHTS_NAME),
        "decoder": decoder_name(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    kept = {step: folder / kept_name(step) for step in scale.kept_steps[:-1]}
    for path in kept.values():
        if not path.exists():
            warn(f"{path} is gone; the learning curve will lack it")
    if kept:  # step -> sha256 of the weights after it
        result["kept"] = {str(step): sha256_of(path) if path.exists() else None for step, path in kept.items()}
    record = Record("train", TRAIN_VERSION, inputs, result)
    write_record(folder / CHECKPOINT_RECORD_NAME, record)
    for name in STATE_NAMES:
        (folder / name).unlink(missing_ok=True)
    return record


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Return values as JSON can hold them."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
