"""LeRobot's streaming encoder, without its lost frames.

LeRobot drops a frame when an encoder's queue is full, which leaves a video shorter than the table, and cannot tell an
encoder that died from a slow one. Here the recording waits, says so once an episode, and an encoder's death is an
error at the next frame. What becomes of the videos is the writer's business.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.video_utils import StreamingVideoEncoder, _CameraEncoderThread

from lerobot_ext.recording.files import remove
from lerobot_ext.recording.scheduling import OrdinaryThreads, stand_back

logger = logging.getLogger(__name__)

WAIT_S = 0.05
STALL_S = 120.0
FLUSH_S = 600.0

# x265, which encodes depth, fails with some of the videos that are shorter than its delay: another try mends it.
SHORT_FRAMES = 2
SHORT_TRIES = 20


class EncoderFailedError(RuntimeError):
    """A video could not be encoded; the episode cannot be saved, earlier ones are not touched."""


class PatientStreamingEncoder(StreamingVideoEncoder):
    """`StreamingVideoEncoder` that waits for its encoders: every frame that is fed is in the video."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._folders: list[Path] = []
        self._first: dict[str, list[np.ndarray]] = {}
        self._fed: dict[str, int] = {}
        self._waited_s: dict[str, float] = {}
        self._threads_before = OrdinaryThreads()
        self._opening: set[str] = set()

    @property
    def waited_s(self) -> dict[str, float]:
        """Seconds that this episode's frames waited for an encoder, by video key."""
        return dict(self._waited_s)

    def start_episode(
        self, video_keys: list[str], temp_dir: Path, depth_video_keys: list[str] | None = None
    ) -> None:
        """Start one encoder a video; see LeRobot."""
        self._threads_before, self._opening = OrdinaryThreads(), set(video_keys)
        super().start_episode(video_keys, temp_dir, depth_video_keys)
        for thread in self._threads.values():
            stand_back(thread)
        self._folders = [path.parent for path in self._video_paths.values()]
        self._first, self._waited_s = {}, {}
        self._fed = dict.fromkeys(video_keys, 0)

    def feed_frame(self, video_key: str, image: np.ndarray) -> None:
        """Hand a copy of a frame to its encoder, waiting as long as its queue is full.

        Args:
            video_key: One of the keys of `start_episode`.
            image: (H, W, C) or (C, H, W), uint8 or float, or depth.

        Raises:
            EncoderFailedError: The encoder died, or has taken no frame for two minutes.
        """
        if not self._episode_active:
            raise RuntimeError("No active episode. Call start_episode() first.")
        image = image.copy()
        frames, begin = self._frame_queues[video_key], time.monotonic()
        while True:
            self._check(video_key)
            try:
                frames.put(image, timeout=WAIT_S)
                break
            except queue.Full:
                self._warn_slow(video_key)
                if time.monotonic() - begin > STALL_S:
                    raise EncoderFailedError(
                        f"the encoder of {video_key} took no frame for {STALL_S:.0f} s."
                    ) from None
        waited = time.monotonic() - begin
        if waited > WAIT_S:
            self._waited_s[video_key] = self._waited_s.get(video_key, 0.0) + waited
        if self._fed[video_key] < SHORT_FRAMES:
            self._first.setdefault(video_key, []).append(image)
        self._fed[video_key] += 1
        if video_key in self._opening and self._fed[video_key] - frames.qsize() > 1:
            # It took its second frame, so its codec, opened by the first, has all the threads it will have.
            self._opening.remove(video_key)
            self._threads_before.restore()

    def finish_episode(self) -> dict[str, tuple[Path, dict | None]]:
        """Let the encoders end and collect their videos.

        Returns:
            For each key the video's file and its statistics.

        Raises:
            EncoderFailedError: One of them failed.
        """
        if not self._episode_active:
            raise RuntimeError("No active episode to finish.")
        results = {}
        for key in self._frame_queues:
            self._put_end(key)
        for key, thread in self._threads.items():
            self._join(key, thread)
            status, data = self._result(key)
            tries = SHORT_TRIES if 0 < self._fed[key] <= SHORT_FRAMES else 0
            while status != "ok" and tries:
                tries -= 1
                status, data = self._encode_again(key)
            if status != "ok":
                raise EncoderFailedError(f"the encoder of {key} failed: {data}.")
            if data is None and self._fed[key]:
                data = _statistics(self._first[key][0], depth=thread.is_depth)
            results[key] = (self._video_paths[key], data)
        for key, waited in self._waited_s.items():
            logger.info("%s: the recording waited %.1f s in all for the encoder of this episode", key, waited)
        self._cleanup()
        self._first, self._folders = {}, []
        self._episode_active = False
        return results

    def cancel_episode(self) -> None:
        """Throw the episode away: its threads end with the frame they are at, its files are removed."""
        if not self._episode_active:
            return
        for key, frames in self._frame_queues.items():
            self._stop_events[key].set()
            _drain(frames)
            frames.put(None)
        for thread in self._threads.values():
            thread.join(timeout=10)
        for folder in self._folders:
            remove(folder)
        self._cleanup()
        self._first, self._folders = {}, []
        self._episode_active = False

    def _encode_again(self, key: str) -> tuple[str, Any]:
        """Encode a video that is as short as the frames that are kept."""
        frames: queue.Queue = queue.Queue()
        for image in [*self._first[key], None]:
            frames.put(image)
        before, results = self._threads[key], queue.Queue()
        _CameraEncoderThread(
            before.video_path,
            self.fps,
            before.video_encoder,
            frames,
            results,
            self._stop_events[key],
            self._encoder_threads,
        ).run()
        return results.get(timeout=1)

    def _check(self, key: str) -> None:
        if self._threads[key].is_alive():
            return
        _, data = self._result(key)
        raise EncoderFailedError(f"the encoder of {key} died after at most {self._fed[key]} frames: {data}.")

    def _result(self, key: str) -> tuple[str, Any]:
        results = self._result_queues[key]
        try:
            result = results.get(timeout=1)
        except queue.Empty:
            return "error", "it ended without a word"
        if result[0] != "ok":
            results.put(result)  # whoever asks next hears it again
        return result

    def _warn_slow(self, key: str) -> None:
        if key in self._waited_s:
            return
        self._waited_s[key] = 0.0
        logger.warning(
            "%s: the encoder is slower than the camera (%d frames wait, %d were taken), so the recording waits for "
            "it and frames come late; none is lost. Take a faster preset (rgb_encoder.preset), a hardware codec "
            "(rgb_encoder.vcodec=auto), more encoder_threads, or a longer encoder_queue_maxsize (now %d) for "
            "short episodes.",
            key,
            self._frame_queues[key].qsize(),
            self._fed[key],
            self.queue_maxsize,
        )

    def _put_end(self, key: str) -> None:
        """Tell an encoder that no frame follows; one that died needs no telling."""
        while self._threads[key].is_alive():
            try:
                self._frame_queues[key].put(None, timeout=1)
                return
            except queue.Full:
                continue

    def _join(self, key: str, thread: threading.Thread) -> None:
        """Wait for a thread as long as it takes frames from its queue, and then for what it still holds."""
        frames = self._frame_queues[key]
        left, since = frames.qsize(), time.monotonic()
        while thread.is_alive():
            thread.join(timeout=1)
            if frames.qsize() != left:
                left, since = frames.qsize(), time.monotonic()
            elif time.monotonic() - since > FLUSH_S:
                raise EncoderFailedError(
                    f"the encoder of {key} did not end within {FLUSH_S:.0f} s; {left} frames wait for it."
                )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what an encoder said when it died, is a full disk."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def _drain(frames: queue.Queue) -> None:
    try:
        while True:
            frames.get_nowait()
    except queue.Empty:
        return


def _statistics(image: np.ndarray, depth: bool) -> dict[str, np.ndarray]:
    """Statistics of a video of one frame, which LeRobot leaves out: its tables would then lack columns."""
    from lerobot.datasets.compute_stats import RunningQuantileStats, auto_downsample_height_width

    if image.ndim == 3 and image.shape[0] not in (1, 3):
        image = image.transpose(2, 0, 1)
    if not depth and image.dtype != np.uint8:
        image = (image * 255).astype(np.uint8)
    small = auto_downsample_height_width(image)
    tracker = RunningQuantileStats()
    tracker.update(small.transpose(1, 2, 0).reshape(-1, small.shape[0]))
    return tracker.get_statistics()
