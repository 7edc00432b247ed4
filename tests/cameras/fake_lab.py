"""A publisher that speaks the lab's protocol and knows exactly what it showed."""

import threading
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq

from lerobot_ext.virtual.link import CameraInfo, Episode, Intrinsics, Reply, Request, SideFrame, Status

W, H = 64, 48
PINHOLE = Intrinsics(width=W, height=H, fx=50.0, fy=50.0, ppx=W / 2, ppy=H / 2)

VERDICT = Episode(
    index=0, success=True, reason="held", peak_force_n=2, hold_s=1.1, block_height_m=0.03, duration_s=6
)


def camera_info(unit_m: float = 0.001, baseline_m: float = 0.0, fps: int = 30) -> CameraInfo:
    return CameraInfo(
        serial="f4k3", name="Fake D435", firmware="1.2.3", fps=fps, depth_units_m=unit_m,
        color=PINHOLE, depth=PINHOLE, depth_to_color_m=(baseline_m, 0.0, 0.0),
    )  # fmt: skip


@dataclass
class FakeLab:
    """`side` and `control` of a lab, in threads of this process; frame n shows n in both images."""

    directory: object
    info: CameraInfo = field(default_factory=camera_info)
    base: int = 1000  # raw depth of frame n is base + n % 256 everywhere
    period_s: float = 1 / 60
    silent: bool = False  # publish nothing
    frozen: bool = False  # publish the same frame again and again
    skip: int = 0  # leave out so many frame numbers once
    unplugged: bool = False
    scene: object = None  # frame number -> (H, W) uint16 raw depth; None: base + n % 256 everywhere
    requests: list = field(default_factory=list)

    def __enter__(self):
        self._stop = threading.Event()
        # Bound before the threads start, so that a client always finds them.
        self._context = zmq.Context()
        self._pub, self._rep = self._context.socket(zmq.PUB), self._context.socket(zmq.REP)
        for socket, name in ((self._pub, "side"), (self._rep, "control")):
            socket.linger = 0
            socket.bind(f"ipc://{self.directory}/{name}")
        self._threads = [threading.Thread(target=t) for t in (self._publish, self._answer)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._pub.close()
        self._rep.close()
        self._context.term()

    @property
    def name(self) -> str:
        return f"virtual:{self.directory}/side"

    def _publish(self):
        n, message = 0, []
        while not self._stop.wait(self.period_s):
            if self.silent or self.unplugged:
                continue
            if self.frozen:
                self._pub.send_multipart(message)
                continue
            n, self.skip = n + 1 + self.skip, 0
            color = np.full((H, W, 3), n % 256, np.uint8)
            color[..., 2] = 7
            depth = np.full((H, W), self.base + n % 256, np.uint16)
            depth[0, 0] = 0
            if self.scene is not None:
                depth = self.scene(n)
            header = SideFrame(frame_number=n, timestamp_ms=time.time() * 1e3)
            message = [msgspec.json.encode(header), color, depth]
            self._pub.send_multipart(message)

    def _answer(self):
        in_episode, episodes = False, ()
        while not self._stop.is_set():
            if self._rep.poll(20):
                request = msgspec.json.decode(self._rep.recv(), type=Request)
                self.requests.append(request)
                if request.op == "start_episode":
                    in_episode = True
                elif request.op == "end_episode":
                    in_episode = False
                    episodes += (VERDICT,)
                status = Status(
                    pid=1, time_s=0, contact_force_n=0, block_height_m=0.03, joints_rad=(0.0,) * 6,
                    in_episode=in_episode, operator="home", camera=self.info, episodes=episodes,
                    faults={"side": "unplugged"} if self.unplugged else {},
                )  # fmt: skip
                self._rep.send(msgspec.json.encode(Reply(status=status)))
