"""What the doors for clients of other policy servers share: which checkpoint a client means, and its session.

Nothing is loaded here: a client can only choose among the checkpoints that the server was started with.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from simplify_work.server.doors import Brain, BrainSession
from simplify_work.server.protocol import Inference, Served
from simplify_work.wire.errors import FeatureMismatch, SessionLost

logger = logging.getLogger(__name__)

_REFUSAL_LOGGED_EVERY_S = 1.0
_REFUSAL_LOGGED = 2000  # characters
_MAX_PATH = 4096  # as Linux has it; resolving a longer one takes time that grows with its square


class UnknownCheckpointError(LookupError):
    """The name that a client gave is that of none of the checkpoints, or of several."""


def choose(brains: Sequence[Brain], asked: str) -> Brain:
    """The checkpoint that a client means.

    Args:
        brains: All there are.
        asked: The checkpoint's path as the server was given it, another path to the same folder, or the last
            parts of its path.

    Raises:
        UnknownCheckpointError: With a list of what is served.
    """
    for matches in (_by_path, _by_folder, _by_last_parts) if len(asked) <= _MAX_PATH else ():
        found = [brain for brain in brains if matches(brain.path, asked)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownCheckpointError(
                f"{asked!r:.200} may be each of {len(found)} checkpoints; say more of the path of one of: {listed(brains)}."
            )
    raise UnknownCheckpointError(
        f"checkpoint {asked!r:.200} is not served here, and this server loads nothing on request; served: {listed(brains)}."
    )


def listed(brains: Sequence[Brain]) -> str:
    """`path (policy_type)` of each, for a message."""
    return ", ".join(f"{brain.path} ({brain.served.policy_type})" for brain in brains)


def check_single(served: Served) -> None:
    """Refuse a policy that looks at more than the newest observation.

    Raises:
        FeatureMismatch: If it does.
    """
    windows = [str(spec) for spec in served.inputs if spec.history > 1]
    if served.n_obs_steps > 1:
        windows.append(f"{served.n_obs_steps} observations at once")
    if windows:
        raise FeatureMismatch(
            f"policy '{served.policy_type}' wants {', '.join(windows)}, one control step apart; this protocol sends single "
            "observations at times of its own. Use `lerobot-ext evaluate` with policy type `remote`, which keeps them."
        )


def check_finite(observation: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers of which a policy would make actions that no robot can execute, or none that mean anything.

    Args:
        observation: Pictures and depth are not looked at: depth may say so where nothing was measured.

    Raises:
        FeatureMismatch: If a vector, or a window of them, has a nan or an infinite value.
    """
    for name, array in observation.items():
        if array.ndim < 3 and not np.isfinite(array).all():
            raise FeatureMismatch(f"{name} has a value that is not finite (as float32); look at that sensor.")


class Refusals:
    """Log what was refused, one short line a second at most: garbage must not be able to fill or forge the log.

    Args:
        log: Where to.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._again_s = 0.0
        self._silent = 0

    def note(self, what: str) -> None:
        """Log it, or count it."""
        with self._lock:
            if time.monotonic() < self._again_s:
                self._silent += 1
                return
            self._again_s = time.monotonic() + _REFUSAL_LOGGED_EVERY_S
            more, self._silent = self._silent, 0
        what = "".join(
            each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in what[:_REFUSAL_LOGGED]
        )
        self._log.warning("refused %s%s", what, f" ({more} more since the last line)" if more else "")


class Guest:
    """One foreign client's session; where it ended because the client was silent for long, it is a new one.

    Args:
        brain: Whose.
        client: Who is calling, for the server's log.

    Raises:
        ServerBusy: As `Brain.open_session`.
    """

    def __init__(self, brain: Brain, client: str) -> None:
        self.brain = brain
        self.client = client
        self._session: BrainSession = brain.open_session(client)
        self._closed = False

    def infer(self, observation: Mapping[str, np.ndarray], task: str, timeout_s: float) -> Inference:
        """As `BrainSession.infer`.

        Raises:
            FeatureMismatch: Also if a vector has a value that is not finite.
        """
        check_finite(observation)
        try:
            return self._session.infer(observation, task=task, timeout_s=timeout_s)
        except SessionLost:
            if self._closed:
                raise
            logger.info("%s was silent for so long that its episode is over; a new one begins", self.client)
            self._session = self.brain.open_session(self.client)
            if self._closed:  # meanwhile, and maybe before there was this session
                self._session.close()
            return self._session.infer(observation, task=task, timeout_s=timeout_s)

    def close(self) -> None:
        """End the session."""
        self._closed = True
        self._session.close()


def _by_path(path: str, asked: str) -> bool:
    return path == asked


def _by_folder(path: str, asked: str) -> bool:
    try:
        return Path(path).resolve() == Path(asked).resolve()
    except (OSError, ValueError):  # no path at all: too long, or with a zero in it
        return False


def _by_last_parts(path: str, asked: str) -> bool:
    parts = PurePath(asked).parts
    if not parts or not any(part.strip(".") for part in parts):
        return False
    wholes = {PurePath(path).parts, Path(path).resolve().parts}
    return any(whole[-len(parts) :] == parts for whole in wholes)
