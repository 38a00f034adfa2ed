"""How an image of an evaluation set becomes a model's input: open_clip's evaluation transform, without torch."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from benchmark.evaluation.samples import Sample, SetError, read_image
from benchmark.pool.tars import IMAGE_FORMATS
from benchmark.runtime.errors import UserError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model's input: open_clip's evaluation transform with these settings."""

    image_size: int  # pixels, of both sides
    mean: tuple[float, ...]  # of each channel, where pixels go from 0 to 1
    std: tuple[float, ...]
    interpolation: str = "bicubic"  # or bilinear
    resize_mode: str = "shortest"  # side to image_size, then a centre crop; or squash: both sides; or longest

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLING:
            raise UserError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}", code="task-invalid"
            )
        if self.resize_mode not in ("shortest", "squash", "longest"):
            raise UserError(
                f"resize_mode {self.resize_mode!r} is not one of shortest, squash, longest", code="task-invalid"
            )


def load_image(sample: Sample, preprocess: Preprocess) -> np.ndarray:
    """Decode a sample's image as RGB and bring it to (image_size, image_size, 3), uint8.

    As open_clip's evaluation transform does: resized with antialiasing, the shorter side first and a centre crop where
    `resize_mode` says so. Alpha is dropped and EXIF orientation not applied, as in DataComp. Raises SetError that
    names the image.
    """
    where = f"{sample.tar_path}: image {sample.image_name!r}"
    side, most = preprocess.image_size, Image.MAX_IMAGE_PIXELS or math.inf
    try:
        with Image.open(io.BytesIO(read_image(sample)), formats=sorted(set(IMAGE_FORMATS.values()))) as opened:
            if opened.width * opened.height > most:
                raise SetError(f"{where} is too large to be an evaluation image: {opened.width} x {opened.height}")
            image = opened.convert("RGB")
    except Image.DecompressionBombError as error:
        raise SetError(f"{where} is too large to be an evaluation image: {error}") from error
    except UnidentifiedImageError as error:  # whose text names an object in memory
        raise SetError(
            f"{where} cannot be decoded: it is not {' or '.join(IMAGE_FORMATS)}; fetch the set again"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        if str(error).startswith(where):
            raise
        raise SetError(f"{where} cannot be decoded: {error}; fetch the set again") from error
    resampling = RESAMPLING[preprocess.interpolation]
    if preprocess.resize_mode == "squash":
        return np.array(image.resize((side, side), resampling) if image.size != (side, side) else image)
    fit = max if preprocess.resize_mode == "longest" else min
    if fit(image.size) != side:
        if preprocess.resize_mode == "longest":
            width, height = (round(length * side / max(image.size)) for length in image.size)
        else:
            width, height = (int(side * length / min(image.size)) for length in image.size)
        if width * height > most:
            raise SetError(f"{where} is too large to be an evaluation image: {width} x {height} when resized")
        image = image.resize((max(width, 1), max(height, 1)), resampling)
    if preprocess.resize_mode == "longest":  # the rest of the shorter side is black
        canvas = Image.new("RGB", (side, side))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return np.array(canvas)
    left, top = (round((length - side) / 2) for length in image.size)  # torchvision rounds halves to even, as here
    return np.array(image)[top : top + side, left : left + side]
