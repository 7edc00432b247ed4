"""Mending a dataset folder that a crash left behind: `mend` leads through it, the others each do one step."""

from lerobot_ext.recording.repair.mend import Fate, Options, Report, repair

__all__ = ["Fate", "Options", "Report", "repair"]
