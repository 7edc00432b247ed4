"""What the tests of the doctor's devices plug in: pseudo-terminals with somebody, or nobody, at the far end."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lerobot_ext.commands.doctor_ports import Answer
from lerobot_ext.commands.doctor_servos import Servo
from lerobot_ext.commands.doctor_survey import Port
from lerobot_ext.commands.doctor_usb import SerialPlace, UsbDevice


@contextmanager
def plugged(speak: Callable[[int, threading.Event], None] | None = None) -> Iterator[tuple[str, int]]:
    """A port's path and its far end; `speak(far end, ending)` runs beside, if given, until the event is set."""
    far, near = pty.openpty()
    tty.setraw(near)
    ending = threading.Event()
    thread = threading.Thread(target=speak, args=(far, ending)) if speak else None
    if thread:
        thread.start()
    try:
        yield os.ttyname(near), far
    finally:
        ending.set()
        if thread:
            thread.join()
        os.close(near)
        os.close(far)


def streaming(make_frame: Callable[[], bytes]) -> Callable[[int, threading.Event], None]:
    """Somebody who sends a frame every hundredth of a second to whoever listens."""

    def speak(far: int, ending: threading.Event) -> None:
        os.set_blocking(far, False)
        while not ending.wait(0.01):
            try:
                os.write(far, make_frame())
            except BlockingIOError:
                continue  # nobody reads

    return speak


@contextmanager
def held_by_another_process(path: str | Path) -> Iterator[int]:
    """The id of a process that has the port open."""
    port = os.open(path, os.O_RDWR | os.O_NOCTTY)
    process = subprocess.Popen(["sleep", "60"], stdin=port)
    os.close(port)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def servos(offsets=(1, 2, 3, 4, 5, 6), **facts) -> dict[int, Servo]:
    """Six servos with these homing offsets and otherwise the same `facts`."""
    usual = {"voltage_v": 5.0, "range_min": 0, "range_max": 4095, **facts}
    return {n: Servo(n, 777, homing_offset=offset, **usual) for n, offset in enumerate(offsets, 1)}


def usb_port(path="/dev/ttyACM0", serial="5A460", kind="arm", role=None, driver="cdc_acm", **changes) -> Port:
    """A port on USB as the survey would describe it."""
    device = UsbDevice("1-2.3", "1a86", "55d3", serial, "USB Single Serial", 12.0, "/dev/bus/usb/001/004")
    place = SerialPlace(device, "00", 2, driver, 16 if driver == "ftdi_sio" else None)
    usual = {
        "lasting": path,
        "serial_number": serial,
        "place": place,
        "role": role,
        "answer": Answer(kind, servos=servos() if kind == "arm" else {}),
    }
    return Port(path, **(usual | changes))
