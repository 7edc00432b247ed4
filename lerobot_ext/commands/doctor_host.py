"""The doctor at the server: can this machine serve that checkpoint, on that port? Loads no weights.

Each check is a function of one Host, in which it leaves what later checks need. How checks are run and printed is in
`doctor_checks`; what a checkpoint is made of, in `simplify_work.server.checkpoint`.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_ext.commands.doctor_checks import FAILED, OK, WARNING, Check, Finding
from lerobot_ext.errors import UserError
from simplify_work.local import probe
from simplify_work.server import checkpoint
from simplify_work.wire.address import tcp_address
from simplify_work.wire.errors import RemoteError
from simplify_work.wire.keys import ServerKeys

ROOM_SHARE, ROOM_BYTES = 1.25, 2**30  # what serving takes: the weights with activations, and the libraries
LARGE_BYTES = 2**30  # weights from which on half precision is worth a word
MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
HALF = ("bfloat16", "float16")
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Weights:
    """What the header of a weights file says: bytes of all tensors, and how many parameters are of each dtype."""

    nbytes: int
    parameters: dict[str, int]

    def __str__(self) -> str:
        """`52 M parameters (float32), 0.2 GiB`."""
        count = sum(self.parameters.values())
        kinds = ", ".join(sorted(self.parameters, key=self.parameters.get, reverse=True))
        return f"{count / 1e6:.1f} M parameters ({kinds}), {gib(self.nbytes)}"


@dataclass
class Host:
    """What shall be served, and what is known so far.

    Attributes:
        path: Of the checkpoint.
        host: Where it shall listen; port likewise.
        keys: The server's folder of keys; with `insecure` it may serve other machines without.
        device: As `lerobot-ext serve` takes it; dtype likewise.
        config: The checkpoint's.
        weights: Of the checkpoint; None for a name on the hub.
        chosen: The torch device that it will run on.
    """

    path: str
    host: str = "127.0.0.1"
    port: int = 5555
    keys: str | None = None
    insecure: bool = False
    device: str | None = None
    dtype: str | None = None
    config: Any = None
    weights: Weights | None = None
    chosen: Any = field(default=None)


def checks() -> list[Check[Host]]:
    """What is looked at, in this order."""
    return [
        Check("port", look_at_port),
        Check("keys", look_at_keys),
        Check("checkpoint", look_at_checkpoint),
        Check("policy", look_at_policy, ("checkpoint",)),
        Check("device", look_at_device, ("policy",)),
        Check("memory", look_at_memory, ("device",)),
        Check("dtype", look_at_dtype, ("device",)),
    ]


def look_at_port(host: Host) -> Finding:
    """Is it free?"""
    if host.port == 0:
        return Finding(OK, "a free one will be chosen")
    address = tcp_address(host.host, host.port)
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    with socket.socket(family) as free:
        # As ZeroMQ binds it: a port that a stopped server had a moment ago is free.
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host.host, host.port))
            free.listen()
        except OSError as error:
            if isinstance(error, PermissionError):
                advice = "choose a --port of 1024 or more"
            elif isinstance(error, socket.gaierror) or error.errno != _in_use():
                advice = "give an address of this machine as --host, 127.0.0.1 or 0.0.0.0 for example"
            else:
                advice = f"stop it (`ss -ltnp 'sport = :{host.port}'` names it), or give another --port"
                return Finding(FAILED, f"port {host.port} is taken by {_holder(host)}", advice)
            return Finding(FAILED, f"{address.endpoint} cannot be bound: {error.strerror or error}", advice)
    return Finding(OK, f"{address.endpoint} is free")


def look_at_keys(host: Host) -> Finding:
    """Are there keys where they are needed?"""
    loopback = tcp_address(host.host, host.port).is_loopback
    if host.keys:
        keys = ServerKeys.load(host.keys)
        robots = sorted(keys.admitted().values())
        if not robots:
            return Finding(
                WARNING,
                f"{keys.folder} lists no robot, so none will be admitted",
                "run `lerobot-ext keys FOLDER --robots=NAME` (the server needs no restart)",
            )
        return Finding(OK, f"those in {keys.folder}, which admit {', '.join(robots)}")
    if loopback:
        return Finding(OK, "none, and none needed: only this machine reaches the port")
    return Finding(
        WARNING if host.insecure else FAILED,
        f"none, but {host.host} can be reached from other machines"
        + (", and whoever reaches it can use the policy" if host.insecure else ""),
        "run `lerobot-ext keys FOLDER --robots=NAME` and give --keys=FOLDER/server, or serve on 127.0.0.1",
    )


def look_at_checkpoint(host: Host) -> Finding:
    """Is the folder complete, down to the last byte of the weights?"""
    checkpoint.check_checkpoint(host.path)
    if checkpoint.looks_like_hub_name(host.path):
        return Finding(
            WARNING,
            f"{host.path} is a name on the hub, nothing of it was looked at",
            "download it first (`hf download`) and give its folder",
        )
    folder = Path(host.path)
    host.weights = read_weights(folder / checkpoint.WEIGHTS)
    kind = checkpoint.read_json(folder / checkpoint.CONFIG)["type"]
    return Finding(
        OK,
        f"{kind}, complete, {host.weights}",
        figures={"policy_type": kind, "nbytes": host.weights.nbytes, "parameters": host.weights.parameters},
    )


def look_at_policy(host: Host) -> Finding:
    """Does LeRobot, as it is installed here, have that policy, and can it be served?"""
    import lerobot_ext

    lerobot_ext.register()
    from lerobot.policies.factory import get_policy_class

    from simplify_work.server.loading import load_config

    host.config = load_config(host.path, host.device)
    try:
        name = get_policy_class(host.config.type).__name__
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(
            f"policy '{host.config.type}' cannot be imported ({type(cause).__name__}: {cause}); "
            f"pip install 'lerobot[{host.config.type}]'"
        ) from error
    inputs = ", ".join(key.removeprefix("observation.") for key in host.config.input_features)
    return Finding(OK, f"{name} sees {inputs}")


def look_at_device(host: Host) -> Finding:
    """Is the device there?"""
    import torch

    host.chosen = torch.device(host.config.device)
    if host.chosen.type == "cuda":
        name = torch.cuda.get_device_name(host.chosen)
        free, total = torch.cuda.mem_get_info(host.chosen)
        return Finding(
            OK,
            f"{host.chosen} ({name}), {gib(free)} of {gib(total)} free",
            figures={"device": str(host.chosen), "name": name, "free_bytes": free, "total_bytes": total},
        )
    found = f"{host.chosen}, {gib(available_bytes())} of memory free"
    figures = {"device": str(host.chosen), "free_bytes": available_bytes()}
    if host.chosen.type != "cpu":
        return Finding(OK, found, figures=figures)
    if torch.cuda.is_available():
        return Finding(
            WARNING, f"{found}, though there is {torch.cuda.get_device_name()}", "give --device=cuda", figures
        )
    if host.device == "cpu" or host.weights is None or host.weights.nbytes < LARGE_BYTES // 4:
        return Finding(OK, found, figures=figures)
    return Finding(
        WARNING, f"{found}; no GPU was found", "a policy of this size takes seconds a chunk here", figures
    )


def look_at_memory(host: Host) -> Finding:
    """Is there room for the weights, and for working with them?"""
    if host.weights is None:
        return Finding(WARNING, "the size of the weights is not known", "download the checkpoint first")
    import torch

    places = {"memory": available_bytes()}
    if host.chosen.type == "cuda":
        # LeRobot makes the policy in memory and moves it then.
        places[str(host.chosen)] = torch.cuda.mem_get_info(host.chosen)[0]
    weights = host.weights.nbytes
    needed = round(ROOM_SHARE * weights + ROOM_BYTES)
    place, free = min(places.items(), key=lambda item: item[1])
    found = (
        f"weights {gib(weights)}, about {gib(needed)} with all that serving takes; {gib(free)} free ({place})"
    )
    figures = {"weights_bytes": weights, "needed_bytes": needed, "free_bytes": free}
    if weights > free:
        return Finding(
            FAILED, found, f"end what else uses {place} (nvidia-smi, top), or use a larger machine", figures
        )
    if needed > free:
        return Finding(WARNING, found, f"it may not fit; end what else uses {place}", figures)
    return Finding(OK, found, figures=figures)


def look_at_dtype(host: Host) -> Finding:
    """Can it compute in the dtype that is asked for, and would another be better?"""
    import torch

    saved = ", ".join(host.weights.parameters) if host.weights else "unknown"
    on_cuda = host.chosen.type == "cuda"
    if host.dtype not in (None, "float32", *HALF):
        return Finding(FAILED, f"dtype '{host.dtype}' is not offered", f"give float32, {' or '.join(HALF)}")
    if host.dtype == "bfloat16" and on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding(FAILED, f"{host.chosen} does not compute in bfloat16", "give --dtype=float16")
    if host.dtype in HALF:
        found = f"computes in {host.dtype}, saved as {saved}"
        if not on_cuda:
            return Finding(WARNING, found, f"{host.chosen} is seldom faster in it; leave --dtype out")
        return Finding(OK, found)
    large = host.weights is not None and host.weights.nbytes >= LARGE_BYTES
    if on_cuda and large and "float32" in host.weights.parameters:
        return Finding(
            WARNING, f"computes as saved: {saved}", "--dtype=bfloat16 is faster for a policy of this size"
        )
    return Finding(OK, f"computes as saved: {saved}")


def read_weights(path: Path) -> Weights:
    """What a safetensors file holds, by its header (https://huggingface.co/docs/safetensors), of the right length.

    Raises:
        UserError: If it is none, or was cut off.
    """
    again = "copy the checkpoint again"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else math.inf
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise UserError(f"{path} is no whole safetensors file ({size} bytes); {again}")
        try:
            header = json.loads(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            nbytes = max((entry["data_offsets"][1] for entry in tensors), default=0)
            parameters: Counter[str] = Counter()
            for entry in tensors:
                parameters[TORCH_NAMES.get(entry["dtype"], entry["dtype"])] += math.prod(entry["shape"])
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise UserError(
                f"the header of {path} cannot be read ({type(error).__name__}); {again}"
            ) from error
    if size != 8 + length + nbytes:
        raise UserError(
            f"{path} has {size} bytes, its header says {8 + length + nbytes}: it was cut off; {again}"
        )
    return Weights(nbytes, dict(parameters))


def available_bytes() -> int:
    """Memory of this machine that can be had without swapping."""
    import psutil

    return psutil.virtual_memory().available


def gib(nbytes: float) -> str:
    """`3.2 GiB`."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 / 10 else f"{nbytes / 2**20:.1f} MiB"


def _in_use() -> int:
    import errno

    return errno.EADDRINUSE


def _holder(host: Host) -> str:
    """What the program on the port seems to be."""
    try:
        connection, _ = probe.connect(tcp_address(host.host, host.port), 1.0)
        with connection:
            probe.greet(connection, 1.0)
    except RemoteError:
        return "another program, no lerobot_ext server"
    return "a ZeroMQ program, maybe another lerobot_ext server"
