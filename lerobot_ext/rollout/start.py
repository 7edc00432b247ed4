"""How a rollout begins: the robot at its initial position, the inference process ready, and somebody who says go.

`compat` calls it where LeRobot puts a rollout together. Each phase has its time, and an error says which one did not
come within it. The motion itself is in `approach`, the inference process in `companion`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

from lerobot_ext.arms import arms_of
from lerobot_ext.errors import UserError
from lerobot_ext.rollout.approach import Destination, Stopped, approach, destination, hold_when_released
from lerobot_ext.rollout.companion import InferenceProcess

logger = logging.getLogger(__name__)

_LOOK_S = 0.05
_LINE_EVERY_S = 5.0
_PATIENCE_S = 3.0  # for a robot that was told to stop
HELD = "the arm holds where it is, its torque stays on; start again, or hold the arm and switch off its power"


class PhaseError(UserError):
    """A phase of the start did not come within its time, or cannot come any more."""


@dataclass
class SplitConfig:
    """An inference process of its own: `lerobot-ext evaluate --split`.

    Attributes:
        load_s: How long it may take to load the policy and warm it up.
        connect_s: How long the robot may take to connect.
        move_s: How long the robot may take to its `initial_position`.
        stop_s: How long the inference process may take to end; then it is killed.
        restarts: How often the inference process is started again when it died in the middle of a run, while the arm
            holds; 0: the run ends.
        device: Where the policy runs; `policy.device` if None, and the checkpoint's if that is not given either.
        dtype: Compute in `bfloat16` or `float16`; as the checkpoint if None.
        compile: Use torch.compile; takes minutes, so raise `load_s`.
        threads: Processor threads of the policy; as many as torch chooses if None.
        log: Of the inference process; `<dataset.root>.inference.log` if None.
    """

    load_s: float = 120.0
    connect_s: float = 30.0
    move_s: float = 60.0
    stop_s: float = 10.0
    restarts: int = 0
    device: str | None = None
    dtype: str | None = None
    compile: bool = False
    threads: int | None = None
    log: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one of them cannot be.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s") and not value > 0:
                raise ValueError(f"split.{field.name} is {value}, expected seconds above 0.")
        if self.restarts < 0:
            raise ValueError(f"split.restarts is {self.restarts}, expected 0 or more.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"split.threads is {self.threads}, expected 1 or more, or null.")


@dataclass(frozen=True)
class Plan:
    """What a run with an inference process of its own does before its first action.

    Attributes:
        process: Started, and perhaps still loading.
        limits: How long the phases may take.
        confirm: Asks the operator, and returns when he said go; calls its argument several times a second, which
            raises when there is nothing to wait for any more. None: nobody is asked.
        progress: While it is entered, what it yields gets a line about how things stand, several times a second; if
            that is None, the line goes to the log now and then.
    """

    process: InferenceProcess
    limits: SplitConfig
    confirm: Callable[[Callable[[], None]], None] | None = None
    progress: Callable[[], AbstractContextManager[Callable[[str], None] | None]] = nullcontext


_plans: list[Plan] = []


@contextmanager
def session(plan: Plan) -> Iterator[None]:
    """Rollouts that are put together in this block begin as `plan` says."""
    _plans.append(plan)
    try:
        yield
    finally:
        _plans.remove(plan)


@contextmanager
def starting(cfg: Any, shutdown: threading.Event, make_robot: Callable[[Any], Any]) -> Iterator[Start]:
    """Around LeRobot's putting a rollout together; an error in it lets go of the robot.

    Args:
        cfg: The rollout's; `initial_position`, `initial_speed` and `initial_tolerance` are heeded where it has them.
        shutdown: LeRobot's event; set when the rollout shall end.
        make_robot: Makes a robot of its configuration.
    """
    start = Start(cfg, shutdown, make_robot, _plans[-1] if _plans else None)
    try:
        start.begin()
        yield start
    except BaseException:
        start.abandon()
        raise


class Start:
    """One start. See `starting` for the arguments."""

    def __init__(
        self, cfg: Any, shutdown: threading.Event, make_robot: Callable[[Any], Any], plan: Plan | None
    ) -> None:
        self._cfg, self._shutdown, self._make_robot, self._plan = cfg, shutdown, make_robot, plan
        self._robot: Any = None
        self._where: Destination | None = None
        self._moved = False
        self._broken_off = threading.Event()
        self._in_use = False

    def begin(self) -> None:
        """With an inference process: connect the robot and move it while the policy is loaded, and wait for both."""
        if self._plan is None:
            return
        robot = self._made(self._cfg.robot)
        _Phases(self, robot, self._plan, self._shutdown).run()

    def robot(self, robot_cfg: Any) -> Any:
        """The robot for LeRobot, which connects it; one that is connected already lets that happen once."""
        if self._robot is None:
            return self._made(robot_cfg)
        robot = self._robot

        def connect(*args: Any, **kwargs: Any) -> None:
            del robot.connect

        robot.connect = connect
        return robot

    def finish(self, ctx: Any) -> None:
        """What is left when the rollout is put together: the way to the initial position, and the operator's word.

        Args:
            ctx: LeRobot's rollout context.
        """
        if self._plan is None and self._where is None:
            return
        robot = ctx.hardware.robot_wrapper.inner
        if self._where is not None:
            if self._plan is None:
                self.move(robot, lambda text: None)
            # Where LeRobot goes back to between episodes and at the end.
            ctx.hardware.initial_position = {**(ctx.hardware.initial_position or {}), **self._where.target}
        if self._plan is not None:
            self._say_go(ctx, robot, self._plan)

    def _say_go(self, ctx: Any, robot: Any, plan: Plan) -> None:
        """Compare both sides, ask the operator, and from then on heed the inference process's end."""
        process = plan.process
        ctx.policy.policy.check_features(robot.observation_features)

        def hold() -> None:
            ctx.runtime.cfg.return_to_initial_position = False
            hold_when_released(robot)
            logger.error("the run ends, %s", HELD)
            self._shutdown.set()

        def still_wanted() -> None:
            if process.death is not None:
                raise PhaseError(f"{process.death}.")
            if self._shutdown.is_set():
                raise KeyboardInterrupt

        if plan.confirm is not None:
            plan.confirm(still_wanted)
        still_wanted()
        process.when_dead(hold)

    def move(self, robot: Any, tell: Callable[[str], None]) -> None:
        """Go to the initial position.

        Raises:
            KeyboardInterrupt: If the rollout shall end.
        """
        logger.info(
            "the robot moves to its initial position: %s",
            ", ".join(f"{name} {value:g}" for name, value in self._where.target.items()),
        )
        self._moved = True
        try:
            approach(
                robot,
                self._where,
                stopped=lambda: self._shutdown.is_set() or self._broken_off.is_set(),
                tell=tell,
            )
        except Stopped:
            raise KeyboardInterrupt from None

    @property
    def inference(self) -> Any:
        """The configuration of the rollout's engine, None if it has none."""
        return getattr(self._cfg, "inference", None)

    @property
    def moves(self) -> bool:
        """Whether there is somewhere to go."""
        return self._where is not None

    def abandon(self) -> None:
        """Stop the robot; if it was moved it stays there with its torque on, else it is released as always."""
        self._broken_off.set()
        robot = self._robot
        if robot is None or (self._plan is None and self._where is None):
            return
        if self._moved and hold_when_released(robot):
            logger.warning("%s", HELD)
        try:
            if robot.is_connected and not self._in_use:
                robot.disconnect()
        except Exception as error:  # the reason why it is abandoned must be heard
            logger.warning("the robot could not be disconnected: %s", error)

    def wait_broken_off(self, thread: threading.Thread) -> None:
        """Let the robot's thread end what it was told to stop; as long as it does not, the robot stays connected."""
        self._broken_off.set()
        self._in_use = True  # also if a second Ctrl-C ends the wait
        thread.join(_PATIENCE_S)
        self._in_use = thread.is_alive()

    def _made(self, robot_cfg: Any) -> Any:
        cfg = self._cfg
        self._robot = self._make_robot(robot_cfg)
        wanted = getattr(cfg, "initial_position", None)
        if wanted and hasattr(self._robot, "playing"):
            raise UserError(
                f"initial_position is given, but robot.type={robot_cfg.type} plays a recording, which goes nowhere "
                "else; leave initial_position out."
            )
        if wanted:
            self._where = destination(self._robot, wanted, cfg.initial_speed, cfg.initial_tolerance)
        return self._robot


class _Phases:
    """Robot and policy get ready side by side: the robot in a thread, the policy in its process, watched from here."""

    def __init__(self, start: Start, robot: Any, plan: Plan, shutdown: threading.Event) -> None:
        self._start, self._robot, self._plan, self._shutdown = start, robot, plan, shutdown
        self._phase, self._phase_s = "connecting", time.monotonic()
        self._way = ""
        self._error: BaseException | None = None
        self._said_s = time.monotonic()
        self._thread = threading.Thread(target=self._get_ready, name="robot-start", daemon=True)

    def run(self) -> None:
        """Return when both are ready.

        Raises:
            PhaseError: A phase did not come within its time, or the inference process ended.
            KeyboardInterrupt: The rollout shall end.
        """
        began_s, told = time.monotonic(), False
        self._thread.start()
        try:
            with self._plan.progress() as show:
                while not (both := self._are_ready()) or not told:
                    if self._phase == "ready" and not told:
                        told = True
                        logger.info("robot ready (after %.1f s)", self._phase_s - began_s)
                    if not both:
                        self._show(show)
                        time.sleep(_LOOK_S)
            self._say_ready()
        finally:
            if self._thread.is_alive():
                self._start.wait_broken_off(self._thread)

    def _say_ready(self) -> None:
        loading_s, limits = self._plan.process.loading_s, self._plan.limits
        if loading_s is None:  # it died this moment, which is told elsewhere
            return
        logger.info("policy ready (after %.1f s)", loading_s)
        give_up_s = getattr(self._start.inference, "give_up_s", None)
        if limits.restarts and give_up_s is not None and loading_s >= give_up_s:
            logger.warning(
                "split.restarts=%d is in vain: the policy took %.0f s to load, and the rollout ends after "
                "inference.give_up_s=%g s without it; raise inference.give_up_s",
                *(limits.restarts, loading_s, give_up_s),
            )

    def _get_ready(self) -> None:
        """The robot's side (in its thread)."""
        try:
            self._robot.connect(calibrate=False)  # that would ask the operator, here where nobody sees it
            _check_calibrated(self._robot)
            self._robot.get_observation()
            if self._start.moves:
                self._enter("moving")
                self._start.move(self._robot, self._tell)
            self._enter("ready")
        except BaseException as error:
            self._error = error

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_s = phase, time.monotonic()

    def _tell(self, text: str) -> None:
        self._way = text

    def _are_ready(self) -> bool:
        """Whether both are; raises what makes waiting vain."""
        process, limits, now = self._plan.process, self._plan.limits, time.monotonic()
        if self._shutdown.is_set():
            raise KeyboardInterrupt
        if self._error is not None:
            raise self._error
        if process.death is not None:
            raise PhaseError(f"policy: {process.death}. It ends:\n{process.last_lines()}")
        if not process.ready and now - process.started > limits.load_s:
            raise PhaseError(
                f"policy: the inference process was not ready within split.load_s={limits.load_s:g} s (it is "
                f"{process.doing}); {self._state()}. Raise split.load_s if the checkpoint is large. Its log, "
                f"{process.log}, ends:\n{process.last_lines()}"
            )
        if self._phase == "connecting" and now - self._phase_s > limits.connect_s:
            raise PhaseError(
                f"robot: it was not connected within split.connect_s={limits.connect_s:g} s; look at its cables and "
                f"its power. {self._state()}."
            )
        if self._phase == "moving" and now - self._phase_s > limits.move_s:
            raise PhaseError(
                f"robot: it was not at its initial_position within split.move_s={limits.move_s:g} s "
                f"({self._way or 'on its way'}); raise initial_speed or split.move_s. {self._state()}."
            )
        return self._phase == "ready" and process.ready

    def _state(self) -> str:
        process = self._plan.process
        policy = "ready" if process.ready else f"{process.doing}, {time.monotonic() - process.started:.0f} s"
        robot = self._phase if self._phase == "ready" else f"{self._phase} {self._way}".rstrip()
        return f"robot: {robot} | policy: {policy}"

    def _show(self, show: Callable[[str], None] | None) -> None:
        if show is not None:
            show(self._state())
        elif time.monotonic() - self._said_s >= _LINE_EVERY_S:
            logger.info("%s", self._state())
            self._said_s = time.monotonic()


def _check_calibrated(robot: Any) -> None:
    for arm in arms_of(robot).values():
        if not arm.is_calibrated:
            raise UserError(
                f"robot: its motors do not hold the calibration of {arm.calibration_fpath}; run `lerobot-calibrate` with the "
                "options of this robot. --split does not ask for a calibration while it starts."
            )
