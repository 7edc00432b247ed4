"""`lerobot-ext serve`: checkpoints, loaded and warmed up, answer robots over the network until it is stopped."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lerobot_ext.commands.options import Options
from lerobot_ext.commands.serve_doors import OWN_PORT, check_doors, own_port, parse_door

if TYPE_CHECKING:
    from simplify_work.server.server import PolicyServer
    from simplify_work.server.worker import Worker

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0
_STATUS_EVERY_S = 0.5
# The socket's thread waits this long at most for the interpreter while the policy's Python code runs (CPython: 5 ms,
# which a message of six frames would pay several times).
_SWITCH_INTERVAL_S = 0.0005


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Options(
        "serve",
        description="Loads a LeRobot checkpoint with its processors and answers robots (policy type `remote`) with "
        "chunks of actions. Prints a line that begins with 'ready' when it does. Ctrl-C or SIGTERM stop it.",
    )
    parser.add_argument(
        "--policy.path",
        dest="paths",
        metavar="PATH",
        action="append",
        required=True,
        help="checkpoint: …/pretrained_model; may be given again: the first one answers at --port, doors see all of them, "
        "and each is loaded (memory!)",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    where.add_argument(
        "--port", type=int, help=f"0 chooses a free one (default: {OWN_PORT}, or the next that no door has)"
    )
    where.add_argument("--address", help="tcp://HOST:PORT or ipc://PATH, instead of --host and --port")
    where.add_argument(
        "--keys",
        metavar="FOLDER",
        help="encrypt, and admit listed robots only: FOLDER/server of `lerobot-ext keys`",
    )
    where.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond this machine without keys: anybody may use the policy",
    )
    doors = parser.add_argument_group(
        "doors",
        "for clients that were written for other servers; none of their protocols is safe in a network",
    )
    doors.add_argument(
        "--door",
        dest="doors",
        metavar="NAME:PORT",
        action="append",
        default=[],
        help="open a door, or NAME:HOST:PORT; may be given again: act_zmq (ACT's pickles over ZeroMQ, first checkpoint), "
        "lerobot_grpc (LeRobot's robot_client), openpi_ws (openpi-client)",
    )
    doors.add_argument(
        "--door_host",
        metavar="HOST",
        default="127.0.0.1",
        help="address that doors listen on (default: %(default)s)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--device", help="cuda, cuda:1, cpu, … (default: the checkpoint's)")
    how.add_argument(
        "--dtype", help="compute in bfloat16 or float16 by autocast (default: as the checkpoint)"
    )
    how.add_argument(
        "--compile",
        action="store_true",
        help="use torch.compile: minutes to begin, and again for each new picture size",
    )
    how.add_argument("--max_sessions", type=int, default=64, help="robots at once (default: %(default)s)")
    how.add_argument(
        "--max_batch", type=int, default=16, help="observations inferred at once (default: %(default)s)"
    )
    how.add_argument(
        "--idle_timeout_s",
        type=float,
        default=600.0,
        help="a silent session ends after it (default: %(default)g)",
    )
    how.add_argument(
        "--end_with",
        type=int,
        metavar="PID",
        help="end when the process that started this one, PID, has ended",
    )
    watch = parser.add_argument_group("watching it")
    watch.add_argument(
        "--metrics_port", type=int, help="Prometheus endpoint, 0 chooses a port (default: none)"
    )
    watch.add_argument("--metrics_host", default="127.0.0.1", help="its address (default: %(default)s)")
    return parser


def main(argv: list[str]) -> int | None:
    """Serve until SIGTERM or Ctrl-C."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    from simplify_work.server import checkpoint
    from simplify_work.wire.address import parse_address, tcp_address

    address = parse_address(args.address) if args.address else tcp_address(args.host, args.port)
    for path in args.paths:
        checkpoint.check_checkpoint(path)

    if args.end_with is not None:
        from simplify_work.server import parent

        parent.end_with(args.end_with, address)

    # The ports are taken or tried before torch and the weights are loaded: a mistake is told at once.
    from simplify_work.wire import listen

    socket = listen.bind(address, keys=_keys(args.keys), insecure=args.insecure)
    with ExitStack() as stack:
        closing = stack.enter_context(ExitStack())
        closing.callback(socket.close, linger=0)
        open_door = check_doors(args.doors) if args.doors else []

        from simplify_work.server.runner import PolicyRunner
        from simplify_work.server.server import PolicyServer
        from simplify_work.server.worker import Worker

        runners, warm_ups = [], []
        for path in args.paths:
            print(f"loading {path} …", flush=True)
            runner = PolicyRunner(path, args.device, args.dtype, args.compile)
            warm_ups.append(runner.warm_up())
            runners.append(runner)
        endpoint = listen.endpoint(socket)
        limits = {
            "max_sessions": args.max_sessions,
            "idle_timeout_s": args.idle_timeout_s,
            "max_batch": args.max_batch,
        }
        server = PolicyServer(runners[0], socket, path=args.paths[0], **limits)
        workers = [
            Worker(runner, path, **limits) for path, runner in zip(args.paths[1:], runners[1:], strict=True)
        ]
        brains = [server.worker, *workers]
        doors = [
            door(brains, where.host, where.port) for door, where in zip(open_door, args.doors, strict=True)
        ]
        if args.metrics_port is not None:
            metrics = server.metrics.serve(args.metrics_port, args.metrics_host)
            stack.callback(metrics.close)
            print(f"metrics at {metrics.url}", flush=True)
        closing.pop_all()  # the server closes the socket

        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        for each in (server, *workers, *doors):
            stack.callback(each.stop)
            each.start()
        for number, (runner, warm_up_s) in enumerate(zip(runners, warm_ups, strict=True)):
            where = endpoint if number == 0 else f"the doors as {args.paths[number]}"
            wants = ", ".join(map(str, runner.inputs))
            print(
                f"ready: {runner.config.type} at {where} wants {wants}; gives {runner.chunk_size} actions of "
                f"{runner.action_dim} (on {runner.device}, first chunk took {warm_up_s:.2f} s)",
                flush=True,
            )
        for door in doors:
            print(f"ready: door {door.name} at {door.endpoint}", flush=True)
        _watch(server, stop, workers)
        failed = not all(each.running for each in (server, *workers))
    print("stopped.", flush=True)
    return 1 if failed else 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The options in `argv`.

    Raises:
        UserError: For one that does not exist, naming the nearest, or a value that cannot be.
    """
    parser = arguments()
    args = parser.parse_args(argv)
    for name in ("port", "metrics_port"):
        port = getattr(args, name)
        if port is not None and not 0 <= port <= 65535:
            parser.error(f"--{name}={port} is not a port, expected 0 to 65535")
    args.doors = [parse_door(text, args.door_host) for text in args.doors]
    if args.port is None:
        args.port = own_port(args.doors)
    if len(args.paths) > 1 and not args.doors:
        parser.error(
            f"--policy.path is given {len(args.paths)} times, but only doors let clients choose among checkpoints; open a "
            "--door, or serve each from a server of its own"
        )
    if args.max_sessions < 1:
        parser.error(f"--max_sessions={args.max_sessions} admits nobody, expected 1 or more")
    if args.max_batch < 1:
        parser.error(f"--max_batch={args.max_batch} infers nothing, expected 1 or more")
    if not args.idle_timeout_s > 0:
        parser.error(f"--idle_timeout_s={args.idle_timeout_s:g} ends every session, expected more than 0")
    return args


def _keys(folder: str | None):
    if folder is None:
        return None
    from simplify_work.wire.keys import ServerKeys

    return ServerKeys.load(folder)


def _watch(server: PolicyServer, stop: threading.Event, workers: Sequence[Worker] = ()) -> None:
    """Show what the server does until it is stopped or fails: a status line on a terminal, else a line now and then."""
    each = (server, *workers)
    if sys.stdout.isatty():
        _show(each, stop)
        return
    waited = 0.0
    while not stop.wait(_STATUS_EVERY_S) and all(one.running for one in each):
        waited += _STATUS_EVERY_S
        if waited >= _LINE_EVERY_S:
            waited = 0.0
            for number, one in enumerate(each):
                figures = one.metrics.figures(_LINE_EVERY_S)
                if figures.sessions or figures.chunks_per_s:
                    logger.info("%s%s", f"checkpoint {number + 1}: " if workers else "", figures)


def _show(each: Sequence[PolicyServer | Worker], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    logs = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    with Live(console=Console(), refresh_per_second=4, transient=True) as live:
        for handler in logs:  # log lines go above the status line
            handler.setStream(sys.stderr)
        while not stop.wait(_STATUS_EVERY_S) and all(one.running for one in each):
            lines = "\n".join(str(one.metrics.figures()) for one in each)
            live.update(Text(lines, no_wrap=True, overflow="ellipsis"))
    for handler in logs:
        handler.setStream(sys.stderr)
