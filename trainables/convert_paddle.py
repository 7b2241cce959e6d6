"""Names of PaddleClas's ResNets <-> timm's, as data that both directions read.

Covered are ResNet50, 101 and 152 (timm's `resnet50` and so on) and their `_vd` forms (`resnet50d`). ResNet18 and 34
differ as networks: PaddleClas's have a convolution in the first block's shortcut, for which timm's has no place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainables.weight_files import Tensors, WeightsError

_LEAVES = {"weight": "weight", "bias": "bias", "_mean": "running_mean", "_variance": "running_var"}


@dataclass(frozen=True)
class Layout:
    """What names depend on: blocks per stage, and the `_vd` form (three convolutions as stem, pooled shortcuts)."""

    blocks: tuple[int, ...]
    is_vd: bool

    def modules(self) -> dict[str, str]:
        """PaddleClas's module -> timm's, for every convolution and normalisation."""
        names: dict[str, str] = {}
        if self.is_vd:
            for i, (conv, norm) in enumerate((("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))):
                names |= {f"stem.{i}.conv": conv, f"stem.{i}.bn": norm}
        else:
            names |= {"stem.0.conv": "conv1", "stem.0.bn": "bn1"}
        places = [f"layer{stage}.{i}" for stage, count in enumerate(self.blocks, 1) for i in range(count)]
        shortcut = ("downsample.1", "downsample.2") if self.is_vd else ("downsample.0", "downsample.1")
        for n, place in enumerate(places):
            for i in range(3):
                names |= {f"blocks.{n}.conv{i}.conv": f"{place}.conv{i + 1}"}
                names |= {f"blocks.{n}.conv{i}.bn": f"{place}.bn{i + 1}"}
            names |= {f"blocks.{n}.short.conv": f"{place}.{shortcut[0]}"}
            names |= {f"blocks.{n}.short.bn": f"{place}.{shortcut[1]}"}
        return names


def from_paddle(body: Tensors) -> Tensors:
    """A PaddleClas ResNet without its head in timm's names; WeightsError if a name is of no ResNet.

    PaddlePaddle does not count batches, so `num_batches_tracked` is missing.
    """
    numbers = {int(found[1]) for name in body if (found := re.match(r"blocks\.(\d+)\.", name))}
    starts = sorted(n for n in numbers if f"blocks.{n}.short.conv.weight" in body)  # each stage's first block
    ends = [*starts[1:], max(numbers, default=-1) + 1]
    blocks = tuple(end - start for start, end in zip(starts, ends, strict=False))
    layout = Layout(blocks, is_vd="stem.1.conv.weight" in body)
    return _renamed(body, layout.modules(), _LEAVES, "PaddleClas's ResNet50, 101 or 152")


def to_paddle(body: Tensors) -> Tensors:
    """A ResNet without its head in PaddleClas's names; WeightsError if a name is of no ResNet with bottlenecks."""
    found = [match for name in body if (match := re.match(r"layer(\d+)\.(\d+)\.conv3\.", name))]
    stages = sorted({int(match[1]) for match in found})
    blocks = tuple(max(int(match[2]) for match in found if int(match[1]) == stage) + 1 for stage in stages)
    modules = {theirs: name for name, theirs in Layout(blocks, is_vd="conv1.0.weight" in body).modules().items()}
    body = {name: tensor for name, tensor in body.items() if not name.endswith(".num_batches_tracked")}
    return _renamed(body, modules, {theirs: name for name, theirs in _LEAVES.items()}, "timm's ResNet50, 101 or 152")


def _renamed(body: Tensors, modules: dict[str, str], leaves: dict[str, str], whose: str) -> Tensors:
    renamed, unknown = {}, []
    if not any(re.match(r"(blocks\.0\.conv2|layer1\.0\.conv3)\.", name) for name in body):
        unknown = sorted(body)  # blocks of two convolutions: the network itself differs
    for name, tensor in body.items():
        module, _, leaf = name.rpartition(".")
        if module in modules and leaf in leaves:
            renamed[f"{modules[module]}.{leaves[leaf]}"] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(
            f"a backbone must be {whose} (also `_vd`) to be converted, but {len(unknown)} of its {len(body)} names "
            f"are none of that: {', '.join(unknown[:5])}."
        )
    return renamed
