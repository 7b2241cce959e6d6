"""The part of an experiment that `trainables` owns: model, loss, optimizer and training length.

Free of torch, so that a dry run can check it. Every class is frozen and refuses unknown keys;
`orchestrator.config.experiment` composes them into the tree that a YAML file describes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    """A frozen node of the configuration tree; unknown keys are an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )


class ModelConfig(Settings):
    """A timm backbone and the head that replaces its pooling."""

    backbone: str = "resnet50"
    """timm name, with or without a weights tag (`resnet50`, `resnet50.a1_in1k`)."""
    pretrained: bool = False
    """Start from timm's published weights of this name (needs them in the hub cache or a network)."""
    weights: str | None = None
    """Start from this file instead: ours, timm's, the ML-Decoder authors' or PaddleClas's (`trainables.convert`)."""
    weights_part: Literal["all", "backbone"] = "all"
    """Of `weights`: `all` wants a head that fits and says so where it does not; `backbone` starts a new head."""
    head: Literal["ml_decoder", "gap", "word_decoder"] = "ml_decoder"
    """ML-Decoder; global average pooling and one linear layer; ML-Decoder with words as queries (zero-shot)."""
    task: Literal["multi_label", "single_label"] = "multi_label"
    """Any number of classes an image, judged by mAP; exactly one, judged by top-1 accuracy."""
    num_classes: int | None = Field(None, ge=1)
    """Taken from the data; when given (`class_num` in the brief) it must agree with it."""
    in_features: int | None = Field(None, ge=1)
    """Channels of the backbone's feature map; inferred, and checked when given (`in_chans` in the brief)."""
    feature_stride: Literal[4, 8, 16, 32] | None = None
    """Use the deepest stage whose stride is at most this; None is the backbone's last stage. For small images."""
    query_num: int | None = Field(None, ge=1)
    """Queries of the decoder, at most num_classes; None is one query per class."""
    embed_dim: int = Field(768, ge=1)
    num_heads: int = Field(8, ge=1)
    feedforward_dim: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """Inside the decoder; the pooling head has none."""
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
    """Stochastic depth in the backbone (arXiv 1603.09382), for families that have it."""
    gradient_checkpointing: bool = False
    """Compute the backbone's activations again in the backward pass: less memory, about a third more time."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone` trains the head alone, on features of a backbone in evaluation mode."""

    @property
    def objective(self) -> str:
        """The metric, in [0, 1], that decides which weights and which trial are best."""
        return "mAP" if self.task == "multi_label" else "top1"

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, but got embed_dim={self.embed_dim}, "
                f"num_heads={self.num_heads}."
            )
        if self.num_classes is not None and self.query_num is not None and self.query_num > self.num_classes:
            raise ValueError(
                f"query_num <= num_classes must hold, but got query_num={self.query_num}, "
                f"num_classes={self.num_classes}. Lower model.query_num or its search space."
            )
        if self.pretrained and self.weights is not None:
            raise ValueError(
                f"the backbone must start from one set of weights, but got pretrained=true and weights={self.weights}. "
                "Drop one of model.pretrained and model.weights."
            )
        return self


class WordsConfig(Settings):
    """Query augmentation of the word decoder in training (arXiv 2111.12933): what it sees beside the seen words."""

    noise: float = Field(0.0, ge=0.0)
    """Standard deviation of Gaussian noise on word vectors of unit length, divided by the root of their width."""
    num_mixed: int = Field(0, ge=0)
    """Queries added to each batch that lie between two seen words; their labels lie between, too."""
    num_random: int = Field(0, ge=0)
    """Queries added to each batch that mean nothing; no image is positive for them."""


class LossConfig(Settings):
    """Asymmetric loss (arXiv 2009.14119) with the ML-Decoder recipe's values, or a cross-entropy."""

    name: Literal["asymmetric", "bce", "cross_entropy"] = "asymmetric"
    """`cross_entropy` (softmax) is for single-label tasks; the other two judge each class by itself."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over images and classes: what gradient clipping, SGD and LAMB's trust see; AdamW does not notice."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Of single-label targets: this mass is spread over all classes."""
    target_threshold: float | None = Field(None, gt=0.0, lt=1.0)
    """bce: mixed targets above this count as 1, the others as 0 (the A2 recipe of arXiv 2110.00476: 0.2)."""
    gamma_pos: float = Field(0.0, ge=0.0)
    gamma_neg: float = Field(4.0, ge=0.0)
    clip: float = Field(0.05, ge=0.0, lt=1.0)
    disable_focal_grad: bool = True


class OptimConfig(Settings):
    """An optimizer of timm.optim without decay on biases and norms, and a schedule stepped once a batch."""

    name: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    lr: float = Field(1e-4, gt=0.0)
    """Peak learning rate at the global batch size `train.batch_size`."""
    weight_decay: float = Field(1e-4, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Of SGD (Nesterov's)."""
    head_lr_multiple: float = Field(1.0, gt=0.0)
    """Learning rate of the head relative to the backbone's."""
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = "one_cycle"
    """`one_cycle` as in the ML-Decoder recipe; `cosine` and `step` with a linear warm-up; `constant`."""
    milestones: tuple[Share, ...] = ()
    """step: shares of all steps at which the rate falls to a tenth."""
    warmup_share: float = Field(0.2, ge=0.0, lt=1.0)
    """Share of all steps that the rate rises (OneCycle's pct_start; the warm-up of cosine)."""
    clip_norm: float | None = Field(None, gt=0.0)
    """Largest norm of the gradient of all parameters together."""

    @model_validator(mode="after")
    def _rising(self) -> OptimConfig:
        if list(self.milestones) != sorted(set(self.milestones)) or (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                "schedule=step needs milestones in rising order and the other schedules none, but got "
                f"schedule={self.schedule}, milestones={list(self.milestones)}."
            )
        return self


class AugmentConfig(Settings):
    """What training images go through on the device, in this order; the ML-Decoder recipe cuts out, then distorts."""

    crop: Literal["none", "random_resized"] = "none"
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """random_resized: area of the crop, as a share of the image's."""
    flip: Share = 0.0
    """Probability of a horizontal mirror image."""
    cutout: Share = 0.0
    """Side of a square of random colour, as a share of the image's side; 0.5 in the recipe, 0: none."""
    cutout_probability: Share = 1.0
    rand_augment: Literal["none", "ml_decoder", "increasing"] = "none"
    """`ml_decoder`: the recipe's 15 operations of 9 magnitudes; `increasing`: timm's rand-mM-mstdS-inc1."""
    rand_magnitude: float = Field(7.0, ge=0.0, le=10.0)
    rand_magnitude_std: float = Field(0.5, ge=0.0)
    """increasing: M and S, in tenths of the largest distortion."""
    mixup: float = Field(0.0, ge=0.0)
    cutmix: float = Field(0.0, ge=0.0)
    """alpha of the Beta distribution of the mixing share, one share a batch; where both are set, each takes half."""
    repeats: int = Field(1, ge=1)
    """Repeated augmentation (arXiv 1902.05509): a batch holds each image this often, an epoch fewer images."""

    @model_validator(mode="after")
    def _scale(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(f"0 < crop_scale[0] <= crop_scale[1] must hold, but got crop_scale={self.crop_scale}.")
        return self


class TrainConfig(Settings):
    """How long and how a trial trains."""

    epochs: int = Field(40, ge=0)
    """Length of the schedule, the same for all trials of a sweep, so that epochs compare; 0 only evaluates."""
    image_size: int | None = Field(None, ge=8)
    """Height and width in training; None: that of the data, at which the model is judged."""
    image_size_start: int | None = Field(None, ge=8)
    """Progressive size: the first epochs train at this size, the last at `image_size`, in steps of 32 pixels."""
    batch_size: int = Field(64, ge=1)
    """Global: the sum over all workers. A learning rate keeps its meaning under any number of workers."""
    batch_size_per_worker: int | None = Field(None, ge=1)
    """Fixes each worker's batch instead; the global batch and the learning rate then follow (`lr_scaling`)."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """Only with batch_size_per_worker: how lr follows the global batch, relative to train.batch_size."""
    seed: int = Field(0, ge=0)
    ema_decay: float = Field(0.9997, ge=0.0, lt=1.0)
    """Exponential moving average of the weights, with warm-up; 0 turns it off. The average is what is evaluated."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the device has it in hardware (GPU), float32 elsewhere."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    sync_batch_norm: bool = False
    """Batch statistics over all workers (GPUs only)."""
    eval_batch_size: int = Field(128, ge=1)
    checkpoint_interval_s: float = Field(10.0, ge=0.0)
    """A checkpoint is written at the end of the first epoch after this many seconds, and at the last; 0: each epoch."""
    keep_checkpoints: int = Field(2, ge=1)
