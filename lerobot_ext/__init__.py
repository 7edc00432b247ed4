"""LeRobot with touch, depth and a remote brain: a plugin, not a fork."""

__version__ = "0.1.0"


def register() -> None:
    """Teach LeRobot our types. Called once a process by LeRobot's plugin discovery; later calls do nothing."""
