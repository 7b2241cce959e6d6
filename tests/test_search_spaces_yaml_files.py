"""Strict reading of YAML files, found by name or path."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces import yaml_files


def test_scalars_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: on\nb: [3e-4, 010, null]\nc: {d: '1'}\ne:\n")
    assert yaml_files.read(path) == {"a": "on", "b": ["3e-4", "010", "null"], "c": {"d": "1"}, "e": ""}


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert yaml_files.read(path) == {}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"a: {b: 1, b: 2}", "'b' is given twice"),
        (b"- a", "must hold a mapping"),
        (b"a: [", "cannot be read as YAML"),
        (b"? [a]\n: 1", "cannot be read as YAML"),
        (b"\xff", "cannot be read as YAML"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.yaml") as caught:
        yaml_files.read(path)
    assert fragment in str(caught.value)


def test_find_takes_names_and_paths(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").touch()
    (tmp_path / "second.yaml").touch()
    assert yaml_files.names(tmp_path) == ["first", "second"]
    assert yaml_files.find("first", tmp_path, "thing") == tmp_path / "first.yaml"
    assert yaml_files.find(tmp_path / "second.yaml", Path("/"), "thing") == tmp_path / "second.yaml"
    with pytest.raises(ValueError, match=r"no thing named 'frist'. Did you mean first\? Known: first, second"):
        yaml_files.find("frist", tmp_path, "thing")
    with pytest.raises(ValueError, match="there is no file"):
        yaml_files.find(str(tmp_path / "third.yaml"), tmp_path, "thing")
