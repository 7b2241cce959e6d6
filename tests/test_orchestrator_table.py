"""`python -m orchestrator.table`: every row of the brief, and nothing in it that was not measured."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trainables.cost
from orchestrator import table
from orchestrator.config import overrides
from orchestrator.config.overrides import RequestError
from orchestrator.reporting.rows import COCO, TABLES, Published, Row, Table
from tests.reporting_helpers import fake_provenance, record, write_run
from tests.test_imports import HEAVY, heavy_after
from trainables.cost import Cost

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
# The brief's tables once more, by hand: label, use_ml_decoder, published score in percent.
BRIEF: dict[str, list[tuple[str, bool, str]]] = {
    "A": [
        ("ResNet50_ml_decoder", True, "79.5"),
        ("ResNet101_ml_decoder", True, ""),
        ("ResNet152_ml_decoder", True, ""),
    ],
    "B1": [
        ("ResNet50", False, "76.5"),
        ("ResNet50*", False, "80.4"),
        ("ResNet50_vd", False, "79.1"),
        ("ResNet50_vd_ssld", False, "83.0"),
        ("Fix_ResNet50_vd_ssld", False, "84.0"),
    ],
    "B2": [
        ("ResNet50", False, ""),
        ("ResNet50", True, "78.4"),
        ("ResNet50*", False, ""),
        ("ResNet50*", True, ""),
        ("ResNet50_vd", False, ""),
        ("ResNet50_vd", True, ""),
        ("ResNet50_vd_ssld", False, ""),
        ("ResNet50_vd_ssld", True, ""),
        ("Fix_ResNet50_vd_ssld", False, ""),
        ("Fix_ResNet50_vd_ssld", True, ""),
    ],
}
# model -> FLOPs of the row without and with the head, parameters likewise; with 1,000 classes: PaddleClas's columns.
COCO_COST = {
    "ResNet50": ((8.17, 9.15), (23.672, 30.720)),
    "ResNet50*": ((8.17, 9.15), (23.672, 30.720)),
    "ResNet50_vd": ((8.65, 9.63), (23.691, 30.739)),
    "ResNet50_vd_ssld": ((8.65, 9.63), (23.691, 30.739)),
    "Fix_ResNet50_vd_ssld": ((17.66, 18.93), (23.691, 30.739)),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, ...]:
    """One row of a model that is built in no time, from an experiment of its own."""
    path = tmp_path_factory.mktemp("experiments") / "tiny.yaml"
    path.write_text(
        "data: {source: coco, root: null, image_size: 64}\n"
        "model: {backbone: test_resnet, num_classes: 80, embed_dim: 32, feedforward_dim: 32}\n"
        "train: {epochs: 40}\n"
    )
    return (Table("A", "One | row", COCO, (Row("A", "Tiny*", "Tiny", True, str(path), Published(0.5)),)),)


@pytest.fixture
def measured(small: tuple[Table, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with one run of that row, at another learning rate, beside one that was shrunk."""
    fake_provenance(monkeypatch)
    experiment = overrides.load(small[0].rows[0].experiment)
    write_run(tmp_path, experiment, [record(0.8123, number=2)], changes={"optim.lr": 2e-4}, bundle_of=2)
    write_run(tmp_path, experiment, [record(0.99, epochs=1)], changes={"train.epochs": 1}, suffix="b")
    return tmp_path


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting what all the models of the brief cost takes seconds."""
    monkeypatch.setattr(trainables.cost, "cost", lambda model, size: Cost(params=3_000_000, frozen=1, macs=size**2))


def output(capsys: pytest.CaptureFixture[str], *words: str, tables: tuple[Table, ...] = TABLES) -> str:
    assert table.main(words, tables) == 0
    return capsys.readouterr().out


def cells(markdown: str) -> dict[str, list[dict[str, str]]]:
    """Table -> its rows, each a dict by column."""
    found: dict[str, list[dict[str, str]]] = {}
    for section in markdown.split("## Table ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        found[section.partition(":")[0]] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return found


@pytest.mark.usefixtures("free")
def test_every_row_of_the_brief_is_there_with_its_published_number(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tables = cells(output(capsys, f"output.root={tmp_path}"))
    for name, expected in BRIEF.items():
        metric = "top-1 (%) brief" if name == "B1" else "mAP (%) brief"
        rows = tables[name]
        printed = [(row["model"].replace("\\*", "*"), row["use_ml_decoder"] == "True", row[metric]) for row in rows]
        assert [row for row in printed if row in expected] == expected
        added = [row for row in printed if row not in expected]
        assert all(published == "" for _, _, published in added)
        # A and B1 have one head each in the brief; ours has both.
        heads = [use_ml_decoder for _, use_ml_decoder, _ in printed]
        assert heads == [False, True] * (len(printed) // 2)


@pytest.mark.slow
def test_every_row_has_the_cost_that_is_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = json.loads(output(capsys, f"output.root={tmp_path}", "--format", "json"))["rows"]
    without_head: dict[str, Any] = {}
    for row in rows:
        assert row["flops_g"] == pytest.approx(2 * row["macs_g"])
        if row["table"] == "B1" and row["use_ml_decoder"]:
            # 100 queries for 1,000 classes instead of a linear layer: 7,934,952 parameters instead of 2,049,000.
            assert row["params_m"] == pytest.approx(without_head["params_m"] + 5.885952, abs=1e-3)
        without_head = row
        if row["table"] == "B1" and not row["use_ml_decoder"]:
            assert row["flops_g"] == pytest.approx(row["brief_flops_g"], rel=0.005)
            assert row["params_m"] == pytest.approx(row["brief_params_m"], rel=0.005)
        if row["table"] == "B2":
            flops, params = (pair[row["use_ml_decoder"]] for pair in COCO_COST[row["model"]])
            assert row["flops_g"] == pytest.approx(flops, rel=0.005)
            assert row["params_m"] == pytest.approx(params, rel=0.0005)
    assert rows[1]["flops_g"] == pytest.approx(9.15, rel=0.005)


@pytest.mark.usefixtures("free")
def test_every_row_without_a_result_states_the_command_that_gives_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = json.loads(output(capsys, f"output.root={tmp_path}", "--format", "json"))["rows"]
    assert [row["table"] for row in rows] == ["A"] * 6 + ["B1"] * 10 + ["B2"] * 10
    for row in rows:
        assert row["measured"] is None and row["run_folder"] is None and row["date"] is None
        assert row["command"].startswith(f"python -m orchestrator.train {row['experiment']} data.root=FOLDER")
        overrides.load(row["experiment"], row["command"].split()[4:])
        assert (ROOT / row["config"]).is_file()
        size = 448 if "101" in row["model"] or "152" in row["model"] else 320 if "Fix" in row["model"] else 224
        assert (row["resolution"], row["macs_g"]) == (size, size**2 / 1e9)
    assert rows[1]["command"] == "python -m orchestrator.train coco_resnet50_224 data.root=FOLDER"
    needing = {row["model"] for row in rows if row["command"].endswith(" data.root=FOLDER model.weights=FILE")}
    assert {model for model in COCO_COST if "_vd" in model} <= needing


def test_the_rows_experiments_are_what_the_rows_say() -> None:
    for row in (row for brief_table in TABLES for row in brief_table.rows):
        model = overrides.load(row.experiment).model
        backbone = "resnet50d" if "_vd" in row.backbone else row.backbone.rstrip("*").lower()
        assert model.backbone.partition(".")[0] == backbone
        assert (model.head == "ml_decoder") == row.use_ml_decoder
        assert (model.objective == "top1") == (row.table == "B1")


def test_a_measured_cell_names_its_run_its_date_and_what_differs(
    capsys: pytest.CaptureFixture[str], small: tuple[Table, ...], measured: Path
) -> None:
    text = output(capsys, f"output.root={measured}", tables=small)
    [row] = cells(text)["A"]
    date = json.loads(output(capsys, f"output.root={measured}", "--format=json", tables=small))["rows"][0]["date"]
    assert row["mAP (%) measured"] == f"**81.2** ({date}, `tiny-0a1b2c3d`, trial 2; with `optim.lr=0.0002`)"
    assert (row["mAP (%) brief"], row["bundle"]) == ("50.0", "`tiny-0a1b2c3d/best`")
    assert "- tiny-b, trial 0: 1 of 40 epochs\n" in text
    assert str(measured) in text


def test_csv_and_json_hold_the_same_records(
    capsys: pytest.CaptureFixture[str], small: tuple[Table, ...], measured: Path
) -> None:
    words = f"output.root={measured}"
    [from_json] = json.loads(output(capsys, words, "--format=json", tables=small))["rows"]
    [from_csv] = csv.DictReader(io.StringIO(output(capsys, words, "--format=csv", tables=small)))
    assert from_json["measured"] == 0.8123 and from_json["train_images_per_s"] == 100.0
    assert from_json["bundle"] == str(measured / "tiny-0a1b2c3d" / "best")

    def as_text(value: Any) -> str:
        return "; ".join(value) if isinstance(value, list) else "" if value is None else str(value)

    assert from_csv == {key: as_text(value) for key, value in from_json.items()}


def test_a_plot_is_written_beside_a_table_that_stays_clean(
    capsys: pytest.CaptureFixture[str], small: tuple[Table, ...], measured: Path
) -> None:
    page = measured / "plot.html"
    assert table.main([f"output.root={measured}", "--format=json", "--plot", str(page)], small) == 0
    written = capsys.readouterr()
    assert json.loads(written.out)["root"] == str(measured)
    assert written.err == f"plot: {page}\n" and "test_resnet, 64 px, 40 epochs" in page.read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optim.lr=1"], "table takes no key but output.root, but got optim.lr"),
        (["digits"], "must have the form key=value, but got 'digits'"),
        (["--plot", "/no/such/folder/x.html"], "--plot must name a file in a folder that exists"),
        (["--plot", "/"], "--plot must name a file in a folder that exists"),
    ],
)
def test_a_wrong_request_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        table.main(words)


def test_every_mistake_in_the_experiments_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: {bakbone: x}\n")
    rows = tuple(Row("A", "x", "x", True, name) for name in (str(tmp_path / "bad.yaml"), "nowhere"))
    with pytest.raises(RequestError) as caught:
        table.main([f"output.root={tmp_path}"], (Table("A", "t", COCO, rows),))
    assert "bakbone" in str(caught.value) and "nowhere" in str(caught.value)


def test_help_is_light() -> None:
    code = "import orchestrator.table as t\ntry: t.main(['--help'])\nexcept SystemExit: print()"
    assert [name for name in heavy_after(code) if name in HEAVY] == []


@pytest.mark.slow
def test_a_table_needs_no_ray(tmp_path: Path) -> None:
    code = f"import orchestrator.table as t\nt.main(['output.root={tmp_path}'], t.TABLES[:0])"
    loaded = heavy_after(code)
    assert "torch" in loaded and "ray" not in loaded
