"""ML-Decoder heads: timm's, the authors' and PaddleClas's tensors by name <-> ours.

All four compute the same function; class c belongs to slot c % G of query c // G in each. They differ in names, in
how the attention's projections are packed, in the layout of the group projection, and PaddlePaddle stores the
weight of a linear layer as (in, out). Covered is the published head: one decoder layer, without self-attention,
without word vectors.

Shape letters: C feature channels, K classes, Q queries, G classes per query, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainables.groups import group_size
from trainables.weight_files import Tensors, WeightsError


class HeadError(WeightsError):
    """An ML-Decoder head that ours cannot be."""


_LAYER = "decoder.layers.0."
_KINDS = ("weight", "bias")


def _in_pairs(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in _KINDS}


_SAME_IN_ALL = {
    key: value
    for name in ("norm1", "norm2", "norm3", "linear1", "linear2")
    for key, value in _in_pairs(name, _LAYER + name).items()
}
_TIMM = {
    **_SAME_IN_ALL,
    **_in_pairs("input_proj", "embed_standart"),
    **_in_pairs("out_proj", f"{_LAYER}multihead_attn.out_proj"),
    "queries": "query_embed.weight",
    "group_weight": "duplicate_pooling",
    "group_bias": "duplicate_pooling_bias",
}
_TIMM_IN_PROJ = {kind: f"{_LAYER}multihead_attn.in_proj_{kind}" for kind in _KINDS}
_TIMM_NAMES = (*_TIMM.values(), *_TIMM_IN_PROJ.values())
# The authors hang on their decoder what timm hangs on the head.
_REFERENCE = {name: name if name.startswith("decoder.") else f"decoder.{name}" for name in _TIMM_NAMES}
_PADDLE = {
    **_SAME_IN_ALL,
    **_in_pairs("input_proj", "input_proj"),
    **_in_pairs("out_proj", f"{_LAYER}cross_attn.out_proj"),
    "queries": "query_pos_embed.weight",
}
_PADDLE_ATTENTION = tuple(f"{_LAYER}cross_attn.{letter}_proj" for letter in "qkv")
_PADDLE_GROUPS = "group_conv"
_PADDLE_NAMES = (
    *_PADDLE.values(),
    *(f"{module}.{kind}" for module in (*_PADDLE_ATTENTION, _PADDLE_GROUPS) for kind in _KINDS),
)
_PADDLE_LINEAR = ("linear1.weight", "linear2.weight", "out_proj.weight")
"""Our names of what PaddlePaddle stores transposed, besides the attention's three."""

_OUR_NAMES = (*_TIMM, *(f"{name}.{kind}" for name in ("query_proj", "key_value_proj") for kind in _KINDS))


def from_timm(head: Tensors) -> Tensors:
    """timm's head, without prefix, in our names; HeadError if it is not exactly one."""
    _check_names(head, _TIMM_NAMES, "timm's")
    ours = {name: head[theirs] for name, theirs in _TIMM.items()}
    for kind, theirs in _TIMM_IN_PROJ.items():
        query, key, value = head[theirs].chunk(3)
        ours |= {f"query_proj.{kind}": query, f"key_value_proj.{kind}": torch.cat((key, value))}
    return _own(_without_surplus_queries(ours))


def to_timm(head: Tensors) -> Tensors:
    """Inverse of `from_timm`."""
    _check_names(head, _OUR_NAMES, "our")
    theirs = {name: head[ours] for ours, name in _TIMM.items()}
    for kind, name in _TIMM_IN_PROJ.items():
        theirs[name] = torch.cat((head[f"query_proj.{kind}"], head[f"key_value_proj.{kind}"]))
    return _own(theirs)


def from_reference(head: Tensors) -> Tensors:
    """The authors' head, without prefix, in our names; HeadError if it is not exactly one."""
    _check_names(head, _REFERENCE.values(), "the authors'")
    return from_timm({name: head[theirs] for name, theirs in _REFERENCE.items()})


def to_reference(head: Tensors) -> Tensors:
    """Inverse of `from_reference`."""
    return {_REFERENCE[name]: tensor for name, tensor in to_timm(head).items()}


def from_paddle(head: Tensors, num_classes: int | None = None) -> Tensors:
    """PaddleClas's head, without prefix, in our names; HeadError if it is not exactly one.

    Its file has a bias for every slot and does not say how many classes it was made for: any number that fills
    the same slots fits. None takes all slots for classes.
    """
    _check_names(head, _PADDLE_NAMES, "PaddleClas's")
    ours = {name: head[theirs] for name, theirs in _PADDLE.items()}
    ours["input_proj.weight"] = ours["input_proj.weight"].flatten(1)  # (D, C, 1, 1)
    ours |= {name: ours[name].T for name in _PADDLE_LINEAR}
    ours["query_proj.weight"], *key_value = (head[f"{name}.weight"].T for name in _PADDLE_ATTENTION)
    ours["key_value_proj.weight"] = torch.cat(key_value)
    ours["query_proj.bias"], *key_value = (head[f"{name}.bias"] for name in _PADDLE_ATTENTION)
    ours["key_value_proj.bias"] = torch.cat(key_value)
    query_num = len(ours["queries"])
    slots = head[f"{_PADDLE_GROUPS}.weight"].flatten(1)  # (Q * G, D)
    ours["group_weight"] = slots.unflatten(0, (query_num, -1)).transpose(1, 2)
    ours["group_bias"] = head[f"{_PADDLE_GROUPS}.bias"][:num_classes]
    if num_classes is not None and len(ours["group_bias"]) < num_classes:
        raise HeadError(f"PaddleClas's head must have a slot for each of {num_classes} classes, has {len(slots)}.")
    return _own(_without_surplus_queries(ours))


def to_paddle(head: Tensors) -> Tensors:
    """Inverse of `from_paddle`; slots without a class get a bias of 0."""
    _check_names(head, _OUR_NAMES, "our")
    ours = head | {name: head[name].T for name in _PADDLE_LINEAR}
    ours["input_proj.weight"] = head["input_proj.weight"][..., None, None]
    theirs = {name: ours[our_name] for our_name, name in _PADDLE.items()}
    for kind in _KINDS:
        parts = (head[f"query_proj.{kind}"], *head[f"key_value_proj.{kind}"].chunk(2))
        for name, part in zip(_PADDLE_ATTENTION, parts, strict=True):
            theirs[f"{name}.{kind}"] = part.T if kind == "weight" else part
    slots = head["group_weight"].transpose(1, 2).flatten(0, 1)
    bias = head["group_bias"]
    theirs[f"{_PADDLE_GROUPS}.weight"] = slots[..., None, None]
    theirs[f"{_PADDLE_GROUPS}.bias"] = torch.cat((bias, bias.new_zeros(len(slots) - len(bias))))
    return _own(theirs)


def _check_names(head: Tensors, names: Iterable[str], whose: str) -> None:
    missing, unknown = sorted(set(names) - set(head)), sorted(set(head) - set(names))
    if missing or unknown:
        raise HeadError(
            f"an ML-Decoder head in {whose} names must have exactly its tensors, but {len(missing)} are missing "
            f"({', '.join(missing[:5])}) and {len(unknown)} unknown ({', '.join(unknown[:5])}). "
            "Heads of several layers, with self-attention or with word vectors are not covered."
        )


def _without_surplus_queries(head: Tensors) -> Tensors:
    """Cut to the first K queries, the only ones that own classes: a head may have been built with more."""
    num_classes, query_num = len(head["group_bias"]), len(head["queries"])
    kept = min(query_num, num_classes)
    shape = (query_num, head["queries"].shape[1], group_size(num_classes, kept))
    if head["group_weight"].shape != shape:
        raise HeadError(
            f"the group projection of {query_num} queries and {num_classes} classes must be {shape}, but is "
            f"{tuple(head['group_weight'].shape)}. Was the head made for another number of classes?"
        )
    return head | {name: head[name][:kept] for name in ("queries", "group_weight")}


def _own(tensors: Tensors) -> Tensors:
    """Contiguous copies: views into one tensor cannot be saved as safetensors."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
