"""All 40 evaluation sets of DataComp in small: few images, in the layouts that they really have.

What clip_benchmark knows has its class names and templates and is written by its converter, as DataComp's sets are.
"""

import contextlib
import io
import json
from pathlib import Path
from unittest import mock

import clip_benchmark
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from clip_benchmark import webdataset_builder
from clip_benchmark.datasets.voc2007 import object_categories
from PIL import Image

from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    Retrieval,
    Task,
    ZeroShotClassification,
)
from benchmark.pool.tars import write_tar

IMAGES = 5
LISTS_DIR = Path(clip_benchmark.__file__).parent / "datasets"
CLASSNAMES = json.loads((LISTS_DIR / "en_classnames.json").read_text())
CLASSNAMES |= {"caltech101": CLASSNAMES["caltech101_vtab"], "voc2007": object_categories}
CLASSNAMES |= dict.fromkeys(("imagenet_sketch", "imagenetv2"), CLASSNAMES["imagenet1k"])
CLASSNAMES |= dict.fromkeys(("imagenet-a", "imagenet-o", "imagenet-r"), CLASSNAMES["imagenet1k"][:200])
TEMPLATES = json.loads((LISTS_DIR / "en_zeroshot_classification_templates.json").read_text())
OBJECTIVES = {"race": 7, "gender": 2, "age": 9, "toxic": 22}


def write_datacomp_sets(eval_dir: Path, tasks: list[Task], seed: int = 0) -> None:
    """Write a set for every task."""
    generator = np.random.default_rng(seed)
    for task in tasks:
        if isinstance(task, Retrieval | Association):
            _write_rows(eval_dir, task, generator)
        elif (known := names_and_templates(task)) is not None:
            convert_set(eval_dir / task.folder_name, *known, labels=generator.integers(len(known[0]), size=IMAGES))
        else:
            _write_folder(eval_dir / task.folder_name, task, generator)
    clevr = [eval_dir / f"wds_vtab-clevr_{name}_test" for name in ("count_all", "closest_object_distance")]
    if all(folder.exists() for folder in clevr):  # the same images
        _share_images(*clevr)


def names_and_templates(task: Task) -> tuple[list[str], list[str]] | None:
    """Return clip_benchmark's class names and templates; None where it has no names of the task's classes.

    Of the ImageNets with 200 classes it is other 200 than theirs, and of ImageNet's 80 templates the first three: all
    would take longer than the rest of the suite.
    """
    short = task.name.rpartition("/")[2]
    if not isinstance(task, ZeroShotClassification) or isinstance(task, GroupedClassification):
        return None
    if short not in CLASSNAMES:
        return None
    assert len(CLASSNAMES[short]) == task.num_classes, task.name
    templates = TEMPLATES["imagenet1k"][:3] if short.startswith("imagenet") else TEMPLATES[short]
    return CLASSNAMES[short], templates


def convert_set(folder: Path, classnames: list[str], templates: list[str], *, labels: np.ndarray) -> None:
    """Have clip_benchmark's converter write a classification set with random pictures."""
    generator = np.random.default_rng(len(classnames))
    pictures = [_picture(generator, "WEBP") for _ in labels]

    class Pictures(list):
        """A data set as the converter takes it."""

    pairs = Pictures(zip(pictures, map(int, labels), strict=True))
    pairs.classes, pairs.templates = classnames, templates
    loader = torch.utils.data.DataLoader

    def in_this_process(*arguments, **options):  # eight processes, as the converter asks for, take long to start
        return loader(*arguments, **{**options, "num_workers": 0})

    with mock.patch.object(torch.utils.data, "DataLoader", in_this_process), contextlib.redirect_stdout(io.StringIO()):
        webdataset_builder.convert_dataset(pairs, "test", str(folder), transform=None, image_format="webp")


def _picture(generator: np.random.Generator, form: str = "PNG") -> bytes:
    width, height = generator.integers(16, 40, size=2)
    file = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def _write_folder(folder: Path, task: Task, generator: np.random.Generator) -> None:
    members = []
    for number in range(IMAGES):
        key = f"s{number:07d}"
        members.append((f"{key}.webp", _picture(generator, "WEBP")))
        if isinstance(task, ZeroShotClassification):
            members.append((f"{key}.cls", str(generator.integers(task.num_classes)).encode()))
        vector = None
        if isinstance(task, FaceAttributes):
            race = int(generator.integers(7))
            vector = [int(generator.integers(9)), int(generator.integers(2)), race, int(race != 1)]
        elif isinstance(task, GroupedClassification):
            vector = generator.integers(0, 5, size=4)
        if vector is not None:
            file = io.BytesIO()
            np.save(file, np.array(vector))
            members.append((f"{key}.npy", file.getvalue()))
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    if isinstance(task, ZeroShotClassification):
        names = [f"kind {number}" for number in range(task.num_classes)]
        templates = TEMPLATES.get(task.name.rpartition("/")[2], ["a photo of a {c}."])
    else:
        names = [f"{name}:kind {number}" for name, count in OBJECTIVES.items() for number in range(count)]
        templates = [f"{name}:a photo of a {{c}} person." for name in OBJECTIVES]
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")


def _write_rows(eval_dir: Path, task: Task, generator: np.random.Generator) -> None:
    if isinstance(task, Retrieval):
        rows = [
            {
                "image": {"bytes": _picture(generator, "JPEG"), "path": f"{number}.jpg"},
                "caption": [f"picture {number} of {place}" for place in range(1 + number % 6)],
            }
            for number in range(IMAGES)
        ]
    else:
        names = [f"thing{number}" for number in range(12)]
        pictures = {name: {"bytes": _picture(generator, "JPEG"), "path": None} for name in names}
        rows = []
        for number, count in enumerate((5, 6, 10, 12, 12)):
            candidates = list(generator.permutation(names)[:count])
            rows.append(
                {
                    "cue": f"cue{number}",
                    "candidates": candidates,
                    "candidate_images": [pictures[name] for name in candidates],
                    "associations": candidates[: 2 + number % 3],
                }
            )
    folder = eval_dir / "hf_cache" / task.hub_rows.replace("/", "___") / ("0" * 40)
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    (folder / "download.json").write_text(json.dumps({}))


def _share_images(first: Path, second: Path) -> None:
    from benchmark.evaluation.samples import read_image, read_samples

    images = {sample.key: read_image(sample) for sample in read_samples(first)}
    members = []
    for sample in read_samples(second):
        members += [(f"{sample.key}.webp", images[sample.key]), (f"{sample.key}.cls", sample.labels["cls"])]
    write_tar(second / "test" / "0.tar", members)
