"""Jobs record versions, also where segray came as a folder and is not installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from segray import __version__, versions


def test_segray_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_installed(name: str) -> str:
        if name == "segray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(versions, "version", of_installed)
    assert versions.versions() == {
        "segray": __version__,
        "python": versions.platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "ray")},
    }
