"""Robot `replay`: a recorded episode plays as the robot's observations, so that everything else runs with no arm.

When which frame is shown is decided here. What a recording holds is in `recorded`, decoding in `read_ahead`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots import Robot
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from lerobot_ext.robots.config_replay import ReplayRobotConfig
from lerobot_ext.robots.read_ahead import ReadAhead
from lerobot_ext.robots.recorded import RecordedFeatures, Recording, check_episodes, metadata

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

logger = logging.getLogger(__name__)

FRAME = "replay_frame"
"""Entry of an observation, where `mark_frames` asks for it: the recording's row that it is."""

SENT = 200_000
"""Actions that are remembered: about two hours at 30 Hz."""

TOLD = ("camera", "sensors")  # of a feature's `info`: what the devices told of themselves


@dataclass(frozen=True, eq=False)
class Sent:
    """An action that a robot would have got.

    Attributes:
        time_s: Since the play's first observation, by the wall clock.
        row: Of the recording: the observation that was shown last.
        action: (n,) float32, in the order of `action_features`; NaN for an entry that was not given.
        in_play: False for what was sent between two plays.
    """

    time_s: float
    row: int
    action: np.ndarray
    in_play: bool


class ReplayRobot(Robot):
    """Gives what was recorded, and sends nothing.

    One pass through an episode is a play. Whoever runs a loop an episode says so with `playing`: each such loop gets the
    next play, and its `at_end` is called with the last frame. Without that, one play follows the other. After the last
    one the last frame stays.

    Attributes:
        sent: What would have been sent, the newest last; at most SENT.
        mark_frames: Observations also have the entry FRAME.
    """

    config_class = ReplayRobotConfig
    name = "replay"
    config: ReplayRobotConfig

    def __init__(self, config: ReplayRobotConfig, clock: Callable[[], float] = time.perf_counter) -> None:
        """Prepare; opens nothing.

        Args:
            config: What is played, and how.
            clock: Seconds.
        """
        super().__init__(config)
        self.config = config
        self.cameras: dict[str, Any] = {}
        self.sent: deque[Sent] = deque(maxlen=SENT)
        self.mark_frames = False
        self._clock = clock
        self._recording: Recording | None = None
        self._frames: ReadAhead | None = None

    @cached_property
    def _meta(self) -> LeRobotDatasetMetadata:
        meta = metadata(self.config.root, self.config.repo_id)
        check_episodes(meta, self.config)
        return meta

    @cached_property
    def _features(self) -> RecordedFeatures:
        return RecordedFeatures.of(self._meta)

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        """As the recorded robot had them."""
        return dict(self._features.observation)

    @property
    def action_features(self) -> dict[str, type]:
        """As the recorded robot had them."""
        return dict(self._features.action)

    def feature_metadata(self) -> dict[str, dict[str, Any]]:
        """What the recorded robot's devices told of the dataset's features (see `provenance`)."""
        infos = {key: feature.get("info") or {} for key, feature in self._meta.features.items()}
        found = {key: {name: info[name] for name in TOLD if name in info} for key, info in infos.items()}
        return {key: told for key, told in found.items() if told}

    @property
    def recording(self) -> Recording:
        """The opened recording.

        Raises:
            ConnectionError: Before `connect`.
        """
        if self._recording is None:
            raise ConnectionError("the replay is not connected; call connect() first.")
        return self._recording

    @property
    def frame_s(self) -> float:
        """Seconds from one shown frame to the next, as recorded."""
        return self.config.stride / float(self._meta.fps)

    @property
    def is_connected(self) -> bool:
        """Whether the recording is open."""
        return self._recording is not None

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Open the recording.

        Raises:
            UserError: It is not there, or has no such episode or frame.
        """
        self._recording = Recording(self._meta, self.config.root, self.config.repo_id, self.config.episodes)
        self.robot_type = self._meta.robot_type or self.name
        self.sent.clear()
        self._announced, self._in_play, self._at_end = False, True, None
        self._place = 0  # among the episodes
        self._rewind()
        logger.info(
            "replay: episode %s of %s, %s",
            ", ".join(map(str, self.config.episodes)),
            self._meta.root,
            f"{self.config.speed:g} times real time" if self.config.speed else "as fast as asked",
        )

    def disconnect(self) -> None:
        """Close the recording; what was sent is kept."""
        if self._frames is not None:
            self._frames.close()
        self._frames = self._recording = None

    @property
    def is_calibrated(self) -> bool:
        """Always: there is nothing to calibrate."""
        return True

    def calibrate(self) -> None:
        """Nothing."""

    def configure(self) -> None:
        """Nothing."""

    # --- plays ---

    @property
    def more(self) -> bool:
        """Whether there is another play after those that `playing` has given."""
        return self.config.loop or not self._announced or self._place + 1 < len(self.config.episodes)

    @contextmanager
    def playing(self, at_end: Callable[[], None]) -> Iterator[None]:
        """One play, from its first frame, for the length of a `with` block.

        Args:
            at_end: Called once, when the last frame is given out.
        """
        if self._announced:
            self._place = (self._place + 1) % len(self.config.episodes)
        else:
            self._announced, self._place = True, 0
        self._rewind()
        self._in_play, self._at_end = True, at_end
        try:
            yield
        finally:
            self._in_play, self._at_end = False, None

    @property
    def episode(self) -> int:
        """The recorded episode that is played now."""
        return self.config.episodes[self._place]

    def shown_frames(self, episode: int) -> int:
        """How many frames a play of this episode has."""
        return len(self._shown(episode))

    def _shown(self, episode: int) -> range:
        return self.recording.rows(episode)[self.config.start_frame :: self.config.stride]

    def _rewind(self) -> None:
        """Begin the play of the episode at the current place."""
        if self._frames is not None:
            self._frames.close()
        self._rows = self._shown(self.episode)
        times_s = self.recording.times_s[self._rows]
        self._times_s = times_s - times_s[0]
        self._frames = ReadAhead(
            self._rows, partial(self.recording.pictures, self.episode), self.recording.picture_bytes()
        )
        self._position: int | None = None
        self._started: float | None = None

    @check_if_not_connected
    def get_observation(self) -> RobotObservation:
        """The frame that is due.

        The first call of a play gives its first frame, and its clock starts when that is decoded. With a speed, it is
        taken to be half a frame old then, so that a loop at the recording's rate neither misses nor repeats a frame for
        being a little early or late.

        Returns:
            As the recorded robot's: joints as float, colour (H, W, 3) uint8, depth (H, W, 1) in its recorded unit,
            vectors (n,) float32.

        Raises:
            ConnectionError: The recording cannot be decoded.
        """
        position = self._due()
        last = len(self._rows) - 1
        if position > last and not self._announced and self._goes_on():
            position = self._due()
        position = min(position, last)
        row = self._rows[position]
        try:
            pictures = self._frames.get(position)
        except Exception as error:
            text = " ".join(str(error).split())
            raise ConnectionError(
                f"replay: row {row} of '{self._meta.root}' cannot be decoded: {text}"
            ) from error
        if self._position is None:
            self._started = self._clock()
        self._position = position
        observation = self.recording.numbers(row) | pictures
        if self.mark_frames:
            observation[FRAME] = row
        if position == last and self._at_end is not None:
            at_end, self._at_end = self._at_end, None
            at_end()
        return observation

    def _due(self) -> int:
        """The position that is due now, one behind the last if the play is over."""
        if self._position is None:
            return 0
        if self.config.speed == 0:
            return self._position + 1
        passed = (self._clock() - self._started) * self.config.speed + self.frame_s / 2
        due = int(np.searchsorted(self._times_s, passed, side="right")) - 1
        if due == len(self._rows) - 1 and passed >= self._times_s[-1] + self.frame_s:
            due += 1
        return max(self._position, due)

    def _goes_on(self) -> bool:
        """Begin the next play, if there is one that nobody has to ask for."""
        if not self.config.loop and self._place + 1 == len(self.config.episodes):
            return False
        self._place = (self._place + 1) % len(self.config.episodes)
        self._rewind()
        return True

    @check_if_not_connected
    def send_action(self, action: RobotAction) -> RobotAction:
        """Remember what would have been sent.

        Returns:
            The action as given.
        """
        if self._position is not None:
            values = [float(action.get(name, math.nan)) for name in self._features.action]
            time_s = self._clock() - self._started
            row = self._rows[self._position]
            self.sent.append(Sent(time_s, row, np.array(values, np.float32), self._in_play))
        return action
