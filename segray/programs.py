"""Loading `program.pt2` (torch.export): the archive is searched for anything that could execute before torch opens it.

torch.export.load falls back to unrestricted pickle, evaluates shape expressions with sympy and looks operators up by
dotted name under `torch`. So a program may hold aten operators, arithmetic on shapes and plain tensors, nothing else.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator

import torch
from torch import nn

from segray.errors import ModelError

OPERATOR = re.compile(r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|torch\._?sym_\w+|math\.\w+|_operator\.(\w+)")
ARITHMETIC = {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "and_", "or_", "not_"} | {
    "eq", "ne", "lt", "le", "gt", "ge", "getitem",
}  # fmt: skip
EXPRESSION = re.compile(r"[\w\s(),=<>&|~+*/'.-]*")
FUNCTIONS = {"Symbol", "Integer", "Rational", "Float", "Mul", "Add", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv"} | {
    "CleanDiv", "CeilDiv", "floor", "ceiling", "Eq", "Ne", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "ToFloat", "TruncToInt", "FloorToInt", "IntTrueDiv", "Where",
}  # fmt: skip


class Program(nn.Module):
    """An exported program as a network that is always in inference mode.

    batch, height, width: the only sizes that it takes, or None where it takes any.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        super().__init__()
        shape = _input_shape(exported)
        self.batch, _, self.height, self.width = (size if isinstance(size, int) else None for size in shape)
        self.in_channels = shape[1]
        self.module = exported.module()

    def train(self, mode: bool = True) -> Program:  # exported modules raise on train() and eval()
        """Keeps the mode that the program was exported in."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float -> (N, K, H, W) logits."""
        return self.module(x)


def load_program(data: bytes, *, source: str) -> Program:
    """The program in the bytes of a .pt2 archive; ModelError when it is damaged or holds what could execute."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for problem in _problems(archive):
                raise ModelError(f"{source} is refused: {problem}; export the network anew with torch.export.save")
        return Program(torch.export.load(io.BytesIO(data)))
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{source} is no program of torch.export: {' '.join(str(error).split())[:200]}") from error


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    formats = [archive.read(name) for name in names if name.endswith("archive_format")]
    if formats != [b"pt2"]:
        yield "it is not in the archive format pt2"
    for name in names:
        if name.endswith(".json"):
            yield from _json_problems(json.loads(archive.read(name)))
        if "/sample_inputs/" in name:  # torch would fall back to unrestricted pickle for what this refuses
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        if re.search(r"custom_obj|opaque|\.so$|\.py$", name):
            yield f"it holds {name}, an object that is no tensor"


def _json_problems(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _json_problems(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "use_pickle" and item:
            yield "it holds a pickled object"
        if key == "target" and isinstance(item, str) and "inputs" in value and not _is_operator(item):
            yield f"it calls {item}"
        if key == "expr_str" and not _is_arithmetic(str(item)):
            yield f"it evaluates {str(item)[:80]!r}"
        yield from _json_problems(item)


def _is_operator(target: str) -> bool:
    match = OPERATOR.fullmatch(target)
    return bool(match) and (match.group(3) is None or match.group(3) in ARITHMETIC)


def _is_arithmetic(expression: str) -> bool:
    calls = set(re.findall(r"([A-Za-z_]\w*)\s*\(", expression))
    dotted = re.search(r"\.\s*[A-Za-z_]", expression)
    return bool(EXPRESSION.fullmatch(expression)) and calls <= FUNCTIONS and not dotted and "__" not in expression


def _input_shape(exported: torch.export.ExportedProgram) -> torch.Size:
    inputs = exported.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in inputs and "val" in node.meta]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError("it should take one tensor (N, C, H, W)")
    return shapes[0]
