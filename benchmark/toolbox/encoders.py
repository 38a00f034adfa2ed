"""CLIP models that strategies score with: any of open_clip's with its weights, or the embedded pool's reference models.

On the CPU a model works in float32 on one thread; on a GPU in float16 by autocast, the precision that CommonPool's own
scores were computed in, with norms and cosines in float32. Batches have one size, the last one padded, so that a
value does not depend on the other rows of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmark.models.reference import (
    ARCHITECTURE,
    REFERENCE_MODELS,
    load_reference_model,
    reference_path,
    to_images,
)
from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import as_location

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 64
IMAGE_OPTIONS = {  # of open_clip's transforms, and what it calls them of weights that it knows
    "image_mean": "mean",
    "image_std": "std",
    "image_interpolation": "interpolation",
    "image_resize_mode": "resize_mode",
}
REFERENCE_PREFIX = "reference_"
REFERENCE_SIDE = 32  # pixels that the reference models see


class Encoder:
    """A CLIP model that turns images and texts into unit embeddings."""

    def __init__(
        self,
        model: Any,
        prepare: Callable[[list[Image.Image]], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: str = "cpu",
    ) -> None:
        self.model = model.to(device).eval()
        self.prepare = prepare  # n images to the model's input, (n, 3, side, side)
        self.tokenizer = tokenizer
        self.device = device

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return unit embeddings (n, dimension), float32."""
        return self._encode(list(images), self.prepare, self.model.encode_image)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit embeddings (n, dimension), float32; a text that occurs several times is encoded once."""
        distinct = sorted(set(texts))
        place_of = {text: place for place, text in enumerate(distinct)}
        encoded = self._encode(distinct, self.tokenizer, self.model.encode_text)
        return encoded[[place_of[text] for text in texts]]

    def _encode(self, items: list[Any], prepare: Callable[[list[Any]], Tensor], encode: Any) -> np.ndarray:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        kind = torch.device(self.device).type
        parts = []
        try:
            with torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=kind == "cuda"):
                for start in range(0, len(items), BATCH_SIZE):
                    prepared = prepare(items[start : start + BATCH_SIZE])
                    filler = prepared[-1:].expand(BATCH_SIZE - len(prepared), *prepared.shape[1:])
                    encoded = encode(torch.cat([prepared, filler]).to(self.device)).float()
                    unit = torch.nn.functional.normalize(encoded, dim=-1)
                    parts.append(unit[: len(prepared)].float().cpu().numpy())
        finally:
            torch.set_num_threads(threads)
        return np.concatenate(parts)


def find_weights(clip_model: str, given: str | None, where: str) -> Path | None:
    """Return the file of a model's weights: a reference model's own, or the one given; or the name that open_clip has.

    None where `clip_model` is "None" and no weights are given. Raises ValueError or FileNotFoundError naming `where`,
    the option.
    """
    if clip_model == "None":
        if given is not None:
            raise UserError(f"{where}={given!r} has no use without clip_model", code="option-conflict")
        return None
    if clip_model.startswith(REFERENCE_PREFIX):
        return reference_path(_reference_name(clip_model, given))
    if given is not None and (path := local_copy(as_location(given))).is_file():
        return path
    import open_clip

    from benchmark.models.build import model_config

    config = model_config(clip_model)  # says so where there is no such model
    names = open_clip.list_pretrained_tags_by_model(clip_model)
    if given is None or given not in names:
        problem = "must be given" if given is None else f"there is no file {given}"
        known = f"or one of {', '.join(names)}, which open_clip fetches" if names else "as open_clip knows none"
        raise NotFoundError(
            f"{where}: {problem}; {clip_model} needs the path of its weights, {known}", code="checkpoint-not-found"
        )
    if open_clip.get_pretrained_cfg(clip_model, given).get("quick_gelu", False) != config.get("quick_gelu", False):
        raise UserError(
            f"{where}={given}: {clip_model} has another activation (QuickGELU or not) than these weights were trained "
            f"with; for most there is a model {clip_model}-quickgelu",
            code="checkpoint-foreign",
        )
    return Path(given)


def hash_weights(clip_model: str, weights: Path, hash_file: Callable[[Path], str]) -> str:
    """Return what identifies weights that `find_weights` found: a file's hash, with the name where open_clip has one.

    Raises FileNotFoundError where what open_clip knows by that name cannot be fetched.
    """
    if weights.is_file():
        return hash_file(weights)
    import open_clip

    try:
        path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(clip_model, str(weights)))
    except (OSError, ValueError, RuntimeError) as error:
        raise NotFoundError(
            f"the weights {weights} of {clip_model} could not be fetched ({one_line(error)}); give a file",
            code="unreachable",
        ) from error
    return f"{weights}:{hash_file(Path(path))}"  # the name tells how images are prepared


def load_encoder(*, clip_model: str, checkpoint: str | None, device: str) -> Encoder:
    """Load an open_clip model with the weights `checkpoint`, or a reference model: reference_l14 or reference_b32.

    `checkpoint` is a file, or a name that open_clip has. Images are prepared as open_clip does for that name; for a
    file as for all names of the model, where these agree. Raises ValueError or FileNotFoundError where there is none.
    """
    from benchmark.models.build import build_tokenizer, model_config

    if clip_model.startswith(REFERENCE_PREFIX):
        model = load_reference_model(_reference_name(clip_model, checkpoint))
        return Encoder(model, _prepare_for_reference, build_tokenizer(ARCHITECTURE), device)
    if checkpoint is None:
        raise UserError(f"clip_model={clip_model!r} needs its weights: checkpoint= of a file", code="option-missing")
    import open_clip
    import torch

    model_config(clip_model)  # says so where there is no such model
    is_file = Path(checkpoint).is_file()
    if not is_file and checkpoint not in open_clip.list_pretrained_tags_by_model(clip_model):
        raise NotFoundError(f"checkpoint: there is no file {checkpoint}", code="checkpoint-not-found")
    found = image_options(clip_model, checkpoint) if is_file else {}
    given = {option: found[key] for option, key in IMAGE_OPTIONS.items() if key in found}
    model, _, preprocess = open_clip.create_model_and_transforms(clip_model, pretrained=checkpoint, **given)

    def prepare(images: list[Image.Image]) -> Tensor:
        return torch.stack([preprocess(image) for image in images])

    return Encoder(model, prepare, build_tokenizer(clip_model), device)


def image_options(clip_model: str, checkpoint: str) -> dict[str, Any]:
    """Return how open_clip prepares images for weights: mean, std, interpolation, resize_mode, where it says so.

    `checkpoint` is a name that open_clip has, or a file: then what all names of the model agree on.
    """
    import open_clip

    names = open_clip.list_pretrained_tags_by_model(clip_model)
    of = [checkpoint] if checkpoint in names and not Path(checkpoint).is_file() else names
    known = [open_clip.get_pretrained_cfg(clip_model, name) for name in of]
    return {
        key: known[0][key]
        for key in IMAGE_OPTIONS.values()
        if known and key in known[0] and all(each.get(key) == known[0][key] for each in known)
    }


def _reference_name(clip_model: str, checkpoint: str | None) -> str:
    name = clip_model.removeprefix(REFERENCE_PREFIX)
    if name not in REFERENCE_MODELS:
        known = " or ".join(REFERENCE_PREFIX + each for each in sorted(REFERENCE_MODELS))
        raise UserError(f"clip_model={clip_model!r} is not a reference model; use {known}", code="unknown-model")
    if checkpoint is not None and Path(checkpoint) != reference_path(name):  # which is filled in for None
        raise UserError(
            f"checkpoint={checkpoint!r} has no use with {clip_model}, which has its own weights", code="option-conflict"
        )
    return name


def _prepare_for_reference(images: list[Image.Image]) -> Tensor:
    size = (REFERENCE_SIDE, REFERENCE_SIDE)
    return to_images(np.stack([np.asarray(each.resize(size, Image.Resampling.BICUBIC)) for each in images]))
