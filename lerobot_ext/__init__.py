"""LeRobot with touch, depth and a remote brain: a plugin, not a fork."""

__version__ = "0.1.0"

_registered = False


def register() -> None:
    """Teach LeRobot our types. Called once a process by LeRobot's plugin discovery; later calls do nothing.

    Only configurations are imported; drivers, and what they need, are imported when a device is made.

    Raises:
        ImportError: LeRobot is not of a version that we know how to extend; the message says what to do.
    """
    global _registered
    if _registered:
        return
    from lerobot_ext import compat

    compat.apply()

    import lerobot_ext.cameras
    import lerobot_ext.modality
    import lerobot_ext.policies.remote.configuration_remote
    import lerobot_ext.robots
    import lerobot_ext.sensors  # noqa: F401
    from lerobot_ext.recording import depth_range, journal, provenance, taring, tips

    for part in (provenance, depth_range, tips, taring, journal):
        part.install()
    _registered = True
