"""How a data set reaches the workers, decided by arithmetic; free of Ray."""

from __future__ import annotations

from datasets.config import DataConfig
from datasets.schema import DataError

MIB = 2**20
RESIDENT_COPIES = 2
"""While it is decoded, a resident set lies in the object store twice: as Ray Data's blocks and as plain arrays."""
BUFFER_BYTES = 300 * MIB
"""What a streaming worker may hold of decoded images whose batch is not due yet."""


def crop_share(config: DataConfig) -> float | None:
    """What `transforms.fit` asks for: None where images are squashed."""
    return config.crop_share if config.resize == "center_crop" else None


def decoded_bytes(num_images: int, image_size: int) -> int:
    """Bytes of `num_images` decoded uint8 RGB images."""
    return num_images * 3 * image_size * image_size


def shuffle_window(image_size: int) -> int:
    """How far an image may be moved in the order of an epoch, in images: what fits the buffer."""
    return max(256, BUFFER_BYTES // decoded_bytes(1, image_size))


def choose_feeding(config: DataConfig, num_images: int, object_store_bytes: int) -> tuple[str, str]:
    """`("resident" | "streaming", why)` for a set of this size on nodes with this much object store.

    Raises:
        DataError: `data.feeding=resident` was asked for and cannot fit, with the arithmetic.
    """
    largest_side = max(config.image_size, config.train_side or 0)  # of nearly all images where they differ
    need, share = decoded_bytes(num_images, largest_side), config.resident_share * object_store_bytes
    facts = f"{num_images} decoded images take {need / MIB:,.0f} MiB, the stated share is {share / MIB:,.0f} MiB"
    if config.feeding == "resident" and RESIDENT_COPIES * need > object_store_bytes:
        raise DataError(
            f"a resident set must fit the object store {RESIDENT_COPIES} times while it is decoded, but it takes "
            f"{need / MIB:,.0f} MiB and the store of a node has {object_store_bytes / MIB:,.0f} MiB. Leave "
            "data.feeding=auto, lower data.image_size, or raise cluster.object_store_gib."
        )
    if config.feeding != "auto":
        return config.feeding, f"data.feeding={config.feeding} was asked for ({facts})"
    return ("resident" if need <= share else "streaming"), facts
