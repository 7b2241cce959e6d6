"""Override words, YAML files and sampled values: one tree, all mistakes at once."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import overrides
from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import RequestError, load, override_words, parse_words, with_overrides
from search_spaces import yaml_files

SHIPPED = yaml_files.names(overrides.FOLDER)


def problems(*words: str, name: str = "digits", **options: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        load(name, words, **options)
    return list(caught.value.problems)


def value_of(experiment: Experiment, key: str) -> Any:
    node: Any = experiment
    for part in key.split("."):
        node = getattr(node, part)
    return node


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optim.lr=3e-4", 3e-4),
        ("train.epochs=12", 12),
        ("model.query_num=null", None),
        ("model.query_num=None", None),
        ("optim.clip_norm=", None),
        ("data.root=none", None),
        ("data.root=s3://bucket/a=b", "s3://bucket/a=b"),
        ("data.root=2017", "2017"),
        ("data.keep_unlabelled=false", False),
        ("cluster.use_gpu=true", True),
        ("cluster.use_gpu=null", None),
        ("train.channels_last=on", "on"),
        ("sweep.pruner.name=none", "none"),
        ("model.feature_stride=32", 32),
        ("data.mean=[0, .5, 1]", (0.0, 0.5, 1.0)),
        ("data.mean=0,0.5,1", (0.0, 0.5, 1.0)),
        ("sweep.pruner.group_by=model.head", ("model.head",)),
        ("sweep.pruner.group_by=['model.head', \"model.backbone\"]", ("model.head", "model.backbone")),
        ("sweep.pruner.group_by=[]", ()),
        ("data.digits.side=64", 64),
    ],
)
def test_a_value_is_read_by_its_declared_type(word: str, expected: Any) -> None:
    value = value_of(load("digits", [word]), word.partition("=")[0])
    assert value == expected
    assert type(value) is type(expected)


def test_a_yaml_file_is_read_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "optim: {lr: 3e-4, clip_norm: null}\ntrain: {channels_last: on, epochs: '7'}\n"
        "data: {mean: [0, 0, 0], root:}\nmodel.dropout: 0.2\nloss:\n"
    )
    experiment = load(path)
    assert (experiment.name, experiment.optim.lr, experiment.optim.clip_norm) == ("mine", 3e-4, None)
    assert (experiment.train.channels_last, experiment.train.epochs) == ("on", 7)
    assert (experiment.data.mean, experiment.data.root, experiment.model.dropout) == ((0, 0, 0), None, 0.2)


def test_precedence_is_file_then_words_then_sampled() -> None:
    assert load("digits").optim.lr == 7e-3
    assert load("digits", ["optim.lr=1e-3"]).optim.lr == 1e-3
    assert load("digits", ["optim.lr=1e-3"], {"optim.lr": 5e-4}).optim.lr == 5e-4


def test_all_mistakes_of_file_words_and_samples_are_raised_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: -1}\nmodle: {head: gap}\n")
    found = problems(
        "train.epoch=3", "oops", "optim.schedule=cosin", name=str(path), sampled={"model.backbone": "resnet5"}
    )
    assert len(found) == 6
    for fragments in [
        ("modle.head", "model.head"),
        ("'oops'", "key=value"),
        ("train.epoch ", "Nearest: train.epochs"),
        ("optim.lr > 0 must hold, but got optim.lr=-1",),
        ("optim.schedule=cosin", "one_cycle, cosine, step, constant", "Nearest: cosine"),
        ("model.backbone=resnet5", "resnet50"),
    ]:
        assert any(all(fragment in problem for fragment in fragments) for problem in found), (
            fragments,
            found,
        )


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("lr=1", "Nearest: optim.lr"),
        ("optim.learning_rate=1", "optim.lr"),
        ("model.num_head=1", "Nearest: model.num_heads"),
        ("Arch.clas_num=3", "Nearest: Arch.class_num"),
        ("loss=3", "Its keys: loss.name,"),
        ("train.epochs=2.5", "train.epochs must be a whole number, but got train.epochs=2.5"),
        ("train.epochs=true", "train.epochs must be a whole number"),
        ("optim.lr=fast", "optim.lr must be a number"),
        ("data.keep_unlabelled=maybe", "must be true or false"),
        ("cluster.use_gpu=maybe", "true or false, or null"),
        ("model.feature_stride=15", "one of 4, 8, 16, 32, or null"),
        ("data.mean=1,2", "a list of 3, each a number, but got data.mean=1,2"),
        ("data.std=1,2,x", "data.std must be a list of 3"),
        ("loss.clip=1", "loss.clip < 1 must hold"),
        ("name=a/../b", "name must match"),
        ("sweep.pruner.group_by=model.haed", "Nearest: model.head"),
        ("model.num_heads=3", "model: embed_dim must be divisible by num_heads"),
        ("cluster.workers=128", "train.batch_size >= cluster.workers"),
    ],
)
def test_each_mistake_is_told_with_its_way_out(word: str, fragment: str) -> None:
    [problem] = problems(word)
    assert fragment in problem


def test_an_unknown_experiment_names_the_nearest_and_all_and_still_judges_the_words() -> None:
    found = problems("optim.lr=-1", "model.embed_dim=100", name="digist")
    assert "Did you mean digits?" in found[0]
    assert ", ".join(SHIPPED) in found[0]
    # embed_dim=100 might fit the num_heads of the file that was meant.
    assert found[1:] == ["optim.lr > 0 must hold, but got optim.lr=-1."]


@pytest.mark.parametrize("content", ["a: [", "- 1", "optim: {lr: 1}\noptim: {lr: 2}", "\x00"])
def test_a_broken_file_is_a_request_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    [problem] = problems(name=str(path))
    assert "broken.yaml" in problem


def test_pretrained_weights_must_exist() -> None:
    assert load("digits", ["model.pretrained=true"]).model.pretrained
    [problem] = problems("model.pretrained=yes", "model.backbone=lcnet_035")
    assert "none for lcnet_035" in problem


def test_a_sampled_bool_is_no_number() -> None:
    [problem] = problems(sampled={"train.epochs": True})
    assert "whole number" in problem


def test_parse_words_splits_at_the_first_equals_sign_and_collects() -> None:
    assert parse_words(["a.b=c=d", "e="]) == {"a.b": "c=d", "e": ""}
    assert parse_words(["a=1", "a=1"]) == {"a": "1"}
    with pytest.raises(RequestError) as caught:
        parse_words(["x", "=1", "a=1", "a=2"])
    assert len(caught.value.problems) == 3


def test_apply_leaves_its_arguments_alone_and_checks_keys() -> None:
    tree = {"optim": {"lr": "1"}, "model": {"use_ml_decoder": "true"}}
    changed = overrides.apply(tree, {"optim.lr": 2.0, "model.head": "gap"})
    assert changed == {"optim": {"lr": "2.0"}, "model": {"head": "gap"}}
    assert tree == {"optim": {"lr": "1"}, "model": {"use_ml_decoder": "true"}}
    with pytest.raises(RequestError, match=r"no\.such"):
        overrides.apply(tree, {"no.such": 1})


def test_with_overrides_copies() -> None:
    experiment = load("digits")
    changed = with_overrides(experiment, {"optim.lr": 1.25e-3, "model.query_num": 5, "model.use_ml_decoder": False})
    assert (changed.optim.lr, changed.model.query_num, changed.model.head) == (1.25e-3, 5, "gap")
    assert experiment == load("digits")
    with pytest.raises(RequestError, match="query_num <= num_classes"):
        with_overrides(experiment, {"model.num_classes": 4, "model.query_num": 5})


@pytest.mark.parametrize("name", SHIPPED)
def test_the_words_of_an_experiment_rebuild_it_through_a_shell(name: str) -> None:
    experiment = load(name, ['data.root=/a b/$HOME\'s "x"', "sweep.pruner.group_by="])
    argv = shlex.split(" ".join(override_words(experiment)))
    assert load("digits", argv) == experiment


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "optim.lr": st.floats(1e-12, 1e3),
            "optim.clip_norm": st.none() | st.floats(1e-6, 10),
            "train.seed": st.integers(0, 2**63),
            "model.query_num": st.none() | st.integers(1, 80),
            "model.head": st.sampled_from(["ml_decoder", "gap"]),
            "model.feature_stride": st.sampled_from([None, 4, 8, 16, 32]),
            "loss.disable_focal_grad": st.booleans(),
            "data.mean": st.tuples(*[st.floats(0, 1)] * 3),
            "output.root": st.text(min_size=1),
        },
    )
)
def test_words_and_sampled_values_mean_the_same(values: dict[str, Any]) -> None:
    argv = shlex.split(" ".join(override_words(values)))
    experiment = load("digits", argv)
    assert experiment == load("digits", sampled=values) == with_overrides(load("digits"), values)
    assert all(value_of(experiment, key) == value for key, value in values.items())


def test_keys_are_the_leaves_of_the_tree() -> None:
    assert {"name", "optim.lr", "sweep.pruner.grace", "data.digits.side"} <= set(overrides.keys())
    assert not {"optim", "sweep.pruner", "model.use_ml_decoder"} & set(overrides.keys())
    assert overrides.keys()["optim.lr"] is float
    experiment = load("digits")
    for key in iter(overrides.keys()):
        value_of(experiment, key)


def test_a_request_error_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(RequestError("a", "b"))).problems == ("a", "b")
