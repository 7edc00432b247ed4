"""A LeRobot checkpoint that answers observations with chunks: the same steps, the same numbers as in LeRobot's loop.

Knows policies and processors; knows nothing of sockets, and of sessions only that each has its own processor state.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.utils.device_utils import is_torch_device_available

import lerobot_ext
from lerobot_ext.errors import UserError
from simplify_work.server import checkpoint
from simplify_work.server.checkpoint import looks_like_hub_name
from simplify_work.server.wanted import wanted_from_robot
from simplify_work.wire.features import FeatureSpec, check_features, describe

logger = logging.getLogger(__name__)

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Inference:
    """One chunk and what it cost.

    Attributes:
        actions: (n, dim) float32, postprocessed.
        preprocess_s: To make the batch.
        infer_s: In the policy.
        postprocess_s: To make actions of its output.
    """

    actions: np.ndarray
    preprocess_s: float
    infer_s: float
    postprocess_s: float


class PolicyRunner:
    """A loaded policy with its processors.

    Attributes:
        config: The policy's config.
        inputs: What the policy wants from the robot.
        chunk_size: Actions in a chunk, as found by the warm-up.
        action_dim: Width of an action.
        n_action_steps: Actions of a chunk that the config says to execute.

    Args:
        path: Folder of a LeRobot checkpoint, or its name on the hub.
        device: `cuda`, `cuda:1`, `cpu`, …; the checkpoint's if None (or what LeRobot falls back to).
        dtype: Compute in `bfloat16` or `float16` by autocast; None as the checkpoint says.

    Raises:
        UserError: If the checkpoint is not there, incomplete, not LeRobot's, or cannot be served.
    """

    def __init__(self, path: str, device: str | None = None, dtype: str | None = None) -> None:
        path = str(path)
        checkpoint.check_checkpoint(path)
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is not offered; there are: {', '.join(DTYPES)}.")
        lerobot_ext.register()
        self.config = _load_config(path, device)
        self.device = torch.device(self.config.device)
        self._dtype = DTYPES[dtype] if dtype else None
        self._policy = _load_policy(path, self.config)
        self._processors = _load_processors(path, self.config)
        self._lock = threading.Lock()
        self.inputs = wanted_from_robot(self.config.input_features, self._processors[0])
        self.action_dim = self.config.action_feature.shape[0]
        self.chunk_size = 0
        self.n_action_steps = 0

    def open_session(self) -> PolicySession:
        """State of one robot; each has its own copy of the processors."""
        return PolicySession(self, *copy.deepcopy(self._processors))

    def warm_up(self) -> float:
        """Infer once on arrays of zeros, so that the first robot does not wait; returns the seconds it took.

        Raises:
            UserError: If the policy cannot make a chunk.
        """
        session = self.open_session()
        observation = {spec.name: np.zeros(spec.shape, spec.dtypes[0]) for spec in self.inputs}
        started = time.perf_counter()
        try:
            actions = session.infer(observation).actions
        except Exception as error:
            raise UserError(
                f"policy '{self.config.type}' cannot be served: a first chunk for {_listed(self.inputs)} failed "
                f"({type(error).__name__}: {error})."
            ) from error
        session.reset()
        self.chunk_size = len(actions)
        self.n_action_steps = min(
            getattr(self.config, "n_action_steps", None) or self.chunk_size, self.chunk_size
        )
        return time.perf_counter() - started

    def reset_policy(self) -> None:
        """Drop what the policy itself remembers."""
        with self._lock:
            self._policy.reset()

    def predict(self, batch: dict, seed: int | None) -> torch.Tensor:
        """One call of the policy, (1, n, dim); its noise is reproducible if there is a seed."""
        with self._lock, self._noise(seed), self._autocast():
            return self._policy.predict_action_chunk(batch)

    def finish(self) -> None:
        """Wait for the device, so that what was measured is what was computed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _noise(self, seed: int | None) -> AbstractContextManager:
        """Draw from a generator seeded for this chunk alone; other sessions' noise goes on as it was."""
        if seed is None:
            return nullcontext()
        return _seeded(seed, self.device)

    def _autocast(self) -> AbstractContextManager:
        if self._dtype is not None:
            return torch.autocast(self.device.type, self._dtype)
        # As LeRobot's SyncInferenceEngine does it.
        if self.device.type == "cuda" and self.config.use_amp:
            return torch.autocast(self.device.type)
        return nullcontext()


class PolicySession:
    """One robot's view of a policy: its own processors, with what they remember of the episode.

    Made by `PolicyRunner.open_session`.
    """

    def __init__(self, runner: PolicyRunner, preprocessor, postprocessor) -> None:
        self._runner = runner
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor

    @torch.inference_mode()
    def infer(
        self,
        observation: Mapping[str, np.ndarray],
        task: str = "",
        robot_type: str = "",
        seed: int | None = None,
    ) -> Inference:
        """The chunk that LeRobot's synchronous engine would have computed for this observation.

        Args:
            observation: Arrays by `runner.inputs`; others are left out.
            task: What the robot shall do, in words.
            robot_type: LeRobot's name of the robot.
            seed: Seed of the policy's noise; None goes on with torch's generator.

        Raises:
            FeatureMismatch: If the observation lacks something or has another shape.
        """
        runner = self._runner
        wanted = {spec.name: observation[spec.name] for spec in runner.inputs if spec.name in observation}
        check_features(runner.inputs, describe(wanted), runner.config.type)

        started = time.perf_counter()
        arrays = {name: _owned(array) for name, array in wanted.items()}
        batch = prepare_observation_for_inference(arrays, runner.device, task, robot_type)
        batch = self._preprocessor(batch)
        runner.finish()
        preprocessed = time.perf_counter()
        chunk = runner.predict(batch, seed)
        runner.finish()
        inferred = time.perf_counter()
        # Processors work on any leading dimensions, so one call does the whole chunk.
        actions = self._postprocessor(chunk.float())
        actions = np.ascontiguousarray(actions.squeeze(0).cpu().numpy(), dtype=np.float32)
        done = time.perf_counter()
        return Inference(actions, preprocessed - started, inferred - preprocessed, done - inferred)

    def reset(self) -> None:
        """A new episode begins."""
        self._runner.reset_policy()
        self._preprocessor.reset()
        self._postprocessor.reset()


class _seeded:  # noqa: N801  (used as a function)
    """`torch.manual_seed(seed)` inside, the generators as they were outside."""

    def __init__(self, seed: int, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices)
        self._seed = seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *exc_info: object) -> None:
        self._fork.__exit__(*exc_info)


def _owned(array: np.ndarray) -> np.ndarray:
    """An array that torch may keep and write to; a uint8 picture is copied by its conversion to float anyway."""
    if array.dtype == np.uint8 and array.flags.writeable:
        return array
    return array.copy()


def _load_config(path: str, device: str | None) -> PreTrainedConfig:
    if device is not None:
        try:
            available = is_torch_device_available(device)
        except ValueError:
            available = False
        if not available:
            raise UserError(
                f"device '{device}' is not available on this machine; leave out --device, or give cpu."
            )
    try:
        config = PreTrainedConfig.from_pretrained(path)
    except Exception as error:  # draccus, the hub and LeRobot each raise their own
        where = (
            "neither a folder here nor a name that the hub gives"
            if looks_like_hub_name(path)
            else "its values"
        )
        raise UserError(
            f"the config of checkpoint {path} cannot be used ({where}): {_first_line(error)}"
        ) from error
    if device is not None:
        config.device = device
    if config.use_peft:
        raise UserError(f"checkpoint {path} is a PEFT adapter; merge it into its base model and serve that.")
    if config.n_obs_steps > 1:
        raise UserError(
            f"policy '{config.type}' looks at {config.n_obs_steps} observations at once (n_obs_steps); only policies "
            "that look at one can be served so far."
        )
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise UserError(
            f"policy '{config.type}' has temporal_ensemble_coeff={config.temporal_ensemble_coeff}, which needs every "
            "observation; served policies get one observation a chunk. Set it to null in the checkpoint's config.json."
        )
    if config.action_feature is None or not config.input_features:
        raise UserError(
            f"the config of checkpoint {path} names no input features or no action; was it trained?"
        )
    return config


def _load_policy(path: str, config: PreTrainedConfig) -> torch.nn.Module:
    try:
        policy = get_policy_class(config.type).from_pretrained(path, config=config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the weights of checkpoint {path} cannot be loaded as policy '{config.type}': {_first_line(error)}"
        ) from error
    return policy.to(config.device).eval()


def _load_processors(path: str, config: PreTrainedConfig) -> tuple:
    overrides = {}
    if looks_like_hub_name(path) or checkpoint.has_step(path, checkpoint.PREPROCESSOR, "device_processor"):
        overrides["device_processor"] = {"device": config.device}
    try:
        return make_pre_post_processors(
            policy_cfg=config, pretrained_path=path, preprocessor_overrides=overrides
        )
    except Exception as error:
        raise UserError(
            f"the processors of checkpoint {path} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    """One line for an error, with its innermost cause: draccus, for one, says only there what was wrong."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [
        f"{type(each).__name__}: {next(iter(str(each).strip().splitlines()), '')}" for each in (error, cause)
    ]
    return lines[0] if cause is error else " ".join(lines)


def _listed(inputs: tuple[FeatureSpec, ...]) -> str:
    return ", ".join(map(str, inputs))
