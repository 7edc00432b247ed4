"""Folders that stock LeRobot leaves when it is killed; run as a script, in an interpreter without our plugin.

`python stock_crashes.py FOLDER` makes one dataset folder a case, each in a forked child that kills itself. What was
recorded follows from `frame_of`, and `saved.json` says how many episodes LeRobot had saved by then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

HEIGHT, WIDTH, FPS = 64, 96, 30
LENGTHS = (12, 9, 15, 10, 8, 11, 7, 9, 10, 8, 12, 9, 10, 7)
SIDE, DEPTH, STATE, FORCE = (
    "observation.images.side",
    "observation.images.side_depth",
    "observation.state",
    "observation.force",
)
DEPTH_RANGE_M = (0.1, 1.1)


def features(kind: str) -> dict:
    def picture(channels: int) -> dict:
        return {
            "dtype": "image" if kind == "pictures" else "video",
            "shape": (HEIGHT, WIDTH, channels),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": channels == 1},
        }

    numbers = {
        STATE: {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]},
        FORCE: {"dtype": "float32", "shape": (15,), "names": [f"skin.{i}" for i in range(15)]},
        "pressed": {"dtype": "bool", "shape": (1,), "names": None},
        "tip": {"dtype": "string", "shape": (1,), "names": None},
        "action": {"dtype": "float32", "shape": (6,), "names": None},
    }
    cameras = {SIDE: picture(3)} if kind == "pictures" else {SIDE: picture(3), DEPTH: picture(1)}
    return numbers if kind == "numbers" else {**numbers, **cameras}


def brightness(episode: int, frame: int) -> int:
    """Neighbours differ by more than an encoder blurs."""
    return 20 + (13 * frame + 50 * episode) % 200


def depth_mm(episode: int, frame: int) -> int:
    return 200 + 40 * episode + 5 * frame


def frame_of(episode: int, frame: int, keys) -> dict:
    rng = np.random.default_rng([episode, frame])
    everything = {
        STATE: rng.normal(size=6).astype(np.float32),
        FORCE: rng.normal(size=15).astype(np.float32),
        "action": rng.normal(size=6).astype(np.float32),
        "pressed": np.array([frame % 3 == 0]),
        "tip": "until it clicks" if frame % 2 else "",
        SIDE: np.full((HEIGHT, WIDTH, 3), brightness(episode, frame), np.uint8),
        DEPTH: np.full((HEIGHT, WIDTH, 1), depth_mm(episode, frame), np.uint16),
    }
    return {key: everything[key] for key in keys} | {"task": "press" if episode % 2 else "press gently"}


_alive = []  # a dataset that is collected finishes itself, which a killed process does not


def create(root: Path, kind: str, **options):
    _alive.append(_create(root, kind, **options))
    return _alive[-1]


def _create(root: Path, kind: str, **options):
    from lerobot.configs import DepthEncoderConfig, RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    near, far = DEPTH_RANGE_M
    encoders = {
        "rgb_encoder": RGBEncoderConfig(vcodec="h264", preset="ultrafast"),
        "depth_encoder": DepthEncoderConfig(depth_min=near, depth_max=far, use_log=False),
    }
    if options.pop("resume", False):
        return LeRobotDataset.resume("stock/crash", root=root, **encoders, **options)
    return LeRobotDataset.create(
        "stock/crash", fps=FPS, features=features(kind), root=root, **encoders, **options
    )


def record(dataset, episodes, log: Path, save_last: bool = True, dropped: dict | None = None) -> None:
    """Record `episodes`; `dropped` names frames that the streaming encoder loses, as it does when it is too slow."""
    keys = [key for key in dataset.meta.features if key in features("all")]
    for episode in episodes:
        for frame in range(LENGTHS[episode]):
            if frame in (dropped or {}).get(episode, ()):
                feed, dataset.writer._streaming_encoder.feed_frame = (
                    dataset.writer._streaming_encoder.feed_frame,
                    lambda *_: None,
                )
                dataset.add_frame(frame_of(episode, frame, keys))
                dataset.writer._streaming_encoder.feed_frame = feed
            else:
                dataset.add_frame(frame_of(episode, frame, keys))
        if save_last or episode != episodes[-1]:
            dataset.save_episode(parallel_encoding=False)
            log.write_text(json.dumps(episode + 1))


def die(*_args, **_options) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_json(until: str):
    """What is left when the process dies while `json.dump` writes: what stands before `until`."""
    dumps = json.dumps

    def dump(obj, file, **options):
        file.write(dumps(obj, **options).partition(until)[0])
        file.flush()
        die()

    return dump


# --- the cases: each records into `root` and never returns ---


def between_frames(root, log):
    record(create(root, "all"), range(4), log, save_last=False)
    die()


def between_frames_streaming(root, log):
    record(create(root, "all", streaming_encoding=True), range(4), log, save_last=False)
    time.sleep(0.3)
    die()


def in_the_first_episode(root, log):
    record(create(root, "all"), range(1), log, save_last=False)
    die()


def before_encoding(root, log):
    """The last episode's numbers are written, its pictures are not encoded."""
    dataset = create(root, "all")
    record(dataset, range(2), log)
    dataset.writer._save_episode_video = die
    record(dataset, range(2, 3), log)


def between_cameras(root, log):
    """The last episode's colour has joined the others, its depth is in its temporary file."""
    from lerobot.datasets import dataset_writer

    dataset = create(root, "all", streaming_encoding=True)
    record(dataset, range(2), log)
    concatenate = dataset_writer.concatenate_video_files

    def second_dies(paths, out, **options):
        if DEPTH in str(out):
            die()
        concatenate(paths, out, **options)

    dataset_writer.concatenate_video_files = second_dies
    record(dataset, range(2, 3), log)


def before_metadata(root, log):
    dataset = create(root, "all", streaming_encoding=True)
    record(dataset, range(2), log)
    dataset.meta.save_episode = die
    record(dataset, range(2, 3), log)


def in_info(root, log):
    from lerobot.utils import io_utils

    dataset = create(root, "all", streaming_encoding=True)
    record(dataset, range(2), log)
    io_utils.json.dump = die_in_json('"total_frames"')
    record(dataset, range(2, 3), log)


def many(root, log):
    """The metadata of ten episodes have been flushed, those of the last are in memory."""
    record(create(root, "numbers"), range(14), log, save_last=False)
    die()


def resumed(root, log):
    dataset = create(root, "all", streaming_encoding=True)
    record(dataset, range(2), log)
    dataset.finalize()
    dataset = create(root, "all", streaming_encoding=True, resume=True)
    record(dataset, range(2, 5), log, save_last=False)
    die()


def batched(root, log):
    """Saved episodes whose pictures wait to be encoded together."""
    record(create(root, "all", batch_encoding_size=4), range(4), log, save_last=False)
    die()


def dropping(root, log):
    """The encoder lost frames of episode 1."""
    dataset = create(root, "all", streaming_encoding=True)
    record(dataset, range(5), log, save_last=False, dropped={1: (3, 4)})
    die()


def pictures(root, log):
    record(create(root, "pictures"), range(3), log, save_last=False)
    die()


def finished(root, log):
    dataset = create(root, "all")
    record(dataset, range(3), log)
    dataset.finalize()
    die()


CASES = [
    between_frames,
    between_frames_streaming,
    in_the_first_episode,
    before_encoding,
    between_cameras,
    before_metadata,
    in_info,
    many,
    resumed,
    batched,
    dropping,
    pictures,
    finished,
]


def at_random(folder: Path, number: int) -> None:
    """Record until the parent kills: whatever is going on then."""
    root, log = folder / f"random_{number}", folder / f"random_{number}.json"
    log.write_text("0")
    child = os.fork()
    if child == 0:
        record(create(root, "all", streaming_encoding=bool(number % 2)), range(14), log)
        die()
    deadline = time.monotonic() + 60
    while json.loads(log.read_text() or "0") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng(number).uniform(0, 0.4)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(folder: Path) -> None:
    import lerobot.datasets.lerobot_dataset  # noqa: F401  (once, not in every child)

    assert "lerobot_ext" not in sys.modules
    for case in CASES:
        log = folder / f"{case.__name__}.json"
        log.write_text("0")
        child = os.fork()
        if child == 0:
            try:
                case(folder / case.__name__, log)
            except BaseException:
                traceback.print_exc()
            os._exit(3)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"{case.__name__} was not killed: status {status}")
    for number in range(2):
        at_random(folder, number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
