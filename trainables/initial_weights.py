"""A model's first weights from a file: ours, timm's, the ML-Decoder authors' or PaddleClas's.

Nothing is left to chance: every tensor of the model comes from the file with the right shape, and every tensor of
the file is used, or belongs to something that the model left out on purpose. Otherwise nothing is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch

from trainables import convert, weight_files
from trainables.convert import HEAD, TRUNK, Part, under
from trainables.convert_heads import HeadError
from trainables.weight_files import Tensors, WeightsError

if TYPE_CHECKING:
    from trainables.backbones import Backbone
    from trainables.classifier import Classifier

Format = Literal["ours", "timm", "reference", "paddle"]
_OWNERS = {"ours": "this project", "timm": "timm", "reference": "the ML-Decoder authors", "paddle": "PaddleClas"}
_COUNTER = ".num_batches_tracked"  # of batch norms, which read it only without momentum; PaddlePaddle has none
_NEW_HEAD = "Set model.weights_part=backbone to start a new head."
_WORDS = "words"  # a word decoder keeps the words of its own data; the file's are another data set's


def load(model: Classifier, path: str, part: Part = "all") -> str:
    """Fill the model from a file and return one sentence on what was read.

    `part` "backbone" leaves the head as it is, and does not look at the file's. A word decoder keeps its words.
    A backbone that does not fit as it is goes through timm's own conversion for its family, which renames what
    older files call otherwise and resamples position embeddings of another image size.

    Raises:
        WeightsError: the file cannot be read, or does not fit as said above; it names the keys and shapes.
    """
    found = weight_files.read(path)
    source = detect(found)
    try:
        ours = _in_our_names(found, source, model, part)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error} {_NEW_HEAD if isinstance(error, HeadError) else ''}".rstrip()) from error
    body, remark = _fitted(under(TRUNK, ours), model.backbone)
    others = {name: tensor for name, tensor in ours.items() if not name.startswith((TRUNK, HEAD))}
    trunk, left_out = model.backbone.trunk.state_dict(), _left_out(model.backbone)
    _check(f"The backbone in {path}", trunk, body | others, ignored=left_out)
    loaded = {TRUNK + name: body[name] for name in trunk if name in body}
    if part == "all":
        head = {name: tensor for name, tensor in under(HEAD, ours).items() if name != _WORDS}
        wanted = {name: tensor for name, tensor in model.head.state_dict().items() if name != _WORDS}
        _check(f"The head in {path}, in our names,", wanted, head, way_out=_NEW_HEAD)
        if source != "ours":
            _check_what_the_head_reads(path, model, sorted(left_out & set(body)))
        loaded |= {HEAD + name: tensor for name, tensor in head.items()}
    model.load_state_dict(model.state_dict() | loaded)
    of_head = sum(name.startswith(HEAD) for name in loaded)
    aside = len(left_out & set(body))
    return (
        f"Read {len(loaded) - of_head} tensors of the backbone and {of_head} of the head from {path}, "
        f"in the names of {_OWNERS[source]}{remark}"
        + (f"; left {aside} aside, of parts that the model does not have." if aside else ".")
    )


def detect(names: Iterable[str]) -> Format:
    """Whose names these are; timm's where nothing says otherwise."""
    for name in names:
        if name.startswith(TRUNK):
            return "ours"
        if name.endswith((".decoder.duplicate_pooling", "body.conv1.0.weight")):
            return "reference"
        if name.endswith(("._mean", ".group_conv.weight")):
            return "paddle"
    return "timm"


def _in_our_names(found: Tensors, source: Format, model: Classifier, part: Part) -> Tensors:
    if source == "ours":
        return found
    if source == "reference":
        return convert.from_reference(found, part=part)
    if source == "paddle":
        num_classes = getattr(model.head, "num_classes", None)
        return convert.from_paddle(found, num_classes=num_classes, part=part)
    name = _record(model.backbone)["classifier"]
    return convert.from_timm(found, classifier=name if isinstance(name, str) else None, part=part)


def _record(backbone: Backbone) -> dict[str, Any]:
    """timm's record of the backbone: its architecture, the name (or names) of its classifier, ..."""
    trunk: Any = backbone.trunk
    return trunk.pretrained_cfg


def _fitted(body: Tensors, backbone: Backbone) -> tuple[Tensors, str]:
    """The backbone, through timm's conversion where it does not fit as it is, and a remark on what that changed."""
    trunk = backbone.trunk.state_dict()
    if all(name.endswith(_COUNTER) or (name in body and body[name].shape == t.shape) for name, t in trunk.items()):
        return body, ""
    entrypoint = timm.model_entrypoint(_record(backbone)["architecture"])
    filter_fn = getattr(sys.modules[entrypoint.__module__], "checkpoint_filter_fn", None)
    if filter_fn is None:
        return body, ""
    try:
        fitted = filter_fn(dict(body), backbone.trunk)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return body, ""  # it is meant for other files; the check names what does not fit
    changed = [name for name, tensor in fitted.items() if name in body and tensor.shape != body[name].shape]
    remarks = [f"resampled {', '.join(changed)}"] if changed else []
    remarks += [f"dropped {len(body) - len(fitted)} tensors"] if len(fitted) < len(body) else []
    return fitted, f"; timm's conversion {' and '.join(remarks)}" if remarks else ""


def _left_out(backbone: Backbone) -> set[str]:
    """Names of the whole timm model that `Backbone` does not keep, its classifier's among them."""
    with torch.device("meta"):
        whole = timm.create_model(_record(backbone)["architecture"])
    return set(whole.state_dict()) - set(backbone.trunk.state_dict())


def _check(
    what: str,
    wanted: Tensors,
    found: Tensors,
    *,
    ignored: Collection[str] = (),
    way_out: str = "Is it another model's?",
) -> None:
    both = [(name, tensor, found[name]) for name, tensor in wanted.items() if name in found]
    missing = [f"{n} {tuple(t.shape)}" for n, t in wanted.items() if n not in found and not n.endswith(_COUNTER)]
    unknown = [f"{n} {tuple(t.shape)}" for n, t in found.items() if n not in wanted and n not in ignored]
    odd = [f"{n} {tuple(f.shape)} instead of {tuple(t.shape)}" for n, t, f in both if f.shape != t.shape]
    odd += [f"{n} {f.dtype}" for n, t, f in both if t.is_floating_point() and not f.is_floating_point()]
    kinds = (("missing", missing), ("without a place in the model", unknown), ("of another shape or type", odd))
    said = "; ".join(f"{len(names)} tensors {kind}: {', '.join(names[:5])}" for kind, names in kinds if names)
    if said:
        raise WeightsError(f"{what} must fit the model tensor by tensor, but has {said}. {way_out}")


def _check_what_the_head_reads(path: str, model: Classifier, between: list[str]) -> None:
    """A foreign head fits only what it was trained on: ML-Decoder the feature map, a linear classifier its mean."""
    if between:
        raise WeightsError(
            f"The head in {path} must read the feature map, but it comes after {', '.join(between[:5])} "
            f"({len(between)} tensors), which this model does not have. {_NEW_HEAD}"
        )
    if "linear.weight" in model.head.state_dict() and not _pools_by_mean(model.backbone):
        raise WeightsError(
            f"The head in {path} must read the mean of the feature map, but in timm "
            f"{_record(model.backbone)['architecture']}'s reads something else. {_NEW_HEAD}"
        )


@torch.no_grad()
def _pools_by_mean(backbone: Backbone) -> bool:
    """Whether timm's way from this family's feature map to its classifier is the mean over positions."""
    readout, trunk = backbone.readout, backbone.trunk
    if readout.stage is not None:
        return False
    weight = next(trunk.parameters())
    noise = torch.Generator().manual_seed(0)  # its own: a loaded model must not shift the run's random numbers
    features_BCHW = torch.randn(1, readout.in_features, 3, 2, generator=noise).to(weight)
    mean_BC = features_BCHW.mean(dim=(2, 3))
    was_training = trunk.training
    try:
        trunk.eval()  # some families drop features by default
        features = features_BCHW.permute(0, 2, 3, 1) if readout.channels_last else features_BCHW
        pooled = trunk.forward_head(features, pre_logits=True)  # type: ignore[operator]
    except (AssertionError, AttributeError, RuntimeError, TypeError):
        return False
    finally:
        trunk.train(was_training)
    return pooled.shape == mean_BC.shape and torch.allclose(pooled, mean_BC, atol=1e-5)
