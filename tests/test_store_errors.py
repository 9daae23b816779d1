"""Refused credentials are not a refused object, and every library's errors are OSErrors."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from aiohttp import InvalidURL
from botocore.exceptions import ClientError
from conftest import GUEST, png
from requests.exceptions import ProxyError
from s3fs.errors import translate_boto_error

from segray import storage
from segray.archives.copies import local_copy
from segray.archives.images import read_header, read_image
from segray.archives.ranges import read_range
from segray.errors import ImageError, SegrayError
from segray.expand import _known
from segray.listing import files_if_any, list_files, names
from segray.storage import File, exists, opened, publish, read_bytes, stat
from segray.store_errors import StoreError, describe, store_errors
from segray.uris import join

pytestmark = pytest.mark.usefixtures("no_pause")
PICTURE = png(np.zeros((4, 5, 3), np.uint8))


class Handler(BaseHTTPRequestHandler):
    """Answers /STATUS/... with that status, /flaky/STATUS/... too the first two times, and all else with PICTURE.

    Status 0 drops the connection, 1 does so in the middle of PICTURE.
    """

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        parts = self.path.split("/")
        status = parts[2] if parts[1] == "flaky" and self.asked[self.path] <= 2 else parts[1]
        if status == "0":
            self.close_connection = True
            return
        self.answer(int(status) if status.isdigit() else 200)

    do_HEAD = do_GET

    def answer(self, status: int) -> None:
        cut, status = status == 1, 200 if status == 1 else status
        content, first = PICTURE, self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        if status == 200 and int(first) >= len(content):
            status = 416
        content = content[int(first) :] if status == 200 else b""
        self.send_response(206 if status == 200 and "Range" in self.headers else status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

    def log_message(self, *words: object) -> None:
        """Nothing is said."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a web server, see `Handler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # of dropped connections
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "it does not exist"), (410, "it does not exist"), (401, "401: Unauthorized"), (403, "403: Forbidden"),
     (416, "416: .*Range Not Satisfiable")],
)  # fmt: skip
def test_a_web_server_that_refuses_one_image_is_a_failed_image(server, no_pause, status, reason, name):
    uri = f"{server}/{status}/{name}?sig=secret"
    for read in (read_header, read_image, lambda uri: _known(File(uri, -1, ""))):
        with pytest.raises(ImageError, match=rf"{status}/{name}.* cannot be read: .*({reason})") as caught:
            read(uri)
        assert str(caught.value).count("secret") == 1  # only in the address
    assert no_pause == []


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_web_server_that_fails_is_asked_again(server, no_pause, status):
    for ask in (read_bytes, lambda uri: stat(File(uri, -1, "")).size, lambda uri: read_range(uri, 0, 10)):
        with pytest.raises(StoreError):
            ask(f"{server}/{status}/b.png")
        assert len(no_pause) == storage.ATTEMPTS - 1
        no_pause.clear()
    assert read_image(f"{server}/flaky/{status}/a.png").height == 4
    assert stat(File(f"{server}/flaky/{status}/c.png", -1, "")).size == len(PICTURE)


@pytest.mark.parametrize("ask", [read_bytes, read_image, lambda uri: read_range(uri, 0, 10)])
def test_an_answer_that_is_cut_off_is_asked_for_again(server, no_pause, ask):
    with pytest.raises(StoreError, match="Not enough data"):
        ask(f"{server}/1/d.png")
    assert len(no_pause) == storage.ATTEMPTS - 1
    assert ask(f"{server}/flaky/1/{id(ask)}.png") is not None


def test_what_is_fetched_of_an_open_file_is_retried(server):
    for status in (0, 1, 503):
        with opened(f"{server}/flaky/{status}/open.png") as file:
            assert file.read() == PICTURE
    with pytest.raises(StoreError, match="503"), opened(f"{server}/503/open.png") as file:
        file.read()


def test_a_range_beyond_the_end_of_a_web_servers_file_is_empty(server):
    assert read_range(f"{server}/a.png", len(PICTURE), 10) == b""
    assert read_range(f"{server}/a.png", len(PICTURE) - 4, 10) == PICTURE[-4:]


def test_what_is_no_error_of_a_store_goes_on():
    for error in (ZeroDivisionError("x"), InvalidURL("x"), SegrayError("x"), FileNotFoundError("x")):
        with pytest.raises(type(error)) as caught, store_errors():
            raise error
        assert caught.value is error


def of_s3(code: str, status: int = 400) -> Exception:
    """What s3fs makes of a refusal."""
    response = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "GetObject"))


def of_library(module: str, **values: object) -> Exception:
    """An error like that of a library that is not installed here."""
    error = type("HttpResponseError", (Exception,), {"__module__": module})("no")
    vars(error).update(values)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (of_s3("ExpiredToken"), StoreError),
        (of_s3("RequestTimeTooSkewed"), StoreError),
        (of_s3("AccessDenied"), PermissionError),
        (of_s3("403"), PermissionError),
        (of_s3("KMS.DisabledException"), PermissionError),
        (of_s3("KMS.ThrottlingException"), OSError),
        (of_s3("NoSuchKey", 404), FileNotFoundError),
        (of_s3("NoSuchUpload", 404), StoreError),
        (of_s3("SlowDown", 503), StoreError),
        (of_s3("InternalError", 500), StoreError),
        (of_s3("TooManyRequests", 429), StoreError),
        (of_s3("InvalidRange", 416), OSError),
        (of_library("azure.core.exceptions", status_code=403, error_code="AuthenticationFailed"), StoreError),
        (of_library("azure.core.exceptions", status_code=403, error_code="AuthorizationFailure"), PermissionError),
        (of_library("azure.core.exceptions", status_code=404, error_code="BlobNotFound"), FileNotFoundError),
        (of_library("azure.core.exceptions"), StoreError),
        (of_library("gcsfs.retry", code=401), StoreError),
        (of_library("gcsfs.retry", code=403), PermissionError),
        (of_library("gcsfs.retry", code=503), StoreError),
        (OSError("Forbidden: bucket/a.png\nno access"), PermissionError),  # gcsfs
    ],
)
def test_errors_by_what_the_store_says(error, kind):
    with pytest.raises(kind) as caught, store_errors(), store_errors():
        raise error
    assert type(caught.value) is kind


@pytest.fixture
def stored(s3) -> str:
    """The URI of a folder with pictures, of which the guest may read those in open/."""
    for name in ("open/a.png", "shut/a.png", "shut/a.tif"):
        publish(join(s3, name), PICTURE)
    return s3


ASKS = [
    lambda uri: read_image(f"{uri}/a.png"),
    lambda uri: read_header(f"{uri}/a.png"),
    lambda uri: read_image(f"{uri}/a.tif"),
    lambda uri: read_header(f"{uri}/a.tif"),
    lambda uri: _known(File(f"{uri}/a.png", -1, "")),
    lambda uri: local_copy(f"{uri}/a.png", "tag"),
]


@pytest.mark.parametrize("wrong", [("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_ACCESS_KEY_ID", "AKIANOBODY")])
@pytest.mark.parametrize("ask", ASKS)
def test_wrong_credentials_are_a_failure_of_the_store(stored, become, no_pause, wrong, ask):
    become(*wrong)
    with pytest.raises(StoreError, match="the store refuses the credentials: .*key"):
        ask(join(stored, "shut"))
    assert len(no_pause) == storage.ATTEMPTS - 1


@pytest.mark.parametrize("ask", ASKS)
def test_an_object_that_may_not_be_read_is_a_failed_image(stored, become, no_pause, ask):
    become("AWS_ACCESS_KEY_ID", GUEST)
    with pytest.raises(ImageError, match=r"shut/a\..* cannot be (read|looked at): .*Access Denied"):
        ask(join(stored, "shut"))
    assert read_image(join(stored, "open", "a.png")).height == 4
    assert no_pause == []


@pytest.mark.parametrize(
    "look", [exists, names, lambda uri: list(list_files(uri)), lambda uri: list(files_if_any(uri))]
)
def test_a_place_that_may_not_be_looked_at_is_one_sentence(stored, become, look):
    become("AWS_ACCESS_KEY_ID", GUEST)
    with pytest.raises(SegrayError, match=r"^s3://segray-test/shut cannot be looked at: .*; correct the URI, or the"):
        look(join(stored, "shut"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ProxyError(), StoreError),  # gcsfs, when a proxy before the store answers 502
        (ValueError("Bad Request: User project specified in the request is invalid."), PermissionError),  # gcsfs
        (ValueError("this is no number"), ValueError),
    ],
)
def test_what_gcsfs_makes_of_answers_is_told(error, told):
    with pytest.raises(told) as caught, store_errors():
        raise error
    assert str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("tile"), "tile"),
        (TypeError("'<' not supported between 'str' and 'int'"), "'<' not supported between 'str' and 'int'"),
    ],
)
def test_only_the_quotes_around_a_whole_reason_are_left_out(error: Exception, sentence: str) -> None:
    assert describe(error) == sentence
