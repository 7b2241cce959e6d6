"""The part of an experiment that `trainables` owns: model, loss, optimizer and training length.

Free of torch, so that a dry run can check it. Every class is frozen and refuses unknown keys;
`orchestrator.config.experiment` composes them into the tree that a YAML file describes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """A frozen node of the configuration tree; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class ModelConfig(Settings):
    """A timm backbone and the head that replaces its pooling."""

    backbone: str = "resnet50"
    """timm name, with or without a weights tag (`resnet50`, `resnet50.a1_in1k`)."""
    pretrained: bool = False
    """Start from timm's published weights of this name (needs them in the hub cache or a network)."""
    head: Literal["ml_decoder", "gap"] = "ml_decoder"
    """ML-Decoder, or global average pooling and one linear layer."""
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
        return self


class LossConfig(Settings):
    """Asymmetric loss (arXiv 2009.14119) with the ML-Decoder recipe's values, or plain binary cross-entropy."""

    name: Literal["asymmetric", "bce"] = "asymmetric"
    gamma_pos: float = Field(0.0, ge=0.0)
    gamma_neg: float = Field(4.0, ge=0.0)
    clip: float = Field(0.05, ge=0.0, lt=1.0)
    disable_focal_grad: bool = True


class OptimConfig(Settings):
    """AdamW without decay on biases and norms, and a schedule stepped once a batch."""

    lr: float = Field(1e-4, gt=0.0)
    """Peak learning rate at the global batch size `train.batch_size`."""
    weight_decay: float = Field(1e-4, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """`one_cycle` as in the ML-Decoder recipe; `cosine` with a linear warm-up; `constant`."""
    warmup_share: float = Field(0.2, ge=0.0, lt=1.0)
    """Share of all steps that the rate rises (OneCycle's pct_start; the warm-up of cosine)."""
    clip_norm: float | None = Field(None, gt=0.0)


class TrainConfig(Settings):
    """How long and how a trial trains."""

    epochs: int = Field(40, ge=1)
    """Length of the schedule, the same for all trials of a sweep, so that epochs compare."""
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
