"""The two reference models, stand-ins for OpenAI's CLIP L/14 and B/32: they give the pool its similarity scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from benchmark.scales import SCALES

if TYPE_CHECKING:
    from open_clip import CLIP
    from torch import Tensor

REFERENCE_MODELS = ("b32", "l14")  # as the columns of the metadata call them
ARCHITECTURE = "nano_cnn"
BATCH_SIZE = 64


def reference_path(name: str) -> Path:
    """Return the weights' file, which travels with the package."""
    return Path(__file__).parent / f"reference_{name}.safetensors"


def load_reference_model(name: str) -> CLIP:
    """Load a reference model in float32, ready to encode."""
    from open_clip import CLIP
    from safetensors.torch import load_file

    from benchmark.models.build import build_model

    model = build_model(ARCHITECTURE)
    assert isinstance(model, CLIP)
    model.load_state_dict({key: value.float() for key, value in load_file(reference_path(name)).items()})
    model.eval()
    return model


def to_images(pixels: np.ndarray) -> Tensor:
    """Turn pixels (n, 32, 32, 3), uint8, into normalised images (n, 3, 32, 32), as the embedded recipe does."""
    import torch

    from benchmark.models.pixels import normalise

    return normalise(torch.from_numpy(pixels.copy()), SCALES["nano"])


def encode_images(model: CLIP, pixels: np.ndarray, progress: tqdm | None = None) -> np.ndarray:
    """Encode pixels (n, 32, 32, 3), uint8: L2-normalised embeddings (n, 96), float32, in batches of one size."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH_SIZE):
            parts.append(model.encode_image(to_images(pixels[start : start + BATCH_SIZE]), normalize=True).numpy())
            if progress is not None:
                progress.update()
    return np.concatenate(parts)


def encode_pairs(pixels: np.ndarray, texts: list[str]) -> dict[str, np.ndarray]:
    """Encode n pairs with both models: L2-normalised embeddings (n, 96), float32, under the .npz's names.

    The keys are b32_img, b32_txt, l14_img and l14_txt. `pixels` are (n, 32, 32, 3), uint8. A text that occurs several
    times is encoded once. Batches are fixed and each model has one thread, so the bytes are the same on one machine.
    """
    import torch

    from benchmark.models.build import build_tokenizer

    distinct = sorted(set(texts))
    place_of = {text: place for place, text in enumerate(distinct)}
    places = np.array([place_of[text] for text in texts])
    tokens = build_tokenizer(ARCHITECTURE)(distinct)
    models = {name: load_reference_model(name) for name in REFERENCE_MODELS}
    num_batches = len(models) * sum(-(-count // BATCH_SIZE) for count in (len(pixels), len(distinct)))
    progress = tqdm(total=num_batches, desc="scoring", unit="batch", disable=None)

    def encode(model: CLIP) -> tuple[np.ndarray, np.ndarray]:
        images = encode_images(model, pixels, progress)
        captions = []
        with torch.inference_mode():
            for start in range(0, len(distinct), BATCH_SIZE):
                captions.append(model.encode_text(tokens[start : start + BATCH_SIZE], normalize=True).numpy())
                progress.update()
        return images, np.concatenate(captions)[places]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Two models on one thread each are faster than one model on two, above all when others use the cores too.
        with progress, ThreadPoolExecutor(len(models)) as executor:
            encoded = dict(zip(models, executor.map(encode, models.values()), strict=True))
    finally:
        torch.set_num_threads(threads)
    return {f"{name}_{tower}": encoded[name][side] for name in models for side, tower in enumerate(("img", "txt"))}
