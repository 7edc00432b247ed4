import json

import pytest

from lerobot_ext.errors import UserError
from lerobot_ext.modality import DepthSelection, ForceSelection, Selection


def test_survives_json():
    selection = Selection(
        ("wrist",), DepthSelection(near_m=0.2), ForceSelection(), True, (64, 112), None, ("a*",)
    )
    assert Selection.from_dict(json.loads(json.dumps(selection.to_dict()))) == selection


def test_default_is_all_cameras_and_nothing_else():
    assert Selection() == Selection(cameras=None, depth=None, force=None, language_tip=False, resize=None)


def test_lists_from_yaml_become_hashable():
    assert hash(Selection(cameras=["wrist"], resize=[4, 8])) == hash(Selection(("wrist",), resize=(4, 8)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DepthSelection(near_m=2.0, far_m=1.0), "near_m 2.0"),
        (
            lambda: DepthSelection(representation="grey"),
            "'grey' is not offered; offered: gray, turbo, normals",
        ),
        (lambda: ForceSelection(fusion="tokens"), "'tokens' is not offered; offered: state"),
        (lambda: Selection(resize=(64,)), "expected \\[height, width\\]"),
        (lambda: Selection(cameras="wrist"), "expected a list of names, such as \\[wrist\\]"),
        (lambda: Selection.from_dict({"force": {"fusion": "state", "history": 4}}), "'force.history'"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_differences_name_keys_and_both_values():
    here = Selection(depth=DepthSelection(far_m=1.0))
    there = Selection(depth=DepthSelection(), force=ForceSelection())
    assert here.differences(there) == ["depth.far_m: 1.0, 1.5", "force: off, on", "force.fusion: off, state"]
    assert here.differences(here) == []
