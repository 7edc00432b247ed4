"""Configurations as a YAML has them, through the parser that LeRobot uses."""

from dataclasses import dataclass, field

import draccus
import pytest

from lerobot_ext.sensors import AnySkinConfig, ForceSensorConfig, NetFTConfig, RobotiqFT300Config


@dataclass
class Holder:
    force_sensors: dict[str, ForceSensorConfig] = field(default_factory=dict)


YAML = """
force_sensors:
  skin:
    type: anyskin
    port: /dev/ttyACM2
    num_magnetometers: 2
    layout_mm: [[0, 0], [3.5, -1]]
    reduce: mean
    calibration: skin.json
    on_error: skip_frame
  ft300: {type: robotiq_ft300, port: /dev/ttyUSB0, tare_max_std: 2}
  netft: {type: netft, address: 192.168.1.1, counts_per_force: 1000000, counts_per_torque: 1000000}
"""


def test_all_drivers_are_configured_from_yaml(tmp_path):
    (tmp_path / "robot.yaml").write_text(YAML)
    found = draccus.parse(Holder, tmp_path / "robot.yaml", args=[]).force_sensors
    skin, ft300, netft = found["skin"], found["ft300"], found["netft"]
    assert type(skin) is AnySkinConfig and skin.layout_mm == [[0, 0], [3.5, -1]]
    assert (skin.reduce, skin.calibration, skin.on_error) == ("mean", "skin.json", "skip_frame")
    assert type(ft300) is RobotiqFT300Config and ft300.tare_max_std == 2 and ft300.max_drift == 2
    assert type(netft) is NetFTConfig and netft.counts_per_force == 1e6 and netft.port == 49152
    assert [config.type for config in found.values()] == ["anyskin", "robotiq_ft300", "netft"]


def test_what_cannot_be_meant_is_said(tmp_path):
    (tmp_path / "robot.yaml").write_text(YAML.replace("skip_frame", "hope"))
    with pytest.raises(draccus.utils.DraccusException) as error:
        draccus.parse(Holder, tmp_path / "robot.yaml", args=[])
    assert "on_error is 'hope'; expected stop or skip_frame" in str(error.value.__cause__)
