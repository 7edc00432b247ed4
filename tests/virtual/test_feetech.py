"""LeRobot's own bus against the virtual servos, over a pseudo-terminal."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.motors import Motor, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus, tables
from lerobot.robots.so_follower import SO100Follower, SO100FollowerConfig

from lerobot_ext.virtual import feetech
from lerobot_ext.virtual.feetech import FOLLOWER, REGISTERS, SIGN_BITS, Faults, ServoBus, write_calibration
from lerobot_ext.virtual.lab import ServoThread
from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.world import JOINTS

STILL = np.zeros(6)


@pytest.fixture
def plug(tmp_path, unhurried_bus):
    """A function that puts servos behind a port: (bus of the lab, bus of LeRobot, port)."""
    closers = []

    def plug(faults=None, calibrated=True):
        number = len(closers)
        servos = ServoBus(FOLLOWER, faults)
        terminal = Terminal(tmp_path / f"port{number}")
        thread = ServoThread({terminal: servos})
        motors = {
            name: Motor(
                spec.id, "sts3215", MotorNormMode.RANGE_0_100 if name == "gripper" else MotorNormMode.DEGREES
            )
            for name, spec in FOLLOWER.items()
        }
        bus = FeetechMotorsBus(str(terminal.link), motors)

        def close():
            if bus.is_connected:
                bus.disconnect(disable_torque=False)
            thread.close()
            terminal.close()

        closers.append(close)
        return servos, bus, terminal.link

    yield plug
    for close in closers:
        close()


def calibrate(bus):
    bus.calibration = bus.read_calibration()


def test_registers_are_those_of_lerobot():
    theirs = tables.MODEL_CONTROL_TABLE["sts3215"]
    assert {name: theirs[name] for name in REGISTERS} == REGISTERS
    signs = tables.MODEL_ENCODING_TABLE["sts3215"]
    assert {name: signs[name] for name in SIGN_BITS} == SIGN_BITS
    assert feetech.POWER_ON["Model_Number"] == tables.MODEL_NUMBER_TABLE["sts3215"]


def test_handshake_and_broadcast_ping(plug):
    _, bus, _ = plug()
    bus.connect()
    assert bus.broadcast_ping() == dict.fromkeys(range(1, 7), 777)
    assert bus.ping("elbow_flex") == 777


def test_a_servo_that_is_not_there_is_missed(plug):
    servos, bus, _ = plug()
    servos.servos[-1].set("ID", 9)
    with pytest.raises(RuntimeError, match="Missing motor IDs"):
        bus.connect()


def test_angles_arrive_in_degrees_from_the_middle_of_the_range(plug):
    servos, bus, _ = plug()
    angles = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 0.875])
    servos.sense(angles, STILL, STILL)
    bus.connect()
    calibrate(bus)
    read = bus.sync_read("Present_Position")
    assert list(read.values())[:5] == pytest.approx(np.degrees(angles[:5]), abs=0.12)
    assert read["gripper"] == pytest.approx(50, abs=0.1)


def test_a_written_goal_is_the_angle_that_is_driven(plug):
    servos, bus, _ = plug()
    bus.connect()
    calibrate(bus)
    bus.enable_torque()
    bus.sync_write("Goal_Position", dict(zip(JOINTS, (10, -20, 30, -40, 50, 25), strict=True)))
    bus.read("Goal_Position", "gripper")  # a sync write is not answered: this waits until it has arrived
    wanted = np.append(np.radians([10, -20, 30, -40, 50]), 0.25 * 1.75)
    assert servos.drive().goal == pytest.approx(wanted, abs=0.003)


def test_goals_stay_within_the_position_limits(plug):
    servos, bus, _ = plug()
    bus.connect()
    bus.write("Goal_Position", "shoulder_pan", 4000, normalize=False)
    assert servos.drive().goal[0] == pytest.approx(1.92, abs=0.01)


def test_torque_on_holds_where_the_arm_is_and_torque_off_lets_go(plug):
    servos, bus, _ = plug()
    angles = np.array([0.3, -0.3, 0.2, 0.1, 0.0, 0.5])
    servos.sense(angles, STILL, STILL)
    bus.connect()
    assert not servos.drive().powered.any()
    bus.enable_torque()
    assert servos.drive().powered.all()
    assert servos.drive().goal == pytest.approx(angles, abs=0.002)
    bus.disable_torque(["gripper"])
    assert servos.drive().powered.tolist() == [True] * 5 + [False]


def test_velocity_and_load_carry_their_sign(plug):
    servos, bus, _ = plug()
    servos.sense(STILL, np.full(6, -1.0), np.full(6, -0.25))
    bus.connect()
    assert bus.read("Present_Velocity", "shoulder_pan") == pytest.approx(-652, abs=1)
    assert bus.read("Present_Load", "shoulder_pan") == -250


def test_eprom_survives_a_driver_that_leaves(plug):
    _, bus, _ = plug()
    bus.connect()
    bus.write("Homing_Offset", "elbow_flex", -777)
    bus.disconnect(disable_torque=False)
    bus.connect()
    assert bus.read("Homing_Offset", "elbow_flex") == -777


def test_a_factory_arm_is_calibrated_with_lerobots_own_dialogue(plug, tmp_path, monkeypatch):
    servos, bus, port = plug()
    middle = np.array([0.05, -0.04, 0.03, 0.02, 0.4, 0.9])
    reach = np.array([1.9, 1.7, 1.6, 1.6, 0.0, 0.87])
    steps = iter(np.sin(np.linspace(0, 2 * np.pi, 25)))

    def move_to_middle(_prompt):
        servos.sense(middle, STILL, STILL)
        return ""

    def sweep_until_done():
        swing = next(steps, None)
        if swing is not None:
            servos.sense(middle + swing * reach, STILL, STILL)
        return swing is None

    monkeypatch.setattr("builtins.input", move_to_middle)
    monkeypatch.setattr("lerobot.motors.motors_bus.enter_pressed", sweep_until_done)
    config = SO100FollowerConfig(port=str(port), id="new", calibration_dir=tmp_path / "calibration")
    robot = SO100Follower(config)
    robot.connect()
    assert robot.is_calibrated
    assert (tmp_path / "calibration" / "new.json").is_file()
    servos.sense(middle, STILL, STILL)
    read = robot.get_observation()
    assert [read[f"{name}.pos"] for name in JOINTS[:4]] == pytest.approx([0] * 4, abs=0.3)
    assert read["gripper.pos"] == pytest.approx(50, abs=0.5)
    robot.disconnect()


def test_retries_ride_over_lost_and_spoilt_packets(plug):
    _, bus, _ = plug(Faults(drop=0.02, corrupt=0.02, seed=3))
    bus.connect(handshake=False)
    failures = 0
    for _ in range(40):
        try:
            bus.sync_read("Present_Position", normalize=False)
        except ConnectionError:
            failures += 1
        bus.sync_read("Present_Position", normalize=False, num_retry=8)
    assert failures > 0


def test_wrong_checksums_and_noise_are_passed_over():
    servos = ServoBus(FOLLOWER)
    ping = b"\xff\xff\x01\x02\x01\xfb"
    assert servos.feed(b"\x00\xff\x17" + ping[:-1] + b"\x00" + b"\xff" + ping) == b"\xff\xff\x01\x02\x00\xfc"


def test_a_packet_may_come_in_pieces():
    servos = ServoBus(FOLLOWER)
    ping = b"\xff\xff\x01\x02\x01\xfb"
    assert b"".join(servos.feed(bytes([byte])) for byte in ping) == b"\xff\xff\x01\x02\x00\xfc"


def test_a_registered_write_waits_for_the_action():
    servos = ServoBus(FOLLOWER)

    def send(id_, instruction, *parameters):
        body = bytes([id_, len(parameters) + 2, instruction, *parameters])
        return servos.feed(b"\xff\xff" + body + bytes([feetech.checksum(body)]))

    assert send(1, feetech.REG_WRITE, 40, 1)
    assert not servos.drive().powered[0]
    assert send(feetech.BROADCAST, feetech.ACTION) == b""
    assert servos.drive().powered[0]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_confuse_the_bus(chunks):
    servos = ServoBus(FOLLOWER)
    for chunk in chunks:
        servos.feed(chunk)
    servos.feed(b"\x00" * 260)  # ends whatever packet was begun
    assert servos.feed(b"\xff\xff\x01\x02\x01\xfb").endswith(b"\xff\xff\x01\x02\x00\xfc")


@given(st.integers(-2047, 2047), st.sampled_from(sorted(set(SIGN_BITS) - {"Present_Load"})))
def test_signed_registers_give_back_what_was_set(value, name):
    servo = feetech.Servo(FOLLOWER["gripper"])
    servo.set(name, value)
    assert servo.get(name) == value


def test_the_calibration_file_is_lerobots(plug, tmp_path):
    servos, _, port = plug()
    write_calibration(tmp_path / "follower.json", FOLLOWER)
    robot = SO100Follower(SO100FollowerConfig(port=str(port), id="follower", calibration_dir=tmp_path))
    robot.bus.connect()
    assert robot.is_calibrated
    robot.bus.disconnect()


def test_a_driver_that_reads_nothing_does_not_block_the_bus(plug):
    servos, bus, port = plug()
    ask = b"\xff\xff\x01\x04\x02\x38\x02\xbe"
    with port.open("wb", buffering=0) as driver:
        writer = threading.Thread(target=lambda: [driver.write(ask) for _ in range(2000)], daemon=True)
        writer.start()
        writer.join(20)
        assert not writer.is_alive()
    bus.connect(handshake=False)
    bus.port_handler.ser.reset_input_buffer()
    assert bus.read("Model_Number", "gripper", num_retry=3) == 777


def test_an_error_bit_is_in_every_status_packet_and_in_the_register(plug):
    servos, bus, _ = plug()
    bus.connect()
    servos.trouble("overload:3")
    assert bus.packet_handler.read1ByteTxRx(bus.port_handler, 3, REGISTERS["Status"][0]) == (32, 0, 32)
    assert bus.packet_handler.ping(bus.port_handler, 3)[2] == 32
    assert bus.packet_handler.ping(bus.port_handler, 4)[2] == 0
    with pytest.raises(RuntimeError, match="Overload error"):
        bus.read("Present_Load", "elbow_flex")
    servos.trouble("")
    bus.read("Present_Load", "elbow_flex")


def test_a_silent_servo_does_not_answer_and_a_frozen_bus_not_at_all(plug):
    servos, bus, _ = plug()
    bus.connect()
    servos.trouble("silent:4")
    assert bus.ping("wrist_flex") is None and bus.ping("wrist_roll") == 777
    servos.trouble("frozen")
    assert bus.ping("wrist_roll") is None
    servos.trouble("")
    assert bus.ping("wrist_flex") == 777


@given(st.integers(0, 10_000), st.sampled_from(["corrupt", "truncate", "drop"]))
@settings(max_examples=200, deadline=None)
def test_no_fault_of_the_line_makes_a_good_packet(seed, kind):
    servos = ServoBus(FOLLOWER, Faults(seed=seed, **{kind: 1.0}))
    body = bytes([1, 4, feetech.READ, 56, 2])
    arrived = servos.feed(b"\xff\xff" + body + bytes([feetech.checksum(body)]))
    good = ServoBus(FOLLOWER).feed(b"\xff\xff" + body + bytes([feetech.checksum(body)]))
    assert len(good) == 8 and arrived != good and len(arrived) <= 8
    assert (arrived == b"") == (kind == "drop")
