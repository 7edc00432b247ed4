"""The calls of LeRobot's robot client, one by one, with its own classes and its own cutting of messages."""

import pickle

import grpc
import numpy as np
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks
from standin import DIM, SIDE, STATE

JOINTS = [f"joint{i}.pos" for i in range(DIM)]


def features(height: int = 12, width: int = 16, camera: str = SIDE) -> dict:
    """What LeRobot's client says of a robot with six joints and one camera."""
    return {
        STATE: {"dtype": "float32", "shape": (DIM,), "names": JOINTS},
        camera: {
            "dtype": "image",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": False},
        },
    }


def raw(value: float = 0.0, height: int = 12, width: int = 16) -> dict:
    """What its `get_observation` returns."""
    joints = {name: value + index for index, name in enumerate(JOINTS)}
    return {**joints, "side": np.full((height, width, 3), int(value) % 256, np.uint8)}


class Client:
    """One client with a connection of its own."""

    def __init__(self, address: str) -> None:
        # Channels of one process share a connection, unless they are told not to; so do two clients of one process.
        own = ("grpc.use_local_subchannel_pool", 1)
        self.address = address
        self.channel = grpc.insecure_channel(address, [*grpc_channel_options(), own])
        self.stub = services_pb2_grpc.AsyncInferenceStub(self.channel)

    def ready(self) -> None:
        self.stub.Ready(services_pb2.Empty())

    def instruct(self, checkpoint="runs/one/model", kind="stand-in", actions=5, given=None, **more) -> None:
        config = RemotePolicyConfig(
            kind, checkpoint, features() if given is None else given, actions, "cuda", **more
        )
        self.send_instructions(pickle.dumps(config))

    def send_instructions(self, data: bytes) -> None:
        self.stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data))

    def observe(self, timestep=0, observation=None, must_go=False, timestamp=100.0, task="press") -> None:
        content = {**(raw() if observation is None else observation), "task": task}
        self.send_bytes(pickle.dumps(TimedObservation(timestamp, timestep, content, must_go)))

    def send_bytes(self, data: bytes) -> None:
        self.send_pieces(send_bytes_in_chunks(data, services_pb2.Observation))

    def send_pieces(self, pieces) -> None:
        self.stub.SendObservations(iter(pieces))

    def actions(self) -> list:
        data = self.stub.GetActions(services_pb2.Empty()).data
        return pickle.loads(data) if data else []

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.channel.close()
