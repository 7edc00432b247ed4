"""The selection as the first step of a policy's preprocessor: raw observation in, what the network gets out.

It is what makes a checkpoint carry its own selection: training, `lerobot-rollout`, our server and LeRobot's
`make_pre_post_processors` all run this one step on the same raw keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import DataProcessorPipeline, ProcessorStep, ProcessorStepRegistry
from torch import Tensor

from lerobot_ext.features import OBS_FORCE
from lerobot_ext.modality.depth import DepthRange, Pinhole, depth_image
from lerobot_ext.modality.force import ForceHistory
from lerobot_ext.modality.images import resize_image
from lerobot_ext.modality.plan import DEPTH, FORCE, OBS_STATE, OBS_TIP, RGB
from lerobot_ext.modality.selection import Selection
from lerobot_ext.modality.texts import unpack

STEP_NAME = "lerobot_ext_modality"
_PAD = "_is_pad"


@ProcessorStepRegistry.register(name=STEP_NAME)
@dataclass
class ModalityStep(ProcessorStep):
    """Applies a selection to observations.

    Takes a batch as LeRobot's train loop or `prepare_observation_for_inference` makes it, with any leading
    dimensions: RGB (…, 3, H, W) in [0, 1]; depth (…, 1, H, W), integer millimetres or floating metres; force
    (…, n); state (…, m). Gives exactly the selected keys: RGB resized, depth as (…, 3, h, w) in [0, 1] under its
    own key, state and force joined (…, m + n). Everything outside the observation passes, except the padding
    flags of features that are gone, and the task, to which a selected tip is appended.

    Force for a token comes out as a window, (B, H, n). Given as one, (B, H, n), as datasets and remote robots give
    it, it passes; a single sample, (n,) or (B, n), is put to those of the control steps before, which the step
    remembers until `reset`. So whoever gives single samples calls the step at every control step.

    Attributes:
        selection: A `Selection` or its JSON form.
        recorded: The raw observation that the policy was trained on, by key (see `plan.raw_observation`).
    """

    selection: Selection
    recorded: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the selection from its JSON form, which is how LeRobot gives it."""
        if not isinstance(self.selection, Selection):
            self.selection = Selection.from_dict(self.selection)
        self.recorded = {key: dict(entry) for key, entry in self.recorded.items()}
        # Of this episode and of whoever runs this step: never saved, and two equal steps may differ in it.
        self._history = ForceHistory(self.required_history().get(OBS_FORCE, 1))

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Apply the selection to one transition; the given one is not changed.

        Raises:
            ValueError: If a wanted observation is missing or a vector has another length than in training.
        """
        transition = transition.copy()
        given = transition.get(TransitionKey.OBSERVATION) or {}
        missing = [key for key in self.recorded if key not in given]
        if missing:
            raise ValueError(
                f"the policy was trained on {', '.join(missing)}, which the observation does not have; "
                f"it has: {', '.join(given) or 'nothing'}."
            )
        observation = {key: self._convert(key, given[key]) for key in self.recorded}
        if self._fused:
            force = observation.pop(OBS_FORCE)
            state = observation[OBS_STATE]
            observation[OBS_STATE] = torch.cat([state, force.to(state)], dim=-1)
        transition[TransitionKey.OBSERVATION] = observation
        extra = transition.get(TransitionKey.COMPLEMENTARY_DATA)
        if extra is not None:
            transition[TransitionKey.COMPLEMENTARY_DATA] = self._complement(extra, given, observation)
        return transition

    def reset(self) -> None:
        """A new episode begins: forget its predecessor's force."""
        self._history.clear()

    def get_config(self) -> dict[str, Any]:
        """What is written into the checkpoint."""
        return {"selection": self.selection.to_dict(), "recorded": self.recorded}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Raw features in, the network's features out; unselected observations are dropped."""
        raw = features.get(PipelineFeatureType.OBSERVATION, {})
        seen = {key: self._seen(key, raw[key]) for key in self.recorded if key in raw}
        for key, history in self.required_history().items():
            if key in seen:
                seen[key] = PolicyFeature(seen[key].type, (history, *seen[key].shape))
        if self._fused and OBS_STATE in seen and OBS_FORCE in seen:
            force, state = seen.pop(OBS_FORCE), seen[OBS_STATE]
            seen[OBS_STATE] = PolicyFeature(state.type, (state.shape[0] + force.shape[0],))
        return {**features, PipelineFeatureType.OBSERVATION: seen}

    def required_inputs(
        self, input_features: Mapping[str, PolicyFeature] | None = None
    ) -> dict[str, PolicyFeature]:
        """The raw observation that a robot has to give.

        Args:
            input_features: The policy's own `input_features`; those that this step does not make (an empty
                camera that a policy adds to itself, say) are not asked of the robot and not looked at.

        Returns:
            By key: images (C, H, W) of type VISUAL, depth with one channel; vectors (n,), of which
            `required_history` says how many samples. Height and width are those of the recording; other sizes work
            if the selection resizes.

        Raises:
            ValueError: If the policy wants a feature under a key of this step in another shape than it makes.
        """
        required = {key: _raw_feature(key, entry) for key, entry in self.recorded.items()}
        made = self.transform_features({PipelineFeatureType.OBSERVATION: required})
        for key, feature in made[PipelineFeatureType.OBSERVATION].items():
            wanted = (input_features or {}).get(key)
            if wanted is None or feature.type is FeatureType.VISUAL:
                continue
            if tuple(wanted.shape) != feature.shape:
                raise ValueError(
                    f"{key}: the policy takes {tuple(wanted.shape)}, its modality step makes {feature.shape}; "
                    "the checkpoint's config.json and policy_preprocessor.json do not belong together."
                )
        return required

    def required_history(self) -> dict[str, int]:
        """Of which raw vectors the last samples are wanted, one control step apart, and how many; of others one."""
        return {key: entry["history"] for key, entry in self.recorded.items() if "history" in entry}

    @property
    def takes_tip(self) -> bool:
        """Whether the policy was trained on tasks with their language tips (see `with_tip`)."""
        return self.selection.language_tip

    @property
    def _fused(self) -> bool:
        force = self.selection.force
        return force is not None and not force.is_token and OBS_FORCE in self.recorded

    def _convert(self, key: str, value: Tensor) -> Tensor:
        entry = self.recorded[key]
        if entry["kind"] == RGB:
            return resize_image(value, self.selection.resize)
        if entry["kind"] == DEPTH:
            if value.shape[-3] != 1:
                raise ValueError(f"{key}: depth of shape {tuple(value.shape)}; expected (…, 1, H, W).")
            limits = DepthRange(entry["lowest_m"], entry["highest_m"])
            camera = Pinhole.of(entry["intrinsics"]) if "intrinsics" in entry else None
            return depth_image(value, self.selection.depth, limits, self.selection.resize, camera)
        if value.shape[-1] != entry["shape"][0]:
            raise ValueError(
                f"{key} has {value.shape[-1]} values, the policy was trained on {entry['shape'][0]}: "
                f"{', '.join(entry['names'])}."
            )
        return self._window(value, entry["history"]) if "history" in entry else value

    def _window(self, force: Tensor, history: int) -> Tensor:
        if force.ndim < 3:
            return self._history.add(force)
        if force.shape[-2] != history:
            raise ValueError(
                f"{OBS_FORCE} is a window of {force.shape[-2]} samples, the policy was trained on {history}."
            )
        return force

    def _complement(
        self, extra: Mapping[str, Any], given: Mapping[str, Any], observation: Mapping[str, Any]
    ) -> dict[str, Any]:
        gone = {f"{key}{_PAD}" for key in (*given, *self.recorded) if key not in observation}
        kept = {key: value for key, value in extra.items() if key not in gone}
        if "task" in kept:
            kept["task"] = unpack(kept["task"])
        if self.selection.language_tip and "task" in kept:
            kept["task"] = with_tip(kept["task"], unpack(given.get(OBS_TIP)))
        return kept

    def _seen(self, key: str, raw: PolicyFeature) -> PolicyFeature:
        entry = self.recorded[key]
        if entry["kind"] not in (RGB, DEPTH):
            return raw
        return PolicyFeature(FeatureType.VISUAL, (3, *(self.selection.resize or raw.shape[-2:])))


def with_tip(task: str | list[str], tip: str | list[str] | None) -> str | list[str]:
    """The task with its tip, `Press the block. Tip: slowly`; an empty or missing tip changes nothing."""
    if isinstance(task, list):
        tips = tip if isinstance(tip, list) else [tip] * len(task)
        return [with_tip(one, its) for one, its in zip(task, tips, strict=True)]
    tip = tip[0] if isinstance(tip, list) and tip else tip
    return f"{task} Tip: {tip}" if tip else task


def find_step(preprocessor: DataProcessorPipeline) -> ModalityStep | None:
    """The modality step of a policy's preprocessor, or None: then the policy takes what LeRobot gives."""
    return next((step for step in preprocessor.steps if isinstance(step, ModalityStep)), None)


def _raw_feature(key: str, entry: Mapping[str, Any]) -> PolicyFeature:
    shape = tuple(entry["shape"])
    if entry["kind"] in (RGB, DEPTH):
        return PolicyFeature(FeatureType.VISUAL, (shape[2], shape[0], shape[1]))
    if entry["kind"] == FORCE:
        # The member exists once lerobot_ext.register() has run; without it force is a state like any other.
        return PolicyFeature(getattr(FeatureType, "FORCE", FeatureType.STATE), shape)
    kind = FeatureType.ENV if key == "observation.environment_state" else FeatureType.STATE
    return PolicyFeature(kind, shape)
