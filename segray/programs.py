"""Loading `program.pt2` (torch.export): the archive is searched for anything that could execute, then copied for torch.

torch.export.load falls back to unrestricted pickle, evaluates shape expressions with sympy, looks operators up by
dotted name under `torch`, and turns guards, names and argument trees into Python source. So a program may hold aten
operators, arithmetic on shapes, plain tensors and plain names, and nothing else.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn
from torch._export.verifier import SpecViolationError
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from segray.errors import ModelError, one_line

# The records that torch writes; other names make it read older layouts, which are pickles.
RECORD = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/sample_inputs/model\.pt"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|archive_\w+|byteorder|\.\w+(/\w+)?|extra/.+"
)
# from_file can read and create any file
OPERATOR = re.compile(
    r"torch\.ops\.(aten(?!\.from_file)|prims|higher_order)\.\w+(\.\w+)?|torch\._?sym_\w+|math\.\w+|_operator\.(\w+)"
)
ARITHMETIC = {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "and_", "or_", "not_"} | {
    "eq", "ne", "lt", "le", "gt", "ge", "getitem",
}  # fmt: skip
EINSUM, EQUATION = "torch.ops.aten.einsum.default", re.compile(r"[A-Za-z., ]+(->[A-Za-z. ]*)?")
EXPRESSION = re.compile(r"[\w\s(),=<>&|~+*/.-]*")
SYMBOL = re.compile(r"'\w+'|\b[a-z]+\d+\b")
WORDS = {"Symbol", "Integer", "Rational", "Float", "Mul", "Add", "Pow", "Max", "Min", "Mod", "PythonMod"} | {
    "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "floor", "ceiling", "ToFloat", "TruncToInt", "FloorToInt",
    "Eq", "Ne", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan",
    "And", "Or", "Not", "Where", "positive", "nonnegative", "integer", "real", "precision", "True", "False",
}  # fmt: skip
TRAINING = ("training", "train", "use_input_stats")  # the mode, as batch norm, dropout and instance norm name it
PLAIN = re.compile(r"[\w.+-]*")  # names and enumerations
DAMAGE = (zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError) + (
    SyntaxError, EOFError, pickle.UnpicklingError, SpecViolationError,
)  # fmt: skip


class Program(nn.Module):
    """An exported program as a network that is always in inference mode.

    batch, in_channels, height, width: the only size that it takes, or None if it takes any.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        super().__init__()
        sizes = (size if isinstance(size, int) else None for size in _input_shape(exported))
        self.batch, self.in_channels, self.height, self.width = sizes
        self.module = exported.module(check_guards=False)  # guards are text that torch would execute
        _loosen(self.module)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Program:
        """What `to` and `cuda` call; tensors that the program itself creates will be on the new device too."""
        super()._apply(fn, recurse)
        held = next(chain(self.parameters(), self.buffers()), fn(torch.empty(0)))  # a mere change of type moves nothing
        _replace(self.module, lambda value: held.device if isinstance(value, torch.device) else value)
        return self

    def train(self, mode: bool = True) -> Program:  # exported modules raise on train() and eval()
        """Does nothing: a program keeps the mode that it was exported in."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float -> (N, K, H, W) logits."""
        return self.module(x)


def _loosen(module: GraphModule) -> None:
    """Remove checks that tensors have the type and device they had at the export: others work as well."""
    for part in _parts(module):
        for node in list(part.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                part.graph.erase_node(node)
    halves = torch.float16, torch.bfloat16  # a network exported in one of these makes such tensors; here it is float32
    _replace(module, lambda value: torch.float32 if value in halves else value)


def _replace(module: GraphModule, change: Callable[[object], object]) -> None:
    """Change the arguments of the graphs' operators."""
    for part in _parts(module):
        for node in part.graph.nodes:
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), change)
        part.recompile()


def _parts(module: GraphModule) -> Iterator[GraphModule]:
    """A program and its parts: what runs without gradients, or under autocast, is a graph of its own."""
    return (part for part in module.modules() if isinstance(part, GraphModule))


def load_program(data: bytes, *, source: str) -> Program:
    """The program in the bytes of a .pt2 archive.

    ModelError when it is damaged, holds anything that could execute, was exported in train mode, or mixes images.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for problem in _problems(archive):
                raise ModelError(f"{source} is refused: {problem}; export the network anew with torch.export.save")
            copy = _copy(archive)
        exported = torch.export.load(copy)
        nodes = [node for part in _parts(exported.graph_module) for node in part.graph.nodes]
        if any(map(_trains, nodes)):
            raise ModelError(
                f"{source} was exported in train mode, so its masks would be random; "
                "call .eval() on the network before torch.export.export"
            )
        if any(map(_mixes, nodes)):
            raise ModelError(
                f"{source} has batch norms without stored moments, so a mask would depend on the other tiles of its "
                "batch; export the network for batches of 1"
            )
        return Program(exported)
    except DAMAGE as error:
        raise ModelError(f"{source} is no program of torch.export: {one_line(error)}") from error


def _trains(node: Node) -> bool:
    """Whether an operator drops values at random, or uses a batch's moments though it has those of training."""
    given = _given(node)
    if "eps" in given and given.get("running_mean") is None:  # a norm without stored moments, whatever its mode
        return False
    return any(given.get(name) is True for name in TRAINING) or bool(given.get("dropout_p"))


def _mixes(node: Node) -> bool:
    """Whether an operator is a batch norm that uses the moments of a batch of more than 1, as it has no others."""
    given = _given(node)
    if not ("eps" in given and given.get("training") is True and given.get("running_mean") is None):
        return False
    count = given["input"].meta["val"].shape[0]
    return not isinstance(count, int) or count > 1  # decomposed instance norms see the batch as one image


def _given(node: Node) -> dict[str, object]:
    """The arguments of an operator by name; none if the node is something else."""
    if not isinstance(node.target, OpOverload):
        return {}
    return dict(zip((argument.name for argument in node.target._schema.arguments), node.args)) | node.kwargs


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    root = names[0].split("/")[0] + "/" if names else ""
    records = [name.removeprefix(root) for name in names]
    if "archive_format" not in records or archive.read(f"{root}archive_format") != b"pt2":
        yield "it is not in the archive format pt2"
    for entry, record in zip(archive.infolist(), records):
        if not entry.filename.startswith(root) or not RECORD.fullmatch(record):
            yield f"it holds {entry.filename}, an object that is no tensor"
        if entry.compress_type != zipfile.ZIP_STORED or records.count(record) > 1:
            yield f"it holds {entry.filename} compressed or twice"
        if record.startswith(("models/", "data/")) and record.endswith(".json"):
            yield from _json_problems(json.loads(archive.read(entry)))
        if record.startswith("data/sample_inputs/"):  # what this refuses, torch would unpickle unrestricted
            _sample(archive.read(entry))


def _copy(archive: zipfile.ZipFile) -> io.BytesIO:
    """The same records in a new archive: torch reads what was searched, however it would have read the old one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as copy:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename.endswith("/models/model.json"):
                content = json.dumps(json.loads(content, object_hook=_without_remarks)).encode()
            elif entry.filename.endswith("_config.json"):
                content = json.dumps(json.loads(content, object_hook=_on_cpu)).encode()
            elif "/data/sample_inputs/" in entry.filename:
                torch.save(_sample(content), sample := io.BytesIO())
                content = sample.getvalue()
            copy.writestr(entry.filename, content)
    buffer.seek(0)
    return buffer


def _sample(content: bytes) -> object:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _on_cpu(value: dict) -> dict:
    """An object of JSON; a device becomes the CPU, so that a program exported on another device opens there."""
    return {"type": "cpu", "index": None} if value.keys() == {"type", "index"} else value


def _without_remarks(value: dict) -> dict:
    """As `_on_cpu`, and without guards and metadata (stack traces and the like), which are free text."""
    empty = {"guards_code": [], "metadata": {}}
    return _on_cpu({key: empty.get(key, item) for key, item in value.items()})


def _json_problems(value: object, key: str = "", target: object = None) -> Iterator[str]:
    """key: of the value. target: the operator that it is an argument of; only einsum takes an equation."""
    if isinstance(value, list):
        for item in value:
            yield from _json_problems(item, key, target)
    elif isinstance(value, dict):
        target = value.get("target", target)
        if "inputs" in value and isinstance(value.get("target"), str) and not _is_operator(value["target"]):
            yield f"it calls {value['target']}"
        for name, item in value.items():
            if not _is_arithmetic(name):  # keys of ranges are expressions, keys of weights dotted names
                yield from _json_problems(name)
            if name not in ("guards_code", "metadata"):
                yield from _json_problems(item, name, target)
    elif key == "use_pickle" and value:
        yield "it holds a pickled object"
    elif key == "as_string" and target == EINSUM and isinstance(value, str) and EQUATION.fullmatch(value):
        return
    elif isinstance(value, str) and not (_is_arithmetic(value) if key == "expr_str" else _is_plain(value)):
        yield f"it holds the text {value[:80]!r}"


def _is_operator(target: str) -> bool:
    match = OPERATOR.fullmatch(target)
    return bool(match) and (match.group(3) is None or match.group(3) in ARITHMETIC)


def _is_arithmetic(expression: str) -> bool:
    bare = SYMBOL.sub("0", expression)
    words = set(re.findall(r"[^\W\d]\w*", bare))
    return bool(EXPRESSION.fullmatch(bare)) and words <= WORDS and not re.search(r"\.\s*[^\W\d]", bare)


def _is_plain(text: str) -> bool:
    """Whether a text is a name or a number, or JSON of these (argument trees are JSON in JSON)."""
    if PLAIN.fullmatch(text):
        return True
    return text.startswith(("[", "{")) and not any(_json_problems(json.loads(text)))


def _input_shape(exported: torch.export.ExportedProgram) -> torch.Size:
    inputs = exported.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in inputs and "val" in node.meta]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError("it should take one tensor (N, C, H, W)")
    return shapes[0]
