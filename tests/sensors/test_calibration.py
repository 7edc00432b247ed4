"""A matrix from a file: what it does to samples, and what a bad file is told."""

import json

import numpy as np
import pytest
from skin_board import running_board

from lerobot_ext.sensors import AnySkinConfig, Calibration, ForceSensorSpec
from lerobot_ext.sensors.anyskin import AnySkin
from lerobot_ext.virtual.skin import Skin

RAW = ForceSensorSpec(("a", "b", "c"), "uT", 100, 1000)
GOOD = {"matrix": [[0.5, 0, 0], [0, 1, -1]], "channels": ["Fn", "Ft"], "unit": "N"}


def load(tmp_path, given, name="calibration.yaml"):
    path = tmp_path / name
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    return Calibration.load(path, RAW)


def test_forces_are_the_matrix_times_the_difference_from_zero(tmp_path):
    calibration = load(tmp_path, GOOD | {"offset": [1, 2, 3]})
    difference = np.array([[2, 3, 1], [0, 0, 4]], np.float32)
    assert calibration.apply(difference).tolist() == [[1, 2], [0, -4]]
    assert calibration.apply(difference[0]).dtype == np.float32
    assert calibration.offset.tolist() == [1, 2, 3]


def test_the_spec_has_the_files_channels_and_units(tmp_path):
    spec = load(tmp_path, GOOD).spec(RAW)
    assert spec.channels == ("Fn", "Ft") and spec.unit == "N" and spec.rate_hz == 100
    assert spec.limits == (1000, 4000)
    given = {key: value for key, value in GOOD.items() if key != "unit"} | {"units": ["N", "Nm"], "limit": 7}
    spec = load(tmp_path, given).spec(RAW)
    assert spec.unit == "N, Nm" and spec.units == ("N", "Nm") and spec.limits == (7, 7)


def test_yaml_is_read_too(tmp_path):
    text = "matrix:\n  - [1, 0, 0]\nchannels: [Fn]\nunit: N\n"
    assert load(tmp_path, text).matrix.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": [[1, 2], [3, 4]]}, r"shape \(2, 2\), expected \(any, 3\): a column for each of a … c"),
        ({"matrix": [[1, 2, 3], [4]]}, "not rows of numbers"),
        ({"matrix": [["x", 2, 3]]}, "not rows of numbers"),
        ({"matrix": [[float("nan"), 2, 3], [1, 2, 3]]}, "not rows of numbers"),
        ({"matrix": None}, "not rows of numbers"),
        ({"channels": ["Fn"]}, r"`channels` is \['Fn'\], expected 2 different names"),
        ({"channels": ["Fn", "Fn"]}, "expected 2 different names"),
        ({"unit": None}, "either `unit`"),
        ({"units": ["N", "N"]}, "either `unit`"),
        ({"unit": None, "units": ["N"]}, "expected 2 texts"),
        ({"offset": [1]}, r"`offset` is of shape \(1,\), expected 3 numbers in uT"),
        ({"limit": -1}, "`limit` is -1"),
        ({"matrx": []}, "unknown key 'matrx'"),
    ],
)
def test_a_file_that_does_not_fit_says_what_was_expected(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, GOOD | change)
    assert str(error.value).startswith(f"calibration {tmp_path}")


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "{", "\x00", "[" * 500])
def test_a_file_that_is_something_else(tmp_path, text):
    with pytest.raises(ValueError, match=r"expected a YAML or JSON file with `matrix`"):
        load(tmp_path, text)


def test_a_file_that_is_not_there_or_far_too_long(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        Calibration.load(tmp_path / "none.yaml", RAW)
    with pytest.raises(ValueError, match="bytes, expected at most"):
        load(tmp_path, "x" * (1 << 21))
    with pytest.raises(ValueError, match="cannot be read"):
        Calibration.load(tmp_path, RAW)


def test_a_calibrated_skin_gives_forces_and_its_raw_values_can_be_recovered(tmp_path):
    path = tmp_path / "skin.yaml"
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(15, 15)))[0]
    names = [f"f{k}" for k in range(15)]
    path.write_text(json.dumps({"matrix": matrix.tolist(), "channels": names, "unit": "N"}))
    with running_board() as board, AnySkin(AnySkinConfig(port=board.port, calibration=str(path))) as skin:
        assert skin.spec.unit == "N" and skin.spec.channels == tuple(names)
        baseline = skin.tare()
        board.field[:, 1:] += 40
        while np.abs(forces := skin.read()).max() < 10:
            pass
        said = skin.metadata()
        assert said["unit"] == "N" and said["calibration"] == str(path)
        assert said["raw_units"] == ["uT"] * 15 and said["raw_channels"][0] == "m0_x"
        raw = np.linalg.solve(said["calibration_matrix"], forces) + baseline
        assert np.allclose(raw, board.field[:, 1:].reshape(-1), atol=1)
        assert skin.recent(3).shape == (3, 15)
        drift = skin.drift()
        assert drift is None or drift.unit == "N"


def test_a_matrix_fitted_to_a_reference_gives_its_forces(tmp_path):
    skin, rng = Skin(seed=3), np.random.default_rng(0)
    names = [f"m{m}_{axis}" for m in range(5) for axis in "xyz"]
    raw = ForceSensorSpec(tuple(names), "uT", 100, 1e6)
    forces = [np.zeros(3)] * 20 + [rng.uniform((0, -1, -1), (4, 1, 1)) for _ in range(400)]
    fields = np.array([[skin.step(0.1, force) for _ in range(2)][-1][:, 1:].reshape(-1) for force in forces])
    fields = fields - fields[:20].mean(axis=0)
    matrix = np.linalg.lstsq(fields[:300], np.array(forces[:300]), rcond=None)[0].T
    path = tmp_path / "skin.json"
    path.write_text(json.dumps({"matrix": matrix.tolist(), "channels": ["Fn", "Fx", "Fy"], "unit": "N"}))
    found = Calibration.load(path, raw).apply(fields[300:].astype(np.float32))
    assert np.abs(found - forces[300:]).mean() < 0.1


def test_before_the_first_tare_the_files_offset_is_zero(tmp_path):
    path = tmp_path / "skin.yaml"
    given = {"matrix": np.eye(15)[:3].tolist(), "channels": ["x", "y", "z"], "unit": "N"}
    with running_board() as board:
        offset = board.field[:, 1:].reshape(-1).tolist()
        path.write_text(json.dumps(given | {"offset": offset}))
        with AnySkin(AnySkinConfig(port=board.port, calibration=str(path))) as skin:
            assert np.abs(skin.read()).max() < 1


def test_a_bad_file_is_said_when_the_sensor_is_made(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        AnySkin(AnySkinConfig(port="/dev/none", calibration=str(tmp_path / "none.yaml")))
