"""What a policy sees of what was recorded: the selection, the dataset view, the step in the checkpoint.

Knows features, not devices. Importing this package registers the processor step `lerobot_ext_modality`, so that
LeRobot can load a checkpoint that carries it; that imports `lerobot.processor`, which every LeRobot script that
loads a policy imports anyway.
"""

from lerobot_ext.modality.selection import DepthSelection, ForceSelection, Selection
from lerobot_ext.modality.step import STEP_NAME, ModalityStep, find_step

__all__ = ["STEP_NAME", "DepthSelection", "ForceSelection", "ModalityStep", "Selection", "find_step"]
