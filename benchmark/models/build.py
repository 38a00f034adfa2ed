"""The embedded scales' models, and how any model of a recipe is built: always through open_clip."""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models import register_model
from torch import Tensor, nn

from benchmark.runtime.errors import UserError
from benchmark.runtime.names import nearest_name
from benchmark.scales import MODEL_FILES

MODELS_DIR = Path(__file__).parent
NUM_MERGES = 3500  # of CLIP's byte-pair merges; 512 bytes + 3500 merges + 2 marks = a vocabulary of 4,014

Tokenizer = Callable[[list[str]], Tensor]


class PlainCNN(nn.Module):
    """Four convolutions with GroupNorm, three poolings and a linear read-out of the flattened 4 x 4 map.

    No layer mixes the samples of a batch, so gradients do not depend on how a batch is split.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(8, after)]
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        layers.pop()  # three poolings: 32 to 4 pixels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to embeddings (n, num_classes)."""
        return self.head(self.features(images).flatten(1))


@register_model
def winnow_cnn(pretrained: bool = False, num_classes: int = 96, width: int = 16, **_: Any) -> PlainCNN:
    """Build the embedded scales' image tower; timm passes options that it has no use for."""
    assert not pretrained
    return PlainCNN(width, num_classes)


@register_model
def winnow_cnn_small(pretrained: bool = False, num_classes: int = 96, **_: Any) -> PlainCNN:
    """Build the image tower of `pico`."""
    assert not pretrained
    return PlainCNN(8, num_classes)


@lru_cache
def register_configs() -> None:
    """Make the shipped model configurations known to open_clip, once."""
    open_clip.add_model_config(MODELS_DIR)


def build_model(name: str, seed: int = 0, image_size: int | None = None) -> nn.Module:
    """Build an open_clip model with weights drawn from `seed`, in float32, and leave torch's global generator as it is.

    `image_size` is in pixels, the configuration's own where it is None.
    """
    own_size = model_config(name)["vision_cfg"].get("image_size", 224)
    force = None if image_size in (None, own_size) else image_size
    logging.disable(logging.WARNING)  # open_clip warns that the weights are not pretrained; here they never are
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return open_clip.create_model(
                name, pretrained=None, precision="fp32", output_dict=True, force_image_size=force
            )
    finally:
        logging.disable(logging.NOTSET)


def build_tokenizer(name: str) -> Tokenizer:
    """Build the tokenizer that belongs to a model; it maps n texts to an int64 tensor (n, context length)."""
    text = model_config(name)["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    is_own = name in MODEL_FILES and "hf_tokenizer_name" not in text  # open_clip would go by the file's name
    if "bpe_path" not in options and not is_own:
        return open_clip.get_tokenizer(name)
    if "bpe_path" in options:
        folder = MODEL_FILES[name].parent if name in MODEL_FILES else MODELS_DIR
        options["bpe_path"] = str(folder / options["bpe_path"])
    return open_clip.SimpleTokenizer(context_length=text.get("context_length", 77), **options)


def build_own_model(name: str, seed: int, image_size: int) -> nn.Module:
    """Build a custom model; raises ValueError where it cannot be, or does not take its pictures or its tokens."""
    try:
        model, tokens = build_model(name, seed, image_size), build_tokenizer(name)(["a photo", ""])
        with torch.inference_mode():
            model.eval()(torch.zeros(2, 3, image_size, image_size), tokens)
        return model.train()
    except Exception as error:  # whatever open_clip, timm or torch make of a configuration
        raise UserError(
            f"model {name!r} does not work on pictures of {image_size} px and its tokenizer's tokens: "
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            code="model-unfit",
        ) from error


def model_config(name: str) -> dict[str, Any]:
    """Return the model's open_clip configuration; raises ValueError where there is none of that name."""
    register_configs()
    if name in MODEL_FILES and name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:  # open_clip takes a configuration's name from its file
            open_clip.add_model_config(shutil.copy(MODEL_FILES[name], Path(folder) / f"{name}.json"))
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(
            f"unknown model {name!r}.{nearest_name(name, open_clip.list_models())} It is the name of an open_clip "
            "configuration; open_clip.list_models() lists them.",
            code="unknown-model",
        )
    return dict(config)


def write_vocabulary(path: Path) -> None:
    """Cut CLIP's byte-pair merges (Radford et al. 2021, as open_clip carries them) down to the first 3,500."""
    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode().split("\n")
    path.write_bytes(gzip.compress("\n".join(lines[: NUM_MERGES + 1]).encode(), mtime=0))
