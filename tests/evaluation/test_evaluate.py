"""The evaluate stage on a toy encoder whose geometry is known: an image's embedding is its mean colour."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmark.evaluation import decoding
from benchmark.evaluation.checkpoints import _preprocess
from benchmark.evaluation.eval_sets import hash_eval_set, read_contents
from benchmark.evaluation.evaluate import evaluate
from benchmark.evaluation.kinds import retrieval
from benchmark.evaluation.kinds.association import read_instances
from benchmark.evaluation.preprocess import Preprocess, load_image
from benchmark.evaluation.results import check_main_metric, predictions_path, read_predictions, result_path
from benchmark.evaluation.samples import read_samples
from benchmark.evaluation.tasks import GroupedClassification, GroupField, Retrieval, Task, ZeroShotClassification
from benchmark.models.build import model_config
from benchmark.pool.tars import write_tar
from benchmark.registry import SUITES, load_tasks, register_task, tasks_named
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.records import Record
from tests.conftest import user_error

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
CONTEXT = 4  # words
AS_IT_IS = Preprocess(4, (0, 0, 0), (1, 1, 1))

CLASSES = ZeroShotClassification(name="toy/colours", title="Colours", groups=("accuracy",))
GROUPED = GroupedClassification(
    name="toy/grouped", title="Grouped", groups=("worst_group",), group_fields=(GroupField("group", 1),)
)
PAIRS = Retrieval(name="toy/pairs", title="Pairs", groups=("retrieval",))


class ToyEncoder(nn.Module):
    """Images by mean colour, texts by the colours that they name; words without colour weigh nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)  # shows whether it is evaluated in evaluation mode
        self.batch_sizes: list[int] = []

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        self.batch_sizes.append(len(image))
        return nn.functional.normalize(self.dropout(image.mean(dim=(2, 3))), dim=-1)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        table = torch.tensor([(0, 0, 0), *COLOURS.values()], dtype=torch.float32)
        return nn.functional.normalize(self.dropout(table[text].sum(dim=1)), dim=-1)


def toy_tokenizer(texts: list[str]) -> Tensor:
    """Give each colour its number, from 1, and other words 0; what is beyond CONTEXT words is cut off."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        for place, word in enumerate(text.split()[:CONTEXT]):
            row[place] = 1 + list(COLOURS).index(word) if word in COLOURS else 0
    return rows


def encode_png(colour: tuple[int, ...], size: tuple[int, int] = (4, 4), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def encode_npy(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values), allow_pickle=True)
    return file.getvalue()


def write_set(
    eval_dir: Path,
    task: Task,
    shards: Iterable[list[tuple[str, bytes]]],
    *,
    classnames: Iterable[str] = COLOURS,
    templates: Iterable[str] = ("a {c}", "{c} thing"),
) -> Path:
    folder = eval_dir / task.folder_name
    for number, members in enumerate(shards):
        write_tar(folder / "test" / f"{number}.tar", members)
    (folder / "test" / "nshards.txt").write_text(f"{number + 1}\n")
    if isinstance(task, Retrieval):
        (folder / "dataset_type.txt").write_text("retrieval\n")
    else:
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classnames))
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    return folder


def class_members(
    samples: Iterable[tuple[str, int]], start: int = 0, groups: list[int] | None = None
) -> list[tuple[str, bytes]]:
    members = []
    for number, (colour, label) in enumerate(samples):
        key = f"s{start + number:07d}"
        members += [(f"{key}.png", encode_png(COLOURS[colour])), (f"{key}.cls", str(label).encode())]
        if groups is not None:
            members.append((f"{key}.npy", encode_npy([9, groups[number]])))
    return members


# Label 3 on a red image is the one mistake.
SAMPLES = [("red", 0), ("green", 1), ("blue", 2), ("yellow", 3), ("red", 3)]


@pytest.fixture
def eval_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "eval_sets"
    write_set(folder, CLASSES, [class_members(SAMPLES[:3]), class_members(SAMPLES[3:], start=3)])
    write_set(folder, GROUPED, [class_members(SAMPLES, groups=[0, 0, 2, 2, 2])])
    pairs = [("red", "red"), ("green", "a green\nred green"), ("yellow", "red")]
    members = []
    for number, (colour, captions) in enumerate(pairs):
        members += [(f"s{number}.png", encode_png(COLOURS[colour])), (f"s{number}.txt", captions.encode())]
    write_set(folder, PAIRS, [members])
    return folder


TASKS = [CLASSES, GROUPED, PAIRS]


def run(
    eval_dir: Path, out_dir: Path, tasks: list[Task] = TASKS, *, model: nn.Module | None = None, **changes: Any
) -> dict[str, Record]:
    options: dict[str, Any] = {"preprocess": AS_IT_IS, "inputs": {"checkpoint": "c0"}}
    return evaluate(model or ToyEncoder(), toy_tokenizer, tasks, eval_dir, out_dir, **options | changes)


def contents(out_dir: Path) -> dict[str, bytes]:
    paths = [
        path for path in sorted(out_dir.rglob("*")) if path.is_file() and path.name not in (LOCK_NAME, "costs.jsonl")
    ]
    return {str(path.relative_to(out_dir)): path.read_bytes() for path in paths}


def test_classification_by_geometry(eval_dir: Path, tmp_path: Path) -> None:
    records = run(eval_dir, tmp_path / "out")
    predictions = read_predictions(tmp_path / "out", CLASSES).to_pydict()
    assert predictions["key"] == [f"s{number:07d}" for number in range(5)]
    assert predictions["label"] == [0, 1, 2, 3, 3]
    assert predictions["prediction"] == [0, 1, 2, 3, 0]
    # Red and yellow are 45 degrees apart; green and blue both stand at right angles to red, the smaller index first.
    assert predictions["score"] == pytest.approx([1, 1, 1, 1, 0.5**0.5])
    assert predictions["top5"][0] == [0, 3, 1, 2]
    assert predictions["group"] == [None] * 5
    assert records["toy/colours"].result["metrics"] == {
        "acc1": 0.8,
        "acc5": None,
        "mean_per_class_recall": 0.875,
        "num_samples": 5,
        "chance": 0.25,
        "main_metric": 0.8,
        "standard_error": pytest.approx((0.8 * 0.2 / 5) ** 0.5),
        "interval_low": pytest.approx(0.375535, abs=1e-6),
        "interval_high": pytest.approx(0.963776, abs=1e-6),
    }


def test_worst_group_reads_its_field(eval_dir: Path, tmp_path: Path) -> None:
    metrics = run(eval_dir, tmp_path / "out")["toy/grouped"].result["metrics"]
    assert metrics["acc_group:0"] == 1.0
    assert metrics["acc_wg"] == metrics["main_metric"] == pytest.approx(2 / 3)


def test_retrieval_by_geometry(eval_dir: Path, tmp_path: Path) -> None:
    # Images red, green, yellow; captions: red (0), green (1), yellow by its mixture (1), red (2).
    run(eval_dir, tmp_path / "out")
    rows = read_predictions(tmp_path / "out", PAIRS).to_pydict()
    assert rows["key"] == ["s0", "s1", "s2", "s0", "s1", "s1", "s2"]
    assert rows["caption"] == [None, None, None, 0, 0, 1, 0]
    assert rows["num_positives"] == [1, 2, 1, 1, 1, 1, 1]
    # Yellow's caption "red" ties with "green" and with the other "red", both of smaller index.
    assert rows["rank"][:3] == [1, 1, 4]
    # "red" is nearest to the red image; "red green" to the yellow one, then to red by its index, then to green.
    assert rows["rank"][3:] == [1, 1, 3, 2]


def test_the_average_of_prompts_is_normalised_before_and_after(tmp_path: Path) -> None:
    # "c red" is red, "c c" longer than it; without the first normalisation, the second template would weigh double.
    write_set(tmp_path, CLASSES, [class_members([("blue", 0)])], classnames=["blue"], templates=["red {c}", "{c} {c}"])
    run(tmp_path, tmp_path / "out", [CLASSES])
    one, two = np.array([1, 0, 1]) / 2**0.5, np.array([0, 0, 1])
    expected = (one + two) / np.linalg.norm(one + two)
    assert read_predictions(tmp_path / "out", CLASSES)["score"].to_pylist() == pytest.approx([expected[2]])


def test_results_do_not_depend_on_the_batch_size(
    eval_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(eval_dir, tmp_path / "a")
    for size in (1, 2, 3):
        monkeypatch.setattr(decoding, "BATCH_SIZE", size)
        monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", size)
        run(eval_dir, tmp_path / str(size))
        for task in TASKS:
            ours, others = (read_predictions(tmp_path / name, task).to_pydict() for name in ("a", str(size)))
            assert others.pop("score") == pytest.approx(ours.pop("score"))
            assert others == ours


def test_every_batch_is_full(eval_dir: Path, tmp_path: Path) -> None:
    model = ToyEncoder()
    run(eval_dir, tmp_path / "out", model=model)
    assert set(model.batch_sizes) == {64}


def test_worker_processes_change_nothing(eval_dir: Path, tmp_path: Path) -> None:
    run(eval_dir, tmp_path / "a", [CLASSES])
    run(eval_dir, tmp_path / "b", [CLASSES], workers=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_model_and_generator_come_back_as_they_were(eval_dir: Path, tmp_path: Path) -> None:
    model = ToyEncoder().train()
    before = torch.get_rng_state()
    run(eval_dir, tmp_path / "out", model=model)
    assert model.training
    assert model.dropout.training
    assert torch.equal(torch.get_rng_state(), before)


def test_second_call_skips(eval_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(eval_dir, tmp_path / "out")
    before = contents(tmp_path / "out")
    model = ToyEncoder()
    assert run(eval_dir, tmp_path / "out", model=model) == first
    assert model.batch_sizes == []
    assert contents(tmp_path / "out") == before
    assert "evaluate: up to date, skipping 3 of 3 tasks" in capsys.readouterr().out


@pytest.mark.parametrize("path_of", [result_path, predictions_path])
def test_a_lost_file_is_made_again_alone(eval_dir: Path, tmp_path: Path, path_of: Callable[[Path, Task], Path]) -> None:
    run(eval_dir, tmp_path / "out")
    before = contents(tmp_path / "out")
    path_of(tmp_path / "out", GROUPED).unlink()
    (tmp_path / "out" / "eval" / "toy-grouped.parquet.tmp").write_bytes(b"half")
    model = ToyEncoder()
    run(eval_dir, tmp_path / "out", model=model)
    assert len(model.batch_sizes) == 1
    assert contents(tmp_path / "out") == before


def test_results_of_another_model_are_not_reused(eval_dir: Path, tmp_path: Path) -> None:
    run(eval_dir, tmp_path / "out")
    with user_error("record-differs", match='checkpoint.*"c0".*"c1"'):
        run(eval_dir, tmp_path / "out", inputs={"checkpoint": "c1"})


def test_another_models_results_are_refused_beside_those_of_other_tasks(eval_dir: Path, tmp_path: Path) -> None:
    run(eval_dir, tmp_path / "out", [CLASSES])
    before = contents(tmp_path / "out")
    model = ToyEncoder()
    with user_error("record-differs", match=r'toy-colours\.json.*checkpoint.*"c0".*"c1"'):
        run(eval_dir, tmp_path / "out", [GROUPED], model=model, inputs={"checkpoint": "c1"})
    assert model.batch_sizes == []
    assert contents(tmp_path / "out") == before


def test_results_on_other_data_are_not_reused(eval_dir: Path, tmp_path: Path) -> None:
    run(eval_dir, tmp_path / "out")
    (eval_dir / CLASSES.folder_name / "zeroshot_classification_templates.txt").write_text("{c}")
    with user_error("record-differs", match=r"toy-colours\.json\): data"):
        run(eval_dir, tmp_path / "out")


def test_results_of_an_older_task_are_not_reused(eval_dir: Path, tmp_path: Path) -> None:
    run(eval_dir, tmp_path / "out")
    with user_error("record-differs", match="task_version"):
        run(eval_dir, tmp_path / "out", [replace(CLASSES, version=2)])


def test_another_main_metric_is_taken_from_the_predictions_that_are_there(eval_dir: Path, tmp_path: Path) -> None:
    run(eval_dir, tmp_path / "out", [CLASSES])
    model = ToyEncoder()
    by_class = replace(CLASSES, main_metric="mean_per_class_recall")
    assert (
        run(eval_dir, tmp_path / "out", [by_class], model=model)["toy/colours"].result["metrics"]["main_metric"]
        == 0.875
    )
    assert model.batch_sizes == []
    assert '"main_metric": 0.875' in (tmp_path / "out" / "eval_results.jsonl").read_text()


def test_a_main_metric_that_there_is_not_is_named_before_anything_is_encoded(eval_dir: Path, tmp_path: Path) -> None:
    model = ToyEncoder()
    with user_error("task-invalid", match=r"'toy/grouped'.*'acc_worst'.*\['acc1', 'acc5', 'acc_wg'"):
        run(eval_dir, tmp_path / "out", [CLASSES, replace(GROUPED, main_metric="acc_worst")], model=model)
    assert model.batch_sizes == []


def test_every_task_that_is_shipped_has_a_main_metric_of_its_kind() -> None:
    for task in load_tasks().values():
        check_main_metric(task)


def test_two_tasks_with_the_same_result_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.registry.TASKS", {CLASSES.name: CLASSES})
    with user_error("name-taken", match="'toy/colours' and 'toy-colours'"):
        register_task(replace(CLASSES, name="toy-colours"))


def test_lines_hold_every_task_evaluated_so_far(eval_dir: Path, tmp_path: Path) -> None:
    for task in TASKS:
        run(eval_dir, tmp_path / "one by one", [task])
    run(eval_dir, tmp_path / "together")
    assert contents(tmp_path / "one by one") == contents(tmp_path / "together")
    assert (tmp_path / "together" / "eval_results.jsonl").read_text().count("\n") == 3


def test_all_that_is_missing_is_listed_at_once(eval_dir: Path, tmp_path: Path) -> None:
    folder = eval_dir / CLASSES.folder_name
    (folder / "classnames.txt").unlink()
    (folder / "test" / "1.tar").unlink()
    (eval_dir / PAIRS.folder_name / "test" / "nshards.txt").unlink()
    absent = ZeroShotClassification(name="toy/absent", title="Absent")
    with user_error("eval-set-missing", match="3 of 4") as caught:
        run(eval_dir, tmp_path / "out", [*TASKS, absent])
    for name in (
        "colours_test/classnames.txt",
        "colours_test/test/1.tar",
        "pairs_test/test/nshards.txt",
        "absent_test",
    ):
        assert f"wds_toy-{name}" in str(caught.value)
    assert not (tmp_path / "out").exists()


PNG = encode_png((1, 2, 3))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("s0.png", PNG)], r"'s0' .*\.cls"),
        ([("s0.png", PNG), ("s0.cls", b"4")], r"s0.cls .*'4'; .*0\.\.3"),
        ([("s0.png", PNG), ("s0.cls", b"-1")], "s0.cls .*'-1'"),
        ([("s0.png", PNG), ("s0.cls", b"red")], "s0.cls .*'red'"),
        ([("s0.cls", b"0")], "'s0.cls' .*jpg"),
        ([("s0.png", PNG), ("s0.cls", b"0"), ("s0.png", PNG)], "'s0' .*after 's0.png'"),
        ([("s0.png", PNG), ("s0.jpg", PNG), ("s0.cls", b"0")], "'s0' .*after 's0.png'"),
        ([("s0.png", PNG[:50]), ("s0.cls", b"0")], "'s0.png' .*decoded"),
        ([("s0.png", b"no image"), ("s0.cls", b"0")], "'s0.png' .*decoded"),
        ([("s0.png", encode_png((1,), (4096, 4096), "1")), ("s0.cls", b"0")], "'s0.png' .*4096 x 4096"),
        (
            [("s0.png", encode_png((1,), (1, 3_000_000), "1")), ("s0.cls", b"0")],
            "'s0.png' .*4 x 12000000",
        ),
        ([("s0.png", PNG), ("s0.cls", b"0" * (1 << 20) + b"1")], "1048577 .*1048576"),
        ([], "no samples"),
    ],
)
def test_a_damaged_sample_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[tuple[str, bytes]], message: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4096 * 4095)
    write_set(tmp_path, CLASSES, [members])
    with user_error("eval-set-invalid", match=f"wds_toy-colours_test.*{message}"):
        run(tmp_path, tmp_path / "out", [CLASSES])


def test_a_key_in_two_tars_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, CLASSES, [class_members([("red", 0)]), class_members([("red", 0)])])
    with user_error("eval-set-invalid", match=r"1\.tar.*'s0000000'"):
        run(tmp_path, tmp_path / "out", [CLASSES])


def test_samples_come_in_key_order_whatever_the_order_in_the_tars(tmp_path: Path) -> None:
    write_set(tmp_path, CLASSES, [class_members(SAMPLES[3:], start=3), class_members(SAMPLES[:3])])
    run(tmp_path, tmp_path / "out", [CLASSES])
    assert read_predictions(tmp_path / "out", CLASSES)["label"].to_pylist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("size", [700, 1024, 2048])
def test_a_tar_cut_short_is_named(eval_dir: Path, tmp_path: Path, size: int) -> None:
    # Within a member, between two members of a sample, between two samples.
    path = eval_dir / CLASSES.folder_name / "test" / "1.tar"
    path.write_bytes(path.read_bytes()[:size])
    with user_error("eval-set-invalid", match=r"1\.tar"):
        run(eval_dir, tmp_path / "out", [CLASSES])


@pytest.mark.parametrize(
    ("npy", "message"),
    [
        (encode_npy([1]), "1 of int64; .*1 "),
        (encode_npy([0.0, 1.0]), "2 of float64"),
        (encode_npy([0, -1]), " -1;"),
        (encode_npy([0, 1_700_000_000]), "1700000000"),
        (encode_npy([0, {}]), "s0.npy .*Object arrays"),
        (b"junk", "s0.npy"),
        (None, r"'s0' .*\.npy"),
    ],
)
def test_a_group_that_cannot_be_read_is_named(tmp_path: Path, npy: bytes | None, message: str) -> None:
    members = [("s0.png", PNG), ("s0.cls", b"0")] + ([] if npy is None else [("s0.npy", npy)])
    write_set(tmp_path, GROUPED, [members])
    with user_error("eval-set-invalid", match=message):
        run(tmp_path, tmp_path / "out", [GROUPED])


@pytest.mark.parametrize(("candidates", "associations"), [([["a"], "b"], ["b"]), (["a", "b"], [["a"]]), ([1], [1])])
def test_a_question_whose_keys_are_no_texts_is_named(
    tmp_path: Path, candidates: list[object], associations: list[object]
) -> None:
    path = tmp_path / "instances.jsonl"
    path.write_text(json.dumps({"cue": "sun", "candidates": candidates, "associations": associations}))
    with user_error("eval-set-invalid", match="line 1"):
        read_instances(path, {"a", "b"})


def test_a_pair_without_caption_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, PAIRS, [[("s0.png", PNG), ("s0.txt", b"\n")]])
    with user_error("eval-set-invalid", match=r"s0\.txt"):
        run(tmp_path, tmp_path / "out", [PAIRS])


def test_a_template_without_place_for_the_class_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, CLASSES, [class_members(SAMPLES)], templates=["a {}"])
    with user_error("eval-set-invalid", match=r"zeroshot_classification_templates.txt: 'a \{\}'"):
        run(tmp_path, tmp_path / "out", [CLASSES])


def test_an_editors_mark_before_the_first_class_is_no_part_of_it(eval_dir: Path, tmp_path: Path) -> None:
    path = eval_dir / CLASSES.folder_name / "classnames.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run(eval_dir, tmp_path / "out", [CLASSES])["toy/colours"].result["metrics"]["acc1"] == 0.8


@pytest.mark.parametrize(
    ("text", "known", "said"),
    [
        ("red\n\nblue\nyellow\n", None, "line 2 of 4 is empty"),
        ("red\ngreen\nblue\nyellow\n\n", None, "line 5 of 5 is empty"),
        ("red\n\nblue\nyellow\n", 4, None),  # as it is known to be
        ("red\ngreen\nblue\nyellow", None, None),
    ],
)
def test_a_class_without_a_name_counts_and_is_told_of(
    eval_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, known: int | None, said: str | None
) -> None:
    (eval_dir / CLASSES.folder_name / "classnames.txt").write_text(text)
    run(eval_dir, tmp_path / "out", [replace(CLASSES, num_classes=known)])
    counted = read_predictions(tmp_path / "out", CLASSES)["num_classes"][0].as_py()
    assert counted == len(text.splitlines())
    told = capsys.readouterr().err
    assert (said in told) if said else "empty" not in told


def test_a_template_that_is_the_same_for_every_class_is_told_of(
    eval_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (eval_dir / CLASSES.folder_name / "zeroshot_classification_templates.txt").write_text("a {c}\n\nred thing\n")
    run(eval_dir, tmp_path / "out", [CLASSES])
    assert "2 of 3 lines have no {c}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_a_list_without_a_line_is_named(eval_dir: Path, tmp_path: Path, name: str) -> None:
    (eval_dir / CLASSES.folder_name / name).write_text("")
    with user_error("eval-set-invalid", match=f"{name}") as caught:
        run(eval_dir, tmp_path / "out")
    assert caught.value.code == "eval-set-invalid" and list(caught.value.unreadable) == ["toy/colours"]
    assert caught.value.out_dir == tmp_path / "out"
    assert not result_path(tmp_path / "out", CLASSES).exists() and result_path(tmp_path / "out", PAIRS).exists()


def test_class_names_that_are_not_utf8_are_named(eval_dir: Path, tmp_path: Path) -> None:
    (eval_dir / CLASSES.folder_name / "classnames.txt").write_bytes("vert\ngrün\n".encode("latin-1"))
    with user_error("eval-set-invalid", match=r"classnames\.txt.*UTF-8"):
        run(eval_dir, tmp_path / "out", [CLASSES])


def test_a_model_gone_to_nan_is_an_error(eval_dir: Path, tmp_path: Path) -> None:
    with user_error("model-unfit", match="'s0000000'"):
        run(eval_dir, tmp_path / "out", [CLASSES], preprocess=Preprocess(4, (float("nan"), 0, 0), (1, 1, 1)))


def test_prompts_that_fill_the_context_are_counted_once(
    eval_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    templates = "a {c}\nwith as many words {c}\n{c} {c} {c} {c}"
    (eval_dir / CLASSES.folder_name / "zeroshot_classification_templates.txt").write_text(templates)
    run(eval_dir, tmp_path / "out", [CLASSES])
    assert capsys.readouterr().err.count("4 prompts or captions fill the model's whole context") == 1


def test_a_tokenizer_may_pad_with_another_token_than_0(
    eval_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokenizer(texts: list[str]) -> Tensor:  # 5 pads, and counts for a word without colour
        tokens = toy_tokenizer(texts)
        return torch.where(tokens == 0, 5, tokens)

    class Padded(ToyEncoder):
        def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
            return super().encode_text(torch.where(text == 5, 0, text), normalize)

    options: dict[str, Any] = {"preprocess": AS_IT_IS, "inputs": {"checkpoint": "c0"}}
    records = evaluate(Padded(), tokenizer, [CLASSES], eval_dir, tmp_path / "out", **options)
    assert records["toy/colours"].result["metrics"]["acc1"] == 0.8
    assert "context" not in capsys.readouterr().err


def test_the_hash_of_a_set_sees_every_file_that_is_read(eval_dir: Path) -> None:
    folder = eval_dir / CLASSES.folder_name
    hashes = {hash_eval_set(CLASSES, folder)}
    (folder / "README.md").write_text("not read")
    assert hash_eval_set(CLASSES, folder) in hashes
    for name in ("classnames.txt", "zeroshot_classification_templates.txt", "test/0.tar"):
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        hashes.add(hash_eval_set(CLASSES, folder))
    assert len(hashes) == 4


def test_the_contents_of_a_set_are_kept_by_one_process_at_a_time(
    eval_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))
    with ThreadPoolExecutor(1) as other:
        with locked(tmp_path / "cache" / "evalsets"):
            asked = other.submit(read_contents, CLASSES, eval_dir / CLASSES.folder_name, "hash")
            with pytest.raises(TimeoutError):
                asked.result(timeout=0.5)
        assert asked.result().num_samples == 5


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("mode", "size"), [("RGB", (32, 32)), ("RGB", (50, 37)), ("L", (20, 90)), ("P", (33, 32))])
def test_images_come_out_as_from_open_clip(
    tmp_path: Path, mode: str, size: tuple[int, int], interpolation: str, resize_mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    write_set(tmp_path, CLASSES, [[("s0.png", file.getvalue()), ("s0.cls", b"0")]])
    sample = read_samples(tmp_path / CLASSES.folder_name)[0]
    options = {"interpolation": interpolation, "resize_mode": resize_mode}
    transform = open_clip.image_transform(32, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3, **options)
    preprocess = Preprocess(32, (0.5,) * 3, (0.25,) * 3, **options)
    expected = transform(image.convert("RGB"))
    found = (torch.from_numpy(load_image(sample, preprocess)).permute(2, 0, 1).float().div(255) - 0.5) / 0.25
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("model", "checkpoint", "mean"),
    [
        # A scale trains ViT-L-14 with OpenAI's mean; these weights were trained with another.
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5),
        ("ViT-L-14", "datacomp_xl_s13b_b90k", 0.48145466),
        ("ViT-L-14", "a/file.pt", 0.48145466),
    ],
)
def test_images_are_prepared_as_for_the_named_weights(model: str, checkpoint: str, mean: float) -> None:
    assert _preprocess(model, model_config(model), checkpoint).mean[0] == mean


@pytest.mark.parametrize(
    ("model", "checkpoint", "said"),
    [
        ("ViT-L-14", "a/file.pt", "open_clip does so in several ways: mean (0.48145466"),
        ("ViT-L-14", "laion2b_s32b_b82k", ""),
        ("ViT-B-32", "a/file.pt", ""),  # all names agree
        ("pico_cnn", "a/file.pt", ""),  # a scale says it
        ("RN50-quickgelu", "a/file.pt", ""),
        ("nllb-clip-base", "a/file.pt", ""),
        ("ViT-S-32", "a/file.pt", "the configuration does not say: mean (0.48145466"),
    ],
)
def test_a_file_whose_preparation_is_assumed_is_warned_about(
    model: str, checkpoint: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _preprocess(model, model_config(model), checkpoint)
    told = capsys.readouterr().err
    assert said in told and bool(said) == bool(told)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    members = [("s0.png", encode_png((200, 100, 50, 0), mode="RGBA")), ("s0.cls", b"0")]
    write_set(tmp_path, CLASSES, [members])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(read_samples(tmp_path / CLASSES.folder_name)[0], AS_IT_IS)
    assert image.reshape(-1, 3).tolist() == [[200, 100, 50]] * 16


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    members = []
    for number, options in enumerate(({}, {"exif": exif})):
        file = io.BytesIO()
        ramp.save(file, "JPEG", **options)
        members += [(f"s{number}.jpg", file.getvalue()), (f"s{number}.cls", b"0")]
    write_set(tmp_path, CLASSES, [members])
    plain, turned = (
        load_image(sample, replace(AS_IT_IS, image_size=8)) for sample in read_samples(tmp_path / CLASSES.folder_name)
    )
    assert np.array_equal(plain, turned)


def test_the_embedded_suites_are_registered() -> None:
    load_tasks()
    for prefix in ("nano", "pico"):
        tasks = tasks_named([prefix], prefix)
        assert [task.name for task in tasks] == list(SUITES[prefix].tasks)
        assert [task.name.removeprefix(f"{prefix}/") for task in tasks] == [
            "shapes", "letters", "colours", "counting", "position", "shapes_sketch", "shapes_background",
            "association",
            "digits", "pictograms", "textures", "vehicles", "pictograms_designer", "shapes_corrupted", "retrieval",
            "worst_group",
        ]  # fmt: skip
        assert SUITES[prefix].headline == SUITES[prefix].tasks[8:]
        assert {task.groups for task in tasks} == {("accuracy",), ("shift",), ("retrieval",), ("worst_group",)}
