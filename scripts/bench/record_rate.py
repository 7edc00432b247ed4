"""Whether recording keeps its rate: stock LeRobot's SO follower and ours, with the same cameras and encoders, in turn.

RealSense colour and depth 640x480, wrist camera 640x480, joints at 30 fps, on a virtual lab in its own process; ours
records the skin, too, with ages, journal and durable episodes. A frame is late that comes more than 1.5 periods after
the one before. Every turn is a process of its own that runs LeRobot's `record_loop`: the stock one never loads our
plugin, only the camera type `realsense_rgbd`, because librealsense's software device can be opened by nothing else; it
is read the stock way, `read_latest` and then `read_latest_depth`. The lab's rendering takes a share of the same cores.

    python scripts/bench/record_rate.py [--quick] [--seconds=60] [--turns=3]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

WHO = ("stock", "ours")
FPS = 30
LATE = 1.5  # periods
ATTEMPTS = 5  # a stock follower gives up at the first packet that is late, while connecting and in a run
WARM_UP = 15  # frames of each turn that do not count: encoders open, caches fill


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--seconds", type=float, help="of recording, each (default 60; quick 10)")
    parser.add_argument("--turns", type=int, help="in which each records them (default 3; quick 1)")
    parser.add_argument("--width", type=int, default=640, help="of all pictures (default %(default)s)")
    parser.add_argument("--height", type=int, default=480, help="of all pictures (default %(default)s)")
    parser.add_argument("--child", choices=WHO, help=argparse.SUPPRESS)
    parser.add_argument("--lab", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--wrist_port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(record(arguments)))
        return
    arguments.seconds = arguments.seconds or (10 if arguments.quick else 60)
    arguments.turns = arguments.turns or (1 if arguments.quick else 3)

    from lerobot_ext.virtual.testing import running_lab

    turns: dict[str, list[dict]] = {who: [] for who in WHO}
    size = {"width": arguments.width, "height": arguments.height}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_lab(Path(folder), seed=arguments.seed, **size) as lab,
    ):
        for turn in common.progress(range(arguments.turns), "turns", "turn"):
            # whoever comes first meets the machine as the turn before left it
            for who in WHO if turn % 2 == 0 else reversed(WHO):
                turns[who].append(child(who, arguments, lab))
    figures = {who: pool(results) for who, results in turns.items()}
    common.print_table(
        [row(who, figure) for who, figure in figures.items()],
        f"Recording at {FPS} fps: colour and depth {arguments.width}x{arguments.height}, wrist "
        f"{arguments.width}x{arguments.height}, {arguments.seconds:g} s in {arguments.turns} turns each",
    )
    ours, stock = figures["ours"], figures["stock"]
    common.print_table(
        [{"age in ms, ours": device, **ages} for device, ages in ours["ages_ms"].items()],
        "How old the newest data of each device is when the joints are read",
    )
    print(
        f"\nlate by more than half a period: stock {100 * stock['late']:.2f} %, ours {100 * ours['late']:.2f} %; CPU a "
        f"frame: ours is {ours['cpu_ms'] / stock['cpu_ms']:.2f} of stock's"
    )
    common.save("record_rate", {"figures": figures, "turns": turns}, arguments)


def child(who: str, arguments: argparse.Namespace, lab: Any) -> dict[str, Any]:
    """One turn of one of the two, in a process of its own."""
    words = [f"--seconds={arguments.seconds / arguments.turns}", f"--lab={lab.directory}", f"--child={who}"]
    words += [f"--{key}={getattr(arguments, key)}" for key in ("width", "height")]
    for failures in range(ATTEMPTS):
        done = subprocess.run(
            [sys.executable, __file__, *words, f"--wrist_port={lab.wrist_port}"],
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"failures": failures}
    raise SystemExit(f"{who} failed {ATTEMPTS} times:\n{done.stderr[-3000:]}")


def record(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the child does: record one episode with LeRobot's loop and say how it went."""
    logging.disable(logging.WARNING)  # LeRobot warns of every slow frame; we count them
    if arguments.child == "ours":
        import lerobot_robot_ext  # noqa: F401  (what LeRobot's plugin discovery imports)
    from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset
    from lerobot.processor import make_default_processors
    from lerobot.scripts.lerobot_record import record_loop
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig
    from lerobot.utils.feature_utils import hw_to_dataset_features

    import lerobot_ext.cameras  # noqa: F401  (the camera type, for both)

    robot = make_robot(arguments)
    leader = SO101LeaderConfig(
        port=str(arguments.lab / "leader"), id="leader", calibration_dir=arguments.lab / "calibration"
    )
    teleop = SO101Leader(leader)
    starts: list[float] = []
    ages: list[dict[str, float]] = []
    actions, robot_actions, _ = make_default_processors()

    def observed(observation: dict) -> dict:
        """LeRobot calls this right after each observation."""
        starts.append(time.perf_counter())
        if arguments.child == "ours":
            ages.append(robot.last_report.ages_ms)
        return observation

    taken: list[float] = []
    read = robot.get_observation

    def timed() -> dict:
        started = time.perf_counter()
        observation = read()
        taken.append(time.perf_counter() - started)
        return observation

    robot.get_observation = timed
    teleop.connect()
    robot.connect()
    with tempfile.TemporaryDirectory() as folder:
        dataset = LeRobotDataset.create(
            "lab/rate",
            FPS,
            root=Path(folder) / "dataset",
            robot_type=robot.name,
            features=hw_to_dataset_features(robot.observation_features, "observation")
            | hw_to_dataset_features(robot.action_features, "action"),
            rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="veryfast"),
            depth_encoder=DepthEncoderConfig(preset="ultrafast", depth_min=0.1, depth_max=2.0, use_log=False),
            encoder_threads=1,
            streaming_encoding=True,
            encoder_queue_maxsize=300,
        )
        before, begun = time.process_time(), time.perf_counter()
        record_loop(
            robot=robot,
            events={"exit_early": False, "rerecord_episode": False, "stop_recording": False},
            fps=FPS,
            teleop_action_processor=actions,
            robot_action_processor=robot_actions,
            robot_observation_processor=observed,
            teleop=teleop,
            dataset=dataset,
            control_time_s=arguments.seconds,
            single_task="press",
        )
        cpu_s, loop_s = time.process_time() - before, time.perf_counter() - begun
        started = time.perf_counter()
        dataset.save_episode()
        save_s = time.perf_counter() - started
        dataset.finalize()
    robot.disconnect()
    teleop.disconnect()
    periods = np.diff(starts[WARM_UP:])
    return {
        "periods_s": periods.tolist(),
        "observation_s": taken[WARM_UP:],
        "ages_ms": {name: [each[name] for each in ages[WARM_UP:]] for name in (ages[0] if ages else {})},
        "frames": len(starts),
        "cpu_s": cpu_s,
        "loop_s": loop_s,
        "save_s": save_s,
    }


def make_robot(arguments: argparse.Namespace) -> Any:
    """Stock's follower or ours, on the lab."""
    from lerobot.cameras.zmq import ZMQCameraConfig
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig

    picture = {"fps": FPS, "width": arguments.width, "height": arguments.height}
    given = {
        "port": str(arguments.lab / "follower"),
        "id": "follower",
        "calibration_dir": arguments.lab / "calibration",
        "cameras": {
            "side": RealSenseRGBDCameraConfig(
                serial_number_or_name=f"virtual:{arguments.lab / 'side'}", **picture
            ),
            "wrist": ZMQCameraConfig(
                server_address="127.0.0.1", port=arguments.wrist_port, camera_name="wrist", **picture
            ),
        },
    }
    if arguments.child == "stock":
        return SO101Follower(SO101FollowerConfig(**given))
    from lerobot_ext.robots import SO101FollowerExtConfig
    from lerobot_ext.robots.so_follower_ext import SO101FollowerExt
    from lerobot_ext.sensors import AnySkinConfig

    sensors = {"skin": AnySkinConfig(port=str(arguments.lab / "skin"))}
    return SO101FollowerExt(SO101FollowerExtConfig(force_sensors=sensors, **given))


def pool(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one, over its turns."""
    periods = np.concatenate([result["periods_s"] for result in results])
    names = list(results[0]["ages_ms"])
    ages = {name: np.concatenate([result["ages_ms"][name] for result in results]) for name in names}
    return {
        "frames": sum(result["frames"] for result in results),
        "late": float((periods > LATE / FPS).mean()),
        "failures": sum(result["failures"] for result in results),
        "late_by_turn": [float((np.array(r["periods_s"]) > LATE / FPS).mean()) for r in results],
        "period_ms": common.percentiles(periods),
        "observation_ms": common.percentiles(np.concatenate([result["observation_s"] for result in results])),
        "cores": sum(r["cpu_s"] for r in results) / sum(r["loop_s"] for r in results),
        "cpu_ms": 1e3 * sum(r["cpu_s"] for r in results) / sum(r["frames"] for r in results),
        "save_ms": 1e3 * float(np.mean([result["save_s"] for result in results])),
        "ages_ms": {name: common.percentiles(known(sample), 1) for name, sample in ages.items()},
    }


def known(ages: np.ndarray) -> np.ndarray:
    """Those that are numbers; one of a device that never gave data is nan alone."""
    found = ages[np.isfinite(ages)]
    return found if len(found) else np.array([math.nan])


def row(who: str, figure: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    return {
        "": who,
        "frames": figure["frames"],
        "late %": 100 * figure["late"],
        "period p50 ms": figure["period_ms"]["p50"],
        "p99": figure["period_ms"]["p99"],
        "max": figure["period_ms"]["max"],
        "observation p50 ms": figure["observation_ms"]["p50"],
        "obs p99": figure["observation_ms"]["p99"],
        "CPU ms a frame": figure["cpu_ms"],
        "cores": figure["cores"],
        "save ms": figure["save_ms"],
        "failed": figure["failures"],
    }


if __name__ == "__main__":
    main()
