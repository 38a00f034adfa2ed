"""Training, the fixed loop: the same scale, pool, subset and seed give the same weights, however often it is killed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP, CustomTextCLIP
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmark.models.build import Tokenizer, build_model, build_own_model, build_tokenizer
from benchmark.models.pixels import normalise
from benchmark.pool.index import PoolIndex
from benchmark.pool.order import SampleOrder, present_samples
from benchmark.pool.samples import MAX_UNDECODABLE, SampleReader, decoder_name
from benchmark.pool.subset import Subset
from benchmark.pool.uids import UidMarks
from benchmark.runtime.console import number_of_environment, warn
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import Json, atomic_path, remove_temporary, rename, sha256_of, write_bytes
from benchmark.runtime.records import Record, describe_differences, finished, write_record
from benchmark.runtime.stopping import OtherRankFailed, Stopped, stop_signals
from benchmark.scales import Scale
from benchmark.training.data import Batch, HeldSamples, StepBatches, batches_from, fits_memory, hold_samples
from benchmark.training.health import Health, WandbRun
from benchmark.training.ranks import SINGLE_PROCESS, Ranks, check_split, divisors, unwrap, wrap
from benchmark.training.step import (
    Curves,
    LossScaler,
    StepStats,
    autocast,
    contrastive_loss,
    make_optimizer,
    train_step,
)
from benchmark.training.undecodable import UndecodablePictures

TRAIN_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
RECORD_NAME = "checkpoint.json"
STATE_NAMES = ("state.safetensors", "state-before.safetensors")  # newest first
PACKAGES = ("winnow-bench", "torch", "open_clip_torch", "numpy", "pillow")  # whose versions a checkpoint names
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
NUM_SAVES = 20  # of the state, at even parts of the run
SECONDS_UNSAVED = 600.0  # and whenever that long has passed without one
SECONDS_CHEAP, MAX_SAVING = 1.0, 0.02  # a save that takes longer waits until it is no more than that share of the time


@dataclass
class TrainState:
    """What a run has come to after `step` steps; saved and loaded whole."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    step: int = 0
    curves: Curves = field(default_factory=Curves)
    saved: float = field(default_factory=time.monotonic)  # when; not part of the state
    saving: float = 0.0  # seconds that the last save took
    saved_step: int | None = None  # of the newest state on disk
    wrapped: nn.Module | None = None

    def model_on(self, ranks: Ranks) -> nn.Module:
        """Return the model as the ranks train it; made when it is first asked for, after the weights are loaded."""
        if self.wrapped is None:
            self.wrapped = wrap(self.model, ranks).train()
        return self.wrapped

    @classmethod
    def begin(cls, scale: Scale, seed: int, device: str) -> TrainState:
        """Return the state before the first step. Raises ValueError for a model that cannot be trained exactly."""
        build = build_model if scale.is_comparable else build_own_model
        model = build(scale.model, seed, scale.image_size)
        _refuse_unfit(model, scale)
        if scale.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        model = model.to(device)
        return cls(model, make_optimizer(model, scale), LossScaler(scale, device))

    def save(self, folder: Path, inputs: dict[str, Json]) -> None:
        """Write the state of the run as one file that can tell whether it is whole; the state before it is kept."""
        start = time.monotonic()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["curves"] = self.curves.as_tensor()
        tensors = _on_cpu(tensors)  # once, for the digest and the file
        metadata = {
            "made_from": json.dumps(inputs, sort_keys=True),
            "step": str(self.step),
            "undecodable": str(self.curves.undecodable),
            "repeats": str(self.curves.repeats),
            "scaler": self.scaler.state(),
        }
        metadata["digest"] = _digest_of(tensors, metadata)
        newest, before = (folder / name for name in STATE_NAMES)
        with atomic_path(newest) as temporary:
            _write_tensors(temporary, tensors, metadata)
            if newest.exists():
                rename(newest, before)
        self.saved, self.saved_step = time.monotonic(), self.step
        self.saving = self.saved - start

    def load(self, path: Path) -> None:
        """Take over a saved state."""
        if not path.exists():
            raise NotFoundError(
                f"{path} is not seen by every rank; the experiment's folder must be shared by all", code="not-shared"
            )
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            prefix = f"optimizer.{name}."
            moments = {
                key.removeprefix(prefix): value.to(parameter.device)
                for key, value in tensors.items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
            if moments:  # none where float16 has skipped every step so far
                self.optimizer.state[parameter] = moments
        if self.scaler.is_needed:
            self.scaler.load(metadata["scaler"])
        self.step = self.saved_step = int(metadata["step"])
        self.curves = Curves.from_tensor(tensors["curves"], int(metadata["undecodable"]), int(metadata["repeats"]))


class TrainingData:
    """What the seeds of one experiment share: P, the reader, the tokenizer, and the samples if they fit in memory."""

    def __init__(
        self, index: PoolIndex, samples: np.ndarray, scale: Scale, *, num_absent: int = 0, num_damaged: int = 0
    ) -> None:
        """Take P as places in the index, copies side by side and alike.

        `num_absent` uids have no sample there, and `num_damaged` of the pool's tars are damaged.
        """
        self.scale = scale
        self.num_absent, self.num_damaged = num_absent, num_damaged
        self.samples = samples
        self.reader = SampleReader(index, samples)
        self._tokenizer: Tokenizer | None = None
        self._held: HeldSamples | None = None

    @cached_property
    def order(self) -> str:
        """Return the sha256 of P's uids in their order, which hangs on the tars' names as on nothing else recorded."""
        told = hashlib.sha256()
        for start in range(0, len(self.samples), 1 << 20):
            told.update(self.reader.index.uids[self.samples[start : start + (1 << 20)]].tobytes())
        return told.hexdigest()

    @classmethod
    def of(cls, index: PoolIndex, subset: Subset, scale: Scale) -> TrainingData:
        """Take the subset's samples where they lie in the pool; the index need hold no others."""
        found = UidMarks(subset.uids)
        found.mark(index.uids)
        return cls(
            index,
            present_samples(index.uids, subset),
            scale,
            num_absent=found.num_distinct - found.num_marked,
            num_damaged=len(index.summary.damaged),
        )

    def batches(self, seed: int, ranks: Ranks = SINGLE_PROCESS) -> StepBatches:
        """Return the run's batches; the first call decodes the samples."""
        order = SampleOrder(self.samples, self.scale, seed)
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self.scale.model)
            if fits_memory(order):
                self._held = hold_samples(self.reader, self._tokenizer, self.scale)
        return StepBatches(order, self.reader, self._tokenizer, self._held, ranks)


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
        # A state is of one order of samples alone; the record says which it was.
        of_state = {**inputs, "order": data.order} if ranks.is_first else inputs
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
                asked = ranks.sums(len(stops))[0] > 0
                if ranks.is_first and state.step < scale.steps:
                    _save_if_due(state, checkpoint_dir, of_state, scale, asked)
                if asked and state.step < scale.steps:
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
    record = finished(checkpoint_dir / RECORD_NAME, "train", TRAIN_VERSION, inputs)
    return record if (checkpoint_dir / WEIGHTS_NAME).exists() else None


def newest_state(folder: Path, inputs: dict[str, Json]) -> str | None:
    """Return the name of the newest whole state in a folder, None where there is none.

    A damaged one is passed over with a warning; raises ValueError for a state of another run.
    """
    for name in STATE_NAMES:
        path = folder / name
        if not path.exists():
            continue
        if path.is_dir():
            raise UserError(f"{path} is a folder where a state belongs; move it away", code="file-exists")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if metadata.pop("digest", None) != _digest_of(tensors, metadata):
                raise OSError("its content is not what was written")
        except (SafetensorError, OSError) as error:
            before = folder / STATE_NAMES[1]
            instead = "the one before is taken" if path != before and before.exists() else "the run begins anew"
            warn(f"{path} is damaged ({error}); {instead}")
            continue
        shown = describe_differences(inputs, json.loads(metadata["made_from"]))
        if shown:
            raise UserError(
                f"{path} is the state of a run with other settings: {shown}. Choose another folder, repeat those "
                f"settings, or delete {folder}",
                code="record-differs",
            )
        return name
    return None


def _digest_of(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Return the sha256 of a state's metadata, and of every tensor's name, type, shape and bytes; all on the CPU."""
    state = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def kept_name(step: int) -> str:
    """Return the file name of the weights that are kept after a step."""
    return f"model-step-{step:08d}.safetensors"


def default_workers() -> int:
    """Return a loader process for every core of this rank."""
    # macOS cannot tell which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (number_of_environment("LOCAL_WORLD_SIZE", 1) or 1))


def keep_freed_memory(device: str) -> None:
    """On a CPU, have the C library keep freed memory for the next step instead of giving it back to the system.

    A step frees and takes the same blocks again; fresh pages for them take a tenth of a nano run's time.
    """
    try:
        allocator = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library than glibc, or another system
    if device == "cpu":
        allocator(M_TRIM_THRESHOLD, 2**31 - 1)
        allocator(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


class recipe_threads:  # noqa: N801  # reads as a statement
    """Run a block with the recipe's number of CPU threads, on which the sums of floats depend."""

    def __init__(self, scale: Scale) -> None:
        self.threads = scale.threads

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


@contextmanager
def repeatable_sums(device: str) -> Iterator[None]:
    """On a GPU, have torch take every sum in one order for a block: a killed run goes on to the same bytes there too.

    What has no such form then raises RuntimeError.
    """
    if device != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition, before it is first used
    is_on, is_mild = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are hidden from type checkers
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # finds faults, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=is_mild)
        settings.fill_uninitialized_memory = fills


def _cost(exp_dir: Path, ranks: Ranks, **numbers: Json) -> AbstractContextManager[dict[str, Json]]:
    return cost(exp_dir, "train", ranks=ranks.size, **numbers) if ranks.is_first else nullcontext({})


def _prepare(folder: Path, inputs: dict[str, Json], model: nn.Module, scale: Scale) -> str | None:
    """Clean and check the folder; return the name of the state to go on from."""
    remove_temporary(folder)
    _check_space(folder, model, scale)
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
    with advice, _order_advice(scale, ranks):
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


def _save_if_due(state: TrainState, folder: Path, inputs: dict[str, Json], scale: Scale, asked: bool) -> None:
    """Keep the weights where the recipe does, and save the state there, at even parts, now and then, and when asked.

    Even parts are passed over where a state of gigabytes would be written too often: a short run on a GPU.
    """
    is_kept = state.step in scale.kept_steps
    if is_kept:
        _write_weights(folder / kept_name(state.step), state.model)
    unsaved = time.monotonic() - state.saved
    is_cheap = state.saving < SECONDS_CHEAP or state.saving < MAX_SAVING * unsaved
    is_even = state.step % max(1, scale.steps // NUM_SAVES) == 0
    if asked or is_kept or unsaved > SECONDS_UNSAVED or (is_even and is_cheap):
        state.save(folder, inputs)


@contextmanager
def memory_advice(
    model: nn.Module, batch: Batch, scale: Scale, step: int, accumulation: int, ranks: Ranks
) -> Iterator[None]:
    """Turn running out of memory in a training step into a MemoryError that says which accumulation would fit."""
    try:
        yield
        return
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        device = batch.images.device.type
        # The error holds the step's frames, and they its activations, until the caller's `with` has ended.
        traceback.clear_frames(error.__traceback__)
    at_once = len(batch) // accumulation
    if device == "cuda":
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        fitting = fitting_accumulation(
            lambda samples: peak_memory(unwrap(model), batch, scale, samples), torch.cuda.mem_get_info()[1], len(batch)
        )
    else:
        fitting = next((n for n in range(2 * accumulation, len(batch) + 1) if len(batch) % n == 0), None)
    who = f"rank {ranks.rank}, " if ranks.size > 1 else ""
    if fitting is None:
        remedy = "not even one sample at a time fits"
    else:
        does = "would fit" if device == "cuda" else "needs less"
        remedy = (
            f"accumulation={fitting} {does} ({len(batch) // fitting:,} at once), the result the same up to rounding"
        )
    raise MemoryError(f"{who}step {step:,}, {at_once:,} samples at once on {device}: {remedy}")


@contextmanager
def _order_advice(scale: Scale, ranks: Ranks) -> Iterator[None]:
    """Turn torch's refusal of an operation whose sums have no fixed order on a GPU into a ValueError."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        if not ranks.is_first:
            raise OtherRankFailed from error
        operation = str(error).split(" does not have")[0]
        raise UserError(
            f"model {scale.model!r} has an operation whose sums come in any order on a GPU ({operation}), so a run "
            "that was killed would not go on exactly; choose another model, or train this one with device=cpu",
            code="model-unfit",
        ) from error


def fitting_accumulation(peak_at: Callable[[int], int], capacity: int, batch: int) -> int | None:
    """Return the least accumulation whose micro-batch fits into `capacity` bytes, None where none does.

    `peak_at` measures the peak for a number of samples. It is taken to grow along a line, which two small measurements
    give, smaller ones where those do not fit; a tenth is left free.
    """
    for part in (64, 1024, batch):
        few, more = max(1, batch // part), max(1, 2 * batch // part)
        try:
            low, high = peak_at(few), peak_at(more)
            break
        except torch.OutOfMemoryError:
            continue
    else:
        return None
    per_sample = (high - low) / max(1, more - few)
    for accumulation in divisors(batch, up_to=batch):
        if low + per_sample * (batch // accumulation - few) <= 0.9 * capacity:
            return accumulation
    return None


def peak_memory(model: nn.Module, batch: Batch, scale: Scale, samples: int) -> int:
    """Return the GPU's peak in bytes for a step on that many samples, with AdamW's two moments of every parameter."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with autocast(scale, "cuda"):
        outputs = model(normalise(batch.images[:samples], scale), batch.tokens[:samples].long())
        loss = contrastive_loss(outputs["image_features"], outputs["text_features"], outputs["logit_scale"])
    loss.backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated()
    del outputs, loss
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # The moments are there only after the first step: counted where memory shows that they are not.
    return peak + (2 * weights if before < 3 * weights else 0)


def _check_space(folder: Path, model: nn.Module, scale: Scale) -> None:
    """Raise OSError before the training where its checkpoints will not fit on the disk."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    # Three states of weights and two moments: the newest, the one before, the one being written.
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = weights * (len(scale.kept_steps) + 9) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"no space for the checkpoints: {folder} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            "make room, or choose another exp_dir",
        )


def _refuse_unfit(model: nn.Module, scale: Scale) -> None:
    """Raise ValueError for a model of a scale of one's own whose runs would not be exact, or whose loss is another."""
    mixing = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if mixing:
        raise UserError(
            f"model {scale.model!r} normalises over the samples of a batch ({mixing[0]}), so its results would depend "
            "on how a batch is cut into ranks and micro-batches; choose a model without BatchNorm",
            code="model-unfit",
        )
    rates = ("p", "prob", "drop_prob")  # of torch's Dropout, open_clip's PatchDropout and timm's DropPath
    dropping = [
        name
        for name, part in model.named_modules()
        if ("Drop" in type(part).__name__ and any(getattr(part, rate, 0.0) for rate in rates))
        or (isinstance(part, nn.MultiheadAttention) and part.dropout)
    ]
    if dropping:
        raise UserError(
            f"model {scale.model!r} drops at random ({dropping[0]}), so a run that was killed would not go on exactly; "
            "choose a model without dropout",
            code="model-unfit",
        )
    if getattr(model, "logit_bias", None) is not None or not isinstance(model, CLIP | CustomTextCLIP):
        raise UserError(f"model {scale.model!r} is not trained by CLIP's loss; choose a CLIP model", code="model-unfit")


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


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    try:
        save_file(_on_cpu(tensors), path, metadata)
    except SafetensorError as error:
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, f"cannot write {path}: {error}; the state before it is whole") from error
    path.chmod(0o644)  # safetensors writes for the owner alone
    with path.open("rb") as file:
        os.fsync(file.fileno())  # before it is renamed: a power cut must not leave an empty file in a whole one's place


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _write_weights(path: Path, model: nn.Module) -> None:
    with atomic_path(path) as temporary:
        _write_tensors(temporary, model.state_dict())


def _finish(folder: Path, state: TrainState, data: TrainingData, inputs: dict[str, Json]) -> Record:
    scale, curves = data.scale, state.curves
    _write_weights(folder / WEIGHTS_NAME, state.model)
    lines = [json.dumps({"step": step, **_finite(asdict(stats))}) for step, stats in enumerate(curves.stats)]
    write_bytes(folder / "train.jsonl", ("\n".join(lines) + "\n").encode())
    last = curves.stats[-max(1, len(curves.stats) // 20) :]
    result = {
        "steps": scale.steps,
        "samples": len(data.samples),
        "absent_uids": data.num_absent,
        "damaged_tars": data.num_damaged,
        "order": data.order,
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
    write_record(folder / RECORD_NAME, record)
    for name in STATE_NAMES:
        (folder / name).unlink(missing_ok=True)
    return record


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Return values as JSON can hold them."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors checkpoint into the model."""
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
