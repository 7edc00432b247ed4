"""All three drivers on one lab: they stream, they are at rest, and they come back after a fault."""

import socket

import numpy as np
import pytest
from benches import eventually

from lerobot_ext.sensors import (
    AnySkinConfig,
    NetFTConfig,
    RobotiqFT300Config,
    make_force_sensors_from_configs,
)
from lerobot_ext.virtual.testing import running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running_lab(tmp_path_factory.mktemp("touch"), netft_port=port, width=64, height=48) as lab:
        yield lab, port


@pytest.fixture
def sensors(lab):
    lab, port = lab
    usual = {"reconnect_s": 0.1, "max_age_ms": 1000}
    sensors = make_force_sensors_from_configs(
        {
            "skin": AnySkinConfig(port=str(lab.skin), **usual),
            "ft300": RobotiqFT300Config(port=str(lab.directory / "ft300"), **usual),
            "netft": NetFTConfig(
                address="127.0.0.1",
                port=port,
                counts_per_force=1e6,
                counts_per_torque=1e6,
                rate_hz=500,
                **usual,
            ),
        }
    )
    try:
        for sensor in sensors.values():
            sensor.connect()
            sensor.tare()
        yield sensors
    finally:
        for sensor in sensors.values():
            sensor.disconnect()


def test_all_of_them_stream_and_are_at_rest(sensors):
    for sensor in sensors.values():
        assert eventually(lambda sensor=sensor: len(sensor.recent(50)) == 50)
        assert np.isfinite(sensor.read()).all()
        assert not sensor.drift().exceeds


@pytest.mark.parametrize("device", ["skin", "ft300"])
@pytest.mark.parametrize("fault", ["unplugged", "frozen"])
def test_a_faulty_device_is_an_error_until_it_is_well(lab, sensors, device, fault):
    lab, _ = lab
    sensor = sensors[device]
    lab.client.fault(device, fault)
    try:
        with pytest.raises(ConnectionError, match=str(sensor)):
            [sensor.read(timeout_ms=20_000) for _ in range(1000)]
    finally:
        lab.client.fault(device, "")
    assert eventually(lambda: sensor.age_ms < 200)
    assert np.isfinite(sensor.read()).all() and sensor.counts["reconnects"] >= 1
