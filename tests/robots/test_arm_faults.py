"""An arm that answers badly, not at all, or from another port: what the follower makes of it."""

import logging
import signal
import threading

import pytest

from lerobot_ext.robots.patient_bus import status_packets
from lerobot_ext.robots.servo_errors import ErrorWatch, in_words, with_remedies
from lerobot_ext.virtual.feetech import Faults

MOTORS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
JOINTS = [f"{motor}.pos" for motor in MOTORS]


@pytest.fixture
def robot(make):
    made = make(sensors=False, reopen_s=3)
    made.connect()
    return made


def counts(robot) -> dict[str, int]:
    return robot.last_report.counts


@pytest.mark.parametrize("fault", ["corrupt", "drop", "truncate"])
def test_bad_packets_are_asked_for_again_and_counted(bench, robot, fault):
    bench.servos.trouble(f"{fault}:0.05")
    for _ in range(60):
        assert all(abs(robot.get_observation()[joint]) < 1 for joint in JOINTS)
    assert 10 < counts(robot)["arm.retries"] < 180 and counts(robot)["arm.reopened"] == 0


def test_a_good_line_costs_no_retry(robot):
    for _ in range(20):
        robot.get_observation()
    assert counts(robot) == {"arm.retries": 0, "arm.reopened": 0}


def test_only_the_servos_that_are_missing_are_asked_again(bench, robot, monkeypatch):
    asked = []
    read = bench.servos._execute
    monkeypatch.setattr(
        bench.servos, "_execute", lambda *what: asked.append(list(what[2][2:])) or read(*what)
    )
    once = [None]

    def spoil(packet, original=bench.servos._spoil):
        return once.pop() or packet[:-1] + b"\x00" if once and packet[2] == 3 else original(packet)

    monkeypatch.setattr(bench.servos, "_spoil", spoil)
    assert list(robot.get_observation()) == JOINTS
    assert asked == [[1, 2, 3, 4, 5, 6], [3]]


def test_reads_for_max_relative_target_are_retried_too(bench, make):
    robot = make(sensors=False, max_relative_target=5.0)
    robot.connect()
    bench.servos.trouble("corrupt:0.05")
    for _ in range(30):
        assert robot.send_action({"shoulder_pan.pos": 30.0})["shoulder_pan.pos"] == pytest.approx(5, abs=1)
    robot.get_observation()
    assert counts(robot)["arm.retries"] > 3


def test_after_an_interrupt_in_the_middle_the_bus_still_works(robot):
    robot.bus.port_handler.is_using = True  # what a Ctrl-C in the middle of an exchange leaves behind
    assert list(robot.get_observation()) == JOINTS
    robot.bus.port_handler.is_using = True
    robot.send_action({"shoulder_pan.pos": 0.0})


# --- the port ---


def test_a_port_that_comes_back_under_another_name_is_found_by_its_serial_number(bench, robot, caplog):
    before = robot.get_observation()
    goals = [servo.get("Goal_Position") for servo in bench.servos.servos]
    for number in (1, 2):
        bench.unplug()
        bench.plug_after(0.3)
        after = robot.get_observation()
        assert after == pytest.approx(before, abs=0.2)
        assert robot.bus.port == str(bench.directory / f"follower{number}")
        assert counts(robot)["arm.reopened"] == number
    assert [servo.get("Goal_Position") for servo in bench.servos.servos] == goals and bench.torque() == {1}
    assert caplog.text.count("Its port was opened again") == 2 and "kept their power" in caplog.text


def test_an_action_opens_the_port_again_too(bench, robot):
    bench.unplug()
    bench.plug_after(0.3)
    robot.send_action({"shoulder_pan.pos": 10.0})
    robot.get_observation()
    assert counts(robot)["arm.reopened"] == 1


def test_servos_that_lost_their_power_are_set_up_again_and_stay_where_they_are(bench, robot):
    robot.send_action({"shoulder_pan.pos": 40.0})
    robot.get_observation()
    bench.unplug()
    for servo in bench.servos.servos:
        servo.set("Torque_Enable", 0)
        servo.set("P_Coefficient", 32)
        servo.set("Goal_Position", 0)
    bench.plug_after(0.1)
    robot.get_observation()
    assert bench.torque() == {1} and counts(robot)["arm.reopened"] == 1
    for servo in bench.servos.servos:
        assert servo.get("P_Coefficient") == 16
        assert servo.get("Goal_Position") == servo.get("Present_Position")


def test_a_single_servo_that_lost_its_power_is_set_up_and_the_others_are_not_let_go(
    bench, robot, monkeypatch
):
    wrist, let_go = bench.servos.servos[3], []
    write = type(wrist).write

    def watched(servo, address, data):
        if address == 40 and data == b"\x00":
            let_go.append(servo.get("ID"))
        write(servo, address, data)

    monkeypatch.setattr(type(wrist), "write", watched)
    bench.unplug()
    for name, value in {"Torque_Enable": 0, "P_Coefficient": 32, "Goal_Position": 0}.items():
        wrist.set(name, value)
    bench.plug_after(0.1)
    robot.get_observation()
    assert let_go == [4] and bench.torque() == {1}
    assert wrist.get("P_Coefficient") == 16 and wrist.get("Goal_Position") == wrist.get("Present_Position")
    assert list(robot.bus.motors) == MOTORS


def test_an_arm_whose_torque_was_off_stays_limp_after_its_port_came_back(bench, robot):
    robot.bus.disable_torque()
    bench.unplug()
    bench.plug_after(0.1)
    robot.get_observation()
    assert bench.torque() == {0}


def test_a_port_that_stays_away_is_one_sentence(bench, make, caplog):
    robot = make(sensors=False, reopen_s=0.3)
    robot.connect()
    bench.unplug()
    with pytest.raises(ConnectionError) as caught:
        robot.get_observation()
    assert "did not come back within 0.3 s (looked for its serial number BENCH1)" in str(caught.value)
    assert "plug the arm in again" in str(caught.value) and "\n" not in str(caught.value)
    robot.disconnect()
    assert "switch its power off" in caplog.text
    bench.plug()


def test_ctrl_c_ends_the_wait_for_a_port_even_if_somebody_else_handles_it(bench, make):
    robot = make(sensors=False, reopen_s=60)
    robot.connect()
    bench.unplug()
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))  # as LeRobot's rollout does
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            robot.get_observation()
        assert heard == [1]
    finally:
        signal.signal(signal.SIGINT, before)
        bench.plug()


# --- servos ---


def test_a_servo_that_does_not_answer_is_named_with_what_it_reported_and_the_remedy(bench, make):
    robot = make(sensors=False, reopen_s=0.1)
    robot.connect()
    bench.servos.trouble("overload:3")
    robot.get_observation()
    bench.servos.trouble("silent:3")
    with pytest.raises(ConnectionError) as caught:
        robot.get_observation()
    text = str(caught.value)
    assert "elbow_flex (servo 3) does not answer, also not after the port was opened again" in text
    assert "reports overload" in text and "let go or lower the load" in text
    assert "the cable between shoulder_lift (servo 2) and elbow_flex (servo 3)" in text
    bench.servos.trouble("")


def test_an_arm_that_went_silent_as_a_whole_is_asked_to_have_power(bench, make):
    robot = make(sensors=False, reopen_s=0.1)
    robot.connect()
    bench.arm_answers = False
    with pytest.raises(ConnectionError, match="its servos do not answer.*power supply is on"):
        robot.get_observation()
    bench.arm_answers = True


@pytest.mark.parametrize(
    ("fault", "word", "remedy"),
    [
        ("overload:1", "overload", "let go"),
        ("voltage:2", "voltage", "5 V for the 7.4 V servos"),
        ("temperature:3", "overheat", "let it cool"),
        ("angle:4", "angle sensor", "power-cycle"),
        ("current:5", "overcurrent", "blocked"),
    ],
)
def test_error_bits_in_good_packets_are_warned_of_once(bench, robot, caplog, fault, word, remedy):
    bench.servos.trouble(fault)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            robot.get_observation()
        bench.servos.trouble("")
        robot.get_observation()
    number = int(fault[-1])
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{MOTORS[number - 1]} (servo {number}) reports {word}: ")
    assert remedy in warnings[0] and "is well again" in caplog.text


def test_an_arm_with_an_error_bit_can_be_connected_and_let_go(bench, make, caplog):
    bench.servos.trouble("overload:6")
    robot = make(sensors=False)
    robot.connect()
    assert "gripper (servo 6) reports overload" in caplog.text and bench.torque() == {1}
    robot.disconnect()
    assert bench.torque() == {0}


def test_disconnecting_lets_the_other_servos_go_when_one_is_silent(bench, make, caplog):
    robot = make(sensors=False)
    robot.connect()
    bench.servos.trouble("silent:1")
    robot.disconnect()
    bench.servos.trouble("")
    assert [servo.get("Torque_Enable") for servo in bench.servos.servos] == [1, 0, 0, 0, 0, 0]
    assert "shoulder_pan did not answer" in caplog.text


def test_all_bits_have_words():
    assert in_words(0) == "" and in_words(1 | 32) == "voltage, overload" and "0x40" in in_words(64)
    assert "cool" in with_remedies(4)
    watch = ErrorWatch({3: "elbow_flex"})
    watch.note(3, 4 | 32)
    watch.note(9, 32)  # no servo of this arm
    assert watch.sentence().startswith("elbow_flex (servo 3) reports overheat")
    watch.note(3, 0)
    assert watch.sentence() == ""


def test_status_packets_are_found_among_garbage():
    good = bytes([0xFF, 0xFF, 4, 4, 0, 10, 8])
    good += bytes([~sum(good[2:]) & 0xFF])
    bad = good[:-1] + bytes([good[-1] ^ 1])
    found = status_packets(b"\x00\xff" + bad + good + b"\xff\xff\x05" + good + good[:5])
    assert found == [list(good)] * 2
    assert status_packets(b"") == []


def test_faults_of_the_start_come_back_when_a_fault_is_mended(bench):
    bench.servos._usual = Faults(drop=0.5)
    bench.servos.trouble("corrupt:0.1")
    assert bench.servos.faults == Faults(drop=0.5, corrupt=0.1)
    bench.servos.trouble("")
    assert bench.servos.faults == Faults(drop=0.5)
