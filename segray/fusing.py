"""Convolutions that apply the following ReLU themselves: on NVIDIA GPUs, one kernel in place of three.

torch adds the bias and applies the ReLU in separate kernels, each of which reads and writes all activations: in a U-Net
they are 30% of the time. cuDNN does both while it writes the convolution's output.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

RELU_FUNCTIONS = {F.relu, torch.relu, torch.relu_, F.relu_}
RELU_METHODS = {"relu", "relu_"}


class ConvReLU(nn.Module):
    """relu(convolution(x)) with the convolution's own parameters; float (N, C, H, W) on a GPU.

    By cuDNN, unless that refuses the first input: it has no such kernel for some sizes in float32. That choice is kept,
    since the two ways differ in the last bit. by_cudnn: None before the first input.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.by_cudnn: bool | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The activations, (N, C, H, W)."""
        c = self.convolution
        if self.by_cudnn is not False:
            try:
                x = torch.cudnn_convolution_relu(x_NCHW, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
            except RuntimeError as error:
                if self.by_cudnn or isinstance(error, torch.OutOfMemoryError):
                    raise
                self.by_cudnn = False
            else:
                self.by_cudnn = True
                return x
        return F.relu(c(x_NCHW), inplace=True)


def fuse_relus(network: nn.Module) -> nn.Module:
    """The same function as the given network, up to rounding, on a GPU; parameters are shared.

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
    """Whether the node is a convolution that cuDNN can fuse, called once, whose output only the ReLU takes."""
    if not isinstance(node, Node) or node.op != "call_module" or len(node.users) > 1:
        return False
    module = traced.get_submodule(node.target)
    if type(module) is not nn.Conv2d or module.groups > 1 or module.padding_mode != "zeros":
        return False
    calls = [other.target for other in traced.graph.nodes if other.op == "call_module"]
    return not isinstance(module.padding, str) and calls.count(node.target) == 1
