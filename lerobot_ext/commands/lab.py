"""`lerobot-ext lab`: start, ask or stop the virtual lab."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError
from lerobot_ext.virtual.client import LabClient
from lerobot_ext.virtual.link import DEFAULT_DIR, Status, lab_dir

DESCRIPTION = """\
The virtual lab: an SO-100-like arm in MuJoCo that presses a button, behind the ports of real devices. It runs until
Ctrl-C, SIGTERM or `lerobot-ext lab --stop`. In its directory lie

  follower, leader   serial ports of the two arms: six Feetech STS3215 servos each, calibrated
  serial/by-id/      the ports by serial number, as in /dev
  skin               serial port of a magnetic skin (AnySkin frames, 100 Hz)
  ft300              serial port of a Robotiq FT 300 (Modbus RTU and its stream)
  side               what a virtual RealSense shows: serial_number_or_name: virtual:DIR/side
  calibration/       calibration_dir for `id: follower` and `id: leader`

and the wrist camera is a `zmq` camera named `wrist` on 127.0.0.1. A scripted operator moves the leader through the
task press: bring the jaw down on the button until it feels 1 to 3 N, hold until the lamp is green, go home.

With --arms=2 there are two: follower_right and follower_left, likewise for leader, skin and the wrist camera, and
calibrations for `id: follower` and `id: leader` of LeRobot's bi_so_follower and bi_so_leader. The operator presses
with the right arm; the left leader is held at home. FT 300 and Net F/T are the right arm's.

The arms are calibrated. To calibrate one anew with `lerobot-calibrate`, move it with --hand=middle before the first
ENTER, with --hand=sweep (8 s) before the second one, and with --hand=home at the end.

Faults of a running lab: --fault=side=frozen, --fault=follower=unplugged, --fault=follower=overload:3,
--fault=follower=corrupt:0.05; --fault=follower= mends it. A port that was unplugged comes back under a new name."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Options("lab", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--dir", type=Path, help=f"the lab's directory (default: $LEROBOT_LAB_DIR or {DEFAULT_DIR})")
    add("--wrist_port", type=int, default=5601, help="TCP port of the wrist camera (default 5601)")
    add("--netft_port", type=int, default=0, help="UDP port of an ATI Net F/T on 127.0.0.1 (default 0: none)")
    add("--seed", type=int, default=0, help="of button heights, the operator's variation, noise (default 0)")
    add("--fps", type=int, default=30, help="of the cameras (default 30)")
    add("--width", type=int, default=424, help="of the pictures, pixels (default 424)")
    add("--height", type=int, default=240, help="of the pictures, pixels (default 240)")
    add(
        "--depth_unit_m",
        type=float,
        default=0.001,
        help="metres a count of the side camera's depth (default 0.001; 0.0001 as a D405)",
    )
    add("--arms", type=int, default=1, choices=(1, 2), help="1, or 2: a right and a left one (default 1)")
    add("--no-operator", "--no_operator", action="store_true", help="leave the leader alone")
    add("--drop_packets", type=float, default=0.0, help="share of the follower's answers to lose (default 0)")
    add(
        "--corrupt_packets",
        type=float,
        default=0.0,
        help="share of the follower's answers to spoil (default 0)",
    )
    add(
        "--truncate_packets",
        type=float,
        default=0.0,
        help="share of the follower's answers to cut short (default 0)",
    )
    add("--end_with_parent", action="store_true", help="end when the process that started the lab ends")
    add("--detach", action="store_true", help="start in the background and return when the lab is ready")
    add("--log", type=Path, help="log file of --detach (default: DIR/lab.log, which goes when the lab ends)")
    add("--status", action="store_true", help="print what the running lab says")
    add("--json", action="store_true", help="with --status: as JSON")
    add("--hand", choices=("middle", "sweep", "home"), help="move the unpowered arms, as a calibration asks")
    add("--fault", metavar="DEVICE=FAULT", help="give a device of the running lab a fault; DEVICE= mends it")
    add("--stop", action="store_true", help="stop the running lab")
    return made


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    args = parser().parse_args(argv)
    if args.status or args.stop or args.hand or args.fault is not None:
        with LabClient(args.dir) as client:
            if args.stop:
                client.stop()
                print(f"the lab in {client.directory} has stopped.")
            elif args.hand:
                client.hand(args.hand)
                print(f"the arms go {'through their ranges' if args.hand == 'sweep' else 'to ' + args.hand}.")
            elif args.fault is not None:
                device, _, fault = args.fault.partition("=")
                client.fault(device, fault)
                print(f"{device}: {fault or 'well again'}.")
            else:
                print_status(client.status(), as_json=args.json)
        return 0
    if args.detach:
        return detach(args, argv)
    return serve(args)


def serve(args: argparse.Namespace) -> int:
    """Be the lab until told to stop."""
    try:
        from lerobot_ext.virtual.directory import ONE_ARM, TWO_ARMS
        from lerobot_ext.virtual.feetech import Faults
        from lerobot_ext.virtual.lab import Lab, LabConfig
    except ImportError as error:
        raise UserError(
            f"the virtual lab cannot be loaded ({error}); install what it needs in the project's folder: "
            "pip install -e '.[lab]'."
        ) from error
    config = LabConfig(
        dir=args.dir,
        wrist_port=args.wrist_port,
        netft_port=args.netft_port,
        seed=args.seed,
        fps=args.fps,
        width=args.width,
        height=args.height,
        operator=not args.no_operator,
        arms=args.arms,
        depth_unit_m=args.depth_unit_m,
        faults=Faults(args.drop_packets, args.corrupt_packets, args.seed, args.truncate_packets),
        end_with_parent=args.end_with_parent,
    )
    # a signal during the start must clean up as well: it becomes an exception that unwinds the start
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(0))
    with contextlib.suppress(PermissionError):
        # the devices behind the ports would have processors of their own; only root may ask for this
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    lab = Lab(config)
    try:
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, lambda *_: lab.stop())
        directory = lab.directory.path
        if args.log:
            redirect_output(args.log if args.log.is_absolute() else Path.cwd() / args.log)
        ports = ", ".join(ONE_ARM if config.arms == 1 else (*TWO_ARMS, "ft300"))
        print(
            f"lab ready in {directory} (pid {os.getpid()}): {ports}, side, calibration/; "
            f"wrist camera on 127.0.0.1:{config.wrist_port}. Stop: Ctrl-C or {stop_command(directory)}.",
            flush=True,
        )
        lab.run()
    finally:
        lab.close()
    return 0


def detach(args: argparse.Namespace, argv: list[str]) -> int:
    """Start the lab as a process of its own and wait until it is ready."""
    directory = lab_dir(args.dir).absolute()
    log = (args.log or directory / "lab.log").absolute()
    words = [word for word in argv if word != "--detach"] + [f"--dir={directory}", f"--log={log}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lerobot_ext", "lab", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    # its output ends here when it is turned to the log, which is when the lab is ready, or when the lab has failed
    said = process.stdout.read().strip().removeprefix("error: ")
    with LabClient(directory) as client:
        try:
            status = client.wait_ready(10.0)
        except ConnectionError:
            raise UserError(said or f"the lab did not start; see {log}.") from None
    if status.pid != process.pid:
        raise UserError(said)
    print(f"lab ready in {directory} (pid {status.pid}), log {log}. Stop: {stop_command(directory)}.")
    return 0


def stop_command(directory: Path) -> str:
    """What to type to stop the lab in `directory`."""
    return f"`lerobot-ext lab --stop{'' if directory == lab_dir().absolute() else f' --dir={directory}'}`"


def redirect_output(path: Path) -> None:
    """Turn standard output and error, and logging, to the file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def print_status(status: Status, *, as_json: bool) -> None:
    """Print `status` for people, or for machines."""
    if as_json:
        import msgspec

        print(msgspec.json.encode(status).decode())
        return
    print(f"lab pid {status.pid}, running for {status.time_s:.0f} s (simulated)")
    print(f"operator: {status.operator}; episode {'open' if status.in_episode else 'not open'}")
    print(f"contact force {status.contact_force_n:.2f} N, button {status.block_height_m * 1000:.1f} mm high")
    for arm, joints in status.arms.items():
        print(f"{arm}'s joints {' '.join(f'{angle:+.2f}' for angle in joints)} rad")
    camera = status.camera
    for device, fault in status.faults.items():
        print(f"fault: {device} is {fault}")
    print(f"side camera {camera.serial} {camera.color.width}x{camera.color.height} at {camera.fps} fps")
    for episode in status.episodes:
        print(f"episode {episode.index}: {'success' if episode.success else 'failure'}: {episode.reason}")
    if status.episodes:
        print(
            f"{sum(episode.success for episode in status.episodes)} of {len(status.episodes)} episodes succeeded"
        )
