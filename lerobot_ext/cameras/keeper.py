"""Keeps one camera going: opens it, notices when it is gone or stands still, and opens it again.

What runs while the camera is open is a `Session`'s; readers ask the slot, which lives as long as the camera does.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from lerobot_ext.cameras import bag
from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.counts import FrameCounter
from lerobot_ext.cameras.frameset import Frameset, FramesetSlot, Loss
from lerobot_ext.cameras.session import DeviceFacts, Session

logger = logging.getLogger(__name__)

WATCH_S = 0.1
SILENT_S = 1.0  # without a new frame for so long, the bus is asked whether the device is still there
FROZEN_S = 6.0  # without one for so long, the camera is opened anew though it is there
RETRY_S = 0.5
ROOM_S = 1.0  # how often the disk of a recording is looked at
JOIN_S = 5.0


class Keeper:
    """A camera from construction to `close`.

    Raises:
        ConnectionError: It cannot be opened, or the file to record into exists.
    """

    def __init__(self, config: RealSenseRGBDCameraConfig):
        self._config = config
        self._label = f"camera '{config.serial_number_or_name}'"
        self.slot = FramesetSlot()
        self.counter = FrameCounter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._loss: Loss | None = None
        self._record_to = bag.path_of(config.record_bag) if config.record_bag else None
        if self._record_to is not None and self._record_to.exists():
            raise ConnectionError(
                f"record_bag: {self._record_to} exists already, and a recording is never overwritten; move it away or "
                "give another name"
            )
        self._room_asked_s = 0.0
        if self._record_to is not None and (free := bag.free_bytes(self._record_to)) < bag.RESERVE_BYTES:
            raise ConnectionError(
                f"record_bag: only {free / 1e6:.0f} MB are free for {self._record_to}, expected "
                f"{bag.RESERVE_BYTES / 1e6:.0f} MB or more; make room, or give another disk"
            )
        self._session: Session | None = None
        self._session = self._open(self._record_to)
        self.facts: DeviceFacts = self._session.facts
        self._thread = threading.Thread(
            target=self._watch, name=f"realsense-keeper-{self.facts.serial}", daemon=True
        )
        self._thread.start()

    @property
    def clock(self) -> str:
        """Whose time the newest frame has, in librealsense's word; empty before the first."""
        session = self._session
        return session.clock if session is not None else ""

    def _open(self, record_to: Path | None, serial: str = "", settle_s: float = 0.0) -> Session:
        current: list[Session] = []

        def publish(frameset: Frameset) -> None:
            with self._lock:
                # A session that was given up may still be reading its last frame.
                if current and self._session is not current[0]:
                    return
                if self._loss is not None:
                    self._back()
                self.slot.publish(frameset)

        session = Session(
            self._config,
            self.counter,
            publish,
            serial=serial,
            record_to=record_to,
            settle_s=settle_s,
        )
        current.append(session)
        return session

    def _back(self) -> None:
        self.counter.reconnects += 1
        gone_s = time.perf_counter() - self._loss.since_s
        logger.warning("%s is back after %.1f s (reconnect %d)", self._label, gone_s, self.counter.reconnects)
        self._loss = None

    def _watch(self) -> None:
        """The watching thread."""
        while not self._stop.wait(WATCH_S):
            session = self._session
            if session is not None:
                self._watch_room(session)
                if session.ended:
                    self.slot.fail(ConnectionError(session.ended))
                    return
                if reason := self._trouble(session):
                    self._give_up(session, reason)
            elif not self._reopen():
                return

    def _watch_room(self, session: Session) -> None:
        """Stop recording before the disk is full."""
        if self._record_to is None or time.perf_counter() - self._room_asked_s < ROOM_S:
            return
        self._room_asked_s = time.perf_counter()
        if (free := bag.free_bytes(self._record_to)) < bag.RESERVE_BYTES:
            session.pause_recording()
            logger.error(
                "%s: %s stops here: only %.0f MB are free on its disk; the camera goes on without it",
                self._label,
                self._record_to,
                free / 1e6,
            )
            self._record_to = None

    def _trouble(self, session: Session) -> str:
        """What is wrong with a session, if it is to be given up."""
        if session.failure:
            return session.failure
        silent_s = time.perf_counter() - session.new_s
        if silent_s > SILENT_S and (reason := session.missing()):
            return reason
        if silent_s > FROZEN_S and session.live:
            return f"it is there but gave no new frame for {silent_s:.0f} s"
        return ""

    def _give_up(self, session: Session, reason: str) -> None:
        with self._lock:
            self._session = None
            if self._loss is None:
                self._loss = Loss(reason, self._config.reconnect_s)
                # Said once, however many attempts follow.
                logger.warning("%s: %s", self._label, self._loss)
            self.slot.lose(self._loss)
        session.close()

    def _reopen(self) -> bool:
        """Try once to open the camera; False when it is not tried any more."""
        loss = self._loss
        if loss.left_s <= 0:
            self.slot.fail(
                ConnectionError(
                    f"lost at {loss.since}: {loss.reason}; it did not come back within {loss.tries_s:g} s "
                    "(reconnect_s): plug it in, then disconnect and connect the camera, or start again"
                )
            )
            logger.error("%s: did not come back within %g s (reconnect_s)", self._label, loss.tries_s)
            return False
        record_to = bag.free_path(self._record_to) if self._record_to is not None else None
        try:
            session = self._open(record_to, self.facts.serial, self._config.warmup_s)
        except Exception as error:  # librealsense and the lab's client have errors of their own
            logger.debug("%s: not yet: %s", self._label, error)
            self._stop.wait(RETRY_S)
            return True
        with self._lock:
            self._session, self.facts = session, session.facts
        return not self._stop.is_set()

    def close(self) -> None:
        """Release the device. Idempotent, never raises."""
        self._stop.set()
        self.slot.fail(ConnectionError("the camera was disconnected"))
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()
