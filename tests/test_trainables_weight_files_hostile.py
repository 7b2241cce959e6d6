"""Files made to do harm: a pickle is a program, and reading weights must not run it."""

from __future__ import annotations

import codecs
import os
import pickle
import tracemalloc
from copyreg import _reconstructor  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables import weight_files
from trainables.weight_files import WeightsError, read

torch.set_num_threads(1)

ARRAY = np.array([1.5, -2.0], np.float32)


def _written(path: Path, content: Any, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


class _Does:
    """Pickles as a call of `function`, whose result is then given `state`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _hostile(marker: Path) -> dict[str, Any]:
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": {"w": _Does(os.system, f"touch {marker}")},
        "eval": {"w": _Does(eval, touch)},
        "exec": {"w": _Does(exec, touch)},
        "copyreg": {"w": _Does(_reconstructor, _Does(eval, f"[{touch}, type('X', (), {{}})][1]"), object, None)},
        "object array": {"w": np.array([_Does(eval, touch), 1], dtype=object)},
        "in a name": {_Does(eval, f"str({touch})"): ARRAY},
        "in paddle's table": {"w": ARRAY, "StructuredToParameterName@@": {"a": _Does(eval, touch)}},
        "not a dict": _Does(eval, touch),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("trick", _hostile(Path()))
def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path: Path, trick: str, protocol: int) -> None:
    marker = tmp_path / "ran"
    path = _written(tmp_path / "w.pdparams", _hostile(marker)[trick], protocol)
    with pytest.raises(WeightsError, match=r"which could run code|one is of 'O8'"):
        read(path)
    assert not marker.exists()
    pickle.loads(Path(path).read_bytes())  # the trick itself works, so that the refusal means something
    assert marker.exists()


@pytest.mark.parametrize(
    "name", ["numpy.f2py.crackfortran\nmyeval", "numpy\nload", "builtins\ngetattr", "torch\nload", "numpy\nmatrix"]
)
def test_names_beside_the_few_that_arrays_need_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(WeightsError, match=f"asks for {name}".replace("\n", r"\.")):
        read(str(tmp_path / "w.pdparams"))


def test_dotted_names_reach_nothing_through_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.")
    with pytest.raises(WeightsError, match=r"asks for numpy\.dtype\.__class__"):
        read(str(tmp_path / "w.pdparams"))


@pytest.mark.parametrize("name", ["collections\nOrderedDict", "numpy\ndtype", "numpy.core.multiarray\n_reconstruct"])
def test_what_a_pickle_may_use_it_cannot_change(tmp_path: Path, name: str) -> None:
    """BUILD sets attributes on whatever is on the stack: a dict `{"x": 1}` on a name that is allowed."""
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02c" + name.encode() + b"\n}U\x01xK\x01sb.")
    with pytest.raises(WeightsError, match="must not set attributes"):
        read(str(tmp_path / "w.pdparams"))


def _array(shape: Any, dtype: Any, data: Any) -> _Does:
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    return _Does(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


@pytest.mark.parametrize(
    "array, complaint",
    [
        (_array((10**12,), np.dtype("f4"), b"\0" * 4), "hold what its shape says"),
        (_array((-1, -1), np.dtype("f4"), b"\0" * 4), "hold what its shape says"),
        (_array((2,), np.dtype("f4"), [1.0, 2.0]), "hold what its shape says"),
        (_array((1,), np.dtype("f4"), _Does(codecs.encode, "ab", "utf-16-le")), "written as latin1"),
        # Bytes of the file as addresses of objects: it ended the process.
        (_array((1,), _Does(np.dtype, "f4", state=(3, "O,", None, None, None, -1, -1, 0)), b"A" * 12), "byte order"),
        (np.array([None]), "one is of 'O8'"),
        (np.array(["text"]), "one is of 'U4'"),
        (np.zeros(2, [("x", "f4")]), "one is of 'V4'"),
        (np.zeros(2, np.uint16), "one is of 'u2'"),  # what PaddlePaddle writes for bfloat16
        (1.0, r"other entries: 'w' \(float\)"),
        ([ARRAY], r"other entries: 'w' \(list\)"),
    ],
)
def test_anything_but_whole_arrays_of_numbers_is_refused(tmp_path: Path, array: Any, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        read(_written(tmp_path / "w.pdparams", {"w": array}))


def test_a_few_bytes_cannot_ask_for_much_memory() -> None:
    bomb = b"\x80\x02}r" + (2**31).to_bytes(4, "little") + b"."  # LONG_BINPUT: remember this under number 2^31
    tracemalloc.start()
    weight_files._Unpickler(bomb).load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_torch_file_that_runs_code_is_refused_before_it_does(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": _Does(os.system, f"touch {tmp_path / 'ran'}")}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match="state dict alone"):
        read(str(path))
    assert not (tmp_path / "ran").exists()
