"""The plan: items in shards, many shards over several files, and the sentence when an output belongs to another job."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from segray.errors import SegrayError
from segray.grid import Lattice, Window
from segray.listing import list_files
from segray.plan import (
    SHARDS_A_FILE,
    Item,
    ListingDigest,
    Plan,
    check,
    cut,
    fingerprint,
    group,
    load,
    parts,
    read_shard,
    save,
    whole,
    write_files,
)
from segray.storage import File, publish
from segray.uris import join

LATTICE = Lattice(64, 8)
FILE = File("s3://b/scène 1.tif", 1000, "tag")
SETTINGS = {"window": 2048, "blend": "taper", "bands": [0, 1, 2]}
WANTED = fingerprint(archive="s3://b/a", listing="abc", images=10, model="m1", settings=SETTINGS)


def plan_of(uri: str, **changes: object) -> Plan:
    values = {"uri": uri, "fingerprint": WANTED, "files": (1024, 3), "images": 10, "skipped": 2}
    return Plan(**{**values, **changes})


@pytest.mark.parametrize(("height", "width"), [(1, 1), (100, 70), (257, 511), (64, 1000)])
@pytest.mark.parametrize("shard_pixels", [1, 64 * 64, 5 * 64 * 64, 10**9])
def test_the_items_of_an_image_partition_it(height, width, shard_pixels):
    items = list(cut(FILE, height=height, width=width, lattice=LATTICE, shard_pixels=shard_pixels))
    covered = {(r, c) for item in items for r in range(height)[item.block.rows] for c in range(width)[item.block.cols]}
    assert len(covered) == sum(item.estimate for item in items) == height * width
    for item in items:
        assert (item.image, item.etag, item.image_height, item.image_width) == (FILE.uri, "tag", height, width)
    assert len(items) == 1 or shard_pixels < height * width


def test_a_picture_planned_by_its_size_has_no_block_and_some_work():
    sizes = {name: whole(File(name, 1000, "t")).estimate for name in ("a.png", "a.JPG", "a.webp")}
    assert sizes["a.png"] < sizes["a.JPG"] < sizes["a.webp"]
    assert whole(File("empty.png", 0, "t")).estimate > 0
    assert whole(FILE).block is None
    assert Item(image="x", etag="", row_off=3, height=4, width=5).block == Window(3, 0, 4, 5)


@pytest.mark.parametrize(
    ("estimates", "limit", "shards"),
    [
        ([], 10, []),
        ([5], 10, [1]),
        ([5, 5, 5], 10, [2, 1]),
        ([5] * 6, 10, [2, 2, 2]),
        ([50, 1, 1], 10, [1, 2]),
        ([1, 50, 1], 10, [1, 1, 1]),
        ([0] * 10, 10, [9, 1]),
    ],
)
def test_consecutive_items_share_a_group_up_to_its_size_and_their_number(estimates, limit, shards):
    items = [Item(image=f"{number}", etag="", estimate=estimate) for number, estimate in enumerate(estimates)]
    groups = list(group(iter(items), limit, size=lambda item: item.estimate, most=9))
    assert [len(shard) for shard in groups] == shards
    assert [item for shard in groups for item in shard] == items


def test_shards_over_several_files_are_read_back_one_by_one(store):
    shards = [
        [Item(image=f"s3://b/{number}-{k}.png", etag=f"t{k}", estimate=number) for k in range(number % 3 + 1)]
        for number in range(SHARDS_A_FILE + 5)
    ]
    shards[7] = list(cut(FILE, height=100, width=70, lattice=LATTICE, shard_pixels=10**9))
    shards[8] = [Item(image="bad.tif", etag="", estimate=1, error="it is no raster: 'é'")]
    assert write_files(store, iter(shards)) == (SHARDS_A_FILE, 5)
    assert len(list(list_files(store))) == 2
    for number in (0, 7, 8, SHARDS_A_FILE - 1, SHARDS_A_FILE, SHARDS_A_FILE + 4):
        assert read_shard(store, number) == shards[number]


def test_row_groups_hold_few_items_however_full_the_shards_are(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.plan.ITEMS_A_GROUP", 10)
    shards = [[Item(image=f"{number}-{k}.png", etag="") for k in range(4)] for number in range(8)]
    assert write_files(str(tmp_path), shards) == (8,)
    metadata = pq.read_metadata(tmp_path / "plan-00000.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [8, 8, 8, 8]
    assert [read_shard(str(tmp_path), number) for number in range(8)] == shards


def test_exactly_full_files_and_no_shards(tmp_path):
    item = Item(image="a", etag="")
    assert write_files(str(tmp_path), ([item] for _ in range(SHARDS_A_FILE))) == (SHARDS_A_FILE,)
    assert write_files(str(tmp_path / "none"), iter([])) == ()


def test_the_same_items_give_the_same_bytes(tmp_path):
    contents = set()
    for name in ("a", "b"):
        write_files(
            str(tmp_path / name), ([item] for item in cut(FILE, height=300, width=300, lattice=LATTICE, shard_pixels=1))
        )
        contents.add((tmp_path / name / "plan-00000.parquet").read_bytes())
    assert len(contents) == 1


def test_a_plan_is_valid_once_it_is_saved(store):
    assert load(store) is None
    plan = plan_of(store)
    save(plan)
    assert load(store) == plan
    assert load(store).shards == 1027
    check(load(store), WANTED)


def test_the_parts_of_all_plan_files_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.plan.SHARDS_A_FILE", 2)
    shards = [[Item(image=f"{number}", etag="", part=f"{number}" if number else "")] for number in range(5)]
    save(plan_of(str(tmp_path), files=write_files(str(tmp_path), iter(shards))))
    assert parts(str(tmp_path)) == {f"{number}": f"{number}" for number in range(1, 5)}
    assert parts(str(tmp_path / "none")) == {}


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 100])
def test_a_damaged_plan_file_is_named(tmp_path, monkeypatch, damage):
    monkeypatch.setattr("segray.storage.time.sleep", lambda seconds: None)
    uri = str(tmp_path)
    save(plan_of(uri, files=write_files(uri, iter([[Item(image="a", etag="", part="b")]]))))
    whole = (tmp_path / "plan-00000.parquet").read_bytes()
    footer = whole[-8 - int.from_bytes(whole[-8:-4], "little") :]
    for content in (damage, b"PAR1" + bytes(len(whole) - len(footer) - 4) + footer):
        publish(join(uri, "plan-00000.parquet"), content)
        for read in (lambda: read_shard(uri, 0), lambda: parts(uri)):
            with pytest.raises(SegrayError, match="plan-00000.parquet is damaged: .*; start afresh with --overwrite"):
                read()


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"{}", b"[" * 10**5, b"\xff\xfe", b"null",
        b'{"format_version": 1}', b'{"format_version": "x"}',
        b'{"format_version": 1, "fingerprint": {}, "files": 3, "images": 1, "skipped": 0}',
        b'{"format_version": 1, "fingerprint": {}, "files": [3], "images": 1, "skipped": 0}',
        b'{"format_version": 1, "fingerprint": null, "files": [3], "images": 1, "skipped": 0}',
    ],
)  # fmt: skip
def test_damaged_plans_are_refused_with_the_fix(tmp_path, damage):
    publish(join(str(tmp_path), "plan.json"), damage)
    with pytest.raises(SegrayError, match="plan.json (is damaged|cannot be read)"):
        load(str(tmp_path))


def test_a_plan_of_a_later_version_is_refused(tmp_path):
    save(plan_of(str(tmp_path)))
    document = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**document, "format_version": 2}))
    with pytest.raises(SegrayError, match="later segray"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"archive": "s3://b/other", "listing": "xyz"}, ["--archive was s3://b/a"]),
        ({"listing": "xyz", "images": 12}, ["held 10 images and now holds 12"]),
        ({"listing": "xyz"}, ["the archive holds other or changed images"]),
        ({"model": "m2"}, ["the model is another one"]),
        ({"settings": {**SETTINGS, "window": 512}}, ["--window was 2048 and is now 512"]),
        ({"settings": {**SETTINGS, "scale": 2.0}}, ["--scale was not given and is now 2.0"]),
        ({"model": "m2", "settings": {"blend": "crop"}}, ["another one", "--blend was taper", "--bands was [0, 1, 2]"]),
    ],
)
def test_another_job_is_refused_saying_what_differs(changes, sentences):
    with pytest.raises(SegrayError, match="another --output, or start afresh with --overwrite") as caught:
        check(plan_of("out/plan"), {**WANTED, **changes})
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert ("--archive" in str(caught.value)) == ("archive" in changes)


def test_listing_digests_tell_every_change():
    files = [File("a.png", 1, "x"), File("b.png", 2, "y")]
    variants = [
        files, files[::-1], files[:1], [files[0], File("b.png", 2, "z")], [files[0], File("b.png", 3, "y")],
        [files[0], File("c.png", 2, "y")],
    ]  # fmt: skip
    digests = []
    for variant in variants:
        digest = ListingDigest()
        assert list(digest.watch(variant)) == variant
        assert digest.images == len(variant)
        digests.append(digest.hexdigest())
    assert len(set(digests)) == len(variants)
