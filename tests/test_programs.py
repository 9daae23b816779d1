"""Programs of torch.export give their network's logits to the bit; whatever could execute is refused unexecuted."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from segray.errors import ModelError
from segray.inference import Inference
from segray.model_dir import load_network, read_description
from segray.programs import load_program
from segray.storage import publish
from segray.uris import join

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Weights, a buffer, a constant, arithmetic on shapes: all that a program may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("bias", torch.arange(4.0))
        self.constant = torch.ones(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 4, H, W)."""
        down = nn.functional.interpolate(self.mix(x), size=(x.shape[2] // 2, x.shape[3] // 2), mode="bilinear")
        up = nn.functional.interpolate(down, size=x.shape[2:], mode="nearest")
        return up + self.bias[:, None, None] + self.constant


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def exported(
    network: nn.Module, shapes: dict | None = None, example: torch.Tensor = X, *, decomposed: bool = False
) -> bytes:
    """The network's program. decomposed: into core operators."""
    file = io.BytesIO()
    program = torch.export.export(network, (example,), dynamic_shapes=(shapes,) if shapes else None)
    torch.export.save(program.run_decompositions() if decomposed else program, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def program(network) -> bytes:
    """A program of any batch and any size."""
    sizes = {0: torch.export.Dim("n", min=1, max=64)}
    sizes |= {axis: torch.export.Dim(f"d{axis}", min=4, max=4096) for axis in (2, 3)}
    return exported(network, sizes)


def test_a_program_of_any_size_gives_the_logits_of_its_network(program, network):
    loaded = load_program(program, source="p")
    assert (loaded.batch, loaded.in_channels, loaded.height, loaded.width) == (None, 3, None, None)
    for shape in ((2, 3, 16, 24), (1, 3, 16, 24), (5, 3, 64, 40)):
        x = torch.rand(shape)
        with torch.no_grad():
            assert torch.equal(loaded.eval().train()(x), network(x))


def test_a_program_of_one_size_says_so(network):
    loaded = load_program(exported(network), source="p")
    assert (loaded.batch, loaded.in_channels, loaded.height, loaded.width) == (2, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(loaded(X), network(X))


class Mixed(nn.Module):
    """Like many networks: a layer in float32 for its range, and a tensor that it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 4, H, W)."""
        x = self.first(x).relu().float()
        return self.last(x) * torch.arange(1, 5, device=x.device, dtype=x.dtype)[:, None, None]


class Parted(Mixed):
    """Its parts, one in bf16 and one without gradients, become graphs of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 4, H, W)."""
        with torch.autocast("cpu", torch.bfloat16):
            x = self.first(x).relu().float()
        with torch.no_grad():
            return self.last(x) * torch.arange(1, 5, device=x.device, dtype=x.dtype)[:, None, None]


@pytest.mark.parametrize("kind", [Mixed, Parted])
def test_a_program_runs_in_bf16_and_on_other_devices_than_it_was_exported_on(kind):
    torch.manual_seed(0)
    network = kind().eval()
    program = load_program(exported(network), source="p")
    with torch.no_grad():
        expected = network(X)
    found = Inference(program, device=torch.device("cpu"), precision="bf16")(X)
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert copy.deepcopy(program).to("meta")(X.to("meta")).shape == expected.shape
    assert copy.deepcopy(program).to("meta").to(torch.float32)(X.to("meta")).shape == expected.shape


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to open it on")
def test_a_program_exported_on_a_gpu_opens_without_one(monkeypatch):
    torch.manual_seed(0)
    network = Mixed().eval()
    program = exported(network)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(((X,), {}), sample := io.BytesIO())
    monkeypatch.undo()
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        [config] = [archive.read(name) for name in archive.namelist() if name.endswith(CONFIG)]
    cpu, gpu = ({"type": "cpu", "index": None}, {"type": "cuda", "index": 0})
    old, new = json.dumps(cpu).encode(), json.dumps(gpu).encode()
    assert old in config
    records = {SAMPLES: sample.getvalue(), CONFIG: config.replace(old, new)}
    moved = load_program(rebuilt(program, edit=swap(cpu, gpu), replace=records), source="p")
    with torch.no_grad():
        assert torch.equal(moved(X), network(X))


class Half(nn.Module):
    """With a norm, whole numbers, and a tensor of a type that the network names itself."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.dtype = dtype
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 4, H, W)."""
        return self.layers(x.to(self.dtype))[:, self.order]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("example", ["float", "its own type"])
def test_a_program_exported_in_half_runs_in_every_precision(dtype, example):
    torch.manual_seed(0)
    network = Half(dtype).eval()
    program = load_program(exported(network, example=X if example == "float" else X.to(dtype)), source="p")
    network.to(torch.float32).dtype = torch.float32
    with torch.no_grad():
        expected = network(X)
    whole = Inference(program, device=torch.device("cpu"), precision="fp32")(X)
    assert whole.dtype == torch.float32
    assert (whole - expected).abs().max() < 1e-5
    assert (Inference(program, device=torch.device("cpu"), precision="bf16")(X) - expected).abs().max() < 0.02


def test_a_program_exported_in_double_runs_in_every_precision():
    network = nn.Conv2d(3, 4, 1).double().eval()
    program = load_program(exported(network, example=X.double()), source="p")
    with torch.no_grad():
        expected = network(X.double())
    for precision, error in (("fp32", 1e-5), ("bf16", 0.02)):
        logits = Inference(program, device=torch.device("cpu"), precision=precision)(X)
        assert (logits - expected).abs().max() < error


@pytest.mark.parametrize("equation", ["nchw,kc->nkhw", " n c h w , k c -> n k h w", "...chw,kc->...khw"])
def test_a_program_may_hold_einsum(equation):
    class Einsum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, x, torch.ones(4, 3))

    assert torch.equal(load_program(exported(Einsum()), source="p")(X), Einsum()(X))


def write_model(uri: str, program: bytes, *, tile: int = 16, bands: int = 3) -> str:
    spec = {"bands": [*range(bands)], "scale": 1.0, "mean": [0] * bands, "std": [1] * bands, "tile": tile, "overlap": 4}
    legend = [{"id": i, "name": f"{i}", "color": [i, i, i]} for i in range(4)]
    document = {"format_version": 1, "network": {"program": "program.pt2"}, "classes": legend, "input": spec}
    publish(join(uri, "program.pt2"), program)
    publish(join(uri, "model.json"), json.dumps(document).encode())
    return uri


def test_a_model_directory_with_a_program(store, program, network):
    described = read_description(write_model(store, program))
    assert described.network_name == "program.pt2"
    with torch.no_grad():
        assert torch.equal(load_network(described)(X), network(X))


@pytest.mark.parametrize(
    ("tile", "bands", "sentence"), [(32, 3, "takes 16 rows, .* says 32"), (16, 4, "3 bands, .* 4")]
)
def test_a_program_that_does_not_fit_its_model_json(tmp_path, network, tile, bands, sentence):
    uri = write_model(str(tmp_path), exported(network, example=X[:, :, :, :16]), tile=tile, bands=bands)
    with pytest.raises(ModelError, match=sentence):
        load_network(read_description(uri))


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)


class Frozen(nn.Module):
    """Runs a part without gradients, which the export puts in a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.norm(x)
        return x * 2


MODAL = {  # networks that answer differently in train and eval mode
    "batch norm": lambda: nn.BatchNorm2d(3),
    "instance norm": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "dropout": lambda: nn.Dropout(0.1),
    "in place": lambda: nn.Dropout(0.1, inplace=True),
    "channels": lambda: nn.Dropout2d(0.1),
    "alpha": lambda: nn.AlphaDropout(0.1),
    "alpha of channels": lambda: nn.FeatureAlphaDropout(0.1),
    "rrelu": nn.RReLU,
    "attention": Attention,
    "without gradients": Frozen,
}


@pytest.mark.parametrize("name", MODAL)
def test_programs_exported_in_train_mode_are_refused(name):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), MODAL[name]())
    with pytest.raises(ModelError, match=r"^p was exported in train mode, .* call \.eval\(\)"):
        load_program(exported(network.train()), source="p")
    with torch.no_grad():
        assert torch.equal(load_program(exported(network.eval()), source="p")(X), network(X))


@pytest.mark.parametrize("name", ["batch norm", "dropout", "attention"])
def test_programs_decomposed_in_train_mode_are_refused(name):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), MODAL[name]())
    with pytest.raises(ModelError, match="exported in train mode"):
        load_program(exported(network.train(), decomposed=True), source="p")
    load_program(exported(network.eval(), decomposed=True), source="p")


@pytest.mark.parametrize("decomposed", [False, True])
def test_norms_without_moments_of_a_training_have_no_mode(decomposed):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)).eval()
    with torch.no_grad():
        found = load_program(exported(network, decomposed=decomposed), source="p")(X)
        assert torch.allclose(found, network(X), atol=1e-5)


@pytest.mark.parametrize("decomposed", [False, True])
def test_batch_norms_that_mix_the_images_of_a_batch_are_refused(decomposed):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    with pytest.raises(ModelError, match=r"^p has batch norms without stored moments, .* export .* for batches of 1$"):
        load_program(exported(network, decomposed=decomposed), source="p")
    alone = load_program(exported(network, example=X[:1], decomposed=decomposed), source="p")
    with torch.no_grad():
        assert torch.allclose(alone(X[:1]), network(X[:1]), atol=1e-5)


def test_networks_of_another_form_are_refused():
    class Two(nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a + 1

    with pytest.raises(ModelError, match=r"should take one tensor \(N, C, H, W\)"):
        load_program(exported(Two(), example=torch.zeros(3, 4)), source="p")


def rebuilt(
    program: bytes, *, edit: Callable[[dict], None] = lambda model: None, add: dict[str, bytes] | None = None,
    replace: dict[str, bytes] | None = None, bare: dict[str, bytes] | None = None,
) -> bytes:  # fmt: skip
    """The archive with its model.json edited, records replaced or added, and bare names added at its root."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as source, zipfile.ZipFile(file, "w") as target:
        root = source.namelist()[0].split("/")[0]
        for name in source.namelist():
            content = (replace or {}).get(name.removeprefix(f"{root}/"), source.read(name))
            if name.endswith("models/model.json"):
                model = json.loads(content)
                edit(model)
                content = json.dumps(model).encode()
            target.writestr(name, content)
        for name, content in {**{f"{root}/{n}": c for n, c in (add or {}).items()}, **(bare or {})}.items():
            target.writestr(name, content)
    return file.getvalue()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(path: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"mix.weight": Evil(path)}, file)
    return file.getvalue()


def swap(old: object, new: object) -> Callable[[dict], None]:
    """An edit of model.json: every value that equals `old` becomes `new`."""

    def edit(model: dict) -> None:
        text = json.dumps(model)
        assert json.dumps(old) in text
        model.update(json.loads(text.replace(json.dumps(old), json.dumps(new))))

    return edit


EINSUM = "torch.ops.aten.einsum.default"


def called(target: str, text: str) -> Callable[[dict], None]:
    """An edit of model.json: the first node calls `target` with a text."""

    def edit(model: dict) -> None:
        node = model["graph_module"]["graph"]["nodes"][0]
        node.update(target=target, inputs=[{"name": "equation", "arg": {"as_string": text}, "kind": 1}])

    return edit


CONV, SYMBOL = "torch.ops.aten.conv2d.default", "Symbol('s77', positive=True, integer=True)"
SAMPLES, CONFIG = "data/sample_inputs/model.pt", "data/weights/model_weights_config.json"
CALL = "__import__('os').mkdir({path!r})"
EVIL = {  # name -> an edit of the archive, given the path of the file that the attack would create
    "pickled sample input": lambda path: {"replace": {SAMPLES: pickled(path)}},
    "pickled weight": lambda path: {
        "replace": {CONFIG: b'{"config": {"a": {"path_name": "weight_0", "use_pickle": true}}}'}
    },
    "weights of the older layout": lambda path: {"add": {"data/weights/model.pt": pickled(path)}},
    "constants of the older layout": lambda path: {"add": {"data/constants/model.pt": pickled(path)}},
    "custom object": lambda path: {"add": {"data/constants/custom_obj_0": pickled(path)}},
    "opaque object": lambda path: {"add": {"data/constants/opaque_obj_0": pickled(path)}},
    "compiled model": lambda path: {"add": {"data/aotinductor/model/x.so": b"ELF"}},
    "model under another ending": lambda path: {"add": {"models/model.jsoN": b"{}"}},
    "a record twice": lambda path: {"add": {SAMPLES: pickled(path)}},
    "the layout of 2.7": lambda path: {"bare": {"version": b"8.8", "serialized_state_dict.json": pickled(path)}},
    "operator of the system": lambda path: {"edit": swap(CONV, "torch.os.mkdir")},
    "operator by way of builtins": lambda path: {"edit": swap(CONV, "_operator.call")},
    "operator that opens files": lambda path: {"edit": swap(CONV, "torch.ops.aten.from_file.default")},
    "operator outside torch": lambda path: {"edit": swap(CONV, "builtins.exec")},
    "expression that imports": lambda path: {"edit": swap(SYMBOL, CALL.format(path=str(path)))},
    "expression that executes a text": lambda path: {
        "edit": swap(SYMBOL, f"(exec)('''\n0,({CALL.format(path=str(path))})''')")
    },
    "expression with an attribute": lambda path: {"edit": swap(SYMBOL, "Integer.mro")},
    "expression with a text": lambda path: {"edit": swap(SYMBOL, "Max('exec(1)')")},
    "equation that is none": lambda path: {"edit": called(EINSUM, CALL.format(path=str(path)))},
    "equation to another operator": lambda path: {"edit": called("torch.ops.aten.conv2d.padding", "nchw,kc->nkhw")},
    "argument with a default": lambda path: {"edit": swap("x", f"x={CALL.format(path=str(path))}")},
    "argument tree": lambda path: {
        "edit": lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec=json.dumps(
                [1, {"type": "builtins.dict", "context": json.dumps([f"x={CALL}"]), "children_spec": []}]
            )
        )
    },
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_programs_are_refused_unexecuted(tmp_path, program, name):
    trap = tmp_path / "executed"
    with pytest.raises(ModelError, match=r"^evil\.pt2 is (refused|no program)") as caught:
        load_program(rebuilt(program, **EVIL[name](trap)), source="evil.pt2")(X)
    assert not trap.exists()
    assert len(str(caught.value)) < 400
    if name not in ("pickled sample input",):
        assert "is refused: it holds" in str(caught.value) or "is refused: it calls" in str(caught.value)


def test_guards_and_stack_traces_are_not_executed_either(tmp_path, program, network):
    trap = tmp_path / "executed"

    def edit(model: dict) -> None:
        model["guards_code"] = [CALL.format(path=str(trap)), f"{CALL.format(path=str(trap))} == L['x'].size()[2]"]
        for node in model["graph_module"]["graph"]["nodes"]:
            node["metadata"]["stack_trace"] = f"\n{CALL.format(path=str(trap))}"

    loaded = load_program(rebuilt(program, edit=edit), source="p")
    with torch.no_grad():
        assert torch.equal(loaded(X), network(X))
    assert not trap.exists()


def test_compressed_records_are_refused(program):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ModelError, match="compressed"):
        load_program(file.getvalue(), source="p")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_programs_are_refused(program, keep):
    cut = program[: int(keep * len(program)) if isinstance(keep, float) else keep]
    with pytest.raises(ModelError, match="is no program of torch.export|is refused"):
        load_program(cut, source="p")


def test_damaged_descriptions_of_programs_are_refused_or_loaded_and_never_more(program):
    chance, refused = random.Random(0), 0

    def damage(value: object) -> object:
        """JSON in which one leaf or branch in a hundred is lost or swapped."""
        if chance.random() < 0.003:
            return chance.choice([None, 0, -1, "x", [], {}, True, 1e30])
        if isinstance(value, dict):
            return {key: damage(item) for key, item in value.items() if chance.random() > 0.002}
        return [damage(item) for item in value] if isinstance(value, list) else value

    for _ in range(25):
        try:
            load_program(
                rebuilt(program, edit=lambda model: model.update({key: damage(item) for key, item in model.items()})),
                source="p",
            )
        except ModelError:
            refused += 1
    assert refused
