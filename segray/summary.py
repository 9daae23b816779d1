"""Folding shards into a job's numbers: small, in any order, and the same for new shards and those of earlier runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

from segray.footprints import area_m2, outline
from segray.grid import Window
from segray.shards import FAILED, NODATA, OK

MAX_FAILURES = 100  # that summary.json lists; the mask shards have all of them


@dataclass(kw_only=True)
class Totals:
    """Sums over mask rows.

    images: status -> count, of images seen whole. parts: image -> (worst status, pixels seen, pixels in all) of the
    others; an image leaves them with its last shard, so they are few. class_pixels: by class. area_m2: of valid pixels,
    if georeferenced. confidence_sum, seam_sum: of each mask's value times its valid pixels. seam_pixels: valid pixels
    of masks in which tiles overlap. seconds: by stage, over all workers. peak_bytes: role -> peak memory of its largest
    process. began: when the first shard did, in seconds since the epoch.
    """

    shards: int = 0
    windows: int = 0
    images: Counter = field(default_factory=Counter)
    parts: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    pixels: int = 0
    valid_pixels: int = 0
    class_pixels: list[int] = field(default_factory=list)
    area_m2: float = 0.0
    confidence_sum: float = 0.0
    seam_sum: float = 0.0
    seam_pixels: int = 0
    failures: list[dict] = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    began: float = math.inf

    def add(self, other: Totals) -> None:
        """Add other totals to these."""
        self.shards += other.shards
        self.windows += other.windows
        self.images.update(other.images)
        for image, part in other.parts.items():
            self._add_part(image, *part)
        self.pixels += other.pixels
        self.valid_pixels += other.valid_pixels
        self.class_pixels = _sums(self.class_pixels, other.class_pixels)
        self.area_m2 += other.area_m2
        self.confidence_sum += other.confidence_sum
        self.seam_sum += other.seam_sum
        self.seam_pixels += other.seam_pixels
        self.failures = _listed(self.failures + other.failures)
        self.seconds.update(other.seconds)
        self.began = min(self.began, other.began)
        for role, peak in other.peak_bytes.items():
            self.peak_bytes[role] = max(peak, self.peak_bytes.get(role, 0))

    def image_counts(self) -> dict[str, int]:
        """How many images are ok, nodata (no valid pixel) and failed (wholly or in part)."""
        counts = self.images + Counter(status for status, _, _ in self.parts.values())
        return {status: counts[status] for status in (OK, NODATA, FAILED)}

    def failed_share(self) -> float:
        """The share of images that could not be read, wholly or in part."""
        counts = self.image_counts()
        return counts[FAILED] / max(1, sum(counts.values()))

    def mean_confidence(self) -> float | None:
        """Mean top-1 probability over all valid pixels."""
        return self.confidence_sum / self.valid_pixels if self.valid_pixels else None

    def mean_seam_disagreement(self) -> float | None:
        """The mean of the masks' seam disagreements, weighted by their valid pixels."""
        return self.seam_sum / self.seam_pixels if self.seam_pixels else None

    def _add_part(self, image: str, status: str, seen: int, pixels: int) -> None:
        """Add rows of an image, which is counted once all its pixels were seen."""
        before, already, _ = self.parts.pop(image, (NODATA, 0, pixels))
        status, seen = _worst([before, status]), already + seen
        if seen == pixels:
            self.images[status] += 1
        else:
            self.parts[image] = (status, seen, pixels)


def summarise(rows: Iterable[dict]) -> Totals:
    """The totals of one shard, from its rows as dicts of the mask shard's columns."""
    totals = Totals(shards=1)
    images: dict[str, list[dict]] = {}
    for row in rows:
        images.setdefault(row["image"], []).append(row)
        _add_row(totals, row)
    for image, parts in images.items():
        status = _worst([row["status"] for row in parts])
        seen = sum(row["height"] * row["width"] for row in parts)
        totals._add_part(image, status, seen, parts[0]["image_height"] * parts[0]["image_width"])
        failed = [row for row in parts if row["status"] == FAILED]
        totals.failures += [{"image": image, "error": row["error"]} for row in failed]
    totals.failures = _listed(totals.failures)
    return totals


def _listed(failures: Iterable[dict]) -> list[dict]:
    """One failure per image, though several of its windows may have failed; of the first images by name."""
    first: dict[str, dict] = {}
    for failure in sorted(failures, key=lambda failure: (failure["image"], failure["error"])):
        first.setdefault(failure["image"], failure)
    return list(first.values())[:MAX_FAILURES]


def _add_row(totals: Totals, row: dict) -> None:
    totals.windows += 1
    totals.pixels += row["height"] * row["width"]
    totals.valid_pixels += row["valid_pixels"]
    totals.class_pixels = _sums(totals.class_pixels, row["pixel_counts"] or [])
    if row["confidence"] is not None:
        totals.confidence_sum += row["confidence"] * row["valid_pixels"]
    if row["seam_disagreement"] is not None:
        totals.seam_sum += row["seam_disagreement"] * row["valid_pixels"]
        totals.seam_pixels += row["valid_pixels"]
    if row["crs"] and row["transform"] and row["valid_pixels"]:
        found = outline(row["crs"], tuple(row["transform"]), Window(0, 0, row["height"], row["width"]))
        share = row["valid_pixels"] / (row["height"] * row["width"])
        totals.area_m2 += 0.0 if found is None else area_m2(found) * share


def _worst(statuses: list[str]) -> str:
    return next(status for status in (FAILED, OK, NODATA) if status in statuses)


def _sums(counts: list[int], others: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(counts, others, fillvalue=0)]
