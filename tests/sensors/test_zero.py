"""What counts as rest, and what as touch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.sensors import Drift, ForceSensorSpec
from lerobot_ext.sensors.zero import find_unrest

LIMITS = np.full(3, 5.0)


@given(seed=st.integers(0, 10_000), n=st.integers(20, 200), share=st.floats(0.001, 0.6))
def test_noise_well_below_the_limit_is_rest(seed, n, share):
    noise = np.random.default_rng(seed).normal(0, share * 5, (n, 3)).astype(np.float32)
    assert find_unrest(1000 + noise, LIMITS) is None


def test_scatter_above_the_limit_is_not():
    samples = np.random.default_rng(0).normal(0, 0.1, (20, 3))
    samples[:, 1] *= 100
    unrest = find_unrest(samples, LIMITS)
    assert (unrest.channel, unrest.did, unrest.allowed) == (1, "scatters", 5.0)
    assert unrest.found == pytest.approx(samples[:, 1].std())


def test_a_slow_movement_is_not_although_it_scatters_less_than_the_limit():
    samples = np.random.default_rng(0).normal(0, 0.3, (20, 3))
    samples[:, 2] += np.linspace(0, 10, 20)
    assert samples.std(axis=0).max() < 5
    unrest = find_unrest(samples, LIMITS)
    assert (unrest.channel, unrest.did) == (2, "moved")


def test_a_sensor_without_noise_may_move_a_little():
    samples = np.zeros((20, 3))
    assert find_unrest(samples, LIMITS) is None
    samples[10:, 0] = 2.4
    assert find_unrest(samples, LIMITS) is None


def test_a_channel_that_does_not_matter_may_do_what_it_likes():
    samples = np.random.default_rng(0).normal(0, 100, (20, 3))
    assert find_unrest(samples, np.array([np.inf, np.inf, 1000.0])) is None


def test_the_drift_told_is_the_worst_compared_with_what_is_allowed():
    spec = ForceSensorSpec(("Fx", "Mx"), "N, Nm", 100, 300, ("N", "Nm"), (300.0, 30.0))
    drift = Drift.of(np.array([1.5, -0.2], np.float32), np.array([2.0, 0.1]), spec)
    assert (drift.channel, drift.unit, drift.allowed, drift.exceeds) == ("Mx", "Nm", 0.1, True)
    assert drift.amount == pytest.approx(0.2)


def test_a_spec_needs_a_unit_for_each_channel():
    with pytest.raises(ValueError, match="2 channels has 1 units"):
        ForceSensorSpec(("a", "b"), "N", 100, 1, ("N",))
