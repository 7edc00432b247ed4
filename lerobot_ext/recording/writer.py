"""LeRobot's dataset writer, changed so that an episode is on disk, and readable, when `save_episode` returns.

Everything of an episode is written under temporary names, brought to the disk and then renamed in an order in which
every state between opens with LeRobot: videos, tasks, data, episodes, statistics, info. `recover` tidies up after a
process that died in between, `consolidate` makes LeRobot's large video files of the small ones.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs import DepthEncoderConfig, VideoEncoderConfig
from lerobot.datasets.compute_stats import compute_episode_stats
from lerobot.datasets.dataset_writer import DatasetWriter, _encode_video_worker
from lerobot.datasets.feature_utils import validate_episode_buffer
from lerobot.datasets.io_utils import load_episodes

from lerobot_ext.features import TIP
from lerobot_ext.recording import disk, episodes, lock, tips
from lerobot_ext.recording.commit import Commit, Tails
from lerobot_ext.recording.consolidate import consolidate, loose_videos, read_episodes
from lerobot_ext.recording.disk import DiskSpaceError, SpaceWatch
from lerobot_ext.recording.encoding import EncoderFailedError, is_disk_full
from lerobot_ext.recording.files import remove
from lerobot_ext.recording.interrupts import deferred_interrupts
from lerobot_ext.recording.recover import temp_folders
from lerobot_ext.recording.scheduling import OrdinaryThreads

logger = logging.getLogger(__name__)

FULL_BYTES = 2**20
"""With less than this, whatever failed failed for lack of room; LeRobot's image writer does not say so."""


class BrokenFolderError(RuntimeError):
    """A save was cut off between two of its steps; the dataset has to be opened anew with resume."""


class DurableWriter(DatasetWriter):
    """`DatasetWriter` whose saved episodes survive whatever happens to the process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pid = os.getpid()
        tips.check_column(self._meta.features, self._root)
        if self._batch_encoding_size > 1:
            logger.warning(
                "video_encoding_batch_size=%d is taken as 1: episodes whose videos are not made yet would be lost "
                "with the process; streaming_encoding=true makes saving fast.",
                self._batch_encoding_size,
            )
            self._batch_encoding_size = 1
        self._space = SpaceWatch(
            self._root, self._meta.features, self._meta.fps, streaming=self._streaming_encoder is not None
        )
        self._spoiled: str | None = None
        self._broken: str | None = None
        self._listener_failed = False
        self._locked = False
        self._tails: Tails | None = None
        self._loose_bytes: dict[str, int] | None = None

    @property
    def depth_encoder(self) -> DepthEncoderConfig:
        """How depth maps are quantised and encoded. May be set before the first frame of the recording.

        Where episodes are saved already, only to what they were quantised with.
        """
        return self._depth_encoder

    @depth_encoder.setter
    def depth_encoder(self, config: DepthEncoderConfig) -> None:
        pending = self.episode_buffer["size"] if self.episode_buffer else 0
        if pending or (self._meta.total_episodes and not self._quantised_as_recorded(config)):
            raise ValueError(
                f"the depth encoder can be changed before the first frame only; there are {self._meta.total_episodes} "
                f"episodes and {pending} frames, and all depth videos of a dataset are quantised alike."
            )
        self._depth_encoder = config
        if self._streaming_encoder is not None:
            self._streaming_encoder._depth_encoder = config

    def _quantised_as_recorded(self, config: DepthEncoderConfig) -> bool:
        """Whether `config` quantises as the saved episodes were: what a resumed dataset has to go on with."""
        wanted = {
            f"video.{name}": getattr(config, name) for name in ("depth_min", "depth_max", "shift", "use_log")
        }
        infos = [self._meta.features[key].get("info") or {} for key in self._meta.depth_keys]
        return all(info.get(key) == value for info in infos for key, value in wanted.items())

    # --- frames ---

    def add_frame(self, frame: dict) -> None:
        """Add a frame to the episode; see LeRobot. The language tip may be left out: the session's is recorded.

        Raises:
            DiskSpaceError: At the first frame, an episode may not fit on the disk. Later, the disk has become nearly
                full: the episode was ended and saved with the frames before this one (the message says so).
            NotWritableError: The dataset's folder cannot be written.
            InUseError: Another process records to the folder.
            EncoderFailedError: A video's encoder died. The episode cannot be saved.
        """
        self._check_ready()
        size = self.episode_buffer["size"] if self.episode_buffer else 0
        if size == 0:
            disk.check_writable(self._root)
            self._space.before_episode()
        elif reason := self._space.running_out(size):
            self._end_early(reason, size)
        filled = tips.fill(frame, self._meta.features, self._meta.total_episodes)
        try:
            super().add_frame(filled)
        except BaseException as error:
            if self.episode_buffer and len(self.episode_buffer["timestamp"]) != size:
                self._spoiled = f"frame {size} could not be recorded ({error})"
                if is_disk_full(error):
                    raise self._disk_full(error) from error
            raise
        if filled is not frame and (column := self.episode_buffer[TIP])[0] != filled[TIP]:
            column[:] = [filled[TIP]] * len(column)  # it was chosen anew: an episode has one
        self._announce("frame", episodes.frame_added)

    def _end_early(self, reason: str, size: int) -> None:
        index = self._meta.total_episodes
        try:
            with deferred_interrupts("saving the episode"):
                self.save_episode()
        except Exception as error:
            raise DiskSpaceError(
                f"{reason}; episode {index} could not be saved ({error}). The {index} episodes before it are safe."
            ) from error
        raise DiskSpaceError(
            f"{reason}; the recording has ended, and episode {index} was saved with the {size} frames it had. Free "
            "some space, then go on with --resume=true."
        )

    def clear_episode_buffer(self, delete_images: bool = True) -> None:
        """Throw away the frames since the last episode; see LeRobot."""
        super().clear_episode_buffer(delete_images)
        self._spoiled = None
        self._listener_failed = False
        self._announce("discarded episode", episodes.episode_discarded)

    # --- one episode ---

    def save_episode(self, episode_data: dict | None = None, parallel_encoding: bool = True) -> None:
        """Save the episode: when this returns it is on disk, whatever happens then.

        Args:
            episode_data: An episode's buffer; the frames that were added if None.
            parallel_encoding: Encode several videos at once, where they are not encoded while they are recorded.

        Raises:
            EncoderFailedError: A video lacks frames. This episode is dropped.
            DiskSpaceError: The disk is full. This episode is dropped.
            BrokenFolderError: The disk failed between two steps; open the dataset anew with resume.
        """
        self._check_ready()
        own = episode_data is None
        buffer = dict(self.episode_buffer if own else episode_data)
        validate_episode_buffer(buffer, self._meta.total_episodes, self._meta.features)
        index, length = int(buffer["episode_index"]), buffer["size"]
        if self._tails is None:
            self._tails = Tails.of(self._meta)
        commit = Commit(self._meta, self._tails, index, length)
        try:
            if own and self._spoiled:
                raise EncoderFailedError(self._spoiled)
            stats = self._stage(buffer, commit, parallel_encoding)
            self._tails = commit.commit(stats)
        except BaseException as error:
            self._drop(commit, own)
            explained = self._explained(error, index)
            if explained is error:
                raise
            raise explained from error
        self._recorded_frames += length
        self._space.saved(commit.size, length)
        self._remove_temporary(self._meta.image_keys if own else [])
        if own:
            self.episode_buffer = self._create_episode_buffer()
        self._listener_failed = False
        self._announce("saved episode", lambda: episodes.episode_saved(self._root, index))
        self._consolidate_full()

    def _stage(self, buffer: dict, commit: Commit, parallel: bool) -> dict[str, dict]:
        """Stage everything but the metadata, as LeRobot computes it; returns the episode's statistics."""
        meta = self._meta
        index, length, names = buffer["episode_index"], buffer.pop("size"), buffer.pop("task")
        buffer["index"] = np.arange(meta.total_frames, meta.total_frames + length)
        buffer["episode_index"] = np.full((length,), index)
        buffer["task_index"] = commit.add_tasks(names)
        for key, feature in meta.features.items():
            if key in ("index", "episode_index", "task_index") or feature["dtype"] in ("image", "video"):
                continue
            column = np.stack(buffer[key])
            if tuple(feature["shape"]) == (1,) and feature["dtype"] != "string":
                column = column.reshape(length)
            buffer[key] = column
        self._wait_image_writer()
        streamed = self._streaming_encoder is not None and bool(meta.video_keys)
        known = {k: f for k, f in meta.features.items() if not (streamed and f["dtype"] == "video")}
        stats = compute_episode_stats({key: v for key, v in buffer.items() if key in known}, known)
        commit.add_data(buffer)
        videos = self._finish_videos(stats) if streamed else self._encode_videos(index, parallel)
        for key in meta.video_keys:
            commit.add_video(key, videos[key], self._encoder_of(key))
        return stats

    def _encoder_of(self, key: str) -> VideoEncoderConfig:
        return self._depth_encoder if key in self._meta.depth_keys else self._rgb_encoder

    def _finish_videos(self, stats: dict[str, dict]) -> dict[str, Path]:
        """The videos that were encoded while they were recorded; their statistics go to `stats`, scaled as LeRobot's."""
        videos = {}
        for key, (path, found) in self._streaming_encoder.finish_episode().items():
            videos[key] = path
            scale = 1.0 if key in self._meta.depth_keys else 255.0
            if found is not None:
                stats[key] = {
                    name: value if name == "count" else value.reshape(-1, 1, 1) / scale
                    for name, value in found.items()
                }
        return videos

    def _encode_videos(self, index: int, parallel: bool) -> dict[str, Path]:
        """Encode the pictures that were kept as files, by LeRobot's own function."""
        work = {
            key: (key, index, self._root, self._meta.fps, self._encoder_of(key), self._encoder_threads)
            for key in self._meta.video_keys
        }
        threads_before = OrdinaryThreads()
        try:
            if not parallel or len(work) < 2:
                return {key: _encode_video_worker(*arguments) for key, arguments in work.items()}
            with concurrent.futures.ProcessPoolExecutor(max_workers=len(work)) as executor:
                started = {key: executor.submit(_encode_video_worker, *args) for key, args in work.items()}
                return {key: future.result() for key, future in started.items()}
        except Exception as error:
            if is_disk_full(error):
                raise
            raise EncoderFailedError(f"its videos could not be encoded ({error}).") from error
        finally:
            threads_before.restore()

    # --- when something fails ---

    def _check_ready(self) -> None:
        if self._broken:
            raise BrokenFolderError(self._broken)
        if not self._locked:
            lock.take(self._root)
            self._locked = True

    def _release(self) -> None:
        if self._locked:
            self._locked = False
            lock.release(self._root)

    def _drop(self, commit: Commit, own: bool) -> None:
        """Forget an episode that could not be saved, with everything of it on the disk."""
        if commit.staging.committing:
            self._broken = (
                f"{self._root}: saving was cut off between two steps; open the dataset anew with resume, which brings "
                f"it to the last saved episode. {self._meta.total_episodes} episodes are safe."
            )
        commit.abort()
        with suppress(Exception):
            if own:
                self.clear_episode_buffer()
        with suppress(OSError):
            self._remove_temporary([])

    def _explained(self, error: BaseException, index: int) -> BaseException:
        """The error, saying what became of the episode."""
        if is_disk_full(error) or (
            isinstance(error, OSError | EncoderFailedError) and disk.free_bytes(self._root) < FULL_BYTES
        ):
            return self._disk_full(error)
        became = f"episode {index} is dropped, the {index} episodes before it are safe."
        if isinstance(error, EncoderFailedError):
            return EncoderFailedError(f"{error} Hence {became}")
        if isinstance(error, OSError):
            return OSError(error.errno, f"saving failed ({error}); {became}")
        return error

    def _disk_full(self, error: BaseException) -> DiskSpaceError:
        free = disk.megabytes(disk.free_bytes(self._root))
        index = self._meta.total_episodes
        return DiskSpaceError(
            f"the disk of {self._root} is full ({free} free): {error}. Episode {index} is dropped, the {index} episodes "
            "before it are safe. Free some space, then go on with --resume=true."
        )

    def _remove_temporary(self, image_keys: list[str]) -> None:
        if image_keys:
            self._delete_camera_frame_dirs(image_keys)
        if self._streaming_encoder is None or not self._streaming_encoder._episode_active:
            for folder in temp_folders(self._root):
                remove(folder)

    def _announce(self, what: str, announce: Callable[[], None]) -> None:
        """A listener that fails is no reason to lose an episode; said once an episode."""
        try:
            announce()
        except Exception:
            if not self._listener_failed:
                logger.exception("announcing a %s failed; the recording goes on", what)
            self._listener_failed = True

    # --- large files ---

    def _consolidate_full(self) -> None:
        """Join loose videos where they make a file of LeRobot's size."""
        meta = self._meta
        if not meta.video_keys:
            return
        if self._loose_bytes is None:
            rows = read_episodes(self._root)
            self._loose_bytes = {
                key: sum(video.size for video in loose_videos(self._root, meta.info, key, rows))
                for key in meta.video_keys
            }
        else:
            for key in meta.video_keys:
                path = self._root / meta.video_path.format(
                    video_key=key,
                    chunk_index=meta.latest_episode[f"videos/{key}/chunk_index"][0],
                    file_index=meta.latest_episode[f"videos/{key}/file_index"][0],
                )
                self._loose_bytes[key] += path.stat().st_size
        limit = meta.video_files_size_in_mb * 2**20
        full = [key for key, size in self._loose_bytes.items() if size >= limit]
        if full:
            self._consolidate(full, everything=False)

    def _consolidate(self, keys: list[str], everything: bool) -> None:
        try:
            changed = consolidate(self._root, self._meta.info, keys, everything)
        except Exception:
            logger.exception("%s: videos stay one file an episode, which LeRobot reads as well", self._root)
            changed = True
        if not changed:  # tried again when as much has come again
            self._loose_bytes = dict.fromkeys(self._meta.video_keys, 0)
            return
        self._loose_bytes = self._tails = None
        if self._meta.episodes is not None and not everything:
            self._meta.episodes = load_episodes(self._root)

    # --- the end ---

    def finalize(self) -> None:
        """End the recording: frames that were not saved are dropped, videos are joined to files of LeRobot's size."""
        if getattr(self, "_finalized", True):
            return
        self._finalized = True
        pending = self.episode_buffer["size"] if self.episode_buffer else 0
        if pending:
            logger.warning(
                "episode %d with %d frames was not saved and is dropped", self._meta.total_episodes, pending
            )
            self.clear_episode_buffer()
        self.stop_image_writer()
        self.flush_pending_videos()
        if self._meta.total_episodes and not self._broken:
            self._consolidate(self._meta.video_keys, everything=True)
            if self._meta.episodes is not None:  # else they are loaded when they are asked for
                self._meta.episodes = load_episodes(self._root)
        self._meta.finalize()
        self._release()

    def __del__(self) -> None:
        """Let the threads go. What was saved is on disk; joining videos is not for an interpreter that ends."""
        try:  # not `suppress`: at the interpreter's end that name is gone, too
            if self._pid != os.getpid():  # a copy in a process that was forked to encode
                return
            self._release()
            self.cancel_pending_videos()
            if not self._finalized:
                self.stop_image_writer()
        except Exception:
            pass  # nobody is left to hear of it
