"""What a task of an export does beside writing a scene: its files are published, and none is left of others."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from running import contents

from segray.export_tasks import Exporter
from segray.settings import ExportSettings
from segray.storage import publish_file


def test_tiles_are_put_several_at_once_and_their_marker_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, put = threading.Barrier(2, timeout=20), []

    def publish(uri: str, source: str) -> None:
        if uri.endswith(("0/5.png", "0/6.png")):
            at_once.wait()  # for the other
        publish_file(uri, source)
        put.append(os.path.relpath(uri, tmp_path))

    def write(path: str) -> dict:
        for name in ("0/5.png", "0/6.png", "1/5.png", "1/6.png", "tiles.json"):
            file = Path(path).parent / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(name)
        return {"tiles": 4}

    monkeypatch.setattr("segray.export_tasks.publish_file", publish)
    settings = ExportSettings(masks="masks", output=str(tmp_path), format="png")
    facts = Exporter(masks=None, settings=settings, usual=".tif")._publish("a/17/tiles.json", write)
    assert facts == {"tiles": 4, "files": 5, "bytes": 4 * 7 + 10}
    assert put[-1] == "a/17/tiles.json"
    assert contents(tmp_path) == {name: name.removeprefix("a/17/").encode() for name in put}
    assert len(put) == 5
