"""Real-Time Chunking for a batch: each sample's new chunk is guided to continue the chunk its own robot executes.

The formula is that of the paper (arXiv 2506.07339) and of its reference implementation, Kinetix; the hooks are those
that LeRobot gives its flow-matching policies. When to ask for a chunk and what becomes of it is not decided here.

LeRobot's own processor takes one delay, horizon and leftover for the whole batch, and the identity in place of the
denoiser's Jacobian. Its prefix weights are the paper's; so are ours, in closed form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor, nn

from lerobot_ext.rollout.native_rtc import continues_itself, continuing
from simplify_work.wire.messages import Rtc

_PROCESSOR = "rtc_processor"
_CONFIG = "rtc_config"
_PREDICT = "predict_action_chunk"


@dataclass(frozen=True, eq=False)
class Guidance:
    """How one sample's new chunk continues the previous one.

    Attributes:
        rtc: Delay, horizon, schedule, clamp, and which guidance.
        left_over: (n, dim) float, in the model's units: the actions of the previous chunk from the new observation's
            timestep on. May be shorter than a chunk; rows past the new chunk's end are ignored. None or no rows: the
            sample is not guided.

    Raises:
        ValueError: If `left_over` is not a finite matrix of floats.
    """

    rtc: Rtc
    left_over: Tensor | None

    def __post_init__(self) -> None:
        left_over = self.left_over
        if left_over is None:
            return
        if left_over.ndim != 2 or not left_over.is_floating_point():
            raise ValueError(
                f"left_over is {tuple(left_over.shape)} {left_over.dtype}; expected (steps, action dim) of a float dtype."
            )
        if not torch.isfinite(left_over).all():
            raise ValueError(
                "left_over holds NaN or infinity; a chunk cannot continue it: ask without guidance."
            )

    @property
    def guides(self) -> bool:
        """False if there is nothing to continue."""
        return self.left_over is not None and self.left_over.numel() > 0


def supports_guidance(policy: Any, postprocessor: Any = None) -> bool:
    """Whether `guided` works on this policy: it says so itself, and LeRobot's hooks are in it, or a way of its own.

    Args:
        policy: A LeRobot policy.
        postprocessor: Its own, which may say that a leftover is of no use to it.
    """
    if continues_itself(policy, postprocessor):
        return True
    supports = getattr(policy, "supports_rtc", None)
    if not callable(supports) or not supports() or not callable(getattr(policy, "init_rtc_processor", None)):
        return False
    return bool(_holders(policy)) and bool(_configs(policy))


def check_guidance(policy: Any, guidance: Guidance) -> None:
    """Refuse what `guided` could not do for this policy, before it costs the other samples of a batch their chunk.

    Raises:
        ValueError: If the policy has no hooks, or the leftover is wider than the policy's actions.
    """
    if not supports_guidance(policy):
        raise ValueError(
            f"policy {type(policy).__name__} cannot guide a chunk (no LeRobot RTC hooks); use merge=aggregate or append."
        )
    widths = [getattr(policy.config, "max_action_dim", None)]
    feature = getattr(policy.config, "action_feature", None)
    widths.append(feature.shape[0] if feature is not None else None)
    width = max((known for known in widths if known is not None), default=None)
    if width is not None and guidance.guides and guidance.left_over.shape[1] > width:
        raise ValueError(
            f"left_over has {guidance.left_over.shape[1]} values an action; policy {type(policy).__name__} makes "
            f"{width}. It must be in the model's units, as the chunk was before postprocessing."
        )


@contextmanager
def guided(policy: Any, requests: Sequence[Guidance | None]) -> Iterator[None]:
    """Inside it, `policy.predict_action_chunk(batch)` denoises guided; afterwards the policy is as it was.

    Not thread-safe: the caller holds whatever lock guards the policy. Use `torch.no_grad()`, not inference mode.

    Args:
        policy: A policy that `supports_guidance`.
        requests: One for each sample of the batch; None: that sample comes out as it would without guidance.

    Raises:
        ValueError: As `check_guidance`; from `predict_action_chunk` if the batch has another number of samples.
        RuntimeError: If torch is in inference mode and a request needs gradients.
    """
    wanted = [request if request is not None and request.guides else None for request in requests]
    if not any(wanted):
        yield
        return
    for request in wanted:
        if request is not None:
            check_guidance(policy, request)
    if continues_itself(policy):
        if len(wanted) > 1:
            raise ValueError(
                f"policy {type(policy).__name__} continues one chunk at a time, in a batch of one; {len(wanted)} came."
            )
        call = functools.partial(getattr(policy, _PREDICT), **continuing(wanted[0]))
        with _replaced(policy, _PREDICT, call):
            yield
        return
    if torch.is_inference_mode_enabled() and any(_needs_gradient(request) for request in wanted):
        raise RuntimeError(
            "guidance 'jacobian' needs gradients: use torch.no_grad(), not torch.inference_mode()."
        )

    processor = BatchRTCProcessor(wanted)
    with ExitStack() as stack:
        for holder in _holders(policy):
            stack.enter_context(_replaced(holder, _PROCESSOR, processor))
        for config in _configs(policy):
            stack.enter_context(_replaced(config, _CONFIG, processor.rtc_config))
        # EVO1 looks at its processor only if it is called with one of LeRobot's RTC arguments.
        call = functools.partial(getattr(policy, _PREDICT), inference_delay=0)
        stack.enter_context(_replaced(policy, _PREDICT, call))
        yield


class BatchRTCProcessor(RTCProcessor):
    """LeRobot's RTC processor with delay, horizon, leftover, schedule, clamp and guidance for each sample.

    The arguments of LeRobot's that say the same for a whole batch are not looked at.

    Args:
        requests: One for each sample; None leaves it unguided.
    """

    def __init__(self, requests: Sequence[Guidance | None]) -> None:
        super().__init__(RTCConfig(enabled=True))
        self._requests = tuple(requests)
        self._needs_gradient = any(map(_needs_gradient, self._requests))
        self._targets: _Targets | None = None

    # A compiled policy calls the denoiser through here uncompiled: its graph would not hold the gradient.
    @torch.compiler.disable
    def denoise_step(
        self,
        x_t: Tensor,
        prev_chunk_left_over: Tensor | None,
        inference_delay: int | None,
        time: float | Tensor,
        original_denoise_step_partial: Callable[[Tensor], Tensor],
        execution_horizon: int | None = None,
    ) -> Tensor:
        """The guided velocity at one time of the denoising.

        LeRobot's time runs from 1 (noise) to 0 (actions) and its velocity points to the noise; the paper's tau is
        `1 - time`. With D(x) = x - time * v(x) and the error e = weights * (left_over - D(x)) the result is
        `v - min(beta, guidance_weight) * correction`; the correction is e for `identity` and e^T dD/dx for
        `jacobian`. At tau = 0 the weight is beta.

        Args:
            x_t: (batch, steps, dim), or (steps, dim) of a single sample.
            prev_chunk_left_over: Not used: each sample has its own.
            inference_delay: Not used, likewise.
            time: LeRobot's time, the same for all samples.
            original_denoise_step_partial: The denoiser; its samples must not depend on each other.
            execution_horizon: Not used, likewise.

        Returns:
            Shape of `x_t`; for unguided samples what the denoiser returned.

        Raises:
            ValueError: If the batch does not fit the requests.
        """
        time = float(time)
        batch = x_t.detach() if x_t.ndim == 3 else x_t.detach().unsqueeze(0)
        if self._targets is None or self._targets.left_over.shape != batch.shape:
            self._targets = _Targets.of(self._requests, batch)
        targets = self._targets

        if self._needs_gradient:
            velocity, error, gradient = _through_denoiser(original_denoise_step_partial, x_t, time, targets)
            correction = torch.where(targets.jacobian, gradient, error)
        else:
            velocity = original_denoise_step_partial(x_t)
            correction = targets.error(batch, time, velocity)
        strength = targets.clamps.clamp(max=guidance_weight(time))
        plain = velocity.reshape(batch.shape)
        steered = (plain - strength * correction).to(plain.dtype)
        return torch.where(targets.guides, steered, plain).reshape(x_t.shape)


@dataclass(frozen=True, eq=False)
class _Targets:
    """The requests as tensors beside the batch.

    Attributes:
        left_over: (batch, steps, dim) float32: what to continue, zeros after its end and in padded dimensions.
        weights: (batch, steps, 1).
        clamps: (batch, 1, 1).
        guides: (batch, 1, 1) bool: False for samples without guidance.
        jacobian: (batch, 1, 1) bool.
    """

    left_over: Tensor
    weights: Tensor
    clamps: Tensor
    guides: Tensor
    jacobian: Tensor

    @classmethod
    def of(cls, requests: Sequence[Guidance | None], batch: Tensor) -> _Targets:
        samples, steps, width = batch.shape
        if samples != len(requests):
            raise ValueError(f"a batch of {samples} samples came with {len(requests)} guidance requests.")
        left_over = torch.zeros(samples, steps, width)
        weights = torch.zeros(samples, steps, 1)
        clamps = torch.zeros(samples, 1, 1)
        for sample, request in enumerate(requests):
            if request is None or not request.guides:
                continue
            rows = request.left_over.detach()[:steps].to("cpu", torch.float32)
            if rows.shape[1] > width:
                raise ValueError(f"left_over has {rows.shape[1]} values an action; the denoiser has {width}.")
            left_over[sample, : len(rows), : rows.shape[1]] = rows
            rtc = request.rtc
            # Nothing is known after the leftover's end, so nothing binds there, whatever horizon was asked for.
            horizon = min(rtc.execution_horizon, len(rows))
            weights[sample, :, 0] = prefix_weights(rtc.schedule, rtc.inference_delay, horizon, steps)
            clamps[sample] = rtc.max_guidance_weight
        guides = torch.tensor([request is not None and request.guides for request in requests])
        jacobian = torch.tensor([_needs_gradient(request) for request in requests])
        tensors = (left_over, weights, clamps, guides.view(-1, 1, 1), jacobian.view(-1, 1, 1))
        return cls(*(tensor.to(batch.device) for tensor in tensors))

    def error(self, x_t: Tensor, time: float, velocity: Tensor) -> Tensor:
        """Weighted distance of the denoiser's clean estimate from what it should continue."""
        return (self.left_over - (x_t - time * velocity.detach().reshape(x_t.shape))) * self.weights


def guidance_weight(time: float) -> float:
    """The unclamped weight, (1 - tau) / (tau * r2) with the paper's r2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2).

    Args:
        time: LeRobot's, 1 - tau.

    Returns:
        Infinity at both ends, where the clamp takes over.
    """
    tau = torch.tensor(1 - time, dtype=torch.float32)  # as LeRobot computes it, to the last bit
    squared = (1 - tau) ** 2
    return float(
        torch.nan_to_num((1 - tau) / tau * ((squared + tau**2) / squared), nan=math.inf, posinf=math.inf)
    )


def prefix_weights(schedule: str, delay: int, horizon: int, steps: int) -> Tensor:
    """How strongly each step of the new chunk is bound to the previous one (the paper's W, equation 5).

    1 before `delay`, 0 from `horizon` on; in between c = (horizon - i) / (horizon - delay + 1) for `linear` and
    c * (e^c - 1) / (e - 1) for `exp`; `ones` is 1 up to `horizon`, `zeros` is 0 from `delay` on. A `horizon` before
    `delay` takes precedence. LeRobot builds the same from a linspace.

    Args:
        schedule: `zeros`, `ones`, `linear` or `exp`.
        delay: Steps executed until the chunk arrives.
        horizon: The paper's H - s.
        steps: In a chunk.

    Returns:
        (steps,) float32.

    Raises:
        ValueError: If there is no such schedule.
    """
    name = RTCAttentionSchedule(schedule.upper())  # LeRobot's names, so that a new one is not missed silently
    delay = min(delay, horizon)
    index = torch.arange(steps, dtype=torch.float32)
    if name is RTCAttentionSchedule.ONES:
        weights = torch.ones(steps)
    elif name is RTCAttentionSchedule.ZEROS:
        weights = (index < delay).float()
    else:
        weights = ((horizon - index) / (horizon - delay + 1)).clamp(0, 1)
        if name is RTCAttentionSchedule.EXP:
            weights = weights * torch.expm1(weights) / (math.e - 1)
        weights[:delay] = 1.0
    weights[horizon:] = 0.0
    return weights


def _needs_gradient(request: Guidance | None) -> bool:
    return request is not None and request.rtc.guidance == "jacobian"


def _through_denoiser(
    denoise: Callable[[Tensor], Tensor], x_t: Tensor, time: float, targets: _Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity, error, and the error's vector-Jacobian product with the clean estimate; all detached.

    `torch.autograd.grad` and not `torch.func.vjp`: SmolVLA's denoiser appends to its KV cache and crops it again, so
    tensors of this call stay in the cache. Here they are ordinary tensors, whose history leads to this call's `x_t`
    and never to the next one's; of a functional transform they would be wrappers that may not outlive it.
    """
    shape = targets.left_over.shape
    with torch.enable_grad():
        x_t = x_t.detach().clone().requires_grad_(True)
        velocity = denoise(x_t)
        clean = x_t - time * velocity
        error = targets.error(x_t.detach().reshape(shape), time, velocity)
        (gradient,) = torch.autograd.grad(clean, x_t, error.reshape(clean.shape).to(clean.dtype))
    return velocity.detach(), error, gradient.reshape(shape)


def _holders(policy: Any) -> list[Any]:
    """The policy and its parts that have the attribute which LeRobot sets: those look at it when they denoise."""
    parts = policy.children() if isinstance(policy, nn.Module) else ()
    return [part for part in (policy, *parts) if _PROCESSOR in vars(part)]


def _configs(policy: Any) -> list[Any]:
    """The configs, each once, in which the policy and those parts look whether guidance is on."""
    found: dict[int, Any] = {}
    for owner in (policy, *_holders(policy)):
        config = getattr(owner, "config", None)
        if _CONFIG in getattr(config, "__dict__", ()):
            found[id(config)] = config
    return list(found.values())


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an instance; afterwards it has its own value again, or none of its own."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    # vars(), and not setattr: a torch module or a config with its own __setattr__ has no say in this.
    vars(owner)[name] = value
    try:
        yield
    finally:
        if had:
            vars(owner)[name] = before
        else:
            del vars(owner)[name]
