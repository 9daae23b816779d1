"""Sums over mask rows: the same for new and re-read shards, in any order, every image once."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from segray.footprints import area_m2, outline
from segray.grid import Window
from segray.shards import FAILED, NODATA, OK
from segray.summary import MAX_FAILURES, Totals, summarise


def row(image: str, status: str = OK, *, height: int = 10, width: int = 10, of: tuple[int, int] = (10, 10), **values):
    """A mask row's statistics as a reader of shards gives them."""
    counts = {OK: [60, 30, 0], NODATA: [0, 0, 0], FAILED: None}[status]
    known = {
        "image": image, "status": status, "height": height, "width": width, "image_height": of[0],
        "image_width": of[1], "pixel_counts": counts, "valid_pixels": sum(counts or []), "crs": None,
        "transform": None, "confidence": 0.5 if status == OK else None, "error": "broken" if status == FAILED else None,
        "seam_disagreement": 0.25 if status == OK else None,
    }  # fmt: skip
    return {**known, **values}


def joined(*shards: list[dict]) -> Totals:
    total = Totals()
    for shard in shards:
        total.add(summarise(shard))
    return total


def test_sums_of_one_shard():
    unmeasured = row("d", FAILED, height=0, width=0, of=(0, 0))
    twice = [row("c", FAILED, height=5)] * 2  # one failure
    totals = summarise([row("a"), row("b", NODATA), *twice, unmeasured, row("e", confidence=1.0)])
    assert (totals.shards, totals.windows, totals.pixels, totals.valid_pixels) == (1, 6, 400, 180)
    assert totals.class_pixels == [120, 60, 0]
    assert totals.image_counts() == {OK: 2, NODATA: 1, FAILED: 2}
    assert totals.failed_share() == 2 / 5
    assert totals.mean_confidence() == pytest.approx(0.75)
    assert totals.mean_seam_disagreement() == pytest.approx(0.25)
    assert totals.failures == [{"image": "c", "error": "broken"}, {"image": "d", "error": "broken"}]


def test_nothing():
    assert Totals().image_counts() == {OK: 0, NODATA: 0, FAILED: 0}
    assert Totals().failed_share() == 0
    assert Totals().mean_confidence() is None
    assert Totals().mean_seam_disagreement() is None
    assert joined([]).shards == 1


HALF = {"height": 5, "of": (10, 10)}
WORST = [
    ((OK, OK), OK), ((OK, NODATA), OK), ((NODATA, NODATA), NODATA), ((OK, FAILED), FAILED), ((NODATA, FAILED), FAILED),
]  # fmt: skip


@pytest.mark.parametrize(("statuses", "worst"), WORST)
def test_an_image_counts_once_with_its_worst_part_within_a_shard_and_over_shards(statuses, worst):
    for first, second in (statuses, statuses[::-1]):
        parts = [row("a", first, **HALF), row("a", second, **HALF)]
        for totals in (joined(parts), joined(parts[:1], parts[1:])):
            assert totals.image_counts() == {OK: 0, NODATA: 0, FAILED: 0, worst: 1}
            assert totals.failed_share() == (worst == FAILED)
            assert len(totals.failures) == (worst == FAILED)


def test_images_are_remembered_only_until_their_last_shard():
    totals = Totals()
    for number in range(50):
        totals.add(summarise([row(f"{number}", **HALF)]))
        totals.add(summarise([row(f"{number - 1}", **HALF)]))
        assert len(totals.parts) <= 2
    assert totals.image_counts()[OK] == 51
    assert totals.images == Counter({OK: 49})


def test_the_order_of_shards_does_not_matter():
    shards = [
        [row("a"), row("big", of=(30, 10))],
        [row("big", NODATA, of=(30, 10)), row("b", FAILED)],
        [row("big", FAILED, of=(30, 10)), row("c", confidence=0.25, valid_pixels=80, pixel_counts=[80, 0, 0, 5])],
    ]
    seen = []
    for order in itertools.permutations(shards):
        totals = joined(*order)
        sums = (totals.shards, totals.windows, totals.pixels, totals.valid_pixels, totals.class_pixels)
        failures = sorted(failure["image"] for failure in totals.failures)
        seen.append((sums, totals.image_counts(), round(totals.confidence_sum, 9), totals.seam_pixels, failures))
    assert all(one == seen[0] for one in seen)
    assert seen[0][1] == {OK: 2, NODATA: 0, FAILED: 2}
    assert seen[0][0][4] == [60 * 2 + 80, 60, 0, 5]


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_that_failed_in_two_shards_is_listed_once(turned):
    parts = [[row("a", FAILED, height=5, error=reason)] for reason in ("worse", "bad")]
    assert joined(*parts[:: -1 if turned else 1]).failures == [{"image": "a", "error": "bad"}]


def test_failures_are_listed_up_to_a_number_and_counted_beyond():
    shards = [[row(f"{n}", FAILED) for n in range(MAX_FAILURES - 1)], [row(f"x{n}", FAILED) for n in range(9)]]
    totals = joined(*shards)
    assert len(totals.failures) == MAX_FAILURES
    assert totals.image_counts()[FAILED] == MAX_FAILURES + 8
    assert joined(*shards[::-1]).failures == totals.failures


def test_costs_join_in_any_order():
    costs = [Totals(began=5.0, peak_bytes={"gpu": 9, "io": 1}), Totals(began=3.0, peak_bytes={"gpu": 4})]
    for order in (costs, costs[::-1]):
        total = Totals()
        for cost in order:
            total.add(cost)
        assert (total.began, total.peak_bytes) == (3.0, {"gpu": 9, "io": 1})


def test_disagreements_at_seams_are_weighted_by_valid_pixels():
    alone = row("c", seam_disagreement=None)
    totals = joined([row("a"), alone], [row("b", seam_disagreement=0.5, valid_pixels=30)])
    assert totals.mean_seam_disagreement() == pytest.approx((0.25 * 90 + 0.5 * 30) / 120)
    assert summarise([alone]).mean_seam_disagreement() is None


def cell(west: float, south: float, degrees: float = 1.0) -> np.ndarray:
    return outline("OGC:CRS84", (degrees, 0.0, west, 0.0, -degrees, south + degrees), Window(0, 0, 1, 1))


def zone_m2(south: float, north: float) -> float:
    """Area on WGS 84 between two parallels over one degree, integrated: meridian radius times parallel radius."""
    a, e2 = 6378137.0, 0.00669437999014
    latitude = np.radians(np.linspace(south, north, 20001))
    middle = (latitude[1:] + latitude[:-1]) / 2
    w2 = 1 - e2 * np.sin(middle) ** 2
    return float(
        (a * (1 - e2) / w2**1.5 * a * np.cos(middle) / np.sqrt(w2) * np.diff(latitude)).sum() * math.radians(1)
    )


@pytest.mark.parametrize("south", [-90, -45, -1, 0, 45, 60, 80, 89])
def test_areas_of_cells_of_one_degree(south):
    for west in (-180, -1, 0, 179):
        assert area_m2(cell(west, south)) == pytest.approx(zone_m2(south, south + 1), rel=1e-6)


def test_a_cell_at_the_equator_and_one_across_the_antimeridian():
    assert area_m2(cell(0, 0)) / 1e6 == pytest.approx(12308.46, abs=0.1)  # square kilometres
    assert area_m2(cell(179.5, 0)) == pytest.approx(area_m2(cell(0, 0)), rel=1e-9)
    assert area_m2(cell(0, 0)[::-1]) == area_m2(cell(0, 0))


@pytest.mark.parametrize("west", [-180.0, -180.1, 0.0])
def test_the_area_of_the_whole_earth(west):
    earth = outline("OGC:CRS84", (1.0, 0.0, west, 0.0, -1.0, 90.0), Window(0, 0, 180, 360))
    assert area_m2(earth) / 1e12 == pytest.approx(510.0656, abs=1e-3)  # of the ellipsoid, square megametres


def test_the_area_is_that_of_valid_pixels():
    placed = {"crs": "EPSG:32633", "transform": [2.0, 0, 500000, 0, -2.0, 5000000]}
    totals = summarise([row("a", **placed), row("b", NODATA, **placed), row("c", FAILED, **placed), row("d")])
    assert totals.area_m2 == pytest.approx(90 * 4, rel=0.002)  # the scale of UTM at its meridian is 0.9996
    assert summarise([row("a", crs="nonsense", transform=[1, 0, 0, 0, -1, 0])]).area_m2 == 0
