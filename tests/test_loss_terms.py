"""Sums of losses as text, and weights of classes from their pixels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.loss_terms import CLASS_WEIGHTS, check_loss, class_weights, parse_loss


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("cross_entropy", ((1.0, "cross_entropy"),)),
        ("cross_entropy+dice", ((1.0, "cross_entropy"), (1.0, "dice"))),
        ("cross_entropy+0.5*lovasz", ((1.0, "cross_entropy"), (0.5, "lovasz"))),
        (".5*focal + 2e-1*ohem", ((0.5, "focal"), (0.2, "ohem"))),
    ],
)
def test_terms(text: str, terms: tuple) -> None:
    assert parse_loss(text) == terms


@pytest.mark.parametrize(
    "text", ["", "+", "mse", "dice+", "2dice", "dice*2", "dice+dice", "-1*dice", "Dice", "dice-focal"]
)
def test_what_is_no_sum_of_losses_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(
        ValueError, match="--loss is one of cross_entropy, focal, ohem, dice, lovasz, or a sum"
    ) as error:
        parse_loss(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["0*dice", "cross_entropy+0.0*dice"])
def test_factors_are_positive(text: str) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        parse_loss(text)


def test_class_weights_without_a_loss_that_takes_them_are_refused() -> None:
    check_loss("dice", "none")
    check_loss("dice+ohem", "inverse_log")
    with pytest.raises(ValueError, match="--class_weights inverse_log has no effect on --loss dice.lovasz"):
        check_loss("dice+lovasz", "inverse_log")


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("inverse_log", math.log(1.02 + 0.8) / math.log(1.02 + 0.2)), ("inverse_sqrt", 2.0)],
)
def test_weights_by_their_formula(name: str, ratio: float) -> None:
    common, rare = class_weights(name, (800, 200))
    assert rare / common == pytest.approx(ratio)


@given(
    name=st.sampled_from(sorted(CLASS_WEIGHTS)),
    pixels=st.lists(st.integers(0, 10**9), min_size=2, max_size=8).filter(any),
)
def test_the_mean_weight_of_a_labelled_pixel_is_1_and_rare_classes_weigh_more(name: str, pixels: list[int]) -> None:
    weights = class_weights(name, pixels)
    assert sum(w * n for w, n in zip(weights, pixels)) == pytest.approx(sum(pixels))
    seen = sorted((count, -weight) for count, weight in zip(pixels, weights) if count)
    assert [weight for _, weight in seen] == sorted(weight for _, weight in seen)
    assert all(weight == -seen[0][1] for count, weight in zip(pixels, weights) if not count)


def test_none_are_none() -> None:
    assert class_weights("none", (5, 0)) is None
