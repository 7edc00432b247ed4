"""Episodes saved before a `kill -9` against episodes readable after it, and what saving costs: stock LeRobot and ours.

Two processes import LeRobot once, one with this plugin and one without; each recording runs in a fork of one of them
and is killed at a random moment between its start and its end (frames, encoding, saving, finishing). The folder is
then opened by LeRobot alone, without anything being repaired, and every frame of every episode is compared with what
was recorded. Save times are taken in turns, an episode stock, an episode ours, with frames at the rate of the
recording and encoders that have caught up, as they do while the scene is reset.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

SIDES = ("stock", "ours")
SIDE, DEPTH, WRIST = (f"observation.images.{name}" for name in ("side", "side_depth", "wrist"))
FPS = 30


# --- what is recorded ---


def features(height: int, width: int) -> dict[str, dict]:
    """Two colour cameras, a depth map, state, force and action."""
    colour = {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]}
    depth = colour | {"shape": (height, width, 1), "info": {"is_depth_map": True}}
    vectors = {"observation.state": 6, "observation.force": 15, "action": 6}
    return {SIDE: colour, DEPTH: depth, WRIST: colour} | {
        key: {"dtype": "float32", "shape": (size,), "names": [f"{key}.{i}" for i in range(size)]}
        for key, size in vectors.items()
    }


class Scene:
    """Frames whose content follows from their number: a slanted plane that moves, with the noise of a sensor."""

    def __init__(self, height: int, width: int, noise: int) -> None:
        rng = np.random.default_rng(0)
        self.rows, self.columns = np.mgrid[0:height, 0:width]
        self.noise = rng.integers(-noise, noise + 1, (8, height, width, 3)) if noise else None

    def frame(self, episode: int, index: int) -> dict[str, Any]:
        """One frame as `add_frame` takes it."""
        grey = 30 + (episode * 37 + index * 23) % 180 + (self.rows + self.columns) % 16
        colour = np.repeat(grey[..., None], 3, axis=2)
        if self.noise is not None:
            colour = colour + self.noise[index % len(self.noise)]
        colour = colour.clip(0, 255).astype(np.uint8)
        depth = 300 + 20 * ((episode * 5 + index) % 20) + self.columns // 8
        if self.noise is not None:
            depth = depth + self.noise[index % len(self.noise), ..., 0]
        state = np.arange(6, dtype=np.float32) + 1000 * episode + index
        return {
            SIDE: colour,
            DEPTH: depth[..., None].astype(np.uint16),
            WRIST: 255 - colour,
            "observation.state": state,
            "observation.force": np.arange(15, dtype=np.float32) / 7 + state[0],
            "action": -state,
            "task": "press",
        }

    def matches(self, item: dict[str, Any], episode: int, index: int) -> bool:
        """Whether a dataset's item is that frame; colour and depth within what their encoders may change."""
        expected = self.frame(episode, index)
        exact = all(
            np.array_equal(item[key].numpy(), expected[key])
            for key in ("observation.state", "observation.force", "action")
        )
        near = all(
            np.abs(item[key].numpy().transpose(1, 2, 0) * 255 - expected[key]).mean() < 6
            for key in (SIDE, WRIST)
        )
        depth = np.abs(item[DEPTH].numpy().squeeze() - expected[DEPTH].squeeze()).max() < 2
        return bool(exact and near and depth and item["episode_index"].item() == episode)


def create(root: Path, height: int, width: int, streaming: bool) -> Any:
    """A new dataset with LeRobot's own settings."""
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset.create(
        "bench/crash_safety",
        FPS,
        features(height, width),
        root=root,
        streaming_encoding=streaming,
        image_writer_threads=0 if streaming else 8,
        video_backend="pyav",
    )


# --- in the process that imported LeRobot ---


def serve(side: str) -> None:
    """Do what the lines on standard input ask for, in a fork where it may be killed; answer each with a line."""
    import logging

    if side == "ours":
        import lerobot_ext

        lerobot_ext.register()
    import lerobot.datasets.lerobot_dataset  # noqa: F401

    logging.disable(logging.WARNING)
    kept: dict[str, Any] = {}
    _answer({"ready": side, "plugin": any(name.startswith("lerobot_ext") for name in sys.modules)})
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        if kind == "record":
            _answer({"pid": _forked(_record, request)})
        elif kind == "wait":
            os.waitpid(request["pid"], 0)
            _answer({})
        elif kind == "check":
            read, write = os.pipe()
            pid = _forked(_check, request | {"write": write})
            os.close(write)
            with os.fdopen(read) as answer:
                found = answer.read()
            os.waitpid(pid, 0)
            _answer(json.loads(found or "{}"))
        elif kind == "save":
            _answer({"seconds": _timed_save(kept, **request)})
        elif kind == "finish":
            begin = time.perf_counter()
            kept.pop("dataset").finalize()
            _answer({"seconds": time.perf_counter() - begin})


def _answer(answer: dict) -> None:
    print(f"@{json.dumps(answer)}", flush=True)


def _forked(function: Any, request: dict) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            function(**request)
        finally:
            os._exit(0)
    return pid


def _record(root: str, log: str, episodes: int, frames: int, height: int, width: int) -> None:
    scene = Scene(height, width, noise=0)
    with open(log, "a") as saved:
        print("begin", file=saved, flush=True)
        dataset = create(Path(root), height, width, streaming=True)
        dataset.writer._streaming_encoder.queue_maxsize = frames + 1  # so that stock drops no frame either
        for episode in range(episodes):
            for index in range(frames):
                dataset.add_frame(scene.frame(episode, index))
            dataset.save_episode()
            print(episode, file=saved, flush=True)
        dataset.finalize()
        print("end", file=saved, flush=True)


def _check(root: str, frames: int, height: int, width: int, write: int) -> None:
    from lerobot.datasets import LeRobotDataset

    scene, readable, error = Scene(height, width, noise=0), 0, ""
    try:
        dataset = LeRobotDataset("bench/crash_safety", root=root, video_backend="pyav")
        for episode in range(dataset.num_episodes):
            begin = episode * frames
            if not all(scene.matches(dataset[begin + index], episode, index) for index in range(frames)):
                error = f"episode {episode} is not what was recorded"
                break
            readable += 1
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}".splitlines()[0][:150]
    os.write(write, json.dumps({"readable": readable, "error": error}).encode())


def _timed_save(
    kept: dict[str, Any], root: str, episode: int, frames: int, height: int, width: int, streaming: bool
) -> float:
    if "dataset" not in kept:
        kept["dataset"] = create(Path(root), height, width, streaming)
        scene = Scene(height, width, noise=3)
        kept["frames"] = [scene.frame(0, index) for index in range(8)]
    dataset, due = kept["dataset"], time.perf_counter()
    for index in range(frames):
        dataset.add_frame(dict(kept["frames"][(episode + index) % 8]))
        due += 1 / FPS
        time.sleep(max(0.0, due - time.perf_counter()))
    # LeRobot's record loop saves after the time to reset the scene, in which the encoders catch up.
    encoder = dataset.writer._streaming_encoder
    while encoder is not None and any(frames.qsize() for frames in encoder._frame_queues.values()):
        time.sleep(0.05)
    begin = time.perf_counter()
    dataset.save_episode()
    return time.perf_counter() - begin


# --- in the process that measures ---


class Server:
    """One of the two processes that imported LeRobot."""

    def __init__(self, side: str) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, f"--serve={side}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        ready = self._read()
        if ready["plugin"] != (side == "ours"):
            raise RuntimeError(f"the process '{side}' {'has' if ready['plugin'] else 'lacks'} the plugin.")

    def ask(self, kind: str, **request: Any) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        print(json.dumps({"kind": kind} | request), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("a process of the benchmark ended; run it with --serve=ours to see why.")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


@contextlib.contextmanager
def servers() -> Iterator[dict[str, Server]]:
    """Both processes."""
    made: dict[str, Server] = {}
    try:
        for side in SIDES:
            made[side] = Server(side)
        yield made
    finally:
        for server in made.values():
            server.close()


def kills(given: argparse.Namespace, found: dict[str, Server], folder: Path) -> list[dict[str, Any]]:
    """Kill recordings of both sides and look at what is left."""
    rng = random.Random(given.seed)
    size = {"frames": given.kill_frames, "height": 96, "width": 128}
    whole = {side: _whole_s(found[side], folder / f"whole_{side}", given, size) for side in SIDES}
    rounds = []
    for number in common.progress(range(given.kills), "kills", "kill"):
        share = rng.uniform(0.05, 1.0)
        for side in SIDES:
            root, log = folder / f"{side}{number}", folder / f"{side}{number}.log"
            begin = time.monotonic()
            pid = found[side].ask("record", root=str(root), log=str(log), episodes=given.episodes, **size)[
                "pid"
            ]
            time.sleep(max(0.0, share * whole[side] - (time.monotonic() - begin)))
            os.kill(pid, signal.SIGKILL)
            found[side].ask("wait", pid=pid)
            lines = log.read_text().split() if log.exists() else []
            saved = sum(line.isdigit() for line in lines)
            seen = (
                found["stock"].ask("check", root=str(root), **size) if saved else {"readable": 0, "error": ""}
            )
            rounds.append({"side": side, "share": share, "saved": saved, "ended": "end" in lines} | seen)
            shutil.rmtree(root, ignore_errors=True)
    return rounds


def _whole_s(server: Server, root: Path, given: argparse.Namespace, size: dict[str, int]) -> float:
    """How long a recording takes that nobody kills; the second one, for the first warms caches."""
    for number in range(2):
        begin, target = time.monotonic(), f"{root}{number}"
        pid = server.ask("record", root=target, log=f"{target}.log", episodes=given.episodes, **size)["pid"]
        server.ask("wait", pid=pid)
        seconds = time.monotonic() - begin
        shutil.rmtree(target)
    return seconds


def saves(
    given: argparse.Namespace, found: dict[str, Server], folder: Path, streaming: bool
) -> dict[str, Any]:
    """Save times of both sides, in turns."""
    episodes = given.saves if streaming else max(3, given.saves // 4)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    what = "saves while encoding" if streaming else "saves of pictures"
    for episode in common.progress(range(episodes), what, "episode"):
        for side in SIDES if episode % 2 else reversed(SIDES):
            answer = found[side].ask(
                "save",
                root=str(folder / f"saves_{side}_{streaming}"),
                episode=episode,
                frames=given.save_frames,
                height=given.height,
                width=given.width,
                streaming=streaming,
            )
            seconds[side].append(answer["seconds"])
    finish = {side: found[side].ask("finish")["seconds"] for side in SIDES}
    result: dict[str, Any] = {"streaming": streaming, "episodes": episodes}
    for side in SIDES:
        # LeRobot's first save imports and sets up things on both sides.
        figures = common.percentiles(seconds[side][1:])
        result |= {f"{side}_p50_ms": figures["p50"], f"{side}_p95_ms": figures["p95"]}
        result |= {f"{side}_mean_ms": figures["mean"], f"{side}_finish_s": finish[side]}
    result["ours_to_stock"] = result["ours_p50_ms"] / result["stock_p50_ms"]
    return result


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a side; printed at once, for the rest takes minutes."""
    table = []
    for side in SIDES:
        of_side = [entry for entry in rounds if entry["side"] == side]
        saved, readable = (sum(entry[key] for entry in of_side) for key in ("saved", "readable"))
        lost = [entry for entry in of_side if entry["readable"] < entry["saved"]]
        table.append(
            {
                "side": side,
                "kills": len(of_side),
                "saved before": saved,
                "readable after": readable,
                "kills that lost episodes": len(lost),
                "share kept": min(1.0, readable / saved) if saved else None,
            }
        )
    common.print_table(table, "episodes saved before a kill, and readable after it with stock LeRobot")
    errors = {entry["error"] for entry in rounds if entry["error"]}
    for error in sorted(errors):
        print(f"  what LeRobot said: {error}")
    return table


def main() -> None:
    """Measure, print and save."""
    parser = common.parser(__doc__)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, help="on each side (default 30, quick 5)")
    parser.add_argument(
        "--episodes", type=int, default=6, help="of a recording that is killed (default %(default)s)"
    )
    parser.add_argument(
        "--kill_frames", type=int, default=20, help="frames of its episodes (default %(default)s)"
    )
    parser.add_argument("--saves", type=int, help="episodes whose save is timed (default 20, quick 4)")
    parser.add_argument("--save_frames", type=int, help="frames of these (default 150, quick 45)")
    parser.add_argument("--height", type=int, default=240, help="of the pictures whose save is timed")
    parser.add_argument("--width", type=int, default=320)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    given.kills = given.kills or (5 if given.quick else 30)
    given.saves = given.saves or (4 if given.quick else 20)
    given.save_frames = given.save_frames or (45 if given.quick else 150)
    with tempfile.TemporaryDirectory(prefix="crash_safety") as name, servers() as found:
        rounds = kills(given, found, Path(name))
        table = summary(rounds)
        timed = [saves(given, found, Path(name), streaming) for streaming in (True, False)]
    common.print_table(
        timed,
        f"time of save_episode, {given.save_frames} frames {given.width}x{given.height}, two RGB and one depth",
    )
    common.save("crash_safety", {"kills": rounds, "summary": table, "saves": timed}, given)


if __name__ == "__main__":
    main()
