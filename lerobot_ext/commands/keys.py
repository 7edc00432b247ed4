"""`lerobot-ext keys`: the keys of a server and its robots, and what is to be copied where. What they hold: `wire.keys`."""

from __future__ import annotations

from pathlib import Path

from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError
from simplify_work.wire.keys import CLIENTS, SERVER, make_keys


def arguments() -> Options:
    """The command's options."""
    parser = Options(
        "keys",
        description="Makes the keys with which a policy server and its robots know one another and encrypt what they "
        "say (CURVE). For a folder that has keys already, further robots are added; existing keys are never replaced.",
    )
    parser.add_argument("folder", help="where the keys are kept, ~/lerobot_keys for example; made if need be")
    parser.add_argument(
        "--robots", required=True, metavar="NAME,NAME", help="one name for each robot, arm1,arm2 for example"
    )
    return parser


def main(argv: list[str]) -> None:
    """Make the keys and say what to do with them."""
    args = arguments().parse_args(argv)
    folder = Path(args.folder).expanduser()
    robots = [name.strip() for name in args.robots.split(",") if name.strip()]
    if not robots:
        raise UserError(f"keys: --robots={args.robots} names no robot; write --robots=arm1,arm2.")
    new_server = not (folder / SERVER / "server.key").exists()
    try:
        made = make_keys(folder, robots)
    except ValueError as error:
        raise UserError(f"keys: {error}") from error
    if new_server:
        print(f"made the server's keys: {folder / SERVER}")
    for name in robots:
        print(f"{'made' if name in made else 'kept'} the keys of {name}: {folder / name}")
    if made and not new_server:
        print(f"A server elsewhere needs the new files of {folder / SERVER / CLIENTS}, but no restart.")
    print(
        f"\nOn the server:    lerobot-ext serve --keys={folder / SERVER} --host=0.0.0.0 …\n"
        f"On the robot:     copy {folder / robots[0]} there, then policy.keys=THAT_FOLDER\n"
        "Each folder holds a secret: copy it with scp or a stick, to its own machine only, and remove what is not "
        "needed here."
    )
