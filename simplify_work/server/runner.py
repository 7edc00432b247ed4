"""A LeRobot checkpoint that answers observations with chunks: the same steps, the same numbers as in LeRobot's loop.

Knows policies and processors; knows nothing of sockets, and of sessions only that each has its own state.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import lerobot_ext
from lerobot_ext.errors import UserError
from lerobot_ext.rollout.guidance import Guidance, check_guidance, guided, supports_guidance
from lerobot_ext.rollout.native_rtc import continues_itself
from lerobot_ext.rollout.seeds import seeded
from simplify_work.server import checkpoint
from simplify_work.server.affine import affine_form
from simplify_work.server.batching import WORDS, Batch, join, likeness, pad_words
from simplify_work.server.history import ObservationQueues
from simplify_work.server.loading import first_line, load_config, load_policy, load_processors
from simplify_work.server.memory import PolicyMemory
from simplify_work.server.noise import NoiseSource
from simplify_work.server.pictures import pictures_used
from simplify_work.server.protocol import Inference, Request, Served
from simplify_work.server.session import PolicySession
from simplify_work.server.wanted import takes_tip, wanted_from_robot

logger = logging.getLogger(__name__)

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Largest difference, in the model's units, between a chunk inferred alone and in a batch that is float arithmetic.
_BATCH_TOLERANCE = 0.05
_SAME = 1e-4


class PolicyRunner:
    """A loaded policy with its processors; `served` is complete after `warm_up`.

    Attributes:
        config: The policy's config.
        device: Where it computes.
        inputs: What the policy wants from the robot.
        chunk_size: Actions in a chunk, as found by the warm-up.
        action_dim: Width of an action.
        n_action_steps: Actions of a chunk that the config says to execute.
        n_obs_steps: Observations that the policy looks at.
        supports_rtc: Whether a chunk can be guided to continue the last one.
        batches: Whether several observations may be inferred at once, as found by the warm-up.

    Args:
        path: Folder of a LeRobot checkpoint, or its name on the hub.
        device: `cuda`, `cuda:1`, `cpu`, …; the checkpoint's if None (or what LeRobot falls back to).
        dtype: Compute in `bfloat16` or `float16` by autocast; None as the checkpoint says.
        compile_policy: Use torch.compile if it works.

    Raises:
        UserError: If the checkpoint is not there, incomplete, not LeRobot's, or cannot be served.
    """

    def __init__(
        self, path: str, device: str | None = None, dtype: str | None = None, compile_policy: bool = False
    ) -> None:
        path = str(path)
        checkpoint.check_checkpoint(path)
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}' is not offered; there are: {', '.join(DTYPES)}.")
        lerobot_ext.register()
        self.config = load_config(path, device)
        self.device = torch.device(self.config.device)
        self._dtype = DTYPES[dtype] if dtype else None
        self._policy = load_policy(path, self.config)
        self._processors = load_processors(path, self.config)
        self._lock = threading.Lock()
        self._compile = compile_policy
        self._compiled = None
        self._noise = NoiseSource(self._policy, self.device)
        self._queues = ObservationQueues(self._policy)
        self._memory = PolicyMemory(self._policy, ignore=("_queues",) if self._queues else ())
        self.inputs = wanted_from_robot(self.config.input_features, self._processors[0])
        self.action_dim = self.config.action_feature.shape[0]
        self.n_obs_steps = self.config.n_obs_steps
        self.supports_rtc = supports_guidance(self._policy, self._processors[1])
        self.chunk_size = 0
        self.n_action_steps = 0
        self.batches = False
        self._pads_words = False
        self._time_first = False  # TD-MPC's chunks are (n, samples, dim)
        self._postprocessor_form: tuple[np.ndarray, np.ndarray] | None = None
        self._pictures = ()

    @property
    def served(self) -> Served:
        """What the policy is."""
        names = getattr(self.config, "action_feature_names", None)
        return Served(
            policy_type=self.config.type,
            inputs=self.inputs,
            action_dim=self.action_dim,
            chunk_size=self.chunk_size,
            n_action_steps=self.n_action_steps,
            action_names=tuple(names) if names else None,
            n_obs_steps=self.n_obs_steps,
            supports_rtc=self.supports_rtc,
            takes_tip=takes_tip(self._processors[0]),
            pictures=self._pictures,
            temporal_ensemble_coeff=getattr(self.config, "temporal_ensemble_coeff", None),
            postprocessor=self._postprocessor_form,
        )

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is in use."""
        return self._compiled is not None

    def open_session(self) -> PolicySession:
        """State of one robot: its own copy of the processors, and of what the policy remembers.

        Tokenizers are shared: they are large and remember nothing.
        """
        shared = {
            id(value): value
            for processor in self._processors
            for step in processor.steps
            for value in vars(step).values()
            if hasattr(value, "batch_decode")
        }
        return PolicySession(self, *copy.deepcopy(self._processors, shared))

    def warm_up(self) -> float:
        """Infer on arrays of zeros, so that the first robot does not wait; returns the seconds that the first chunk took.

        Finds out what `served` tells, whether chunks can be inferred together, and how noise is drawn.

        Raises:
            UserError: If the policy cannot make a chunk.
        """
        observation = self._example()
        session = self.open_session()
        started = time.perf_counter()
        try:
            steps = session.preprocess(Request(session, observation))
            shape = self.predict(steps, [None], [None]).shape
            self._time_first = len(shape) == 3 and shape[0] > 1 == shape[1]
            actions = session.infer(observation).actions
        except Exception as error:
            listed = ", ".join(map(str, self.inputs))
            raise UserError(
                f"policy '{self.config.type}' cannot be served: a first chunk for {listed} failed "
                f"({type(error).__name__}: {error})."
            ) from error
        took = time.perf_counter() - started
        session.leave_tokenizers(self._processors)
        self.chunk_size = len(actions)
        self.n_action_steps = min(
            getattr(self.config, "n_action_steps", None) or self.chunk_size, self.chunk_size
        )
        self._examine(observation)
        return took

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference | Exception]]:
        """Chunks for requests of different sessions; those whose preprocessed tensors are alike are one batch.

        A batch that fails (the memory may not suffice) is inferred one by one.
        """
        started = time.perf_counter()
        groups: dict[Hashable, list[_Prepared]] = {}
        for index, request in enumerate(requests):
            try:
                prepared = self._prepare(index, request)
            except Exception as error:
                yield index, error
            else:
                groups.setdefault(prepared.likeness, []).append(prepared)
        self._finish()
        preprocess_s = time.perf_counter() - started
        for group in groups.values():
            yield from self._infer_group(group, preprocess_s)

    def predict(
        self, steps: Sequence[Batch], seeds: Sequence[int | None], guidances: Sequence[Guidance | None]
    ) -> Tensor:
        """One call of the policy, (samples, n, dim).

        Args:
            steps: The batch at each of the n_obs_steps time steps, the oldest first.
            seeds: Of each sample.
            guidances: Of each sample.
        """
        with torch.no_grad(), self._lock, self._autocast():
            batch = self._queues.observe(steps)
            if seeds[0] is not None and self._noise.kind == "global":
                with seeded(seeds[0], self.device):
                    return self._call(batch, guidances)
            return self._call(batch, guidances, **self._noise.draw(seeds, always=self.compiled))

    def _prepare(self, index: int, request: Request) -> _Prepared:
        session = request.session
        guidance = session.guidance(request)
        if guidance is not None:
            check_guidance(self._policy, guidance)
        steps = session.preprocess(request)
        alone = not self.batches or self._memory.slots or not (request.seed is None or self._noise.batches)
        alone = alone or (guidance is not None and continues_itself(self._policy))
        # A gradient through the denoiser is paid by the whole batch; without it guided and unguided go together.
        gradient = guidance is not None and guidance.rtc.guidance == "jacobian"
        kind = (index if alone else None, gradient, tuple(likeness(step, self._pads_words) for step in steps))
        return _Prepared(index, request, steps, guidance, kind)

    def _infer_group(
        self, group: list[_Prepared], preprocess_s: float
    ) -> Iterator[tuple[int, Inference | Exception]]:
        started = time.perf_counter()
        chunks = None
        try:
            chunks = self._predict_group(group)
        except Exception as error:
            if len(group) == 1:
                yield group[0].index, error
                return
            logger.warning("a batch of %d failed (%s); inferring one by one", len(group), first_line(error))
        if chunks is None:
            # Not among the above: while an exception is handled, its traceback keeps the failed batch's tensors.
            for prepared in group:
                yield from self._infer_group([prepared], preprocess_s)
            return
        infer_s = time.perf_counter() - started
        for position, prepared in enumerate(group):
            started = time.perf_counter()
            request = prepared.request
            try:
                chunk = chunks[position : position + 1].float()
                actions = request.session.postprocess(chunk)
                model = chunk[0].cpu().numpy() if request.model_actions else None
            except Exception as error:
                yield prepared.index, error
                continue
            took = time.perf_counter() - started
            yield prepared.index, Inference(actions, preprocess_s, infer_s, took, len(group), model)

    def _predict_group(self, group: list[_Prepared]) -> Tensor:
        steps = [join(batches) for batches in zip(*(prepared.steps for prepared in group), strict=True)]
        seeds = [prepared.request.seed for prepared in group]
        guidances = [prepared.guidance for prepared in group]
        if self._memory.slots:  # the group is one
            session = group[0].request.session
            self._memory.load(self._memory.fresh() if session.memory is None else session.memory)
            chunks = self.predict(steps, seeds, guidances)
            session.memory = self._memory.save()
        else:
            chunks = self.predict(steps, seeds, guidances)
        self._finish()
        if self._time_first:
            chunks = chunks.transpose(0, 1)
        if chunks.ndim != 3 or len(chunks) != len(group):
            raise ValueError(
                f"predict_action_chunk returned {tuple(chunks.shape)}, expected ({len(group)}, n, {self.action_dim})"
            )
        return chunks

    def _call(self, batch: Batch, guidances: Sequence[Guidance | None], **arguments: Tensor) -> Tensor:
        if any(guidances):
            with guided(self._policy, guidances):
                return self._policy.predict_action_chunk(batch, **arguments)
        if self._compiled is not None:
            try:
                return self._compiled(batch, **arguments)
            except Exception as error:
                logger.warning("torch.compile failed (%s); going on without it", first_line(error))
                self._compiled = None
        return self._policy.predict_action_chunk(batch, **arguments)

    def _examine(self, observation: Mapping[str, np.ndarray]) -> None:
        """Find out by trying what can be done with this policy."""
        session = self.open_session()
        steps = session.preprocess(Request(session, observation))

        def predict(batch: Mapping[str, object], **arguments: Tensor) -> Tensor:
            return self._policy.predict_action_chunk(batch, **arguments).float()

        def once(batch: Batch, **arguments: Tensor) -> Tensor:
            # A policy with queues takes its observations from them, whatever is in the batch.
            with torch.no_grad(), self._lock, self._autocast():
                return predict(self._queues.observe(steps) if self._queues else batch, **arguments)

        self._policy.reset()
        watches = [self._memory.watch()]
        for _ in range(2):
            self.predict(steps, [0], [None])
            watches.append(self._memory.watch())
        self._memory.find(*watches)
        self._noise.probe(once, self._queues.observe(steps))
        self.batches = not self._memory.slots and self._batch_works(steps)
        self._pads_words = self.batches and self._padding_works(steps)
        if self._compile:
            self._try_compile(steps)
        self._policy.reset()
        self._postprocessor_form = self._affine(observation)
        if self.n_obs_steps == 1:
            session = self.open_session()
            self._pictures = pictures_used(
                self.config,
                self._processors[0],
                self.inputs,
                lambda probe: session.preprocess(Request(session, probe))[-1],
            )

    def _batch_works(self, steps: Sequence[Batch]) -> bool:
        """Whether two samples at once give what each gives alone."""
        double = [join([step, step]) for step in steps]
        try:
            both = self.predict(double, [1, 1] if self._noise.batches else [None, None], [None, None]).float()
            alone = self.predict(steps, [1], [None]).float()
        except Exception as error:
            logger.info("observations are inferred one by one: a batch of two failed (%s)", first_line(error))
            return False
        if both.shape != (2, *alone.shape[1:]):
            return False
        if not self._noise.batches:
            return True
        difference = (both - alone).abs().max().item()
        if difference > _BATCH_TOLERANCE * max(1.0, alone.abs().max().item()):
            logger.info("observations are inferred one by one: in a batch they differ by %.2g", difference)
            return False
        return True

    def _padding_works(self, steps: Sequence[Batch]) -> bool:
        """Whether hidden words after a task's own change nothing."""
        if not self._noise.batches or any(name not in steps[-1] for name in WORDS):
            return False
        longer = [pad_words(step, step[WORDS[0]].shape[-1] + 3) for step in steps]
        found, expected = (self.predict(batch, [1], [None]).float() for batch in (longer, steps))
        return torch.allclose(found, expected, rtol=_SAME, atol=_SAME)

    def _try_compile(self, steps: Sequence[Batch]) -> None:
        """Compile for one and for several samples, so that robots do not wait for it."""
        logger.info("compiling the policy; this may take minutes")
        try:
            self._compiled = torch.compile(self._policy.predict_action_chunk)
            for samples in (1, 2) if self.batches else (1,):
                self.predict([join([step] * samples) for step in steps], [None] * samples, [None] * samples)
        except Exception as error:
            self._compiled = None
            logger.warning("torch.compile failed (%s); going on without it", first_line(error))

    def _affine(self, observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """The postprocessor's form, if that does not depend on the observation."""
        forms = []
        for factor in (0, 1):
            session = self.open_session()
            moved = {name: array + array.dtype.type(factor) for name, array in observation.items()}
            session.preprocess(Request(session, moved))
            forms.append(affine_form(session.postprocess_tensor, self.action_dim, self.device))
        if any(form is None for form in forms) or not np.allclose(*forms, rtol=1e-9, atol=1e-9):
            return None
        return forms[0]

    def _example(self) -> dict[str, np.ndarray]:
        steps = (self.n_obs_steps,) if self.n_obs_steps > 1 else ()
        return {spec.name: np.zeros(steps + tuple(spec.sent.shape), spec.dtypes[0]) for spec in self.inputs}

    def _finish(self) -> None:
        """Wait for the device, so that what was measured is what was computed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _autocast(self) -> AbstractContextManager:
        if self._dtype is not None:
            return torch.autocast(self.device.type, self._dtype)
        # As LeRobot's SyncInferenceEngine does it.
        if self.device.type == "cuda" and self.config.use_amp:
            return torch.autocast(self.device.type)
        return nullcontext()


@dataclass(frozen=True)
class _Prepared:
    """A request that was preprocessed; those of equal `likeness` can be one batch."""

    index: int
    request: Request
    steps: list[Batch]
    guidance: Guidance | None
    likeness: Hashable
