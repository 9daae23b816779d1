"""Batch norms folded into the convolutions before them: the same function of an image, in fewer steps.

A network of modules is traced symbolically; an exported program already is a graph of operators.
"""

from __future__ import annotations

import copy
from operator import attrgetter

import torch
from torch import nn
from torch.fx import GraphModule, Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from segray.networks.any_size import pad_to_multiple

# Exactly these types: a subclass may do more, such as timm's norms, which also apply an activation.
CONVOLUTIONS = {nn.Conv1d: False, nn.Conv2d: False, nn.ConvTranspose2d: True}  # whether it is transposed
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
BATCH_NORM, CONV2D = torch.ops.aten.batch_norm.default, torch.ops.aten.conv2d.default
UNTRACEABLE = (TypeError, ValueError, RuntimeError, AttributeError, NameError)  # control flow that depends on sizes


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy of a network, in eval mode and float32, without the batch norms that follow a convolution.

    float (N, C, H, W) -> logits (N, K, H, W) as before, up to rounding. What cannot be traced keeps its norms.
    """
    network = copy.deepcopy(network).float().eval().requires_grad_(False)
    if not any(type(module) in NORMS for module in network.modules()):
        return _fold_program(network)
    try:
        graph = Tracer(autowrap_functions=(pad_to_multiple,)).trace(network)
    except UNTRACEABLE:
        return network
    traced = GraphModule(network, graph)
    for node in list(graph.nodes):
        if pair := _pair(traced, node):
            convolution, norm = pair
            fused = fuse_conv_bn_eval(convolution, norm, transpose=CONVOLUTIONS[type(convolution)])
            traced.set_submodule(node.args[0].target, fused)
            _bypass(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _pair(traced: GraphModule, node: Node) -> tuple[nn.Module, nn.Module] | None:
    """The convolution whose output only this batch norm takes, and the norm."""
    before = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(before, Node) or before.op != "call_module" or len(before.users) > 1:
        return None
    calls = [other.target for other in traced.graph.nodes if other.op == "call_module"]
    if calls.count(node.target) > 1 or calls.count(before.target) > 1:
        return None
    convolution, norm = traced.get_submodule(before.target), traced.get_submodule(node.target)
    fits = type(convolution) in CONVOLUTIONS and type(norm) in NORMS and norm.track_running_stats
    # torch's fusion of transposed convolutions assumes that they have one group
    fits = fits and not (CONVOLUTIONS[type(convolution)] and convolution.groups > 1)
    return (convolution, norm) if fits else None


def _fold_program(network: nn.Module) -> nn.Module:
    """The same for graphs of operators in a network, such as those of an exported program."""
    for module in network.modules():
        if isinstance(module, GraphModule):
            for node in list(module.graph.nodes):
                if node.target is BATCH_NORM and _is_lone_convolution(node.args[0]):
                    _fold_operators(module, node)
            module.recompile()
    return network


def _is_lone_convolution(node: object) -> bool:
    return isinstance(node, Node) and node.target is CONV2D and len(node.users) == 1


def _fold_operators(module: GraphModule, node: Node) -> None:
    """Fold aten::batch_norm(x, weight, bias, mean, var, training, momentum, eps, ...) into aten::conv2d before it."""
    convolution = node.args[0]
    weight, bias = convolution.args[1], convolution.args[2] if len(convolution.args) > 2 else None
    gamma, beta, mean, variance, training, _, eps = node.args[1:8]
    sources = (weight, bias, mean, variance, gamma, beta)
    if training or any(source is not None and source.op != "get_attr" for source in sources):
        return
    w, b, m, v, g, h = (None if source is None else attrgetter(source.target)(module) for source in sources)
    fused = fuse_conv_bn_weights(w, b, m, v, eps, g, h)
    names = [f"folded_{convolution.name}_{part}" for part in ("weight", "bias")]
    for name, value in zip(names, fused):
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    with module.graph.inserting_before(convolution):
        nodes = [module.graph.get_attr(name) for name in names]
    convolution.args = (convolution.args[0], *nodes, *convolution.args[3:])
    _bypass(node)


def _bypass(node: Node) -> None:
    """Remove a batch norm from its graph: what used its output now uses the convolution's."""
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)
