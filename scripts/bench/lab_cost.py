"""What the virtual lab costs: CPU seconds a second of its process, by thread, for what its clients have open.

The clients are bare sockets and serial ports in this process, so that nothing of theirs is counted. It is CPU time, not
wall time, so another load on the computer changes it little; but where the pictures a second fall behind, so does their
cost.

    python scripts/bench/lab_cost.py [--quick] [--seconds=8] [--only=camera]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import msgspec
import serial
import zmq

from lerobot_ext.virtual import feetech
from lerobot_ext.virtual.link import SideFrame
from lerobot_ext.virtual.testing import RunningLab, running_lab

POLL_HZ = 60
SETTLE_S = 3.0  # after this the arms stand still, and nobody talks to whom has just been left
IDS = bytes(range(1, 7))
SWING_TICKS, SWING_HZ = 200, 0.5  # of the moving arm's first joint
SITUATIONS = {
    "nobody": (),
    "follower at 60 Hz": ("follower",),
    "follower moving": ("follower, moving",),
    "skin": ("skin",),
    "side camera": ("side",),
    "side camera, moving": ("side", "follower, moving"),
    "all cameras": ("side", "wrist"),
    "all cameras, moving": ("side", "wrist", "follower, moving"),
    "everything, moving": ("side", "wrist", "follower, moving", "leader", "skin"),
}


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row (default %(default)s)")
    parser.add_argument("--only", default="", help="measure the rows whose name contains this")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 2.0
    rows = [row for arms in (1, 2) for row in lab_rows(arms, arguments)]
    common.print_table(rows, "CPU seconds a second of the lab's process")
    common.save("lab_cost", rows, arguments)


def lab_rows(arms: int, arguments: argparse.Namespace) -> Iterator[dict]:
    """The rows of a lab with that many arms; the devices of a row are each arm's."""
    with (
        tempfile.TemporaryDirectory(prefix="lab_cost") as folder,
        running_lab(Path(folder), arms=arms, seed=arguments.seed) as lab,
    ):
        for name, devices in SITUATIONS.items():
            if arguments.only not in name:
                continue
            with contextlib.ExitStack() as stack:
                clients = {device: stack.enter_context(opened(lab, device, arms)) for device in devices}
                time.sleep(SETTLE_S)
                before = {device: count() for device, count in clients.items()}
                used = usage(lab.process.pid, arguments.seconds)
                rates = {
                    device: (count() - before[device]) / arguments.seconds
                    for device, count in clients.items()
                }
            pictures = {f"{camera} fps": rates.get(camera) for camera in ("side", "wrist")}
            yield {"arms": arms, "open": name, **used, **pictures}


def usage(pid: int, seconds: float) -> dict[str, float]:
    """CPU seconds a second of a lab's threads while `seconds` pass."""
    before, started = thread_times(pid), time.monotonic()
    time.sleep(seconds)
    after, passed = thread_times(pid), time.monotonic() - started
    used = {thread: (cpu_s - before.get(thread, 0.0)) / passed for thread, cpu_s in after.items()}
    everything = sum(used.values())
    world = used[pid, "world"]
    zeromq = sum(share for (_, name), share in used.items() if name.startswith("ZMQ"))
    return {"all": everything, "world": world, "servos": everything - world - zeromq, "ZeroMQ": zeromq}


def thread_times(pid: int) -> dict[tuple[int, str], float]:
    """CPU seconds of each thread of a process so far, by id and name; the first one is called "world"."""
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            name = "world" if task.name == str(pid) else (task / "comm").read_text().strip()
            times[int(task.name), name] = int((task / "schedstat").read_text().split()[0]) * 1e-9
    return times


@contextlib.contextmanager
def opened(lab: RunningLab, device: str, arms: int) -> Iterator[Callable[[], int]]:
    """Somebody who uses a device (of each arm) until the end; yields what counts how much has come."""
    device, _, moving = device.partition(", ")
    counts = [0]
    stop = threading.Event()

    def use(port: str) -> None:
        if device in ("side", "wrist"):
            chunks = _pictures(lab, device)
        elif device == "skin":
            chunks = _frames(lab, port)
        else:
            chunks = _positions(lab, port, swing=SWING_TICKS if moving else 0)
        with contextlib.closing(chunks):
            while not stop.is_set():
                counts[0] += next(chunks)

    sides = ("",) if arms == 1 or device in ("side", "wrist") else ("_right", "_left")
    threads = [threading.Thread(target=use, args=(device + side,)) for side in sides]
    for thread in threads:
        thread.start()
    try:
        yield lambda: counts[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _pictures(lab: RunningLab, device: str) -> Iterator[int]:
    address = f"ipc://{lab.directory / 'side'}" if device == "side" else f"tcp://127.0.0.1:{lab.wrist_port}"
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.subscribe(b"")
        socket.connect(address)
        last = None
        while True:
            if not socket.poll(100):
                yield 0
                continue
            header, *images = socket.recv_multipart(copy=False)
            if not images:  # the wrist's have no numbers
                yield 1
                continue
            number = msgspec.json.decode(header.bytes, type=SideFrame).frame_number
            yield number - (number - 1 if last is None else last)  # also those that did not arrive
            last = number


def _frames(lab: RunningLab, name: str) -> Iterator[int]:
    with serial.Serial(str(lab.port(name)), 115200, timeout=0.1) as port:
        while True:
            yield len(port.read(82)) // 82


def _positions(lab: RunningLab, name: str, swing: int) -> Iterator[int]:
    """What LeRobot does in a tick: reads the positions of all servos, and writes a follower's goals."""
    address = feetech.REGISTERS["Present_Position"][0]
    read = packet(feetech.SYNC_READ, bytes([address, 2]) + IDS)
    with serial.Serial(str(lab.port(name)), 1_000_000, timeout=5) as port:
        port.write(read)
        home = _answers(port)
        if name.startswith("follower"):
            port.write(_write("Torque_Enable", [1] * len(IDS)))
        while True:
            time.sleep(1 / POLL_HZ)
            port.write(read)
            _answers(port)
            if name.startswith("follower"):
                away = round(swing * math.sin(2 * math.pi * SWING_HZ * time.monotonic()))
                port.write(_write("Goal_Position", [home[0] + away, *home[1:]]))
            yield 1


def _answers(port: serial.Serial) -> list[int]:
    data = port.read(8 * len(IDS))
    return [int.from_bytes(data[start + 5 : start + 7], "little") for start in range(0, len(data), 8)]


def _write(register: str, values: list[int]) -> bytes:
    address, size = feetech.REGISTERS[register]
    pairs = zip(IDS, values, strict=True)
    data = b"".join(bytes([id_]) + value.to_bytes(size, "little") for id_, value in pairs)
    return packet(feetech.SYNC_WRITE, bytes([address, size]) + data)


def packet(instruction: int, parameters: bytes) -> bytes:
    """One to all servos of a bus."""
    body = bytes([feetech.BROADCAST, len(parameters) + 2, instruction]) + parameters
    return b"\xff\xff" + body + bytes([feetech.checksum(body)])


if __name__ == "__main__":
    main()
