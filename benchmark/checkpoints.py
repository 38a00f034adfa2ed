"""Any open_clip model with its weights, opened for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from benchmark.assets import hash_file
from benchmark.encoders import IMAGE_OPTIONS, find_weights, hash_weights, image_options
from benchmark.errors import UserError
from benchmark.eval_sets import Preprocess
from benchmark.models import Tokenizer, build_model, build_tokenizer, model_config
from benchmark.scales import SCALES, own_model
from benchmark.stage import rank_of_process, warn
from benchmark.storage import as_location, local_copy


@dataclass(frozen=True)
class OpenedModel:
    """A model with its weights, and what it takes to ask it."""

    model: nn.Module
    tokenizer: Tokenizer
    preprocess: Preprocess
    name: str  # of the configuration, with a hash where it is a file
    checkpoint: str  # the sha256 of the weights, with the name that open_clip has for them before it


def open_model(model: str, checkpoint: str | None) -> OpenedModel:
    """Open any open_clip model in float32: `model` is a configuration's name, or the path of a JSON configuration.

    `checkpoint` is a file (.pt, a state dict of weights alone or as open_clip's trainer writes it; or safetensors), or
    a name that open_clip has for weights. Images are prepared as open_clip does for that name; for a file as a scale of
    the benchmark does that trains this model, else as for all names of the model where these agree.

    Raises FileNotFoundError or ValueError where there is none such, or the weights are not the model's.
    """
    name = own_model(local_copy(as_location(model))) if model.endswith(".json") else model
    config = model_config(name)
    weights = find_weights(name, checkpoint, "checkpoint")
    assert weights is not None
    identity = hash_weights(name, weights, hash_file)
    path = weights if weights.is_file() else Path(_fetched(name, str(weights)))
    opened = build_model(name)
    _load_checkpoint(opened, path, name)
    return OpenedModel(opened, build_tokenizer(name), _preprocess(name, config, str(weights)), name, identity)


def _fetched(name: str, tag: str) -> str:
    return open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))


def _load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Load somebody's weights, as data; raises ValueError where the file is none, or of another model."""
    try:
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:  # whatever torch, safetensors or open_clip make of somebody's file
        text = " ".join(str(error).split()) or type(error).__name__  # the keys stand on later lines
        if "size mismatch" in text or "width changed" in text:
            told = f"its tensors have other shapes than those of {name}: {text[:300]}"
        elif "Missing key" in text or "Unexpected key" in text:
            told = f"its tensors are not those of {name}: {text[:300]}"
        else:  # torch's own advice is to load code as well
            told = "it is no state dict of weights alone (.pt as open_clip's trainer writes it, or .safetensors)"
        raise UserError(f"checkpoint {path}: {told}") from error


def _preprocess(name: str, config: dict[str, Any], checkpoint: str) -> Preprocess:
    """Return how images are prepared for a model with these weights."""
    size = config["vision_cfg"].get("image_size", 224)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise UserError(f"model {name!r} takes images of {size} pixels; only square ones can be evaluated")
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
            f"{chosen.std}, {chosen.interpolation}, {chosen.resize_mode}. Scores are too low where it is not so"
        )
    return chosen
