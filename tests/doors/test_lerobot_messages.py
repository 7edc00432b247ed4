"""The pickles of LeRobot's robot client become what a policy wants, whatever the robot has."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.async_inference.helpers import (
    RemotePolicyConfig,
    TimedObservation,
    map_robot_keys_to_lerobot_features,
)
from lerobot_client import JOINTS, raw
from standin import CHUNK, DIM, STATE

import lerobot_ext
from lerobot_ext.features import VectorFeature
from simplify_work.server.doors.lerobot_messages import read_instructions, read_observation
from simplify_work.server.protocol import Served
from simplify_work.wire.errors import FeatureMismatch
from simplify_work.wire.features import FeatureSpec


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_force_and_depth_of_our_robots_get_through(protocol):
    lerobot_ext.register()
    robot = SimpleNamespace(
        observation_features={
            **dict.fromkeys(JOINTS, float),
            "side": (12, 16, 3),
            "side_depth": (12, 16, 1),
            "force": VectorFeature(["skin.a", "skin.b", "skin.c"]),
        }
    )
    given = map_robot_keys_to_lerobot_features(robot)
    sent = {
        **raw(5),
        "joint0.pos": np.float32(5),
        "side_depth": np.asfortranarray(np.arange(192, dtype=np.uint16).reshape(12, 16, 1)),
        "force": np.array([1, 2, 3], np.float32),
    }
    served = Served(
        "act",
        (
            FeatureSpec(STATE, "vector", (DIM,), ("float32",)),
            FeatureSpec("observation.images.side_depth", "depth", (12, 16, 1), ("uint16", "float32")),
            FeatureSpec("observation.force", "vector", (3,), ("float32",)),
        ),
        DIM,
        CHUNK,
        CHUNK,
    )
    config = RemotePolicyConfig("act", "a", given, 5)
    instructions = read_instructions(pickle.dumps(config, protocol=protocol))
    instructions.check(served)
    observed = read_observation(
        pickle.dumps(TimedObservation(1.0, 2, {**sent, "task": "go"}, True), protocol=protocol)
    )
    assert (observed.timestamp, observed.timestep, observed.must_go, observed.task) == (1.0, 2, True, "go")
    frame = instructions.frame(observed.raw, served)
    assert frame.keys() == {spec.name for spec in served.inputs}
    np.testing.assert_array_equal(frame[STATE], np.arange(5, 11, dtype=np.float32))
    np.testing.assert_array_equal(frame["observation.images.side_depth"], sent["side_depth"])
    np.testing.assert_array_equal(frame["observation.force"], sent["force"])
    with pytest.raises(FeatureMismatch, match="observation.force"):
        other = RemotePolicyConfig("act", "a", {STATE: given[STATE]}, 5)
        read_instructions(pickle.dumps(other)).check(served)
