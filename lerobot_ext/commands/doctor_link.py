"""The doctor at the robot: from the YAML and the bare connection up to whether policy and robot fit each other.

Each check is a function of one Visit, in which it leaves what later checks need. How checks are run and printed is in
`doctor_checks`; the connection's own steps are in `simplify_work.local.probe`, the stopwatch in `doctor_delay`.
"""

from __future__ import annotations

import lerobot_ext
from lerobot_ext.commands import config as config_files
from lerobot_ext.commands import doctor_delay
from lerobot_ext.commands.doctor_checks import FAILED, OK, WARNING, Check, Finding, failed
from lerobot_ext.commands.doctor_visit import CONNECT_S, Visit
from lerobot_ext.errors import UserError
from simplify_work.local import probe
from simplify_work.wire.errors import FeatureMismatch, KeyRefused
from simplify_work.wire.features import FeatureSpec, check_features
from simplify_work.wire.messages import PROTOCOL_VERSION

KEYS_ADVICE = (
    "run `lerobot-ext keys FOLDER --robots=NAME` at the server, serve with --keys=FOLDER/server, copy FOLDER/NAME to "
    "this machine and give --keys=FOLDER/NAME"
)


def checks(visit: Visit) -> list[Check[Visit]]:
    """What is looked at, in this order; the robot only if there is a YAML."""
    with_robot = [Check("robot", look_at_robot)] if visit.config_path else []
    compare = [Check("features", look_at_features, ("robot", "policy"))] if visit.config_path else []
    return [
        *with_robot,
        Check("network", look_at_network),
        Check("program", look_at_program, ("network",)),
        Check("keys", look_at_keys, ("program",)),
        Check("versions", look_at_versions, ("keys",)),
        Check("policy", look_at_policy, ("versions",)),
        *compare,
        Check("round trip", doctor_delay.look_at_round_trip, ("policy",)),
        Check("chunks", doctor_delay.look_at_chunks, ("policy",)),
        Check("bandwidth", doctor_delay.look_at_bandwidth, ("round trip",)),
        Check("delay", doctor_delay.look_at_delay, ("chunks",)),
    ]


def look_at_robot(visit: Visit) -> Finding:
    """The YAML's robot and its features; nothing is connected to."""
    config_files.shorten_torchcodec()
    import draccus
    from lerobot.robots import RobotConfig, make_robot_from_config

    from lerobot_ext.commands.evaluate import EvaluateConfig
    from lerobot_ext.policies.remote.features import given_features

    config_files.check_keys(EvaluateConfig, visit.data, str(visit.config_path))
    if not visit.setting("robot"):
        raise UserError(f"{visit.config_path} has no robot; give the YAML that `lerobot-ext evaluate` gets.")
    robot = make_robot_from_config(draccus.decode(RobotConfig, visit.data["robot"]))
    renamed = visit.setting("rename_map", default=visit.setting("policy", "rename_map", default={}))
    visit.given = tuple(
        FeatureSpec(renamed.get(spec.name, spec.name), spec.kind, spec.shape, spec.dtypes)
        for spec in given_features(robot.observation_features)
    )
    visit.action_names = tuple(robot.action_features)
    return Finding(
        OK, f"{visit.data['robot'].get('type')} gives {listed(visit.given)}; {visit.fps:g} steps a second"
    )


def look_at_network(visit: Visit) -> Finding:
    """Does the address take connections?"""
    connection, seconds = probe.connect(visit.address, CONNECT_S)
    connection.close()
    return Finding(
        OK,
        f"{visit.address.endpoint} took a connection in {1e3 * seconds:.1f} ms",
        figures={"connect_ms": 1e3 * seconds},
    )


def look_at_program(visit: Visit) -> Finding:
    """Is it a ZeroMQ socket of the right type?"""
    connection, _ = probe.connect(visit.address, CONNECT_S)
    with connection:
        greeting = probe.greet(connection, CONNECT_S)
    visit.greeting = greeting
    if greeting.socket_type not in (None, "ROUTER"):
        return Finding(
            FAILED,
            f"a ZeroMQ program is there, but its socket is a {greeting.socket_type}, no lerobot_ext server",
            "check the port; a camera's is another than the server's",
        )
    how = {"NULL": "without keys", "CURVE": "with keys"}.get(greeting.mechanism, greeting.mechanism)
    return Finding(OK, f"a ZeroMQ server, {how}", figures={"mechanism": greeting.mechanism})


def look_at_keys(visit: Visit) -> Finding:
    """Do both sides have keys, and does the server admit ours?"""
    wanted = visit.greeting.mechanism
    if wanted not in ("NULL", "CURVE"):
        return Finding(
            FAILED, f"the program wants mechanism {wanted}", "check the port: no lerobot_ext server does"
        )
    if wanted == "CURVE" and not visit.keys:
        return Finding(FAILED, "the server admits listed keys only, and none was given", KEYS_ADVICE)
    if wanted == "NULL" and visit.keys:
        return Finding(
            FAILED,
            f"the server has no keys, so those in {visit.keys} cannot be used",
            "serve with --keys=FOLDER/server, or leave the keys out here",
        )
    if wanted == "NULL" and visit.address.is_loopback:
        return Finding(OK, "none, and none needed: only this machine reaches this address")
    if wanted == "NULL":
        return Finding(
            WARNING,
            f"none: whoever reaches port {visit.address.port} sees the pictures and can use the policy",
            KEYS_ADVICE,
        )
    try:
        visit.meet()
    except KeyRefused as error:
        return failed(error)
    except Exception:
        if visit._client is None:
            raise  # the keys themselves cannot be used
        # Whatever else is wrong is what the next check is about.
    return Finding(OK, f"the server admits those in {visit.keys}; the connection is encrypted")


def look_at_versions(visit: Visit) -> Finding:
    """Does it speak our protocol, and is it of our version?"""
    welcome = visit.meet()
    visit.welcome = welcome
    ours = f"lerobot_ext {lerobot_ext.__version__}"
    found = f"protocol {PROTOCOL_VERSION} on both sides; the server is {welcome.server}, this side {ours}"
    if welcome.server != ours:
        return Finding(WARNING, found, "install the same version of lerobot_ext on both machines")
    return Finding(OK, found)


def look_at_policy(visit: Visit) -> Finding:
    """What is served."""
    welcome = visit.welcome
    rtc = "with" if welcome.supports_rtc else "without"
    tip = ", takes a language tip" if welcome.takes_tip else ""
    return Finding(
        OK,
        f"{welcome.policy_type} wants {listed(welcome.inputs)}; gives chunks of {welcome.chunk_size} actions of "
        f"{welcome.action_dim}, {rtc} RTC{tip}",
        figures={"policy_type": welcome.policy_type, "chunk_size": welcome.chunk_size},
    )


def look_at_features(visit: Visit) -> Finding:
    """Does the robot give what the policy wants, and take what it gives?"""
    welcome = visit.welcome
    try:
        check_features(welcome.inputs, visit.given, welcome.policy_type)
    except FeatureMismatch as error:
        return Finding(FAILED, str(error))  # what to do stands in its last sentence
    if welcome.action_dim != len(visit.action_names):
        return Finding(
            FAILED,
            f"the policy's actions have {welcome.action_dim} entries, the robot takes {len(visit.action_names)} "
            f"({', '.join(visit.action_names)})",
            "serve a policy that was trained on this robot's actions",
        )
    if welcome.action_names and tuple(welcome.action_names) != visit.action_names:
        return Finding(
            WARNING,
            f"the policy's actions are called {', '.join(welcome.action_names)}, the robot's "
            f"{', '.join(visit.action_names)}",
            "make sure that both mean the same joints in the same order",
        )
    return Finding(OK, "the robot gives all that the policy wants, and takes its actions")


def listed(features: tuple[FeatureSpec, ...]) -> str:
    """Features in one line, without LeRobot's prefix."""
    return ", ".join(str(spec).removeprefix("observation.") for spec in features) or "nothing"
