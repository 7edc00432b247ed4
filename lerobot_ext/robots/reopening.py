"""Opening the port of an arm again after it has failed in the middle of a run.

A USB cable that slips comes back as another port, so it is found by the serial number of the arm's USB adapter. The
servos may have kept their power and everything they were told, or have lost it; nothing here makes the arm jump.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

from lerobot_ext import serial_ports
from lerobot_ext.robots.patient_bus import PORT_ERRORS, NoAnswerError, PatientBus

logger = logging.getLogger(__name__)

POLL_S = 0.1

GONE = (
    "arm on {port}: {why}, and the port did not come back within {within_s:g} s{number}; plug the arm in again and see "
    "that the cable sits firmly."
)
SILENT = "arm on {port}: {who} not answer, also not after the port was opened again{errors}; check {check}."


def reopen(bus: PatientBus, serial_number: str | None, within_s: float, why: Exception) -> None:
    """Open the port of `bus` again, wherever it is now, and see that all servos answer.

    Args:
        bus: Open or not; its port is changed to where it was found.
        serial_number: Of the arm's USB adapter; None if unknown, then only its old name is tried.
        within_s: How long to wait for the port and the servos.
        why: What failed.

    Raises:
        ConnectionError: It did not come back, or servos are missing, with their names, the errors they reported
            and what to do. The port is left open if some servos answer, so that their torque can be switched off.
    """
    close(bus)
    end_s = time.monotonic() + within_s
    folder = os.path.dirname(os.path.abspath(bus.port))
    missing: list[int] | None = None  # None: the port is not there
    while True:
        path = serial_ports.find(serial_number, folder) if serial_number else _existing(bus.port)
        if path is not None and _opened(bus, path):
            missing = [id_ for id_ in bus.ids if not _answers(bus, id_)]
            if not missing:
                return
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            break
        if missing is None or len(missing) == len(bus.ids):
            close(bus)
        time.sleep(min(POLL_S, left_s))
    raise ConnectionError(_sentence(bus, serial_number, within_s, why, missing)) from why


def close(bus: PatientBus) -> None:
    """Close the port of `bus`, also one that is broken; again does nothing."""
    if bus.is_connected:
        bus.port_handler.is_open = False
        with contextlib.suppress(*PORT_ERRORS):
            bus.port_handler.ser.close()


def restore(bus: PatientBus, configure: Callable[[], None]) -> list[str]:
    """Give servos that have lost their power meanwhile what they were told, and hold the arm where it is.

    Servos that kept their power kept everything, and go on holding their last goal.

    Args:
        bus: Open, all servos answer.
        configure: Writes the settings of all servos of the bus and switches them on.

    Returns:
        The names of the servos that had lost their torque.

    Raises:
        ConnectionError: A servo stopped answering.
    """
    expected = bus.powered or set()
    lost = [name for name in bus.motors if name in expected and not bus.read("Torque_Enable", name)]
    for name in lost:  # a servo that is switched on goes to its goal
        bus.write("Goal_Position", name, bus.read("Present_Position", name, normalize=False), normalize=False)
    if lost:
        with bus.only(lost):  # the others hold the arm and must not be let go
            configure()
    return lost


def _existing(path: str) -> str | None:
    return path if os.path.exists(path) else None


def _opened(bus: PatientBus, path: str) -> bool:
    if bus.is_connected:
        return True
    if path != bus.port:
        bus.port = path
        bus.port_handler.setPortName(path)
    try:
        bus.connect(handshake=False)
    except (*PORT_ERRORS, RuntimeError) as error:
        logger.debug("cannot open %s yet: %s", path, error)
        close(bus)
        return False
    return True


def _answers(bus: PatientBus, id_: int) -> bool:
    try:
        return bus.ping(id_) is not None
    except ConnectionError:
        return False


def _sentence(
    bus: PatientBus, serial_number: str | None, within_s: float, why: Exception, missing: list[int] | None
) -> str:
    names = {motor.id: f"{name} (servo {motor.id})" for name, motor in bus.motors.items()}
    if missing is None:
        number = f" (looked for its serial number {serial_number})" if serial_number else ""
        reason = (
            f"{', '.join(names[id_] for id_ in why.ids)} did not answer"
            if isinstance(why, NoAnswerError)
            else "the port failed"
        )
        return GONE.format(port=bus.port, why=reason, within_s=within_s, number=number)
    return no_answer(bus, missing)


def no_answer(bus: PatientBus, missing: list[int]) -> str:
    """One sentence on servos that do not answer on a port that works: who, what they reported before, what to do."""
    names = {motor.id: f"{name} (servo {motor.id})" for name, motor in bus.motors.items()}
    errors = f"; reported before: {said}" if (said := bus.errors.sentence()) else ""
    if len(missing) == len(bus.ids):
        who, check = (
            "its servos do",
            "that the arm's own power supply is on, and the cable from the controller to the first servo",
        )
    else:
        who = ", ".join(names[id_] for id_ in missing) + (" does" if len(missing) == 1 else " do")
        before = names.get(missing[0] - 1, "the controller")
        check = f"the cable between {before} and {names[missing[0]]}, then power-cycle the arm"
    return SILENT.format(port=bus.port, who=who, errors=errors, check=check)
