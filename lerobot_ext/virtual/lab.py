"""The virtual lab: one process that presents the world through the ports of one directory, in real time.

One thread owns the world, the renderer and the ZeroMQ sockets; a second one answers the servos' packets. What the
ports are called and what is said on `side` and `control` is in `link.py`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import math
import os
import queue
import selectors
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from lerobot_ext.errors import UserError
from lerobot_ext.virtual import feetech, link
from lerobot_ext.virtual.arm_ports import arm_ports
from lerobot_ext.virtual.directory import LabDirectory
from lerobot_ext.virtual.publisher import MAX_REQUEST_BYTES, Publisher
from lerobot_ext.virtual.refusals import Refusals
from lerobot_ext.virtual.render import DEPTH_UNIT_M, Cameras, camera_info
from lerobot_ext.virtual.task import TICK_S, PressTask
from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.touch import TouchSensors
from lerobot_ext.virtual.trouble import FROZEN, UNPLUGGED, Troubles
from lerobot_ext.virtual.world import JOINTS, World, load_model

logger = logging.getLogger(__name__)

JPEG_QUALITY = 90
MOST_ANSWERS = 64
AT_REST = np.zeros(len(JOINTS))
STILL = 1e-5  # radians or metres: what has moved less shows in no pixel
QUIET_S = 1.0  # after so long without a packet nobody talks to the servos
NAP_S = 0.04  # while alone, the ticks of so long are done in one go: to wake up costs as much as two of them
LATE_S = 1.0  # further behind than this, the lab lets the time go instead of catching up


@dataclass(frozen=True)
class LabConfig:
    """What a lab is started with.

    Attributes:
        dir: Its directory; None: `LEROBOT_LAB_DIR` or `/tmp/lerobot_lab`.
        wrist_port: TCP port of the wrist camera on 127.0.0.1.
        netft_port: UDP port of the Net F/T on 127.0.0.1; 0: there is none.
        seed: Of the button's heights, the operator's variation and the force sensors' noise.
        fps, width, height: Of all cameras.
        operator: Whether the scripted operator moves the leader.
        arms: 1, or 2: a right and a left one, each with its leader.
        depth_unit_m: Metres a count of the side camera's depth; 0.0001 as a D405.
        faults: Of the followers' buses.
        end_with_parent: End when the process that started the lab ends.
    """

    dir: Path | None = None
    wrist_port: int = 5601
    netft_port: int = 0
    seed: int = 0
    fps: int = 30
    width: int = 424
    height: int = 240
    operator: bool = True
    arms: int = 1
    depth_unit_m: float = DEPTH_UNIT_M
    faults: feetech.Faults = feetech.Faults()
    end_with_parent: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("wrist_port", 1, 65535),
            ("netft_port", 0, 65535),
            ("fps", 1, 90),
            ("width", 64, 1280),
            ("height", 48, 720),
            ("arms", 1, 2),
            ("depth_unit_m", 5e-5, 0.01),  # 65535 counts must reach the 3 m that the camera sees
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"--{name}={value}: expected a number from {low} to {high}.")


class Lab:
    """A lab from construction to `close`; `run` it in the thread that made it."""

    def __init__(self, config: LabConfig) -> None:
        """Open everything.

        Raises:
            UserError: If a lab runs there already, a port is taken, or something is not installed.
        """
        self.config = config
        self._stop = threading.Event()
        sys.setswitchinterval(0.0005)  # a servo must not wait 5 ms for the interpreter
        self._parent = os.getppid()
        with contextlib.ExitStack() as stack:
            self.directory = LabDirectory(link.lab_dir(config.dir))
            stack.callback(self.directory.close)
            world = World(load_model(config.arms))
            self._task = PressTask(config.seed, operator=config.operator, world=world)
            self._cameras = Cameras(self._task.world, config.width, config.height, config.depth_unit_m)
            stack.callback(self._cameras.close)
            self._camera_info = camera_info(config.width, config.height, config.fps, config.depth_unit_m)
            self._table = self._cameras.table_mark()
            self._refusals = Refusals()
            self._arms = arm_ports(config.arms, config.faults)
            names = [name for arm in self._arms for name in (*arm.buses, arm.skin)]
            self._troubles = Troubles([*names, "side", "wrist", "ft300"])
            self._terminals: dict[str, Terminal] = {}
            self._sent: dict[str, tuple] = {}  # what a frozen camera shows again and again
            self._rendered: dict[str, tuple[np.ndarray, Any]] = {}  # what was visible, and the pictures of it
            self._sense()
            for arm in self._arms:
                arm.write_calibrations(self.directory.calibration)
            skins = {arm.skin: self._terminal(arm.skin, stack, keep_open=False) for arm in self._arms}
            ft300 = self._terminal("ft300", stack, keep_open=False)
            self._touch = TouchSensors(config.seed, skins, ft300, config.netft_port)
            stack.callback(self._touch.close)
            self._buses = {name: bus for arm in self._arms for name, bus in arm.buses.items()}
            buses = {self._terminal(name, stack): bus for name, bus in self._buses.items()}
            context = zmq.Context()
            stack.callback(context.destroy, linger=0)
            self._wrist = Publisher(context, "wrist", f"tcp://127.0.0.1:{config.wrist_port}", self._refusals)
            self._side = Publisher(context, "side", f"ipc://{self.directory.path / 'side'}", self._refusals)
            # No REP socket: after a message without a delimiter from a peer that has gone, libzmq's drops the next
            # reply, whoever it is for, and its poll announces messages of which receiving makes nothing.
            self._control = context.socket(zmq.ROUTER)
            self._control.maxmsgsize = MAX_REQUEST_BYTES
            self._refusals.watch("control", self._control)
            self._control.bind(f"ipc://{self.directory.path / 'control'}")
            self._doors = zmq.Poller()  # one look at all of them costs less than trying each
            for door in (self._control, *self._refusals.monitors):
                self._doors.register(door, zmq.POLLIN)
            self._servos = ServoThread(buses, self._refusals)
            stack.callback(self._servos.close)
            self._close = stack.pop_all().close
        self._frame_number = 0

    def _terminal(self, name: str, stack: contextlib.ExitStack, *, keep_open: bool = True) -> Terminal:
        terminal = Terminal(self.directory.path / name, keep_open=keep_open, by_id=self.directory.by_id(name))
        self._terminals[name] = terminal
        stack.callback(terminal.close)
        return terminal

    def stop(self) -> None:
        """Let `run` return soon; callable from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Close every port and remove every file; harmless when repeated."""
        self._close()

    def run(self) -> None:
        """Keep the world going in real time until `stop`."""
        next_tick = next_frame = time.monotonic()
        period = 1 / self.config.fps
        while not self._stop.is_set():
            now = time.monotonic()
            if now - next_tick > LATE_S:
                logger.warning("the lab is %.2f s behind and lets the time go", now - next_tick)
                next_tick = now
            # the world comes first: on a busy computer there are fewer pictures, but time passes as it should
            if now >= next_tick:
                next_tick += TICK_S
                self._tick()
            elif now >= next_frame:
                next_frame += period * (int((now - next_frame) / period) + 1)
                self._frame()
            elif not self._alone(now):
                time.sleep(min(next_tick, next_frame) - now)
            elif self._doors.poll(math.ceil(1e3 * (min(next_tick + NAP_S, next_frame) - now))):
                time.sleep(max(0.0, next_tick - time.monotonic()))  # the next tick answers

    def _alone(self, now: float) -> bool:
        """Whether nobody can tell if a few ticks come late and together."""
        return now - self._servos.heard > QUIET_S and not self._touch.read

    def _tick(self) -> None:
        right, *left = self._arms
        read_for = right.leader.positions_read.regular_for()
        self._task.tick(*right.drives(), read_for, left[0].drives() if left else None)
        self._sense()
        self._touch.tick([arm.force for arm in self._task.world.arms], self._troubles)
        if self._doors.poll(0):
            self._answer()
        if self.config.end_with_parent and os.getppid() != self._parent:
            logger.info("the process that started the lab is gone")
            self.stop()

    def _sense(self) -> None:
        task = self._task
        leaders = [task.leader, *([task.left.joints] if task.left is not None else [])]
        for ports, arm, leader in zip(self._arms, task.world.arms, leaders, strict=True):
            ports.follower.sense(arm.joints, arm.velocities, arm.loads)
            ports.leader.sense(leader, AT_REST, AT_REST)

    def _frame(self) -> None:
        """Publish what somebody looks at."""
        for device, port, message in (
            ("side", self._side, self._side_message),
            ("wrist", self._wrist, self._wrist_message),
        ):
            trouble = self._troubles.of(device)
            if not port.wanted or trouble == UNPLUGGED:
                continue
            if trouble != FROZEN or device not in self._sent:
                self._sent[device] = message()
            port.send(*self._sent[device])
        self._frame_number += 1

    def _side_message(self) -> tuple[bytes | np.ndarray, ...]:
        header = link.SideFrame(self._frame_number, time.time() * 1000)
        pictures = self._seen("side", lambda: (self._cameras.color("side"), self._cameras.depth()))
        return msgspec.json.encode(header), *pictures

    def _wrist_message(self) -> tuple[bytes]:
        stamp = time.time()
        images = self._seen(
            "wrist", lambda: {arm.wrist: self._jpeg(arm.wrist_in_model) for arm in self._arms}
        )
        return (json.dumps({"timestamps": dict.fromkeys(images, stamp), "images": images}).encode(),)

    def _seen[Pictures](self, device: str, render: Callable[[], Pictures]) -> Pictures:
        """What a camera sees: rendered, or what it saw before if nothing has moved since."""
        now = self._task.world.visible
        then, pictures = self._rendered.get(device, (None, None))
        if then is None or np.abs(now - then).max() > STILL:
            pictures = render()
            self._rendered[device] = now, pictures
        return pictures

    def _jpeg(self, camera: str) -> str:
        """A camera's picture as LeRobot's image server sends it."""
        import cv2

        # LeRobot's image server encodes RGB as if it were BGR, and its camera decodes it likewise
        _, jpeg = cv2.imencode(".jpg", self._cameras.color(camera), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return base64.b64encode(jpeg).decode("ascii")

    def _answer(self) -> None:
        """Answer the requests that have arrived."""
        self._refusals.look()
        for _ in range(MOST_ANSWERS):  # at once: whoever floods this port does not stop the physics
            try:
                peer, *message = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(message) != 2 or message[0]:
                    raise ValueError(f"it has {len(message)} frames, expected an empty one and the request")
                reply = self._do(msgspec.json.decode(message[1], type=link.Request))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                self._refusals.note("control", f"a message that is not a request: {error}")
                reply = link.Reply(error=f"that is not a request: {error}")
            self._control.send_multipart([peer, b"", msgspec.json.encode(reply)])

    def _do(self, request: link.Request) -> link.Reply:
        actions: dict[str, Callable[[], object]] = {
            "status": lambda: None,
            "start_episode": lambda: self._start_episode(request.operate),
            "end_episode": self._task.end_episode,
            "hand": lambda: self._task.hand(request.pose),
            "fault": lambda: self._fault(request.device, request.fault),
            "stop": self.stop,
        }
        action = actions.get(request.op)
        if action is None:
            return link.Reply(error=f"there is no request '{request.op}'; there are: {', '.join(actions)}.")
        try:
            action()
        except ValueError as error:
            return link.Reply(error=str(error))
        return link.Reply(status=self.status())

    def _start_episode(self, operate: bool) -> None:
        self._arms[0].leader.positions_read.restart()
        self._task.start_episode(operate)

    def _fault(self, device: str, fault: str) -> None:
        self._troubles.set(device, fault)
        logger.info("%s: %s", device, fault or "well again")
        if bus := self._buses.get(device):
            bus.trouble(fault)
        if terminal := self._terminals.get(device):
            # ports of servos belong to the thread that answers on them
            change = terminal.unplug if fault == UNPLUGGED else terminal.plug
            self._servos.during_pause(terminal, change)

    def status(self) -> link.Status:
        """The truth, now."""
        task = self._task
        return link.Status(
            pid=os.getpid(),
            time_s=task.world.time,
            contact_force_n=task.world.normal_force,
            block_height_m=task.world.block_height,
            joints_rad=tuple(map(float, task.world.joints)),
            arms={
                ports.follower_name: tuple(map(float, arm.joints))
                for ports, arm in zip(self._arms, task.world.arms, strict=True)
            },
            in_episode=task.in_episode,
            operator=task.operator_doing,
            camera=self._camera_info,
            episodes=tuple(task.episodes),
            table_centre=self._table,
            wrist_port=self.config.wrist_port,
            wrist_cameras=tuple(ports.wrist for ports in self._arms),
            refused=self._refusals.count,
            faults=dict(self._troubles.now),
        )


class ServoThread:
    """Answers what drivers send to the servos' ports, asleep in between.

    Attributes:
        heard: When somebody last sent something, on `time.monotonic`'s clock.
    """

    def __init__(self, buses: dict[Terminal, feetech.ServoBus], refusals: Refusals | None = None) -> None:
        self.heard = -math.inf
        self._refusals = refusals or Refusals()
        self._buses = buses
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        for terminal in buses:
            self._watch(terminal)
        self._wake, self._waker = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="servos", daemon=True)
        self._thread.start()

    def _watch(self, terminal: Terminal) -> None:
        if terminal.plugged:
            self._selector.register(terminal.fd, selectors.EVENT_READ, (terminal, self._buses[terminal]))

    def during_pause(self, terminal: Terminal, change: Callable[[], None]) -> None:
        """Let `change` close or open `terminal` while nobody answers on it; returns when it is done."""
        if terminal not in self._buses:
            change()
            return
        done = threading.Event()

        def task() -> None:
            if terminal.plugged:
                self._selector.unregister(terminal.fd)
            change()
            self._watch(terminal)
            done.set()

        self._tasks.put(task)
        os.write(self._waker, b"x")
        done.wait()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake, 1)
                    if (task := self._tasks.get()) is None:
                        return
                    task()
                    break  # what the other keys stand for may have been closed
                terminal, bus = key.data
                self.heard = time.monotonic()
                skipped = bus.skipped
                if answer := bus.feed(terminal.read()):
                    terminal.write(answer)
                if bus.skipped > skipped:
                    what = f"{bus.skipped - skipped} bytes that are no packet for a servo"
                    self._refusals.note(terminal.link.name, what)

    def close(self) -> None:
        """End the thread."""
        self._tasks.put(None)
        os.write(self._waker, b"x")
        self._thread.join()
        self._selector.close()
        os.close(self._wake)
        os.close(self._waker)
