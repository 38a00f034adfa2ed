"""What a run has come to, on disk: states to go on from, weights, and whether they fit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmark.models.build import build_model, build_own_model
from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import Json, atomic_path, rename
from benchmark.runtime.records import describe_differences
from benchmark.scales import Scale
from benchmark.training.exact import refuse_unfit
from benchmark.training.ranks import Ranks, wrap
from benchmark.training.step import Curves, LossScaler, make_optimizer

WEIGHTS_NAME = "model.safetensors"
STATE_NAMES = ("state.safetensors", "state-before.safetensors")  # newest first


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
        """Return the model as the ranks train it; made at the first call, after the weights are loaded."""
        if self.wrapped is None:
            self.wrapped = wrap(self.model, ranks).train()
        return self.wrapped

    @classmethod
    def begin(cls, scale: Scale, seed: int, device: str) -> TrainState:
        """Return the state before the first step. Raises ValueError for a model that cannot be trained exactly."""
        build = build_model if scale.is_comparable else build_own_model
        model = build(scale.model, seed, scale.image_size)
        refuse_unfit(model, scale)
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


def newest_state(folder: Path, inputs: dict[str, Json]) -> str | None:
    """Return the name of the newest whole state in a folder, None where there is none.

    A damaged one is skipped with a warning; raises ValueError for a state of another run.
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
            instead = "the one before is taken" if path != before and before.exists() else "the run starts again"
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


def check_space(folder: Path, model: nn.Module, scale: Scale) -> None:
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


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    try:
        save_file(_on_cpu(tensors), path, metadata)
    except SafetensorError as error:
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, f"cannot write {path}: {error}; the state before it is whole") from error
    path.chmod(0o644)  # safetensors writes for the owner only
    with path.open("rb") as file:
        os.fsync(file.fileno())  # before it is renamed: a power cut must not leave an empty file in a whole one's place


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def write_weights(path: Path, model: nn.Module) -> None:
    with atomic_path(path) as temporary:
        _write_tensors(temporary, model.state_dict())


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors checkpoint into the model."""
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
