"""Opening the bus of an SO arm, with one sentence for each way in which that fails.

LeRobot's own messages run over many lines and leave the port open; nothing here knows of cameras or sensors.
"""

from __future__ import annotations

import os

from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.robots import Robot

NO_PORT = "arm: there is no port {port}; plug the arm in and find its port with `lerobot-find-port`."
NO_PERMISSION = "arm on {port}: no permission to open it; run `sudo usermod -aG dialout $USER`, then log out and in again."
CANNOT_OPEN = (
    "arm on {port}: cannot be opened as a serial port; is it the arm's (`lerobot-find-port`), and does no other "
    "program hold it?"
)
NO_ARM = (
    "arm on {port}: no servo answers; is it the arm's port (`lerobot-find-port`), and is the arm's own power supply "
    "on?"
)
MISSING = (
    "arm on {port}: servos {missing} do not answer, {found} do; check the cable between {before} and {after}, and "
    "the servos' ids (`lerobot-setup-motors`)."
)
OTHER = "arm on {port}: {found}; expected six STS3215 with ids 1 to 6 and one firmware."
NOT_CALIBRATED = (
    "arm on {port}: its servos do not hold the calibration of {file}; run `lerobot-calibrate --robot.type={kind} "
    "--robot.port={port} --robot.id={id}`."
)


def connect_bus(bus: FeetechMotorsBus) -> None:
    """Open `bus` and see that all its servos answer.

    Raises:
        ConnectionError: They do not, in one sentence. The port is closed then.
    """
    port = bus.port
    if not os.path.exists(port):
        raise ConnectionError(NO_PORT.format(port=port))
    if not os.access(port, os.R_OK | os.W_OK):
        raise ConnectionError(NO_PERMISSION.format(port=port))
    try:
        bus.connect()
    except Exception as error:
        sentence = _explain(bus, error)
        if bus.is_connected:
            bus.port_handler.closePort()
        raise ConnectionError(sentence) from error


def not_calibrated(robot: Robot) -> ConnectionError:
    """What to raise when an arm needs a calibration and nobody is there to do it."""
    return ConnectionError(
        NOT_CALIBRATED.format(
            port=robot.config.port, file=robot.calibration_fpath, kind=robot.config.type, id=robot.id
        )
    )


def _explain(bus: FeetechMotorsBus, error: Exception) -> str:
    if not bus.is_connected:
        return CANNOT_OPEN.format(port=bus.port)
    models = {id_: bus.ping(id_) for id_ in bus.ids}
    missing = [id_ for id_, model in models.items() if model is None]
    found = [id_ for id_, model in models.items() if model is not None]
    if not found:
        return NO_ARM.format(port=bus.port)
    if missing:
        names = {motor.id: f"{motor.id} ({name})" for name, motor in bus.motors.items()}
        # The servos are chained in the order of their ids: the cable to the first that is silent is suspect.
        first = missing[0]
        return MISSING.format(
            port=bus.port,
            missing=", ".join(names[id_] for id_ in missing),
            found=", ".join(map(str, found)),
            before=names.get(first - 1, "the controller"),
            after=names[first],
        )
    return OTHER.format(port=bus.port, found=" ".join(str(error).split()))
