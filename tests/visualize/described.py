"""What lerobot_ext's recording leaves beside a dataset, for the dataset of `press_dataset`: sensors, journal, frames."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from press_dataset import CHANNELS, FRAMES

LAYOUT_MM = [[0, 0], [7, 0], [0, 7], [-7, 0], [0, -7]]
SKIN = {
    "driver": "anyskin",
    "channels": [name.partition(".")[2] for name in CHANNELS],
    "unit": "uT",
    "units": ["uT"] * 15,
    "rate_hz": 100.0,
    "calibration": None,
    "layout_mm": LAYOUT_MM,
    "layout_axes": None,
}
BASELINE = [10.0 * i for i in range(15)]
DROPPED, REPEATED, RETRIED, LATE = (10, 30), (31,), (5,), (20,)
OLD_FRAME = 12  # the side camera's picture is as old as a frame here


def counted(*frames: int) -> np.ndarray:
    return np.isin(np.arange(FRAMES), frames).astype(np.int32)


def frames_table() -> dict[str, np.ndarray]:
    """The columns of a frames file, for 15 fps."""
    side = np.full(FRAMES, 10, np.float32)
    side[OLD_FRAME] = 70
    period = np.full(FRAMES, 1000 / 15, np.float32)
    period[0], period[list(LATE)] = np.nan, 150
    return {
        "frame_index": np.arange(FRAMES),
        "period_ms": period,
        "ages_ms.side": side,
        "ages_ms.skin": np.full(FRAMES, 3, np.float32),
        "new.side.received": np.ones(FRAMES, np.int32),
        "new.side.dropped": counted(*DROPPED),
        "new.side.repeated": counted(*REPEATED),
        "new.arm.retries": counted(*RETRIED),
    }


def describe(root: Path, episode: int = 0) -> Path:
    """Write all of it; returns `root`."""
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.force"]["info"] = {"sensors": {"skin": SKIN}}
    path.write_text(json.dumps(info))
    folder = root / "meta" / "lerobot_ext"
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    line = {"episode": episode, "baseline": {"skin": BASELINE}, "drift": {"skin": 4.2}}
    (folder / "episodes.jsonl").write_text(json.dumps(line) + "\n")
    pq.write_table(pa.table(frames_table()), folder / "frames" / f"episode_{episode:06d}.parquet")
    return root
