"""Any open_clip model with its weights, opened for evaluation."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import nn

from benchmark.evaluation.preprocess import Preprocess
from benchmark.models.build import Tokenizer, build_model, build_tokenizer, model_config
from benchmark.runtime.console import rank_of_process, warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import as_location
from benchmark.runtime.storage import hash_file
from benchmark.scales import SCALES, own_model
from benchmark.toolbox.encoders import IMAGE_OPTIONS, find_weights, hash_weights, image_options
from benchmark.toolbox.tensors import is_torchscript

NESTS = ("state_dict", "model", "model_state_dict", "module")  # keys under which writers put a state dict
WRAPPERS = ("module", "model")  # that names begin with
COMPILED = "_orig_mod"
JIT_NUMBERS = {"input_resolution", "context_length", "vocab_size"}  # beside OpenAI's weights, and none of them
NUMPY_SUFFIXES = (".npz", ".npy")
SHOWN_NAMES = 4  # of tensors, in errors
NO_STATE_DICT = "it is not a state dict of weights only (.pt as open_clip's trainer writes it, or .safetensors)"


@dataclass(frozen=True)
class OpenedModel:
    """A model with its weights, and what its inputs need."""

    model: nn.Module
    tokenizer: Tokenizer
    preprocess: Preprocess
    name: str  # of the configuration, with a hash where it is a file
    checkpoint: str  # the sha256 of the weights, with the name that open_clip has for them before it


def open_model(model: str, checkpoint: str | None) -> OpenedModel:
    """Open any open_clip model in float32: `model` is a configuration's name, or the path of a JSON configuration.

    `checkpoint` is a file (.pt, a state dict of weights only or as a trainer writes it, see `read_state_dict` and
    `strip_wrappers`; or safetensors), or a name that open_clip has for weights. Images are prepared as open_clip does
    for that name; for a file as a scale of the benchmark does that trains this model, else as for all names of the
    model where these agree.

    Raises FileNotFoundError or UserError where there is no such model or checkpoint, or the weights are another's.
    """
    name = own_model(local_copy(as_location(model))) if model.endswith(".json") else model
    config = model_config(name)
    weights = find_weights(name, checkpoint, "checkpoint")
    assert weights is not None
    identity = hash_weights(name, weights, hash_file)
    path = weights if weights.is_file() else Path(_fetched(name, str(weights)))
    opened = _build(name)
    _load_checkpoint(opened, path, name)
    return OpenedModel(opened, _tokenizer(name), _preprocess(name, config, str(weights)), name, identity)


def _build(name: str) -> nn.Module:
    try:
        return build_model(name)
    except Exception as error:  # whatever open_clip, timm or torch make of somebody's configuration
        raise _unbuildable(name, error) from error


def _tokenizer(name: str) -> Tokenizer:
    try:
        return build_tokenizer(name)
    except Exception as error:  # transformers is not installed, the hub not reached, a file not a tokenizer
        raise _unbuildable(name, error) from error


def _unbuildable(name: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(f"model {name!r} cannot be built with its tokenizer ({reason})", code="model-unfit")


def _fetched(name: str, tag: str) -> str:
    return open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))


def _load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Load somebody's weights, as data; raises ValueError where the file holds no weights, or another model's."""
    if path.suffix in NUMPY_SUFFIXES:  # of big_vision
        _fill(model, path, path, name)
        return
    found = read_state_dict(path)
    tensors = strip_wrappers(found, set(model.state_dict()), f"checkpoint {path}")
    if list(tensors) == _as_read_by_open_clip(found):
        del found, tensors  # it reads the file itself
        _fill(model, path, path, name)
        return
    with tempfile.TemporaryDirectory() as folder:  # open_clip, which knows older layouts of its models, reads files
        plain = Path(folder) / "weights.pt"
        torch.save(tensors, plain)
        _fill(model, plain, path, name)


def _fill(model: nn.Module, path: Path, given: Path, name: str) -> None:
    """Have open_clip load a file; `given` is the user's, for errors."""
    try:
        left = open_clip.load_checkpoint(model, str(path), strict=False, weights_only=True)
    except Exception as error:  # whatever torch, safetensors or open_clip make of somebody's file
        text = " ".join(str(error).split()) or type(error).__name__  # what differs stands on later lines
        if "size mismatch" in text or "width changed" in text:
            detail = f"its tensors have other shapes than those of {name}: {text[:300]}"
        else:
            detail = f"open_clip cannot load it into {name}: {text[:300]}"
        raise UserError(f"checkpoint {given}: {detail}", code="other-weights") from error
    if not left:
        return
    parts = []
    if left.unexpected_keys:
        parts.append(f"{_count_names(left.unexpected_keys)} in the file and not in the model")
    if left.missing_keys:
        parts.append(f"{_count_names(left.missing_keys)} in the model and not in the file")
    if parts:
        raise UserError(
            f"checkpoint {given}: its tensors are not those of {name}: {'; '.join(parts)}", code="other-weights"
        )


def _count_names(names: Sequence[str]) -> str:
    """Spell how many tensors these are, and the first of them."""
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:SHOWN_NAMES])}{more})"


@dataclass(frozen=True)
class StateDict:
    """A state dict as a file has it."""

    tensors: dict[str, Any]
    nests: tuple[str, ...]  # the keys under which it was found


def read_state_dict(path: Path) -> StateDict:
    """Read the state dict that a file of torch's or safetensors' holds, perhaps under `state_dict` or `model`.

    Nothing in the file is run. Raises UserError that says what the file is instead.
    """
    if is_torchscript(path):
        raise UserError(
            f"checkpoint {path}: it is a TorchScript archive, a program and not only weights; save its state dict: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
            code="torchscript",
        )
    value: Any
    try:
        if path.suffix == ".safetensors":
            value = load_file(path)
        else:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch or safetensors make of somebody's file
        # torch's own advice is to load code as well.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        detail = f" It names {code[1]}, which would be code to run." if code else ""
        raise UserError(f"checkpoint {path}: {NO_STATE_DICT}.{detail}", code="no-weights") from error
    nests: list[str] = []
    while isinstance(value, dict):
        inner = next((key for key in NESTS if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        nests.append(inner)
        value = value[inner]
    if not isinstance(value, dict) or not any(isinstance(item, torch.Tensor) for item in value.values()):
        keys = ", ".join(map(str, list(value)[:SHOWN_NAMES])) if isinstance(value, dict) else ""
        detail = f" It is a dict of {keys}." if keys else f" It is a {type(value).__name__}, without tensors by name."
        raise UserError(f"checkpoint {path}: {NO_STATE_DICT}.{detail}", code="no-weights")
    return StateDict({str(key): item for key, item in value.items()}, tuple(nests))


def strip_wrappers(state: StateDict, own: set[str], where: str) -> dict[str, Any]:
    """Return tensors by the names that the model has for them.

    What wraps a model puts `module.` (DDP), `_orig_mod.` (torch.compile) or `model.` before its names, in any order,
    and `_orig_mod.` between their parts where only a part was compiled. A name that the model has itself stays.
    """
    tensors: dict[str, Any] = {}
    for key, value in state.tensors.items():
        name = key
        if name not in own:
            parts = [part for part in key.split(".") if part != COMPILED]
            while len(parts) > 1 and parts[0] in WRAPPERS and ".".join(parts) not in own:
                parts = parts[1:]
            name = ".".join(parts)
            if name not in own and (inner := ".".join(part for part in parts if part != "module")) in own:
                name = inner
        if name in tensors:
            raise UserError(f"{where}: two tensors are {name!r}; one is called {key!r}", code="no-weights")
        tensors[name] = value
    for name in JIT_NUMBERS - own:
        tensors.pop(name, None)
    return tensors


def _as_read_by_open_clip(state: StateDict) -> list[str] | None:
    """Return the names under which open_clip would read a file's tensors by itself; None where it would find none."""
    if state.nests not in ((), ("state_dict",)):
        return None
    names = list(state.tensors)
    return [name[7:] for name in names] if names[0].startswith("module") else names


def _preprocess(name: str, config: dict[str, Any], checkpoint: str) -> Preprocess:
    """Return how images are prepared for a model with these weights."""
    size = config["vision_cfg"].get("image_size", 224)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise UserError(
            f"model {name!r} takes images of {size} pixels; only square ones can be evaluated", code="model-unfit"
        )
    image_size = int(sides.pop())
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_named = checkpoint in tags and not Path(checkpoint).is_file()
    scales = [each for each in SCALES.values() if each.model == name and each.image_size == image_size]
    found = image_options(name, checkpoint)
    if scales and not is_named:
        chosen = Preprocess(image_size, tuple(scales[0].mean), tuple(scales[0].std))
    else:
        chosen = Preprocess(
            image_size,
            tuple(found.get("mean", open_clip.OPENAI_DATASET_MEAN)),
            tuple(found.get("std", open_clip.OPENAI_DATASET_STD)),
            found.get("interpolation", "bicubic"),
            found.get("resize_mode", "shortest"),
        )
    if (
        rank_of_process()[0] == 0
        and not is_named
        and found.keys() < set(IMAGE_OPTIONS.values())
        and (tags or not scales)
    ):
        why = "open_clip does so in several ways" if tags else "the configuration does not say"
        warn(
            f"how images are prepared for a file of weights of {name} is assumed, as {why}: mean {chosen.mean}, std "
            f"{chosen.std}, {chosen.interpolation}, {chosen.resize_mode}. Scores are too low if that is wrong"
        )
    return chosen
