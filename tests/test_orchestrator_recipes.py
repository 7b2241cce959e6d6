"""Every shipped experiment: it says what it is, it resolves, its model can be built, and it can take a step."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import timm
import torch

from orchestrator.config import overrides
from orchestrator.config.experiment import Experiment
from search_spaces import space as spaces
from search_spaces import yaml_files
from trainables import optim
from trainables.classifier import Classifier, build
from trainables.groups import distinct_query_nums
from trainables.inputs import Pixels, TrainInputs
from trainables.losses import build_loss
from trainables.word_decoder import WordDecoder

torch.set_num_threads(1)

NAMES = yaml_files.names(overrides.FOLDER)
SIDE, BATCH = 64, 4
"""Of the shrunken step: pixels, images."""


def _startable(name: str) -> Experiment:
    """Without the files that the recipe starts from; where the data decides, with 12 classes."""
    experiment = overrides.load(name)
    changes = {"model.pretrained": False, "model.weights": None}
    return overrides.with_overrides(experiment, {**changes, "model.num_classes": experiment.model.num_classes or 12})


def _build(experiment: Experiment, side: int) -> Classifier:
    words = torch.ones(experiment.model.num_classes or 0, 300) if experiment.model.head == "word_decoder" else None
    return build(experiment.model, image_size=side, words=words)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_states_what_how_and_at_what_price(name: str) -> None:
    lines = (overrides.FOLDER / f"{name}.yaml").read_text().splitlines()
    comment = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for part in ("What:", "Command:", "Expected:", "Cost:"):
        assert part in comment, part
    command = re.search(r"python -m orchestrator\.(?:sweep|train)(?: (\S+))?", comment)
    assert command and command[1] == (None if name == "digits" else name)
    assert name == "digits" or "not yet measured" in comment


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves_with_its_space(name: str) -> None:
    experiment = overrides.load(name)
    assert experiment.name == name
    num_classes = experiment.model.num_classes or (10 if experiment.data.source == "digits" else 80)
    assert spaces.read(experiment.sweep.space).problems(num_classes, overrides.keys(), distinct_query_nums) == []


def test_every_recipe_differs_from_its_base() -> None:
    found = 0
    for name in NAMES:
        base = yaml_files.read(overrides.FOLDER / f"{name}.yaml").get("base")
        if base is not None:
            found += 1
            assert overrides.load(name).model_copy(update={"name": base}) != overrides.load(base), name
    assert found > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_model_can_be_built_without_allocating_it(name: str) -> None:
    experiment = _startable(name)
    side = experiment.data.image_size
    with torch.device("meta"):
        model = _build(experiment, side)
    assert all(p.device.type == "meta" for p in model.parameters())
    assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, experiment.model.num_classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_a_shrunken_step(name: str) -> None:
    torch.manual_seed(0)
    experiment = _startable(name)
    model = _build(experiment, SIDE).train()
    pixels = Pixels(torch.device("cpu"), experiment.data.mean, experiment.data.std)
    words = model.head.words if isinstance(model.head, WordDecoder) else None
    seen = None if words is None else torch.arange(len(words) - 2)
    inputs = TrainInputs(pixels, experiment.augment, lambda epoch: SIDE, experiment.words, words, seen)
    generator = np.random.default_rng(0)
    num_classes = experiment.model.num_classes or 0
    labels = np.eye(num_classes, dtype=np.uint8)[generator.integers(num_classes, size=BATCH)]
    batch = {"image": generator.integers(0, 256, (BATCH, 3, SIDE, SIDE), np.uint8), "labels": labels}
    optimizer = optim.build_optimizer(model, experiment.optim)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    arguments, targets = inputs(batch, 0)
    logits = model(*arguments)
    loss = build_loss(experiment.loss)(logits, targets)
    loss.backward()
    optimizer.step()

    assert logits.shape == targets.shape == (BATCH, num_classes if seen is None else len(seen))
    assert loss.isfinite() and loss > 0
    after = dict(model.named_parameters())
    assert all(after[name].isfinite().all() for name in before)
    assert all(after[name].grad is not None for name in before)
    # Residual branches start at zero, so behind them the first gradient is zero, too.
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert any(name.startswith("backbone.") for name in moved) == (experiment.model.freeze == "none")
    assert [name for name in before if name.startswith("head.") and name not in moved] == []
    if experiment.train.epochs:  # the shrunken schedule ends where the whole one does
        factors = [optim.lr_factor(experiment.optim, step, 100) for step in range(100)]
        assert 0 < max(factors) <= 1 and factors[-1] < 0.2


def test_no_two_recipes_train_the_same() -> None:
    # A name of timm without a tag means its default weights: resnet50 is resnet50.a1_in1k.
    seen: dict[str, str] = {}
    for name in NAMES:
        experiment = overrides.load(name)
        model = experiment.model
        tag = timm.get_pretrained_cfg(model.backbone).tag if model.pretrained else ""
        backbone = model.backbone.partition(".")[0] + (f".{tag}" if tag else "")
        resolved = experiment.model_copy(update={"name": "", "model": model.model_copy(update={"backbone": backbone})})
        content = resolved.model_dump_json()
        assert content not in seen, (name, seen[content])
        seen[content] = name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_own_rate_lies_in_its_space(name: str) -> None:
    experiment = overrides.load(name)
    num_classes = experiment.model.num_classes or (10 if experiment.data.source == "digits" else 80)
    resolved = spaces.read(experiment.sweep.space).resolve(num_classes, distinct_query_nums)
    ends = list(resolved.ends())
    rates = [value for key, value in ends if key == "optim.lr"]
    assert not rates or min(rates) <= experiment.optim.lr <= max(rates)
    assert experiment.model.weights is None or "model.backbone" not in dict(ends)
