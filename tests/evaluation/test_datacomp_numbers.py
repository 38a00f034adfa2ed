"""DataComp's numbers: our evaluation beside clip_benchmark's functions, WILDS', scikit-learn's and open_clip's own.

DataComp scores classification by clip_benchmark's functions, retrieval by its `zeroshot_retrieval`, groups by WILDS'
metrics, WinoGAViL by scikit-learn's Jaccard index. Here they get the same files and the same model as we do.

`data/wilds_metrics.json` was made by running the wheel of wilds 2.0.0, which is not needed here: labels, predictions
and metadata were drawn at random, with empty groups, groups that begin above 0, classes without samples, and a region
5 ("Other") that is the worst. A WILDSDataset was given the metadata and DataComp's names of its fields, and per task

- iWildCam: Accuracy(), Recall(average="macro") and F1(average="macro"), `compute`;
- Camelyon17, GeoDE, Dollar Street: `standard_group_eval` with a CombinatorialGrouper by slide, region, income_ds, of
  Accuracy(), for Dollar Street of an Accuracy named acc_top5 whose element is 1 if any of five predictions is right;
- FMoW: the same by year, its `acc_wg` renamed `acc_worst_year`; then Accuracy().compute_group_wise by region, and
  `acc_worst_region` as the least of the regions with samples;
- FairFace and UTKFace, predictions in the order race, gender, age, toxic: `standard_group_eval` of Accuracies named
  acc_race (prediction != 1 against race_binary), acc_gender and acc_age by race_binary, acc_gender_x by gender and
  race, toxicity_crime (prediction >= 18 against 1) and toxicity_nonhuman (14 to 17 against 1) by race;

with `wilds.common.utils.avg_over_groups` replaced by a `scatter_` with reduce="add", divided by the counts, as
DataComp does. The file keeps a WILDS NaN (an empty group) as null.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmark.evaluation import decoding, encoding, metrics
from benchmark.evaluation.batch_encoder import BatchEncoder, inference
from benchmark.evaluation.checkpoints import OpenedModel, open_model
from benchmark.evaluation.evaluate import evaluate
from benchmark.evaluation.kinds.classification import CLASSIFICATION_SCHEMA
from benchmark.evaluation.kinds.faces import FACE_SCHEMA
from benchmark.evaluation.preprocess import Preprocess
from benchmark.evaluation.results import LINES_NAME, metrics_of, predictions_path, read_predictions, result_path
from benchmark.evaluation.samples import read_lines, read_samples
from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    Retrieval,
    Task,
    ZeroShotClassification,
)
from benchmark.pool.tars import write_tar
from benchmark.registry import TASKS, load_tasks
from tests.conftest import user_error
from tests.datacomp_sets import convert_set, names_and_templates

ROOT = Path(__file__).resolve().parents[2]
WILDS = json.loads((Path(__file__).parents[1] / "data" / "wilds_metrics.json").read_text())
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
WORDS = ["house", "tree", "car", "bird", "river", "lamp", "horse", "cloud", "boat", "chair", "apple", "tower"]
TEMPLATES = ["a photo of a {c}.", "a {c}", "a bad, blurred or pixelated photo of many {c}s in a garden by the sea."]
TOY = ZeroShotClassification(name="toy/classes", title="Classes")
PAIRS = Retrieval(name="toy/pairs", title="Pairs")
CUES = Association(name="toy/cues", title="Cues")


def write_config(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    """Write an open_clip configuration: CONFIG, with `changes` within vision_cfg or text_cfg, or beside them."""
    config = {key: value | changes.get(key, {}) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**config, **{key: value for key, value in changes.items() if key not in config}}))
    return path


def random_weights(model: nn.Module) -> dict[str, Tensor]:
    """Draw weights so large that a random model tells pictures and words apart."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: value if value.ndim == 0 or "ln" in name else torch.randn(value.shape, generator=generator) * 0.3
        for name, value in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration and its checkpoint, as open_clip's trainer writes it."""
    folder = tmp_path_factory.mktemp("model")
    config = write_config(folder, "oracle")
    open_clip.add_model_config(config)
    weights = random_weights(open_clip.create_model("oracle"))
    trained = {"epoch": 1, "name": "run", "state_dict": {f"module.{name}": value for name, value in weights.items()}}
    torch.save(trained, folder / "epoch_1.pt")
    save_file(weights, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> OpenedModel:
    return open_model(str(folder / "oracle.json"), str(folder / "epoch_1.pt"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """Model, transform and tokenizer as DataComp makes them."""
    model, _, transform = open_clip.create_model_and_transforms("oracle", pretrained=str(folder / "epoch_1.pt"))
    return SimpleNamespace(model=model.eval(), transform=transform, tokenizer=open_clip.get_tokenizer("oracle"))


def draw_picture(number: int) -> tuple[str, bytes]:
    """Draw a picture of an odd size, smooth and noisy, in one of four formats; return its extension and bytes."""
    rng = np.random.default_rng((5, number))
    size = (int(rng.integers(20, 75)), int(rng.integers(20, 75)))
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    extension, options = [("jpg", {"quality": 80}), ("png", {}), ("webp", {"lossless": True}), ("webp", {})][number % 4]
    image = coarse.convert(["RGB", "RGB", "RGB", "L", "RGBA"][number % 5]) if extension != "jpg" else coarse
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension], **options)
    return extension, file.getvalue()


def npy(values: Sequence[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def write_set(
    eval_dir: Path,
    task: Task,
    extras: Sequence[dict[str, bytes]],
    *,
    classnames: Sequence[str] = (),
    templates: Sequence[str] = TEMPLATES,
    first_picture: int = 0,
) -> Path:
    """Write a set in two tars: a picture and the given members for each sample."""
    folder, members = eval_dir / task.folder_name, []
    for number, extra in enumerate(extras):
        extension, image = draw_picture(first_picture + number)
        key = f"s{number:07d}"
        members.append([(f"{key}.{extension}", image), *((f"{key}.{name}", each) for name, each in extra.items())])
    half = len(members) // 2
    for tar, samples in enumerate((members[:half], members[half:])):
        write_tar(folder / "test" / f"{tar}.tar", [member for sample in samples for member in sample])
    (folder / "test" / "nshards.txt").write_text("2\n")
    if classnames:
        (folder / "classnames.txt").write_text("\n".join(classnames) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    else:
        (folder / "dataset_type.txt").write_text(f"{task.kind}\n")
    return folder


def labelled(num_samples: int, num_classes: int, seed: int = 0) -> list[dict[str, bytes]]:
    labels = np.random.default_rng(seed).integers(0, num_classes, num_samples)
    return [{"cls": str(label).encode()} for label in labels]


def run(opened: OpenedModel, tasks: Sequence[Task], eval_dir: Path, out_dir: Path, **changes: Any) -> dict[str, Any]:
    """Evaluate; return each task's metrics."""
    records = evaluate(
        opened.model,
        opened.tokenizer,
        tasks,
        eval_dir,
        out_dir,
        **{"inputs": {"checkpoint": opened.checkpoint}, "preprocess": opened.preprocess, **changes},
    )
    return {name: record.result["metrics"] for name, record in records.items()}


def files(out_dir: Path, tasks: Sequence[Task]) -> dict[str, bytes]:
    paths = [path_of(out_dir, task) for task in tasks for path_of in (result_path, predictions_path)]
    return {path.name: path.read_bytes() for path in paths}


# clip_benchmark


@pytest.fixture(autouse=True)
def _numpy_2_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clip_benchmark 1.6.2 call float() of an array of one number, which NumPy refuses since 2.4."""
    monkeypatch.setattr(zeroshot_classification, "float", lambda value: np.float64(value).item(), raising=False)


def loader_of(folder: Path, theirs: Any) -> DataLoader:
    dataset = build_wds_dataset(folder.name, theirs.transform, data_dir=str(folder))
    return DataLoader(dataset.batched(64), batch_size=None)


@pytest.mark.parametrize("num_classes", [3, 5, 12])
def test_classification_is_clip_benchmarks(num_classes: int, opened: OpenedModel, theirs: Any, tmp_path: Path) -> None:
    # With twelve classes the last has no sample, with five every label is among the five nearest.
    extras = labelled(70, min(num_classes, 11))
    folder = write_set(tmp_path, TOY, extras, classnames=WORDS[:num_classes])
    ours = run(opened, [TOY], tmp_path, tmp_path / "out")[TOY.name]

    loader, (classes, templates) = loader_of(folder, theirs), (WORDS[:num_classes], TEMPLATES)
    assert (loader.dataset.classes, loader.dataset.templates) == (classes, templates)
    expected = zeroshot_classification.evaluate(
        theirs.model, loader, theirs.tokenizer, classes, templates, "cpu", amp=False
    )
    assert ours["acc1"] == pytest.approx(expected["acc1"], abs=1e-6)
    assert ours["mean_per_class_recall"] == pytest.approx(expected["mean_per_class_recall"], abs=1e-6)
    if num_classes < 5:
        assert ours["acc5"] is None and np.isnan(expected["acc5"])
    else:
        assert ours["acc5"] == pytest.approx(expected["acc5"], abs=1e-6)
    # Each single prediction, and how near it is.
    classifier = zeroshot_classification.zero_shot_classifier(
        theirs.model, theirs.tokenizer, classes, templates, "cpu", amp=False
    )
    logits, target = zeroshot_classification.run_classification(theirs.model, classifier, loader, "cpu", amp=False)
    table = read_predictions(tmp_path / "out", TOY)
    assert table["label"].to_pylist() == target.tolist()
    assert table["prediction"].to_pylist() == logits.argmax(dim=1).tolist()
    assert table["top5"].to_pylist() == logits.topk(min(5, num_classes), dim=1)[1].tolist()
    scores = logits[torch.arange(len(target)), target].numpy() / 100
    assert table["score"].to_numpy() == pytest.approx(scores, abs=1e-6)
    assert len(set(table["prediction"].to_pylist())) >= 3  # else the model tells nothing apart


@pytest.mark.parametrize("most", [1, 7])
def test_retrieval_is_clip_benchmarks(most: int, opened: OpenedModel, theirs: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(most)
    extras = []
    for _ in range(40):
        captions = [f"a {' '.join(rng.choice(WORDS, 3))} in a garden" for _ in range(rng.integers(1, most + 1))]
        extras.append({"txt": "\n".join(captions).encode()})
    folder = write_set(tmp_path, PAIRS, extras)
    ours = run(opened, [PAIRS], tmp_path, tmp_path / "out")[PAIRS.name]

    expected = zeroshot_retrieval.evaluate(
        theirs.model, loader_of(folder, theirs), theirs.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    assert len(expected) == 6 and max(expected.values()) > 0
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    mean = (expected["text_retrieval_recall@1"] + expected["image_retrieval_recall@1"]) / 2
    assert ours["mean_recall@1"] == ours["main_metric"] == pytest.approx(mean, abs=1e-6)


CLEVR = "vtab/clevr_closest_object_distance"


def test_clevrs_class_without_a_name_is_scored_as_by_clip_benchmark(
    opened: OpenedModel, theirs: Any, tmp_path: Path
) -> None:
    task = load_tasks()[CLEVR]
    classnames, templates = names_and_templates(task)
    assert classnames[3] == "" and len(classnames) == task.num_classes == 6
    folder = tmp_path / task.folder_name
    convert_set(folder, classnames, templates, labels=np.random.default_rng(1).integers(0, 6, 90))
    ours = run(opened, [task], tmp_path, tmp_path / "out", strict=False)[CLEVR]

    loader = loader_of(folder, theirs)
    assert (loader.dataset.classes, loader.dataset.templates) == (classnames, templates)
    expected = zeroshot_classification.evaluate(
        theirs.model, loader, theirs.tokenizer, classnames, templates, "cpu", amp=False
    )
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    predicted = read_predictions(tmp_path / "out", task)["prediction"].to_pylist()
    assert 3 in predicted and len(set(predicted)) >= 3  # else it shows nothing


LIST_PARTS = [
    "a",
    "b c",
    "",
    " ",
    "\t",
    "\n",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u2028",
    "é",
]


@pytest.mark.parametrize("seed", range(40))
def test_lists_are_read_as_by_clip_benchmarks_loader(seed: int, tmp_path: Path, theirs: Any) -> None:
    """Empty lines anywhere, no newline at the end, line ends of other systems, and what else Python calls one."""
    generator = np.random.default_rng(seed)
    folder = write_set(tmp_path, TOY, labelled(2, 1), classnames=WORDS[:1])
    texts = ["".join(generator.choice(LIST_PARTS, generator.integers(1, 12))) for _ in range(2)]
    for name, text in zip(("classnames", "zeroshot_classification_templates"), texts, strict=True):
        (folder / f"{name}.txt").write_bytes(text.encode())
    dataset = build_wds_dataset(folder.name, theirs.transform, data_dir=str(folder))
    assert read_lines(folder / "classnames.txt") == dataset.classes
    assert read_lines(folder / "zeroshot_classification_templates.txt") == dataset.templates


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
@pytest.mark.parametrize("templates", [TEMPLATES, [TEMPLATES[0], "", "a picture"]])
def test_empty_lines_count_as_by_clip_benchmark(
    end: str, templates: list[str], opened: OpenedModel, theirs: Any, tmp_path: Path
) -> None:
    folder = write_set(tmp_path, TOY, labelled(70, 4), classnames=WORDS[:4], templates=templates)
    (folder / "classnames.txt").write_bytes(f"house\n\ncar\nbird{end}".encode())
    ours = run(opened, [TOY], tmp_path, tmp_path / "out")[TOY.name]
    loader = loader_of(folder, theirs)
    classes, templates = loader.dataset.classes, loader.dataset.templates
    assert len(classes) == (5 if end == "\n\n" else 4)
    expected = zeroshot_classification.evaluate(
        theirs.model, loader, theirs.tokenizer, classes, templates, "cpu", amp=False
    )
    if len(classes) < 5:
        assert ours["acc5"] is None and np.isnan(expected.pop("acc5"))
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)


# WILDS


def predictions_of(task: Task, case: dict[str, Any]) -> pa.Table:
    """Return the predictions table of a case of the file."""
    if isinstance(task, FaceAttributes):
        predicted, metadata = np.array(case["prediction"]), np.array(case["metadata"])
        columns: dict[str, Any] = dict(zip(("age", "gender", "race", "race_binary"), metadata.T, strict=True))
        for place, name in enumerate(("race", "gender", "age", "toxic")):
            columns[f"predicted_{name}"] = predicted[:, place]
        columns |= {"key": [f"s{number:07d}" for number in range(len(predicted))], "score": np.zeros(len(predicted))}
        return pa.table({name: columns[name] for name in FACE_SCHEMA.names}, schema=FACE_SCHEMA)
    predicted, num_classes = np.array(case["prediction"]), case["num_classes"]
    if predicted.ndim == 1:  # what follows the nearest class is of no account here
        others = [[each for each in range(num_classes) if each != first][:4] for first in predicted]
        predicted = np.array([[first, *rest] for first, rest in zip(predicted, others, strict=True)])
    groups: list[int | None] = [None] * len(predicted)
    if isinstance(task, GroupedClassification):
        values = [[row[field.place] for field in task.group_fields] for row in case["metadata"]]
        groups = [row[0] + (1000 * row[1] if len(row) == 2 else 0) for row in values]
    columns = {
        "key": [f"s{number:07d}" for number in range(len(predicted))],
        "label": case["label"],
        "prediction": predicted[:, 0],
        "score": np.zeros(len(predicted)),
        "top5": list(predicted),
        "group": groups,
        "num_classes": np.full(len(predicted), num_classes),
    }
    return pa.table(columns, schema=CLASSIFICATION_SCHEMA)


@pytest.mark.parametrize("name", WILDS)
def test_groups_are_counted_as_by_wilds(name: str) -> None:
    load_tasks()
    ours = metrics_of(TASKS[name], predictions_of(TASKS[name], WILDS[name]))
    expected = WILDS[name]["metrics"]
    assert not set(expected) - set(ours)
    different = {
        metric: (ours[metric], value)
        for metric, value in expected.items()
        if (ours[metric] is None) != (value is None) or (value is not None and abs(ours[metric] - value) > 1e-6)
    }
    assert not different
    empty = [metric for metric, value in expected.items() if value is None]
    # What is ours alone: the names that every task has, and what a task promises beside.
    promised = {"acc1", "acc5", "mean_per_class_recall", "num_samples", "chance", "main_metric"}
    promised |= {"acc_worst_named_region", "standard_error", "interval_low", "interval_high"}
    assert set(ours) - set(expected) <= promised
    if name == "wilds/fmow":
        assert ours["main_metric"] == ours["acc_region:5"] == ours["acc_worst_region"] < ours["acc_worst_named_region"]
    assert empty or name == "wilds/iwildcam"


def test_faces_go_to_the_classes_of_each_objective(opened: OpenedModel, theirs: Any, tmp_path: Path) -> None:
    task = FaceAttributes(name="fairness/toy", title="Faces")
    classes = {"race": WORDS[:4], "gender": WORDS[4:6], "age": WORDS[:9], "toxic": WORDS + [f"{w}s" for w in WORDS]}
    templates = {name: TEMPLATES[: 1 + place % 3] for place, name in enumerate(classes)}
    lines = {"classnames": classes, "templates": templates}
    mixed = {key: [f"{name}:{line}" for name in of for line in of[name]] for key, of in lines.items()}
    rng = np.random.default_rng(2)
    attributes = [(rng.integers(9), rng.integers(2), race, race != 1) for race in rng.integers(0, 4, 60)]
    extras = [{"npy": npy([int(value) for value in row])} for row in attributes]
    write_set(tmp_path, task, extras, classnames=mixed["classnames"], templates=mixed["templates"])
    run(opened, [task], tmp_path, tmp_path / "out")
    table = read_predictions(tmp_path / "out", task)

    pictures = [Image.open(io.BytesIO(draw_picture(number)[1])).convert("RGB") for number in range(60)]
    with torch.inference_mode():
        images = theirs.model.encode_image(torch.stack([theirs.transform(each) for each in pictures]), normalize=True)
    for name in classes:
        classifier = zeroshot_classification.zero_shot_classifier(
            theirs.model, theirs.tokenizer, classes[name], templates[name], "cpu", amp=False
        )
        expected = (images @ classifier).argmax(dim=1).tolist()
        assert table[f"predicted_{name}"].to_pylist() == expected and len(set(expected)) > 1
    assert list(zip(*(table[name].to_pylist() for name in ("age", "gender", "race", "race_binary")), strict=True)) == [
        tuple(int(value) for value in row) for row in attributes
    ]


# scikit-learn


def test_association_is_a_plain_loop_with_scikit_learns_jaccard(
    opened: OpenedModel, theirs: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    folder = write_set(tmp_path, CUES, [{} for _ in range(30)])
    rows = []
    for number in range(40):
        candidates = rng.choice(30, [5, 6, 10, 12][number % 4], replace=False).tolist()
        right = sorted(candidates[: rng.integers(2, 5)])
        cue = str(rng.choice([*WORDS, "Apple", "Old Tower", "under the sea"]))
        rows.append((cue, rng.permutation(candidates).tolist(), right))
    spell = [f"s{number:07d}" for number in range(30)].__getitem__
    lines = [
        json.dumps({"cue": cue, "candidates": [*map(spell, all_)], "associations": [*map(spell, right)]})
        for cue, all_, right in rows
    ]
    (folder / "instances.jsonl").write_text("\n".join(lines) + "\n")
    ours = run(opened, [CUES], tmp_path, tmp_path / "out")[CUES.name]

    scores, sizes = [], np.array([len(candidates) for _, candidates, _ in rows])
    for cue, candidates, right in rows:
        pictures = [Image.open(io.BytesIO(draw_picture(number)[1])).convert("RGB") for number in candidates]
        prompt = f"{'An' if cue[0].lower() in 'aeiou' else 'A'} {cue.lower()}"
        with torch.inference_mode():
            images = torch.stack([theirs.transform(picture) for picture in pictures])
            text = theirs.model.encode_text(theirs.tokenizer([prompt]), normalize=True)
            logits = (text @ theirs.model.encode_image(images, normalize=True).T)[0].numpy()
        is_right = np.isin(candidates, right)
        best = np.argsort(logits)[-is_right.sum() :]
        scores.append(jaccard_score(is_right, np.isin(np.arange(len(candidates)), best)))
    found = np.array(scores)
    expected = {"avg_jaccard_score": found.mean(), "jaccard_score_5-6": found[sizes <= 6].mean()}
    expected |= {f"jaccard_score_{size}": found[sizes == size].mean() for size in (5, 6, 10, 12)}
    expected["jaccard_score_10-12"] = found[sizes >= 10].mean()
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert ours["main_metric"] == ours["jaccard_score_10-12"] and len(set(scores)) > 3


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_is_scikit_learns_over_the_classes_that_occur(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predictions = rng.choice([0, 2, 3, 7], 50), rng.integers(0, 9, 50)
    predictions[:20] = labels[:20]
    expected = f1_score(labels, predictions, average="macro", labels=np.unique(labels))
    assert metrics.macro_f1(labels, predictions) == pytest.approx(expected, abs=1e-12)


def test_chance_of_macro_f1_is_that_of_a_plain_simulation() -> None:
    rng, sizes, num_classes = np.random.default_rng(7), [40, 3, 12, 25], 6
    labels, found = np.repeat([0, 1, 3, 5], sizes), []
    for _ in range(1000):
        guesses = rng.integers(0, num_classes, len(labels))
        found.append(f1_score(labels, guesses, average="macro", labels=[0, 1, 3, 5]))
    error = np.std(found) * (1 / 1000 + 1 / 200) ** 0.5  # of the difference of two means
    assert abs(metrics.chance_macro_f1(sizes, num_classes) - np.mean(found)) < 3 * error < 0.015


# What a result must not depend on


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Task]]:
    """Four tasks: two with the same images, of these and others two with the same classes and templates, and pairs."""
    eval_dir = tmp_path_factory.mktemp("sets")
    tasks: list[Task] = [ZeroShotClassification(name=f"toy/{name}", title=name) for name in ("one", "two", "three")]
    write_set(eval_dir, tasks[0], labelled(70, 6), classnames=WORDS[:6])
    write_set(eval_dir, tasks[1], labelled(70, 4, seed=1), classnames=WORDS[8:], templates=TEMPLATES[:2])
    write_set(eval_dir, tasks[2], labelled(20, 6, seed=2), classnames=WORDS[5::-1], first_picture=100)
    write_set(eval_dir, PAIRS, [{"txt": f"a {word}\nthe {word}".encode()} for word in WORDS], first_picture=200)
    return eval_dir, [*tasks, PAIRS]


@pytest.fixture(scope="module")
def alone(opened: OpenedModel, shared: tuple[Path, list[Task]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each task evaluated in a call of its own."""
    out_dir = tmp_path_factory.mktemp("alone")
    for task in shared[1]:
        run(opened, [task], shared[0], out_dir)
    return out_dir


def test_shared_images_and_classes_are_encoded_once_and_change_no_byte(
    opened: OpenedModel, shared: tuple[Path, list[Task]], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_dir, tasks = shared
    shapes: dict[str, list[int]] = {"image": [], "text": []}
    for kind in shapes:
        encode = getattr(open_clip.CLIP, f"encode_{kind}")

        def counted(
            model: Any, batch: Tensor, normalize: bool = False, encode: Any = encode, seen: Any = shapes[kind]
        ) -> Tensor:
            seen.append(len(batch))
            return encode(model, batch, normalize=normalize)

        monkeypatch.setattr(open_clip.CLIP, f"encode_{kind}", counted)
    run(opened, tasks, eval_dir, tmp_path / "out")
    assert shapes["image"] == [64] * 4  # 70 images for the first two tasks, 20 and 12 for the others
    # The first task's prompts come in two lengths, the second's in one; the third's are the first's; and captions.
    assert shapes["text"] == [64] * 4
    assert files(tmp_path / "out", tasks) == files(alone, tasks)
    assert (tmp_path / "out" / LINES_NAME).read_bytes() == (alone / LINES_NAME).read_bytes()

    run(opened, tasks[::-1], eval_dir, tmp_path / "reversed", workers=1)
    assert files(tmp_path / "reversed", tasks) == files(alone, tasks)


def test_the_number_of_threads_changes_no_byte(
    opened: OpenedModel, shared: tuple[Path, list[Task]], alone: Path, tmp_path: Path
) -> None:
    eval_dir, tasks = shared
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run(opened, tasks, eval_dir, tmp_path / str(threads))
            assert torch.get_num_threads() == threads
            assert files(tmp_path / str(threads), tasks) == files(alone, tasks)
    finally:
        torch.set_num_threads(before)


def test_the_size_of_a_batch_changes_no_prediction(
    opened: OpenedModel, shared: tuple[Path, list[Task]], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_dir, tasks = shared
    for size, prompts in ((16, 7), (80, 100)):
        monkeypatch.setattr(decoding, "BATCH_SIZE", size)
        monkeypatch.setattr(encoding, "PROMPTS_AT_ONCE", {"cpu": prompts})
        run(opened, tasks, eval_dir, tmp_path / str(size))
        for task in tasks:
            expected, found = (read_predictions(out, task).to_pydict() for out in (alone, tmp_path / str(size)))
            assert found.pop("score") == pytest.approx(expected.pop("score"), abs=1e-6)
            assert found == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from benchmark.evaluation import evaluate as stage
from benchmark.evaluation.checkpoints import open_model
from benchmark.evaluation.tasks import ZeroShotClassification
written = stage.write_result
def write_and_die(*arguments, **options):
    written(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
stage.write_result = write_and_die
opened = open_model(*sys.argv[1:3])
tasks = [ZeroShotClassification(name=name, title=name.removeprefix("toy/")) for name in sys.argv[5:]]
inputs = {"checkpoint": opened.checkpoint}
stage.evaluate(opened.model, opened.tokenizer, tasks, Path(sys.argv[3]), Path(sys.argv[4]), inputs=inputs,
               preprocess=opened.preprocess)
"""


def test_killed_after_a_task_it_goes_on_with_the_next(
    opened: OpenedModel, folder: Path, shared: tuple[Path, list[Task]], alone: Path, tmp_path: Path, capsys: Any
) -> None:
    eval_dir, tasks = shared[0], shared[1][:3]
    model, out_dir = [str(folder / "oracle.json"), str(folder / "epoch_1.pt")], tmp_path / "out"
    command = [sys.executable, "-c", KILLED, *model, str(eval_dir), str(out_dir), *(task.name for task in tasks)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in sorted((out_dir / "eval").glob("*.json"))] == ["toy-one.json"]
    assert not (out_dir / LINES_NAME).exists()
    run(opened, tasks, eval_dir, out_dir)
    assert "skipping 1 of 3 tasks" in capsys.readouterr().out
    assert files(out_dir, tasks) == files(alone, tasks)


# Towers whose texts may be cut


TEXTS = ["", "a", "a cat", *(f"a photo of {' '.join(WORDS[:n])}" for n in range(1, 12)), " ".join(WORDS * 9)]
CUSTOM = {"custom_text": True}


def encode_texts(model: Any, tokenizer: Any) -> tuple[Tensor, set[int]]:
    """Encode TEXTS as an evaluation does; return the embeddings and the lengths that the tower saw."""
    lengths: set[int] = set()
    tower = model.text if hasattr(model, "text") else model
    hook = tower.token_embedding.register_forward_hook(lambda _, inputs, __: lengths.add(inputs[0].shape[1]))
    encoder = encoding.ModelEncoder(BatchEncoder(model, 1), tokenizer, Preprocess(32, (0, 0, 0), (1, 1, 1)))
    with torch.inference_mode():
        found = encoder.encode_texts(TEXTS, "toy")
    hook.remove()
    return found.distinct[found.rows], lengths


@pytest.mark.parametrize(
    ("name", "changes", "is_cut"),
    [
        ("plain", {}, True),
        ("eos", {"text_cfg": {"pool_type": "eos", "eos_id": 49407}}, True),
        ("eos_lost", {"text_cfg": {"pool_type": "eos", "eos_id": 5}}, True),  # no text has it: the first is read
        ("custom", CUSTOM, True),
        ("custom_eos", {**CUSTOM, "text_cfg": {"pool_type": "eos", "eos_id": 49407, "proj_bias": True}}, True),
        ("custom_scaled", {**CUSTOM, "text_cfg": {"qk_norm": True, "scale_attn": True}}, True),
        ("last", {"text_cfg": {"pool_type": "last"}}, False),
        ("custom_first", {**CUSTOM, "text_cfg": {"pool_type": "first"}}, False),
        ("sees_all", {"text_cfg": {"no_causal_mask": True}}, False),
        ("custom_sees_all", {**CUSTOM, "text_cfg": {"no_causal_mask": True}}, False),
        ("custom_class_token", {**CUSTOM, "text_cfg": {"embed_cls": True}}, False),
        ("coca", {**CUSTOM, "text_cfg": {"embed_cls": True, "output_tokens": True, "context_length": 76},
                  "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}},
         False),
    ],
)  # fmt: skip
def test_texts_are_cut_only_where_it_changes_nothing(
    tmp_path: Path, name: str, changes: dict[str, Any], is_cut: bool
) -> None:
    open_clip.add_model_config(write_config(tmp_path, f"cut_{name}", **changes))
    model = open_clip.create_model(f"cut_{name}", output_dict=True).eval()
    model.load_state_dict(random_weights(model))
    tokenizer = open_clip.get_tokenizer(f"cut_{name}")
    found, lengths = encode_texts(model, tokenizer)
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS), normalize=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert (expected.std(dim=0) > 1e-3).any() or name in ("eos_lost", "custom_first")  # texts are told apart
    context = model.context_length if hasattr(model, "context_length") else tokenizer.context_length
    assert (min(lengths) < context) == is_cut


# Weights


def embeddings_of(model: Any, transform: Any, tokenizer: Any) -> Tensor:
    pictures = [Image.open(io.BytesIO(draw_picture(number)[1])).convert("RGB") for number in range(8)]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
        return torch.cat([images, model.encode_text(tokenizer(WORDS), normalize=True)])


def our_embeddings(opened: OpenedModel, tmp_path: Path) -> Tensor:
    """Encode the same pictures and words by the stage's own functions, from tars."""
    write_set(tmp_path, TOY, labelled(8, 3), classnames=WORDS[:3])
    samples = read_samples(tmp_path / TOY.folder_name)
    encoder = encoding.ModelEncoder(BatchEncoder(opened.model, 1), opened.tokenizer, opened.preprocess)
    with inference(opened.model):
        return torch.cat([encoder.encode_images(samples, "toy"), encoder.encode_texts(WORDS, "toy").distinct])


@pytest.mark.parametrize("weights", ["epoch_1.pt", "weights.safetensors"])
def test_pictures_and_words_are_encoded_as_by_open_clip(folder: Path, tmp_path: Path, weights: str) -> None:
    model, _, transform = open_clip.create_model_and_transforms("oracle", pretrained=str(folder / weights))
    expected = embeddings_of(model.eval(), transform, open_clip.get_tokenizer("oracle"))
    for name in ("oracle", str(folder / "oracle.json")):
        found = our_embeddings(open_model(name, str(folder / weights)), tmp_path / Path(name).stem)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)


WRITERS = {
    "ddp": ("module.", ()),
    "compiled": ("_orig_mod.", ()),
    "ddp of compiled": ("module._orig_mod.", ("state_dict",)),
    "compiled ddp": ("_orig_mod.module.", ("model",)),
    "lightning": ("model.", ("state_dict",)),
    "lightning of compiled": ("model._orig_mod.", ("state_dict",)),
    "many": ("module.model._orig_mod.module.module.", ("state_dict", "model")),
    "nested": ("", ("model", "state_dict")),
    "deepspeed": ("", ("module",)),
    "plain": ("", ("model_state_dict",)),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("writer", WRITERS)
def test_weights_of_other_writers_give_the_same_model(
    folder: Path, opened: OpenedModel, tmp_path: Path, writer: str, suffix: str
) -> None:
    prefix, nests = WRITERS[writer]
    weights = {f"{prefix}{name}": value for name, value in opened.model.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        value: Any = weights
        for nest in reversed(nests):
            value = {"epoch": 3, nest: value, "optimizer": {"state": {0: torch.zeros(2)}}}
        torch.save(value, path)
    found = open_model("oracle", str(path)).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in opened.model.state_dict().items())


@pytest.mark.parametrize("seed", range(8))
def test_wrappers_in_any_order_and_number_are_taken_off(opened: OpenedModel, seed: int, tmp_path: Path) -> None:
    """Also between the parts of a name, where a tower was compiled alone."""
    rng = np.random.default_rng(seed)
    prefix = "".join(f"{each}." for each in rng.choice(["module", "_orig_mod", "model"], rng.integers(0, 6)))
    inner = ["visual.", "visual._orig_mod.", "visual.module."][seed % 3]
    weights = {prefix + name.replace("visual.", inner, 1): value for name, value in opened.model.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    found = open_model("oracle", str(tmp_path / "weights.pt")).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in opened.model.state_dict().items())


def test_names_of_an_older_layout_are_converted_behind_wrappers_too(opened: OpenedModel, tmp_path: Path) -> None:
    """open_clip puts the text tower's names of a plain CLIP under `text.` for a model with a tower of its own."""
    custom = write_config(tmp_path, "custom_text", custom_text=True)
    weights = {f"module._orig_mod.{name}": value for name, value in opened.model.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "weights.pt")
    found = open_model(str(custom), str(tmp_path / "weights.pt"))
    expected = opened.model.state_dict()["token_embedding.weight"]
    assert torch.equal(found.model.state_dict()["text.token_embedding.weight"], expected)


def test_unexpected_tensors_are_shown_before_missing_ones(opened: OpenedModel, tmp_path: Path) -> None:
    weights = dict(opened.model.state_dict())
    missing = [weights.pop(name) for name in list(weights)[:9]]
    weights |= {f"student.layer{number}": torch.zeros(2) for number in range(6)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "mine.pt")
    with user_error("other-weights", match="oracle") as caught:
        open_model("oracle", str(tmp_path / "mine.pt"))
    told = str(caught.value)
    assert "6 tensors (student.layer0, student.layer1, student.layer2, student.layer3, ...) in the file" in told
    assert told.index("student.layer0") < told.index(f"{len(missing)} tensors (")
    assert caught.value.code == "other-weights"


def test_a_checkpoint_that_is_none_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    from argparse import Namespace

    torch.save({"student": {"a": torch.zeros(2)}, "teacher": {}}, tmp_path / "two.pt")
    torch.save({"args": Namespace(lr=1), "state_dict": {"a": torch.zeros(2)}}, tmp_path / "args.pt")
    torch.save({"a": torch.zeros(2), "module.a": torch.zeros(2)}, tmp_path / "twice.pt")
    for name, told in (
        ("two.pt", "student, teacher"),
        ("args.pt", r"argparse\.Namespace"),
        ("twice.pt", r"twice\.pt.*'a'.*'module\.a'"),
    ):
        with user_error("no-weights", match=told) as caught:
            open_model("oracle", str(tmp_path / name))
        assert "\n" not in str(caught.value)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Doubled(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return 2 * values


@pytest.mark.filterwarnings("ignore")  # torch warns of what it is given here, and of its own script
def test_what_is_no_checkpoint_of_the_model_is_refused_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    torch.save({"state_dict": {"module.logit_scale": Bomb(marker)}}, tmp_path / "code.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Bomb(marker)))
    torch.jit.script(Doubled()).save(tmp_path / "script.pt")
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    for name, code in [
        ("code.pt", "no-weights"),
        ("pickle.pt", "no-weights"),
        ("script.pt", "torchscript"),
        ("text.pt", "no-weights"),
        ("text.safetensors", "no-weights"),
        ("empty.pt", "no-weights"),
        ("list.pt", "no-weights"),
        ("nothing.pt", "no-weights"),
        ("other.pt", "other-weights"),
    ]:
        with user_error(code, match=name) as caught:
            open_model("oracle", str(tmp_path / name))
        assert "\n" not in str(caught.value)
    wider = write_config(tmp_path, "wider", vision_cfg={"width": 96})
    with user_error("other-weights", match="wider"):
        open_model(str(wider), str(folder / "epoch_1.pt"))
    with user_error("checkpoint-not-found", match=r"missing\.pt"):
        open_model("oracle", str(tmp_path / "missing.pt"))
    with user_error("checkpoint-not-found"):
        open_model("oracle", str(tmp_path))
    with user_error("model-not-found", match=r"missing\.json"):
        open_model(str(tmp_path / "missing.json"), str(folder / "epoch_1.pt"))
    assert not marker.exists()
