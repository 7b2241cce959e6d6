"""`best/`: the weights of the best trial and what is needed to use them, without the training code's state."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import with_overrides
from orchestrator.execution.runfolder import RunFolder
from orchestrator.search.study import TrialRecord
from trainables import checkpoint_files

if TYPE_CHECKING:
    from trainables.classifier import Classifier


def write_best(
    folder: RunFolder,
    experiment: Experiment,
    best: TrialRecord,
    classes: Sequence[str],
    unseen: Sequence[int] = (),
) -> Path | None:
    """Replace `best/` by the weights of `best` at its best epoch; None when it left no checkpoint.

    `bundle.json` holds the model's configuration, the class names in label order, the size and normalisation
    of its images, and what these weights reached (mAP or top1): enough to build the model again (`rebuild`).
    """
    found = checkpoint_files.latest(folder.checkpoints(best.number))
    if found is None:
        return None
    checkpoint, counters = found
    trained = with_overrides(experiment, best.overrides)
    beside, final = folder.path / f".best.{os.getpid()}", folder.path / "best"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copyfile(checkpoint / checkpoint_files.BEST, beside / "model.safetensors")
    # What the training started from is in the weights; a word decoder's words are, too (`head.words`).
    alone = {"pretrained": False, "weights": None}
    content = {
        "trial": best.number,
        "epoch": counters.best_epoch,
        trained.model.objective: counters.best_score,
        "overrides": best.overrides,
        "model": trained.model.model_copy(update=alone | {"num_classes": len(classes)}).model_dump(mode="json"),
        "classes": list(classes),
        "unseen": [classes[label] for label in unseen],
        "image_size": trained.data.image_size,
        "resize": trained.data.resize,
        "crop_share": trained.data.crop_share,
        "mean": trained.data.mean,
        "std": trained.data.std,
    }
    (beside / "bundle.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    return final


def rebuild(bundle: Path) -> Classifier:
    """The model of a bundle, with its weights, in evaluation mode; RuntimeError where they do not fit."""
    from safetensors.torch import load_file

    from trainables.classifier import build
    from trainables.config import ModelConfig

    content = json.loads((bundle / "bundle.json").read_text())
    weights = load_file(bundle / "model.safetensors")
    model = build(ModelConfig(**content["model"]), image_size=content["image_size"], words=weights.get("head.words"))
    model.load_state_dict(weights)
    return model.eval()
