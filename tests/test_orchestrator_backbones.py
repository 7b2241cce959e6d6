"""The generated list of backbone names, and what is said about a name that is not on it."""

from __future__ import annotations

import pytest

from orchestrator.config import backbones


def test_a_known_name_with_and_without_tag() -> None:
    assert backbones.check("resnet50") is None
    assert backbones.check("resnet50.a1_in1k", pretrained=True) is None
    assert backbones.check("resnet50", pretrained=True) is None


def test_a_typo_names_the_nearest() -> None:
    problem = backbones.check("resnet5O")
    assert problem is not None
    assert "resnet50" in problem
    problem = backbones.check("$%&")
    assert problem is not None
    assert "backbones.txt" in problem


def test_a_name_without_published_weights() -> None:
    assert backbones.check("lcnet_035") is None
    problem = backbones.check("lcnet_035", pretrained=True)
    assert problem is not None
    assert "none for lcnet_035" in problem


@pytest.mark.slow
def test_the_list_is_that_of_the_installed_timm() -> None:
    names = backbones.from_timm()
    assert sorted(backbones.known()) == names, "run python -m orchestrator.config.backbones --write"
