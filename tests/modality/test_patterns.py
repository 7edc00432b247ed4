"""`include` and `exclude`: patterns of keys, for users' own features and for anything that is not wanted."""

import pytest

from lerobot_ext.errors import UserError
from lerobot_ext.modality import ForceSelection, Selection
from lerobot_ext.modality.plan import make_plan, network_features, raw_observation


def vector(size: int) -> dict:
    return {"dtype": "float32", "shape": (size,), "names": None}


FEATURES = {
    "observation.state": vector(6),
    "observation.force": vector(3),
    "observation.current": vector(6),
    "observation.my_gripper": vector(1),
    "observation.images.wrist": {
        "dtype": "video",
        "shape": (8, 12, 3),
        "names": ["height", "width", "channels"],
    },
    "action": vector(6),
    "timestamp": vector(1),
}


def seen(selection: Selection) -> set[str]:
    plan = make_plan(selection, FEATURES)
    assert set(raw_observation(plan)) == {u.key for u in plan if u.used and u.key.startswith("observation.")}
    return set(network_features(plan))


def test_own_features_are_all_seen_unless_include_says_which():
    assert {"observation.current", "observation.my_gripper"} <= seen(Selection())
    left = seen(Selection(include=["observation.my_*"]))
    assert "observation.my_gripper" in left and "observation.current" not in left
    assert {"observation.state", "observation.images.wrist", "action", "timestamp"} <= left
    assert "observation.current" not in seen(Selection(include=[]))


def test_exclude_wins_over_everything():
    selection = Selection(include=["observation.*"], exclude=["observation.my_*", "observation.[cf]*"])
    assert seen(selection) == {"observation.state", "observation.images.wrist", "action", "timestamp"}
    why = {use.key: use.why for use in make_plan(selection, FEATURES)}
    assert why["observation.my_gripper"] == "excluded by 'observation.my_*'"


def test_an_excluded_camera_is_not_read():
    assert "observation.images.wrist" not in seen(Selection(exclude=["observation.images.wrist"]))


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["observation.torque", "action"])
def test_a_pattern_that_matches_no_observation_lists_them(option, pattern):
    with pytest.raises(
        UserError, match=f"{option} '{pattern}' matches no observation.*observation.my_gripper"
    ):
        seen(Selection(**{option: [pattern]}))


def test_what_force_is_joined_to_cannot_be_excluded():
    with pytest.raises(UserError, match="no observation.state"):
        seen(Selection(force=ForceSelection(), exclude=["observation.state"]))
