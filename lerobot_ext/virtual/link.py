"""What the lab's process and its clients say to each other; no physics and no device protocol here.

The lab keeps everything in one directory, whose names a YAML can hold:

    follower, leader, skin   links to pseudo-terminals (Feetech bus, Feetech bus, AnySkin stream)
    ft300                    link to a pseudo-terminal (Robotiq FT 300: Modbus RTU and its stream)
    serial/by-id/            the same ports under names that stay when a port comes back under another one
    side                     ZeroMQ PUB over ipc: the frames of the virtual RealSense, `SideFrame` + two buffers
    control                  ZeroMQ REP over ipc: one `Request` in, one `Reply` out, as JSON
    calibration/             follower.json and leader.json, as LeRobot's calibration would have written them
    lock                     held (flock) by the running lab; says its pid

With two arms there are follower_right, follower_left and so on for follower, leader and skin, and their calibrations.

The directory is `LEROBOT_LAB_DIR` or `/tmp/lerobot_lab`.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

DEFAULT_DIR = "/tmp/lerobot_lab"


def lab_dir(path: str | Path | None = None) -> Path:
    """The directory of the lab: `path`, else `LEROBOT_LAB_DIR`, else `/tmp/lerobot_lab`."""
    return Path(path or os.environ.get("LEROBOT_LAB_DIR") or DEFAULT_DIR)


class Intrinsics(msgspec.Struct, frozen=True):
    """A pinhole camera without distortion, in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    ppx: float
    ppy: float


class CameraInfo(msgspec.Struct, frozen=True):
    """What a RealSense tells about itself.

    `depth_to_color_m` is a translation; the axes are parallel. `stereo_baseline_m` lies between the two infrared
    cameras that depth is measured with.
    """

    serial: str
    name: str
    firmware: str
    fps: int
    depth_units_m: float
    color: Intrinsics
    depth: Intrinsics
    depth_to_color_m: tuple[float, float, float]
    stereo_baseline_m: float = 0.05


class TableMark(msgspec.Struct, frozen=True):
    """The middle of the white cross on the table: its pixel in the colour image, and the true depth there."""

    column: int
    row: int
    depth_m: float


class SideFrame(msgspec.Struct, frozen=True):
    """Header of one frameset on `side`; then come color (H, W, 3) uint8 RGB and depth (H, W) uint16 raw units."""

    frame_number: int
    timestamp_ms: float  # time.time() * 1000 at the instant that was rendered


class Episode(msgspec.Struct, frozen=True):
    """The lab's verdict on one episode of the task press.

    Attributes:
        index: Counts the episodes since the lab started, from 0.
        success: Held 1 to 3 N for a second, went home, and never passed 6 N.
        reason: One sentence: why it is a success or what was missing.
        peak_force_n: Largest true contact force.
        hold_s: Longest unbroken time with 1 N <= force <= 3 N.
        block_height_m: Height of the block's top above the table.
        duration_s: From start to end.
    """

    index: int
    success: bool
    reason: str
    peak_force_n: float
    hold_s: float
    block_height_m: float
    duration_s: float


class Status(msgspec.Struct, frozen=True):
    """The truth, now."""

    pid: int
    time_s: float
    contact_force_n: float
    block_height_m: float
    joints_rad: tuple[float, ...]
    in_episode: bool
    operator: str  # what the scripted operator is doing: "home", "down", "hold", "up"
    camera: CameraInfo
    episodes: tuple[Episode, ...]
    table_centre: TableMark | None = None
    wrist_port: int = 0
    refused: int = 0  # what came to the lab's ports and was not for them
    arms: dict[
        str, tuple[float, ...]
    ] = {}  # every follower's joint angles, rad; joints_rad has the one that presses
    wrist_cameras: tuple[str, ...] = ("wrist",)  # their names in LeRobot's ZMQ messages
    faults: dict[str, str] = {}  # what is wrong on request, by device: "unplugged", "frozen", ...


class Request(msgspec.Struct, frozen=True):
    """One question to the lab; `op` is one of OPS.

    `operate` belongs to start_episode, `pose` to hand, `device` and `fault` (see `trouble.py`) to fault.
    """

    op: str
    operate: bool = True  # whether the scripted operator shall move the leader in this episode
    pose: str = (
        "home"  # where the hand takes unpowered arms: "middle", "sweep" (through their ranges) or "home"
    )
    device: str = ""
    fault: str = ""  # empty: the device is well again


OPS = ("status", "start_episode", "end_episode", "hand", "fault", "stop")


class Reply(msgspec.Struct, frozen=True):
    """Exactly one of the fields is set: `status` always unless `error`."""

    status: Status | None = None
    error: str | None = None
