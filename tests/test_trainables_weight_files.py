"""Reading files of weights: every format's variants, and files that are damaged or hostile."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainables.weight_files import WeightsError, read

torch.set_num_threads(1)

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0])}
ARRAYS = {name: tensor.numpy() for name, tensor in TENSORS.items()}


def _written(path: Path, content: Any, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_safetensors_are_known_by_content(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(TENSORS, path)
    _assert_same(read(str(path)), TENSORS)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "tar", "pdparams"])
def test_torch_files_old_and_new_are_known_by_content(tmp_path: Path, suffix: str, is_zip: bool) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=is_zip)
    _assert_same(read(str(path)), TENSORS)


def test_a_training_checkpoint_gives_its_averaged_weights_first(tmp_path: Path) -> None:
    path = str(tmp_path / "last.pth.tar")
    checkpoint: dict[str, Any] = {"epoch": 3, "args": argparse.Namespace(lr=0.1)}
    expected = {"model": 1.0, "state_dict": 2.0, "model_ema": 3.0, "state_dict_ema": 4.0}
    for key, value in expected.items():  # each that is added goes before those that are there
        checkpoint[key] = {f"module.{name}": torch.full_like(tensor, value) for name, tensor in TENSORS.items()}
        torch.save(checkpoint, path)
        _assert_same(read(path), {name: torch.full_like(tensor, value) for name, tensor in TENSORS.items()})


def _under_numpy_1s_name(data: bytes) -> bytes:
    assert b"numpy._core.multiarray" in data
    if not data.startswith(b"\x80\x04"):  # a name ends with the line
        return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    data = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")  # the length goes before it
    frame = int.from_bytes(data[3:11], "little") - 1
    return data[:3] + frame.to_bytes(8, "little") + data[11:]


@pytest.mark.parametrize("rename", [bytes, _under_numpy_1s_name])
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_paddle_files_of_every_protocol_and_numpy(
    tmp_path: Path, kind: type, protocol: int, rename: Callable[[bytes], bytes]
) -> None:
    content = kind({**ARRAYS, "StructuredToParameterName@@": {name: "linear_0.w_0" for name in ARRAYS}})
    path = tmp_path / "weights.pdparams"
    path.write_bytes(rename(pickle.dumps(content, protocol=protocol)))
    found = read(str(path))
    _assert_same(found, TENSORS)
    found["a.weight"].add_(1.0)  # a tensor of its own, not a view into the file


def test_the_oldest_paddle_files_hold_arrays_as_python_2_wrote_them(tmp_path: Path) -> None:
    """Python 2's strings: SHORT_BINSTRING (U) and BINSTRING (T) for names and numbers, here 1.5 and -2.0."""
    numbers = np.array([1.5, -2.0], "<f4").tobytes()
    content = (
        b"\x80\x02}U\x06a.biascnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(numbers).to_bytes(4, "little") + numbers + b"tbs."
    )
    (tmp_path / "w.pdparams").write_bytes(content)
    _assert_same(read(str(tmp_path / "w.pdparams")), {"a.bias": TENSORS["a.bias"]})


def test_arrays_that_paddle_divided_are_made_whole(tmp_path: Path) -> None:
    slices = ["a.weight@@.0", "a.weight@@.1"]
    flat = ARRAYS["a.weight"].flatten()
    content = {
        "a.bias": ARRAYS["a.bias"],
        slices[0]: flat[:4],
        slices[1]: flat[4:],
        "UnpackBigParamInfor@@": {"a.weight": {"OriginShape": (2, 3), "slices": slices}},
    }
    _assert_same(read(_written(tmp_path / "w.pdparams", content, protocol=2)), TENSORS)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.array(7, dtype=np.int64),
        np.zeros((0, 3), np.float16),
        np.array([True, False]),
    ],
)
def test_arrays_of_any_layout_keep_their_values(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    found = read(_written(tmp_path / "w.pdparams", {"x": array}))["x"].numpy()
    assert found.dtype == array.dtype.newbyteorder("=") and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def _files(folder: Path) -> list[Path]:
    save_file(TENSORS, folder / "w.safetensors")
    torch.save(TENSORS, folder / "w.pth")
    torch.save(TENSORS, folder / "old.pth", _use_new_zipfile_serialization=False)
    _written(folder / "w.pdparams", ARRAYS)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    for path in _files(tmp_path):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(WeightsError, match=path.name):
            read(str(path))


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "page": b"<!DOCTYPE html><html>", "text": b"{" * 40}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="safetensors, torch or PaddlePaddle"):
            read(str(tmp_path / name))
    for path in (tmp_path, tmp_path / "missing.pth"):
        with pytest.raises(WeightsError, match="a file that can be read"):
            read(str(path))


@pytest.mark.parametrize(
    "content, complaint",
    [
        ({}, "holds none"),
        ({"net": {"w": torch.zeros(1)}, "epoch": 3}, r"2 other entries: 'net' \(dict\), 'epoch' \(int\)"),
        ([torch.zeros(1)], "state dict alone"),
        (torch.zeros(1), "state dict alone"),
    ],
)
def test_a_torch_file_without_tensors_by_name_is_refused(tmp_path: Path, content: Any, complaint: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=complaint):
        read(str(tmp_path / "w.pth"))
