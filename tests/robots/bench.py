"""An arm and a skin on pseudo-terminals, without the lab's physics: the servos stand still, the skin feels nothing."""

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.sensors import AnySkinConfig
from lerobot_ext.serial_ports import BY_ID
from lerobot_ext.virtual import skin as skins
from lerobot_ext.virtual.feetech import FOLLOWER, Faults, ServoBus, write_calibration
from lerobot_ext.virtual.terminal import Terminal


class Bench:
    """Follower's port, skin's port and calibration in one directory."""

    def __init__(self, directory: Path, faults: Faults | None = None) -> None:
        self.directory = directory
        self.servos = ServoBus(FOLLOWER, faults)
        self.skin = skins.Skin()
        self.arm_answers = self.skin_streams = True
        self._arm_port = Terminal(
            directory / "follower", by_id=directory / BY_ID / "usb-Bench_follower_BENCH1-if00"
        )
        self._arm_lock = threading.Lock()
        self._skin_port = Terminal(directory / "skin")
        write_calibration(directory / "follower.json", FOLLOWER)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve, self._stream)]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            with self._arm_lock:
                if not self._arm_port.plugged or not select.select([self._arm_port], [], [], 0.02)[0]:
                    answer = b""
                else:
                    answer = self.servos.feed(self._arm_port.read())
                if answer and self.arm_answers:
                    self._arm_port.write(answer)
            if not answer:
                time.sleep(0.0001)  # whoever wants to unplug it gets the lock

    def _stream(self) -> None:
        while not self._stop.wait(0.01):
            values = self.skin.step(0.01, np.zeros(3))
            if self.skin_streams:
                self._skin_port.write(skins.frame(values))

    def unplug(self) -> None:
        with self._arm_lock:
            self._arm_port.unplug()

    def plug(self) -> None:
        with self._arm_lock:
            self._arm_port.plug()

    def plug_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self.plug)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._arm_port.close()
        self._skin_port.close()

    def config(self, kind: type = SO101FollowerExtConfig, sensors: bool = True, **more: object):
        skin = {"skin": AnySkinConfig(port=str(self.directory / "skin"))} if sensors else {}
        given = {
            "port": str(self.directory / "follower"),
            "id": "follower",
            "calibration_dir": self.directory,
        }
        return kind(**(given | {"force_sensors": skin} | more))

    def torque(self) -> set[int]:
        return {servo.get("Torque_Enable") for servo in self.servos.servos}


@contextmanager
def running_bench(directory: Path, faults: Faults | None = None) -> Iterator[Bench]:
    bench = Bench(directory, faults)
    try:
        yield bench
    finally:
        bench.close()
