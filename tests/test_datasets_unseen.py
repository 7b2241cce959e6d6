"""datasets.unseen: classes named in a file or in words, and training images without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets import unseen
from datasets.schema import DataError, Record

CLASSES = ("person", "traffic light", "dog", "cat", "crane", "crane")
RECORDS = [Record(1, "a", (0,)), Record(2, "b", (0, 2)), Record(3, "c", (2,)), Record(4, "d", ()), Record(5, "e", (3,))]


def test_names_in_words_or_in_a_file_under_the_root(tmp_path: Path) -> None:
    assert unseen.indices("dog", None, CLASSES) == (2,)
    assert unseen.indices("cat, traffic light,cat", tmp_path, CLASSES) == (1, 3)
    assert unseen.indices("crane", tmp_path, CLASSES) == (4, 5)  # two classes of one name
    (tmp_path / "unseen.txt").write_text("cat\r\n\r\ndog\n")
    assert unseen.indices("unseen.txt", tmp_path, CLASSES) == (2, 3)
    assert unseen.indices(str(tmp_path / "unseen.txt"), None, CLASSES) == (2, 3)


def test_names_go_before_a_file_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "dog").write_text("cat")
    assert unseen.indices("dog", tmp_path, CLASSES) == (2,)


def test_unknown_names_are_all_listed_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.unseen_list must name classes.*\n  'dgo'; the nearest is 'dog'\n  'x'\n"
    ):
        unseen.indices("cat,dgo,x", tmp_path, CLASSES)
    with pytest.raises(DataError, match=r"'missing\.txt'"):
        unseen.indices("missing.txt", tmp_path, CLASSES)
    (tmp_path / "unseen.txt").write_text("trafic light\n")
    with pytest.raises(DataError, match=r"unseen\.txt must name.*\n  'trafic light'; the nearest is 'traffic light'"):
        unseen.indices("unseen.txt", tmp_path, CLASSES)


@pytest.mark.parametrize(("text", "number"), [("", 0), (" , ", 0), (",".join(CLASSES), 6)])
def test_some_classes_must_be_held_out_and_some_be_left(text: str, number: int) -> None:
    with pytest.raises(DataError, match=f"names {number} of 6"):
        unseen.indices(text, None, CLASSES)


def test_images_with_an_unseen_class_are_dropped_or_lose_its_label() -> None:
    dropped = unseen.hold_out(RECORDS, (2, 3), drop=True)
    assert dropped == [RECORDS[0], RECORDS[3]]
    kept = unseen.hold_out(RECORDS, (2, 3), drop=False)
    assert [(record.image_id, record.labels) for record in kept] == [(1, (0,)), (2, (0,)), (3, ()), (4, ()), (5, ())]
    kept = unseen.hold_out(RECORDS, (2, 3), drop=False, keep_unlabelled=False)
    assert [(record.image_id, record.labels) for record in kept] == [(1, (0,)), (2, (0,)), (4, ())]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="all 2 show one of the 2"):
        unseen.hold_out([RECORDS[1], RECORDS[4]], (2, 3), drop=True)
