"""The versions of everything that may change a result."""

from __future__ import annotations

import platform
from importlib.metadata import version

from segray import __version__

PACKAGES = ("torch", "torchvision", "ray")


def versions() -> dict[str, str]:
    """Of segray, Python and the packages that compute. segray need not be installed: jobs carry its folder along."""
    return {"segray": __version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
