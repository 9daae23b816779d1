"""A network prepared for inference: norms folded, weights converted, in the layout its device is fastest with."""

from __future__ import annotations

import copy
import re

import torch
from torch import nn

from segray.folding import fold_batch_norms
from segray.fusing import fuse_relus, has_conv_relu

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
NO_VIEW = re.compile("view size is not compatible|Cannot view a tensor")  # says torch, says its compiler


def default_precision(device_type: str) -> str:
    """bf16 on GPUs and CPUs with bf16 instructions, where it is 2 to 3.6 times as fast; else fp32.

    NVIDIA GPUs before Ampere (V100, T4) have none: torch emulates bf16 there, which is slow.
    """
    if device_type != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Inference:
    """float32 (N, C, H, W) -> logits (N, K, H, W) in the precision, on one device; the given network is not changed.

    precision: bf16 or fp32. compiled: with torch.compile, which takes about half a minute and, on CPUs, needs a C++
    compiler.
    """

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str, compiled: bool = False) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {' or '.join(PRECISIONS)}, not {precision!r}")
        self.device, self.dtype = device, PRECISIONS[precision]
        self.autocast = False
        self.fallback = fold_batch_norms(network).to(device, memory_format=torch.channels_last)
        self.network = self.fallback
        if self.dtype is not torch.float32:
            self.network = copy.deepcopy(self.fallback).to(self.dtype)
        if compiled:
            # freezing makes constants of the weights, so that they are brought into the kernels' layout once
            self.network = torch.compile(self.network, dynamic=False, options={"freezing": True})
        elif has_conv_relu(device, self.dtype):
            self.network = fuse_relus(self.network)
        self.layout = torch.channels_last
        self.tried = False

    @torch.inference_mode()
    def __call__(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self._run(x_NCHW) if self.tried else self._try(x_NCHW)

    def _run(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        if self.autocast:
            with torch.autocast(self.device.type, self.dtype):
                return self.network(x_NCHW)
        # converted in two steps, which take half the time of one
        return self.network(x_NCHW.to(self.dtype).contiguous(memory_format=self.layout))

    def _try(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The logits of the first input, in the first way in which the network runs, which is kept."""
        while not self.tried:
            try:
                logits = self._run(x_NCHW)
                self.tried = True
            except RuntimeError as error:
                if not self._another_way(str(error)):
                    raise
        return logits

    def _another_way(self, reason: str) -> bool:
        """Prepare another way to run a network that failed for some reason; whether there is one."""
        if NO_VIEW.search(reason) and self.layout is torch.channels_last:
            # it joins axes that lie apart in this layout, as decomposed programs do
            self.layout = torch.contiguous_format
            self.network = self.network.to(memory_format=self.layout)
            self.fallback = self.fallback.to(memory_format=self.layout)
            return True
        if "type" in reason and self.dtype is not torch.float32 and not self.autocast:
            # it makes float32 tensors of its own, which meet bf16 only under autocast
            self.network, self.autocast = self.fallback, True
            return True
        return False
