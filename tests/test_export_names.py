"""Names of exported files mirror the archive, stay inside the output, and differ for every image."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.exports.names import distinct, ending_of, mirror
from segray.storage import publish

IMAGES = [
    "a.jpg", "a.png", "a.tif", "a.JPG", "a", "a.jpg.png", "a.png.jpg", "a.jpg.jpg", "a.b.jpg", "a.b", "a.b.png",
    "d/a.jpg", "../a.jpg", "d/../a.jpg", "d/../../a.jpg", "__/a.jpg", ".a.jpg", "_a.jpg", "a\\b.jpg", "a_b.jpg",
    "a\0.jpg", "a*.jpg", "a?.jpg", "a_.jpg", "é.jpg", "水/1.jpg",
    "x" * 300 + ".jpg", "x" * 301 + ".jpg", "x" * 300 + ".png",
]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "archive", "expected"),
    [
        ("/data/in/a.png", "/data/in", "a.tif"),
        ("/data/in/sub dir/a.b.tiff", "/data/in/", "sub dir/a.b.tif"),
        ("/data/in/a.JPG", "/data/in", "a.tif"),
        ("/data/in/a.tif", "/data/in/a.tif", "a.tif"),
        ("/data/inner/a.tif", "/data/in", "data/inner/a.tif"),
        ("s3://b/in/x/a.tif", "s3://b/in", "x/a.tif"),
        ("s3://c/y/a.tif", "s3://b/list.txt", "c/y/a.tif"),
        ("gs://c/y/a.tif", "s3://b/list.txt", "gs/c/y/a.tif"),
        ("/c/y/a.tif", "s3://b/list.txt", "file/c/y/a.tif"),
        ("s3://c/y/a.tif", "/lists/all.txt", "s3/c/y/a.tif"),
        ("s3://b/in/a::b.tif", "s3://b/in", None),
        ("tar://d/a.jpg::s3://b/in/x.tar", "s3://b/in", "x.tar/d/a.tif"),
        ("tar://d/a.jpg::s3://b/in/x.tar", "s3://b/in/x.tar", "d/a.tif"),
        ("tar:///d/a.jpg::/in/x.tar", "/in", "x.tar/d/a.tif"),
        ("xyz://17::s3://b/tiles", "s3://b/tiles", "17.tif"),
        ("mbtiles://9::s3://b/in/x.mbtiles", "s3://b/in", "x.mbtiles/9.tif"),
        ("xyz://17::s3://b/tiles", "xyz://17::s3://b/tiles", "17.tif"),
        ("s3://b/in/x//a.tif", "s3://b/in", "x/a-9c6277f8f2.tif"),
        ("s3://b/in//a.tif", "s3://b/in", "a-41656bc418.tif"),
        ("zip://./d/a.jpg::s3://b/in/x.zip", "s3://b/in", "x.zip/d/a-6bcdbf4655.tif"),
    ],
)
def test_the_tree_of_the_archive_is_mirrored(image, archive, expected):
    found = mirror(image, archive, ".tif")
    if expected is None:  # characters that file systems or fsspec refuse are replaced, and the name is marked
        assert found.startswith("a__b-")
    else:
        assert found == expected


@pytest.mark.parametrize("archive", ["/data", "s3://b/in"])
@pytest.mark.parametrize("usual", ["", ".jpg", ".png"])
def test_every_image_has_a_name_of_its_own(archive, usual):
    found = {}
    for image in (f"{archive}/{name}" for name in IMAGES):
        name = distinct(mirror(image, archive, ".tif"), image, usual)
        assert name not in found, (image, found[name])
        found[name] = image
        check_safe(name)


def test_images_of_the_usual_ending_go_without_it():
    def name(image: str) -> str:
        return distinct(mirror(f"/in/{image}", "/in", ".png"), f"/in/{image}", ".jpg")

    assert name("a.jpg") == "a.png"
    assert name("d/a.b.jpg") == "d/a.b.png"
    assert name("a.png") == "a.png.png"
    assert name("a.JPG") == "a.JPG.png"
    assert name("a.png.jpg") == "a.png.jpg.png"
    assert distinct(mirror("/in/a.png", "/in", ".confidence.tif"), "/in/a.png", ".jpg") == "a.png.confidence.tif"
    assert ending_of("tar://x.PNG::s3://b/a.tar") == ".PNG"
    assert ending_of("s3://b/LC08.B1") == ""


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_no_name_leads_out_of_the_output(parts):
    check_safe(mirror("/in/" + "/".join(parts), "/in", ".tif"))
    check_safe(mirror(f"tar://{'/'.join(parts)}::s3://b/in/a.tar", "s3://b/in", ".tif"))


SIGNED = "https://u:pw@h/in/a.tif?sv=1&sig=s%2Fecret=#top"


@pytest.mark.parametrize(
    ("image", "archive", "expected"),
    [
        (SIGNED, "https://h/in", r"a-\w{10}\.tif"),
        (SIGNED, "s3://b/list.txt", r"https/h/in/a-\w{10}\.tif"),
        (SIGNED, SIGNED, r"a-\w{10}\.tif"),
        ("https://h/in/a.tif?sig=a::b/secret", "https://h/in/list.txt?sig=secret", r"h/in/a-\w{10}\.tif"),
        ("zip://d/a.tif::https://h/in/x.zip?sig=secret", "https://h/in", r"x\.zip/d/a-\w{10}\.tif"),
        ("https://h/in/a.tif", "https://h/in", r"a\.tif"),
    ],
)
def test_the_key_of_a_signed_address_is_in_no_name(image, archive, expected):
    name = mirror(image, archive, ".tif")
    assert re.fullmatch(expected, name)
    assert ending_of(image) == ".tif" and distinct(name, image, ".tif") == name


def test_addresses_that_differ_in_their_query_have_names_of_their_own():
    images = [f"https://h/in/a.tif{query}" for query in ("", "?k=1", "?k=2", "#1")]
    names = {distinct(mirror(image, "https://h/in", ".tif"), image, ".tif") for image in images}
    assert len(names) == len(images)


@pytest.mark.parametrize("character", ["x", "é", "水", "?"])
def test_the_longest_names_can_be_published(tmp_path, character):
    images = [f"/in/{character * size}{ending}" for size in range(1, 256) for ending in ("", ".jpeg")]
    names = [f"{distinct(mirror(image, '/in', '.tif'), image, '.tif')}.aux.xml" for image in images]
    longest = max(names, key=lambda name: len(name.encode()))
    assert len(longest.encode()) > 180  # not shortened needlessly
    publish(str(tmp_path / longest), b"")
    assert [path.name for path in Path(tmp_path).iterdir()] == [longest]


def check_safe(name: str) -> None:
    """Check that a name is a path below a folder on any store."""
    assert posixpath.normpath(name) == name
    assert not name.startswith(("/", "."))
    assert not set(name) & set('\\:*?"<>|[]\0\n')
    assert all(part not in ("", ".", "..") and len(part.encode()) < 230 for part in name.split("/"))
