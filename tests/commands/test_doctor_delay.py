"""What the doctor advises, given what was measured; and what it measures with."""

from __future__ import annotations

import numpy as np
import pytest

from lerobot_ext.commands import doctor_delay
from lerobot_ext.commands.doctor_visit import Visit
from simplify_work.local import measure
from simplify_work.local.client import ActionChunk
from simplify_work.wire.address import tcp_address
from simplify_work.wire.features import DTYPES, FeatureSpec, check_features, describe
from simplify_work.wire.messages import Durations, Welcome


def chunks_of(link_s: float, server_s: float, codec: str = "raw"):
    durations = Durations(0.0, 0.0, server_s, 0.0)
    return [ActionChunk(np.zeros((1, 6)), durations, link_s + server_s, None, 1000, codec)] * 5


def delayed(chunks, small_s: float = 0.001, chunk_size: int = 20, **inference):
    visit = Visit(tcp_address("127.0.0.1", 5555), data={"fps": 20, "inference": inference})
    visit.chunks, visit.small_s = chunks, np.array([small_s])
    visit.welcome = Welcome(
        request=1,
        server="",
        policy_type="act",
        inputs=(),
        action_dim=6,
        action_names=None,
        chunk_size=chunk_size,
        n_action_steps=5,
    )
    return doctor_delay.look_at_delay(visit)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ({"chunks": chunks_of(0.01, 0.19)}, "ok", "chunk_size_threshold 0.5 is enough (0.30 would be)"),
        ({"chunks": chunks_of(0.01, 0.49)}, "warning", "chunk_size_threshold to 0.60 or more (it is 0.5)"),
        ({"chunks": chunks_of(0.01, 0.49), "chunk_size_threshold": 0.7}, "ok", "0.7 is enough"),
        ({"chunks": chunks_of(0.01, 0.99)}, "warning", "the arm will wait for each"),
        ({"chunks": chunks_of(0.01, 0.19), "chunk_size_threshold": 0}, "ok", "the arm waits 200 ms for it"),
        ({"chunks": chunks_of(0.01, 0.99), "chunk_size_threshold": 0}, "warning", "used up before the next"),
        ({"chunks": chunks_of(0.01, 0.19), "actions_per_chunk": 5}, "warning", "the arm will wait for each"),
        ({"chunks": chunks_of(0.01, 0.19), "type": "sync"}, "warning", "use inference.type=async"),
        ({"chunks": chunks_of(0.1, 0.05)}, "warning", "set server.codec to auto or jpeg (it was raw)"),
        ({"chunks": chunks_of(0.1, 0.05, "jpeg")}, "warning", "use smaller or fewer pictures"),
        ({"chunks": chunks_of(0.1, 0.05), "small_s": 0.09}, "warning", "which no codec makes much shorter"),
    ],
)
def test_advice_follows_from_the_figures(arguments, status, told):
    finding = delayed(**arguments)
    assert finding.status == status
    assert told in f"{finding.found} {finding.advice}"


def test_steps_are_counted_at_the_robots_fps():
    assert delayed(chunks_of(0.01, 0.19)).figures["steps"] == 4
    assert delayed(chunks_of(0.01, 0.20)).figures["steps"] == 5


def test_an_observation_to_measure_with_is_valid_and_looks_like_a_cameras():
    import cv2

    inputs = (
        FeatureSpec("observation.state", "vector", (6,), DTYPES["vector"]),
        FeatureSpec("observation.images.a", "image", (240, 320, 3), DTYPES["image"]),
        FeatureSpec("observation.images.a_depth", "depth", (240, 320, 1), DTYPES["depth"]),
    )
    observation = measure.example_observation(inputs, {"observation.images.a": (480, 640, 3)})
    given = describe(observation)
    check_features(inputs, given, "act")
    assert observation["observation.images.a"].shape == (480, 640, 3)
    assert measure.example_observation(inputs, n_obs_steps=2)["observation.state"].shape == (1, 6)
    _, coded = cv2.imencode(".jpg", observation["observation.images.a"], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert 0.03 < len(coded) / observation["observation.images.a"].nbytes < 0.3
