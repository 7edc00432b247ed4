"""The driver against the sensor's emulator on a UDP port, and the bytes of both."""

import http.server
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from benches import NetFTBench, chatter, eventually, running_netft
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.sensors import NetFTConfig, make_force_sensors_from_configs
from lerobot_ext.sensors.conformance import ForceSensorConformance
from lerobot_ext.sensors.netft import PAGE_BYTES, NetFT
from lerobot_ext.sensors.netft_records import (
    Record,
    Sequence,
    is_serious,
    records_in,
    request,
    scales_in,
    status_text,
)
from lerobot_ext.virtual.wrench import LEVER_M


def config_for(port: int, **more: object) -> NetFTConfig:
    usual = {"counts_per_force": 1e6, "counts_per_torque": 1e6, "rate_hz": 500.0, "reconnect_s": 0.05}
    return NetFTConfig(address="127.0.0.1", port=port, **(usual | more))


class TestConformance(ForceSensorConformance):
    @contextmanager
    def working_sensor(self) -> Iterator[NetFT]:
        with running_netft() as self.bench:
            sensor = NetFT(config_for(self.bench.port))
            try:
                yield sensor
            finally:
                sensor.disconnect()

    def disturb(self) -> None:
        self.bench.tremble = 5.0

    def garble(self) -> None:
        faults = self.bench.server.faults
        faults.strange = faults.lost = faults.repeated = 0.3
        time.sleep(0.3)
        faults.strange = faults.lost = faults.repeated = 0.0

    def silence(self, silent: bool) -> None:
        self.bench.server.faults.silent = silent

    def unplug(self) -> None:
        self.bench.unplug()

    def plug_in(self) -> None:
        self.bench.plug()

    @contextmanager
    def wrong_device(self) -> Iterator[NetFT]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            sensor = NetFT(config_for(other.getsockname()[1]))
            asked = threading.Event()

            def answer(data: bytes) -> None:
                if not asked.is_set():
                    other.settimeout(5)
                    self.client = other.recvfrom(64)[1]
                    asked.set()
                other.sendto(data, self.client)

            with chatter(answer):
                yield sensor


@pytest.fixture
def bench() -> Iterator[NetFTBench]:
    with running_netft() as running:
        yield running


@pytest.fixture
def sensor(bench) -> Iterator[NetFT]:
    sensor = NetFT(config_for(bench.port))
    yield sensor
    sensor.disconnect()


def test_the_registry_makes_the_driver():
    (made,) = make_force_sensors_from_configs({"wrist": config_for(49152)}).values()
    assert type(made) is NetFT and made.config.type == "netft"


def test_counts_become_newtons_and_newton_metres(bench, sensor):
    sensor.connect()
    assert np.allclose(sensor.tare(), bench.server.source.offset, atol=0.1)
    bench.force[:] = 10, 2, -1
    assert eventually(lambda: sensor.read_latest()[2] > 9)
    expected = (2, -1, 10, LEVER_M, 2 * LEVER_M, 0)
    assert eventually(lambda: np.allclose(sensor.recent(20).mean(axis=0), expected, atol=0.15))


def test_lost_records_are_counted_and_repeated_ones_are_not_read_twice(bench, sensor):
    sensor.connect()
    bench.server.faults.lost = bench.server.faults.repeated = 0.2
    assert eventually(lambda: sensor.counts["dropped"] > 20 and sensor.counts["late"] > 20)
    bench.server.faults.lost = bench.server.faults.repeated = 0.0


def test_a_status_other_than_healthy_is_an_error_in_words_and_ends_with_it(bench, sensor):
    sensor.connect()
    bench.server.faults.status = 0x80020000
    with pytest.raises(ConnectionError) as error:
        [sensor.read(timeout_ms=20_000) for _ in range(10_000)]
    assert str(error.value) == (
        "Net F/T at 127.0.0.1: reports status 0x80020000: transducer saturation or A/D operation error; "
        "take the load off it"
    )
    time.sleep(1.2)  # it is not taken for silent meanwhile
    with pytest.raises(ConnectionError, match="saturation"):
        sensor.read_latest()
    bench.server.faults.status = 0
    assert eventually(lambda: sensor.age_ms < 100)
    assert np.isfinite(sensor.read()).all() and sensor.counts["reconnects"] == 0


def test_a_latched_monitor_condition_is_said_and_the_forces_are_used(bench, sensor, caplog):
    bench.server.faults.status = 0x80010000
    sensor.connect()
    assert np.isfinite(sensor.read()).all() and "a monitor condition is latched" in caplog.text


def test_datagrams_of_others_are_not_heard(bench, sensor):
    sensor.connect()
    sensor.tare()
    host, port = bench.server.client
    record = struct.pack(">3I6i", 1 << 30, 1 << 30, 0, *[10**8] * 6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for _ in range(20):
            other.sendto(record, (host, port))
            time.sleep(0.01)
    assert np.abs(sensor.recent(500)).max() < 1 and sensor.counts["strange"] == 0


def test_a_stream_that_stops_is_asked_for_again(bench, sensor):
    sensor.connect()
    with bench.lock:
        bench.server.client = None
    number = sensor.latest_raw()[0]
    assert eventually(lambda: sensor.latest_raw()[0] > number + 5)
    assert sensor.counts["reconnects"] == 0 and sensor.counts["late"] == 0


def test_the_sensor_is_told_to_stop_at_disconnect(bench, sensor):
    sensor.connect()
    sensor.disconnect()
    assert eventually(lambda: bench.server.client is None)


def test_nobody_listens_at_that_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"nothing listens on UDP port {port}"):
        NetFT(config_for(port)).connect()


def test_a_silent_sensor_says_what_to_look_at(bench, sensor):
    bench.server.faults.silent = True
    with pytest.raises(ConnectionError, match=r"^Net F/T at 127.0.0.1: no record within 1 s from UDP port"):
        sensor.connect()


@contextmanager
def page(content: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/netftapi2.xml" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PAGE = (
    b"<?xml version='1.0'?><netft><cfgcpf>500000</cfgcpf><cfgcpt>2000</cfgcpt><scfgfu>N</scfgfu>"
    b"<scfgtu>N-mm</scfgtu><setserial>FT12345</setserial></netft>"
)


def test_the_scales_are_asked_of_the_sensors_page(bench):
    with page(PAGE) as port:
        ask = {"counts_per_force": None, "counts_per_torque": None, "http_port": port}
        with NetFT(config_for(bench.port, **ask)) as sensor:
            assert np.allclose(sensor.tare()[:3], 2 * bench.server.source.offset[:3], atol=0.3)
            assert sensor.metadata()["serial_number"] == "FT12345"


@pytest.mark.parametrize(
    "content", [b"", b"<netft/>", b"x" * (PAGE_BYTES + 10), PAGE.replace(b"N-mm", b"pony")]
)
def test_a_page_without_scales_says_what_to_give(bench, content):
    with page(content) as port:
        ask = {"counts_per_force": None, "counts_per_torque": None, "http_port": port}
        sensor = NetFT(config_for(bench.port, **ask))
        with pytest.raises(ConnectionError, match="give counts_per_force and counts_per_torque"):
            sensor.connect()


@pytest.mark.parametrize(
    "wrong",
    [{"address": ""}, {"port": 0}, {"rate_hz": 0}, {"counts_per_force": None}, {"counts_per_torque": -1}],
)
def test_a_config_that_cannot_be_meant(wrong):
    usual = {"address": "192.168.1.1", "counts_per_force": 1e6, "counts_per_torque": 1e6}
    with pytest.raises(ValueError, match="netft"):
        NetFTConfig(**(usual | wrong))


# Bytes.


def test_a_request_is_eight_bytes():
    assert request(2) == bytes.fromhex("1234 0002 00000000")


@given(st.binary(max_size=200))
def test_no_datagram_breaks_the_decoder(datagram):
    records = records_in(datagram)
    assert records is None or len(records) == len(datagram) / 36


def test_scales_of_units_that_are_not_newtons():
    scales = scales_in(PAGE.replace(b"<scfgfu>N<", b"<scfgfu>kN<"))
    assert scales.force == pytest.approx(500) and scales.torque == pytest.approx(2e6)
    assert np.allclose(scales.wrench(np.full(6, 1e6)), [2000] * 3 + [0.5] * 3)


def test_a_page_with_entities_is_refused():
    bomb = b"<!DOCTYPE a [<!ENTITY b 'bb'>]>" + PAGE
    with pytest.raises(ValueError, match="document type"):
        scales_in(bomb)


def test_every_status_bit_has_words_and_only_the_monitor_is_harmless():
    assert not is_serious(0) and not is_serious(0x80010000)
    for bit in set(range(1, 32)) - {15, 16}:
        assert is_serious(1 << bit) and status_text(1 << bit)
    assert status_text(0x80000004) == "internal temperature error"
    assert status_text(0) == "healthy"


def record(rdt: int, ft: int) -> Record:
    return Record(rdt % 2**32, ft % 2**32, 0, np.zeros(6))


@given(
    start=st.integers(0, 2**32 - 1),
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    again=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_gaps_are_counted_and_repetitions_dropped_also_when_numbers_wrap(start, steps, again):
    sequence, number = Sequence(), start
    assert sequence.is_new(record(number, number))
    for step, twice in zip(steps, again, strict=False):
        number += step
        assert sequence.is_new(record(number, number))
        if twice:
            assert not sequence.is_new(record(number - step, number - step))
    assert sequence.lost == sum(steps) - len(steps) and sequence.late == sum(again[: len(steps)])


def test_a_stream_that_was_started_anew_is_new():
    sequence = Sequence()
    assert sequence.is_new(record(5000, 90_000))
    assert sequence.is_new(record(1, 90_010)) and sequence.lost == 0
