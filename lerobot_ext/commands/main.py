"""`lerobot-ext COMMAND …`: finds the command's module, runs it, turns a user's mistake into one sentence."""

from __future__ import annotations

import importlib
import logging
import os
import sys

from lerobot_ext.commands import help

COMMANDS = {
    "demo": "collect, train, serve, evaluate and show, on the virtual lab, with one command",
    "lab": "start, stop or ask the virtual lab: an arm, a skin and cameras that speak real protocols",
    "record": "record a dataset with colour, depth and force (LeRobot's record loop)",
    "train": "train a policy on exactly the modalities you choose (LeRobot's train)",
    "serve": "serve a checkpoint to robots over the network",
    "keys": "make the keys with which a server and its robots know one another",
    "doctor": "find ports and cameras and say what is wrong; check the way to a server, or a checkpoint",
    "evaluate": "run a policy on the robot, local or remote, and record what happens",
    "tip": "list, set or change the language tips of recorded episodes",
    "repair": "mend a dataset that a crash left behind, on a copy",
    "visualize": "show an episode: pictures, depth and force curves",
}


def usage() -> str:
    """The text of `lerobot-ext --help`."""
    width = max(map(len, COMMANDS))
    lines = ["usage: lerobot-ext COMMAND [options]      (lerobot-ext COMMAND --help explains one)", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `lerobot-ext`; those of the process if None.

    Returns:
        0 when it went well, 2 after a mistake of the user (one line on standard error), 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name = argv.pop(0)
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COMMANDS)}."
        print(f"error: there is no command '{name}'; {hint}", file=sys.stderr)
        return 2
    if name in help.TEXTS and (not argv or {"-h", "--help"} & set(argv)):
        print(help.TEXTS[name])
        return 0 if argv else 2
    module = importlib.import_module(f"lerobot_ext.commands.{name}")
    try:
        return module.main(argv) or 0
    except KeyboardInterrupt:
        return stopped()
    except Exception as error:
        if interrupted(error):
            return stopped()
        sentence = explain(error)
        if sentence is None or os.environ.get("LEROBOT_EXT_DEBUG"):
            raise
        logging.getLogger(__name__).debug("traceback of the error below", exc_info=True)
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def stopped() -> int:
    """Say that Ctrl-C was obeyed; returns the exit status for it."""
    print("stopped.", file=sys.stderr)
    return 130


def interrupted(error: BaseException | None) -> bool:
    """Whether `error` came up while a Ctrl-C was being obeyed: a servo that was cut off in mid-sentence, say."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def explain(error: Exception) -> str | None:
    """The sentence for the user behind `error`, or None if it is a defect that needs its traceback."""
    from lerobot_ext.errors import UserError
    from simplify_work.wire.errors import RemoteError

    # draccus tells where in the config it was; what was wrong, only its cause says.
    while type(error).__module__.startswith("draccus") and isinstance(error.__cause__, Exception):
        error = error.__cause__
    spoken = (UserError, RemoteError, ConnectionError, TimeoutError, ValueError, OSError)
    return " ".join(str(error).split()) if isinstance(error, spoken) else None
