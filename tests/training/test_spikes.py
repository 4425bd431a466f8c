"""Which steps are spikes."""

import json
import math

from inscape.training.spikes import Spikes


def calm(spikes, n=30, norm=1.0):
    return [spikes.is_spike(step, 3.0, norm) for step in range(n)]


def test_a_norm_or_a_loss_far_above_the_recent_median_is_one():
    spikes = Spikes(20.0)
    assert not any(calm(spikes))
    assert not spikes.is_spike(30, 3.0, 19.0)
    assert spikes.is_spike(31, 3.0, 21.0)
    assert spikes.is_spike(32, 5.1, 1.0)
    assert spikes.is_spike(33, math.nan, 1.0)
    assert spikes.is_spike(34, 3.0, math.inf)
    assert spikes.in_a_row == 4
    assert not spikes.is_spike(35, 3.0, 1.0)
    assert (spikes.in_a_row, spikes.skipped) == (0, [31, 32, 33, 34])


def test_the_first_steps_are_not_judged_by_a_median():
    spikes = Spikes(20.0)
    assert not any(calm(spikes, 10))
    assert not spikes.is_spike(10, 30.0, 1000.0)
    assert spikes.is_spike(11, math.nan, 1.0)


def test_a_change_that_stays_is_no_spike_in_the_end():
    spikes = Spikes(20.0)
    calm(spikes, 100)
    found = [spikes.is_spike(100 + i, 3.0, 50.0) for i in range(60)]
    assert all(found[:40])
    assert not found[-1]


def test_its_state_goes_through_json():
    one = Spikes(20.0)
    calm(one)
    one.is_spike(30, math.nan, 1.0)
    other = Spikes(20.0, json.loads(json.dumps(one.state())))
    for step, (loss, norm) in enumerate([(3.0, 25.0), (5.5, 1.0), (3.0, 1.0)], 31):
        assert one.is_spike(step, loss, norm) == other.is_spike(step, loss, norm)
    assert one.state() == other.state()
