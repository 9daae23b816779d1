"""InputSpec, what it refuses, and the values that prepare() makes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from segray.errors import MismatchError
from segray.inputs import InputSpec, check_pixels, prepare


def spec(**changes: object) -> InputSpec:
    base = {"bands": (0, 1, 2), "scale": 1 / 255, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.1, 0.3), "tile": 64}
    return InputSpec(**{**base, "overlap": 16, **changes})


SPECS = {
    "8 bit": spec(),
    "16 bit": spec(scale=1 / 65535),
    "reflectance": spec(scale=1e-4),
    "float": spec(scale=1.0),
    "raw": spec(scale=1.0, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)),
    "bright raw": spec(scale=1.0, mean=(230.0, 225.0, 220.0), std=(60.0, 60.0, 60.0)),
    "beyond bytes": spec(scale=1.0, mean=(1353.0, 1117.0, 1042.0), std=(897.0, 736.0, 684.0)),
    "skewed": spec(scale=1.0, mean=(100.0, 90.0, 80.0), std=(180.0, 60.0, 60.0)),
    "256ths": spec(scale=1 / 256),
    "bright": spec(mean=(0.9, 0.9, 0.9), std=(0.3, 0.3, 0.3)),
    "raw around 0": spec(scale=1.0, mean=(0.0, -20.0, 5.0), std=(9.0, 9.0, 9.0)),
}


def check(name: str, *, bands: int = 3, dtype: str = "uint8", explicit: bool = False) -> None:
    check_pixels(SPECS[name], bands=bands, dtype=np.dtype(dtype), explicit_bands=explicit, source="a.tif")


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("8 bit", ["uint8"]),
        ("16 bit", ["uint16", "int16", "uint32", "float32"]),
        ("reflectance", ["uint16", "int16", "float32", "float64"]),
        ("float", ["float16", "float32", "float64"]),
        ("raw", ["uint8", "float32"]),
        ("bright raw", ["uint8", "float32"]),
        ("beyond bytes", ["uint16", "int16", "int32", "float32", "float64"]),
        ("skewed", ["uint16", "int16", "float32"]),
        ("256ths", ["uint8"]),
        ("bright", ["uint8"]),
        ("raw around 0", ["uint8", "float32"]),
    ],
)
def test_types_that_fit(name: str, dtypes: list[str]) -> None:
    for dtype in dtypes:
        check(name, dtype=dtype)


MISFITS = [
    ("8 bit", ["uint16", "int16", "int32", "float32", "float64", ">u2"]),
    ("16 bit", ["uint8"]),
    ("reflectance", ["uint8", "int8"]),
    ("float", ["uint8", "uint16", "int16"]),
    ("raw", ["uint16", "int16", "int32"]),
    ("bright raw", ["uint16"]),
]


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in MISFITS for dtype in dtypes])
def test_types_that_do_not_fit_and_the_flag_that_would(name: str, dtype: str) -> None:
    with pytest.raises(MismatchError, match=r"a\.tif holds .* --scale") as error:
        check(name, dtype=dtype)
    assert str(np.dtype(dtype)) in str(error.value)
    scale = float(re.search(r"--scale ([\d.e+-]+)$", str(error.value)).group(1))
    allowed = SPECS[name].with_overrides(scale=scale)
    check_pixels(allowed, bands=3, dtype=np.dtype(dtype), explicit_bands=False, source="a.tif")


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("8 bit", "uint16", "values of 0 to 255; .* --scale 1.5259e-05$"),
        ("reflectance", "uint8", "values of 0 to 10000; .* --scale 0.00392157$"),
        ("raw", "uint16", "values of 0 to 255; .* --scale 0.00389105$"),
        ("beyond bytes", "uint8", "raw values beyond bytes, whose means are 1042 to 1353; .* --scale$"),
    ],
)
def test_the_values_that_are_expected_are_those_of_the_model(name: str, dtype: str, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        check(name, dtype=dtype)


def test_a_factor_brings_bytes_to_the_unit_of_raw_numbers() -> None:
    for dtype in ("uint8", "uint16", "float32"):
        assert SPECS["beyond bytes"].with_overrides(scale=16.0).takes(np.dtype(dtype))


@pytest.mark.parametrize("scale", [1 / 255, 0.003922])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_wider_types_may_hold_the_values_of_bytes_where_the_factor_is_given(scale: float, dtype: str) -> None:
    given = SPECS["8 bit"].with_overrides(scale=scale)
    assert given.takes(np.dtype(dtype))
    assert given.widened


def test_a_given_factor_lets_no_narrower_types_in() -> None:
    given = SPECS["8 bit"].with_overrides(scale=1 / 65535)
    assert not given.takes(np.dtype("uint8"))
    assert not given.widened
    assert not SPECS["float"].with_overrides(scale=1.0).takes(np.dtype("uint8"))


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_what_is_no_number_is_refused(dtype: str) -> None:
    for name in SPECS:
        with pytest.raises(MismatchError):
            check(name, dtype=dtype)


def test_more_bands_need_a_choice() -> None:
    check("8 bit", bands=3)
    check("8 bit", bands=4, explicit=True)
    with pytest.raises(MismatchError, match=r"has 4 bands, but .* trained on 3; .* --bands 0,1,2$"):
        check("8 bit", bands=4)


@pytest.mark.parametrize(("bands", "trained_on"), [(11, 10), (8, 10), (10, 7)])
def test_bands_chosen_in_training_are_taken_from_images_of_as_many(bands: int, trained_on: int) -> None:
    chosen = spec(bands=(0, 1, 6), source_bands=None if trained_on == 7 else trained_on)
    image = {"dtype": np.dtype("uint8"), "explicit_bands": False, "source": "a.tif"}
    check_pixels(chosen, bands=trained_on, **image)
    with pytest.raises(MismatchError, match=rf"has {bands} bands, but .* trained on {trained_on}; .* --bands 0,1,6$"):
        check_pixels(chosen, bands=bands, **image)


def test_bands_marked_as_alpha_count_where_bands_are_chosen() -> None:
    options = {"bands": 2, "alpha": 1, "dtype": np.dtype("uint8"), "source": "a.tif"}
    check_pixels(spec(), explicit_bands=True, **options)
    with pytest.raises(MismatchError, match=r"2 band\(s\) and band 2, marked as alpha, .* --bands 0,1,2$"):
        check_pixels(spec(), explicit_bands=False, **options)


@pytest.mark.parametrize(("bands", "reads"), [(1, (0, 1, 2)), (3, (1, 2, 3))])
@pytest.mark.parametrize("explicit", [True, False])
def test_fewer_bands_name_a_choice_that_would_be_allowed(bands: int, reads: tuple, explicit: bool) -> None:
    image = {"bands": bands, "dtype": np.dtype("uint8"), "source": "a.tif"}
    with pytest.raises(MismatchError, match=r"reads bands [0-3,]*; .* --bands") as error:
        check_pixels(spec(bands=reads), explicit_bands=explicit, **image)
    chosen = tuple(int(band) for band in str(error.value).rsplit(" ", 1)[1].split(","))
    check_pixels(spec().with_overrides(bands=chosen), explicit_bands=True, **image)


def test_a_band_is_not_advised_in_place_of_one_that_is_missing() -> None:
    with pytest.raises(MismatchError, match=r"reads bands 0,1,2; give .* with these 3, or train .* --bands 0,1$"):
        check("8 bit", bands=2)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bands": ()}, "bands"),
        ({"bands": (0, -1, 2)}, "-1"),
        ({"bands": (0, 1)}, "2 bands, but 3 means"),
        ({"std": (0.1, 0.1)}, "2 deviations"),
        ({"std": (0.1, 0.0, 0.1)}, "positive"),
        ({"scale": 0.0}, "positive"),
        ({"mean": (0.1, math.nan, 0.1)}, "finite"),
        ({"overlap": 33}, "overlap"),
        ({"tile": 0}, "tile"),
    ],
)
def test_impossible_specs_are_refused(changes: dict, word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word)):
        spec(**changes)


def test_overrides_replace_what_is_given() -> None:
    assert spec().with_overrides(tile=None, overlap=8, bands=None, scale=None) == spec(overlap=8)
    assert spec().with_overrides(overlap=0) == spec(overlap=0)
    with pytest.raises(ValueError, match="overlap"):
        spec().with_overrides(overlap=60)


def test_a_name_that_two_bands_have_is_refused() -> None:
    named = spec(band_names=("red", "green", "nir"))
    assert named.for_bands(("NIR", "red", "green"), "a.tif").bands == (1, 2, 0)
    with pytest.raises(MismatchError, match=r"a\.tif names its bands red, green, nir, NIR, so --bands nir"):
        named.for_bands(("red", "green", "nir", "NIR"), "a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_prepare_is_its_formula(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 5, 7)).astype(dtype)
    valid = np.ones((2, 5, 7), bool)
    found = prepare(torch.from_numpy(pixels), torch.from_numpy(valid), spec())
    mean, std = (np.array(values)[:, None, None] for values in (spec().mean, spec().std))
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), (pixels / 255.0 - mean) / std, atol=1e-5)


def test_no_data_becomes_the_mean_whatever_it_holds() -> None:
    pixels = torch.full((1, 3, 2, 3), 100.0)
    pixels[0, :, 0] = torch.tensor([float("nan"), float("inf"), -9999.0])
    valid = torch.tensor([[[False] * 3, [True, True, False]]])
    found = prepare(pixels, valid, spec())
    assert torch.equal(found[0, :, ~valid[0]], torch.zeros(3, 4))
    assert torch.equal(found[0, :, valid[0]], found[:, :, 1, :1].expand(1, 3, 2)[0])
    assert found[0, 0, 1, 0].item() == pytest.approx((100 / 255 - 0.5) / 0.2)


def test_prepare_leaves_its_arguments_alone() -> None:
    pixels, valid = torch.full((1, 3, 2, 2), float("nan")), torch.zeros(1, 2, 2, dtype=torch.bool)
    prepare(pixels, valid, spec())
    assert pixels.isnan().all()
    assert not valid.any()
