"""datasets.transforms: readable images of every kind give RGB, unreadable ones give a reason."""

import io
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile
from torchvision.transforms import v2

from datasets import transforms
from datasets.transforms import BadImageError, decode, encode, fit, resize, to_chw

COCO_MINI = Path(__file__).parents[1].parent / "shared" / "data" / "coco-mini"


def _picture(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4, y * 6, 255 - x * 4], -1).astype(np.uint8))


def _encoded(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _jpeg_claiming(height: int, width: int) -> bytes:
    data = bytearray(_encoded(_picture()))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _png_claiming(height: int, width: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (_encoded(_picture(), quality=95), 12),
        (_encoded(_picture(), quality=95, progressive=True), 12),
        (_encoded(_picture(), quality=95) + b"stray bytes at the end", 12),
        (_encoded(_picture().convert("CMYK"), quality=95), 12),
        (_encoded(_picture(), "PNG"), 0),
        (_encoded(_picture(), "BMP"), 0),
        (_encoded(_picture().convert("RGBA"), "PNG"), 0),
    ],
    ids=["baseline", "progressive", "trailing bytes", "CMYK", "PNG", "BMP", "RGBA PNG"],
)
def test_readable_images_give_their_rgb_pixels(data: bytes, tolerance: int) -> None:
    image = decode(data)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.abs(image.astype(int) - np.asarray(_picture(), int)).max() <= tolerance


def test_grayscale_and_palette_become_rgb() -> None:
    gray = decode(_encoded(_picture().convert("L"), quality=95))
    assert gray.shape == (40, 60, 3)
    assert (gray == gray[..., :1]).all()
    palette = _picture().convert("P")
    assert (decode(_encoded(palette, "GIF")) == np.asarray(palette.convert("RGB"))).all()


def test_one_pixel() -> None:
    image = decode(_encoded(_picture(1, 1)))
    assert image.shape == (1, 1, 3)
    assert resize(image, 8).shape == (8, 8, 3)


def test_stray_bytes_between_markers_fall_back_to_pillow() -> None:
    data = bytearray(_encoded(_picture(), quality=95))
    end = data.rindex(b"\xff\xd9")
    damaged = bytes(data[:end] + b"\x11" * 8 + data[end:])
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(damaged)
    assert (decode(damaged) == decode(bytes(data))).all()


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(_encoded(_picture(), exif=exif)).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not an image"),
        (_encoded(_picture())[:10], "."),
        (_encoded(_picture())[:-200], "truncated"),
        (_encoded(_picture())[:-2], "truncated"),
        (_encoded(_picture(), progressive=True)[:-100], "truncated"),
        (_encoded(_picture(), "PNG")[:-40], "."),
        (_encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "no agreed meaning"),
    ],
    ids=["zero bytes", "text", "header only", "half", "no end", "progressive half", "half a PNG", "16 bit"],
)
def test_unreadable_images_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason) as caught:
        decode(data)
    assert not re.search(r"0x[0-9a-f]{6}", str(caught.value))  # addresses would change from run to run


@pytest.mark.parametrize(
    ("make", "side", "reason"),
    [
        (_jpeg_claiming, 30_000, "30000 x 30000 pixels are more than the 50000000"),
        (_png_claiming, 8_000, "8000 x 8000 pixels are more than the 50000000"),
        (_png_claiming, 30_000, "900000000 pixels"),  # Pillow's own limit comes first
    ],
)
def test_a_huge_header_is_refused_before_decoding(
    make: Callable[[int, int], bytes], side: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match=reason):
        decode(make(side, side))


def test_max_pixels_is_inclusive() -> None:
    data = _encoded(_picture())
    assert decode(data, max_pixels=40 * 60).shape == (40, 60, 3)
    with pytest.raises(BadImageError, match="60 x 40"):
        decode(data, max_pixels=40 * 60 - 1)


def test_a_global_switch_cannot_turn_truncation_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(_encoded(_picture())[:-200])


def test_real_images_decode_as_pillow_decodes_them() -> None:
    for path in sorted((COCO_MINI / "val2017").glob("*.jpg"))[:8]:
        assert (decode(path.read_bytes()) == np.asarray(Image.open(path).convert("RGB"))).all(), path.name


def test_resize_keeps_what_has_the_size_and_averages_what_is_larger() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, ::2] = 200  # stripes of one pixel: without antialiasing they would alias
    small = resize(image, 16)
    assert small.shape == (16, 16, 3)
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - 100).max() <= 20
    assert resize(small, 16) is small


def test_resize_agrees_with_pillow_and_takes_read_only_arrays() -> None:
    picture = _picture(90, 150)
    ours = resize(np.asarray(picture), 32)
    theirs = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def torchvision_crop(image: Image.Image, side: int, crop_share: float) -> np.ndarray:
    resized = v2.functional.resize(image, [round(side / crop_share)], v2.InterpolationMode.BILINEAR, antialias=True)
    return np.asarray(v2.functional.center_crop(resized, [side, side]))


@pytest.mark.parametrize("size", [(90, 150), (150, 90), (101, 67), (64, 64), (40, 300), (33, 20)])
@pytest.mark.parametrize(("side", "crop_share"), [(32, 0.875), (31, 0.875), (32, 1.0), (48, 0.95), (24, 0.5)])
def test_a_centre_crop_is_that_of_torchvision(size: tuple[int, int], side: int, crop_share: float) -> None:
    picture = _picture(*size)
    ours = fit(np.asarray(picture), side, crop_share=crop_share)
    assert ours.shape == (side, side, 3)
    assert ours.flags.c_contiguous
    difference = np.abs(ours.astype(int) - torchvision_crop(picture, side, crop_share))
    assert difference.max() <= 2
    assert difference.mean() < 0.2


def test_a_centre_crop_of_photographs_is_that_of_torchvision() -> None:
    for path in sorted((COCO_MINI / "val2017").glob("*.jpg"))[:4]:
        picture = Image.open(path).convert("RGB")
        difference = np.abs(
            fit(np.asarray(picture), 64, crop_share=0.875).astype(int) - torchvision_crop(picture, 64, 0.875)
        )
        assert difference.max() <= 2, path.name


def test_without_a_crop_share_the_image_is_squashed() -> None:
    image = np.asarray(_picture())
    assert (fit(image, 24) == resize(image, 24)).all()
    assert (fit(image, 24, crop_share=1.0) != resize(image, 24)).any()


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 1)])
def test_the_centre_of_a_thread_of_pixels_takes_no_more_memory_than_others(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    long_side = int(np.argmax(size))
    image[tuple(slice(90_000, 110_000) if axis == long_side else slice(None) for axis in range(2))] = 255
    cropped = fit(image, 16, crop_share=0.875)  # resized whole it would be 18 x 3,600,000 pixels
    assert cropped.shape == (16, 16, 3)
    assert (cropped == (255 if max(size) > 1 else 0)).all()


def test_to_chw_and_encode() -> None:
    image = np.asarray(_picture())
    assert to_chw(image).shape == (3, 40, 60)
    assert (to_chw(image)[2] == image[..., 2]).all()
    assert np.abs(decode(encode(image)).astype(int) - image).max() <= 8


def test_importing_and_decoding_do_not_import_torch() -> None:
    code = (
        "import sys; from datasets import transforms as t; import numpy as np; "
        "image = np.zeros((8, 8, 3), np.uint8); t.resize(t.decode(t.encode(image)), 8); "
        "assert 'torch' not in sys.modules"
    )
    root = Path(transforms.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
