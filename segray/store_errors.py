"""The failures of stores and full disks, whatever libraries raise, as OSErrors that callers can tell apart."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ParamValidationError
from fsspec import AbstractFileSystem

from segray.errors import SegrayError

Result = TypeVar("Result")
for _loud in ("gcsfs", "azure"):  # they log each refusal with its traceback; here it becomes one sentence
    logging.getLogger(_loud).setLevel(logging.CRITICAL)
LIBRARIES = ("aiohttp", "azure", "gcsfs", "google", "requests")  # whose errors are not OSErrors
# S3's and Azure's codes for what is wrong with the credentials or the clock, not with one object. fsspec's
# PermissionError does not distinguish them from the refusal of one object.
OF_CREDENTIALS = {
    "AccountProblem", "AuthenticationFailed", "ExpiredToken", "InvalidAccessKeyId", "InvalidAuthenticationInfo",
    "InvalidSecurity", "InvalidToken", "NotSignedUp", "RequestTimeTooSkewed", "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}  # fmt: skip
OF_KEYS = {  # of the key that an object is encrypted with: other objects may be readable
    "KMS.DisabledException", "KMS.InvalidKeyUsageException", "KMS.InvalidStateException",
    "KMS.KMSInvalidStateException", "KMS.NotFoundException",
}  # fmt: skip
UNREADABLE = (SegrayError, OSError, BotoCoreError)  # whatever may keep an image from being read
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
GONE = (404, 410)
FOR_NOW = (408, 425, 429)  # statuses of a request that may be tried again
FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
BEYOND_THE_END = ("416", "InvalidRange")


class StoreError(OSError):
    """A store fails or refuses the credentials, which is not the fault of the requested object."""


def at_fault(error: Exception, otherwise: type[Exception] = SegrayError) -> type[Exception]:
    """The type in which to retell an error: StoreError stays one, so that callers know that the store failed."""
    return StoreError if isinstance(error, StoreError) else otherwise


@contextmanager
def store_errors() -> Iterator[None]:
    """In the block, errors of stores' libraries become FileNotFoundError, PermissionError or StoreError."""
    try:
        yield
    except Exception as error:  # most of these libraries derive theirs from Exception alone
        told = _told(error)
        if told is error:
            raise
        raise told from error


@contextmanager
def full_disk_named(path: str) -> Iterator[None]:
    """In the block, the error of a full disk names the path, as that of a write names nothing."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def describe(error: BaseException) -> str:
    """The reason in an error of a store or a decoder, on one line and without the address of any object in memory."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split(" at 0x")[0]
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2
    return text[1:-1] if quoted else text


def reason_of(error: BaseException) -> str:
    """What is wrong with a file, as part of a sentence; see `describe`."""
    return "it does not exist" if isinstance(error, FileNotFoundError) else describe(error)


def code_of(error: BaseException) -> str:
    """The code or HTTP status of a store's refusal, "" where the error has none."""
    for found in (error, error.__cause__):
        if isinstance(response := getattr(found, "response", None), dict):  # botocore's, the cause of s3fs's errors
            return str(response.get("Error", {}).get("Code", ""))
        library = _library(found)
        # of Azure (two) and gcsfs; the `code` of aiohttp's errors is 400 where it means an answer that is cut off
        names = ("status",) if library == "aiohttp" else ("error_code", "status_code", "code")
        for name in names if library else ():
            if code := getattr(found, name, None):
                return str(getattr(code, "value", code))
    return ""


def with_reason(fs: AbstractFileSystem, path: str, ask: Callable[[str], Result]) -> Result:
    """The result of a call that sends S3 a HEAD; if that is refused without a reason, a byte is read to get one."""
    try:
        return ask(path)
    except PermissionError as error:
        if code_of(error) == "403":
            fs.cat_file(path, start=0, end=1)
        raise


def _told(error: Exception) -> Exception:
    """The error that replaces one of a library; any other is unchanged."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, ParamValidationError):  # no bucket can have such a name
        return PermissionError(" ".join(str(error).split()))
    if isinstance(error, FileNotFoundError) and _library(error.__cause__):  # fsspec's for any answer of a web server
        error = error.__cause__
    code, library = code_of(error), _library(error)
    said = " ".join(str(getattr(error, "message", "") or error).split())  # str() of aiohttp's shows the signed address
    if code in OF_CREDENTIALS or (code == "401" and library not in ("", "aiohttp")):
        return StoreError(f"the store refuses the credentials: {said}")
    if code == "NoSuchUpload":  # the upload of a large object got lost, or was completed and only the answer got lost
        return StoreError(f"the store has lost an upload: {said}")
    # gcsfs has no other sign of what is forbidden than this text
    if code in OF_KEYS or (type(error) is OSError and said.startswith("Forbidden: ")):
        return PermissionError(said)
    if isinstance(error, ValueError) and said.startswith("Bad Request: "):  # gcsfs, for much that has "invalid" in it
        return PermissionError(said)
    if not library:  # for what S3 cannot do now, s3fs raises plain OSErrors with nothing but its message
        return StoreError(f"the store answers {code}: {said}") if _for_now(error) else error
    status = int(code) if code.isdigit() else getattr(error, "status_code", None) or 0
    said = f"the store answers {code}: {said}" if code else said or type(error).__name__
    if status in GONE:
        return FileNotFoundError(said)
    return PermissionError(said) if 300 <= status < 500 and status not in FOR_NOW else StoreError(said)


def _for_now(error: Exception) -> bool:
    """Whether an OSError stands for a temporary failure of S3: too many requests, or a fault of its own."""
    response = getattr(error.__cause__, "response", None)
    if not isinstance(error, OSError) or not isinstance(response, dict):
        return False
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or status in FOR_NOW


def _library(error: BaseException | None) -> str:
    """Which of `LIBRARIES` an error is from; "" for all others, and for an invalid address (a ValueError)."""
    name = type(error).__module__.partition(".")[0]
    return name if name in LIBRARIES and not isinstance(error, ValueError) else ""
