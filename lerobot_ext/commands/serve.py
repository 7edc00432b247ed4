"""`lerobot-ext serve`: a checkpoint, loaded and warmed up, answers robots over the network until it is stopped."""

from __future__ import annotations

import argparse
import difflib
import logging
import signal
import threading

from lerobot_ext.errors import UserError

logger = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    """Argparse whose complaint is a sentence like that of every other command."""

    def error(self, message: str) -> None:
        """Raise what argparse would have printed with its usage.

        Raises:
            UserError: Always.
        """
        raise UserError(f"serve: {message}; `lerobot-ext serve --help` lists the options.")


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = _Parser(
        prog="lerobot-ext serve",
        allow_abbrev=False,
        description="Loads a LeRobot checkpoint with its processors and answers robots (policy type `remote`) with "
        "chunks of actions. Prints a line that begins with 'ready' when it does. Ctrl-C or SIGTERM stop it.",
    )
    parser.add_argument(
        "--policy.path", dest="path", metavar="PATH", required=True, help="checkpoint: …/pretrained_model"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5555, help="0 chooses a free one (default: %(default)s)")
    parser.add_argument("--address", help="tcp://HOST:PORT or ipc://PATH, instead of --host and --port")
    parser.add_argument("--device", help="cuda, cuda:1, cpu, … (default: the checkpoint's)")
    parser.add_argument(
        "--dtype", help="compute in bfloat16 or float16 by autocast (default: as the checkpoint)"
    )
    parser.add_argument("--max_sessions", type=int, default=64, help="robots at once (default: %(default)s)")
    return parser


def main(argv: list[str]) -> int | None:
    """Serve until SIGTERM or Ctrl-C."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    from simplify_work.server import checkpoint
    from simplify_work.wire.address import parse_address, tcp_address

    address = parse_address(args.address) if args.address else tcp_address(args.host, args.port)
    checkpoint.check_checkpoint(args.path)

    # The port is taken before torch and the weights are loaded: a mistake is told at once.
    from simplify_work.wire import listen

    socket = listen.bind(address)
    stop = threading.Event()
    try:
        from simplify_work.server.runner import PolicyRunner
        from simplify_work.server.server import PolicyServer

        print(f"loading {args.path} …", flush=True)
        runner = PolicyRunner(args.path, args.device, args.dtype)
        warm_up_s = runner.warm_up()
    except BaseException:
        socket.close(linger=0)
        raise
    endpoint = listen.endpoint(socket)
    server = PolicyServer(runner, socket, max_sessions=args.max_sessions)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    wants = ", ".join(map(str, runner.inputs))
    print(
        f"ready: {runner.config.type} at {endpoint} wants {wants}; gives {runner.chunk_size} actions of "
        f"{runner.action_dim} (on {runner.device}, first chunk took {warm_up_s:.2f} s)",
        flush=True,
    )
    while not stop.wait(0.5) and server.running:
        pass
    failed = not server.running
    server.stop()
    print("stopped.", flush=True)
    return 1 if failed else 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The options in `argv`.

    Raises:
        UserError: For one that does not exist, naming the nearest, or a value that cannot be.
    """
    parser = arguments()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        name = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(name, known, n=1)
        parser.error(f"there is no option '{name}'" + (f", did you mean '{near[0]}'?" if near else ""))
    if not 0 <= args.port <= 65535:
        parser.error(f"--port={args.port} is not a port, expected 0 to 65535")
    if args.max_sessions < 1:
        parser.error(f"--max_sessions={args.max_sessions} admits nobody, expected 1 or more")
    return args
