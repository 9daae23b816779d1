"""Segmenter: network + input spec + classes; regions of images in, masks and statistics of windows out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import torch
from torch import nn

from segray.canvas import Canvas, canvases, decide_singles
from segray.errors import ModelError, one_line
from segray.faults import is_out_of_memory, is_uncompiled, uncompiled
from segray.inference import Inference
from segray.inputs import InputSpec, prepare
from segray.regions import Region, WindowMask, whole_image
from segray.rows import top_class
from segray.transfer import SIGNED
from segray.views import VIEWS

WAITING_BATCHES = 4  # times the batch size: how many regions may wait for a batch to fill
UPLOAD_BYTES = 2**24  # of pixels of small images, sent to a GPU together
BATCHES_BEHIND = 2  # that a GPU still has to do when the host waits for results, so that it is never idle

Tile = tuple[Canvas, int, int]  # row and column on the lattice


class Segmenter:
    """Segments regions tile by tile; a pixel's class depends on its image and the model, and on nothing else.

    Several threads may segment at once: on a GPU, one computes while others wait.

    network: (N, C, H, W) float -> (N, K, H, W) logits; it is copied. precision: bf16 or fp32. batch_size: tiles per
    forward pass. static_batch: the only batch size that the network takes, if it is fixed. compiled: see Inference.
    temperature: probabilities are softmax(logits / temperature) (Guo et al., ICML 2017, section 4.2); it changes no
    class of a tile, hence no mask unless tiles are blended. tta: a key of VIEWS. detailed: results have the
    confidence of each pixel, at 2 bytes each; sampled: and the logits of some.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: InputSpec,
        *,
        num_classes: int,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        blend: str = "crop",
        batch_size: int = 1,
        static_batch: int | None = None,
        compiled: bool = False,
        temperature: float = 1.0,
        tta: str = "none",
        detailed: bool = False,
        sampled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.inference = Inference(network, device=self.device, precision=precision, compiled=compiled)
        self.spec, self.num_classes, self.lattice = spec, num_classes, spec.lattice(blend)
        self.batch_size = static_batch or batch_size
        self.copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.behind = BATCHES_BEHIND if self.device.type == "cuda" else 0
        self.temperature, self.views = temperature, VIEWS[tta]
        self.detailed, self.sampled = detailed, sampled
        # Held for the tiles of a region: two batches at once would take twice the memory, and two threads that start
        # kernels in turn are slower than one, since each waits for the other's Python.
        self.turn = threading.Lock()

    def segment(self, regions: Iterable[Region]) -> Iterator[list[WindowMask]]:
        """The masks of each region's windows, in order; batches span regions, so that small images fill them."""
        waiting: deque[Canvas] = deque()
        finished: deque[tuple[int, Canvas]] = deque()
        batch: list[Tile] = []
        batches = 0
        for canvas in self._canvases(regions):
            waiting.append(canvas)
            with self.turn:
                for row, col in canvas.tiles:
                    batch.append((canvas, row, col))
                    if len(batch) == self.batch_size:
                        self._run(batch)
                        batch, batches = [], batches + 1
                if len(waiting) > WAITING_BATCHES * self.batch_size:  # images without data fill no batch
                    self._run(batch)
                    batch, batches = [], batches + 1
                finished.extend((batches, canvas) for canvas in _finished(waiting))
            while finished and batches - finished[0][0] >= self.behind:
                yield finished.popleft()[1].results()
        with self.turn:
            self._run(batch)
            finished.extend((batches, canvas) for canvas in _finished(waiting))
        for _, canvas in finished:
            yield canvas.results()

    def mask_image(self, pixels_CHW: np.ndarray, valid_HW: np.ndarray) -> np.ndarray:
        """(H, W) uint8 mask of a whole image, given the bands of the input spec."""
        return next(self.segment([whole_image(pixels_CHW, valid_HW)]))[0].mask

    @torch.inference_mode()
    def logits(self, pixels_NCHW: torch.Tensor, valid_NHW: torch.Tensor | None) -> torch.Tensor:
        """(N, K, H, W) float32 logits of tiles of source pixels, one plane per class; valid None: all are."""
        logits = self.forward(prepare(pixels_NCHW, valid_NHW, self.spec))
        return logits.to(torch.float32, memory_format=torch.contiguous_format)  # later steps run along classes' planes

    @torch.inference_mode()
    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, K, H, W) logits of tiles of network input; with several views, the log of their mean probability."""
        if len(self.views) == 1:
            return self._checked(self.inference(x_NCHW), x_NCHW)
        total = torch.zeros((), device=x_NCHW.device)
        for turns, mirrored in self.views:
            view = x_NCHW.rot90(turns, (2, 3))
            view = view.flip(3) if mirrored else view
            seen = self._checked(self.inference(view), view).float().softmax(dim=1)
            seen = seen.flip(3) if mirrored else seen
            total = total + seen.rot90(-turns, (2, 3))
        return total.div_(len(self.views)).clamp_min_(torch.finfo(total.dtype).tiny).log_()

    def _checked(self, logits: object, x_NCHW: torch.Tensor) -> torch.Tensor:
        if not isinstance(logits, torch.Tensor):
            raise ModelError(
                f"the network gives a {type(logits).__name__}, but should give one tensor of logits, "
                f"(N, {self.num_classes}, H, W); export a module that does"
            )
        batch, _, height, width = x_NCHW.shape
        if logits.shape != (batch, self.num_classes, height, width):
            raise ModelError(
                f"the network gives {tuple(logits.shape)} for tiles of {tuple(x_NCHW.shape)}; it should give "
                f"(N, {self.num_classes}, H, W) logits, one for each class of model.json"
            )
        return logits

    @torch.inference_mode()
    def probabilities(self, logits_NKHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, K, H, W) float32 class probabilities, and the (N, H, W) uint8 classes where a temperature was applied.

        Division can make unequal values equal, or the reverse, so classes are taken from the probabilities without it.
        """
        if self.temperature == 1.0:
            return logits_NKHW.softmax(dim=1), None
        label = top_class(logits_NKHW.softmax(dim=1), dim=1)[1]
        return logits_NKHW.div(self.temperature).softmax(dim=1), label

    def try_a_tile(self) -> None:
        """ModelError unless the network takes a batch of the input spec's tiles and returns logits for them."""
        size, bands = self.spec.tile, len(self.spec.bands)
        try:
            pixels = torch.zeros((self.batch_size, bands, size, size), device=self.device)
            self.probabilities(self.logits(pixels, None))
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                count = f"{self.batch_size} tile(s) of {size} px"
                raise ModelError(f"{count} do not fit into memory; lower --batch_size or --tile") from error
            if is_uncompiled(error):
                raise ModelError(uncompiled(error)) from error
            shape = f"{bands} x {size} x {size}"
            fix = "another --tile" if self.inference.dtype is torch.float32 else "--precision fp32 or another --tile"
            raise ModelError(f"the network takes no tiles of {shape}: {one_line(error)}; give {fix}") from error

    def _canvases(self, regions: Iterable[Region]) -> Iterator[Canvas]:
        options = {"num_classes": self.num_classes, "device": self.device, "copies": self.copies}
        for group in _groups(regions, UPLOAD_BYTES if self.copies else 0):
            ready = deque(canvases(group, self.lattice, **options, detailed=self.detailed))
            group.clear()
            while ready:  # nothing here keeps a canvas that was handed out
                yield ready.popleft()

    def _run(self, batch: list[Tile]) -> None:
        if not batch:
            return
        pixels, valid = zip(*(canvas.tile(row, col) for canvas, row, col in batch))
        # filled up: kernels are chosen by the batch's shape, on CPUs (fp32) too, and differ in the last bit
        missing = self.batch_size - len(batch)
        logits = self.logits(_stack(pixels, missing), self._validity(valid, missing))
        for (canvas, row, col), of_tile in zip(batch, logits if self.sampled else ()):
            canvas.details.sample(row, col, of_tile)
        probabilities, labels = self.probabilities(logits)
        del logits  # a batch of them is large
        done = 0
        for tiles in _runs(batch):
            place = slice(done, done + len(tiles))
            part = probabilities[place], None if labels is None else labels[place]
            canvas, row, col = tiles[0]
            if canvas.single:
                decide_singles([canvas for canvas, _, _ in tiles], *part)
            else:
                canvas.add(row, col, *part)
            done += len(tiles)

    def _validity(self, valid: tuple[torch.Tensor | None, ...], missing: int) -> torch.Tensor | None:
        """(N, P, P) bool, None where every pixel of every tile is valid."""
        if all(part is None for part in valid):
            return None
        everywhere = torch.ones((self.spec.tile, self.spec.tile), dtype=torch.bool, device=self.device)
        return _stack([everywhere if part is None else part for part in valid], missing)


def _finished(waiting: deque[Canvas]) -> Iterator[Canvas]:
    """Take out and finish the first waiting canvases, up to one that lacks tiles."""
    while waiting and waiting[0].missing == 0:
        waiting[0].finish()
        yield waiting.popleft()


def _groups(regions: Iterable[Region], size: int) -> Iterator[list[Region]]:
    """The regions in groups; each ends once its pixels have at least `size` bytes."""
    group: list[Region] = []
    waiting = 0
    for region in regions:
        group.append(region)
        waiting += region.pixels.nbytes
        if waiting >= size:
            yield group
            group, waiting = [], 0
    if group:
        yield group


def _stack(tensors: Iterable[torch.Tensor], missing: int) -> torch.Tensor:
    """The tensors as one batch, filled up with `missing` copies of the first."""
    tensors = list(tensors)
    if len({tensor.dtype for tensor in tensors}) > 1:
        tensors = [tensor.float() for tensor in tensors]
    kind = tensors[0].dtype
    signed = SIGNED.get(kind, kind)
    return torch.stack([tensor.view(signed) for tensor in tensors + tensors[:1] * missing]).view(kind)


def _runs(batch: list[Tile]) -> Iterator[list[Tile]]:
    """The parts of a batch that can be added at once: consecutive tiles of a row, or images of one tile each."""

    def kind(place: tuple[int, Tile]) -> tuple[int, ...]:
        number, (canvas, row, col) = place
        return () if canvas.single else (id(canvas), row, col - number)

    for _, group in groupby(enumerate(batch), key=kind):
        yield [tile for _, tile in group]
