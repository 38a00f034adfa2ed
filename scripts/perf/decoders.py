"""Measure decoders: JPEG bytes to a random crop of 224 px, by one thread, and how far each one's pixels are Pillow's.

    python -m scripts.perf.decoders

Pillow is what open_clip uses, simplejpeg (TurboJPEG) with torch's resizing what training uses. Others are measured
where they are installed: torchvision, torchcodec and opencv-python-headless. Every decoder meets the same made-up
photographs and the same crops; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmark.pool.samples import decode_image
from benchmark.runtime.errors import UserError
from benchmark.training.data import Crop, crop_and_resize, draw_crop
from scripts.perf.make_jpeg_pool import draw_picture, encode
from scripts.perf.train_report import OPEN_CLIP_AREA, machine
from scripts.perf.train_speed import SEED

IMAGE_SIZE = 224
DRAFT_SIZE = 256  # the least that Pillow's draft mode may shrink to: a crop of 90 % still has 224 pixels
ASPECT = 0.75  # of the pictures


@dataclass(frozen=True)
class Decoder:
    """A way from JPEG bytes to pixels; both functions return uint8 of shape (height, width, 3)."""

    name: str
    decode: Callable[[bytes], np.ndarray]
    crop: Callable[[bytes, int], np.ndarray]  # decode, crop as position says, resize to IMAGE_SIZE


def crop_at(width: int, height: int, position: int) -> Crop:
    """Return the crop that training takes at a position."""
    return draw_crop(width, height, OPEN_CLIP_AREA, SEED, position)


def crop_by_pillow(image: Image.Image, position: int) -> np.ndarray:
    """Crop and resize as open_clip does."""
    crop = crop_at(image.width, image.height, position)
    cut = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    return np.asarray(cut.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def crop_by_torch(pixels: np.ndarray, position: int) -> np.ndarray:
    """Crop and resize (bicubic, antialiased) with torch, which does it on uint8, as training does."""
    return crop_and_resize(pixels, IMAGE_SIZE, crop_at(pixels.shape[1], pixels.shape[0], position))


def pillow() -> list[Decoder]:
    """Return what open_clip does, and the same with the JPEG shrunk while it is decoded."""

    def decode(data: bytes) -> Image.Image:
        image = decode_image(data)
        if image is None:
            raise UserError("no picture", code="perf")
        return image

    def decode_draft(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        image.draft("RGB", (DRAFT_SIZE, DRAFT_SIZE))
        return image.convert("RGB")

    def pixels(data: bytes) -> np.ndarray:
        return np.asarray(decode(data))

    return [
        Decoder("Pillow (open_clip)", pixels, lambda data, position: crop_by_pillow(decode(data), position)),
        Decoder(
            "Pillow, draft mode",
            lambda data: np.asarray(decode_draft(data)),
            lambda data, position: crop_by_pillow(decode_draft(data), position),
        ),
    ]


def torchvision() -> list[Decoder]:
    """Return Pillow's decoder with torch's resizing, and torchvision's own decoder, which is to be removed."""
    tv_io: Any = importlib.import_module("torchvision.io")

    def by_pillow(data: bytes) -> np.ndarray:
        image = decode_image(data)
        if image is None:
            raise UserError("no picture", code="perf")
        return np.array(image)

    decoders = [
        Decoder(
            "Pillow, resized by torch",
            by_pillow,
            lambda data, position: crop_by_torch(by_pillow(data), position),
        )
    ]
    if hasattr(tv_io, "decode_jpeg"):  # later versions do without
        decoders.append(_of_torch("torchvision", tv_io.decode_jpeg, tv_io.ImageReadMode.RGB))
    return decoders


def torchcodec() -> list[Decoder]:
    """Return TorchCodec's decoder, the heir of torchvision's."""
    codec: Any = importlib.import_module("torchcodec.decoders")
    return [_of_torch("TorchCodec, resized by torch", codec.decode_jpeg, codec.ImageReadMode.RGB)]


def _of_torch(name: str, function: Callable[..., torch.Tensor], mode: object) -> Decoder:
    def decode(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return function(encoded, mode=mode).permute(1, 2, 0).contiguous().numpy()

    return Decoder(name, decode, lambda data, position: crop_by_torch(decode(data), position))


def simplejpeg() -> list[Decoder]:
    """Return TurboJPEG's exact mode with both resizings, and its fast mode."""
    turbo: Any = importlib.import_module("simplejpeg")

    def exact(data: bytes) -> np.ndarray:
        return turbo.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)

    def fast(data: bytes) -> np.ndarray:
        return turbo.decode_jpeg(data, colorspace="RGB", fastdct=True, fastupsample=True)

    return [
        Decoder(
            "simplejpeg, exact, resized by Pillow",
            exact,
            lambda data, position: crop_by_pillow(Image.fromarray(exact(data)), position),
        ),
        Decoder(
            "simplejpeg, exact, resized by torch (training)",
            exact,
            lambda data, position: crop_by_torch(exact(data), position),
        ),
        Decoder(
            "simplejpeg, fast, resized by torch",
            fast,
            lambda data, position: crop_by_torch(fast(data), position),
        ),
    ]


def opencv() -> list[Decoder]:
    """Return OpenCV's decoder with its two resizings for shrinking, and with torch's."""
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def decode(data: bytes) -> np.ndarray:
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def decoder(name: str, interpolation: int) -> Decoder:
        def crop(data: bytes, position: int) -> np.ndarray:
            image = decode(data)
            crop = crop_at(image.shape[1], image.shape[0], position)
            cut = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            return cv2.resize(cut, (IMAGE_SIZE, IMAGE_SIZE), interpolation=interpolation)

        return Decoder(name, decode, crop)

    return [
        decoder("OpenCV, INTER_AREA", cv2.INTER_AREA),
        decoder("OpenCV, INTER_CUBIC", cv2.INTER_CUBIC),
        Decoder(
            "OpenCV, resized by torch",
            decode,
            lambda data, position: crop_by_torch(decode(data), position),
        ),
    ]


def available() -> tuple[list[Decoder], list[str]]:
    """Return the decoders that are installed here, Pillow's first, and the names of the packages that are not."""
    decoders, missing = pillow(), []
    packages = {
        "torchvision": torchvision,
        "torchcodec": torchcodec,
        "simplejpeg": simplejpeg,
        "opencv-python-headless": opencv,
    }
    for package, make in packages.items():
        try:
            decoders += make()
        except (ImportError, RuntimeError):  # TorchCodec raises the latter where its libraries cannot be loaded
            missing.append(package)
    return decoders, missing


def compare(decoders: Sequence[Decoder], jpegs: Sequence[bytes], rounds: int) -> list[str]:
    """Time every decoder over all JPEGs, round after round, and return the lines of a Markdown table.

    What counts is CPU time, which neighbours on the machine change less than they change the time on the wall.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for decoder in decoders:
            start = time.process_time()
            for data in jpegs:
                decoder.decode(data)
            middle = time.process_time()
            for position, data in enumerate(jpegs):
                decoder.crop(data, position)
            seconds.setdefault((decoder.name, "decode"), []).append(middle - start)
            seconds.setdefault((decoder.name, "crop"), []).append(time.process_time() - middle)

    def rate(decoder: Decoder, what: str) -> float:
        return len(jpegs) / statistics.median(seconds[decoder.name, what])

    reference = decoders[0]
    lines = [
        "| decoder | decode, images/s | with crop and resize | of Pillow's | decoded pixels | cropped pixels |",
        "|---|---:|---:|---:|---|---|",
    ]
    for decoder in decoders:
        decoded = [(decoder.decode(data), reference.decode(data)) for data in jpegs]
        cropped = [(decoder.crop(data, at), reference.crop(data, at)) for at, data in enumerate(jpegs)]
        ratio = rate(decoder, "crop") / rate(reference, "crop")
        lines.append(
            f"| {decoder.name} | {rate(decoder, 'decode'):,.0f} | {rate(decoder, 'crop'):,.0f} | {ratio:.2f} × "
            f"| {difference(decoded)} | {difference(cropped)} |"
        )
    return lines


def other_kinds() -> dict[str, bytes]:
    """Return JPEGs of the kinds that a crawl holds beside the common one, two of them damaged."""
    picture = draw_picture(SEED, 0, 301, 199)

    def save(image: Image.Image, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        return file.getvalue()

    common = encode(picture)
    middle = len(common) // 2
    return {
        "4:2:2": save(picture, subsampling="4:2:2"),
        "progressive": save(picture, progressive=True),
        "grey": save(picture.convert("L")),
        "CMYK": save(picture.convert("CMYK")),
        "bytes overwritten": common[:middle] + bytes(40) + common[middle + 40 :],
        "cut off": common[:middle],
    }


def compare_kinds(decoders: Sequence[Decoder], kinds: dict[str, bytes]) -> list[str]:
    """Decode every kind with every package's first decoder, and return a table of differences from the very first."""
    lines = [f"| decoder | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    packages: dict[str, Decoder] = {}
    for decoder in decoders:
        packages.setdefault(decoder.name.split(",")[0], decoder)
    for package, decoder in packages.items():
        cells = []
        for data in kinds.values():
            ours, reference = decode_or_none(decoder, data), decode_or_none(decoders[0], data)
            if ours is None or reference is None:
                cells.append("refused" if ours is None else "decoded")
            else:
                cells.append(difference([(ours, reference)]))
        lines.append(f"| {package} | {' | '.join(cells)} |")
    return lines


def decode_or_none(decoder: Decoder, data: bytes) -> np.ndarray | None:
    """Decode, or return None where the decoder refuses; each has errors of its own."""
    try:
        return decoder.decode(data)
    except Exception:
        return None


def difference(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Say how far pictures differ from the reference's: pixels that are the same, mean and largest difference."""
    if any(one.shape != other.shape for one, other in pairs):
        return "of another size"
    gaps = np.concatenate([np.abs(one.astype(np.int16) - other).reshape(-1, 3) for one, other in pairs])
    if not gaps.any():
        return "identical"
    same = (gaps == 0).all(axis=1).mean()
    return f"{same:.1%} same, off by {gaps.mean():.2f}, at most {gaps.max()}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every decoder at every size and subsampling, and print a table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 256], help="of the longer side (default: 512 256)"
    )
    parser.add_argument("--subsampling", nargs="+", default=["4:2:0", "4:4:4"], choices=["4:2:0", "4:2:2", "4:4:4"])
    parser.add_argument("--pictures", type=int, default=50, help="different pictures (default: 50)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repetitions (default: 7)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    decoders, missing = available()
    print(f"{machine('cpu')}; one thread each; load average {os.getloadavg()[0]:.1f} at the start")
    if missing:
        print(f"Not installed, so not measured: {', '.join(missing)}")
    for size in options.sizes:
        pictures = [draw_picture(SEED, number, size, round(ASPECT * size)) for number in range(options.pictures)]
        for subsampling in options.subsampling:
            jpegs = [encode(picture, subsampling) for picture in pictures]
            kilobytes = statistics.mean(map(len, jpegs)) / 1000
            print(f"\n{size} × {round(ASPECT * size)} px, {subsampling}, {kilobytes:.0f} kB:\n")
            print("\n".join(compare(decoders, jpegs, options.rounds)))
    print("\nOther kinds, decoded only:\n")
    print("\n".join(compare_kinds(decoders, other_kinds())))


if __name__ == "__main__":
    main()
