"""Convolutions that apply the following ReLU themselves, as cuDNN on NVIDIA GPUs and oneDNN on CPUs can.

torch applies the ReLU in a kernel of its own, and on GPUs adds the bias in another; each reads and writes all
activations. In a U-Net that is 30% of the time on a GPU, and 5% on a CPU in bf16 (in fp32, nothing).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

RELU_FUNCTIONS = {F.relu, torch.relu, torch.relu_, F.relu_}
RELU_METHODS = {"relu", "relu_"}
# oneDNN's own ReLU turns NaN into 0, and a network that yields it would go unnoticed; its leaky one passes NaN on.
LEAK = 1e-30


class ConvReLU(nn.Module):
    """relu(convolution(x)) with the convolution's own parameters; float (N, C, H, W).

    In one kernel, unless that is refused for the first input: cuDNN has none for some sizes in float32. The choice is
    kept, since the two ways may differ in the last bit. at_once: None before the first input.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.at_once: bool | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The activations, (N, C, H, W)."""
        if self.at_once is not False:
            try:
                x = conv_relu(self.convolution, x_NCHW)
            except (RuntimeError, AttributeError) as error:  # no such kernel; no such library
                if self.at_once or isinstance(error, torch.OutOfMemoryError):
                    raise
                self.at_once = False
            else:
                self.at_once = True
                return x
        return F.relu(self.convolution(x_NCHW), inplace=True)


def conv_relu(c: nn.Conv2d, x_NCHW: Tensor) -> Tensor:
    """relu(c(x)) in one kernel, up to rounding and with NaN; RuntimeError or AttributeError if there is none."""
    if x_NCHW.is_cuda:
        return torch.cudnn_convolution_relu(x_NCHW, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
    # what torch's compiler calls; padding comes before stride here
    shape = c.padding, c.stride, c.dilation, c.groups
    return torch.ops.mkldnn._convolution_pointwise(x_NCHW, c.weight, c.bias, *shape, "leaky_relu", [LEAK], "")


def has_conv_relu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has faster kernels for it: NVIDIA GPUs (not those of other makers), and CPUs in bf16."""
    return bool(torch.version.cuda) if device.type == "cuda" else device.type == "cpu" and dtype is torch.bfloat16


def fuse_relus(network: nn.Module) -> nn.Module:
    """The same function as the given network, up to rounding; parameters are shared.

    A network that is not a graph of modules as traced by `folding` is returned as it is.
    """
    if not isinstance(network, GraphModule) or not _pairs(network):
        return network
    fused = GraphModule(network, copy.deepcopy(network.graph))
    for convolution, relu in _pairs(fused):
        fused.set_submodule(convolution.target, ConvReLU(fused.get_submodule(convolution.target)))
        relu.replace_all_uses_with(convolution)
        fused.graph.erase_node(relu)
    fused.recompile()
    return fused


def _pairs(traced: GraphModule) -> list[tuple[Node, Node]]:
    """The convolutions that can be fused, and the ReLU behind each."""
    pairs = [(node.args[0], node) for node in traced.graph.nodes if node.args]
    return [pair for pair in pairs if _is_relu(traced, pair[1]) and _is_lone_convolution(traced, pair[0])]


def _is_relu(traced: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return type(traced.get_submodule(node.target)) is nn.ReLU
    return (node.op == "call_function" and node.target in RELU_FUNCTIONS) or (
        node.op == "call_method" and node.target in RELU_METHODS
    )


def _is_lone_convolution(traced: GraphModule, node: object) -> bool:
    """Whether the node is a convolution that can be fused, called once, whose output only the ReLU takes."""
    if not isinstance(node, Node) or node.op != "call_module" or len(node.users) > 1:
        return False
    module = traced.get_submodule(node.target)
    if type(module) is not nn.Conv2d or module.groups > 1 or module.padding_mode != "zeros":
        return False
    calls = [other.target for other in traced.graph.nodes if other.op == "call_module"]
    return not isinstance(module.padding, str) and calls.count(node.target) == 1
