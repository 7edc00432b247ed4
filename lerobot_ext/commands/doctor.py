"""`lerobot-ext doctor`: is everything there that a remote policy needs? A line a check, at the robot or at the server."""

from __future__ import annotations

import argparse

from lerobot_ext.commands import doctor_checks
from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError

EPILOG = """\
at the robot:
  lerobot-ext doctor --server tcp://192.168.1.20:5555 --keys=keys/arm1
      who is there, keys, versions, what is served, round trip, bandwidth, delay in steps
  lerobot-ext doctor --server 127.0.0.1:5555 --config_path=configs/evaluate_record.yaml
      the same, and whether policy and robot fit each other, at the YAML's fps; no device is opened

at the server, before `lerobot-ext serve`:
  lerobot-ext doctor --policy.path=outputs/train/checkpoints/last/pretrained_model --port=5555
      port free, checkpoint complete, policy installed, device, memory, dtype; no weights are loaded

Each line says ok, warning or failed, what was found, and what to do. The exit status is 0 if nothing failed, else 1.
The robot's side asks the server for about 30 chunks, which are not executed; other robots' chunks wait meanwhile.
"""


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Options(
        "doctor",
        description="Checks the way from the robot to a policy server, or whether this machine can serve a checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    robot = parser.add_argument_group("at the robot")
    robot.add_argument("--server", metavar="ADDRESS", help="as `lerobot-ext serve` prints it")
    robot.add_argument(
        "--config_path", metavar="FILE", help="YAML of `lerobot-ext evaluate`: robot, fps, settings"
    )
    server = parser.add_argument_group("at the server (options as those of `lerobot-ext serve`)")
    server.add_argument("--policy.path", dest="path", metavar="PATH", help="checkpoint: …/pretrained_model")
    server.add_argument("--host", help="default: 127.0.0.1")
    server.add_argument("--port", type=int, help="default: 5555")
    server.add_argument("--device", help="default: the checkpoint's")
    server.add_argument("--dtype", help="default: as the checkpoint")
    server.add_argument(
        "--insecure", action="store_true", default=None, help="serve other machines without keys"
    )
    parser.add_argument("--keys", metavar="FOLDER", help="folder of keys, the robot's or the server's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


def main(argv: list[str]) -> int | None:
    """Check, print, and return 0 if nothing failed."""
    parser = arguments()
    args = parser.parse_args(argv)
    if (args.server is None) == (args.path is None):
        raise UserError(
            "doctor: give --server=ADDRESS at the robot, or --policy.path=CHECKPOINT at the server; "
            "`lerobot-ext doctor --help` has examples."
        )
    if args.server is not None:
        refuse(parser, args, ("host", "port", "device", "dtype", "insecure"), "--policy.path")
        return at_the_robot(args)
    refuse(parser, args, ("config_path",), "--server")
    if args.port is not None and not 0 <= args.port <= 65535:
        parser.error(f"--port={args.port} is not a port, expected 0 to 65535")
    return at_the_server(args)


def refuse(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: tuple[str, ...], use: str
) -> None:
    """Refuse options that belong to the other use.

    Raises:
        UserError: Naming the first of them.
    """
    for name in names:
        if getattr(args, name) is not None:
            parser.error(f"--{name} goes with {use}")


def at_the_robot(args: argparse.Namespace) -> int:
    """Look at a server from here."""
    from lerobot_ext.commands import doctor_link, doctor_visit

    visit = doctor_visit.visit(args.server, args.keys, args.config_path)
    with visit.cleanup:
        return doctor_checks.report(doctor_link.checks(visit), visit, args.json)


def at_the_server(args: argparse.Namespace) -> int:
    """Look at this machine and a checkpoint."""
    from lerobot_ext.commands import doctor_host

    given = {name: getattr(args, name) for name in ("host", "port", "keys", "insecure", "device", "dtype")}
    host = doctor_host.Host(args.path, **{name: value for name, value in given.items() if value is not None})
    return doctor_checks.report(doctor_host.checks(), host, args.json)
