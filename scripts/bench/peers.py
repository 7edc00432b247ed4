"""Ways to ask a policy on another machine for a chunk, side by side: ours, LeRobot's, pickle over ZeroMQ, and the floor.

Each is a server in a process of its own and a client here, and each gets the same observation. The policy is a
stand-in that answers at once, so that what is measured is the way there and back.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common  # noqa: F401  (makes the repository importable)
import numpy as np

from simplify_work.local import PolicyClient
from simplify_work.server.protocol import Inference, Request, Served
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import PictureUse

HEIGHT, WIDTH, STATE, FORCE = 480, 640, 6, 15
CAMERAS = ("top", "side", "wrist")
CHUNK, DIM = 50, 6
TASK = "Press the block until the lamp is on."
JOINTS = [f"joint{index}.pos" for index in range(STATE)]

_START_S = 120.0


def pictures(seed: int = 0) -> list[np.ndarray]:
    """Three pictures (480, 640, 3) uint8 with the structure and the noise of a camera's."""
    rng = np.random.default_rng(seed)
    return [_textured(rng) for _ in CAMERAS]


def observation(images: Sequence[np.ndarray] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Three RGB pictures, 6 joints, 15 force channels, by LeRobot's keys."""
    rng = np.random.default_rng(seed)
    found = {
        f"observation.images.{name}": image
        for name, image in zip(CAMERAS, images or pictures(seed), strict=True)
    }
    found["observation.state"] = rng.uniform(-90, 90, STATE).astype(np.float32)
    found["observation.force"] = rng.uniform(0, 5, FORCE).astype(np.float32)
    return found


def chunk_of(state: np.ndarray) -> np.ndarray:
    """The stand-in's answer, (50, 6) float32, which shows what it was made from."""
    return np.repeat(np.asarray(state, np.float32)[None, :DIM], CHUNK, axis=0)


def _textured(rng: np.random.Generator) -> np.ndarray:
    """Smooth shading, edges of objects, fine texture, and sensor noise of 2 grey levels."""
    import cv2

    shading = cv2.resize(
        rng.uniform(60, 200, (6, 8, 3)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(25):
        centre, axes = rng.integers(0, (WIDTH, HEIGHT)), rng.integers(10, 90, 2)
        colour = tuple(float(value) for value in rng.uniform(20, 235, 3))
        cv2.ellipse(
            shading,
            tuple(map(int, centre)),
            tuple(map(int, axes)),
            float(rng.uniform(0, 180)),
            0,
            360,
            colour,
            -1,
            cv2.LINE_AA,
        )
    texture = cv2.GaussianBlur(rng.normal(0, 8, (HEIGHT, WIDTH, 1)).astype(np.float32), (0, 0), 1.2)
    noise = rng.normal(0, 2, (HEIGHT, WIDTH, 3))
    return (shading + texture[..., None] + noise).clip(0, 255).astype(np.uint8)


# --- ours ---


class StandIn:
    """A policy that answers at once.

    Args:
        size: Height and width at which it pretends to look at pictures (padded, as SmolVLA does); any size if None.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        images = [f"observation.images.{name}" for name in CAMERAS]
        self.served = Served(
            policy_type="stand-in",
            inputs=(
                *(FeatureSpec(name, "image", (HEIGHT, WIDTH, 3), ("uint8",)) for name in images),
                FeatureSpec("observation.state", "vector", (STATE,), ("float32",)),
                FeatureSpec("observation.force", "vector", (FORCE,), ("float32",)),
            ),
            action_dim=DIM,
            chunk_size=CHUNK,
            n_action_steps=CHUNK,
            pictures=tuple(PictureUse(name, *size, "pad") for name in images) if size else (),
        )

    def open_session(self) -> StandIn:
        """It remembers nothing."""
        return self

    def reset(self) -> None:
        """There is nothing to forget."""

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference]]:
        """Answer each by itself, at once."""
        for index, request in enumerate(requests):
            yield index, Inference(chunk_of(request.observation["observation.state"]), 0.0, 0.0, 0.0)


def _serve_ours(ready, address: str, keys: str | None, size: tuple[int, int] | None) -> None:
    from simplify_work.server.server import PolicyServer
    from simplify_work.wire import listen
    from simplify_work.wire.address import parse_address
    from simplify_work.wire.keys import ServerKeys

    given = {"keys": ServerKeys.load(Path(keys))} if keys else {}
    socket = listen.bind(parse_address(address), **given)
    server = PolicyServer(StandIn(size), socket)
    server.start()
    ready.send(listen.endpoint(socket))
    ready.poll(None)  # until the parent closes its end


class Ours:
    """Our client with our server.

    Args:
        address: To serve at.
        keys: Folder that `make_keys` filled for a robot called `bench`; None without encryption.
        size: See `StandIn`.
    """

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:0",
        keys: Path | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._server = Process(_serve_ours, address, str(keys / "server") if keys else None, size)
        self._keys = keys / "bench" if keys else None
        self.address = self._server.said
        self._client: PolicyClient | None = None

    def connect(self, address: str | None = None, **options) -> Ours:
        """Use the server at its own address, or through another one."""
        self._client = PolicyClient(address or self.address, keys=self._keys, timeout_s=30, **options)
        self._client.connect()
        return self

    def ask(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        self.last = self._client.infer(observation, task=TASK)
        return self.last.actions

    def close(self) -> None:
        """End both."""
        self._client.close()
        self._server.close()


# --- the floor ---


def _serve_floor(ready, address: str) -> None:
    import zmq

    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(address)
    ready.send(socket.last_endpoint.rstrip(b"\0").decode())
    header, actions = bytes(128), chunk_of(np.zeros(DIM))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    while not ready.poll(0):
        while poller.poll(200):
            identity, *_ = socket.recv_multipart(copy=False)
            socket.send_multipart([identity, header, actions], copy=False)


class Floor:
    """As many bytes as ours, in as many frames, and nothing else: DEALER and ROUTER, one thread each."""

    def __init__(self) -> None:
        import zmq

        self._server = Process(_serve_floor, "tcp://127.0.0.1:*")
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(self._server.said)

    def ask(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        self._socket.send_multipart([bytes(512), *observation.values()], copy=False)
        _, actions = self._socket.recv_multipart(copy=False)
        return np.frombuffer(actions, np.float32).reshape(CHUNK, DIM)

    def close(self) -> None:
        """End both."""
        self._socket.close()
        self._server.close()


# --- pickle over ZeroMQ ---


def _serve_pickle(ready, address: str) -> None:
    import zmq

    socket = zmq.Context.instance().socket(zmq.REP)
    socket.linger = 0
    socket.bind(address)
    ready.send(socket.last_endpoint.rstrip(b"\0").decode())
    while not ready.poll(0):
        while socket.poll(200):
            request = pickle.loads(socket.recv())
            socket.send(pickle.dumps({"actions": chunk_of(request["observation"]["observation.state"])}))


class Pickled:
    """What many projects do: a dictionary, pickled, over REQ and REP."""

    def __init__(self) -> None:
        import zmq

        self._server = Process(_serve_pickle, "tcp://127.0.0.1:*")
        self._socket = zmq.Context.instance().socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.connect(self._server.said)

    def ask(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        self._socket.send(pickle.dumps({"observation": observation, "task": TASK}))
        return pickle.loads(self._socket.recv())["actions"]

    def close(self) -> None:
        """End both."""
        self._socket.close()
        self._server.close()


# --- lerobot.async_inference ---


def _features() -> dict:
    """What `map_robot_keys_to_lerobot_features` makes of a robot with these cameras; it has no force."""
    from lerobot.utils.feature_utils import hw_to_dataset_features

    hardware = dict.fromkeys(JOINTS, float) | dict.fromkeys(CAMERAS, (HEIGHT, WIDTH, 3))
    return hw_to_dataset_features(hardware, "observation", use_video=False)


def _serve_lerobot(ready) -> None:
    # It logs several lines for each request, to the terminal and to ./logs, which its import makes.
    os.chdir(tempfile.mkdtemp())
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    from concurrent import futures
    from types import SimpleNamespace

    import grpc
    import torch
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.transport import services_pb2_grpc

    class LeRobotStandIn:
        """What the server needs of a policy; answers at once."""

        config = SimpleNamespace(
            image_features={
                f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
                for name in CAMERAS
            }
        )

        def predict_action_chunk(self, batch):
            return torch.from_numpy(chunk_of(batch["observation.state"][0].numpy())).unsqueeze(0)

    # The default of 33 ms is a sleep.
    service = PolicyServer(
        PolicyServerConfig(host="127.0.0.1", port=1, inference_latency=0.0, obs_queue_timeout=2)
    )
    # What SendPolicyInstructions would have loaded from a checkpoint.
    service.policy = LeRobotStandIn()
    service.preprocessor = service.postprocessor = lambda data: data
    service.lerobot_features = _features()
    service.actions_per_chunk, service.policy_type, service.device = CHUNK, "act", "cpu"
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send(f"127.0.0.1:{port}")
    ready.poll(None)
    server.stop(None)


class LeRobots:
    """LeRobot's RobotClient with its PolicyServer: its own methods send and receive, in its own two threads."""

    def __init__(self) -> None:
        self._server = Process(_serve_lerobot)
        self.address = self._server.said

    def connect(self, address: str | None = None) -> LeRobots:
        """Use the server at its own address, or through another one (HOST:PORT)."""
        with _elsewhere():
            from lerobot.async_inference import robot_client
        logging.getLogger().setLevel(logging.WARNING)
        import grpc
        from lerobot.transport import services_pb2, services_pb2_grpc

        config = type(
            "Config", (), {"client_device": "cpu", "aggregate_fn": staticmethod(lambda old, new: new)}
        )
        client = robot_client.RobotClient.__new__(robot_client.RobotClient)  # its __init__ opens a robot
        client.config = config
        client.channel = grpc.insecure_channel(address or self.address, robot_client.grpc_channel_options())
        client.stub = services_pb2_grpc.AsyncInferenceStub(client.channel)
        client.shutdown_event, client.must_go = threading.Event(), threading.Event()
        client.latest_action_lock, client.action_queue_lock = threading.Lock(), threading.Lock()
        client.latest_action, client.action_chunk_size = -1, -1
        client.action_queue = robot_client.Queue()
        client.start_barrier = threading.Barrier(2)
        client.stub.Ready(services_pb2.Empty())
        self._client, self._timestep = client, 0
        self._receiver = threading.Thread(target=client.receive_actions, daemon=True)
        self._receiver.start()
        client.start_barrier.wait()
        self._observation = robot_client.TimedObservation
        return self

    def ask(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        client = self._client
        # A robot's `get_observation()`, which RobotClient sends as it is, with the task.
        raw = dict(zip(JOINTS, observation["observation.state"].tolist(), strict=True))
        raw |= {name: observation[f"observation.images.{name}"] for name in CAMERAS}
        raw |= {"force": observation["observation.force"], "task": TASK}
        self._timestep += 1
        client.must_go.clear()
        client.send_observation(self._observation(time.time(), self._timestep, raw, must_go=True))
        if not client.must_go.wait(60):  # set by `receive_actions` when a chunk is in the queue
            raise TimeoutError("LeRobot's server did not answer within 60 s; run it by hand to see why.")
        with client.action_queue_lock:
            return np.stack([action.get_action().numpy() for action in client.action_queue.queue])

    def close(self) -> None:
        """End both."""
        self._client.shutdown_event.set()
        logging.getLogger("robot_client").disabled = True  # it would report that its channel is closed
        self._server.close()
        self._client.channel.close()
        self._receiver.join(5)


# --- processes ---


@dataclass
class Process:
    """A server in a process of its own; `said` is what it sent when it was ready."""

    said: str

    def __init__(self, target, *arguments) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START_S):
            self.close()
            raise TimeoutError(f"the server {target.__name__} was not ready within {_START_S:g} s.")
        self.said = self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join(10)


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Be in an empty folder: LeRobot makes a folder `logs` where it is imported."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
