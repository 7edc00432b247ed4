"""Is this a checkpoint that can be served? Asked before anything heavy is imported or loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lerobot_ext.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"


def looks_like_hub_name(path: str) -> bool:
    """True for `user/name` where no such folder exists."""
    parts = path.split("/")
    return not Path(path).exists() and len(parts) == 2 and all(parts) and not path.startswith((".", "~"))


def check_checkpoint(path: str) -> None:
    """Refuse a folder that does not hold a whole LeRobot checkpoint; a name on the hub is left to LeRobot.

    Raises:
        UserError: With what is missing and where the right folder may be.
    """
    if looks_like_hub_name(path):
        return
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"checkpoint {path} is not there (working directory: {Path.cwd()}); give the folder "
            "…/checkpoints/last/pretrained_model of a training run, or a name on the hub."
        )
    if not (folder / CONFIG).is_file():
        raise UserError(f"{path} is not a LeRobot checkpoint: it has no {CONFIG}.{_nearby(folder)}")
    if "type" not in read_json(folder / CONFIG):
        raise UserError(
            f"{path} is not a LeRobot checkpoint: its {CONFIG} names no policy `type`.{_nearby(folder)}"
        )
    missing = [name for name in required_files(folder) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {path} is incomplete: {', '.join(missing)} is missing; copy the whole folder again, or "
            "serve an earlier checkpoint."
        )


def required_files(folder: Path) -> list[str]:
    """Names of the files that a checkpoint must have, those that its processors name included."""
    names = [WEIGHTS, PREPROCESSOR, POSTPROCESSOR]
    for processor in (PREPROCESSOR, POSTPROCESSOR):
        if (folder / processor).is_file():
            steps = read_json(folder / processor).get("steps", [])
            names += [step["state_file"] for step in steps if step.get("state_file")]
    return names


def has_step(path: str | Path, processor: str, name: str) -> bool:
    """True if a saved processor has a step registered under `name`."""
    steps = read_json(Path(path) / processor).get("steps", [])
    return any(step.get("registry_name") == name for step in steps)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: If there is none.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); the checkpoint is damaged.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds {type(data).__name__}, expected an object; the checkpoint is damaged.")
    return data


def _nearby(folder: Path) -> str:
    """A hint at the checkpoint inside a training run's folder."""
    found = sorted(folder.glob("**/pretrained_model/config.json"))
    return f" Did you mean {found[-1].parent}?" if found else ""
