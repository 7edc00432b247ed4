"""The lab's two arms as one robot's configuration, LeRobot's or ours, for the tests of robots of two arms."""

from lerobot.cameras.zmq import ZMQCameraConfig
from lerobot.robots.bi_so_follower import BiSOFollowerConfig
from lerobot.robots.so_follower import SOFollowerConfig

from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.robots import BiSO101FollowerExtConfig
from lerobot_ext.robots.config_so_follower_ext import SOFollowerExtArmConfig
from lerobot_ext.sensors import AnySkinConfig

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = [f"{side}_{motor}.pos" for side in ("left", "right") for motor in MOTORS]
# Degrees, the grippers per cent; all different, and within reach of where the arms are at home.
GOALS = dict(zip(NAMES, (-10, -8, -12, 84, 0, 30, -22, 3, -20, 90, 14, 45), strict=True))
PERMUTED = [NAMES[(5 * number + 7) % 12] for number in range(12)]
SIZE = {"width": 160, "height": 120, "fps": 30}
IMAGE = "observation.images.right_wrist"
STOCK, OURS = "bi_so_follower", "bi_so101_follower_ext"


def wrist(lab, name):
    return ZMQCameraConfig(
        server_address="127.0.0.1", port=lab.wrist_port, camera_name=name, timeout_ms=15_000, **SIZE
    )


def skin(lab, name):
    return AnySkinConfig(port=str(lab.port(name)), max_age_ms=2000)


def side_camera(lab):
    return RealSenseRGBDCameraConfig(
        serial_number_or_name=f"virtual:{lab.directory / 'side'}", max_age_ms=2000, **SIZE
    )


def config_of(kind, lab, *, cameras=True, sensors=False, **more):
    """The robot's configuration, with a camera at each wrist."""
    arms = {}
    for side in ("left", "right"):
        given = {"port": str(lab.port(f"follower_{side}"))}
        given["cameras"] = {"wrist": wrist(lab, f"wrist_{side}")} if cameras else {}
        if kind == STOCK:
            arms[f"{side}_arm_config"] = SOFollowerConfig(**given)
        else:
            given |= {"force_sensors": {"skin": skin(lab, f"skin_{side}")}} if sensors else {}
            arms[f"{side}_arm_config"] = SOFollowerExtArmConfig(**given)
    made = BiSOFollowerConfig if kind == STOCK else BiSO101FollowerExtConfig
    return made(id="follower", calibration_dir=lab.calibration, **arms, **more)
