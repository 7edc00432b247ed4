"""Follower or leader: what each hint is worth, and that the doctor says how sure it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ports import servos

from lerobot_ext.commands import doctor_arms
from lerobot_ext.commands.doctor_arms import Calibration, judge


def file(role: str, id_: str, offsets, low=0, high=4095) -> Calibration:
    return Calibration(role, id_, None, {n: (offset, low, high) for n, offset in enumerate(offsets, 1)})


FILES = [file("follower", "blue", (1, 2, 3, 4, 5, 6)), file("leader", "red", (9, 8, 7, 6, 5, 4))]


def test_a_calibration_that_the_motors_hold_is_sure():
    roles = judge({"a": servos((9, 8, 7, 6, 5, 4)), "b": servos()}, FILES)
    assert str(roles["a"]) == "leader 'red' (sure: its motors hold that calibration)"
    assert str(roles["b"]) == "follower 'blue' (sure: its motors hold that calibration)"


def test_most_of_a_calibration_is_likely():
    (role,) = judge({"a": servos((1, 2, 3, 4, 50, 60))}, FILES).values()
    assert (role.name, role.sureness, role.id) == ("follower", "likely", "blue")
    assert "4 of 6 homing offsets" in role.why
    (role,) = judge({"a": servos(range_max=4000)}, FILES).values()
    assert role.sureness == "likely", "other ranges: calibrated again elsewhere"
    (role,) = judge({"a": servos((1, 2, 3, 40, 50, 60))}, FILES).values()
    assert role.sureness == "unknown"


def test_the_same_numbers_for_both_roles_decide_nothing():
    (role,) = judge({"a": servos()}, [FILES[0], file("leader", "red", (1, 2, 3, 4, 5, 6))]).values()
    assert role.name == "" and "a follower's and a leader's" in str(role)


def test_lerobots_limits_of_the_gripper_mean_a_follower():
    arm = servos((0,) * 6, max_torque=1000, protection_current=500)
    arm[6] = replace(arm[6], max_torque=500, protection_current=250)
    roles = judge({"a": arm, "b": servos((0,) * 6)}, [])
    assert (roles["a"].name, roles["a"].sureness) == ("follower", "likely")
    assert str(roles["b"]) == "leader (likely: the other arm is the follower)"


@pytest.mark.parametrize(("other", "name"), [(5.0, "follower"), (12.0, "")])
def test_twelve_volts_mean_a_follower_unless_both_have_them(other, name):
    roles = judge({"a": servos((0,) * 6, voltage_v=12.0), "b": servos((0,) * 6, voltage_v=other)}, [])
    assert roles["a"].name == name
    assert roles["b"].name == {"follower": "leader", "": ""}[name]


def test_five_volts_alone_mean_nothing():
    (role,) = judge({"a": servos((0,) * 6)}, []).values()
    assert role.name == "" and "calibration" in role.why


def test_of_three_arms_none_is_the_other_one():
    roles = judge({"a": servos(), "b": servos((0,) * 6), "c": servos((0,) * 6)}, FILES)
    assert roles["a"].name == "follower" and roles["b"].name == roles["c"].name == ""


def test_files_are_found_where_lerobot_writes_them(tmp_path):
    motors = {"shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": -5, "range_min": 1, "range_max": 2}}
    for name in ("robots/so_follower/a", "robots/koch/no", "teleoperators/so_leader/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(motors))
    (tmp_path / "robots/so_follower/broken.json").write_text("{")
    extra = tmp_path / "robots/koch/no.json"
    found = doctor_arms.calibrations(tmp_path, ("leader", extra), ("leader", tmp_path / "nowhere.json"))
    assert [(each.role, each.id) for each in found] == [("follower", "a"), ("leader", "b"), ("leader", "no")]
    assert found[0].motors == {1: (-5, 1, 2)}
    assert found[0].differing(servos()) == [1] and found[0].agrees(servos((-5, 0, 0, 0, 0, 0))) == 1
