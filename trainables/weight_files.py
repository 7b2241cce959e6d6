"""Files of weights -> tensors by name, without running anything that a file says.

The format is found by content, not by suffix: safetensors; what `torch.save` writes (`.pth`, `.pt`, `.tar`), read
with `weights_only`; and PaddlePaddle's `.pdparams`, a Python pickle of numpy arrays. A pickle is a program, so the
last is read by an unpickler that knows four names, builds stand-ins instead of numpy objects, and makes an array
only once its type, shape and number of bytes agree.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models import load_state_dict as load_torch_file

Tensors = dict[str, torch.Tensor]

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, as its files began before 1.6
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04")

_DTYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"})
_PARTS, _NAMES = "UnpackBigParamInfor@@", "StructuredToParameterName@@"  # PaddlePaddle's own entries, its spelling


class WeightsError(ValueError):
    """A file of weights that cannot be read, is not one, or does not fit the model."""


def read(path: str) -> Tensors:
    """All tensors of a file by name, on the CPU.

    Where a torch file holds more than one set, the first of these is taken (timm's order): `state_dict_ema`,
    `model_ema`, `state_dict`, `model`, the file's own dict. Prefixes of wrappers (`module.`, `_orig_mod.`) go.

    Raises:
        WeightsError: the file is missing, damaged, of another format, holds anything but tensors by name, or
            is a pickle that names anything but numpy arrays of numbers.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise WeightsError(f"weights must be a file that can be read, but {path}: {error}") from error
    if begin.startswith((_ZIP, _OLD_TORCH)):
        return _checked(_attempt(path, lambda: load_torch_file(path)), path)
    if _is_safetensors(begin):
        return _checked(_attempt(path, lambda: load_file(path)), path)
    if begin.startswith(_PICKLE):
        return _checked(_attempt(path, lambda: _paddle_tensors(_Unpickler(Path(path).read_bytes()).load())), path)
    raise WeightsError(
        f"weights must be a safetensors, torch or PaddlePaddle (.pdparams) file, but {path} begins with "
        f"{begin[:16]!r}. Was the download cut off or answered with a web page?"
    )


def _is_safetensors(begin: bytes) -> bool:
    """Eight bytes of header length, then the header, a JSON object."""
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 2**40


def _attempt(path: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # damaged or hostile bytes make a reader raise anything at all
        raise WeightsError(
            f"weights must be a whole file of tensors, but reading {path} gave {error!r} "
            "Where the file is whole, save its state dict alone."
        ) from error


def _checked(found: dict[Any, Any], path: str) -> Tensors:
    if not found:
        raise WeightsError(f"weights must be tensors by name, but {path} holds none.")
    odd = [f"{name!r} ({type(value).__name__})" for name, value in found.items() if not _is_entry(name, value)]
    if odd:
        raise WeightsError(
            f"weights must be tensors by name, but {path} holds {len(odd)} other entries: {', '.join(odd[:5])}. "
            "Save the state dict by itself, or under `state_dict`."
        )
    return found


def _is_entry(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _paddle_tensors(found: Any) -> dict[Any, Any]:
    """PaddlePaddle's dict of arrays -> tensors, without its table of names and with divided arrays made whole.

    Before protocol 4 an array of 2^30 bytes or more is flattened and stored in slices, listed under `_PARTS`.
    """
    if not isinstance(found, dict):
        raise WeightsError(f"weights must be arrays by name, but the file holds a {type(found).__name__}.")
    divided = found.pop(_PARTS, {})
    found.pop(_NAMES, None)
    tensors = {name: value.tensor() if isinstance(value, _Array) else value for name, value in found.items()}
    for name, parts in divided.items():
        slices = [tensors.pop(part) for part in parts["slices"]]
        tensors[name] = torch.cat(slices).reshape(parts["OriginShape"])
    return tensors


class _Array:
    """What the file says of an array; `tensor` believes it once it is consistent."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> torch.Tensor:
        _, shape, dtype, is_fortran, data = self.state
        raw = data.encode("latin1") if isinstance(data, str) else data
        numbers = dtype.numpy_dtype()
        if not isinstance(raw, bytes) or min(shape, default=0) < 0 or math.prod(shape) * numbers.itemsize != len(raw):
            raise WeightsError(f"an array must hold what its shape says, but one of shape {shape} does not.")
        array = np.ndarray(shape, numbers, buffer=raw, order="F" if is_fortran else "C")
        return torch.from_numpy(array.astype(numbers.newbyteorder("="), order="C"))  # a copy, so that it can be written


class _DType:
    """A numpy dtype by name: one of plain numbers, never of objects."""

    def __init__(self, name: str, *_flags: Any) -> None:
        if name not in _DTYPES:
            raise WeightsError(f"arrays must hold one of {', '.join(sorted(_DTYPES))}, but one is of {name!r}.")
        self.name, self.byte_order = name, "="

    def __setstate__(self, state: Any) -> None:
        # A longer one could name fields of objects, which are addresses in memory.
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise WeightsError(f"the byte order of an array must be <, >, = or |, but one has the state {state!r}.")
        self.byte_order = state[1]

    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.byte_order + self.name)


class _Call:
    """A callable that the file may use but, unlike a function or class, not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise WeightsError("a file of weights must not set attributes, but this one does.")


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 has no bytes: they are written as text with an order to encode it."""
    if encoding != "latin1":
        raise WeightsError(f"bytes must be written as latin1, but got {encoding!r}.")
    return text.encode("latin1")


_ALLOWED = {
    "numpy.core.multiarray._reconstruct": _Call(lambda *_: _Array()),  # numpy 1
    "numpy._core.multiarray._reconstruct": _Call(lambda *_: _Array()),  # numpy 2
    "numpy.ndarray": "ndarray",  # only an argument of _reconstruct
    "numpy.dtype": _Call(_DType),
    "collections.OrderedDict": _Call(dict),
    "_codecs.encode": _Call(_encode),
}


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python: the C one gives a memo index in the file as much memory as it asks for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get(f"{module}.{name}")
        if allowed is None:
            raise WeightsError(
                f"a pickle of weights must hold numpy arrays alone, but it asks for {module}.{name}, which could run "
                "code. Do not load it elsewhere either, unless you know who wrote it."
            )
        return allowed
