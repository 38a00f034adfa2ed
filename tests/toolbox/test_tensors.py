"""Arrays of numpy's and torch's files, read as data: what each kind of file holds, in place, and nothing is run."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from benchmark.toolbox.embeddings import embedding_blocks
from benchmark.toolbox.tensors import open_array
from tests.conftest import user_error

ROWS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


class Code:
    """A pickle that would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("protocol", [2, 4])  # DataComp's script saves centroids with 4, which torch's own reader lacks
@pytest.mark.parametrize(
    "wrap",
    [
        torch.from_numpy,
        np.asarray,
        np.asfortranarray,
        lambda rows: {"image_features": torch.from_numpy(rows), "labels": torch.arange(50), "note": "ImageNet"},
        lambda rows: torch.cat([torch.zeros(3, 8).to(torch.from_numpy(rows)), torch.from_numpy(rows)])[3:],
    ],
)
def test_tensors_and_arrays_of_torch_are_read(tmp_path, dtype, protocol, wrap):
    rows = ROWS.astype(dtype)
    torch.save(wrap(rows), tmp_path / "a.pt", pickle_protocol=protocol)
    found = open_array(tmp_path / "a.pt")
    assert found.dtype == dtype and np.array_equal(found, rows)


def test_tensors_and_npy_files_are_mapped_not_read(tmp_path):
    torch.save(torch.from_numpy(ROWS), tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", ROWS)
    for name in ("a.pt", "a.npy"):
        found = open_array(tmp_path / name)
        base = found
        while not isinstance(base, np.memmap):
            base = base.base
        assert np.array_equal(found, ROWS)


@pytest.mark.filterwarnings("ignore")  # torch warns of its own script
def test_a_torchscript_archive_is_called_one(tmp_path):
    class Doubled(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return 2 * values

    torch.jit.script(Doubled()).save(tmp_path / "a.pt")
    torch.save(torch.from_numpy(ROWS), tmp_path / "constants.pkl.pt")
    with user_error("torchscript") as caught:
        open_array(tmp_path / "a.pt")
    assert caught.value.code == "torchscript"
    assert np.array_equal(open_array(tmp_path / "constants.pkl.pt"), ROWS)


def test_files_from_before_torchs_zip_format_are_read(tmp_path):
    torch.save({"image_features": torch.from_numpy(ROWS)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert np.array_equal(open_array(tmp_path / "a.pt"), ROWS)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, is_zip):
    torch.save({"image_features": Code(tmp_path / "run")}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    with user_error("asset-invalid", match=r"a\.pt"):
        open_array(tmp_path / "a.pt")
    assert not (tmp_path / "run").exists()


def test_what_a_pickle_names_is_told(tmp_path):
    torch.save(Code(tmp_path / "run"), tmp_path / "a.pt")
    with user_error("asset-invalid", match=r"posix\.mkdir"):
        open_array(tmp_path / "a.pt")


def saved(value):
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (saved(torch.arange(9)), "'image_features'"),
        (saved({"features": torch.ones(2, 2)}), "'image_features'"),
        (saved(np.array(["a"], dtype=object)), "no tensor of floats"),
        (saved(torch.ones(2, 2).to(torch.bfloat16)), "no tensor or array of floats"),
        (saved(torch.ones(3, 2).T), "contiguous"),
        (lambda path: path.write_bytes(b"text"), "holds no tensor of floats"),
        (lambda path: path.write_bytes(b""), "holds no tensor of floats"),
        (lambda path: path.write_bytes(pickle.dumps([1])), "holds no tensor of floats"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a/b", b""), "archive"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(tmp_path, write, message):
    write(tmp_path / "a.pt")
    with user_error("asset-invalid", match=message) as raised:
        list(embedding_blocks(tmp_path / "a.pt", 2, option="filters.image_based.targets"))
    told = str(raised.value)
    assert told.startswith(f"filters.image_based.targets: {tmp_path / 'a.pt'} holds no") and "\n" not in told


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    torch.save(torch.from_numpy(ROWS), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in archive.namelist():
            data = archive.read(name)
            cut.writestr(name, data[:-4] if name == "a/data/0" else data)
    with user_error("asset-invalid", match="a/data/0"):
        open_array(tmp_path / "cut.pt")
