"""Contracts for every network of NETWORKS; names and options; pretrained backbones."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from segray.networks import NETWORKS, build_network, load_backbone, parse_network
from segray.networks.any_size import pad_to_multiple
from segray.networks.pretrained import bare_name

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5
BATCH_OF_ONE = {"encoder_decoder", "unet", "nano"}  # these train even on a single image of a single pixel
# small ones, so that the contracts run in seconds
OPTIONS = {
    "encoder_decoder": {"width": 8},
    "unet": {"width": 4},
    "nano": {"width": 8},
    "smp": {"architecture": "unet", "encoder": "resnet18"},
}
each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module")
def cache() -> dict[str, nn.Module]:
    return {}


@pytest.fixture
def network(name: str, cache: dict[str, nn.Module]) -> nn.Module:
    """The network of that name for three bands, one for all tests: ResNet-50 takes a second to initialise."""
    if name not in cache:
        cache[name] = build(name)
    return cache[name].eval()


def build(name: str, *, num_classes: int = CLASSES, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, OPTIONS.get(name, {}), num_classes=num_classes, in_channels=in_channels)


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- contracts


@each_network
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 64)])
def test_eval_mode_gives_the_logits_of_every_pixel(network, size):
    with torch.no_grad():
        logits_NKHW = network(pixels(1, 3, *size))
        again_NKHW = network(pixels(1, 3, *size))
    assert logits_NKHW.shape == (1, CLASSES, *size)
    assert logits_NKHW.dtype == torch.float32
    assert logits_NKHW.isfinite().all()
    assert torch.equal(logits_NKHW, again_NKHW)


@each_network
@pytest.mark.parametrize("in_channels", [1, 5])
def test_any_number_of_bands(name, in_channels):
    with torch.no_grad():
        logits_NKHW = build(name, in_channels=in_channels).eval()(pixels(1, in_channels, 33, 32))
    assert logits_NKHW.shape == (1, CLASSES, 33, 32)


@each_network
def test_train_mode_returns_heads_and_every_parameter_learns(network, name):
    network.train()
    network.zero_grad()
    batch = 1 if name in BATCH_OF_ONE else 2
    output = network(pixels(batch, 3, 37, 53))
    heads = output if isinstance(output, dict) else {"out": output}
    assert list(heads) == (["out", "aux"] if name.startswith(("fcn", "deeplab", "nano")) else ["out"])
    assert all(logits_NKHW.shape == (batch, CLASSES, 37, 53) for logits_NKHW in heads.values())
    sum(logits_NKHW.square().mean() for logits_NKHW in heads.values()).backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert next(iter(gradients.values())).abs().sum() > 0  # the first convolution, furthest from the loss


@each_network
def test_state_goes_into_a_fresh_network(network, name):
    fresh = build(name).eval()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
        fresh.load_state_dict(network.state_dict())
        assert torch.equal(fresh(pixels(1, 3, 40, 40)), network(pixels(1, 3, 40, 40)))


@each_network
def test_bare_names_are_unique_so_that_no_pretrained_tensor_goes_astray(network):
    names = [bare_name(key) for key in network.state_dict()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted(BATCH_OF_ONE))
def test_one_image_of_one_pixel_trains(network):
    output = network.train()(pixels(1, 3, 1, 1))
    logits_NKHW = output["out"] if isinstance(output, dict) else output
    logits_NKHW.sum().backward()
    assert logits_NKHW.shape == (1, CLASSES, 1, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("encoder_decoder", {"width": 4}),
        ("unet", {"width": 2, "depth": 2}),
        ("nano", {"width": 4}),
        ("nano", {"width": 4, "reduce": 2}),
        ("nano", {"width": 4, "pooled": False}),
    ],
)
def test_exports_with_a_dynamic_batch(name, options):
    network = build_network(name, options, num_classes=3, in_channels=2).eval()
    program = torch.export.export(network, (pixels(2, 2, 32, 36),), dynamic_shapes=[{0: torch.export.Dim("batch")}])
    with torch.no_grad():
        expected_NKHW = network(pixels(5, 2, 32, 36))
        assert torch.allclose(program.module()(pixels(5, 2, 32, 36)), expected_NKHW, atol=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_pixel_of_nano_sees_what_is_far_away_only_through_pooled_features(pooled):
    network = build_network("nano", {"width": 4, "pooled": pooled}, num_classes=CLASSES, in_channels=3).eval()
    x_NCHW = pixels(1, 3, 64, 1024)
    changed_NCHW = x_NCHW.clone()
    changed_NCHW[..., -64:] += 5
    with torch.no_grad():
        same = torch.equal(network(x_NCHW)[..., :64], network(changed_NCHW)[..., :64])
    assert same is not pooled


def reduced_and_whole(times: int) -> tuple[nn.Module, nn.Module]:
    reduced, whole = (
        build_network("nano", {"width": 8, "reduce": reduce}, num_classes=CLASSES, in_channels=3)
        for reduce in (times, 1)
    )
    reduced.load_state_dict(whole.state_dict())
    return reduced, whole


def test_a_reduced_nano_sees_a_smaller_image_and_gives_logits_of_the_whole():
    reduced, whole = reduced_and_whole(3)
    x_NCHW = pixels(2, 3, 96, 144)
    with torch.no_grad():
        small_NKHW = whole.eval()(functional.avg_pool2d(x_NCHW, 3))
        expected_NKHW = functional.interpolate(small_NKHW, scale_factor=3, mode="bilinear", align_corners=False)
        torch.testing.assert_close(reduced.eval()(x_NCHW), expected_NKHW)


@pytest.mark.parametrize("times", [2, 3, 4, 8])
def test_the_logits_of_a_reduced_nano_lie_where_they_are_trained(times):
    reduced, whole = reduced_and_whole(times)
    x_NCHW = pixels(2, 3, 32 * times, 48 * times)
    with torch.no_grad():
        small_NKHW = whole.eval()(functional.avg_pool2d(x_NCHW, times))
        found_NKHW = reduced.eval()(x_NCHW)
    torch.testing.assert_close(found_NKHW[..., times // 2 :: times, times // 2 :: times], small_NKHW)


def test_narrow_networks_train_on_cpus():
    """In a process of its own: without the guard, three of four such runs write beyond an array."""
    code = """
import torch
from segray.networks import build_network
network = build_network("nano", {"width": 8}, num_classes=3, in_channels=3).to(memory_format=torch.channels_last)
for seed in range(4):
    x = torch.randn(8, 3, 160, 160).contiguous(memory_format=torch.channels_last)
    network(x)["out"].square().mean().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("size", [(96, 192), (97, 143), (1, 2), (31, 50)])
@pytest.mark.parametrize("times", [2, 3, 4])
def test_a_reduced_nano_trains_on_every_so_many_pixels(times, size):
    reduced, whole = reduced_and_whole(times)
    found = reduced.train()(pixels(2, 3, *size))
    mask = torch.zeros(2, *size)[:, times // 2 :: times, times // 2 :: times]
    assert {tuple(logits.shape) for logits in found.values()} == {(2, CLASSES, *mask.shape[1:])}
    if size[0] % (16 * times) == size[1] % (16 * times) == 0:  # other sizes are padded
        expected = whole.train()(functional.avg_pool2d(pixels(2, 3, *size), times))
        for name, logits in found.items():
            torch.testing.assert_close(logits, expected[name])


def test_default_sizes():
    counts = {
        name: sum(
            parameter.numel() for parameter in build_network(name, {}, num_classes=12, in_channels=3).parameters()
        )
        for name in ("encoder_decoder", "unet", "nano")
    }
    assert counts == {"encoder_decoder": 111_564, "unet": 1_942_764, "nano": 3_807_064}


@pytest.mark.parametrize(
    ("size", "multiple", "least", "padded"),
    [((1, 1), 4, 1, (4, 4)), ((4, 8), 4, 1, (4, 8)), ((5, 4), 4, 1, (8, 4)), ((1, 40), 16, 32, (32, 48))],
)
def test_padding_repeats_the_last_row_and_column(size, multiple, least, padded):
    image_NCHW = pixels(1, 2, *size)
    result_NCHW = pad_to_multiple(image_NCHW, multiple, least=least)
    assert result_NCHW.shape[-2:] == padded
    assert torch.equal(result_NCHW[..., : size[0], : size[1]], image_NCHW)
    rows, columns = (torch.arange(side).clamp(max=limit - 1) for side, limit in zip(padded, size, strict=True))
    assert torch.equal(result_NCHW, image_NCHW[..., rows[:, None], columns])


# --- names and options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unet", ("unet", {})),
        ("unet?width=32", ("unet", {"width": 32})),
        ("unet?width=32&depth=3", ("unet", {"width": 32, "depth": 3})),
        ("smp", ("smp", {})),
        ("smp/unet/resnet18", ("smp", {"architecture": "unet", "encoder": "resnet18"})),
        (
            "smp/fpn/tu-resnet18.a1_in1k?decoder_dropout=0.5&decoder_merge_policy=cat&allow_noncommercial=true",
            (
                "smp",
                {
                    "architecture": "fpn",
                    "encoder": "tu-resnet18.a1_in1k",
                    "decoder_dropout": 0.5,
                    "decoder_merge_policy": "cat",
                    "allow_noncommercial": True,
                },
            ),
        ),
    ],
)
def test_parse_network(text, expected):
    name, options = parse_network(text)
    assert (name, options) == expected
    assert [type(value) for value in options.values()] == [type(value) for value in expected[1].values()]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("unett", "there is no network 'unett', did you mean 'unet'?"),
        ("zzz", "there is no network 'zzz'; known: deeplabv3_mobilenet_v3_large, deeplabv3_resnet50, encoder_decoder"),
        ("", "there is no network ''; known"),
        ("unet/resnet18", "smp/ARCHITECTURE/ENCODER"),
        ("smp/unet", "smp/ARCHITECTURE/ENCODER"),
        ("smp//resnet18", "smp/ARCHITECTURE/ENCODER"),
        ("unet?width", "at 'width'; write NAME.option=value"),
        ("unet?width=1&width=2", "at 'width=2'"),
        ("smp/unet/resnet18?encoder=resnet50", "at 'encoder=resnet50'"),
    ],
)
def test_parse_network_refuses(text, sentence):
    with pytest.raises(ValueError) as caught:
        parse_network(text)
    assert sentence in str(caught.value).replace("NAME?", "NAME.")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("Unet", {}, "there is no network 'Unet', did you mean 'unet'?"),
        ("unet", {"widht": 8}, "network unet has no option 'widht', did you mean 'width'? known: depth, width"),
        ("fcn_resnet50", {"width": 8}, "network fcn_resnet50 has no option 'width'; known: none"),
        ("unet", {"width": "wide"}, "option width of network unet is 'wide', but must be of type int"),
        ("unet", {"width": True}, "option width of network unet is True, but must be of type int"),
        ("unet", {"width": 0}, "network unet needs width >= 1 and depth of 1 to 8"),
        ("unet", {"depth": 9}, "but they are 16 and 9"),
        ("encoder_decoder", {"width": -1}, "must be at least 1, but is -1"),
        ("nano", {"width": 7}, "must be even and at least 2, but is 7"),
        ("nano", {"reduce": 9}, "must be 1 to 8, but is 9"),
        ("smp", {"allow_noncommercial": "please"}, "must be of type bool"),
        ("unet", {"width": 10**20}, "network unet cannot be built with the options {'width': 1000000000000000000"),
    ],
)
def test_build_network_refuses(name, options, sentence):
    with pytest.raises(ValueError) as caught:
        build_network(name, options, num_classes=CLASSES, in_channels=3)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("num_classes", "in_channels"), [(0, 3), (5, 0)])
def test_build_network_needs_classes_and_bands(num_classes, in_channels):
    with pytest.raises(ValueError, match="must be at least 1"):
        build_network("unet", {}, num_classes=num_classes, in_channels=in_channels)


# --- segmentation_models_pytorch


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"encoder": "tu-resnet18", "checkpoint_path": "/a/pickle.pth"}, "no option 'checkpoint_path'"),
        ({"encoder": "tu-resnet18", "pretrained_cfg": {"file": "/a/pickle.pth"}}, "no option 'pretrained_cfg'"),
        ({"encoder": "tu-hf-hub:someone/model"}, "'tu-hf-hub:someone/model' names a place"),
        ({"encoder": "tu-local-dir:/tmp/model"}, "'tu-local-dir:/tmp/model' names a place"),
    ],
)
def test_a_model_names_no_file_and_no_place_that_timm_would_read(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build_network("smp", options, num_classes=CLASSES, in_channels=3)


@pytest.mark.parametrize(("encoder", "terms"), [("mit_b0", "NVIDIA"), ("mobileone_s0", "Apple")])
def test_encoders_under_restricted_terms_are_refused(encoder, terms):
    with pytest.raises(ValueError, match=f"(?s){terms}.*allow_noncommercial=true"):
        build_network("smp", {"encoder": encoder}, num_classes=CLASSES, in_channels=3)


def test_an_encoder_under_restricted_terms_is_built_when_they_are_accepted():
    _, options = parse_network("smp/segformer/mit_b0?allow_noncommercial=true&decoder_segmentation_channels=32")
    network = build_network("smp", options, num_classes=CLASSES, in_channels=3).eval()
    with torch.no_grad():
        assert network(pixels(1, 3, 20, 50)).shape == (1, CLASSES, 20, 50)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)  # None makes Python's import fail
    with pytest.raises(ValueError, match=r"pip install 'segray\[smp\]'"):
        build_network("smp", {}, num_classes=CLASSES, in_channels=3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"architecture": "unett"}, "no architecture 'unett'; close: unet"),
        ({"encoder": "resnet19"}, "no encoder 'resnet19'; close: resnet"),
        ({"encoder": "resnet18", "decoder_chanels": 3}, "no option 'decoder_chanels'; close: decoder_channels"),
        ({"encoder": "resnet18", "encoder_weights": "imagenet"}, "no option 'encoder_weights'"),
        ({"encoder": "tu-resnet18", "activation": "softmax"}, "no option 'activation'"),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, "cannot be made with no options: Input height"),
    ],
)
def test_smp_names_what_is_wrong(options, sentence):
    with pytest.raises(ValueError) as caught:
        build_network("smp", options, num_classes=CLASSES, in_channels=3)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("architecture", ["pan", "pspnet", "fpn"])
def test_architectures_with_demands_on_size_take_any(architecture):
    options = {"architecture": architecture, "encoder": "resnet18"}
    network = build_network("smp", options, num_classes=CLASSES, in_channels=1)
    assert network.training  # like every new module
    with torch.no_grad():
        assert network.eval()(pixels(1, 1, 37, 53)).shape == (1, CLASSES, 37, 53)
        assert network(pixels(1, 1, 1, 1)).shape == (1, CLASSES, 1, 1)


def test_parameters_that_no_logit_depends_on_are_frozen():
    """pspnet leaves the last two stages of its encoder out; data-parallel training would wait for their gradients."""
    network = build_network("smp", {"architecture": "pspnet", "encoder": "resnet18"}, num_classes=2, in_channels=3)
    frozen = {key.split(".")[2] for key, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"layer3", "layer4"}


# --- pretrained backbones


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("fcn_resnet50", torchvision.models.resnet50),
        ("lraspp_mobilenet_v3_large", torchvision.models.mobilenet_v3_large),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_an_imagenet_classifier_fills_the_backbone(network, classifier, prefix):
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = {prefix + key: tensor for key, tensor in classifier_state(classifier).items()}
    taken = load_backbone(network, state)
    after = network.state_dict()
    filled = {key for key in after if key.startswith("backbone.") and not key.endswith("num_batches_tracked")}
    assert taken == len(filled)
    given = {bare_name(key): tensor for key, tensor in state.items()}
    assert all(torch.equal(after[key], given[bare_name(key)]) for key in filled)
    assert all(torch.equal(after[key], before[key]) for key in after if not key.startswith("backbone."))


def classifier_state(classifier) -> dict[str, Tensor]:
    """Tensors with the names and shapes of an ImageNet classifier, and values that no initialisation gives."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in classifier(weights=None).state_dict().items()}
    return {key: torch.full(shape, 0.25) for key, shape in shapes.items()}


def test_an_imagenet_classifier_fills_an_smp_encoder():
    network = build("smp")
    state = classifier_state(torchvision.models.resnet18)
    expected = sum(not key.startswith("fc.") and not key.endswith("num_batches_tracked") for key in state)
    assert load_backbone(network, state) == expected


@pytest.mark.parametrize("encoder", ["convnext_atto", "efficientvit_b0", "densenet121"])
def test_a_timm_classifier_fills_the_smp_encoder_that_flattens_its_names(encoder):
    import timm

    options = {"architecture": "fpn", "encoder": f"tu-{encoder}"}
    network = build_network("smp", options, num_classes=2, in_channels=3)
    state = classifier_state(lambda weights: timm.create_model(encoder, pretrained=False))
    filled = {key for key in network.state_dict() if "encoder" in key and "num_batches" not in key}
    assert load_backbone(network, state) == len(filled)
    assert all((network.state_dict()[key] == 0.25).all() for key in filled)


@pytest.mark.parametrize("name", ["unet", "encoder_decoder", "lraspp_mobilenet_v3_large"])
def test_a_whole_network_of_other_classes_gives_all_but_its_head(network, name):
    other = build(name, num_classes=CLASSES + 2)
    state = {key: torch.full_like(tensor, 0.5) for key, tensor in network.state_dict().items()}
    taken = load_backbone(other, state)
    kept = {key for key, tensor in other.state_dict().items() if (tensor != 0.5).any() and "num_batches" not in key}
    assert kept
    assert all("head" in key or key.startswith("classifier") for key in kept)
    assert taken == sum("num_batches" not in key for key in state) - len(kept)


@pytest.mark.parametrize("name", ["unet", "lraspp_mobilenet_v3_large"])
@pytest.mark.parametrize("bands", [1, 2, 4, 10])
def test_weights_for_colours_are_spread_over_other_bands(network, name, bands):
    other = build(name, in_channels=bands)
    state = network.state_dict()
    assert load_backbone(other, state) == sum("num_batches" not in key for key in state)
    first = next(iter(state))
    red, green, blue = state[first].unbind(1)
    expected = [red + green + blue] if bands == 1 else [band * 3 / bands for band in [red, green, blue] * 4][:bands]
    torch.testing.assert_close(other.state_dict()[first], torch.stack(expected, 1))


def test_weights_for_colours_are_spread_in_every_convolution_of_pixels():
    options = {"architecture": "fpn", "encoder": "tu-repvgg_a0"}  # whose stem has two, side by side
    network, other = (build_network("smp", options, num_classes=2, in_channels=bands) for bands in (3, 4))
    state = network.state_dict()
    assert load_backbone(other, state) == sum("num_batches" not in key for key in state)
    of_pixels = [key for key, tensor in state.items() if tensor.ndim == 4 and tensor.shape[1] == 3]
    assert len(of_pixels) == 2
    for key in of_pixels:
        torch.testing.assert_close(other.state_dict()[key], state[key][:, [0, 1, 2, 0]] * 0.75)


def test_an_embedding_of_places_is_no_convolution_of_pixels():
    def embedded(bands: int) -> nn.Module:
        network = nn.Module()
        network.pos_embed = nn.Parameter(torch.zeros(1, 4, 2, 2))
        network.encoder = nn.Conv2d(bands, 4, 2)
        return network

    assert load_backbone(embedded(4), embedded(3).state_dict()) == 3


@pytest.mark.parametrize("name", ["unet", "lraspp_mobilenet_v3_large"])
def test_weights_for_other_bands_leave_the_first_convolution_random(network, name):
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = build(name, in_channels=4).state_dict()
    assert load_backbone(network, state) == sum("num_batches" not in key for key in state) - 1
    first = next(iter(state))
    assert torch.equal(network.state_dict()[first], before[first])


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large"])
@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({}, "none of the 0 pretrained tensors fits"),
        ({"epoch": 3}, "none of the 0 pretrained tensors fits"),
        ({"wte.weight": torch.zeros(3, 4)}, r"none of the 1 .* is offered wte.weight \(3, 4\)"),
        ({"features.0.1.weight": torch.zeros(16)}, "fit only 1 of the .* of the backbone: .* they lack it"),
        (
            {"features.0.1.weight": torch.zeros(16), "features.0.0.weight": torch.zeros(8, 3, 3, 3)},
            r"wants backbone.0.0.weight \(16, 3, 3, 3\), and they have \(8, 3, 3, 3\)",
        ),
    ],
)
def test_weights_of_something_else_are_refused_and_change_nothing(network, state, sentence):
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        load_backbone(network, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["fcn_resnet50"])
def test_a_smaller_backbone_of_the_same_family_is_refused(network):
    with pytest.raises(ValueError, match="give weights of the same backbone"):
        load_backbone(network, classifier_state(torchvision.models.resnet18))
