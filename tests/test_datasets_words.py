"""datasets.words: the text files of GloVe, word2vec and fastText as they come, and each damage with its line."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from datasets import digits, words
from datasets.schema import DataError

VECTORS = {"person": [1, 2, 3], "dog": [0.5, -1e-3, 7], "traffic": [2, 0, 0], "light": [0, 4, 0], ",": [9, 9, 9]}


def text(vectors: dict[str, list[float]] = VECTORS, end: str = "\n") -> str:
    return "".join(f"{word} {' '.join(f'{number:g}' for number in numbers)}{end}" for word, numbers in vectors.items())


def write(path: Path, content: str | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "content",
    [
        text(),
        text().rstrip("\n"),
        text(end="\r\n"),
        "5 3\n" + text(),
        "5 3\n" + text(end=" \n"),
        "5 3\n" + text(end=" \n") + "\n\n",
    ],
    ids=["GloVe", "GloVe without a last end", "CRLF", "word2vec", "fastText", "blank lines at the end"],
)
def test_the_published_formats_are_read_as_they_come(tmp_path: Path, content: str, suffix: str) -> None:
    read = words.read(write(tmp_path / f"vectors.txt{suffix}", content), ["dog", "person"])
    assert read.names == ("dog", "person")
    assert read.vectors.dtype == np.float32
    np.testing.assert_array_equal(read.vectors, np.array([VECTORS["dog"], VECTORS["person"]], np.float32))


def test_words_may_hold_spaces_or_be_numbers(tmp_path: Path) -> None:
    content = "7 4 5 6\nroute 66 1 2 3\n. . . 7 8 9\na\u00a0b 1 1 1\nto name@domain.com 2 2 2\ncafé 3 3 3\nto 4 4 4\n"
    path = write(tmp_path / "v.txt", content)
    read = words.read(path, ["7", "route 66", "a\u00a0b", "to", "café", ". . ."])
    assert read.vectors[:, 0].tolist() == [4, 1, 1, 4, 3, 7]
    only_number = words.read(write(tmp_path / "n.txt", "7 1 2\n8 3 4\n"), ["8"])
    assert only_number.vectors.tolist() == [[3, 4]]


def test_spellings_are_tried_from_exact_to_lower_case_and_then_part_by_part(tmp_path: Path) -> None:
    content = {
        "dog": [1, 1],
        "Dog": [2, 2],
        "tv": [3, 3],
        "traffic_light": [4, 4],
        "Hot-Dog": [5, 5],
        "hot": [6, 6],
        "wine": [7, 7],
        "glass": [9, 1],
        "teddy bear": [8, 8],
    }
    names = ["Dog", "dog", "TV", "traffic light", "Hot Dog", "teddy_bear", "wine-glass", "hot DOG"]
    read = words.read(write(tmp_path / "v.txt", text(content)), names)
    assert read.vectors.tolist() == [[2, 2], [1, 1], [3, 3], [4, 4], [5, 5], [8, 8], [8, 4], [3.5, 3.5]]


def test_the_first_of_two_lines_of_a_word_counts(tmp_path: Path) -> None:
    assert words.read(write(tmp_path / "v.txt", "a 1 1\na 2 2\n"), ["a"]).vectors.tolist() == [[1, 1]]


def test_missing_words_are_listed_together_with_what_is_missing_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "v.txt", text() + "cat 1 2 3 4\n")
    with pytest.raises(DataError) as caught:
        words.read(path, ["person", "traffic sign", "cat", "zebra"])
    assert "3 of 4 are not in it" in str(caught.value)
    assert str(caught.value).splitlines()[1:4] == [
        "  'traffic sign' (nor its part 'sign')",
        "  'cat'; line 6 has 4 numbers instead of 3",
        "  'zebra'",
    ]
    with pytest.raises(DataError, match="'- _'"):
        words.read(path, ["- _"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1 2\nb 1\nc 1 2\n", "line 2 has 1 numbers instead of 2"),
        ("a 1 2\nb\n", "line 2 has 0 numbers instead of 2"),
        ("3 2\na 1 2\nb 1 2\nc 1\n", "line 4 has 1 numbers instead of 2"),
        ("a 1 nan\n", "line 1: numbers must be finite"),
        ("b 1 2\na 1 inf\n", "line 2: numbers must be finite"),
        ("b 1 2\na 1 1e39\n", "line 2: numbers must be finite"),
        ("b 1 2\na 0 -0\n", "line 2: .* not all zero"),
        ("b 1 2\na 1 two\n", "line 2: it must hold a word and 2 numbers, but .*two"),
        ("a,1,2\nb,1,2\n", "line 1 has no numbers"),
        ("5 0\n", "line 1 has no numbers"),
        ("", "line 1 has no numbers"),
        (b"PK\x03\x04\x14\x00\n\x00\x00", "line 1 has no numbers"),
        (b"3000000 300\n</s> \x00\x12\x13\x01\n\x01\x01 \x10\n", "line 2 has 1 numbers instead of 300"),
    ],
)
def test_lines_that_are_damaged_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "v.txt", content)
    with pytest.raises(DataError, match=message) as caught:
        words.read(path, ["a", "b"])
    assert str(caught.value).startswith(f"{path} must hold a word and its numbers in each line")


def test_a_file_of_another_kind_is_refused_after_ten_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        words.read(write(tmp_path / "v.txt", "a 1 2\n" + "{}\n" * 1000), ["a"])
    assert str(caught.value).count("\n  line") == 10


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"but .*nowhere\.txt is not \(No such file"):
        words.read(tmp_path / "nowhere.txt", ["a"])
    with pytest.raises(DataError, match=r"nowhere\.gz is not \(No such file"):
        words.read(tmp_path / "nowhere.gz", ["a"])
    (tmp_path / "plain.gz").write_bytes(b"a 1 2\n")
    with pytest.raises(DataError, match=r"plain\.gz is not \(Not a gzipped file"):
        words.read(tmp_path / "plain.gz", ["a"])
    generator = np.random.default_rng(0)
    whole = gzip.compress(text({f"w{n}": generator.standard_normal(9).tolist() for n in range(999)}).encode())
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.gz is not \(Compressed file ended"):
        words.read(tmp_path / "cut.gz", ["w998"])


def test_a_large_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    numbers = " 0.123456" * 50
    path.write_text("".join(f"w{n}{numbers}\n" for n in range(30_000)))
    assert path.stat().st_size > 13e6
    tracemalloc.start()
    try:
        read = words.read(path, ["w29999"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read.vectors.shape == (1, 50)
    assert peak < 1e6


def test_the_digest_follows_names_and_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "v.txt", text())
    first = words.digest(words.read(path, ["dog", "person"]))
    assert first == words.digest(words.read(write(tmp_path / "w.txt", "5 3\n" + text()), ["dog", "person"]))
    others = {words.digest(words.read(path, names)) for names in (["person", "dog"], ["dog"], ["Dog", "person"])}
    changed = write(tmp_path / "c.txt", text(VECTORS | {"dog": [0.5, -1e-3, 7.5]}))
    others.add(words.digest(words.read(changed, ["dog", "person"])))
    assert len(others | {first}) == 5


def test_the_words_of_the_digits_describe_each_by_what_others_have_too() -> None:
    read = words.read(words.DIGIT_WORDS, digits.CLASSES)
    assert read.vectors.shape == (10, len(words.DIGIT_ATTRIBUTES))
    assert np.abs(read.vectors).max() == 1
    unit = read.vectors / np.linalg.norm(read.vectors, axis=1, keepdims=True)
    assert (unit @ unit.T - np.eye(10)).max() < 0.8  # no two digits are nearly the same
    for digit in range(10):
        others = np.delete(read.vectors, digit, axis=0)
        # It can be told from the others: an affine combination of them comes nearer to it than their mean.
        mean = others.mean(0)
        weights = np.linalg.lstsq((others - mean).T, read.vectors[digit] - mean, rcond=1e-3)[0]
        left = read.vectors[digit] - mean - (others - mean).T @ weights
        assert np.linalg.norm(left) < 0.75 * np.linalg.norm(read.vectors[digit] - mean)


def test_importing_does_not_import_torch() -> None:
    code = "import sys; from datasets import words; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(words.__file__).parents[1], check=True)
