"""T-MARS (Maini et al. 2023, arXiv 2307.03132): CLIP score of the picture once the text in it is painted over."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmark import register_filter
from benchmark.embeddings import row_cosines
from benchmark.textboxes import find_text_in, paint_over

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 64
REFERENCE_PREFIX = "reference_"
REFERENCE_SIDE = 32  # pixels that the reference models see


@register_filter(columns=["text"], images=True, fraction=0.3)
def text_masked_clip(
    rows: pd.DataFrame, images: list[Image.Image], *, clip_model: str = "reference_l14", checkpoint: str | None = None
) -> np.ndarray:
    """Score a pair by the CLIP cosine of its caption and its picture without the text in it.

    A picture that shows nothing but the words of its caption thus loses its score, and one that shows the thing too
    keeps it. Lines of text are filled with the mean colour around them. `clip_model` is one of the embedded pool's
    reference models, `reference_l14` or `reference_b32` (they see 32 x 32 pixels), or an open_clip model with the path
    of its weights as `checkpoint`. It runs on the CPU. A null caption gives no verdict.

    The cut is `clip_score`'s, so that the two differ by the masking alone. T-MARS keeps the top 50 % on LAION, and at
    DataComp's medium scale scores of at least 0.281 by OpenAI's ViT-B/32, a number that means nothing for another
    model. T-MARS finds text with FAST, a neural detector trained on scene text; the classical one here finds level
    lines of at least three letters that stand out of a quiet surrounding. It misses slanted and vertical text, much of
    the text on busy photographs, and faint watermarks, so more such pairs keep their CLIP score than with T-MARS.
    """
    captions = rows["text"]
    is_judged = captions.notna().to_numpy(dtype=bool)
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    chosen = np.flatnonzero(is_judged)
    if len(chosen):
        encoder = load_encoder(clip_model, checkpoint)
        pictures = encoder.encode_images(mask_text([images[row] for row in chosen]))
        scores[chosen] = row_cosines(pictures, encoder.encode_texts(captions.iloc[chosen].tolist()))
    return scores


def mask_text(images: list[Image.Image]) -> list[np.ndarray]:
    """Return the images as pixels (height, width, 3), uint8, with their lines of text painted over."""
    pixels = [np.asarray(image) for image in images]
    return [
        paint_over(each, boxes) if boxes else each for each, boxes in zip(pixels, find_text_in(pixels), strict=True)
    ]


class Encoder:
    """A CLIP model that encodes in batches of one size on one thread, so that bytes do not depend on the slices."""

    def __init__(
        self,
        model: Any,
        prepare: Callable[[list[np.ndarray]], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
    ) -> None:
        self.model = model.eval()
        self.prepare = prepare  # pixels of n pictures to the model's input, (n, 3, side, side)
        self.tokenizer = tokenizer

    def encode_images(self, pixels: list[np.ndarray]) -> np.ndarray:
        """Return unit embeddings (n, dimension), float32."""
        return self._encode(pixels, self.prepare, self.model.encode_image)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Return unit embeddings (n, dimension), float32; a text that occurs several times is encoded once."""
        distinct = sorted(set(texts))
        place_of = {text: place for place, text in enumerate(distinct)}
        encoded = self._encode(distinct, self.tokenizer, self.model.encode_text)
        return encoded[[place_of[text] for text in texts]]

    def _encode(self, items: list[Any], prepare: Callable[[list[Any]], Tensor], encode: Any) -> np.ndarray:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        parts = []
        try:
            with torch.inference_mode():
                for start in range(0, len(items), BATCH_SIZE):
                    batch = items[start : start + BATCH_SIZE]
                    filled = batch + [batch[-1]] * (BATCH_SIZE - len(batch))
                    parts.append(encode(prepare(filled), normalize=True)[: len(batch)].float().numpy())
        finally:
            torch.set_num_threads(threads)
        return np.concatenate(parts)


@lru_cache(maxsize=1)
def load_encoder(clip_model: str, checkpoint: str | None) -> Encoder:
    """Load a model, once per process; raises ValueError or FileNotFoundError where there is none."""
    option = "filters.text_masked_clip"
    if clip_model.startswith(REFERENCE_PREFIX):
        return _reference_encoder(clip_model, checkpoint, option)
    if checkpoint is None:
        raise ValueError(f"{option}.checkpoint must be the path of weights for clip_model={clip_model!r}")
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"{option}.checkpoint: there is no file {checkpoint}")
    import open_clip
    import torch

    from benchmark.models import build_tokenizer, model_config

    model_config(clip_model)  # says so where there is no such model
    model, _, preprocess = open_clip.create_model_and_transforms(clip_model, pretrained=checkpoint)

    def prepare(pixels: list[np.ndarray]) -> Tensor:
        return torch.stack([preprocess(Image.fromarray(each)) for each in pixels])

    return Encoder(model, prepare, build_tokenizer(clip_model))


def _reference_encoder(clip_model: str, checkpoint: str | None, option: str) -> Encoder:
    from benchmark.embedded.reference_models import (
        ARCHITECTURE,
        REFERENCE_MODELS,
        load_reference_model,
        to_images,
    )
    from benchmark.models import build_tokenizer

    name = clip_model.removeprefix(REFERENCE_PREFIX)
    if name not in REFERENCE_MODELS:
        known = " or ".join(REFERENCE_PREFIX + each for each in sorted(REFERENCE_MODELS))
        raise ValueError(f"{option}.clip_model={clip_model!r} is no reference model; use {known}")
    if checkpoint is not None:
        raise ValueError(f"{option}.checkpoint={checkpoint!r} has no use with {clip_model}, which has its own weights")

    def prepare(pixels: list[np.ndarray]) -> Tensor:
        return to_images(np.stack([_resize(each, REFERENCE_SIDE) for each in pixels]))

    return Encoder(load_reference_model(name), prepare, build_tokenizer(ARCHITECTURE))


def _resize(pixels: np.ndarray, side: int) -> np.ndarray:
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
