"""The versions of what may change a number."""

from __future__ import annotations

import platform
from importlib.metadata import version

from segray import __version__

PACKAGES = ("torch", "torchvision", "ray")


def versions() -> dict[str, str]:
    """Of segray, Python and the packages that compute. segray need not be installed: its folder comes with a job."""
    return {"segray": __version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
