"""The driver that docs/sensors.md shows does what every sensor must."""

import re
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from benches import chatter

from lerobot_ext.sensors import ForceSensorConfig, make_force_sensors_from_configs
from lerobot_ext.sensors.conformance import ForceSensorConformance
from lerobot_ext.virtual.terminal import Terminal

DOCS = Path(__file__).parents[2] / "docs" / "sensors.md"
MODULES = ("config_load_cell", "load_cell")


@pytest.fixture(scope="module")
def config_class(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        if name := re.match(r"# (\w+)\.py\n", block):
            (folder / f"{name[1]}.py").write_text(block)
    sys.path.insert(0, str(folder))
    try:
        import config_load_cell

        yield config_load_cell.LoadCellConfig
    finally:
        sys.path.remove(str(folder))
        for name in MODULES:
            sys.modules.pop(name, None)
        ForceSensorConfig._choice_registry.pop("load_cell", None)


class TestLoadCell(ForceSensorConformance):
    @pytest.fixture(autouse=True)
    def _prepare(self, config_class, tmp_path):
        self.config_class, self.folder = config_class, tmp_path

    @contextmanager
    def working_sensor(self):
        self.noise, self.silent = 0.05, False
        stop, rng = threading.Event(), np.random.default_rng(0)
        self.lock = threading.Lock()
        self.terminal = Terminal(self.folder / "cell", keep_open=False)

        def run():
            while not stop.wait(0.0125):
                if not self.silent:
                    self.send(f"{3 + rng.normal(0, self.noise):.3f}\r\n".encode())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        config = self.config_class(port=str(self.terminal.link), reconnect_s=0.05)
        (sensor,) = make_force_sensors_from_configs({"cell": config}).values()
        try:
            yield sensor
        finally:
            sensor.disconnect()
            stop.set()
            thread.join()
            self.terminal.close()

    def send(self, data):
        with self.lock:
            if self.terminal.plugged:
                self.terminal.write(data)

    def disturb(self):
        self.noise = 5

    def garble(self):
        self.send(b"\x00\xff what?\nnan\n")

    def silence(self, silent):
        self.silent = silent

    def unplug(self):
        with self.lock:
            self.terminal.unplug()

    def plug_in(self):
        with self.lock:
            self.terminal.plug()

    @contextmanager
    def wrong_device(self):
        with self.working_sensor() as sensor:
            self.silent = True
            with chatter(self.send):
                yield sensor
