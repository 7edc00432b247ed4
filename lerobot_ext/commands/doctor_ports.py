"""The doctor at a serial port: what answers there, without disturbing whoever uses it.

A port that another process has open is not touched. Otherwise it is opened under a lock, listened to, and only if
it is silent asked (Feetech pings, one Modbus read); its settings are put back. At most about 1.5 s a port.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import string
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

import serial

from lerobot_ext.commands import doctor_servos
from lerobot_ext.commands.doctor_servos import Servo
from lerobot_ext.sensors import ft300_frames
from lerobot_ext.sensors.anyskin_frames import FrameFinder
from lerobot_ext.sensors.ft300_frames import FT300Finder

LISTEN_BAUDRATE = 115200
FT300_BAUDRATE = 19200
LISTEN_S, COUNT_S = 0.3, 0.4  # until a silence counts as one; how long a stream is counted
MODBUS_S = 0.15
MAX_BYTES = 1 << 16
MAX_MAGNETOMETERS = 16
LEAST_FRAMES = 3  # that make a stream
FT300_SLAVE, FT300_WORDS = 9, 4  # its Modbus address as it is delivered; registers of its serial number

ARM, SKIN, FT300, SILENT, UNKNOWN = "arm", "skin", "ft300", "silent", "unknown"
BUSY, FORBIDDEN, BROKEN, BUILT_IN = "busy", "forbidden", "broken", "built-in"


@dataclass
class Answer:
    """What is known of one port.

    Attributes:
        kind: ARM, SKIN, FT300, SILENT, UNKNOWN; or why nobody was asked: BUSY, FORBIDDEN, BROKEN, BUILT_IN.
        servos: By id, of an arm.
        magnetometers: Of a skin.
        rate_hz: Frames a second of a stream.
        streaming: Whether an FT 300 sends by itself.
        received, baudrate, sample: Bytes of what is unknown, at which rate, and the first of them.
        holders: Processes that have the port open: `1234 (lerobot-record)`.
        error: Why it could not be looked at.
    """

    kind: str
    servos: dict[int, Servo] = field(default_factory=dict)
    magnetometers: int = 0
    rate_hz: float = 0.0
    streaming: bool = False
    received: int = 0
    baudrate: int = 0
    sample: str = ""
    holders: tuple[str, ...] = ()
    error: str = ""


class SerialLine:
    """A serial port under a lock, whose settings are put back by `close`.

    Raises:
        BlockingIOError: Another program has locked it.
        OSError: It cannot be opened; termios.error: it is no serial port.
    """

    def __init__(self, path: str) -> None:
        # This descriptor keeps lock and line open while pyserial comes and goes with one of its own.
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._settings = termios.tcgetattr(self._fd)
            self._serial = serial.Serial(path, LISTEN_BAUDRATE, timeout=0, write_timeout=0.2)
        except BaseException:
            os.close(self._fd)
            raise

    def set_baudrate(self, baudrate: int) -> None:
        """Change the rate."""
        self._serial.baudrate = baudrate

    def listen(self, seconds: float, enough: int = MAX_BYTES) -> tuple[bytes, list[tuple[float, int]]]:
        """What comes within `seconds`, until there is `enough`; and when how many bytes were there."""
        data, arrivals = b"", []
        end_s = time.monotonic() + seconds
        while len(data) < enough and (left_s := end_s - time.monotonic()) > 0:
            if not select.select([self._fd], [], [], left_s)[0]:
                break
            chunk = self._serial.read(4096)
            if not chunk:
                break
            data += chunk
            arrivals.append((time.monotonic(), len(data)))
        return data, arrivals

    def exchange(self, request: bytes, length: int, timeout_s: float) -> bytes:
        """See `doctor_servos.Line`."""
        self._serial.reset_input_buffer()
        self._serial.write(request)
        return self.listen(timeout_s, length)[0]

    def close(self) -> None:
        """Put the settings back and let go."""
        self._serial.close()
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._settings)
        except (OSError, termios.error):
            pass  # unplugged meanwhile
        finally:
            os.close(self._fd)


def look(path: str, holders: tuple[str, ...] = ()) -> Answer:
    """See what answers on the port `path`, unless `holders` have it open; never raises for the port's sake."""
    if holders:
        return Answer(BUSY, holders=holders)
    if not os.access(path, os.R_OK | os.W_OK):
        return Answer(FORBIDDEN)
    try:
        line = SerialLine(path)
    except BlockingIOError:
        return Answer(BUSY)
    except PermissionError:
        return Answer(FORBIDDEN)
    except (OSError, termios.error) as error:
        busy = "busy" in str(error).lower()
        return Answer(BUSY) if busy else Answer(BROKEN, error=_sentence(error))
    try:
        return _identify(line)
    except (OSError, termios.error) as error:
        return Answer(BROKEN, error=_sentence(error))
    finally:
        line.close()


def _identify(line: SerialLine) -> Answer:
    heard, _ = line.listen(LISTEN_S, 1)
    if heard:
        return _recognise_stream(line)
    line.set_baudrate(doctor_servos.BAUDRATE)
    if servos := doctor_servos.find(line):
        return Answer(ARM, servos=servos)
    line.set_baudrate(FT300_BAUDRATE)
    question = ft300_frames.read_request(FT300_SLAVE, ft300_frames.SERIAL_REGISTER, FT300_WORDS)
    answer = line.exchange(question, 5 + 2 * FT300_WORDS, MODBUS_S)
    if ft300_frames.registers_in(answer, FT300_SLAVE, FT300_WORDS) is not None:
        return Answer(FT300)
    return Answer(SILENT)


def _recognise_stream(line: SerialLine) -> Answer:
    data, arrivals = line.listen(COUNT_S)
    if is_ft300(data):
        return Answer(FT300, streaming=True, rate_hz=_rate(arrivals, FT300Finder.size))
    size = skin_magnetometers(data)
    if size:
        return Answer(SKIN, magnetometers=size, rate_hz=_rate(arrivals, 16 * size + 2))
    line.set_baudrate(FT300_BAUDRATE)
    line.listen(0.05)  # what was received at the other rate
    slow, arrivals = line.listen(LISTEN_S)
    if is_ft300(slow):
        return Answer(FT300, streaming=True, rate_hz=_rate(arrivals, FT300Finder.size))
    return Answer(UNKNOWN, received=len(data), baudrate=LISTEN_BAUDRATE, sample=shown(data))


def skin_magnetometers(data: bytes) -> int:
    """How many magnetometers the skin has that sent `data`; 0 if it was none."""
    if not data.translate(None, string.printable.encode()):
        return 0  # lines of text can have the right length
    for count in range(1, MAX_MAGNETOMETERS + 1):
        finder = FrameFinder(count)
        frames = len(finder.feed(data))
        if frames >= LEAST_FRAMES and frames * finder.size > len(data) / 2:
            return count
    return 0


def is_ft300(data: bytes) -> bool:
    """Whether `data` is the stream of a Robotiq FT 300."""
    return len(FT300Finder().feed(data)) >= LEAST_FRAMES


def shown(data: bytes) -> str:
    """The first bytes, as text if they are, else as hexadecimal numbers."""
    start = data[:24]
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start):
        return repr(start.decode())
    return start[:12].hex(" ")


def find_holders(paths: list[str]) -> dict[str, tuple[str, ...]]:
    """Which other processes have which of the ports open, as far as this user may see.

    A process that has the far end of a pseudo-terminal is the device itself (a virtual lab), and does not count.
    """
    wanted: dict[str, str] = {os.path.realpath(path): path for path in paths}
    holders: dict[str, list[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        held, far_ends = _open_files(process, wanted)
        for real in held - far_ends:
            holders.setdefault(wanted[real], []).append(f"{process.name} ({_program(process)})")
    return {path: tuple(names) for path, names in holders.items()}


def _open_files(process: Path, wanted: dict[str, str]) -> tuple[set[str], set[str]]:
    """Which of `wanted` a process has open, and of which pseudo-terminals the far end."""
    held, far_ends = set(), set()
    try:
        for link in (process / "fd").iterdir():
            try:
                target = os.readlink(link)
                if target in wanted:
                    held.add(target)
                elif target.endswith("/ptmx"):
                    told = (process / "fdinfo" / link.name).read_text()
                    if index := re.search(r"tty-index:\s*(\d+)", told):
                        far_ends.add(f"/dev/pts/{index[1]}")
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass  # another user's process, or one that has just ended
    return held, far_ends


def _program(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        names = [os.path.basename(word.decode(errors="replace")) for word in words if word]
    except OSError:
        return "ended"
    script = next((name for name in names[1:] if not name.startswith("-")), "")
    return f"{names[0]} {script}" if names and names[0].startswith("python") else (names or ["?"])[0]


def _rate(arrivals: list[tuple[float, int]], size: int) -> float:
    """Frames of `size` bytes a second, from when bytes had arrived."""
    if len(arrivals) < 2 or arrivals[-1][0] <= arrivals[0][0]:
        return 0.0
    return (arrivals[-1][1] - arrivals[0][1]) / size / (arrivals[-1][0] - arrivals[0][0])


def _sentence(error: Exception) -> str:
    if isinstance(error, termios.error):
        return "it is no serial port"
    return " ".join(str(error.strerror or error).split()) if isinstance(error, OSError) else str(error)
