"""Keeps what a module computes from its weights alone between forward passes, as long as they stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class _Entry(NamedTuple):
    key: tuple[Any, ...]
    sources: tuple[Tensor, ...]
    result: Pair


class EvalCache:
    """The last result of a function of some tensors; computed again when one of them has changed.

    A change is seen by identity and autograd's version counter. Writes through `.data` leave neither a trace
    nor a warning, so on the CPU the contents are compared, too: a copy of them is kept for that, and for a
    768 x 768 projection the comparison takes a quarter of the product's time. On other devices a comparison
    would make every batch wait; there, write weights under `torch.no_grad()`, as optimizers and
    `load_state_dict` do, or call `clear`. Copies and pickles of a module start empty.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def get(self, sources: Sequence[Tensor], compute: Callable[[], Pair]) -> Pair:
        """`compute()`, a function of `sources` alone, or its last result.

        `sources` belong to the module: a temporary tensor may have another's address. Nothing is kept where
        gradients may be asked for, or while a graph is traced.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        if any(t.is_inference() or t.is_meta for t in sources):  # whose changes nobody counts
            return compute()
        device = sources[0].device
        key = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type), *map(_identity, sources))
        entry = self._entry
        # zip: on other devices than the CPU no copies are kept, and there is nothing to compare
        if entry is None or entry.key != key or not all(torch.equal(*pair) for pair in zip(entry.sources, sources)):  # noqa: B905
            copies = tuple(t.detach().clone() for t in sources) if device.type == "cpu" else ()
            self._entry = entry = _Entry(key, copies, compute())
        return entry.result

    def clear(self) -> None:
        """Forget the last result."""
        self._entry = None

    def __deepcopy__(self, memo: dict[int, Any]) -> EvalCache:
        return EvalCache()

    def __reduce__(self) -> tuple[type[EvalCache], tuple[()]]:
        return EvalCache, ()


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.dtype, tensor.device
