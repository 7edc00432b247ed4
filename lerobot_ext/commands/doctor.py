"""`lerobot-ext doctor`: which devices are there, and is all well? Also the way to a policy server, and a server itself.

Options and printing only; the checks are in `doctor_devices`, `doctor_link` and `doctor_host`.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from rich.console import Console

from lerobot_ext.commands import doctor_checks
from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError

EPILOG = """\
at the robot, its devices:
  lerobot-ext doctor
      serial ports and what answers there (follower, leader, skin, FT 300), cameras, permissions, lines for a YAML
  lerobot-ext doctor --config_path=configs/collect.yaml
      the same, and whether ports, cameras, calibrations and disk are as the YAML says
  lerobot-ext doctor --udev > 70-lerobot.rules
      udev rules for lasting names and permissions; how to install them stands in it

at the robot, the way to a server:
  lerobot-ext doctor --server tcp://192.168.1.20:5555 --keys=keys/arm1
      who is there, keys, versions, what is served, round trip, bandwidth, delay in steps
  lerobot-ext doctor --server 127.0.0.1:5555 --config_path=configs/evaluate_record.yaml
      the same, and whether policy and robot fit each other, at the YAML's fps; no device is opened

at the server, before `lerobot-ext serve`:
  lerobot-ext doctor --policy.path=outputs/train/checkpoints/last/pretrained_model --port=5555
      port free, checkpoint complete, policy installed, device, memory, dtype; no weights are loaded

Each line says ok, warning or failed, what was found, and what to do. The exit status is 0 if nothing failed, else 1.
Ports are only read from and pinged; no torque is touched, and a port that a program uses is left alone.
With --server, the robot's side asks the server for about 30 chunks, which are not executed; other robots' chunks wait meanwhile.
"""


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Options(
        "doctor",
        description="Finds arms, sensors and cameras and says what is wrong with them; or checks the way from the robot "
        "to a policy server, or whether this machine can serve a checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    robot = parser.add_argument_group("at the robot")
    robot.add_argument("--server", metavar="ADDRESS", help="as `lerobot-ext serve` prints it")
    robot.add_argument(
        "--config_path",
        metavar="FILE",
        help="YAML of `lerobot-ext record` or `evaluate`: is what it names there; with --server: robot, fps, settings",
    )
    robot.add_argument(
        "--udev", action="store_true", default=None, help="print udev rules for the devices instead"
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
    if args.server is not None and args.path is not None:
        raise UserError(
            "doctor: give --server=ADDRESS at the robot, or --policy.path=CHECKPOINT at the server, or neither for the "
            "devices; `lerobot-ext doctor --help` has examples."
        )
    if args.path is None:
        refuse(parser, args, ("host", "port", "device", "dtype", "insecure"), "--policy.path")
    if args.server is None and args.path is None:
        refuse(parser, args, ("keys",), "--server or --policy.path")
        return at_the_devices(args)
    refuse(parser, args, ("udev",), "neither --server nor --policy.path")
    if args.server is not None:
        return at_the_robot(args)
    refuse(parser, args, ("config_path",), "--server, or with neither")
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


def at_the_devices(args: argparse.Namespace) -> int:
    """Look at what is plugged in here."""
    console = Console(stderr=True)
    with console.status("looking at ports and cameras …") if console.is_terminal else nullcontext():
        from lerobot_ext.commands import doctor_devices, doctor_survey, doctor_yaml, udev

        survey = doctor_survey.survey(args.config_path)
    if args.udev and not args.json:
        print(udev.rules(survey.ports, survey.cameras), end="")
        return 0
    status = doctor_checks.report(doctor_devices.checks(survey), survey, args.json, doctor_devices.more)
    lines = doctor_yaml.snippet(survey)
    if lines and not args.json:
        title = f"{args.config_path} should say" if args.config_path else "for a YAML of lerobot-ext record"
        print(f"\n# {title}:\n{lines}", end="")
    return status


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
