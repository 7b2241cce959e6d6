"""datasets.lists: PaddleClas's list and label files as they come, and each kind of mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pycocotools.coco import COCO

from datasets import coco, lists
from datasets.schema import DataError

COCO_MINI = Path(__file__).parents[1].parent / "shared" / "data" / "coco-mini"
COLUMNS = "a.jpg\t0,1,0\nsub/b c.jpg\t1,0,1\nc.jpg\t0,0,0\n"
NAMES = "person\ntraffic light\ndog\n"


def write(folder: Path, text: str | bytes = COLUMNS, names: str = NAMES) -> tuple[Path, Path, Path]:
    """A list file, its label file and an image folder."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "labels.txt").write_text(names)
    return folder / "list.txt", folder / "labels.txt", folder / "images"


def test_columns_are_classes_and_ids_are_line_numbers(tmp_path: Path) -> None:
    list_file, label_file, images = write(tmp_path, COLUMNS.replace("sub", "\n\nsub"))
    records, classes = lists.read(list_file, label_file, images)
    assert classes == ["person", "traffic light", "dog"]
    assert [(record.image_id, record.labels) for record in records] == [(1, (1,)), (4, (0, 2)), (5, ())]
    assert [record.path for record in records] == [str(images.resolve() / n) for n in ("a.jpg", "sub/b c.jpg", "c.jpg")]
    kept, _ = lists.read(list_file, label_file, images, keep_unlabelled=False)
    assert [record.image_id for record in kept] == [1, 4]


@pytest.mark.parametrize("mark", [" ", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_index_a_line_after_a_space_or_a_tab(tmp_path: Path, mark: str, end: str) -> None:
    text = end.join(f"{name}{mark}{label}" for name, label in (("n01/x 1.JPEG", 2), ("n02/y.JPEG", 0), ("z,1.JPEG", 1)))
    records, _ = lists.read(*write(tmp_path, text))
    assert [(Path(record.path).name, record.labels) for record in records] == [
        ("x 1.JPEG", (2,)),
        ("y.JPEG", (0,)),
        ("z,1.JPEG", (1,)),
    ]


@pytest.mark.parametrize("text", [COLUMNS, "a.jpg 2\nb.jpg 0\n"], ids=["columns", "index"])
def test_without_a_label_file_classes_are_named_by_their_index(tmp_path: Path, text: str) -> None:
    list_file, _, images = write(tmp_path, text)
    assert lists.read(list_file, None, images)[1] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("person\ntraffic light\n", ["person", "traffic light"]),
        ("0 person\n1 traffic light", ["person", "traffic light"]),
        ("0 tench, Tinca tinca\r\n1 2 pack\r\n\r\n", ["tench, Tinca tinca", "2 pack"]),
        ("\ufeffperson\ncafé\n", ["person", "café"]),  # a byte order mark
        ("0 person\n2 dog\n", ["0 person", "2 dog"]),  # not their own index
        ("1 person\n2 dog\n", ["1 person", "2 dog"]),
        ("0\n1\n2\n", ["0", "1", "2"]),  # names, not indices without one
        ("2 pack\n", ["2 pack"]),
    ],
)
def test_a_leading_index_is_cut_off_when_every_line_has_its_own(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    assert lists.read_labels(tmp_path / "labels.txt") == names


@pytest.mark.parametrize(("text", "message"), [("", "it is empty"), ("a\n\nb\n", "line 2 is blank")])
def test_a_label_file_with_a_hole_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labels\.txt must hold a class name a line, but {message}"):
        lists.read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\t0,1,0\nb.jpg\t0,1\n", "line 2: there must be a column for each of 3 classes, but there are 2"),
        ("a.jpg\t0,1\nb.jpg\t0,1\n", "line 1: there must be a column for each of 3 classes, but there are 2"),
        ("a.jpg\t0,1,0\n\nb.jpg\t0,2,0\n", "line 3: labels must be 0 or 1 with commas between, but are '0,2,0'"),
        ("a.jpg\t0,10,0\n", "line 1: labels must be 0 or 1"),
        ("a.jpg\t0,1,\n", "line 1: labels must be 0 or 1"),
        ("a.jpg\t0,,1\n", "line 1: labels must be 0 or 1"),
        ("a.jpg\t0,0.5,1\n", "line 1: labels must be 0 or 1"),
        ("a.jpg\t0,1,0\nb.jpg\t1\n", "line 2: there must be a column for each"),
        ("a.jpg 1\nb.jpg 0,1,0\n", "line 2: the label must be the index of a class, but is '0,1,0'"),
        ("a.jpg 3\n", r"line 1: the label must be 0 \.\. 2, but is 3"),
        ("a.jpg -1\n", "line 1: the label must be the index"),
        ("a.jpg\n", "line 1: the label must be the index of a class, but is 'a.jpg'"),
        ("a.jpg 1 \n 1\n", "line 2: name '' is empty"),
        ("a.jpg 1\nb.jpg 1\n./a.jpg 2\n", r"line 3: name './a.jpg' is on line 1 already"),
        ("../a.jpg 1\n", "line 1: name '../a.jpg' goes up"),
        ("/etc/passwd 1\n", "line 1: name '/etc/passwd' is absolute"),
        ("http://169.254.169.254/latest 1\n", "line 1: .* URL scheme"),
        ("s3://bucket/a.jpg 1\n", "line 1: .* URL scheme"),
        ("folder/secret.jpg 1\n", "line 1: .* leads out of the image folder"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    list_file, label_file, images = write(tmp_path, text)
    (tmp_path / "images-private").mkdir()
    (images / "folder").symlink_to(tmp_path / "images-private")
    with pytest.raises(DataError, match=message) as caught:
        lists.read(list_file, label_file, images)
    assert str(caught.value).startswith(f"{list_file} must hold lines")


def test_all_mistakes_are_reported_and_long_lists_cut(tmp_path: Path) -> None:
    text = "".join(f"{number}.jpg 9\n" for number in range(14))
    with pytest.raises(DataError, match="and 4 more") as caught:
        lists.read(*write(tmp_path, text))
    assert str(caught.value).count("\n") == 12


def test_files_that_are_missing_or_no_text(tmp_path: Path) -> None:
    list_file, label_file, images = write(tmp_path)
    with pytest.raises(DataError, match="must lie in a folder"):
        lists.read(list_file, label_file, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere\.txt must be readable.*No such file"):
        lists.read(tmp_path / "nowhere.txt", label_file, images)
    with pytest.raises(DataError, match="must be a text file in UTF-8"):
        lists.read(*write(tmp_path, b"\xff\xfe\x00"))
    with pytest.raises(DataError, match="must hold a line an image, but it is empty"):
        lists.read(*write(tmp_path, "\n \n"))
    with pytest.raises(DataError, match="leaves none with keep_unlabelled=False"):
        lists.read(*write(tmp_path, "a.jpg\t0,0,0\n"), keep_unlabelled=False)


def test_names_are_relative_to_the_first_folder_that_holds_some_of_them(tmp_path: Path) -> None:
    list_file, _, images = write(tmp_path, "a.jpg 0\nimages/b.jpg 0\n../out.jpg 0\n")
    candidates = (tmp_path / "train2017", images, tmp_path)
    with pytest.raises(DataError, match=r"none of the first 3 does:\n  a\.jpg\n  images/b\.jpg"):
        lists.image_root(list_file, candidates)
    (tmp_path.parent / "out.jpg").touch()
    with pytest.raises(DataError, match="none of the first 3 does"):
        lists.image_root(list_file, candidates)
    (images / "b.jpg").touch()
    assert lists.image_root(list_file, candidates) == tmp_path
    (images / "a.jpg").touch()
    assert lists.image_root(list_file, candidates) == images


def test_a_list_made_of_real_annotations_gives_the_records_of_the_annotations(tmp_path: Path) -> None:
    annotations = COCO_MINI / "annotations" / "instances_val2017.json"
    index = COCO(str(annotations))
    categories = sorted(index.getCatIds())
    with (tmp_path / "list.txt").open("w") as file:
        for image_id in sorted(index.getImgIds()):
            shown = {annotation["category_id"] for annotation in index.imgToAnns[image_id]}
            columns = ",".join(str(int(category in shown)) for category in categories)
            file.write(f"{index.imgs[image_id]['file_name']}\t{columns}\n")
    (tmp_path / "labels.txt").write_text("\n".join(index.cats[category]["name"] for category in categories))
    folder = lists.image_root(tmp_path / "list.txt", (COCO_MINI / "val2017", COCO_MINI))
    records, classes = lists.read(tmp_path / "list.txt", tmp_path / "labels.txt", folder)
    expected, expected_classes = coco.read(annotations, COCO_MINI / "val2017")
    assert classes == expected_classes
    assert [(record.path, record.labels) for record in records] == [(r.path, r.labels) for r in expected]
