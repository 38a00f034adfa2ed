"""The evaluate stage: score a model zero-shot on tasks, each sample's prediction kept (Radford et al. 2021, Sec. 3.1).

Images and prompts go through the model in float32 and in batches of one fixed size, the last one padded, so a result
does not depend on what else is evaluated. Evaluation sets lie in the webdataset layout of CLIP_benchmark and DataComp:

    wds_<task>_test/classnames.txt                          one class a line (classification)
    wds_<task>_test/zeroshot_classification_templates.txt   one prompt a line, {c} stands for the class
    wds_<task>_test/dataset_type.txt                        "retrieval" or "association"
    wds_<task>_test/instances.jsonl                         one cue a line, with keys of images (association)
    wds_<task>_test/test/nshards.txt                        how many tars there are
    wds_<task>_test/test/0.tar, 1.tar, ...                  <key>.{webp,png,jpg}, <key>.cls, <key>.npy, <key>.txt
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmark import metrics
from benchmark.results import (
    ASSOCIATION_SCHEMA,
    CLASSIFICATION_SCHEMA,
    EVAL_FOLDER,
    GROUP_RADIX,
    IMAGE_TO_TEXT,
    RETRIEVAL_SCHEMA,
    STAGE,
    TEXT_TO_IMAGE,
    TOP,
    VERSION,
    predictions_path,
    result_path,
    write_lines,
    write_result,
)
from benchmark.stage import Json, Record, finished, locked, remove_temporary, say, sha256_of, warn
from benchmark.tars import IMAGE_FORMATS, Member, iter_members
from benchmark.tasks import Association, GroupedClassification, Retrieval, Task, ZeroShotClassification

BATCH_SIZE = 64  # images or prompts; DataComp's
QUERIES_AT_ONCE = 1024  # rows of a similarity matrix that are ranked together, to bound memory
MAX_IMAGE_BYTES = 64 << 20
MAX_LABEL_BYTES = 1 << 20  # of a .cls, .npy or .txt

LIST_NAMES = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", "instances.jsonl")

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Sample:
    """One sample of an evaluation set; its image stays in the tar until it is needed."""

    key: str
    image_name: str  # of the tar's member
    tar_path: Path
    offset: int  # of the image, in bytes
    size: int
    labels: dict[str, bytes]  # extension (cls, npy, txt) -> contents


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    eval_dir: Path,
    out_dir: Path,
    *,
    made_from: dict[str, Json],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: str = "cpu",
    workers: int = 0,
) -> dict[str, Record]:
    """Evaluate `model` (open_clip's `encode_image` and `encode_text`) and return each task's record, by task name.

    Writes what `benchmark.results` describes below `out_dir`. `made_from` says which model this is; each record adds
    its task, the hash of its data, and the preprocessing. A task that has its result is skipped. `workers` processes
    decode images; they do not change the result.

    Raises FileNotFoundError that lists everything missing before any work begins, ValueError where a result there was
    made from something else, or where data is damaged.
    """
    check_eval_sets(tasks, eval_dir)
    model.to(device)
    evaluator = _Evaluator(model, tokenizer, image_size, tuple(mean), tuple(std), device, workers)
    with locked(out_dir / EVAL_FOLDER):
        remove_temporary(out_dir / EVAL_FOLDER)
        sources = {task.name: _made_from(task, eval_dir, made_from, image_size, mean, std) for task in tasks}
        records: dict[str, Record] = {}
        for task in tasks:
            record = finished(result_path(out_dir, task), STAGE, VERSION, sources[task.name])
            path = predictions_path(out_dir, task)
            if record is not None and path.exists():
                if sha256_of(path) != record.result["predictions"]:
                    raise ValueError(f"{path} was changed after it was made; delete it to have it made again")
                records[task.name] = record
        if records:
            say(f"evaluate: as before, {len(records)} of {len(tasks)} tasks ({out_dir / EVAL_FOLDER})")
        missing = [task for task in tasks if task.name not in records]
        with _inference(model):
            for task in tqdm(missing, desc="evaluate", unit="task", disable=None, leave=False):
                predictions = evaluator.predict(task, eval_dir / task.folder_name)
                records[task.name] = write_result(out_dir, task, sources[task.name], predictions)
        write_lines(out_dir)
    if evaluator.num_cut:
        warn(f"{evaluator.num_cut} prompts or captions fill the model's whole context; what is longer was cut off")
    return {task.name: records[task.name] for task in tasks}


def check_eval_sets(tasks: Sequence[Task], eval_dir: Path) -> None:
    """Raise FileNotFoundError that lists every folder and file that the tasks need and `eval_dir` lacks."""
    missing: list[Path] = []
    for task in tasks:
        folder = eval_dir / task.folder_name
        missing += [path for path in _needed_files(task, folder) if not path.exists()] if folder.is_dir() else [folder]
    if missing:
        names = ", ".join(str(path.relative_to(eval_dir)) for path in missing)
        raise FileNotFoundError(
            f"evaluation data is missing in {eval_dir}: {names}. `winnow pool build` draws the sets of the embedded "
            "scales; eval_dir=... names the folder of other sets."
        )


def hash_eval_set(folder: Path) -> str:
    """Return the sha256 over relative names and sha256s of the files that an evaluation reads."""
    paths = [folder / name for name in LIST_NAMES]
    paths += [folder / "test" / "nshards.txt", *_tar_paths(folder)]
    lines = sorted(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n" for path in paths if path.exists())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_samples(folder: Path) -> list[Sample]:
    """Read what an evaluation set holds, in key order, images left where they are.

    Raises ValueError that names the file for damaged tars, repeated members, and samples without an image.
    """
    members: dict[str, dict[str, tuple[Path, Member]]] = {}
    labels: dict[str, dict[str, bytes]] = {}
    for path in _tar_paths(folder):
        with path.open("rb") as file:
            for member in iter_members(path):
                key = member.key
                of_sample = members.setdefault(key, {})
                kind = "image" if member.extension in IMAGE_FORMATS else member.extension
                if kind in of_sample:
                    other = of_sample[kind][1].name
                    raise ValueError(f"{path}: key {key!r} is repeated ({member.name!r} after {other!r})")
                limit = MAX_IMAGE_BYTES if kind == "image" else MAX_LABEL_BYTES
                if member.size > limit:
                    raise ValueError(f"{path}: {member.name!r} has {member.size} bytes, more than {limit}")
                of_sample[kind] = path, member
                if kind in ("cls", "npy", "txt"):
                    file.seek(member.offset)
                    labels.setdefault(key, {})[kind] = file.read(member.size)
    if not members:
        raise ValueError(f"{folder / 'test'}: the tars hold no samples")
    samples = []
    for key in sorted(members):
        if "image" not in members[key]:
            path, member = next(iter(members[key].values()))
            raise ValueError(f"{path}: sample {key!r} has {member.name!r} but no image ({', '.join(IMAGE_FORMATS)})")
        path, member = members[key]["image"]
        samples.append(Sample(key, member.name, path, member.offset, member.size, labels.get(key, {})))
    return samples


def load_image(sample: Sample, image_size: int) -> np.ndarray:
    """Decode a sample's image as RGB and bring it to (image_size, image_size, 3), uint8.

    Shorter side to `image_size` (bicubic, antialiased), centre crop: open_clip's evaluation transform. Alpha is
    dropped and EXIF orientation not applied, as in DataComp. Raises ValueError that names the image.
    """
    with sample.tar_path.open("rb") as file:
        file.seek(sample.offset)
        data = file.read(sample.size)
    where = f"{sample.tar_path}: image {sample.image_name!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=sorted(set(IMAGE_FORMATS.values()))) as opened:
                image = opened.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is too large to be an evaluation image: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where} cannot be decoded: {error}") from error
    if min(image.size) != image_size:
        width, height = (int(image_size * side / min(image.size)) for side in image.size)
        if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{where} is too large to be an evaluation image: {width} x {height} when resized")
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in image.size)  # torchvision rounds halves to even, as here
    return np.array(image)[top : top + image_size, left : left + image_size]


class _Evaluator:
    """A model with its preprocessing; makes the predictions table of one task at a time."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: str,
        workers: int,
    ) -> None:
        self.model = cast(Any, model)  # nn.Module does not know of encode_image and encode_text
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.device = device
        self.workers = workers
        self.num_cut = 0  # prompts that fill the context

    def predict(self, task: Task, folder: Path) -> pa.Table:
        """Return the task's predictions table."""
        samples = read_samples(folder)
        if isinstance(task, ZeroShotClassification):
            return self._classify(task, samples, folder)
        if isinstance(task, Retrieval):
            return self._retrieve(task, samples)
        if isinstance(task, Association):
            return self._associate(task, samples, folder)
        raise ValueError(f"task {task.name!r} is of a kind that cannot be evaluated: {type(task).__name__}")

    def _classify(self, task: ZeroShotClassification, samples: list[Sample], folder: Path) -> pa.Table:
        classnames = _read_lines(folder / "classnames.txt")
        templates = _read_lines(folder / "zeroshot_classification_templates.txt")
        for template in templates:
            if "{c}" not in template:
                raise ValueError(f"{folder / 'zeroshot_classification_templates.txt'}: {template!r} has no {{c}}")
        labels = np.array([_label_of(sample, len(classnames)) for sample in samples])
        groups = [_group_of(sample, task) for sample in samples] if isinstance(task, GroupedClassification) else None

        prompts = [template.replace("{c}", name) for name in classnames for template in templates]
        distinct, places = self._encode_texts(prompts, task.name)
        of_prompts = distinct[places].view(len(classnames), len(templates), -1)
        classifier = nn.functional.normalize(of_prompts.mean(dim=1), dim=-1)  # (classes, dim)
        scores = _similarities(self._encode_images(samples, task.name), classifier)
        top5 = metrics.top_k(scores, TOP)
        columns = {
            "key": [sample.key for sample in samples],
            "label": labels,
            "prediction": top5[:, 0],
            "score": scores[np.arange(len(labels)), labels],
            "top5": list(top5),
            "group": groups if groups is not None else [None] * len(samples),
            "num_classes": np.full(len(labels), len(classnames)),
        }
        return pa.table(columns, schema=CLASSIFICATION_SCHEMA)

    def _retrieve(self, task: Retrieval, samples: list[Sample]) -> pa.Table:
        captions_of = [_captions_of(sample) for sample in samples]
        captions = [caption for of_image in captions_of for caption in of_image]
        counts = np.array([len(of_image) for of_image in captions_of])
        owner = np.repeat(np.arange(len(samples)), counts)  # (captions,)

        distinct, places = self._encode_texts(captions, task.name)
        # Equal captions get equal scores, whatever the order of sums in a matrix product.
        scores = _similarities(self._encode_images(samples, task.name), distinct)[:, places]
        image_rows = _rank(scores, np.arange(len(samples)), owner)
        caption_rows = _rank(scores.T, owner, np.arange(len(samples)))
        keys = [sample.key for sample in samples]
        columns = {
            "key": keys + [keys[image] for image in owner],
            "direction": [IMAGE_TO_TEXT] * len(samples) + [TEXT_TO_IMAGE] * len(captions),
            "caption": [None] * len(samples) + [number for count in counts for number in range(count)],
            "num_positives": np.concatenate([counts, np.ones(len(captions), dtype=counts.dtype)]),
            "rank": np.concatenate([image_rows.rank, caption_rows.rank]),
            "score": np.concatenate([image_rows.score, caption_rows.score]),
            "top5": [*image_rows.top5, *caption_rows.top5],
        }
        return pa.table(columns, schema=RETRIEVAL_SCHEMA)

    def _associate(self, task: Association, samples: list[Sample], folder: Path) -> pa.Table:
        instances = _read_instances(folder / "instances.jsonl", {sample.key for sample in samples})
        place_of = {sample.key: place for place, sample in enumerate(samples)}
        # WinoGAViL's prompt, as DataComp words it.
        prompts = [f"{'An' if each.cue[0].lower() in 'aeiou' else 'A'} {each.cue.lower()}" for each in instances]
        distinct, places = self._encode_texts(prompts, task.name)
        scores = _similarities(self._encode_images(samples, task.name), distinct)  # (images, prompts)
        ranked, means = [], []
        for instance, prompt in zip(instances, places, strict=True):
            of_candidates = scores[[place_of[key] for key in instance.candidates], prompt]
            ranked.append(np.argsort(-of_candidates, kind="stable").astype(np.int32))
            means.append(of_candidates[instance.right].mean())
        columns = {
            "key": [str(number) for number in range(len(instances))],
            "cue": [instance.cue for instance in instances],
            "associations": [instance.right for instance in instances],
            "ranked": ranked,
            "score": means,
        }
        return pa.table(columns, schema=ASSOCIATION_SCHEMA)

    def _encode_images(self, samples: list[Sample], task_name: str) -> Tensor:
        """Return normalised embeddings in float32, (samples, dim)."""
        loader = DataLoader(
            _Images(samples, self.image_size),
            batch_size=BATCH_SIZE,
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from torch's global one
        )
        embeddings = []
        for batch in tqdm(loader, desc=task_name, unit="batch", disable=None, leave=False):
            pixels = _padded(batch).to(self.device).permute(0, 3, 1, 2).to(torch.float32).div(255)
            encoded = self.model.encode_image((pixels - self.mean) / self.std, normalize=True)
            embeddings.append(encoded[: len(batch)].float())
        together = torch.cat(embeddings)
        bad = torch.nonzero(~torch.isfinite(together).all(dim=1))
        if len(bad):
            key = samples[int(bad[0])].key
            raise ValueError(f"task {task_name!r}: the model's embedding of image {key!r} is not finite")
        return together

    def _encode_texts(self, texts: list[str], task_name: str) -> tuple[Tensor, list[int]]:
        """Return normalised embeddings in float32 of the distinct texts, (distinct, dim), and each text's row."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        embeddings = []
        for tokens in torch.split(self.tokenizer(list(distinct)), BATCH_SIZE):
            self.num_cut += int((tokens[:, -1] != 0).sum())
            encoded = self.model.encode_text(_padded(tokens).to(self.device), normalize=True)
            embeddings.append(encoded[: len(tokens)].float())
        together = torch.cat(embeddings)
        bad = torch.nonzero(~torch.isfinite(together).all(dim=1))
        if len(bad):
            text = list(distinct)[int(bad[0])]
            raise ValueError(f"task {task_name!r}: the model's embedding of text {text!r} is not finite")
        return together, [distinct[text] for text in texts]


class _Images(Dataset[np.ndarray]):
    """Decoded images by position, for a DataLoader and its processes."""

    def __init__(self, samples: list[Sample], image_size: int) -> None:
        self.samples = samples
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray:
        return load_image(self.samples[index], self.image_size)


@dataclass(frozen=True)
class _Ranked:
    """What a retrieval task keeps of each query."""

    rank: np.ndarray  # (queries,)
    score: np.ndarray  # (queries,)
    top5: np.ndarray  # (queries, entries)


def _rank(scores: np.ndarray, owner_of_query: np.ndarray, owner_of_candidate: np.ndarray) -> _Ranked:
    """Rank candidates by scores, (queries, candidates); those of a query's own image are right."""
    parts = []
    for start in range(0, len(scores), QUERIES_AT_ONCE):
        rows = np.ascontiguousarray(scores[start : start + QUERIES_AT_ONCE])
        positives = owner_of_query[start : start + QUERIES_AT_ONCE, None] == owner_of_candidate
        index, rank = metrics.first_positive(rows, positives)
        parts.append(_Ranked(rank, rows[np.arange(len(rows)), index], metrics.top_k(rows, TOP)))
    return _Ranked(
        np.concatenate([part.rank for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.top5 for part in parts]),
    )


@dataclass(frozen=True)
class _Instance:
    """One question of an association task."""

    cue: str
    candidates: list[str]  # keys of images
    right: list[int]  # ascending indices of candidates


def _read_instances(path: Path, keys: set[str]) -> list[_Instance]:
    """Read an association task's questions; raises ValueError that names the line that is wrong."""
    instances = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            cue, candidates, associations = row["cue"], row["candidates"], row["associations"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{where} must be {{"cue": ..., "candidates": [...], "associations": [...]}}') from error
        are_lists = isinstance(cue, str) and isinstance(candidates, list) and isinstance(associations, list)
        if not are_lists or not cue or not associations:
            raise ValueError(f"{where}: a cue is a word, candidates and associations are lists of keys")
        if unknown := [key for key in candidates if key not in keys]:
            raise ValueError(f"{where}: there is no image {unknown[0]!r}")
        if len(set(candidates)) != len(candidates) or not set(associations) <= set(candidates):
            raise ValueError(f"{where}: candidates must be distinct and hold all associations")
        instances.append(_Instance(cue, candidates, sorted(candidates.index(key) for key in set(associations))))
    if not instances:
        raise ValueError(f"{path} is empty")
    return instances


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Run without gradients, in evaluation mode and true float32; the model's modes come back at the end."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _similarities(images: Tensor, texts: Tensor) -> np.ndarray:
    """Return the inner products, (images, texts), in blocks of one size: a product's last bits depend on its shape."""
    blocks = [(_padded(batch) @ texts.T)[: len(batch)] for batch in torch.split(images, BATCH_SIZE)]
    return torch.cat(blocks).cpu().numpy()


def _padded(batch: Tensor) -> Tensor:
    """Repeat the last row until the batch is full."""
    return torch.cat([batch, batch[-1:].expand(BATCH_SIZE - len(batch), *batch.shape[1:])])


def _needed_files(task: Task, folder: Path) -> list[Path]:
    if isinstance(task, Retrieval):
        files = [folder / "dataset_type.txt"]
    elif isinstance(task, Association):
        files = [folder / "dataset_type.txt", folder / "instances.jsonl"]
    else:
        files = [folder / "classnames.txt", folder / "zeroshot_classification_templates.txt"]
    count_path = folder / "test" / "nshards.txt"
    return [*files, count_path, *(_tar_paths(folder) if count_path.exists() else [])]


def _tar_paths(folder: Path) -> list[Path]:
    path = folder / "test" / "nshards.txt"
    text = path.read_text().strip()
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise ValueError(f"{path} holds {text[:40]!r} instead of the number of tars")
    return [folder / "test" / f"{number}.tar" for number in range(int(text))]


def _read_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1} is empty")
    return lines


def _part_of(sample: Sample, extension: str) -> bytes:
    if extension not in sample.labels:
        raise ValueError(f"{sample.tar_path}: sample {sample.key!r} has no .{extension}")
    return sample.labels[extension]


def _label_of(sample: Sample, num_classes: int) -> int:
    text = _part_of(sample, "cls").decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < num_classes):
        raise ValueError(
            f"{sample.tar_path}: {sample.key}.cls holds {text[:40]!r}; classnames.txt has classes 0..{num_classes - 1}"
        )
    return int(text)


def _numbers_of(sample: Sample, places: Sequence[int]) -> list[int]:
    """Return the numbers at these places of a sample's `.npy` vector; raises ValueError that names the sample."""
    where = f"{sample.tar_path}: {sample.key}.npy"
    try:
        values = np.lib.format.read_array(io.BytesIO(_part_of(sample, "npy")), allow_pickle=False).reshape(-1)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not np.issubdtype(values.dtype, np.integer) or len(values) <= max(places):
        raise ValueError(f"{where} holds {len(values)} of {values.dtype}; integer number {max(places)} is needed")
    return [int(values[place]) for place in places]


def _group_of(sample: Sample, task: GroupedClassification) -> int:
    fields = task.group_fields
    values = _numbers_of(sample, [field.place for field in fields])
    for field, value in zip(fields, values, strict=True):
        limit = len(field.names) or (2**31 if len(fields) == 1 else GROUP_RADIX)
        if not 0 <= value < limit:
            raise ValueError(
                f"{sample.tar_path}: {sample.key}.npy: there is no {field.name} {value}; "
                f"values: {list(field.names) or f'0 to {limit - 1}'}"
            )
    return values[0] + (GROUP_RADIX * values[1] if len(values) == 2 else 0)


def _captions_of(sample: Sample) -> list[str]:
    try:
        text = _part_of(sample, "txt").decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{sample.tar_path}: {sample.key}.txt is not UTF-8: {error}") from error
    # CLIP_benchmark joins captions by newlines and escapes those inside.
    captions = [caption.replace(r"\n", "\n") for caption in text.split("\n") if caption.strip()]
    if not captions:
        raise ValueError(f"{sample.tar_path}: {sample.key}.txt has no caption")
    return captions


def _made_from(
    task: Task,
    eval_dir: Path,
    made_from: dict[str, Json],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Json]:
    ours = {
        "task": task.name,
        "task_version": task.version,
        "data": hash_eval_set(eval_dir / task.folder_name),
        "image_size": image_size,
        "mean": list(mean),
        "std": list(std),
    }
    assert not ours.keys() & made_from.keys()
    return ours | made_from
