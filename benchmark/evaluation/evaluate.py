"""The evaluate stage: score a model zero-shot on tasks, each sample's prediction kept (Radford et al. 2021, Sec. 3.1).

Images and prompts go through the model in float32 and in batches of one fixed size, the last one padded, so a result
does not depend on what else is evaluated. An image goes through it once, also where several tasks share their images;
so does a class whose name and templates several tasks share. Prompts are cut to the length of the longest in their
batch where the text tower looks to the left alone: there, what comes after the end of a prompt has no part in it.

On a CPU a batch goes through the model on one thread, and as many batches at a time as torch has threads.
"""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import open_clip
import pyarrow as pa
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmark.evaluation import metrics
from benchmark.evaluation.eval_sets import (
    Contents,
    Preprocess,
    Sample,
    SetError,
    bad_sets,
    captions_of,
    check_eval_sets,
    group_of,
    hash_eval_set,
    hash_images,
    label_of,
    load_image,
    numbers_of,
    odd_sizes,
    prompt_notes,
    read_contents,
    read_instances,
    read_prompts,
    read_samples,
    reason_of,
)
from benchmark.evaluation.predictions import (
    ASSOCIATION_SCHEMA,
    CLASSIFICATION_SCHEMA,
    FACE_SCHEMA,
    IMAGE_TO_TEXT,
    RETRIEVAL_SCHEMA,
    TEXT_TO_IMAGE,
    TOP,
)
from benchmark.evaluation.results import (
    EVAL_FOLDER,
    STAGE,
    VERSION,
    check_main_metric,
    model_of,
    predictions_path,
    read_results,
    result_path,
    update_metrics,
    write_lines,
    write_result,
)
from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    Retrieval,
    Task,
    ZeroShotClassification,
)
from benchmark.runtime.console import say, warn
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, remove_temporary, sha256_of
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record, describe_differences, finished, read_record
from benchmark.toolbox.hub_rows import local_set
from benchmark.training.ranks import SINGLE_PROCESS, Ranks

BATCH_SIZE = 64  # images; DataComp's
PROMPTS_AT_ONCE = {"cpu": 64, "cuda": 512}
CUT_TO_MULTIPLE = 16  # tokens: few lengths, so large batches; with 8 the last bits were others than at full length
QUERIES_AT_ONCE = 1024  # rows of a similarity matrix that are ranked together, to bound memory
IMAGES_AT_ONCE = 4096  # likewise, of images against classes
DECODED_TOGETHER = 16  # images that a thread decodes at a time; it divides BATCH_SIZE
BATCHES_AHEAD = 2
DECODING_THREADS = 2  # or more, beside a model that computes on the same cores
OBJECTIVES = ("race", "gender", "age", "toxic")  # of faces
FACE_PLACES = {"age": 0, "gender": 1, "race": 2, "race_binary": 3}  # in the .npy vector

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class _Job:
    """A task that has no result yet."""

    task: Task
    folder: Path
    contents: Contents
    inputs: dict[str, Json]
    is_whole: bool = True  # has the number of samples that it is known to have


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    eval_dir: Path,
    out_dir: Path,
    *,
    inputs: dict[str, Json],
    preprocess: Preprocess,
    device: str = "cpu",
    workers: int = 0,
    strict: bool = True,
    ranks: Ranks = SINGLE_PROCESS,
    costs_dir: Path | None = None,
    seed: int | None = None,
) -> dict[str, Record]:
    """Evaluate `model` (open_clip's `encode_image` and `encode_text`) and return the tasks' records, by task name.

    Writes what `results.py` describes below `out_dir`. `inputs` says which model this is; each record adds
    its task, the hash of its data, and the preprocessing. A task that has its result is skipped; `ranks` share the
    others. `workers` processes decode images (threads of this one where it is 0); they do not change the result. A set
    of another size than its task is known to have is an error, or a warning without `strict`. What a task took is
    appended to `costs.jsonl` in `costs_dir` (`out_dir`), with the training `seed` where there is one.

    Raises FileNotFoundError that lists everything missing before any work begins, ValueError where a result there was
    made from something else; and at the end, when all other tasks have their results, BadSetsError that lists the sets
    that cannot be read or have another size.
    """
    model.to(device)
    with ExitStack() as held:
        found = ranks.run_on_rank0(lambda: find_sets(tasks, eval_dir))  # before anything is written
        ranks.run_on_rank0(lambda: held.enter_context(locked(out_dir / EVAL_FOLDER)))
        plan = ranks.run_on_rank0(lambda: _plan(tasks, found, out_dir, inputs, preprocess, strict=strict))
        mine = _share(plan.jobs, ranks)
        images = sum(job.contents.num_images for job in mine)
        bar = held.enter_context(tqdm(total=images, desc="evaluate", unit="image", disable=None, leave=False))
        held.enter_context(_inference(model))
        team = held.enter_context(_team(model, device))
        evaluator = _Evaluator(team, tokenizer, preprocess, device, workers, _Kept(mine), bar)
        numbers: dict[str, Json] = {} if seed is None else {"seed": seed}
        unreadable: dict[str, str] = {}
        for job in mine:
            bar.set_description(job.task.title)
            numbers |= {"task": job.task.name, "images": job.contents.num_images}
            try:
                with cost(costs_dir or out_dir, "evaluate_task", **numbers):
                    predictions = evaluator.predict(job)
                    write_result(out_dir, job.task, job.inputs, predictions, is_whole=job.is_whole)
            except (SetError, OSError) as error:
                unreadable[job.task.name] = reason_of(error, job.folder)
                warn(f"{job.task.name!r} cannot be evaluated: {unreadable[job.task.name]}")
        num_cut = int(ranks.sums(evaluator.num_cut)[0])  # which waits for every rank
        of_all = [plan.unreadable, *ranks.collect(unreadable)]
        if ranks.is_first:
            write_lines(out_dir)
            if num_cut:
                noun = "prompt or caption fills" if num_cut == 1 else "prompts or captions fill"
                warn(f"{num_cut} {noun} the model's whole context; what is longer was cut off")
    reasons = {name: of_rank[name] for task in tasks for of_rank in of_all if (name := task.name) in of_rank}
    if (refusal := bad_sets(reasons, plan.odd, len(tasks))) is not None:
        refusal.out_dir = out_dir
        raise refusal
    return read_results(out_dir, tasks)


@dataclass(frozen=True)
class FoundSets:
    """Where the sets of tasks are, by task name."""

    folders: dict[str, Path]
    unreadable: dict[str, str]  # why rows of a data set of the hub cannot be unpacked


def find_sets(tasks: Sequence[Task], eval_dir: Path) -> FoundSets:
    """Find the set of each task; raises FileNotFoundError that lists all that is missing."""
    folders: dict[str, Path] = {}
    unreadable: dict[str, str] = {}
    for task in tasks:
        try:
            folders[task.name] = local_set(task, eval_dir)
        except UserError as error:
            unreadable[task.name] = str(error)
    check_eval_sets([task for task in tasks if task.name in folders], folders, eval_dir)
    for task in tasks:
        both = [name for name in task.folder_names if (eval_dir / name).is_dir()]
        if len(both) > 1:
            warn(f"{eval_dir} has {both[0]} and {both[1]}; {task.name!r} is evaluated on {both[0]}")
    return FoundSets(folders, unreadable)


def check_sets(tasks: Sequence[Task], eval_dir: Path, *, strict: bool) -> None:
    """Raise FileNotFoundError where sets lack files, BadSetsError that lists those that cannot be evaluated.

    The headers of all tars are read, not the images. Without `strict` a set of an odd size is a warning.
    """
    found = find_sets(tasks, eval_dir)
    unreadable, sets = dict(found.unreadable), []
    for task in tasks:
        if (folder := found.folders.get(task.name)) is not None:
            try:
                sets.append((task, folder, read_contents(task, folder, hash_eval_set(folder))))
            except (SetError, OSError) as error:
                unreadable[task.name] = reason_of(error, folder)
    if (refusal := bad_sets(unreadable, _odd_sets(sets, strict=strict), len(tasks))) is not None:
        raise refusal


def _odd_sets(sets: Sequence[tuple[Task, Path, Contents]], *, strict: bool) -> dict[str, str]:
    """Return what is odd about sizes; without `strict` it is a warning, and nothing is returned."""
    odd = odd_sizes(sets)
    if odd and not strict:
        text = f"{len(odd)} of {len(sets)} evaluation sets are not whole: {'; '.join(odd.values())}"
        warn(f"{text}; their scores are not comparable")
    return odd if strict else {}


@dataclass(frozen=True)
class _Plan:
    """What an evaluation will do, and which sets it cannot evaluate."""

    jobs: list[_Job]
    unreadable: dict[str, str]
    odd: dict[str, str]


def _plan(
    tasks: Sequence[Task],
    found: FoundSets,
    out_dir: Path,
    inputs: dict[str, Json],
    preprocess: Preprocess,
    *,
    strict: bool,
) -> _Plan:
    """Return the tasks that have no result yet and can be evaluated; say which have one, and which cannot."""
    remove_temporary(out_dir / EVAL_FOLDER)
    for task in tasks:
        check_main_metric(task)
    jobs, unreadable = [], dict(found.unreadable)
    for task in tqdm(tasks, desc="check data", unit="task", disable=None, leave=False):
        if task.name in unreadable:
            continue
        folder = found.folders[task.name]
        try:
            data_hash = hash_eval_set(folder)
        except (SetError, OSError) as error:
            unreadable[task.name] = reason_of(error, folder)
            continue
        source = _made_from(task, data_hash, inputs, preprocess)
        record = finished(result_path(out_dir, task), STAGE, VERSION, source)
        path = predictions_path(out_dir, task)
        if record is None or not path.exists():
            try:
                jobs.append(_Job(task, folder, read_contents(task, folder, data_hash), source))
            except (SetError, OSError) as error:
                unreadable[task.name] = reason_of(error, folder)
            continue
        if sha256_of(path) != record.result["predictions"]:
            raise UserError(
                f"{path} was changed after it was made; delete it to have it made again", code="file-changed"
            )
        if strict and "expected_samples" in record.result:
            raise UserError(
                f"{result_path(out_dir, task)} was made with strict=false from data of another size than the task's; "
                "delete it and evaluate whole data, or say strict=false again",
                code="record-differs",
            )
        update_metrics(out_dir, task, record)
    if tasks:
        _refuse_other_models(out_dir, _made_from(tasks[0], "", inputs, preprocess))
    num_done = len(tasks) - len(jobs) - len(unreadable)
    sets = [(job.task, job.folder, job.contents) for job in jobs]
    partial, odd = set(odd_sizes(sets)), _odd_sets(sets, strict=strict)
    jobs = [replace(job, is_whole=job.task.name not in partial) for job in jobs if job.task.name not in odd]
    for job in jobs:
        if isinstance(job.task, ZeroShotClassification):
            for note in prompt_notes(job.task, job.folder):
                warn(note)
    if num_done:
        say(f"evaluate: as before, {num_done} of {len(tasks)} tasks ({out_dir / EVAL_FOLDER})")
    if jobs and (refusal := bad_sets(unreadable, odd, len(tasks))) is not None:
        warn(f"{refusal}. The others are evaluated")
    return _Plan(jobs, unreadable, odd)


def _refuse_other_models(out_dir: Path, source: dict[str, Json]) -> None:
    """Raise ValueError where a result of any task there is another model's: `eval_results.jsonl` is one model's."""
    for path in sorted((out_dir / EVAL_FOLDER).glob("*.json")):
        record = read_record(path)
        if record and (shown := describe_differences(model_of(source), model_of(record.inputs))):
            raise UserError(
                f"{out_dir} has a result of another model or setting ({path.name}): {shown}. Choose another folder, "
                f"repeat those settings, or delete {path.parent}.",
                code="record-differs",
            )


def _share(jobs: Sequence[_Job], ranks: Ranks) -> list[_Job]:
    """Return this rank's jobs: the largest go first, each to the rank with least to do; shared images stay together."""
    together: dict[str, list[_Job]] = {}
    for job in jobs:
        together.setdefault(job.contents.images, []).append(job)
    loads = [0] * ranks.size
    mine: list[_Job] = []
    for group in sorted(together.values(), key=lambda group: -group[0].contents.tar_bytes):
        rank = loads.index(min(loads))
        loads[rank] += group[0].contents.tar_bytes
        mine += group if rank == ranks.rank else []
    return sorted(mine, key=jobs.index)


class _Kept:
    """Embeddings of images that a later task has too: sets with the same images, byte for byte, in the same order."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self.left = Counter(job.contents.images for job in jobs)
        self.embeddings: dict[str, Tensor] = {}

    def encode(self, job: _Job, samples: Sequence[Sample], encode: Callable[[], Tensor]) -> Tensor:
        """Return the embeddings that `encode` gives, or gave for the same images."""
        signature = job.contents.images  # of keys and sizes: only where two tasks share it are the bytes compared
        self.left[signature] -= 1
        if not self.left[signature] and not any(key.startswith(signature) for key in self.embeddings):
            return encode()
        key = signature + hash_images(samples)
        if key not in self.embeddings:
            self.embeddings[key] = encode()
        found = self.embeddings[key]
        if not self.left[signature]:
            self.embeddings = {key: kept for key, kept in self.embeddings.items() if not key.startswith(signature)}
        return found


class _BatchEncoder:
    """A model that is called on several batches at a time, each by a thread of its own.

    Threads within a matrix product wait for each other at its end, which costs small models, and large ones on a busy
    machine, most of their time; and how many there are changes a product's last bits.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model = cast(Any, model)  # nn.Module does not know of encode_image and encode_text
        self.size = size
        self.tower = _cuttable_tower(model)
        self.readers: SimpleQueue[Any] = SimpleQueue()  # models for texts: a cut one is another while it is called
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        for _ in range(size):
            self.readers.put(copy.deepcopy(model, dict(shared)) if self.tower and size > 1 else model)

    def encode_images(self, batches: Iterable[Tensor], prepare: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Yield the unit embeddings of each batch once it is prepared, in order."""
        return self._map(lambda batch: self.model.encode_image(prepare(batch), normalize=True), batches)

    def encode_tokens(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the unit embeddings of each batch of tokens, (rows, context or fewer), in order."""
        return self._map(self._encode_tokens, batches)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        reader = self.readers.get()
        try:
            if self.tower is None:
                return reader.encode_text(tokens, normalize=True)
            found = functional_call(reader, self.tower.cut_to(tokens.shape[1]), (None, tokens))
            return found["text_features"] if isinstance(found, dict) else found[1]
        finally:
            self.readers.put(reader)

    def _map(self, encode: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Iterator[Tensor]:
        if self.size == 1:
            yield from map(encode, batches)
            return

        def call(batch: Tensor) -> Tensor:
            with torch.inference_mode():  # each thread has its own
                return encode(batch)

        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(max_workers=self.size) as threads:
            try:
                for batch in batches:
                    waiting.append(threads.submit(call, batch))
                    if len(waiting) > self.size:  # one lies ready for who is done first
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _team(model: nn.Module, device: str) -> Iterator[_BatchEncoder]:
    """Give torch's threads to batches on a CPU; on a GPU one batch follows another."""
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu":
        yield _BatchEncoder(model, 1)
        return
    torch.set_num_threads(1)
    try:
        yield _BatchEncoder(model, threads)
    finally:
        torch.set_num_threads(threads)


class _Evaluator:
    """A model with its preprocessing; makes the predictions table of one task at a time."""

    def __init__(
        self,
        team: _BatchEncoder,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        device: str,
        workers: int,
        kept: _Kept,
        bar: Any,
    ) -> None:
        self.team = team
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(preprocess.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.device = device
        self.workers = workers
        self.kept = kept
        self.bar = bar
        self.padding = int(tokenizer([""])[0, -1])  # not 0 with every tokenizer
        self.classes: dict[tuple[str, tuple[str, ...]], Tensor] = {}  # class name, templates -> unit embedding
        self.num_cut = 0  # prompts that fill the context

    def predict(self, job: _Job) -> pa.Table:
        """Return the task's predictions table."""
        task, samples = job.task, read_samples(job.folder)
        if isinstance(task, ZeroShotClassification):
            return self._classify(task, samples, job)
        if isinstance(task, Retrieval):
            return self._retrieve(samples, job)
        if isinstance(task, Association):
            return self._associate(samples, job)
        if isinstance(task, FaceAttributes):
            return self._attribute(samples, job)
        raise UserError(
            f"task {task.name!r} is of a kind that cannot be evaluated: {type(task).__name__}", code="task-invalid"
        )

    def _classify(self, task: ZeroShotClassification, samples: list[Sample], job: _Job) -> pa.Table:
        classnames, templates = read_prompts(job.folder)
        labels = np.array([label_of(sample, len(classnames)) for sample in samples])
        groups = [group_of(sample, task) for sample in samples] if isinstance(task, GroupedClassification) else None
        classifier = self._classifier(classnames, templates, task.name)
        top5, scores = self._nearest(self._encode_images(samples, job), classifier, labels)
        columns = {
            "key": [sample.key for sample in samples],
            "label": labels,
            "prediction": top5[:, 0],
            "score": scores,
            "top5": list(top5),
            "group": groups if groups is not None else [None] * len(samples),
            "num_classes": np.full(len(labels), len(classnames)),
        }
        return pa.table(columns, schema=CLASSIFICATION_SCHEMA)

    def _attribute(self, samples: list[Sample], job: _Job) -> pa.Table:
        classnames, templates = read_prompts(job.folder)
        of_objective = {name: (_of_objective(name, classnames), _of_objective(name, templates)) for name in OBJECTIVES}
        if lacking := [name for name, (classes, prompts) in of_objective.items() if not classes or not prompts]:
            raise SetError(
                f"{job.folder}: classnames.txt and zeroshot_classification_templates.txt need lines that begin with "
                f"{', '.join(f'{name}:' for name in lacking)}"
            )
        numbers = np.array([numbers_of(sample, list(FACE_PLACES.values())) for sample in samples])
        columns: dict[str, Any] = {"key": [sample.key for sample in samples]}
        columns |= {name: numbers[:, place] for name, place in FACE_PLACES.items()}
        for name in ("race", "gender", "age"):
            if columns[name].min() < 0 or columns[name].max() >= len(of_objective[name][0]):
                raise SetError(f"{job.folder}: a {name} is outside 0..{len(of_objective[name][0]) - 1}")
        images = self._encode_images(samples, job)
        for name, (classes, prompts) in of_objective.items():
            labels = columns.get(name, np.zeros(len(samples), dtype=int))  # slurs have no right answer
            nearest, scores = self._nearest(images, self._classifier(classes, prompts, job.task.name), labels)
            columns[f"predicted_{name}"] = nearest[:, 0]
            if name == "race":
                columns["score"] = scores
        return pa.table({name: columns[name] for name in FACE_SCHEMA.names}, schema=FACE_SCHEMA)

    def _classifier(self, classnames: Sequence[str], templates: Sequence[str], task_name: str) -> Tensor:
        """Return each class's unit embedding, (classes, dim): the mean of its prompts' unit embeddings."""
        keys = [(name, tuple(templates)) for name in classnames]
        wanted = [key for key in dict.fromkeys(keys) if key not in self.classes]
        if wanted:
            prompts = [template.replace("{c}", name) for name, _ in wanted for template in templates]
            distinct, places = self._encode_texts(prompts, task_name)
            of_prompts = distinct[places].view(len(wanted), len(templates), -1)
            self.classes |= zip(wanted, nn.functional.normalize(of_prompts.mean(dim=1), dim=-1), strict=True)
        return torch.stack([self.classes[key] for key in keys])

    def _nearest(self, images: Tensor, classifier: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest classes of each image, (images, 5 or fewer), and how near its label is, (images,)."""
        nearest, scores = [], []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            block = _similarities(images[start : start + IMAGES_AT_ONCE], classifier)
            nearest.append(metrics.top_k(block, TOP))
            scores.append(block[np.arange(len(block)), labels[start : start + IMAGES_AT_ONCE]])
        return np.concatenate(nearest), np.concatenate(scores)

    def _retrieve(self, samples: list[Sample], job: _Job) -> pa.Table:
        of_images = [captions_of(sample) for sample in samples]
        captions = [caption for of_image in of_images for caption in of_image]
        counts = np.array([len(of_image) for of_image in of_images])
        owner = np.repeat(np.arange(len(samples)), counts)  # (captions,)

        distinct, places = self._encode_texts(captions, job.task.name)
        # Equal captions get equal scores, whatever the order of sums in a matrix product.
        scores = _similarities(self._encode_images(samples, job), distinct)[:, places]
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

    def _associate(self, samples: list[Sample], job: _Job) -> pa.Table:
        instances = read_instances(job.folder / "instances.jsonl", {sample.key for sample in samples})
        place_of = {sample.key: place for place, sample in enumerate(samples)}
        # WinoGAViL's prompt, as DataComp words it.
        prompts = [f"{'An' if each.cue[0].lower() in 'aeiou' else 'A'} {each.cue.lower()}" for each in instances]
        distinct, places = self._encode_texts(prompts, job.task.name)
        scores = _similarities(self._encode_images(samples, job), distinct)  # (images, prompts)
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

    def _encode_images(self, samples: list[Sample], job: _Job) -> Tensor:
        """Return normalised embeddings in float32, (samples, dim)."""
        return self.kept.encode(job, samples, lambda: self._encode_pixels(samples, job.task.name))

    def _encode_pixels(self, samples: list[Sample], task_name: str) -> Tensor:
        counts: deque[int] = deque()
        embeddings = []

        def batches() -> Iterator[Tensor]:
            for batch in _decoded(samples, self.preprocess, self.workers, threads=self.team.size):
                counts.append(len(batch))
                yield batch

        for encoded in self.team.encode_images(batches(), self._prepare):
            embeddings.append(encoded[: counts[0]].float())
            self.bar.update(counts.popleft())
        together = torch.cat(embeddings)
        bad = torch.nonzero(~torch.isfinite(together).all(dim=1))
        if len(bad):
            key = samples[int(bad[0])].key
            raise UserError(
                f"task {task_name!r}: the model's embedding of image {key!r} is not finite", code="model-unfit"
            )
        return together

    def _prepare(self, batch: Tensor) -> Tensor:
        """Return a batch of decoded images as the model's input, whole and normalised."""
        pixels = _padded(batch, BATCH_SIZE).to(self.device).permute(0, 3, 1, 2).to(torch.float32).div(255)
        return (pixels - self.mean) / self.std

    def _encode_texts(self, texts: list[str], task_name: str) -> tuple[Tensor, list[int]]:
        """Return normalised embeddings in float32 of the distinct texts, (distinct, dim), and each text's row."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        tokens = self.tokenizer(list(distinct))  # (distinct, context)
        self.num_cut += int((tokens[:, -1] != self.padding).sum())
        lengths = self._lengths(tokens)
        order = torch.argsort(lengths, stable=True)
        together: Tensor | None = None
        at_once = PROMPTS_AT_ONCE[torch.device(self.device).type]
        bar = tqdm(total=len(tokens), desc=f"{task_name}: prompts", unit="prompt", disable=None, leave=False)
        batches = [
            rows
            for length in sorted(set(lengths.tolist()))
            for rows in torch.split(order[lengths[order] == length], at_once)
        ]
        cut = (_padded(tokens[rows, : lengths[rows[0]]], at_once).to(self.device) for rows in batches)
        with bar:
            for rows, encoded in zip(batches, self.team.encode_tokens(cut), strict=True):
                if together is None:
                    together = encoded.new_empty(len(tokens), encoded.shape[1], dtype=torch.float32)
                together[rows.to(together.device)] = encoded[: len(rows)].float()
                bar.update(len(rows))
        assert together is not None
        bad = torch.nonzero(~torch.isfinite(together).all(dim=1))
        if len(bad):
            text = list(distinct)[int(bad[0])]
            raise UserError(
                f"task {task_name!r}: the model's embedding of text {text!r} is not finite", code="model-unfit"
            )
        return together, [distinct[text] for text in texts]

    def _lengths(self, tokens: Tensor) -> Tensor:
        """Return how many tokens of each row, (rows,), the text tower needs, in steps of CUT_TO_MULTIPLE."""
        context = tokens.shape[1]
        tower = self.team.tower
        if tower is None:
            return torch.full((len(tokens),), context)
        ends = tokens.argmax(dim=1) if tower.end is None else (tokens == tower.end).int().argmax(dim=1)
        # A row without the end mark is read at its first token; then nothing may be cut off that was not read before.
        return ((ends + CUT_TO_MULTIPLE) // CUT_TO_MULTIPLE * CUT_TO_MULTIPLE).clamp(max=context)


@dataclass(frozen=True)
class _Tower:
    """A text tower in which a token sees those before it alone, and which is read at the end mark."""

    mask: Tensor  # (context, context)
    mask_name: str  # of the model's buffer
    positions: Tensor | None  # (context, width), where the tower does not cut them itself
    end: int | None  # the mark's token; None: the greatest token of a text

    def cut_to(self, length: int) -> dict[str, Tensor]:
        """Return the tensors that the model is called with instead of its own, for texts of this length."""
        cut = {self.mask_name: self.mask[:length, :length]}
        return cut if self.positions is None else {**cut, "positional_embedding": self.positions[:length]}


def _cuttable_tower(model: Any) -> _Tower | None:
    """Return the text tower of a model whose texts may be cut after their end mark; None for any other."""
    if type(model) is open_clip.CLIP:
        tower, pool, end, positions = model, model.text_pool_type, getattr(model, "text_eos_id", None), True
    elif type(model) is open_clip.CustomTextCLIP and type(model.text) is TextTransformer:
        tower, pool, end, positions = model.text, model.text.pool_type, getattr(model.text, "eos_id", None), False
        if tower.cls_emb is not None or tower.use_pad_mask:
            return None
    else:
        return None
    if tower.attn_mask is None or pool not in ("argmax", "eos") or (pool == "eos" and end is None):
        return None
    name = "attn_mask" if positions else "text.attn_mask"
    return _Tower(
        tower.attn_mask, name, tower.positional_embedding if positions else None, end if pool == "eos" else None
    )


def _of_objective(name: str, lines: Sequence[str]) -> list[str]:
    """Return what follows `name:` in the lines that begin with it."""
    return [line.removeprefix(f"{name}:") for line in lines if line.startswith(f"{name}:")]


def _decoded(samples: Sequence[Sample], preprocess: Preprocess, workers: int, *, threads: int = 1) -> Iterator[Tensor]:
    """Yield decoded images in order, (BATCH_SIZE or fewer, side, side, 3) uint8, a few batches ahead of their use.

    Without `workers` it is threads of this process that decode, beside so many that encode.
    """
    if workers:
        images = _Images(samples, preprocess)
        # The generator: else the loader draws from torch's global one.
        for batch in DataLoader(
            images, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_stacked, generator=torch.Generator()
        ):
            if isinstance(batch, SetError):
                raise batch
            yield batch
        return
    size = min(DECODED_TOGETHER, BATCH_SIZE)
    parts = (samples[start : start + size] for start in range(0, len(samples), size))
    ahead = max(BATCHES_AHEAD, threads) * BATCH_SIZE // size
    waiting: deque[Future[list[np.ndarray]]] = deque()
    with ThreadPoolExecutor(max_workers=max(DECODING_THREADS, threads // 2)) as pool:
        try:
            waiting.extend(pool.submit(_load_images, part, preprocess) for part in islice(parts, ahead))
            while waiting:
                pixels: list[np.ndarray] = []
                while waiting and len(pixels) < BATCH_SIZE:
                    pixels += waiting.popleft().result()
                    waiting.extend(pool.submit(_load_images, part, preprocess) for part in islice(parts, 1))
                yield torch.from_numpy(np.stack(pixels))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _load_images(samples: Sequence[Sample], preprocess: Preprocess) -> list[np.ndarray]:
    return [load_image(sample, preprocess) for sample in samples]


def _stacked(images: list[np.ndarray | SetError]) -> Tensor | SetError:
    """Make a batch of images; where one cannot be decoded, it is why."""
    for image in images:
        if isinstance(image, SetError):
            return image
    return torch.from_numpy(np.stack(cast(list[np.ndarray], images)))


class _Images(Dataset[np.ndarray | SetError]):
    """Decoded images by position, for a DataLoader and its processes; an error is returned, as a value.

    One that is raised in another process would come with that process's traceback for its text.
    """

    def __init__(self, samples: Sequence[Sample], preprocess: Preprocess) -> None:
        self.samples = samples
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray | SetError:
        try:
            return load_image(self.samples[index], self.preprocess)
        except SetError as error:
            return error


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
    blocks = [(_padded(batch, BATCH_SIZE) @ texts.T)[: len(batch)] for batch in torch.split(images, BATCH_SIZE)]
    return torch.cat(blocks).cpu().numpy()


def _padded(batch: Tensor, size: int) -> Tensor:
    """Repeat the last row until the batch is full."""
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])


def _made_from(task: Task, data_hash: str, inputs: dict[str, Json], preprocess: Preprocess) -> dict[str, Json]:
    ours = {
        "task": task.name,
        "task_version": task.version,
        "data": data_hash,
        "image_size": preprocess.image_size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    usual = Preprocess(preprocess.image_size, preprocess.mean, preprocess.std)
    for name in ("interpolation", "resize_mode"):  # records of the embedded scales are older than these
        if getattr(preprocess, name) != getattr(usual, name):
            ours[name] = getattr(preprocess, name)
    assert not ours.keys() & inputs.keys()
    return ours | inputs
