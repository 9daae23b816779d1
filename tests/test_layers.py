"""The layers of the project: no import runs back, none is circular, and every file has its layer."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "kernel": (
        "errors grid blend masks metrics synthetic regions sampling stopwatch resample reduction tracing rings "
        "packing boundary calibration loss_terms schedules flags heap versions faults views ordered"
    ),
    "network": (
        "inputs augment losses networks segmenter programs workers optimizer canvas rows seams folding inference "
        "details evidence photometric averaging batch_norm depthwise fusing counts transfer"
    ),
    "storage": (
        "storage uris model_dir shards plan archives datasets exports export_tasks report settings command_line walk "
        "summary reading loading expand inspection validation trainer training_job training_state training_remote "
        "training_console training_validation made_up peers tally showcase train_settings learner feeding "
        "scalars tracking publishing listing footprints places scenes split_rows store_errors scratch explaining "
        "allotment first_weights"
    ),
    "ray": (
        "cluster planning work pipeline outputs overviews segmentation evaluation evaluators exporting training "
        "throughput scaling simulation benchmark stages tasks export_removal validators rendezvous"
    ),
}
ORDER = [*LAYERS, "jobs"]
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}
FORBIDDEN = {  # what a layer must not import, besides segray's later layers
    "network": {"ray", "fsspec"},
    "storage": {"ray"},
}
FILES = sorted([*ROOT.glob("segray/**/*.py"), *ROOT.glob("jobs/**/*.py")])


def module_of(path: Path) -> str:
    """The dotted name of a file of the project; a package is its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layer_of(module: str) -> str:
    """The layer of a dotted name; ValueError when the table does not have it."""
    first, _, rest = module.partition(".")
    if first == "jobs":
        return "jobs"
    name = rest.split(".", maxsplit=1)[0]
    if name.startswith("__") or not name:
        return "kernel"  # segray/__init__.py and what it defines
    if name not in LAYER_OF:
        raise ValueError(f"{module} is in no layer: give {name} its place in LAYERS of {Path(__file__).name}")
    return LAYER_OF[name]


def imports_of(tree: ast.Module, module: str, *, package: bool) -> set[str]:
    """Dotted names that a module imports, anywhere in its body; relative ones resolved, `from a import b` as a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: (None if package else -1)]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def faults_of(source: str, module: str, *, package: bool = False) -> list[str]:
    """A sentence for every rule of its layer that a file of this text and name breaks."""
    tree, layer = ast.parse(source), layer_of(module)
    faults = []
    for name in sorted(imports_of(tree, module, package=package)):
        top = name.split(".", maxsplit=1)[0]
        if top in ("segray", "jobs"):
            if ORDER.index(layer_of(name)) > ORDER.index(layer):
                faults.append(f"imports {name}, which is in the later layer {layer_of(name)}")
        elif layer == "kernel" and top != "numpy" and top not in sys.stdlib_module_names:
            faults.append(f"is in the kernel, but imports {name}")
        elif top in FORBIDDEN.get(layer, ()):
            faults.append(f"is in the layer {layer}, but imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            faults.append(f"asserts in line {node.lineno}")
        if layer != "jobs" and isinstance(node, ast.Name) and node.id == "print":
            faults.append(f"prints in line {node.lineno}")
    return faults


@pytest.mark.parametrize("module", MODULES)
def test_file_keeps_to_its_layer(module: str) -> None:
    path = MODULES[module]
    assert not faults_of(path.read_text(), module, package=path.name == "__init__.py")


def test_no_import_is_circular() -> None:
    graph = {}
    for module, path in MODULES.items():
        package = path.name == "__init__.py"
        names = imports_of(ast.parse(path.read_text()), module, package=package)
        graph[module] = {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the cycle
    assert sorted(order) == sorted(MODULES)


def test_readme_names_every_file_once() -> None:
    table = (ROOT / "README.md").read_text().partition("| subject | files in `segray/` |")[2].partition("\n\n")[0]
    files = {name.split(".")[1] for name in MODULES if name.startswith("segray.")}
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(files)


def test_the_files_are_found() -> None:
    assert {"segray", "segray.grid", "segray.metrics", "segray.losses", "segray.augment"} <= MODULES.keys()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("segray.grid", "import torch", "kernel, but imports torch"),
        ("segray.grid", "def f():\n    import ray", "kernel, but imports ray"),
        ("segray.grid", "from fsspec.core import open", "kernel, but imports fsspec"),
        ("segray.metrics", "from segray.losses import Loss", "later layer network"),
        ("segray.metrics", "from segray import losses", "later layer network"),
        ("segray.metrics", "from .losses import Loss", "later layer network"),
        ("segray.metrics", "import segray.storage as s", "later layer storage"),
        ("segray.networks.unet", "from ..storage import read_bytes", "later layer storage"),
        ("segray.networks.unet", "import fsspec", "network, but imports fsspec"),
        ("segray.archives.tar", "import ray.data", "storage, but imports ray"),
        ("segray.archives.tar", "from segray.pipeline import f", "later layer ray"),
        ("segray.training", "from jobs.demo import main", "later layer jobs"),
        ("segray.training", "print(1)", "prints in line 1"),
        ("jobs.train", "assert True", "asserts in line 1"),
    ],
)
def test_every_fault_is_found(module: str, source: str, fault: str) -> None:
    assert [found for found in faults_of(source, module) if fault in found]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "segray.metrics",
            "import json, numpy.linalg\nfrom segray.masks import IGNORE\nfrom segray import __version__, grid",
        ),
        ("segray.losses", "import torch\nfrom segray.masks import IGNORE"),
        ("segray.archives.tar", "import fsspec\nfrom segray.inputs import InputSpec\nfrom .images import read_image"),
        ("segray.training", "import ray\nfrom segray.networks import NETWORKS"),
        ("jobs.train", "import ray\nfrom segray.training import train\nprint(1)"),
    ],
)
def test_no_fault_where_there_is_none(module: str, source: str) -> None:
    assert not faults_of(source, module)


@pytest.mark.parametrize("module", ["segray.utils", "segray.helpers.images"])
def test_a_file_in_no_layer_is_an_error(module: str) -> None:
    with pytest.raises(ValueError, match="is in no layer"):
        faults_of("", module)


def test_importing_a_file_in_no_layer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"segray\.utils\.f is in no layer"):
        faults_of("from segray.utils import f", "segray.training")
