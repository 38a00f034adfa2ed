"""Training, the fixed loop: the same scale, pool, subset and seed give the same weights, however often it is killed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from benchmark.data import (
    MAX_UNDECODABLE,
    HeldSamples,
    StepBatches,
    batches_from,
    fits_memory,
    hold_samples,
    normalise,
)
from benchmark.index import PoolIndex
from benchmark.models import Tokenizer, build_model, build_tokenizer
from benchmark.order import SampleOrder, present_samples
from benchmark.samples import SampleReader
from benchmark.scales import Scale
from benchmark.stage import (
    Json,
    Record,
    Stopped,
    atomic_path,
    cost,
    digest,
    finished,
    remove_temporary,
    rename,
    sha256_of,
    stop_signals,
    warn,
    write_bytes,
    write_record,
)
from benchmark.subset import Subset
from benchmark.uids import count_of, sort_uids, unique_uids

TRAIN_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
RECORD_NAME = "checkpoint.json"
STATE_NAMES = ("state.safetensors", "state-before.safetensors")  # newest first
PACKAGES = ("winnow-bench", "torch", "open_clip_torch", "numpy", "pillow")  # whose versions a checkpoint names
NUM_SAVES = 20  # of the state, at even parts of the run


@dataclass(frozen=True)
class StepStats:
    """What one optimiser step reports."""

    loss: float
    learning_rate: float
    logit_scale: float
    grad_norm: float  # before clipping


@dataclass
class Curves:
    """The step statistics of a run so far, part of its state."""

    stats: list[StepStats] = field(default_factory=list)
    undecodable: int = 0
    repeats: int = 0  # samples that stood in their batch already

    def as_tensor(self) -> Tensor:
        rows = [list(asdict(stats).values()) for stats in self.stats]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 4)

    @classmethod
    def from_tensor(cls, rows: Tensor, undecodable: int, repeats: int) -> Curves:
        return cls([StepStats(*row) for row in rows.tolist()], undecodable, repeats)


def make_optimizer(model: nn.Module, scale: Scale) -> torch.optim.Optimizer:
    """Build AdamW as open_clip does: no weight decay for vectors, norms, biases and the logit scale."""
    assert scale.optimizer == "adamw"
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_spared = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (spared if is_spared else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": scale.weight_decay}],
        lr=scale.learning_rate,
        betas=scale.betas,
        eps=scale.eps,
        fused=True,
    )


def learning_rate_at(step: int, scale: Scale) -> float:
    """Return the rate of a step: linear warm-up, then cosine to zero, as open_clip's `cosine_lr`."""
    assert scale.schedule == "cosine"
    if step < scale.warmup_steps:
        return scale.learning_rate * (step + 1) / scale.warmup_steps
    progress = (step - scale.warmup_steps) / (scale.steps - scale.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress)) * scale.learning_rate


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy (Radford et al. 2021, Fig. 3) of normalised features (n, dimension)."""
    logits = logit_scale * image_features @ text_features.T  # (images, texts)
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, tokens: Tensor, scale: Scale, step: int
) -> StepStats:
    """Take one optimiser step on normalised images (n, 3, size, size) and tokens (n, context length)."""
    learning_rate = learning_rate_at(step, scale)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    outputs = model(images, tokens)
    loss = contrastive_loss(outputs["image_features"], outputs["text_features"], outputs["logit_scale"])
    loss.backward()  # type: ignore[no-untyped-call]
    limit = math.inf if scale.grad_clip_norm is None else scale.grad_clip_norm
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    logit_scale = model.logit_scale
    assert isinstance(logit_scale, Tensor)
    with torch.no_grad():
        logit_scale.clamp_(0, math.log(100))
    return StepStats(loss.item(), learning_rate, math.exp(logit_scale.item()), grad_norm.item())


class TrainingData:
    """What the seeds of one experiment share: P, the reader, the tokenizer, and the samples if they fit in memory."""

    def __init__(self, index: PoolIndex, subset: Subset, scale: Scale) -> None:
        self.scale = scale
        self.samples = present_samples(index.uids, subset)
        self.reader = SampleReader(index, self.samples)
        distinct, _ = unique_uids(subset.uids)
        self.num_absent = int((count_of(distinct, sort_uids(index.uids)) == 0).sum())  # uids without an image
        self._tokenizer: Tokenizer | None = None
        self._held: HeldSamples | None = None

    def batches(self, seed: int) -> StepBatches:
        """Return the run's batches; the first call decodes the samples."""
        order = SampleOrder(self.samples, self.scale, seed)
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self.scale.model)
            if fits_memory(order):
                self._held = hold_samples(self.reader, self._tokenizer, self.scale)
        return StepBatches(order, self.reader, self._tokenizer, self._held)


def train(
    data: TrainingData, seed: int, checkpoint_dir: Path, made_from: dict[str, Json], *, device: str, workers: int = 0
) -> Record:
    """Train one seed into `checkpoint_dir`, going on from the state that a killed run left there.

    Raises ValueError where the loss is not finite or too many samples cannot be decoded; the last state stays. Raises
    Stopped after a signal that asks for it, with the step saved.
    """
    scale = data.scale
    identity = digest(made_from)
    remove_temporary(checkpoint_dir)
    with (
        cost(checkpoint_dir.parent.parent, "train", seed=seed, device=device) as numbers,
        recipe_threads(scale),
        stop_signals() as stops,
    ):
        batches = data.batches(seed)
        model = build_model(scale.model, seed).to(device)
        optimizer = make_optimizer(model, scale)
        first_step, curves = load_state(checkpoint_dir, identity, model, optimizer)
        start = time.perf_counter()
        model.train()
        progress = tqdm(
            total=scale.steps * scale.batch_size,
            initial=first_step * scale.batch_size,
            desc=f"train seed {seed}",
            unit="sample",
            disable=None,
            leave=False,
        )
        for step, batch in enumerate(batches_from(batches, first_step, workers), first_step):
            images = normalise(batch.images, scale, device)
            tokens = torch.from_numpy(batch.tokens).long().to(device)
            stats = train_step(model, optimizer, images, tokens, scale, step)
            _refuse_bad_step(stats, step, curves, batch.undecodable, scale, checkpoint_dir)
            curves.stats.append(stats)
            curves.undecodable += batch.undecodable
            curves.repeats += batch.repeats
            progress.update(len(batch))
            progress.set_postfix(loss=f"{stats.loss:.3f}", refresh=False)
            if step + 1 < scale.steps and (stops or (step + 1) % max(1, scale.steps // NUM_SAVES) == 0):
                save_state(checkpoint_dir, identity, model, optimizer, step + 1, curves)
                if stops:
                    raise Stopped(stops[0], f"step {step + 1:,} of {scale.steps:,} of seed {seed} is saved")
        progress.close()
        seconds = time.perf_counter() - start
        numbers["samples_per_second"] = round((scale.steps - first_step) * scale.batch_size / max(seconds, 1e-9), 1)
        record = _finish(checkpoint_dir, model, curves, data, batches.order, made_from)
        if stops:
            raise Stopped(stops[0], f"seed {seed} is trained")
        return record


def checkpoint_if_finished(checkpoint_dir: Path, made_from: dict[str, Json]) -> Record | None:
    """Return the finished checkpoint's record, None if there is none; raises ValueError where it is another run's."""
    record = finished(checkpoint_dir / RECORD_NAME, "train", TRAIN_VERSION, made_from)
    return record if (checkpoint_dir / WEIGHTS_NAME).exists() else None


def save_state(
    folder: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, curves: Curves
) -> None:
    """Save what the run needs to go on, as one file; the state before it is kept."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors["curves"] = curves.as_tensor()
    metadata = {
        "run": identity,
        "step": str(step),
        "undecodable": str(curves.undecodable),
        "repeats": str(curves.repeats),
    }
    newest, before = (folder / name for name in STATE_NAMES)
    with atomic_path(newest) as temporary:
        _write_tensors(temporary, tensors, metadata)
        if newest.exists():
            rename(newest, before)


def load_state(folder: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Curves]:
    """Bring model and optimiser to the newest saved state of this run; return the next step and the curves.

    A damaged state is passed over with a warning; raises ValueError for a state of another run.
    """
    for name in STATE_NAMES:
        path = folder / name
        if not path.exists():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            warn(f"{path} is damaged ({error}); it is left out")
            continue
        if metadata is None or metadata.get("run") != identity:
            raise ValueError(
                f"{path} is the state of a run with other settings; choose another folder or delete {folder}"
            )
        model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
        for parameter_name, parameter in model.named_parameters():
            prefix = f"optimizer.{parameter_name}."
            optimizer.state[parameter] = {
                key.removeprefix(prefix): value.to(parameter.device) if not key.endswith(".step") else value
                for key, value in tensors.items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
        curves = Curves.from_tensor(tensors["curves"], int(metadata["undecodable"]), int(metadata["repeats"]))
        return int(metadata["step"]), curves
    return 0, Curves()


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


def _refuse_bad_step(stats: StepStats, step: int, curves: Curves, undecodable: int, scale: Scale, folder: Path) -> None:
    if not math.isfinite(stats.loss) or not math.isfinite(stats.grad_norm):
        raise ValueError(
            f"training diverged at step {step}: loss {stats.loss}, gradient norm {stats.grad_norm}; "
            f"the last good state is in {folder}"
        )
    total = curves.undecodable + undecodable
    if total > MAX_UNDECODABLE * scale.samples_seen:
        raise ValueError(
            f"{total} samples of the first {(step + 1) * scale.batch_size} could not be decoded, more than "
            f"{MAX_UNDECODABLE:.0%} of the samples seen; check the pool's images"
        )


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)
    path.chmod(0o644)  # safetensors writes for the owner alone


def _finish(
    folder: Path,
    model: nn.Module,
    curves: Curves,
    data: TrainingData,
    order: SampleOrder,
    made_from: dict[str, Json],
) -> Record:
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        _write_tensors(temporary, model.state_dict())
    lines = [json.dumps({"step": step, **asdict(stats)}) for step, stats in enumerate(curves.stats)]
    write_bytes(folder / "train.jsonl", ("\n".join(lines) + "\n").encode())
    last = curves.stats[-max(1, len(curves.stats) // 20) :]
    record = Record(
        "train",
        TRAIN_VERSION,
        made_from,
        {
            "steps": order.scale.steps,
            "samples": len(data.samples),
            "absent_uids": data.num_absent,
            "final_loss": float(np.mean([stats.loss for stats in last])),  # over the last 5 % of the steps
            "undecodable": curves.undecodable,
            "repeats_in_batch": curves.repeats,
            "weights": sha256_of(folder / WEIGHTS_NAME),
            "versions": {package: version(package) for package in PACKAGES},
        },
    )
    write_record(folder / RECORD_NAME, record)
    for name in STATE_NAMES:
        (folder / name).unlink(missing_ok=True)
    return record


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors checkpoint into the model."""
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
