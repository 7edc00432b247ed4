import msgspec
import numpy as np
import pytest

from simplify_work.wire.errors import FeatureMismatch, RemoteError, from_wire
from simplify_work.wire.features import DTYPES, FeatureSpec, check_features, check_observation, describe

WANTED = (
    FeatureSpec("observation.state", "vector", (6,), DTYPES["vector"]),
    FeatureSpec("observation.images.side", "image", (64, 64, 3), DTYPES["image"]),
    FeatureSpec("observation.images.side_depth", "depth", (64, 64, 1), DTYPES["depth"]),
)


def frame(**changes):
    arrays = {
        "observation.state": np.zeros(6, np.float32),
        "observation.images.side": np.zeros((48, 64, 3), np.uint8),
        "observation.images.side_depth": np.zeros((48, 64, 1), np.uint16),
    }
    return describe({key: value for key, value in (arrays | changes).items() if value is not None})


def test_other_picture_sizes_and_further_features_are_fine():
    check_features(WANTED, frame(**{"observation.force": np.zeros(15, np.float32)}), "act")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("observation.state", None, "observation.state is missing"),
        ("observation.state", np.zeros(7, np.float32), r"has shape \(7,\), wanted \(6,\)"),
        ("observation.images.side", np.zeros((48, 64, 1), np.uint8), "given as depth"),
        ("observation.images.side", np.zeros((48, 64, 3), np.int64), "is int64, wanted uint8 or float32"),
    ],
)
def test_what_does_not_fit_is_named_and_both_sides_are_listed(key, value, fault):
    with pytest.raises(FeatureMismatch, match=fault) as caught:
        check_features(WANTED, frame(**{key: value}), "act")
    text = str(caught.value)
    assert "The policy wants: observation.images.side (64, 64, 3)" in text
    assert "The robot gives: observation.images.side (48, 64" in text


def test_errors_cross_the_wire_by_kind_and_unknown_kinds_are_plain():
    assert type(from_wire("features", "x")) is FeatureMismatch
    assert type(from_wire("os.system", "x")) is RemoteError


def test_a_history_is_sent_as_a_window():
    force = FeatureSpec("observation.force", "vector", (3,), DTYPES["vector"], 4)
    assert force.sent.shape == (4, 3) and force.sent.history == 1
    sample, window = np.zeros(3, np.float32), np.zeros((4, 3), np.float32)
    check_features(
        [force], describe({"observation.force": sample}), "smolvla"
    )  # at the handshake: the robot's own
    for given in (sample, window):
        check_observation([force], {"observation.force": given}, "smolvla")
    check_features([force.sent], describe({"observation.force": window}), "smolvla")
    with pytest.raises(FeatureMismatch, match=r"\(3,\), wanted \(4, 3\)"):
        check_features([force.sent], describe({"observation.force": sample}), "smolvla")
    with pytest.raises(FeatureMismatch, match=r"\(5, 3\), wanted \(4, 3\)"):
        check_observation([force], {"observation.force": np.zeros((5, 3), np.float32)}, "smolvla")


@pytest.mark.parametrize("history", [0, -1, 1001, 1.5, "4", None])
def test_a_history_out_of_bounds_is_not_decoded(history):
    encoded = msgspec.msgpack.encode(["observation.force", "vector", [3], ["float32"], history])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(encoded, type=FeatureSpec)
