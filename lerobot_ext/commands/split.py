"""`lerobot-ext evaluate --split`: the policy in a process of its own on this machine, the robot in this one.

From the options and the config to the inference process's command line, and what the operator sees and is asked. How
the run begins is `rollout.start`'s business, how the process is watched `rollout.companion`'s; the connection is policy
type `remote` on `ipc://`.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lerobot_ext.commands.stages import command
from lerobot_ext.errors import UserError
from lerobot_ext.rollout import start
from lerobot_ext.rollout.companion import InferenceProcess
from lerobot_ext.rollout.start import PhaseError, SplitConfig
from simplify_work.wire.private import PrivateFolder

_LOOK_S = 0.2


@dataclass(frozen=True)
class Options:
    """The options that are no keys of the config.

    Attributes:
        split: Run the policy in a process of its own.
        yes: Ask nobody.
    """

    split: bool = False
    yes: bool = False


def take_options(argv: list[str]) -> tuple[list[str], Options]:
    """Take `--split` and `--yes` out of `argv`.

    Returns:
        The other words in their order, and what these say.

    Raises:
        UserError: One has a value that is neither true nor false, or there is nothing to say yes to.
    """
    rest, options = [], Options()
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in ("--split", "--yes"):
            rest.append(word)
            continue
        if equals and value.lower() not in ("true", "false"):
            raise UserError(
                f"{key} is '{value}'; expected {key} alone, or true or false (keys of the section `split` are "
                "given as --split.load_s=120)."
            )
        options = replace(options, **{key.removeprefix("--"): not equals or value.lower() == "true"})
    if options.yes and not options.split:
        raise UserError("--yes answers what only --split asks; leave it out, or add --split.")
    return rest, options


class Split:
    """One run in two processes.

    Args:
        data: The config, with the policy's path.
        options: See `take_options`.

    Raises:
        UserError: The config has no policy of its own, or nobody can press Enter.
    """

    def __init__(self, data: dict[str, Any], options: Options) -> None:
        self._yes = options.yes
        if os.environ.get("ENV") == "local":
            raise UserError(
                "ENV=local says that the policy runs on a server elsewhere, --split starts one here; leave one out."
            )
        policy = data["policy"]
        if policy.get("type") == "remote" or not policy.get("path"):
            raise UserError(
                "--split starts an inference process with the checkpoint policy.path, which the config does not "
                "have; add `policy: {path: CHECKPOINT}`, or leave out --split."
            )
        if not options.yes and not sys.stdin.isatty():
            raise UserError(
                "--split asks before the arm begins, but the standard input is no terminal, so nobody can press "
                "Enter; add --yes to begin without being asked."
            )
        self._path, self._device = str(policy["path"]), policy.get("device")
        self._folder = PrivateFolder()

    def remote(self, data: dict[str, Any]) -> dict[str, Any]:
        """The config for the robot's process: its policy is at the private address."""
        server = dict(data.get("server") or {})
        server.pop("keys", None)  # nobody else can reach that address
        return data | {"server": server | {"address": self._folder.address}}

    @contextmanager
    def running(self, cfg: Any, root: Path | None) -> Iterator[InferenceProcess]:
        """The inference process runs in this block; a rollout that is made in it begins when both are ready.

        Args:
            cfg: The evaluation's.
            root: The dataset's folder, None if LeRobot chooses it.

        Raises:
            PhaseError: The block ended because the process had died.
        """
        limits: SplitConfig = cfg.split
        process = InferenceProcess(
            command("serve", *self._words(limits)),
            self._folder,
            log_path(limits, root),
            environment={} if limits.threads is None else {"OMP_NUM_THREADS": str(limits.threads)},
            restarts=limits.restarts,
            stop_s=limits.stop_s,
        )
        process.start()
        print(f"inference process {process.pid} starts; its log: {process.log}", flush=True)
        plan = start.Plan(process, limits, None if self._yes else confirm, progress)
        try:
            with start.session(plan):
                yield process
            if process.death is not None:
                raise PhaseError(f"{process.death}. The arm was left where it was, with its torque on.")
        finally:
            process.stop()

    def close(self) -> None:
        """Remove the private folder."""
        self._folder.close()

    def _words(self, limits: SplitConfig) -> list[str]:
        words = [f"--policy.path={self._path}", "--max_sessions=2"]
        device = limits.device or self._device
        if device is not None:
            words.append(f"--device={device}")
        if limits.dtype is not None:
            words.append(f"--dtype={limits.dtype}")
        if limits.compile:
            words.append("--compile")
        return words


def log_path(limits: SplitConfig, root: Path | None) -> Path:
    """The file of the inference process's log: as told, else beside the dataset, else in `outputs`."""
    if limits.log is not None:
        return Path(limits.log)
    if root is not None:
        return root.with_name(f"{root.name}.inference.log")
    return Path("outputs", f"inference_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}.log")


@contextmanager
def progress() -> Iterator[Callable[[str], None] | None]:
    """A line at the bottom of the terminal, below the log; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm(), tqdm(bar_format="{desc}", leave=False) as bar:
        yield bar.set_description_str


def confirm(still_wanted: Callable[[], None]) -> None:
    """Ask the operator to press Enter.

    Args:
        still_wanted: Called several times a second; raises when the question is no more to be asked.

    Raises:
        UserError: The terminal is gone.
    """
    import termios

    termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question is no answer to it
    print("\nRobot ready, policy ready. Press Enter to start (Ctrl-C ends). ", end="", flush=True)
    while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
        still_wanted()
    if not sys.stdin.readline():
        raise UserError("the terminal was closed before Enter was pressed; the arm did not begin.")
