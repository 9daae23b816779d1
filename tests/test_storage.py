"""Listing, publishing and removing behave the same on a local disk, in memory and on a real S3 server."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from fsspec import AbstractFileSystem, register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from segray import storage
from segray.errors import SegrayError
from segray.listing import files_if_any, list_files
from segray.storage import (
    File,
    exists,
    publish,
    publish_file,
    read_bytes,
    read_text,
    remove,
    remove_file,
    remove_leftovers,
    retry,
    stat,
)
from segray.store_errors import describe
from segray.uris import absolute, beside, ending, filesystem, is_chain, is_local, join, local_path

# In the order in which object stores sort keys: "-" < "." < "/" < "0".
TREE = ["B.png", "a-b.png", "a.png", "a/b.png", "a/c/d.png", "a0.png", "b/x", "é.png", "水/1.tif"]
HIDDEN = [".hidden.png", "a/.hidden/x.png", ".tmp/y.png"]
ODD = ["a b.png", "a#b.png", "a?b.png", "a%20b.png", "a::b.png", "x.png::y.png", "a[1].png", "a*.png", "a+b=c.png"]


def names(uri: str) -> list[str]:
    """Listed paths below a URI. The root folder of a test has a name of its own, which ends the URI."""
    start = uri.rstrip("/").rsplit("/", 1)[-1] + "/"
    return [file.uri.split(start, 1)[1] for file in list_files(uri)]


def test_listing_is_sorted_recursive_and_without_hidden_files(store):
    for name in reversed(TREE + HIDDEN):
        publish(join(store, name), name.encode())
    listed = names(store)
    # SeaweedFS lists folder by folder, where S3 itself sorts whole keys
    assert (sorted(listed) if store.startswith("s3") else listed) == TREE
    assert names(store + "/") == listed
    assert {file.size for file in list_files(join(store, "a"))} == {len("a/b.png"), len("a/c/d.png")}
    assert list(files_if_any(store)) == list(list_files(store))
    for file in list_files(store):
        assert file.uri.endswith(read_bytes(file.uri).decode())


def test_odd_names_are_listed_and_read_back(store):
    odd = [name for name in ODD if "::" not in name or not store.startswith("memory")]  # fsspec's memory cannot
    for name in odd:
        publish(join(store, name), name.encode())
    assert sorted(names(store)) == sorted(odd)
    assert {read_bytes(file.uri).decode() for file in list_files(store)} == set(odd)
    for name in odd:
        assert exists(join(store, name))
        remove(join(store, name))
        assert not exists(join(store, name))


def test_a_prefix_is_a_folder_not_the_start_of_a_name(store):
    publish(join(store, "ab/x.png"), b"1")
    publish(join(store, "abc/x.png"), b"2")
    publish(join(store, "ab.png"), b"3")
    assert names(join(store, "ab")) == ["x.png"]
    remove(join(store, "ab"))
    assert sorted(names(store)) == ["ab.png", "abc/x.png"]


def test_a_single_file_is_its_own_listing(store):
    publish(join(store, "one.png"), b"12345")
    publish(join(store, "one.png.bak"), b"1")
    (file,) = list_files(join(store, "one.png"))
    assert (file.size, read_bytes(file.uri)) == (5, b"12345")


def test_a_listing_keeps_the_scheme_that_it_was_asked_with(s3):
    folder = join(s3, "schemes")
    publish(join(folder, "a.txt"), b"1")
    asked = folder.replace("s3://", "s3a://")  # one file system with two names, like az and abfs
    assert [file.uri for file in list_files(asked)] == [join(asked, "a.txt")]
    assert [file.uri for file in list_files(folder)] == [join(folder, "a.txt")]


def test_nothing_there(store):
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        list(list_files(join(store, "nope")))
    assert list(files_if_any(join(store, "nope"))) == []
    with pytest.raises(FileNotFoundError):
        read_bytes(join(store, "nope"))
    with pytest.raises(SegrayError, match="does not exist"):
        read_text(join(store, "nope"))
    assert not exists(join(store, "nope"))
    remove(join(store, "nope"))


def test_a_folder_on_disk_that_may_not_be_looked_at_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    listing = LocalFileSystem.ls

    def refused(self, path, **options):
        if path.endswith("shut"):  # root may look at every folder
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listing(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", refused)
    with pytest.raises(
        SegrayError, match=f"cannot be looked at: .*{tmp_path}/shut'; correct the URI, or the rights on it"
    ):
        list(list_files(str(tmp_path)))


def test_a_store_that_fails_for_a_moment_has_its_files_all_the_same(no_pause, monkeypatch):
    publish("memory://failing/one.png", b"12345")
    info, failures = MemoryFileSystem.info, []

    def failing(self, path, **options):
        if len(failures) < most:
            failures.append(path)
            raise OSError("fell asleep")
        return info(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", failing)
    monkeypatch.setattr(MemoryFileSystem, "isfile", AbstractFileSystem.isfile)  # as most stores have it
    most = 2
    assert [file.size for file in list_files("memory://failing/one.png")] == [5]
    most = 100
    with pytest.raises(OSError, match="fell asleep"):
        list(list_files("memory://failing/one.png"))


def test_a_store_that_fails_for_a_moment_is_asked_again_what_is_to_be_removed(no_pause, monkeypatch):
    publish("memory://failing/old.png", b"12345")
    present, failures = MemoryFileSystem.exists, []

    def failing(self, path, **options):
        if not failures:
            failures.append(path)
            raise OSError("fell asleep")
        return present(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "exists", failing)
    remove("memory://failing/old.png")
    assert not exists("memory://failing/old.png")


def test_etags_change_with_the_content_and_not_without(store):
    uri = join(store, "a.png")
    tags = []
    for content in (b"123", b"456", b"7890"):
        publish(uri, content)
        (first,), (second,) = list_files(uri), list_files(uri)
        assert first == second
        tags.append(first.etag)
        time.sleep(0.01)  # on a local disk, contents of one size differ only in their time
    assert len(set(tags)) == 3


def test_a_web_server_without_etags_says_when_a_file_changed(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            """Nothing is said."""

    path, tags = tmp_path / "a.png", []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}/a.png"
        for second in (1, 1, 2):
            path.write_bytes(b"123")
            os.utime(path, (second, second))
            tags += [file.etag for file in list_files(uri)]
        assert stat(File(uri, -1, "")).etag == tags[-1]
        server.shutdown()
    assert tags[0] == tags[1] != tags[2]


def test_publish_replaces_and_makes_folders(store):
    uri = join(store, "deep/er/file")
    for content in (b"long content", b"short", b""):
        publish(uri, content)
        assert read_bytes(uri) == content
    assert names(store) == ["deep/er/file"]


@pytest.mark.parametrize("name", ["run[1]", "run?", "run*"])
def test_remove_takes_a_name_for_a_name_and_not_for_a_pattern(store, name):
    publish(join(store, name, "x"), b"1")
    publish(join(store, "run1", "x"), b"2")
    remove(join(store, name))
    assert names(store) == ["run1/x"]


def test_an_s3_listing_of_many_pages_has_every_key_once_and_in_order(s3):
    fs, path = filesystem(join(s3, "many"))
    keys = [f"{number:05d}.png" for number in range(1010)]
    fs.pipe({f"{path}/{key}": b"x" for key in keys})
    publish(join(s3, "many2/x.png"), b"x")
    assert names(join(s3, "many")) == keys
    stream = list_files(join(s3, "many"))
    assert next(stream).uri == join(s3, "many/00000.png")
    remove(join(s3, "many"))
    with pytest.raises(FileNotFoundError):
        list(list_files(join(s3, "many")))


def test_a_file_is_read_with_one_request(s3, monkeypatch):
    uri = join(s3, "one-request")
    publish(uri, b"content")
    kind, asked = type(filesystem(uri)[0]), []
    call = kind._call_s3

    async def noted(self, method, *args, **options):
        asked.append(method)
        return await call(self, method, *args, **options)

    monkeypatch.setattr(kind, "_call_s3", noted)
    assert read_bytes(uri) == b"content"
    assert asked == ["get_object"]


def test_what_is_published_after_a_look_is_seen(s3):
    folder = join(s3, "fresh")
    for number in range(3):
        assert not exists(join(folder, f"{number}"))
        publish(join(folder, f"{number}"), b"x")
        assert exists(join(folder, f"{number}"))
        assert len(names(folder)) == number + 1


def test_what_others_publish_after_a_look_is_seen_and_removed(s3):
    folder = join(s3, "others")
    fs, path = filesystem(folder)
    other = type(fs)(skip_instance_cache=True)
    other.pipe_file(f"{path}/first", b"x")
    fs.ls(path)  # and it caches the listing
    other.pipe_file(f"{path}/second", b"x")
    assert exists(join(folder, "second"))
    fs.ls(path)
    other.pipe_file(f"{path}/third", b"x")
    remove(join(folder, "third"))
    other.invalidate_cache()
    assert not other.exists(f"{path}/third")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a machine that loses power may keep a shard's name without its bytes."""
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_size), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), rename(*names)))
    publish(str(tmp_path / "a"), b"12345")
    assert done == [5, "renamed"]


class PlainFileSystem(MemoryFileSystem):
    """Files in memory, in a store without atomic puts, like SFTP or SMB."""

    protocol = "plain"
    store, pseudo_dirs, written = {}, [""], []

    def pipe_file(self, path, value, mode="overwrite", **options):
        self.written.append(path)
        super().pipe_file(path, value, mode, **options)


def test_on_a_store_whose_puts_are_not_atomic_a_file_is_renamed():
    register_implementation("plain", PlainFileSystem, clobber=True)
    for content in (b"one", b"two"):
        publish("plain://folder/a.tif", content)
        assert read_bytes("plain://folder/a.tif") == content
    written = [os.path.basename(path) for path in PlainFileSystem.written]
    assert len(written) == 2 and all(map(storage.LEFTOVER.fullmatch, written))


WRITER = """
import os, signal
from segray import storage
storage.os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
storage.publish({uri!r}, b"half" * 1000)
"""


@pytest.mark.parametrize("before", [None, b"former self"])
def test_a_writer_killed_before_its_rename_leaves_only_what_listing_ignores(tmp_path, before):
    uri = str(tmp_path / "out" / "shard")
    publish(str(tmp_path / "out" / "other"), b"1")
    if before:
        publish(uri, before)
    ended = subprocess.run([sys.executable, "-c", WRITER.format(uri=uri)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len([name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]) == 1
    assert exists(uri) == bool(before)
    assert names(str(tmp_path / "out")) == (["other", "shard"] if before else ["other"])
    (tmp_path / ".of another.tmp").write_bytes(b"")
    remove_leftovers(str(tmp_path))
    assert (tmp_path / ".of another.tmp").exists()
    assert sorted(os.listdir(tmp_path / "out")) == (["other", "shard"] if before else ["other"])
    remove_leftovers(str(tmp_path / "nowhere"))


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(str(tmp_path / "a.bin"), b"former self")
    monkeypatch.setattr("segray.storage.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(str(tmp_path / "a.bin"), bytes(1000))
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"former self"


def test_leftovers_are_found_in_any_depth_and_memory_does_not_grow_with_the_files(tmp_path):
    for name in [f"{folder}/{number}.tif" for folder in ("a", "a/b", "c") for number in range(1000)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    left = [storage._temporary(LocalFileSystem(), str(tmp_path / name)) for name in ("x", "a/b/x", "c/x")]
    for path in left:
        Path(path).touch()
    tracemalloc.start()
    remove_leftovers(str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # with a dict per file: two million
    assert not any(map(os.path.exists, left))
    assert sum(len(files) for _, _, files in os.walk(tmp_path)) == 3000


def test_a_leftover_that_a_late_writer_renames_is_none(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    left = [storage._temporary(LocalFileSystem(), str(tmp_path / "out" / name)) for name in "ab"]
    for path in left:
        Path(path).touch()
    listed = storage._local_files

    def late(folder):
        yield from [*listed(folder), os.rename(left[0], tmp_path / "out" / "a")][:-1]

    monkeypatch.setattr(storage, "_local_files", late)
    remove_leftovers(str(tmp_path))
    assert os.listdir(tmp_path / "out") == ["a"]


def test_leftovers_of_others_behind_a_link_stay(tmp_path):
    left = storage._temporary(LocalFileSystem(), str(tmp_path / "other" / "x"))
    Path(left).touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "other")
    remove_leftovers(str(tmp_path / "mine"))
    assert os.path.exists(left)


@pytest.mark.parametrize("error", [OSError("fell asleep"), EndpointConnectionError(endpoint_url="http://asleep")])
@pytest.mark.parametrize(("failures", "passes"), [(0, True), (1, True), (3, True), (4, False)])
def test_transient_failures_are_retried_a_finite_number_of_times(no_pause, failures, passes, error):
    calls = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= failures:
            raise error
        return "done"

    if passes:
        assert retry(call) == "done"
        assert len(calls) == failures + 1
    else:
        with pytest.raises(type(error), match="asleep"):
            retry(call)
        assert len(calls) == storage.ATTEMPTS
    assert no_pause == pytest.approx([0.2, 0.8, 3.2][:failures])


def test_a_store_that_is_silent_for_long_is_named_while_it_is_asked_again(no_pause, monkeypatch, caplog):
    answers = iter([OSError("no route to host"), "done"])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(storage, "SILENT_S", -1.0)
    assert retry(call) == "done"
    assert caplog.messages == ["a store does not answer; trying again: no route to host"]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, IsADirectoryError, ValueError])
def test_what_trying_again_cannot_mend_is_raised_at_once(no_pause, error):
    calls = []

    def call() -> None:
        calls.append(1)
        raise error("no")

    with pytest.raises(error):
        retry(call)
    assert (len(calls), no_pause) == (1, [])


def test_errors_of_a_store_tell_no_secret_and_no_address(s3):
    secrets = [os.environ[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL")]
    for uri in (join(s3, "nope.png"), "s3://no-such-bucket/x"):
        with pytest.raises(OSError) as caught:
            read_bytes(uri)
        assert not any(secret in describe(caught.value) for secret in secrets)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\nlines  here"), "two lines here"),
        (ValueError(""), "ValueError"),
        (KeyError("name"), "name"),
        (ValueError("cannot identify <X object at 0x7f12ab>"), "cannot identify <X object"),
        (ValueError("'a.tif' not recognized"), "'a.tif' not recognized"),
    ],
)
def test_describe_is_one_line_and_the_same_in_every_run(error, text):
    assert describe(error) == text


def test_members_of_another_file_are_listed_and_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/1.png", b"one")
        archive.writestr("x/2.png", b"two")
    files = list(list_files(f"zip://x::{tmp_path}/a.zip"))
    assert [file.uri for file in files] == [f"zip://x/{n}.png::{tmp_path}/a.zip" for n in (1, 2)]
    assert [read_bytes(file.uri) for file in files] == [b"one", b"two"]


@pytest.mark.parametrize("chain", ["tar://x.jpg", "zip://x.jpg", "zip://"])
def test_a_chain_whose_container_cannot_be_opened_is_one_sentence(tmp_path, chain):
    (tmp_path / "text").write_text("no container")
    for name in ("text", "missing", "text/below"):
        with pytest.raises(SegrayError, match=rf"^{chain}::{tmp_path}/{name} cannot be opened: .*; check the URI$"):
            exists(f"{chain}::{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("document", "name", "expected"),
    [
        ("/d/list.txt", "../a//b.tif", "/a/b.tif"),
        ("/list.txt", "a.tif", "/a.tif"),
        ("file:///d/x/list.txt", "./a.tif", "file:///d/x/a.tif"),
        ("s3://b/x/list.txt", "../y/./a b#%.tif", "s3://b/y/a b#%.tif"),
        ("s3://b/list.txt", "a.tif", "s3://b/a.tif"),
        ("s3://b//x/list.txt", "y//a.tif", "s3://b//x/y//a.tif"),  # keys of S3 may begin with a slash, or have two
        ("s3://b/x//list.txt", "a.tif", "s3://b/x//a.tif"),
        ("http://h/x/list.txt?sig=a/b", "a.tif", "http://h/x/a.tif"),
    ],
)
def test_a_name_beside_a_document(document, name, expected):
    assert beside(document, name) == expected


def test_uris(tmp_path):
    assert absolute("x/y/") == f"{os.getcwd()}/x/y"
    assert absolute("tar://x.png::t.tar") == f"tar://x.png::{os.getcwd()}/t.tar"
    assert absolute("zip://a::tar://b::s3://b/t.tar") == "zip://a::tar://b::s3://b/t.tar"
    assert absolute("s3://b/x/") == "s3://b/x"
    assert is_local(f"file://{tmp_path}")
    assert local_path(f"file://{tmp_path}") == str(tmp_path)
    assert local_path("memory://x") is None
    assert is_chain("tar://x.jpg::s3://b/a.tar")
    assert not is_chain("s3://b/x::y.png")
    with pytest.raises(SegrayError, match="cannot be opened"):
        filesystem("nosuchscheme://x")


def test_a_local_file_is_published_whole_under_any_name(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(6 * 2**20))  # more than a part of a multipart upload
    for name in ("new/folder/a.tif", *ODD):
        publish_file(join(store, name), str(source))
        assert read_bytes(join(store, name)) == source.read_bytes()
    source.write_bytes(b"short")
    publish_file(join(store, "new/folder/a.tif"), str(source))
    assert read_bytes(join(store, "new/folder/a.tif")) == b"short"
    assert names(join(store, "new")) == ["folder/a.tif"]
    with pytest.raises(FileNotFoundError):
        publish_file(join(store, "b.tif"), str(tmp_path / "none"))
    assert not exists(join(store, "b.tif"))
    assert not list(tmp_path.rglob(".*"))  # no temporary file either


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.png").write_bytes(b"x")
    (tmp_path / "near" / "deep").mkdir(parents=True)
    (tmp_path / "near" / "a.png").write_bytes(b"a")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "deep" / "back").symlink_to(tmp_path / "near")
    (tmp_path / "near" / "dangling").symlink_to(tmp_path / "none")
    assert [name for name in names(str(tmp_path / "near")) if name != "dangling"] == ["a.png", "link/x.png"]


def test_a_link_changes_with_the_file_that_it_names(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    far, near = tmp_path / "far" / "x.tar.gz", tmp_path / "near" / "x.tar.gz"
    far.write_bytes(b"old")
    near.symlink_to(far)
    os.utime(far, (1, 1))
    (listed,) = list_files(str(tmp_path / "near"))
    assert listed.etag == next(list_files(str(near))).etag  # whoever unpacks it looks again
    far.write_bytes(b"new")
    (changed,) = list_files(str(tmp_path / "near"))
    assert (changed.size, changed.uri) == (listed.size, listed.uri)
    assert changed.etag != listed.etag


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://host/a/T1.TIF?sig=abc.def&x=1", ".tif"),
        ("http://host/a.jpg#b.c", ".jpg"),
        ("/data/a.tif?b", ".tif?b"),
        ("s3://b/a.tif#1.png", ".png"),
        ("/data/scene", ""),
        ("/data/a::b.tif", ".tif"),
        ("s3://b/a::b.tif", ".tif"),
        ("zip://a.png::/data/b.zip", ".png"),
    ],
)
def test_the_ending_of_an_address_is_that_of_its_name(uri, expected):
    assert ending(uri) == expected


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-8-sig")
    assert read_text(str(tmp_path / "list.txt")) == "a.png\n"


def test_one_file_is_removed_and_no_folder(store):
    publish(join(store, "a", "b.txt"), b"1")
    publish(join(store, "a", "c[1].txt"), b"2")
    for name in ("a", "a/c[1].txt", "a/c[1].txt", "a/b.txt/x", "none/x"):
        remove_file(join(store, name))
    assert [file.uri.rpartition("/")[2] for file in list_files(store)] == ["b.txt"]


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError])
def test_a_file_that_may_not_be_removed_is_an_error(tmp_path, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    (tmp_path / "a").touch()
    monkeypatch.setattr(LocalFileSystem, "rm_file", refuse)
    with pytest.raises(error):
        remove_file(str(tmp_path / "a"))
    remove_file(str(tmp_path))
