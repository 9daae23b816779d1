"""Segmentation networks of torchvision, with random weights: making one downloads nothing.

Their tensors keep torchvision's names, so its weights load with load_backbone.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segray.networks.published import Published


class TorchvisionNet(nn.Module):
    """Backbone, classifier and auxiliary classifier of a torchvision network; the last is used only in train mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.classifier = network.classifier
        self.aux_classifier = getattr(network, "aux_classifier", None)

    def forward(self, x_NCHW: Tensor) -> Tensor | dict[str, Tensor]:
        """Logits (N, K, H, W), in train mode {"out", "aux"} of them."""
        features = self.backbone(x_NCHW)
        # the lite R-ASPP classifier takes the dictionary of two feature maps, the others take the last map
        logits_NKHW = _resize(self.classifier(features.get("out", features)), x_NCHW)
        if not self.training or self.aux_classifier is None:
            return logits_NKHW
        aux_NKHW = _resize(self.aux_classifier(features["aux"]), x_NCHW)
        return {"out": logits_NKHW, "aux": aux_NKHW}


def fcn_resnet50(*, num_classes: int, in_channels: int) -> nn.Module:
    """FCN (Long et al. 2015) on a dilated ResNet-50: 35 M parameters with its auxiliary head."""
    return _build("fcn_resnet50", num_classes, in_channels, aux_loss=True)


def deeplabv3_resnet50(*, num_classes: int, in_channels: int) -> nn.Module:
    """DeepLabv3 (Chen et al. 2017) on a dilated ResNet-50: 42 M parameters with its auxiliary head."""
    return _build("deeplabv3_resnet50", num_classes, in_channels, aux_loss=True)


def deeplabv3_mobilenet_v3_large(*, num_classes: int, in_channels: int) -> nn.Module:
    """DeepLabv3 on a dilated MobileNetV3-Large: 11 M parameters."""
    return _build("deeplabv3_mobilenet_v3_large", num_classes, in_channels, aux_loss=True)


def lraspp_mobilenet_v3_large(*, num_classes: int, in_channels: int) -> nn.Module:
    """Lite R-ASPP (Howard et al. 2019) on MobileNetV3-Large: 3.2 M parameters, no auxiliary head."""
    return _build("lraspp_mobilenet_v3_large", num_classes, in_channels, aux_loss=False)


def published(name: str) -> Published:
    """Weights by torchvision's name for them, as ResNet50_Weights.DEFAULT; ValueError: unknown name."""
    from torchvision.models import get_weight

    weights = get_weight(name)
    preset = weights.transforms()
    return Published(
        place=weights.url,
        load=lambda: weights.get_state_dict(progress=False, weights_only=True),
        moments=lambda: (tuple(preset.mean), tuple(preset.std)),
    )


def _build(name: str, num_classes: int, in_channels: int, *, aux_loss: bool) -> nn.Module:
    from torchvision.models import segmentation  # takes 4 s to import; other networks should not pay for it

    network = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=aux_loss
    )
    if in_channels != 3:
        _replace_first_convolution(network.backbone, in_channels)
    return TorchvisionNet(network)


def _replace_first_convolution(backbone: nn.Module, in_channels: int) -> None:
    name, old = next((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    # neither backbone has a bias there, as normalisation follows
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out")  # as torchvision does in both backbones
    parent, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, new)


def _resize(logits_NKhw: Tensor, x_NCHW: Tensor) -> Tensor:
    return F.interpolate(logits_NKhw, size=x_NCHW.shape[-2:], mode="bilinear", align_corners=False)
