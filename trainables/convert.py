"""State dicts of others <-> ours, of a bare ML-Decoder head or of a whole model.

Ours: the backbone in timm's names under `backbone.trunk.`, the head under `head.`. What is read:

- timm: any backbone; the ML-Decoder head wherever it hangs, or the linear classifier.
- the authors (Alibaba-MIIL/ML_Decoder): their TResNet in timm's names (what they call TResNet-L is timm's
  `tresnet_v2_l`; timm lacks their TResNet-XL), any other body as timm's; the head under `fc.` or `head.`.
- PaddleClas: ResNet50, 101, 152 and their `_vd` forms; the head, or the linear classifier `fc`.

Nothing here knows the model: whether names and shapes fit it is for `initial_weights` to check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from timm.models.tresnet import checkpoint_filter_fn as tresnet_in_timms_names

from trainables import convert_heads, convert_paddle
from trainables.weight_files import Tensors, WeightsError

Part = Literal["all", "backbone"]

TRUNK, HEAD = "backbone.trunk.", "head."
_LINEAR = "linear."
# What timm calls its classifier in most families.
_CLASSIFIERS = ("fc", "head.fc", "classifier", "head", "last_linear")
_DECODERS = {"timm": "duplicate_pooling", "reference": "decoder.duplicate_pooling", "paddle": "group_conv.weight"}


def from_timm(state_dict: Tensors, *, classifier: str | None = None, part: Part = "all") -> Tensors:
    """timm's tensors in our names. `classifier` is timm's name of the linear one; None looks for the usual names.

    Raises:
        WeightsError: the ML-Decoder head is not one that ours can be.
    """
    classifiers = _CLASSIFIERS if classifier is None else (classifier,)
    return _from(_split(state_dict, "timm", classifiers), part, convert_heads.from_timm)


def from_reference(state_dict: Tensors, *, part: Part = "all") -> Tensors:
    """The authors' tensors in our names; WeightsError as `from_timm`."""
    split = _split(state_dict, "reference", _CLASSIFIERS)
    if "body.conv1.0.weight" in split.body:
        split = split._replace(body=tresnet_in_timms_names(split.body, None))
    return _from(split, part, convert_heads.from_reference)


def from_paddle(state_dict: Tensors, *, num_classes: int | None = None, part: Part = "all") -> Tensors:
    """PaddleClas's tensors in our names; WeightsError as `from_timm`, and for a backbone that is not covered.

    `num_classes` is needed where the head's queries have more slots than there are classes: the file has them all.
    """
    split = _split(state_dict, "paddle", ("fc",))
    if split.body:
        split = split._replace(body=convert_paddle.from_paddle(split.body))
    if not split.is_decoder and "weight" in split.head:
        split = split._replace(head=split.head | {"weight": split.head["weight"].T.contiguous()})
    return _from(split, part, lambda head: convert_heads.from_paddle(head, num_classes))


def to_timm(state_dict: Tensors, *, classifier: str = "fc") -> Tensors:
    """Inverse of `from_timm`; the head goes under `classifier`, timm's name for it in this family."""
    return _to(_split_ours(state_dict), f"{classifier}.", convert_heads.to_timm)


def to_reference(state_dict: Tensors, *, classifier: str = "fc") -> Tensors:
    """Inverse of `from_reference`, with the backbone in timm's names, TResNet's too."""
    return _to(_split_ours(state_dict), f"{classifier}.", convert_heads.to_reference)


def to_paddle(state_dict: Tensors) -> Tensors:
    """Inverse of `from_paddle`."""
    split = _split_ours(state_dict)
    if split.body:
        split = split._replace(body=convert_paddle.to_paddle(split.body))
    if not split.is_decoder and "weight" in split.head:
        split = split._replace(head=split.head | {"weight": split.head["weight"].T.contiguous()})
    return _to(split, "fc.", convert_heads.to_paddle)


class _Split(NamedTuple):
    """A state dict in its parts, each without prefix."""

    body: Tensors
    head: Tensors
    is_decoder: bool
    is_bare: bool
    """The head was all there was, without a prefix."""


def _split(state_dict: Tensors, whose: str, classifiers: Iterable[str]) -> _Split:
    mark = _DECODERS[whose]
    prefixes = {name.removesuffix(mark) for name in state_dict if name == mark or name.endswith(f".{mark}")}
    if len(prefixes) > 1:
        raise WeightsError(f"weights must have one ML-Decoder head, but there are some at {sorted(prefixes)}.")
    for prefix in prefixes:
        head = under(prefix, state_dict)
        body = {name: tensor for name, tensor in state_dict.items() if not name.startswith(prefix)}
        return _Split(body, head, is_decoder=True, is_bare=prefix == "")
    for name in classifiers:
        weight = state_dict.get(f"{name}.weight")
        if weight is not None and weight.ndim >= 2 and weight[0, 0].numel() == 1:  # (K, C), or a 1 x 1 convolution
            names = (f"{name}.weight", f"{name}.bias")
            head = under(f"{name}.", {key: state_dict[key] for key in names if key in state_dict})
            body = {key: tensor for key, tensor in state_dict.items() if key not in names}
            return _Split(body, head | {"weight": weight.flatten(1)}, is_decoder=False, is_bare=False)
    return _Split(dict(state_dict), {}, is_decoder=False, is_bare=False)


def _split_ours(state_dict: Tensors) -> _Split:
    is_bare = "group_weight" in state_dict
    head = dict(state_dict) if is_bare else under(HEAD, state_dict)
    body = {} if is_bare else under(TRUNK, state_dict)
    is_decoder = "group_weight" in head
    if len(body) + len(head) < len(state_dict) or not (is_decoder or {"linear.weight", "linear.bias"} >= set(head)):
        raise WeightsError(
            f"weights must be our backbone's under {TRUNK}, an ML-Decoder's or a linear classifier's under {HEAD}, "
            f"but got {', '.join(list(state_dict)[:5])} ... ({len(state_dict)} tensors)."
        )
    return _Split(body, head if is_decoder else under(_LINEAR, head), is_decoder, is_bare)


def _from(split: _Split, part: Part, to_our_head: Callable[[Tensors], Tensors]) -> Tensors:
    if split.is_bare:
        return to_our_head(split.head)
    ours = {TRUNK + name: tensor for name, tensor in split.body.items()}
    if part == "all" and split.head:
        prefix, head = (HEAD, to_our_head(split.head)) if split.is_decoder else (HEAD + _LINEAR, split.head)
        ours |= {prefix + name: tensor for name, tensor in head.items()}
    return ours


def _to(split: _Split, prefix: str, to_their_head: Callable[[Tensors], Tensors]) -> Tensors:
    head = to_their_head(split.head) if split.is_decoder else split.head
    return head if split.is_bare else split.body | {prefix + name: tensor for name, tensor in head.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
