"""Evaluation sets that come as rows of a Hugging Face data set, turned into the layout that `evaluate` reads.

Rows lie below `<eval_dir>/hf_cache`, which is where DataComp has them cached, else below `<eval_dir>`:

    <owner>___<name>/<configuration>/<version>/<hash>/<name>-test.arrow   written by the `datasets` package
    <owner>___<name>/<commit>/.../<any name>.parquet                      as the hub has them

Seen with `datasets` 2.19: a repository's script has its configuration's name (`TEST/1.0.0/<hash>`), one of plain
files `default/0.0.0/<hash>`; several shards are `-test-00000-of-00002.arrow`; what is not finished lies in
`<hash>.incomplete`. A set without an owner is in `<name>/`, and before 2.14 one without a script was in
`<owner>___parquet/<owner>--<name>...`. The files are Arrow streams, not Arrow files. A script's images stay where its
archives were unpacked (`downloads/extracted/<hash>/...`): the row has an absolute path and no bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmark.pool.samples import JPEG_START
from benchmark.pool.tars import BLOCK, IMAGE_FORMATS, padding, write_tar
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError, one_line
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json, atomic_path, digest, remove_temporary, rename, write_bytes
from benchmark.runtime.locks import locked
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import cache_dir, is_remote
from benchmark.runtime.storage import FileState, changed, file_hash, list_files, stat_of, state_of

if TYPE_CHECKING:
    from benchmark.evaluation.tasks import Task

VERSION = 1  # raised when what is unpacked would change
CACHE_NAME = "hf_cache"  # of DataComp's folder of caches
TAR_SAMPLES = 10_000
TAR_BYTES = 1 << 30
BATCH_ROWS = 16  # decoded at once; a row of an association task has a dozen images

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
_OTHER_SPLIT = re.compile(r"(^|[-_.])(train|training|validation|valid|val|dev)$")
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"

_Sample = list[tuple[str, bytes]]  # members of a tar


@dataclass(frozen=True)
class Rows:
    """The files that hold a data set's rows, in the order of the rows."""

    cache: Path  # rows may name images that lie in it, and no other files
    files: tuple[FileState, ...]


def find_rows(eval_dir: Path, hub_rows: str) -> Rows | None:
    """Find the test rows of a data set of the hub (`owner/name`) for a folder of evaluation sets; None: not there.

    Raises ValueError that names both where two caches hold the set, and one that names what lacks where shards do.
    """
    if not _HUB_NAME.fullmatch(hub_rows):
        raise UserError(
            f"hub_rows {hub_rows!r} is no data set of the hub; nlphuji/winogavil is one", code="task-invalid"
        )
    for cache in (eval_dir / CACHE_NAME, eval_dir):
        found: dict[tuple[str, str], list[FileState]] = {}  # (folder, what its shards are called) -> shards
        for folder, inner in _folders_of(cache, hub_rows):
            for file in _files_below(folder):
                name = str(file.path).removeprefix(str(folder)).strip("/")
                series = _series_of(name) if re.match(inner, name) else None
                if series is not None:
                    found.setdefault((str(file.path.parent), series), []).append(file)
        if len(found) > 1:
            (first, _), (second, _) = sorted(found)[:2]
            both = f"{first} and {second}" if first != second else f"{first}, under several names"
            raise UserError(
                f"rows of {hub_rows} are in {both}; remove what is not to be evaluated", code="eval-set-invalid"
            )
        for files in found.values():
            files.sort(key=lambda file: _natural(file.path.name))
            _check_whole(files)
            return Rows(cache, tuple(files))
    return None


def rows_folder(hub_rows: str) -> str:
    """Return where a data set of the hub (`owner/name`) is fetched to, below the folder of the evaluation sets."""
    return f"{CACHE_NAME}/{hub_rows.replace('/', '___')}"


def local_set(task: Task, eval_dir: Path) -> Path:
    """Return the folder of a task's evaluation set: `<eval_dir>/<one of task.folder_names>`, or its rows, unpacked.

    Rows are unpacked into the user's cache once, by the hash of their files; images that lie in files of their own are
    taken to be the same as long as their rows are. Where there is neither, the folder that is missing is returned.
    """
    for folder in (eval_dir / name for name in task.folder_names):
        if _is_there(folder):
            return folder
    folder = eval_dir / task.folder_name
    if not task.hub_rows:
        return folder
    rows = find_rows(eval_dir, task.hub_rows)
    if rows is None:
        return folder
    hashes = [file_hash(file.path, file.state) for file in rows.files]
    inputs: dict[str, Json] = {"version": VERSION, "kind": task.kind, "files": hashes}
    unpacked = cache_dir() / "eval_sets" / task.file_stem / digest(inputs)
    if unpacked.is_dir():
        return unpacked
    with locked(unpacked.parent):
        if unpacked.is_dir():  # another process has made it in the meantime
            return unpacked
        remove_temporary(unpacked.parent)
        say(f"{task.name}: unpacking the rows of {task.hub_rows} into {unpacked}")
        unfinished = unpacked.with_name(unpacked.name + TEMPORARY_SUFFIX)
        try:
            unpack_rows(task, rows, unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        rename(unfinished, unpacked)
    return unpacked


def unpack_rows(task: Task, rows: Rows, folder: Path) -> None:
    """Write a retrieval or association task's evaluation set into a new folder; the same rows give the same bytes.

    Retrieval: sample s0000017 is row 17. Association: the questions are in the order of the rows; an image's key is a
    hash of its bytes and of the name that it has as a candidate, so one that many rows show is there once.

    Raises ValueError that names file and row, or column, where something is missing or of a wrong kind.
    """
    unpack = {"retrieval": _unpack_retrieval, "association": _unpack_association}.get(task.kind)
    if unpack is None:
        raise UserError(
            f"task {task.name!r} has hub_rows, and is no retrieval or association task but {task.kind}",
            code="task-invalid",
        )
    files = [stat_of(local_copy(file.path)) if is_remote(file.path) else file for file in rows.files]
    num_rows = sum(_count_rows(file.path) for file in files)
    with tqdm(total=num_rows, desc=task.name, unit="row", disable=None, leave=False) as progress:
        num_tars = unpack(Rows(rows.cache, tuple(files)), folder, progress)
    if not num_tars:
        raise UserError(f"{rows.files[0].path} has no rows", code="eval-set-invalid")
    for file in files:
        if state_of(file.path) != file.state:
            raise changed(file.path)
    write_bytes(folder / "dataset_type.txt", f"{task.kind}\n".encode())
    write_bytes(folder / "test" / "nshards.txt", f"{num_tars}\n".encode())


# --- Finding -------------------------------------------------------------------------------------------------------


def _folders_of(cache: Path, hub_rows: str) -> list[tuple[Path, str]]:
    """Return the folders that may hold a data set, each with a pattern that names in it must begin with."""
    owner, name = hub_rows.split("/")
    inner = rf"{re.escape(owner)}--{re.escape(name)}(-[0-9a-f]+)?/"
    folders = [f"{owner}___{name}", f"{owner}__{name}", f"datasets--{owner}--{name}", hub_rows, name]
    return [*((cache / folder, "") for folder in folders), (cache / f"{owner}___parquet", inner)]


def _files_below(folder: Path) -> list[FileState]:
    try:
        return list_files(folder, recursive=True)
    except FileNotFoundError:
        return []


def _is_there(folder: Path) -> bool:
    return bool(_files_below(folder)) if is_remote(folder) else folder.is_dir()


def _series_of(name: str) -> str | None:
    """Return what the shards that a file of rows belongs to are called, None where it holds no test rows."""
    *parents, base = name.split("/")
    if any(part.startswith(".") or part.endswith(".incomplete") for part in (*parents, base)):
        return None
    stem, _, extension = base.rpartition(".")
    series = _SHARD.sub("", stem)
    if extension == "arrow":  # beside it may lie cache-<hash>.arrow, which some code made of the rows
        return series if series.endswith("-test") else None
    if extension != "parquet" or any(_OTHER_SPLIT.search(part) for part in (*parents[-1:], series)):
        return None
    return series if series != stem else ""


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts 2.parquet before 10.parquet."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))]


def _check_whole(files: list[FileState]) -> None:
    """Raise ValueError where shards that say how many they are are not as many."""
    matches = [_SHARD.search(file.path.name.rpartition(".")[0]) for file in files]
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    if not numbers:
        return
    total = numbers[0][1]
    if any(each != total for _, each in numbers):
        raise UserError(
            f"{files[0].path.parent} has shards of several numberings; remove those that are out of date",
            code="eval-set-invalid",
        )
    if missing := sorted(set(range(total)) - {number for number, _ in numbers}):
        raise UserError(
            f"{files[0].path.parent} has {len(files)} of {total} shards and lacks number {missing[0]}",
            code="eval-set-invalid",
        )


# --- Reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What a column must hold."""

    shown: str
    fits: Callable[[pa.DataType], bool]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or not {"bytes", "path"} <= {field.name for field in kind}:
        return False
    content, path = kind.field("bytes").type, kind.field("path").type
    is_binary = pa.types.is_binary(content) or pa.types.is_large_binary(content) or pa.types.is_null(content)
    return is_binary and (_is_text(path) or pa.types.is_null(path))


def _is_list_of(fits: Callable[[pa.DataType], bool], kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and fits(kind.value_type)


_TEXT = _Kind("string", _is_text)
_IMAGE = _Kind("struct<bytes: binary, path: string>", _is_image)
_TEXTS = _Kind("list<string>", lambda kind: _is_list_of(_is_text, kind))
_IMAGES = _Kind(f"list<{_IMAGE.shown}>", lambda kind: _is_list_of(_is_image, kind))

_RETRIEVAL_COLUMNS = {"image": _IMAGE, "caption": _TEXTS}
_ASSOCIATION_COLUMNS = {"cue": _TEXT, "candidates": _TEXTS, "candidate_images": _IMAGES, "associations": _TEXTS}


def _read_rows(rows: Rows, columns: dict[str, _Kind]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row is and its values; a value, an item of a list or an image that is null raises ValueError."""
    for file in rows.files:
        number = 0
        for batch in _batches(file.path, columns):
            for place in range(batch.num_rows):
                where = f"{file.path}, row {number}"
                row = {name: batch.column(name)[place].as_py() for name in columns}
                for name, value in row.items():
                    if value is None or (isinstance(value, list) and None in value):
                        raise UserError(
                            f"{where}: {name} is or holds a null; it must be {columns[name].shown}",
                            code="eval-set-invalid",
                        )
                yield where, row
                number += 1


def _batches(path: Path, columns: dict[str, _Kind]) -> Iterator[pa.RecordBatch]:
    """Yield a file's batches with these columns, checked; what is mapped is not held in memory."""
    names = list(columns)
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, memory_map=True) as file:
                _check_columns(path, file.schema_arrow, columns)
                for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
                    batch.validate(full=True)
                    yield batch.select(names)
        else:
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                _check_columns(path, reader.schema, columns)
                for whole in reader:
                    batch = whole.select(names)
                    batch.validate(full=True)
                    yield batch
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _count_rows(path: Path) -> int:
    """Return a file's number of rows, from its headers alone."""
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, memory_map=True) as file:
                return file.metadata.num_rows
        with path.open("rb") as plain:
            plain.seek(max(0, path.stat().st_size - len(_STREAM_END)))
            if plain.read() != _STREAM_END:  # without it a stream that is cut between two batches reads as whole
                raise OSError("it has no end")
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            return sum(batch.num_rows for batch in reader)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    form = "parquet" if path.suffix == ".parquet" else "an Arrow stream"
    return UserError(
        f"{path} is damaged, cut off or not {form} ({one_line(error)}); have it made or fetched again",
        code="file-damaged",
    )


def _check_columns(path: Path, schema: pa.Schema, columns: dict[str, _Kind]) -> None:
    for name, kind in columns.items():
        places = schema.get_all_field_indices(name)
        if len(places) != 1:
            raise UserError(
                f"{path}: there must be one column {name!r} ({kind.shown}); there are {schema.names}",
                code="eval-set-invalid",
            )
        if not kind.fits(there := schema.field(places[0]).type):
            raise UserError(f"{path}: column {name!r} is {there}; it must be {kind.shown}", code="eval-set-invalid")


def _image_of(value: dict[str, Any], cache: Path, where: str) -> tuple[str, bytes]:
    """Return an image's extension and bytes."""
    data = value["bytes"]
    if data is None:
        if value["path"] is None:
            raise UserError(f"{where}: an image has neither bytes nor a path", code="eval-set-invalid")
        data = _file_in_cache(value["path"], cache, where).read_bytes()
    if data.startswith(JPEG_START):
        return "jpg", data
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp", data
    formats = ", ".join(sorted(set(IMAGE_FORMATS.values())))
    raise UserError(
        f"{where}: an image of {len(data)} bytes that begins with {data[:8]!r} is none of {formats}",
        code="eval-set-invalid",
    )


def _file_in_cache(name: str, cache: Path, where: str) -> Path:
    """Return where the file is that a row names.

    A cache that was copied from elsewhere is searched below its own `downloads`. Nothing outside of it is read,
    whatever a row says.
    """
    if is_remote(cache):
        raise UserError(
            f"{where} names the file {name!r} for an image; copy {cache} to a local folder to have it read",
            code="eval-set-invalid",
        )
    parts = name.split("/downloads/")
    rests = ["/downloads/".join(parts[start:]) for start in range(1, len(parts))]
    roots = [cache.resolve(), (cache / "downloads").resolve()]  # the second may be a link to another disk
    for path in (cache / name, *(cache / "downloads" / rest for rest in rests)):
        try:
            found = path.resolve()
            if any(found.is_relative_to(root) for root in roots) and found.is_file():
                return found
        except (OSError, ValueError):  # too long a name, or one with a zero in it
            continue
    raise UserError(
        f"{where} names the image file {name!r}, and {cache} holds no such file; no other is read",
        code="eval-set-invalid",
    )


# --- Writing -------------------------------------------------------------------------------------------------------


def _unpack_retrieval(rows: Rows, folder: Path, progress: tqdm) -> int:
    """Write a retrieval task's tars; returns how many."""

    def samples() -> Iterator[_Sample]:
        for number, (where, row) in enumerate(_read_rows(rows, _RETRIEVAL_COLUMNS)):
            key = f"s{number:07d}"
            extension, data = _image_of(row["image"], rows.cache, where)
            yield [(f"{key}.{extension}", data), (f"{key}.txt", _joined(row["caption"], where).encode())]
            progress.update()

    return _write_tars(folder / "test", samples())


def _joined(captions: list[str], where: str) -> str:
    """Join captions as CLIP_benchmark does: by newlines, those inside written as a backslash and an n."""
    if not captions:
        raise UserError(f"{where} has no caption", code="eval-set-invalid")
    for caption in captions:
        if not caption.strip():
            raise UserError(f"{where} has an empty caption", code="eval-set-invalid")
        if r"\n" in caption:
            raise UserError(
                rf"{where}: the caption {caption!r} holds a backslash before an n, which means a newline",
                code="eval-set-invalid",
            )
    return "\n".join(caption.replace("\n", r"\n") for caption in captions)


def _unpack_association(rows: Rows, folder: Path, progress: tqdm) -> int:
    """Write an association task's tars and questions; returns how many tars there are."""

    def samples(lines: TextIO) -> Iterator[_Sample]:
        written: set[str] = set()
        for where, row in _read_rows(rows, _ASSOCIATION_COLUMNS):
            _check_question(row, where)
            key_of: dict[str, str] = {}  # by a candidate's name
            for name, value in zip(row["candidates"], row["candidate_images"], strict=True):
                extension, data = _image_of(value, rows.cache, where)
                key = key_of[name] = hashlib.sha256(digest(name).encode() + data).hexdigest()[:32]
                if key not in written:
                    written.add(key)
                    yield [(f"{key}.{extension}", data)]
            associations = [key_of[name] for name in row["associations"]]
            question = {"cue": row["cue"], "candidates": list(key_of.values()), "associations": associations}
            lines.write(json.dumps(question) + "\n")
            progress.update()

    with (
        atomic_path(folder / "instances.jsonl") as temporary,
        temporary.open("w", encoding="ascii", newline="\n") as lines,
    ):
        return _write_tars(folder / "test", samples(lines))


def _check_question(row: dict[str, Any], where: str) -> None:
    candidates, images, associations = row["candidates"], row["candidate_images"], row["associations"]
    if not row["cue"] or not associations:
        raise UserError(f"{where} has no {'associations' if row['cue'] else 'cue'}", code="eval-set-invalid")
    if len(candidates) != len(images):
        raise UserError(
            f"{where} has {len(candidates)} candidates and {len(images)} images of candidates", code="eval-set-invalid"
        )
    if len(set(candidates)) != len(candidates):
        raise UserError(
            f"{where} has a candidate twice, so associations do not tell which is meant: {candidates}",
            code="eval-set-invalid",
        )
    if strange := [name for name in associations if name not in candidates]:
        raise UserError(
            f"{where}: the association {strange[0]!r} is none of the candidates {candidates}", code="eval-set-invalid"
        )


def _write_tars(folder: Path, samples: Iterator[_Sample]) -> int:
    """Write samples as they come into 0.tar, 1.tar, ...; returns how many tars there are."""
    upcoming = next(samples, None)

    def members() -> Iterator[tuple[str, bytes]]:
        nonlocal upcoming
        num_samples = num_bytes = 0
        while upcoming is not None and num_samples < TAR_SAMPLES:
            num_bytes += sum(BLOCK + len(data) + padding(len(data)) for _, data in upcoming)
            if num_samples and num_bytes > TAR_BYTES:
                break
            yield from upcoming
            num_samples += 1
            upcoming = next(samples, None)

    num_tars = 0
    while upcoming is not None:
        write_tar(folder / f"{num_tars}.tar", members())
        num_tars += 1
    return num_tars
