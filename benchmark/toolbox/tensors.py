"""Arrays in files of numpy (.npy) or torch (.pt), opened in place and as data: a pickle may hold nothing else."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX, open_memmap

from benchmark.runtime.errors import UserError, one_line

FEATURES_KEY = "image_features"  # under which DataComp's files of ImageNet's embeddings hold them
FLOATS = ("f2", "f4", "f8")
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of its name and of what follows it
NOT_ARRAYS = (pickle.UnpicklingError, EOFError, TypeError, ValueError, LookupError, AttributeError, ImportError)


def open_array(path: Path) -> np.ndarray:
    """Open an array of floats without reading it, where its file allows that: what torch.save made of numpy's does not.

    Of a dict, as DataComp's files hold one, it is what stands under "image_features". Raises ValueError where the file
    holds something else, such as a pickle with code, which is not run.
    """
    with path.open("rb") as file:
        is_numpys = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
    if not is_numpys and is_torchscript(path):
        raise UserError(f"{path} is a TorchScript archive, a program and no tensor of floats", code="torchscript")
    if not is_numpys and zipfile.is_zipfile(path):
        try:
            return _open_zip(path)
        except (*NOT_ARRAYS, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no tensor of floats ({one_line(error)})", code="asset-invalid") from error
    if not is_numpys and path.suffix == ".pt":
        return _load_old(path)
    try:
        return open_memmap(path, mode="r")
    except ValueError as error:
        raise UserError(
            f"{path} is not an .npy file of numbers, nor torch's ({error})", code="asset-invalid"
        ) from error


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive: a program of torch's, with its weights."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _open_zip(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if member is None:
            raise UserError("it is another kind of archive", code="asset-invalid")
        with archive.open(member) as file:
            reader = _Reader(file)
            reader.open_storage = partial(_open_storage, path, archive, member.removesuffix("data.pkl"))
            return _features(reader.load())


def _features(value: Any) -> np.ndarray:
    value = value.get(FEATURES_KEY) if isinstance(value, dict) else value
    value = value.values if isinstance(value, _Array) else value
    if not isinstance(value, np.ndarray):
        raise UserError(f"no tensor or array of floats, and no dict with one as {FEATURES_KEY!r}", code="asset-invalid")
    return value


def _open_storage(path: Path, archive: zipfile.ZipFile, prefix: str, kind: str, key: str, count: int) -> np.ndarray:
    """Map a tensor's numbers in the file itself."""
    info = archive.getinfo(f"{prefix}data/{key}")
    if info.compress_type != zipfile.ZIP_STORED or count * np.dtype(kind).itemsize > info.file_size:
        raise UserError(f"{info.filename} is cut off or compressed", code="asset-invalid")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return np.memmap(
        path, f"<{kind}", mode="r", offset=info.header_offset + LOCAL_HEADER.size + sum(lengths), shape=count
    )


def _load_old(path: Path) -> np.ndarray:
    """Read a file of torch's from before its zip format."""
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        value = value.get(FEATURES_KEY) if isinstance(value, dict) else value
        return _features(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
    except (*NOT_ARRAYS, RuntimeError) as error:  # torch's own words advise to load it all the same
        raise UserError(
            f"{path} holds no tensor of floats that torch reads with weights_only", code="asset-invalid"
        ) from error


# --- Unpickling: what a file names is never imported, these stand for it -------------------------------------------


class _Dtype:
    def __init__(self, kind: str, *_: Any) -> None:
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    """An array of numpy's; `values` is None where it holds no floats."""

    values: np.ndarray | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if dtype.kind in FLOATS:
            array = np.frombuffer(content, f"{'>' if dtype.order == '>' else '<'}{dtype.kind}")
            self.values = array.reshape(shape, order="F" if is_fortran else "C")


def _rebuild_tensor(storage: np.ndarray | None, offset: int, shape: tuple, strides: tuple, *_: Any) -> Any:
    if storage is None:
        return None
    if strides != tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))) or offset < 0:
        raise UserError("its tensor is not contiguous; save tensor.contiguous()", code="asset-invalid")
    return storage[offset : offset + math.prod(shape)].reshape(shape)


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


class _Storage:
    """A kind of torch's storages; None where it holds no floats that numpy has."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind


STAND_INS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
}
STORAGES = {"HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8"}


class _Reader(pickle.Unpickler):
    open_storage: Any

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return _Storage(STORAGES.get(name))
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of one, and nothing was run")
        return STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray | None:
        _, storage, key, _, count = pid
        return None if storage.kind is None else self.open_storage(storage.kind, key, count)
