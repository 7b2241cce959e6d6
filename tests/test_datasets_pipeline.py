"""datasets.pipeline on a real Ray: both ways to feed give the same batches, whoever asks and from wherever."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from datasets import coco, feeding, pipeline, shards, transforms
from datasets.config import DataConfig
from datasets.pipeline import Batch, Feed
from datasets.schema import DataError

COCO_MINI = Path(__file__).parents[1].parent / "shared" / "data" / "coco-mini"
FEEDINGS = ("resident", "streaming")
SIDE, BATCH, SEED = 32, 43, 7
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a test
MIB = 2**20

needs_ray = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(150)]


def open_both(root: Path) -> tuple[pipeline.Split, pipeline.Split]:
    train, val = (pipeline.open_split(str(root / s), shards.read_manifest(root / s)) for s in ("train", "val"))
    return train, val


@pytest.fixture(scope="module")
def feeds(ray_session: None, digits_shards: Path) -> dict[str, Feed]:
    train, val = open_both(digits_shards)
    return {"resident": pipeline.make_resident(train, val, SIDE), "streaming": Feed(train, val, SIDE)}


@pytest.fixture(scope="module")
def by_hand(digits_shards: Path) -> dict[str, dict[int, np.ndarray]]:
    """Split -> image id -> pixels, read without the code under test."""
    return {split: decoded_by_hand(digits_shards / split, SIDE) for split in ("train", "val")}


def decoded_by_hand(folder: Path, side: int) -> dict[int, np.ndarray]:
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["image_id"]: pixels(row["image"], side) for row in rows}


def pixels(data: bytes, side: int, crop_share: float | None = None) -> np.ndarray:
    return transforms.to_chw(transforms.fit(transforms.decode(data), side, crop_share=crop_share))


def assert_same(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    """The same batches in the same order, bit for bit."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys() == {"image", "labels", "image_id"}
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], name)


def dealt_back(shares: Sequence[Batch]) -> Batch:
    """The batch whose rows were dealt to these ranks in turn."""
    places = [rank + len(shares) * np.arange(len(share["image_id"])) for rank, share in enumerate(shares)]
    turn = np.argsort(np.concatenate(places))
    return {name: values[turn] for name, values in joined(shares).items()}


def joined(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ids(batches: Iterable[Batch]) -> list[int]:
    return [int(image_id) for batch in batches for image_id in batch["image_id"]]


def swapped(feed: Feed) -> Feed:
    """With train as the validation set: five row groups instead of two."""
    return replace(feed, train=feed.val, val=feed.train, resident=feed.resident and feed.resident[::-1])


# --- Without Ray ----------------------------------------------------------------------------------------------


def test_a_split_knows_its_row_groups_and_the_labels_in_their_order(digits_shards: Path) -> None:
    train, val = open_both(digits_shards)
    assert (train.group_rows, val.group_rows) == ([64, 64, 64, 64, 44], [64, 37])
    assert train.starts.tolist() == [0, 64, 128, 192, 256, 300]
    rows = pq.read_table(sorted((digits_shards / "train").glob("*.parquet"))).to_pylist()
    assert train.image_ids.tolist() == [row["image_id"] for row in rows]
    assert [np.flatnonzero(labels).tolist() for labels in train.labels] == [row["labels"] for row in rows]
    assert (train.image_ids.dtype, train.labels.dtype, train.labels.shape) == (np.int64, np.uint8, (300, 10))


def test_a_set_is_resident_where_it_fits_the_stated_share_of_the_store_and_says_why() -> None:
    config = DataConfig(image_size=64, resident_share=0.5)
    assert feeding.decoded_bytes(1024, 64) == 12 * MIB
    facts = "1024 decoded images take 12 MiB, the stated share is {} MiB"
    assert feeding.choose_feeding(config, 1024, 24 * MIB) == ("resident", facts.format(12))
    assert feeding.choose_feeding(config, 1024, 24 * MIB - 2) == ("streaming", facts.format(12))
    assert feeding.choose_feeding(config, 1024, 20 * MIB) == ("streaming", facts.format(10))
    larger = config.model_copy(update={"train_side": 128})
    assert feeding.choose_feeding(larger, 256, 24 * MIB - 2)[0] == "streaming"


@pytest.mark.parametrize("asked", FEEDINGS)
def test_a_feeding_that_was_asked_for_is_taken_and_the_arithmetic_shown(asked: str) -> None:
    config = DataConfig.model_validate({"image_size": 64, "feeding": asked})
    for store in (24 * MIB, 2**40):
        chosen, why = feeding.choose_feeding(config, 1024, store)
        assert chosen == asked
        assert why.startswith(f"data.feeding={asked} was asked for (1024 decoded images take 12 MiB")


def test_a_resident_set_that_cannot_fit_is_refused_with_the_arithmetic() -> None:
    config = DataConfig(image_size=64, feeding="resident")
    with pytest.raises(DataError, match=r"takes 12 MiB and the store of a node has 23 MiB"):
        feeding.choose_feeding(config, 1024, 23 * MIB)


def test_images_are_cropped_only_where_that_was_asked_for() -> None:
    assert feeding.crop_share(DataConfig(crop_share=0.9)) is None
    assert feeding.crop_share(DataConfig(resize="center_crop", crop_share=0.9)) == 0.9


def test_reading_is_asked_for_once_a_row_group_in_the_order_of_need(digits_shards: Path) -> None:
    train, _ = open_both(digits_shards)
    items = pipeline._items(train, np.array([299, 5, 5, 130, 4, 256, 299]))
    assert [(item["file"], item["row_group"], item["start"], item["rows"]) for item in items] == [
        ("shard-00002.parquet", 0, 256, [0, 43]),
        ("shard-00000.parquet", 0, 0, [4, 5]),
        ("shard-00001.parquet", 0, 128, [2]),
    ]


# --- With Ray -------------------------------------------------------------------------------------------------


class TestBatches:
    pytestmark = needs_ray

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_both_feedings_give_the_same_batches_in_the_same_order(self, feeds: dict[str, Feed], epoch: int) -> None:
        resident, streaming = (
            list(feeds[feeding].train_batches(epoch, seed=SEED, batch_size=BATCH)) for feeding in FEEDINGS
        )
        assert_same(resident, streaming)
        assert [len(batch["image_id"]) for batch in resident] == [43, 43, 43, 43, 43, 43, 42]
        assert len(resident) == feeds["resident"].num_batches(BATCH)

    @pytest.mark.parametrize("feeding", FEEDINGS)
    def test_an_epoch_holds_each_image_once_with_its_pixels_and_labels(
        self, feeds: dict[str, Feed], feeding: str, by_hand: dict[str, dict[int, np.ndarray]]
    ) -> None:
        feed = feeds[feeding]
        labels = dict(zip(feed.train.image_ids.tolist(), feed.train.labels, strict=True))
        batches = list(feed.train_batches(0, seed=SEED, batch_size=BATCH))
        assert sorted(ids(batches)) == sorted(by_hand["train"])
        for batch in batches:
            for image_id, image, row in zip(batch["image_id"].tolist(), batch["image"], batch["labels"], strict=True):
                np.testing.assert_array_equal(image, by_hand["train"][image_id])
                np.testing.assert_array_equal(row, labels[image_id])

    @pytest.mark.parametrize("feeding", FEEDINGS)
    def test_every_epoch_has_an_order_of_its_own_that_repeats(self, feeds: dict[str, Feed], feeding: str) -> None:
        orders = [ids(feeds[feeding].train_batches(epoch, seed=SEED, batch_size=BATCH)) for epoch in (0, 1, 0)]
        assert orders[0] == orders[2]
        assert orders[0] != orders[1]
        assert orders[0] != ids(feeds[feeding].train_batches(0, seed=SEED + 1, batch_size=BATCH))

    @pytest.mark.parametrize("feeding", FEEDINGS)
    @pytest.mark.parametrize("world_size", [2, 3])
    def test_the_workers_shares_make_up_the_batches_of_one_worker(
        self, feeds: dict[str, Feed], feeding: str, world_size: int
    ) -> None:
        feed = feeds[feeding]
        whole = list(feeds["resident"].train_batches(1, seed=SEED, batch_size=BATCH))
        shares = [
            list(feed.train_batches(1, seed=SEED, batch_size=BATCH, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert_same([dealt_back(parts) for parts in zip(*shares, strict=True)], whole)

    @pytest.mark.parametrize("feeding", FEEDINGS)
    @pytest.mark.parametrize("world_size", [1, 2, 3, 5])
    @pytest.mark.parametrize("num_groups", [2, 5])
    def test_validation_covers_each_image_exactly_once_whatever_the_number_of_workers(
        self, feeds: dict[str, Feed], feeding: str, world_size: int, num_groups: int
    ) -> None:
        feed = feeds[feeding] if num_groups == 2 else swapped(feeds[feeding])
        assert len(feed.val.groups) == num_groups
        covered = [ids(feed.val_batches(50, rank=rank, world_size=world_size)) for rank in range(world_size)]
        assert sorted(chain.from_iterable(covered)) == sorted(feed.val.image_ids.tolist())

    def test_both_feedings_validate_on_the_same_pixels(
        self, feeds: dict[str, Feed], by_hand: dict[str, dict[int, np.ndarray]]
    ) -> None:
        resident, streaming = (list(feeds[feeding].val_batches(40)) for feeding in FEEDINGS)
        assert_same(resident, streaming)
        assert [len(batch["image_id"]) for batch in resident] == [40, 40, 21]
        for image_id, image in zip(ids(resident), joined(resident)["image"], strict=True):
            np.testing.assert_array_equal(image, by_hand["val"][image_id])

    @pytest.mark.parametrize("world_size", [1, 2])
    def test_repeated_images_are_fed_alike_and_an_epoch_is_as_long_as_ever(
        self, feeds: dict[str, Feed], by_hand: dict[str, dict[int, np.ndarray]], world_size: int
    ) -> None:
        once = ids(feeds["resident"].train_batches(1, seed=SEED, batch_size=BATCH))
        parts: dict[str, list[list[Batch]]] = {
            feeding: [
                list(feed.train_batches(1, seed=SEED, batch_size=BATCH, rank=rank, world_size=world_size, repeats=3))
                for rank in range(world_size)
            ]
            for feeding, feed in feeds.items()
        }
        for resident, streaming in zip(parts["resident"], parts["streaming"], strict=True):
            assert_same(resident, streaming)
        batches = [dealt_back(shares) for shares in zip(*parts["streaming"], strict=True)]
        assert [len(batch["image_id"]) for batch in batches] == [43, 43, 43, 43, 43, 43, 42]
        assert ids(batches) == [image_id for image_id in once[:100] for _ in range(3)]
        for image_id, image in zip(ids(batches), joined(batches)["image"], strict=True):
            np.testing.assert_array_equal(image, by_hand["train"][image_id])

    @pytest.mark.parametrize("feeding", FEEDINGS)
    def test_a_batch_smaller_than_the_workers_is_refused(self, feeds: dict[str, Feed], feeding: str) -> None:
        with pytest.raises(ValueError, match="every worker needs an image of every batch"):
            next(iter(feeds[feeding].train_batches(0, seed=0, batch_size=2, world_size=3)))

    @pytest.mark.parametrize("feeding", FEEDINGS)
    @pytest.mark.parametrize(("crop_share", "train_side"), [(None, None), (0.875, None), (0.875, 80)])
    def test_real_photographs_arrive_as_decoded_and_resized_by_hand(
        self, tmp_path: Path, feeding: str, crop_share: float | None, train_side: int | None
    ) -> None:
        expected = {}
        shape = {"train": (train_side, None) if train_side else (64, crop_share), "val": (64, crop_share)}
        for split, name in (("train", "train2017"), ("val", "val2017")):
            records, classes = coco.read(COCO_MINI / "annotations" / f"instances_{name}.json", COCO_MINI / name)
            shards.write(records, classes, tmp_path / split, split=name, rows_per_group=64)
            expected[split] = {r.image_id: pixels(Path(r.path).read_bytes(), *shape[split]) for r in records}
        assert sum(map(len, expected.values())) == 159
        train, val = open_both(tmp_path)
        feed = Feed(train, val, 64, None, crop_share, train_side)
        if feeding == "resident":
            feed = pipeline.make_resident(train, val, 64, crop_share, train_side)
        for split, batches in {
            "train": list(feed.train_batches(0, seed=SEED, batch_size=16)),
            "val": list(feed.val_batches(32)),
        }.items():
            assert sorted(ids(batches)) == sorted(expected[split])
            for image_id, image in zip(ids(batches), joined(batches)["image"], strict=True):
                np.testing.assert_array_equal(image, expected[split][image_id])


class TestResident:
    pytestmark = needs_ray

    def test_blocks_are_read_only_views_that_every_process_shares(self, feeds: dict[str, Feed]) -> None:
        @ray.remote(num_cpus=1)
        def look(feed: Feed) -> list[tuple[bool, bool, bool]]:
            """Of each block: writable, owner of its memory, mapped from the object store."""
            blocks = [block for references in feed.resident or () for block in pipeline._fetch(references)]
            return [(b.flags.writeable, b.flags.owndata, in_object_store(b)) for b in blocks]

        for seen in [look.remote(feeds["resident"]) for _ in range(2)]:
            assert ray.get(seen, timeout=60) == [(False, False, True)] * 7

    def test_fetching_again_gives_the_same_memory(self, feeds: dict[str, Feed]) -> None:
        assert feeds["resident"].resident is not None
        references = feeds["resident"].resident[0]
        first, second = ray.get(list(references)), ray.get(list(references))
        assert all(np.shares_memory(one, other) for one, other in zip(first, second, strict=True))
        assert sum(block.nbytes for block in first) == feeding.decoded_bytes(300, SIDE)

    def test_a_batch_is_a_copy_that_may_be_written_to(self, feeds: dict[str, Feed]) -> None:
        before = list(feeds["resident"].train_batches(0, seed=SEED, batch_size=BATCH))
        for batch in feeds["resident"].train_batches(0, seed=SEED, batch_size=BATCH):
            batch["image"][:] = 0
        assert_same(list(feeds["resident"].train_batches(0, seed=SEED, batch_size=BATCH)), before)

    def test_a_row_group_stays_one_block_however_large_its_images_are(
        self, feeds: dict[str, Feed], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group_bytes = feeding.decoded_bytes(64, SIDE)
        monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", group_bytes // 4)
        feed = pipeline.make_resident(feeds["resident"].train, feeds["resident"].val, SIDE)
        assert feed.resident is not None
        assert [len(blocks) for blocks in feed.resident] == [5, 2]
        assert_same(
            list(feed.train_batches(0, seed=SEED, batch_size=BATCH)),
            list(feeds["resident"].train_batches(0, seed=SEED, batch_size=BATCH)),
        )


def in_object_store(block: np.ndarray) -> bool:
    """Whether the array lies in memory that this process maps from Ray's object store."""
    address = block.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return "plasma" in line
    return False


class TestStreaming:
    pytestmark = needs_ray

    def test_it_works_in_a_task_and_in_actors_that_read_at_the_same_time(self, feeds: dict[str, Feed]) -> None:
        def read(feed: Feed, rank: int = 0, world_size: int = 1) -> list[int]:
            share = feed.train_batches(0, seed=SEED, batch_size=BATCH, rank=rank, world_size=world_size)
            return ids(share)

        class Reader:
            def read(self, *arguments: object) -> list[int]:
                return read(*arguments)  # type: ignore[arg-type]

        feed = feeds["streaming"]
        whole = ids(feeds["resident"].train_batches(0, seed=SEED, batch_size=BATCH))
        assert ray.get(ray.remote(num_cpus=1)(read).remote(feed), timeout=90) == whole
        actors: list[Any] = [ray.remote(num_cpus=1)(Reader).remote() for _ in range(2)]
        try:
            shares = ray.get([actor.read.remote(feed, rank, 2) for rank, actor in enumerate(actors)], timeout=90)
        finally:
            for actor in actors:
                ray.kill(actor)
        assert len(shares[0]) + len(shares[1]) == len(whole)
        assert {*shares[0], *shares[1]} == set(whole)

    def test_copies_are_decoded_once_and_kept_until_the_last(
        self, feeds: dict[str, Feed], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        decoded = pipeline._decoded

        def spy(items: list[dict[str, Any]], *how: Any) -> ray.data.Dataset:
            asked.extend(item["start"] + row for item in items for row in item["rows"])
            return decoded(items, *how)

        monkeypatch.setattr(pipeline, "_decoded", spy)
        batches = list(feeds["streaming"].train_batches(0, seed=SEED, batch_size=BATCH, repeats=3))
        assert len(asked) == len(set(asked)) == 100
        assert len(ids(batches)) == 300

    def test_an_epoch_that_is_left_stops_its_readers(self, feeds: dict[str, Feed]) -> None:
        once = feeds["streaming"].train
        long = pipeline.Split(once.folder, once.groups * 60, np.tile(once.image_ids, 60), np.tile(once.labels, (60, 1)))
        batches = replace(feeds["streaming"], train=long).train_batches(0, seed=SEED, batch_size=BATCH)
        next(batches)
        assert executors()
        batches.close()  # type: ignore[attr-defined]  # what Python does when a loop over a generator is left
        wait_until(nothing_runs)

    def test_an_epoch_that_ends_stops_its_readers(self, feeds: dict[str, Feed]) -> None:
        for feed in (feeds["streaming"], swapped(feeds["streaming"])):
            assert len(list(feed.val_batches(BATCH))) > 1
        wait_until(nothing_runs)

    def test_a_trial_streams_inside_its_own_placement_group(self, digits_shards: Path, tmp_path: Path) -> None:
        from orchestrator import train

        words = {
            "data.source": "shards",
            "data.root": digits_shards,
            "data.train_split": "train",
            "data.val_split": "val",
            "data.image_size": SIDE,
            "data.feeding": "streaming",
            "model.backbone": "test_resnet",
            "model.head": "gap",
            "train.epochs": 2,
            "cluster.workers": 0,
            "cluster.num_cpus": 4,
            "output.root": tmp_path,
        }
        assert train.main(["digits", *(f"{key}={value}" for key, value in words.items())]) == 0
        (board,) = tmp_path.glob("*/leaderboard.json")
        (row,) = json.loads(board.read_text())
        assert (row["state"], row["epochs"]) == ("complete", 2)
        lines = (board.parent / "trials" / "0000" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["num_evaluated"] for line in lines] == [101, 101]


def executors() -> list[threading.Thread]:
    """The threads in which Ray Data executes a data set in this process."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]


def nothing_runs() -> bool:
    return not executors() and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def wait_until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.1)


class TestDamage:
    """A shard that changes after its manifest was checked."""

    pytestmark = needs_ray

    @pytest.fixture
    def damaged(self, digits_shards: Path, tmp_path: Path) -> tuple[Feed, Path]:
        """A feed whose shards were checked, and the shard of train to damage."""
        records = tmp_path / "shards"
        for split in ("train", "val"):
            (records / split).mkdir(parents=True)
            for path in (digits_shards / split).iterdir():
                (records / split / path.name).write_bytes(path.read_bytes())
        return Feed(*open_both(records), SIDE), records / "train" / "shard-00001.parquet"

    @staticmethod
    def use(feed: Feed, feeding: str) -> None:
        if feeding == "resident":
            pipeline.make_resident(feed.train, feed.val, SIDE)
        else:
            list(feed.train_batches(0, seed=SEED, batch_size=BATCH))

    @pytest.mark.parametrize("feeding", FEEDINGS)
    def test_an_image_that_cannot_be_decoded_any_more_is_named(self, damaged: tuple[Feed, Path], feeding: str) -> None:
        feed, path = damaged
        row = pq.read_table(path).to_pylist()[70]
        content = path.read_bytes()
        assert content.count(row["image"]) == 1
        path.write_bytes(content.replace(row["image"], bytes(len(row["image"]))))
        with pytest.raises(Exception, match=rf"image {row['image_id']} in {path} is not \(not an image"):
            self.use(feed, feeding)

    @pytest.mark.parametrize("feeding", FEEDINGS)
    def test_a_shard_that_was_cut_is_named(self, damaged: tuple[Feed, Path], feeding: str) -> None:
        feed, path = damaged
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(Exception, match=f"A shard must be a whole Parquet file, but {path} is not"):
            self.use(feed, feeding)

    @pytest.mark.parametrize("feeding", FEEDINGS)
    def test_a_shard_that_was_removed_is_named(self, damaged: tuple[Feed, Path], feeding: str) -> None:
        feed, path = damaged
        path.unlink()
        with pytest.raises(Exception, match=str(path)):
            self.use(feed, feeding)
