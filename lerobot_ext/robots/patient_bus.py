"""LeRobot's Feetech bus, where everything is tried again and what was tried again is counted.

A packet can be lost or spoilt at any time, more often when several joints move. When one is bad, LeRobot throws away
what the other servos said, and waits 50 ms for what does not come; here a further attempt asks only the servos that
are missing, and all attempts but the last wait no longer than answers usually take. Opening the port again is done in
`reopening`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.motors_bus import NameOrID, Value

from lerobot_ext.robots.servo_errors import ErrorWatch

try:
    import termios
except ImportError:  # Windows
    termios = None

logger = logging.getLogger(__name__)

# What pyserial raises when the port has gone; its own exception is an OSError, tcdrain's is not.
PORT_ERRORS = (OSError, termios.error) if termios else (OSError,)
PORT_GONE = "arm on {port}: the port failed ({error})"
SHORTEST_PATIENCE_MS, FULL_PATIENCE_MS = 10.0, 50.0
QUIET_S = 0.001  # nothing for so long: the servos have finished talking; a byte takes 10 us
LONGEST_TALK_S = 0.01
CONNECT_RETRIES = 9  # half a second for each servo; nobody waits for a control step while the arm connects
STATUS_BYTES = 6  # of a status packet without data: header (2), id, length, error, checksum


class PortLostError(ConnectionError):
    """The serial port itself failed: unplugged, most likely."""


class NoAnswerError(ConnectionError):
    """Servos did not answer, or not understandably, however often they were asked.

    Attributes:
        ids: Of the servos.
    """

    def __init__(self, message: str, ids: list[int]) -> None:
        super().__init__(message)
        self.ids = ids


class PatientBus(FeetechMotorsBus):
    """A Feetech bus that tries each instruction `num_retries` times more, unless asked for even more.

    Error bits in a packet whose data is good are noted in `errors`, not raised: the data is good.

    Attributes:
        num_retries: The least number of further attempts.
        retries: Further attempts so far, of any instruction.
        errors: What the servos report about themselves.
        powered: Whose torque was switched on last; None before anybody's was switched.
        answered_s: `time.perf_counter()` in the middle of the last sync read's last attempt.
    """

    num_retries = 0
    _timeout, _corrupt = -6, -7  # scservo_sdk's COMM_RX_TIMEOUT and COMM_RX_CORRUPT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See LeRobot."""
        super().__init__(*args, **kwargs)
        self.retries = 0
        self.errors = ErrorWatch({motor.id: name for name, motor in self.motors.items()})
        self.powered: set[str] | None = None
        self.answered_s = 0.0
        self._heard: dict[int, list[int]] = {}  # good status packets since the last question, by id
        self._raw = bytearray()  # what a sync read received for it
        self._took_ms: deque[float] = deque(maxlen=50)
        self._hurried = False
        self._adapt_sdk()

    @classmethod
    def like(cls, bus: FeetechMotorsBus, num_retries: int) -> PatientBus:
        """The same bus, not opened yet, with patience."""
        patient = cls(bus.port, bus.motors, bus.calibration, bus.protocol_version)
        patient.num_retries = num_retries
        return patient

    def _adapt_sdk(self) -> None:
        """Have the port alone, see every good status packet, say how long to wait; on this bus's own handlers only."""
        receive, port = self.packet_handler.rxPacket, self.port_handler
        open_port, wait_long = port.setupPort, port.setPacketTimeout

        def set_up_port(baudrate: int) -> bool:
            opened = open_port(baudrate)
            try:
                port.ser.exclusive = True  # a second program would let the arm go, and talk into its answers
            except OSError:
                port.closePort()
                raise
            return opened

        def rx_packet(port: Any) -> tuple[list[int], int]:
            packet, result = receive(port)
            if self._is_comm_success(result):
                self._hear(packet)
            return packet, result

        def set_packet_timeout(length: int) -> None:
            wait_long(length)
            if self._hurried:
                port.packet_timeout -= FULL_PATIENCE_MS - self._patience_ms()

        port.setupPort = set_up_port
        self.packet_handler.rxPacket = rx_packet
        port.setPacketTimeout = set_packet_timeout

    def _hear(self, packet: list[int]) -> None:
        id_, error = packet[2], packet[4]  # the shortest packet has six bytes
        self._heard[id_] = packet
        self.errors.note(id_, error)

    def _patience_ms(self) -> float:
        if not self._took_ms:
            return FULL_PATIENCE_MS
        usual = sorted(self._took_ms)[len(self._took_ms) * 9 // 10]  # a single slow one does not count
        return min(max(4 * usual, SHORTEST_PATIENCE_MS), FULL_PATIENCE_MS)

    @contextlib.contextmanager
    def only(self, names: Iterable[str]) -> Iterator[None]:
        """For the length of a `with` block, have no servos but these: what is written to all is written to them."""
        everyone = self.motors
        self.motors = {name: everyone[name] for name in names}
        try:
            yield
        finally:
            self.motors = everyone

    # One attempt after the other.

    def _attempts(
        self, num_retry: int, attempt: Callable[[], bool], rescue: Callable[[], bool] | None = None
    ) -> bool:
        """Call `attempt` until it says True, counting; False if it never did.

        `rescue` looks at what came after a failed attempt, and says whether that is enough.

        Raises:
            PortLostError: The port failed.
        """
        count = 1 + max(num_retry, self.num_retries)
        for number in range(count):
            self.retries += number > 0
            self._hurried = number < count - 1
            try:
                self._clear()
                start_s = time.perf_counter()
                if attempt():
                    self._took_ms.append((time.perf_counter() - start_s) * 1e3)
                    return True
                self._listen()
                if rescue is not None and rescue():
                    return True
            except PORT_ERRORS as error:
                if isinstance(error, ConnectionError):
                    raise
                raise PortLostError(PORT_GONE.format(port=self.port, error=error)) from error
            finally:
                self._hurried = False
        return False

    def _clear(self) -> None:
        # An exception in the middle of an exchange, a Ctrl-C for one, leaves the port "in use" for ever.
        self.port_handler.is_using = False
        self.port_handler.ser.reset_input_buffer()  # a late answer is not the answer to this question
        self._heard.clear()
        self._raw.clear()

    def _receive(self, expected: int) -> None:
        """Take as many bytes as the asked servos send, asleep in between, or what comes in the packet's time.

        The SDK's own loop gives up at the first bad packet, or waits for the rest of one whose length is garbled.
        """
        port = self.port_handler
        port.is_using = False
        end_s = time.perf_counter() + port.packet_timeout / 1e3
        while len(self._raw) < expected and (left_s := end_s - time.perf_counter()) > 0:
            if os.name == "posix":
                select.select([port.ser], [], [], left_s)
            self._raw += port.readPort(expected - len(self._raw))
        for packet in status_packets(self._raw):
            self._hear(packet)

    def _listen(self) -> None:
        """Wait until the line is quiet, and hear what still comes: nobody may talk into another's answer."""
        port = self.port_handler
        end_s = time.perf_counter() + LONGEST_TALK_S
        while time.perf_counter() < end_s:
            self._raw += port.readPort(4096)
            time.sleep(QUIET_S)
            if not port.getBytesAvailable():
                break
        for packet in status_packets(self._raw):
            self._hear(packet)

    def _no_answer(self, err_msg: str, comm: int, ids: list[int]) -> NoAnswerError:
        return NoAnswerError(f"{err_msg} {self.packet_handler.getTxRxResult(comm)}".strip(), ids)

    # LeRobot's instructions.

    def connect(self, handshake: bool = True) -> None:
        """See LeRobot; with more patience than later."""
        usual, self.num_retries = self.num_retries, max(self.num_retries, CONNECT_RETRIES)
        try:
            super().connect(handshake)
        finally:
            self.num_retries = usual

    def ping(self, motor: NameOrID, num_retry: int = 0, raise_on_error: bool = False) -> int | None:
        """See LeRobot; a servo that reports an error about itself has answered."""
        id_, found = self._get_motor_id(motor), {}

        def attempt() -> bool:
            found["comm"] = self._corrupt
            with contextlib.suppress(IndexError):  # as in `_read`
                found["model"], found["comm"], _ = self.packet_handler.ping(self.port_handler, id_)
            return self._is_comm_success(found["comm"])

        if self._attempts(num_retry, attempt):
            return found["model"]
        if raise_on_error:
            raise self._no_answer(f"No answer to a ping of {id_}.", found["comm"], [id_])
        return None

    def read(self, data_name: str, motor: str, *, num_retry: int = 0, **more: Any) -> Value:
        """See LeRobot."""
        return super().read(data_name, motor, num_retry=max(num_retry, self.num_retries), **more)

    def write(self, data_name: str, motor: str, value: Value, *, num_retry: int = 0, **more: Any) -> None:
        """See LeRobot."""
        super().write(data_name, motor, value, num_retry=max(num_retry, self.num_retries), **more)
        if data_name == "Torque_Enable":
            self.powered = (self.powered or set()) - {motor} | ({motor} if value else set())

    def sync_read(
        self, data_name: str, motors: Any = None, *, num_retry: int = 0, **more: Any
    ) -> dict[str, Value]:
        """See LeRobot."""
        return super().sync_read(data_name, motors, num_retry=max(num_retry, self.num_retries), **more)

    def _read(
        self,
        address: int,
        length: int,
        motor_id: int,
        *,
        num_retry: int = 0,
        raise_on_error: bool = True,
        err_msg: str = "",
    ) -> tuple[int, int, int]:
        found: dict[str, tuple[int, int, int]] = {}

        def attempt() -> bool:
            found["it"] = 0, self._corrupt, 0
            with contextlib.suppress(IndexError):  # a packet of another size: an answer to something else
                found["it"] = super(PatientBus, self)._read(address, length, motor_id, raise_on_error=False)
            return self._is_comm_success(found["it"][1])

        if not self._attempts(num_retry, attempt) and raise_on_error:
            raise self._no_answer(err_msg, found["it"][1], [motor_id])
        return found["it"]

    def _write(
        self,
        addr: int,
        length: int,
        motor_id: int,
        value: int,
        *,
        num_retry: int = 0,
        raise_on_error: bool = True,
        err_msg: str = "",
    ) -> tuple[int, int]:
        found: dict[str, tuple[int, int]] = {}

        def attempt() -> bool:
            found["it"] = super(PatientBus, self)._write(addr, length, motor_id, value, raise_on_error=False)
            return self._is_comm_success(found["it"][0])

        if not self._attempts(num_retry, attempt) and raise_on_error:
            raise self._no_answer(err_msg, found["it"][0], [motor_id])
        return found["it"]

    def _sync_read(
        self,
        addr: int,
        length: int,
        motor_ids: list[int],
        *,
        num_retry: int = 0,
        raise_on_error: bool = True,
        err_msg: str = "",
    ) -> tuple[dict[int, int], int]:
        values: dict[int, int] = {}
        comm = self._comm_success

        def missing() -> list[int]:
            return [id_ for id_ in motor_ids if id_ not in values]

        def collect() -> bool:
            for id_, packet in self._heard.items():
                if packet[3] == length + 2:
                    values[id_] = int.from_bytes(bytes(packet[5 : 5 + length]), "little")
            return not missing()

        def attempt() -> bool:
            nonlocal comm
            start_s = time.perf_counter()
            self._setup_sync_reader(missing(), addr, length)
            comm = self.sync_reader.txPacket()
            if not self._is_comm_success(comm):
                return False
            self._receive((STATUS_BYTES + length) * len(missing()))
            comm = self._corrupt if self._raw else self._timeout
            self.answered_s = (start_s + time.perf_counter()) / 2
            return collect()

        if self._attempts(num_retry, attempt, rescue=collect):
            comm = self._comm_success
        elif raise_on_error:
            raise self._no_answer(err_msg, comm, missing())
        return {id_: values.get(id_, 0) for id_ in motor_ids}, comm

    def _sync_write(self, *args: Any, **kwargs: Any) -> int:
        self.port_handler.is_using = False
        try:
            return super()._sync_write(*args, **kwargs)
        except PORT_ERRORS as error:
            if isinstance(error, ConnectionError):
                raise
            raise PortLostError(PORT_GONE.format(port=self.port, error=error)) from error


def status_packets(data: bytes | bytearray) -> list[list[int]]:
    """Every status packet in `data` whose checksum is right."""
    packets, at = [], 0
    while (at := data.find(b"\xff\xff", at)) >= 0 and at + STATUS_BYTES <= len(data):
        end = at + 4 + data[at + 3]
        body = data[at + 2 : end - 1]
        if end <= len(data) and len(body) >= 3 and data[end - 1] == ~sum(body) & 0xFF and body[0] <= 0xFD:
            packets.append(list(data[at:end]))
            at = end
        else:
            at += 1
    return packets
