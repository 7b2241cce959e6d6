"""The brief's own configuration blocks are accepted as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import backbones, brief
from orchestrator.config.overrides import RequestError, keys, load

AS_IT_STANDS = """
Arch: {name: ResNet50, class_num: 80, pretrained: True, use_ml_decoder: True}
MLDecoder: {class_num: 80, query_num: 80, in_chans: 2048}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "ResNet50_ml_decoder.yaml"
    path.write_text(text)
    return path


def test_the_blocks_as_they_stand(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, AS_IT_STANDS))
    model = experiment.model
    assert experiment.name == "ResNet50_ml_decoder"
    assert (model.backbone, model.pretrained, model.head) == ("resnet50", True, "ml_decoder")
    assert (model.num_classes, model.query_num, model.in_features) == (80, 80, 2048)


def test_the_blocks_mix_with_our_keys_and_words(tmp_path: Path) -> None:
    path = written(tmp_path, AS_IT_STANDS + "optim: {lr: 1e-4}\nmodel: {embed_dim: 512}\n")
    experiment = load(path, ["MLDecoder.query_num=20", "Arch.use_ml_decoder=False", "data.image_size=448"])
    assert (experiment.model.query_num, experiment.model.embed_dim) == (20, 512)
    assert (experiment.model.head, experiment.optim.lr) == ("gap", 1e-4)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("ResNet50", "resnet50"),
        ("ResNet50_vd", "resnet50d"),
        ("ResNet101", "resnet101"),
        ("ResNet152", "resnet152"),
        ("PPLCNet_x1_0", "lcnet_100"),
        ("PPHGNetV2_B0", "hgnetv2_b0"),
        ("PPHGNetV2_B4", "hgnetv2_b4"),
        ("PPHGNetV2_B6", "hgnetv2_b6"),
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
    ],
)
def test_backbone_names(theirs: str, ours: str) -> None:
    assert load("digits", [f"Arch.name={theirs}"]).model.backbone == ours
    assert backbones.check(ours) is None


@pytest.mark.parametrize(
    "word", ["model.use_ml_decoder=false", "Arch.use_ml_decoder=False", "model.use_ml_decoder= FALSE"]
)
def test_the_alias_chooses_the_head_and_later_layers_win(word: str) -> None:
    assert load("digits", [word]).model.head == "gap"
    assert load("digits", [word], {"model.head": "ml_decoder"}).model.head == "ml_decoder"
    assert load("digits", ["model.head=gap"], {"model.use_ml_decoder": True}).model.head == "ml_decoder"


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["model.head=gap", "model.use_ml_decoder=true"], "model.head must have one value"),
        (["Arch.class_num=80", "MLDecoder.class_num=20"], "Arch.class_num=80 and MLDecoder.class_num=20"),
        (["MLDecoder.in_chans=2048", "MLDecoder.in_channels=512"], "model.in_features must have one value"),
        (["MLDecoder.class_num=10", "MLDecoder.query_num=20"], "query_num <= num_classes must hold"),
        (["model.use_ml_decoder=maybe"], "true (ml_decoder) or false (gap)"),
        (["Arch.pretrained=./output/best_model"], "evaluate, predict or export"),
        (["Arch.name=ResNet5O"], "Nearest: resnet50"),
    ],
)
def test_contradictions_and_slips(words: list[str], fragment: str) -> None:
    with pytest.raises(RequestError) as caught:
        load("digits", words)
    [problem] = caught.value.problems
    assert fragment in problem


def test_agreeing_spellings_are_no_contradiction() -> None:
    assert load("digits", ["model.head=gap", "model.use_ml_decoder=false"]).model.head == "gap"
    assert load("digits", ["Arch.class_num=80", "MLDecoder.class_num=80"]).model.num_classes == 80


def test_every_alias_leads_to_a_key() -> None:
    assert set(brief.ALIASES.values()) <= set(keys())
    assert not set(brief.ALIASES) & set(keys())
