"""How true recorded depth is: stock LeRobot's RealSense driver and ours, against MuJoCo, in the colour image's pixels.

The lab's world is rendered at moments of a press; a librealsense software device is fed with it and librealsense's own
recorder writes a bag, once with a depth unit of 1 mm (D415, D435, D455) and once of 0.1 mm (D405). Both drivers play that
bag through librealsense and are read as their SO followers read them; what they give goes through LeRobot's depth
video (12 bits) and is decoded again. The truth is the world's depth rendered from the colour camera, which no driver
sees. Stock's class is LeRobot's own but for one line that opens the file instead of a device on USB; its encoder has
LeRobot's defaults, ours the camera's range.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import msgspec
import numpy as np

SERIAL = "0123456789"  # stock takes what is not a number for a name and looks for it on USB
HOLD = 5  # frames that each scene is shown
FPS = 30
NEAR_M, FAR_M = 0.25, 2.0  # the bench's working volume: arm, table and the wall behind
BIT, BITS = 8, 8  # the scene's number lies in the colour image's corner, as squares of so many pixels
FLAT_MM = 20.0  # truth that differs by less among the 5x5 pixels around is no edge
PLAY_S = 60.0


@dataclass(frozen=True)
class Scene:
    """One moment of the world, as the camera's two sensors see it, and the truth."""

    color: np.ndarray  # (H, W, 3) uint8, with the scene's number in it
    counts: np.ndarray  # (H, W) uint16, the depth camera's
    truth_m: np.ndarray  # (H, W) float32, in the colour camera's pixels


def scenes(number: int, size: tuple[int, int], unit_m: float, seed: int) -> list[Scene]:
    """Moments of scripted presses, a fifth of a second apart; the same ones for every unit."""
    from lerobot_ext.virtual.render import Cameras
    from lerobot_ext.virtual.task import TICK_S, PressTask
    from lerobot_ext.virtual.world import Drive

    task = PressTask(seed)
    cameras = Cameras(task.world, *size, unit_m)
    found: list[Scene] = []
    try:
        task.start_episode()
        for tick in range(number * round(0.2 / TICK_S)):
            leader = Drive(task.leader, np.zeros(6, bool), np.ones(6), np.ones(6))
            task.tick(Drive.at(task.leader), leader, read_for=1.0)
            if tick % round(0.2 / TICK_S) == 0:
                color = cameras.color("side")
                for bit in range(BITS):
                    color[:BIT, bit * BIT : (bit + 1) * BIT] = 255 * (len(found) >> bit & 1)
                found.append(Scene(color, cameras.depth(), cameras.depth_m("side")))
    finally:
        cameras.close()
    return found


def number_of(color: np.ndarray) -> int:
    """Which scene a picture shows."""
    return sum(int(color[BIT // 2, bit * BIT + BIT // 2, 0] > 127) << bit for bit in range(BITS))


def record_bag(path: Path, shown: list[Scene], unit_m: float) -> None:
    """Let librealsense's recorder write what a device that sees `shown` sends."""
    import pyrealsense2 as rs

    from lerobot_ext.virtual.link import SideFrame
    from lerobot_ext.virtual.realsense import software_device
    from lerobot_ext.virtual.render import camera_info

    height, width = shown[0].counts.shape
    info = msgspec.structs.replace(camera_info(width, height, FPS, unit_m), serial=SERIAL)
    device, (depth, color) = software_device(info)
    pipeline, config = rs.pipeline(), rs.config()
    config.enable_record_to_file(str(path))
    pipeline.set_device(device)
    pipeline.start(config)
    for frame in common.progress(range(len(shown) * HOLD), "bag", "frame"):
        scene, header = shown[frame // HOLD], SideFrame(frame + 1, time.time() * 1e3)
        depth.push(header, scene.counts.view(np.uint8).ravel())
        color.push(header, scene.color.ravel())
        time.sleep(1 / FPS)
    pipeline.get_active_profile().get_device().as_recorder().pause()
    pipeline.stop()


@contextmanager
def stock(path: Path, size: tuple[int, int]) -> Iterator[Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """LeRobot's driver; what is yielded reads as LeRobot's SO follower does."""
    from lerobot.cameras.realsense import RealSenseCamera, RealSenseCameraConfig

    class FromFile(RealSenseCamera):
        def _configure_rs_pipeline_config(self, rs_config: Any) -> None:
            super()._configure_rs_pipeline_config(rs_config)
            rs_config.enable_device_from_file(str(path), True)

    config = RealSenseCameraConfig(
        serial_number_or_name=SERIAL, width=size[0], height=size[1], fps=FPS, use_depth=True
    )
    camera = FromFile(config)
    camera.connect()
    try:
        yield lambda: (camera.read_latest(), camera.read_latest_depth())
    finally:
        camera.disconnect()


@contextmanager
def ours(
    path: Path, size: tuple[int, int], **fields: Any
) -> Iterator[Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """Our driver; what is yielded reads as our SO follower does."""
    from lerobot_ext.cameras import RealSenseRGBDCameraConfig
    from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera

    config = RealSenseRGBDCameraConfig(
        serial_number_or_name=str(path), width=size[0], height=size[1], fps=FPS, bag_repeat=True, **fields
    )
    with RealSenseRGBDCamera(config) as camera:
        yield camera.read_latest_combined


def watch(read: Callable[[], tuple[np.ndarray, np.ndarray]], number: int) -> list[np.ndarray]:
    """Depth of every scene, each as it is when it was seen for a second time running."""
    found: dict[int, np.ndarray] = {}
    before, end = -1, time.monotonic() + PLAY_S
    while len(found) < number:
        if time.monotonic() > end:
            raise TimeoutError(f"only {len(found)} of {number} scenes were seen within {PLAY_S:.0f} s")
        color, depth = read()
        scene = number_of(color)
        if scene == before and scene < number:
            found.setdefault(scene, depth.copy())
        before = scene
        time.sleep(1 / FPS)
    return [found[scene] for scene in range(number)]


def recorded(depths: list[np.ndarray], encoder: Any, folder: Path) -> tuple[np.ndarray, float]:
    """The depths as LeRobot gives them back from its video: (n, H, W) metres, 0 where there is none; and MB on disk."""
    from lerobot.datasets import LeRobotDataset

    shutil.rmtree(folder, ignore_errors=True)
    key = "observation.images.side_depth"
    feature = {
        "dtype": "video",
        "shape": depths[0].shape,
        "names": ["height", "width", "channels"],
        "info": {"is_depth_map": True},
    }
    dataset = LeRobotDataset.create(
        "bench/depth", FPS, {key: feature}, root=folder, depth_encoder=encoder, use_videos=True
    )
    for depth in depths:
        dataset.add_frame({key: depth, "task": "press"})
    dataset.save_episode()
    dataset.finalize()
    back = LeRobotDataset("bench/depth", root=folder, depth_output_unit="m", video_backend="pyav")
    metres = np.stack([back[index][key].numpy()[0] for index in range(len(depths))])
    # What had no depth comes back as the smallest that the encoder knows.
    metres[metres <= back.meta.features[key]["info"]["video.depth_min"] + 1e-5] = 0
    size = sum(file.stat().st_size for file in folder.rglob("*.mp4"))
    return metres, size / 1e6


def figures(metres: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Errors in millimetres over all pixels that have depth; `flat` leaves out those beside an edge."""
    import cv2

    kernel = np.ones((5, 5), np.uint8)
    flat = np.stack([cv2.dilate(t, kernel) - cv2.erode(t, kernel) for t in truth]) < FLAT_MM / 1e3
    seen = metres > 0
    error = (metres - truth)[seen].astype(np.float64) * 1e3
    on_flat = (metres - truth)[seen & flat].astype(np.float64) * 1e3
    return {
        "rms_mm": float(np.sqrt(np.mean(error**2))),
        "bias_mm": float(error.mean()),
        "p50_mm": float(np.percentile(np.abs(error), 50)),
        "p99_mm": float(np.percentile(np.abs(error), 99)),
        "rms_flat_mm": float(np.sqrt(np.mean(on_flat**2))),
        "valid_pct": 100 * float(seen.mean()),
    }


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row a depth unit and driver."""
    from lerobot.configs.video import DepthEncoderConfig

    from lerobot_ext.recording.depth_range import ROOM_M

    size = (args.width, args.height)
    fitted = DepthEncoderConfig(depth_min=NEAR_M - ROOM_M, depth_max=FAR_M)
    ranged = {"depth_min_m": NEAR_M, "depth_max_m": FAR_M}
    drivers = {
        "stock": (stock, {}, None),
        "ours, default range": (ours, {}, None),
        "ours, uint16 mm": (ours, ranged, fitted),
        "ours, float32 m": (ours, ranged | {"depth_dtype": "float32"}, fitted),
    }
    rows = []
    for unit_m in (0.001, 0.0001):
        shown = scenes(args.scenes, size, unit_m, args.seed)
        truth = np.stack([scene.truth_m for scene in shown])
        bag = folder / f"{unit_m}.bag"
        record_bag(bag, shown, unit_m)
        for name, (driver, fields, encoder) in drivers.items():
            with driver(bag, size, **fields) as read:
                depths = watch(read, len(shown))
            metres, size_mb = recorded(depths, encoder, folder / "dataset")
            live = np.stack([d[..., 0] for d in depths]) * (0.001 if depths[0].dtype == np.uint16 else 1.0)
            before = figures(live.astype(np.float32), truth)
            rows.append(
                {
                    "unit": f"{unit_m * 1e3:g} mm",
                    "driver": name,
                    **figures(metres, truth),
                    "unrecorded_rms_mm": before["rms_mm"],
                    "unrecorded_rms_flat_mm": before["rms_flat_mm"],
                    "copied_kb": (depths[0].nbytes + 3 * args.width * args.height) / 1e3,
                    "video_mb": size_mb,
                }
            )
        bag.unlink()
    return rows


def main() -> None:
    """Run it."""
    parser = common.parser(__doc__)
    parser.add_argument("--scenes", type=int, default=30, help="moments of a press (default %(default)s)")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    args = parser.parse_args()
    if args.quick:
        args.scenes, args.width, args.height = 8, 424, 240
    with tempfile.TemporaryDirectory(prefix="depth_truth") as folder:
        rows = measure(args, Path(folder))
    common.print_table(
        rows, f"recorded depth against the world's, {args.scenes} scenes of {args.width}x{args.height}"
    )
    for unit_m in (0.001, 0.0001):
        of_unit = {row["driver"]: row for row in rows if row["unit"] == f"{unit_m * 1e3:g} mm"}
        times = common.ratio(of_unit["ours, float32 m"]["rms_mm"], of_unit["stock"]["rms_mm"])
        print(f"unit {unit_m * 1e3:g} mm: stock's RMS error is {times:.1f} times ours")
    left = [thread.name for thread in threading.enumerate() if "realsense" in thread.name]
    assert not left, left
    common.save("depth_truth", rows, args)


if __name__ == "__main__":
    main()
