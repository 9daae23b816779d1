"""InputSpec, all that a network assumes about its input, and prepare(), the only preprocessing in the project."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np

from segray.errors import MismatchError
from segray.grid import Lattice

if TYPE_CHECKING:  # a driver that only plans never imports torch: it costs 500 MB of memory
    import torch


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a network assumes: x = (pixel * scale - mean) / std over the bands, in tiles of one size and resolution.

    bands: 0-based source bands in network order. scale: factor to the unit of mean and std. mean, std: one per band.
    tile, overlap: pixels. resolution: metres per pixel, or None when the network was trained on any. band_names: names
    to find the bands by, in network order, in images that name theirs; they take precedence over `bands`. scale_given:
    the user gave `scale` for these images, so wider types than bytes may hold the values that it is for. source_bands:
    how many bands the images had that `bands` were chosen from in training, None if they were not, or it varied.
    """

    bands: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tile: int = 512
    overlap: int = 64
    resolution: float | None = None
    band_names: tuple[str, ...] | None = None
    scale_given: bool = False
    source_bands: int | None = None

    def __post_init__(self) -> None:
        Lattice(self.tile, self.overlap)  # raises
        if not self.bands or not all(isinstance(band, Integral) and band >= 0 for band in self.bands):
            raise ValueError(f"bands must be 0-based band numbers, but are {list(self.bands)}")
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError(f"{len(self.bands)} bands, but {len(self.mean)} means and {len(self.std)} deviations")
        if not all(isinstance(value, Real) and abs(value) < math.inf for value in (self.scale, *self.mean, *self.std)):
            given = f"{self.scale}, {list(self.mean)} and {list(self.std)}"
            raise ValueError(f"scale, mean and std must be finite numbers, but are {given}")
        if self.resolution is not None and not (isinstance(self.resolution, Real) and 0 < self.resolution < math.inf):
            raise ValueError(f"resolution must be metres a pixel, or null, but is {self.resolution!r}")
        if self.scale <= 0 or any(deviation <= 0 for deviation in self.std):
            raise ValueError(f"scale and std must be positive, but are {self.scale} and {list(self.std)}")

    def lattice(self, blend: str) -> Lattice:
        """The lattice of tiles that are joined as `blend` says."""
        return Lattice(self.tile, self.overlap, blend)

    def for_bands(self, names: tuple[str, ...], source: str) -> InputSpec:
        """This spec with `bands` found by `band_names` in an image whose bands have these names, whatever their case.

        MismatchError unless each is found exactly once. Without `band_names`, the spec itself.
        """
        if self.band_names is None:
            return self
        known = [name.lower() for name in names]
        for name in self.band_names:
            if known.count(name.lower()) != 1:
                has = f"names its bands {', '.join(filter(None, names))}" if any(names) else "names no band"
                raise MismatchError(f"{source} {has}, so --bands {name} cannot be found; give numbers, as in 0,1,2")
        return replace(self, bands=tuple(known.index(name.lower()) for name in self.band_names))

    @property
    def unit(self) -> float:
        """The largest value in the unit of mean and std, deduced from them: 1, 255, or infinity for more than bytes.

        Values of 0 to 255 have no variance above mean * (255 - mean) (Bhatia and Davis, Am. Math. Monthly 2000).
        """
        moments = list(zip(self.mean, self.std))
        if all(abs(mean) + std <= 2 for mean, std in moments):
            return 1.0
        beyond = any(mean > 0 and std**2 > mean * (255 - mean) for mean, std in moments)
        return math.inf if beyond else 255.0

    @property
    def expected(self) -> str:
        """The source values that `scale` is meant for, in words."""
        if self.unit < math.inf:
            return f"values of 0 to {self.unit / self.scale:g}"
        low, high = (extreme(self.mean) / self.scale for extreme in (min, max))
        return f"raw values beyond bytes, whose means are {low:g} to {high:g}"

    def takes(self, dtype: np.dtype) -> bool:
        """Whether values of that type are in the unit that `scale` is for: bytes, wider integers, or real numbers.

        A network trained on real numbers of 0 to 1, as its moments tell, takes no integers. One trained on raw values
        beyond bytes takes wide integers, but bytes only if `scale` is not 1. Where `scale` was given, wide integers and
        real numbers may hold the values of bytes, as many programs store them.
        """
        if dtype.kind == "f":
            return self.scale_given or not self._eight_bit
        fractions = self.scale == 1 and all(abs(mean) <= 1 and std <= 0.5 for mean, std in zip(self.mean, self.std))
        if dtype.kind not in "iu" or fractions:
            return False
        if self.unit == math.inf:
            return dtype.itemsize > 1 or self.scale != 1
        return (self.unit / self.scale <= 256) == (dtype.itemsize == 1) or self.widened and dtype.itemsize > 1

    @property
    def widened(self) -> bool:
        """Whether `takes` lets types in that it would not without `scale_given`."""
        return self.scale_given and (self._eight_bit or self.unit / self.scale <= 256)

    @property
    def _eight_bit(self) -> bool:
        return abs(255 * self.scale - 1) < 1e-3

    def with_overrides(self, **changes: object) -> InputSpec:
        """This spec with the given values in place of its own, except those that are None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given, scale_given="scale" in given)


def check_pixels(
    spec: InputSpec, *, bands: int, dtype: np.dtype, explicit_bands: bool, source: str, alpha: int = 0
) -> None:
    """MismatchError unless an image of that band count and type fits the spec; its text names the flag to give.

    explicit_bands: the user chose bands with --bands, so an image may have more than the network takes. alpha: how many
    further bands, marked as alpha, follow; they count as bands only where the user chose them.
    """
    marked = f" and band {_listed(range(bands, bands + alpha))}, marked as alpha" if alpha else ""
    if max(spec.bands) >= bands + alpha * explicit_bands:
        inside, wanted = max(spec.bands) < bands + alpha, len(spec.bands)
        choice = spec.bands if inside else (min(i, bands - 1) for i in range(wanted))
        advice = f"say which to use with --bands, as in --bands {_listed(choice)}"
        if not inside and 1 < bands < wanted:  # blue in place of infrared would be taken, and give nonsense
            advice = f"give images with these {wanted}, or train a model with --bands {_listed(range(bands))}"
        raise MismatchError(
            f"{source} has {bands} band(s){marked}, but the model reads bands {_listed(spec.bands)}; {advice}"
        )
    trained_on = max(spec.source_bands or 0, max(spec.bands) + 1)
    if bands > max(spec.bands) + 1 and bands != trained_on and not explicit_bands:
        raise MismatchError(
            f"{source} has {bands} bands{marked}, but the model was trained on {trained_on}; "
            f"say which to use with --bands, as in --bands {_listed(spec.bands)}"
        )
    if not spec.takes(dtype):
        scale = spec.unit / np.iinfo(dtype).max if dtype.kind in "iu" else 1.0
        example = f", as in --scale {scale:.6g}" if scale < math.inf else ""  # else the factor is unknown
        raise MismatchError(
            f"{source} holds {dtype} values, but the model expects {spec.expected}; "
            f"give the factor that brings them to its unit with --scale{example}"
        )


def prepare(pixels_NCHW: torch.Tensor, valid_NHW: torch.Tensor | None, spec: InputSpec) -> torch.Tensor:
    """Source pixels of the spec's bands -> the float32 (N, C, H, W) that a network sees, on the tensor's device.

    pixels_NCHW: any real type. valid_NHW: bool, None if all are valid. Pixels without data become 0, the mean of the
    training data, whatever the source holds there, even NaN.
    """
    mean, inverse = _constants(spec, pixels_NCHW.device)
    x = pixels_NCHW.to(mean.dtype, copy=True).sub_(mean).mul_(inverse)
    return x if valid_NHW is None else x.masked_fill_(~valid_NHW[:, None], 0.0)


@lru_cache(maxsize=16)
def _constants(spec: InputSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, C, 1, 1) mean in source units and factor to deviations; made once per device, since copying may wait."""
    import torch

    scale, std = torch.tensor(spec.scale, dtype=torch.float64), torch.tensor(spec.std, dtype=torch.float64)
    mean = torch.tensor(spec.mean, dtype=torch.float64) / scale
    return tuple(values.float().view(1, -1, 1, 1).to(device) for values in (mean, scale / std))


def _listed(bands: object) -> str:
    return ",".join(str(band) for band in bands)
