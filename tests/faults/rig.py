"""LeRobot's own rollout on the lab's arm, its policy on a server behind a bad network, with instruments to watch it.

The loop is LeRobot's `BaseStrategy` in a thread; robot, engine and policy are the product's, as a user runs them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from stand_in import CENTRE, TURN

import lerobot_ext

lerobot_ext.register()

from lerobot.rollout import RolloutConfig  # noqa: E402  (our names must be registered before LeRobot's are read)
from lerobot.rollout.configs import BaseStrategyConfig  # noqa: E402
from lerobot.rollout.context import build_rollout_context  # noqa: E402
from lerobot.rollout.strategies.base import BaseStrategy  # noqa: E402

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig  # noqa: E402
from lerobot_ext.robots import SO101FollowerExtConfig  # noqa: E402
from lerobot_ext.rollout.config import AsyncInferenceConfig  # noqa: E402
from lerobot_ext.virtual.testing import RunningLab  # noqa: E402

FPS = 30
TIMEOUT_S = 1.5
PATIENCE_S = 60.0  # for anything to happen: a loaded machine is slow
HOLD_S = 1.0
STILL_RAD = 0.005
OVERSHOOT = 5.0  # degrees
MOVING_RAD = 0.1
OURS = ("lerobot_ext", "simplify_work")


class Rig:
    """A rollout that runs until the `with` block ends.

    Args:
        lab: Whose follower.
        address: Of the policy server.
        telemetry: Folder.
        policy: Of `RemoteConfig`.
        inference: Of `AsyncInferenceConfig`.
    """

    def __init__(
        self, lab: RunningLab, address: str, telemetry: Path, policy: dict | None = None, **inference: object
    ) -> None:
        self.lab = lab
        self._telemetry = telemetry
        self._logs = Logs()
        self.over = threading.Event()
        config = RolloutConfig(
            robot=SO101FollowerExtConfig(
                port=str(lab.follower), id="follower", calibration_dir=lab.calibration
            ),
            policy=RemoteConfig(
                **{"address": address, "timeout_s": TIMEOUT_S, "connect_timeout_s": 20.0} | (policy or {})
            ),
            strategy=BaseStrategyConfig(),
            inference=AsyncInferenceConfig(telemetry_dir=str(telemetry), **inference),
            fps=FPS,
            device="cpu",
            play_sounds=False,
            return_to_initial_position=False,
        )
        self._context = build_rollout_context(config, self.over)
        self._strategy = BaseStrategy(config.strategy)
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)

    @property
    def engine(self):
        return self._context.policy.inference

    @property
    def running(self) -> bool:
        """Whether the control loop goes on."""
        return self._thread.is_alive()

    def __enter__(self) -> Rig:
        logging.getLogger().addHandler(self._logs)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        self._thread.join(PATIENCE_S)
        logging.getLogger().removeHandler(self._logs)
        assert not self._thread.is_alive(), "the rollout did not end"

    def _run(self) -> None:
        try:
            self._strategy.setup(self._context)
            self._strategy.run(self._context)
        finally:
            self._strategy.teardown(self._context)

    # --- instruments ---

    def joints(self) -> np.ndarray:
        """Where the lab's physics has the arm, rad (6,)."""
        return np.array(self.lab.client.status().joints_rad)

    def events(self, *names: str) -> list[dict]:
        """Lines of the telemetry so far, of these events."""
        lines = []
        for path in sorted(self._telemetry.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # it is being written
                    lines.append(json.loads(line))
        return [line for line in lines if line["event"] in names]

    def warnings(self) -> list[str]:
        """What the product has logged for people so far."""
        return list(self._logs.lines)

    def wait_moving(self) -> None:
        """Wait until the arm goes somewhere."""
        start = self.joints()
        wait_for(lambda: np.abs(self.joints() - start).max() > MOVING_RAD, "the arm does not move")

    def wait_still(self) -> np.ndarray:
        """Wait until the arm holds, and return where; the last chunk is executed first."""
        place = self.joints()
        held_since = time.monotonic()
        end = held_since + PATIENCE_S
        while time.monotonic() - held_since < HOLD_S:
            assert time.monotonic() < end, "the arm does not come to rest"
            time.sleep(0.05)
            if np.abs(self.joints() - place).max() > STILL_RAD:
                place, held_since = self.joints(), time.monotonic()
        return place

    @contextlib.contextmanager
    def outage(self, kind: str, *words: str) -> Iterator[Outage]:
        """The block brings the fault; ends when the arm holds, which was said once, with kind and words.

        Yields:
            Filled in when the block has ended.
        """
        faults, lines = len(self.events("fault")), len(self.warnings())
        outage = Outage()
        yield outage
        wait_for(lambda: len(self.events("fault")) > faults, "the telemetry does not mark the fault")
        outage.place = self.wait_still()
        assert abs(np.degrees(outage.place[0]) - CENTRE) < TURN + OVERSHOOT, (
            "the arm went where no chunk sent it"
        )
        (event,) = self.events("fault")[faults:]
        (outage.line,) = self.warnings()[lines:]
        assert event["kind"] == kind and event["text"] in outage.line
        for word in words:
            assert word in outage.line
        assert self.running

    @contextlib.contextmanager
    def recovery(self) -> Iterator[None]:
        """The block takes the fault away; ends when chunks of fresh observations move the arm again."""
        resumed, held = len(self.events("resumed")), self.events("tick")[-1]["timestep"]
        yield
        wait_for(lambda: len(self.events("resumed")) > resumed, "chunks do not come again")
        self.wait_moving()
        chunk = next(line for line in self.events("chunk")[::-1] if line["timestep"] >= held)
        assert chunk["timestep"] >= held, "made from an observation of before the outage"

    @contextlib.contextmanager
    def no_outage(self) -> Iterator[None]:
        """Nothing that happens in the block stops the chunks."""
        faults, lines = len(self.events("fault", "refused")), self.warnings()
        yield
        assert len(self.events("fault", "refused")) == faults
        assert self.warnings() == lines


class Outage:
    """What `Rig.outage` found: where the arm held, rad (6,), and what was logged."""

    place: np.ndarray
    line: str


class Logs(logging.Handler):
    """The product's warnings and errors, as text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(OURS):
            self.lines.append(record.getMessage())


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)
