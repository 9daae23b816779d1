"""The learning rate and the average's decay as functions of the step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segray.schedules import ONE_CYCLE_WARM_UP, SCHEDULES, average_decay, learning_rate


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 2000),
    peak=st.floats(1e-6, 1.0),
    warm_up=st.floats(0, 1),
)
def test_the_rate_rises_to_its_peak_and_falls(schedule: str, steps: int, peak: float, warm_up: float) -> None:
    rates = [learning_rate(k, steps=steps, peak=peak, schedule=schedule, warm_up=warm_up) for k in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert all(rate > 0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top == max(1, round(warm_up * steps)) - 1


@pytest.mark.parametrize(
    ("schedule", "last", "half"), [("cosine", 1e-3, 0.5), ("poly", 5e-3, 0.5**0.9), ("constant", 1.0, 1.0)]
)
def test_where_the_rate_is_half_way_and_at_the_end(schedule: str, last: float, half: float) -> None:
    rates = [learning_rate(step, steps=1000, peak=1.0, schedule=schedule, warm_up=0) for step in range(1000)]
    assert rates[500] == pytest.approx(half, abs=2e-3)
    assert rates[-1] <= last


def test_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=200, cycle_momentum=False)
    for step in range(200):
        ours = learning_rate(step, steps=200, peak=0.1, schedule="one_cycle", warm_up=ONE_CYCLE_WARM_UP)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1.5e-3)
        optimizer.step()
        theirs.step()


def test_the_average_follows_at_first_and_lasts_later() -> None:
    decays = [average_decay(step, 0.999) for step in range(20_000)]
    assert decays == sorted(decays)
    assert decays[0] == 0.1
    assert decays[99] == 100 / 109
    assert decays[-1] == 0.999
    assert average_decay(5, 0.0) == 0.0
