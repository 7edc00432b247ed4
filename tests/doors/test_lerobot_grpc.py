"""What LeRobot's robot client sends is answered as its own server would have, or better, and never executed."""

import os
import pickle
import threading
import time

import grpc
import numpy as np
import pytest
from lerobot.async_inference.helpers import TimedAction
from lerobot.configs import PreTrainedConfig
from lerobot.transport import services_pb2
from lerobot_client import Client, features, raw
from standin import CHUNK, DIM, SIDE, STATE, StandIn

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.testing import free_port
from simplify_work.server.doors import lerobot_grpc
from simplify_work.server.doors.lerobot_grpc import LeRobotGrpcDoor
from simplify_work.server.doors.lerobot_messages import MAX_OBSERVATION
from simplify_work.server.protocol import Served
from simplify_work.server.worker import Worker
from simplify_work.wire.features import FeatureSpec

Code = grpc.StatusCode
State = services_pb2.TransferState


@pytest.fixture
def stand_in():
    return StandIn(12, 16)


@pytest.fixture
def door(stand_in, monkeypatch):
    monkeypatch.setattr(lerobot_grpc, "_STRANGER_WAITS_S", 0.0)
    monkeypatch.setattr(lerobot_grpc, "_WATCH_EVERY_S", 0.05)
    other = StandIn(12, 16)
    other.served = Served("other", other.served.inputs, DIM, CHUNK, CHUNK)
    with Worker(stand_in, "runs/one/model") as one, Worker(other, "runs/two/model") as two:
        door = LeRobotGrpcDoor([one, two], "127.0.0.1", 0, obs_queue_timeout_s=0.3)
        door.start()
        yield door
        door.stop()


@pytest.fixture
def client(door):
    with Client(door.endpoint) as client:
        client.ready()
        client.instruct()
        yield client


def refused(call, *args, **options):
    """The status that a call ends with."""
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **options)
    return error.value.code(), error.value.details()


def test_actions_carry_timesteps_and_timestamps_as_lerobots_server_counts_them(client, stand_in):
    client.observe(timestep=7, observation=raw(30), timestamp=100.0)
    actions = client.actions()
    assert [type(each) for each in actions] == [TimedAction] * 5, "actions_per_chunk of the chunk's ten"
    assert [each.get_timestep() for each in actions] == [7, 8, 9, 10, 11]
    np.testing.assert_allclose([each.get_timestamp() for each in actions], 100 + np.arange(5) / 30)
    np.testing.assert_allclose(actions[0].get_action().numpy(), np.arange(30, 36) + 0.03, rtol=1e-6)
    assert stand_in.seen[0].task == "press"
    assert stand_in.seen[0].observation.keys() == {STATE, SIDE}


def test_the_newest_observation_wins_and_none_gives_an_empty_answer(client, stand_in):
    assert client.actions() == []
    client.observe(1, raw(10))
    client.observe(2, raw(20))
    assert client.actions()[0].get_timestep() == 2
    assert client.actions() == [] and len(stand_in.seen) == 1


def test_an_observation_of_the_same_step_waits_for_must_go(client):
    client.observe(3)
    assert client.actions()
    client.observe(3)
    assert client.actions() == [], "no action was executed since"
    client.observe(3, must_go=True)
    assert client.actions()


def test_joints_that_hardly_move_do_not_hold_up_the_policy(client):
    for step in range(3):
        client.observe(step, raw(10 + step / 1000))
        assert client.actions()[0].get_timestep() == step, "what the cameras or the skin see may have changed"


def test_a_failed_inference_is_told_and_the_next_observation_goes(client, stand_in, monkeypatch):
    infer = stand_in.infer
    monkeypatch.setattr(stand_in, "infer", lambda requests: [(0, RuntimeError("no memory"))])
    client.observe(0, must_go=True)
    code, text = refused(client.actions)
    assert code is Code.INTERNAL and "no memory" in text
    monkeypatch.setattr(stand_in, "infer", infer)
    client.observe(0)
    assert client.actions(), "LeRobot's server would wait for ever: the client believes that it was answered"


@pytest.mark.parametrize(
    "checkpoint", ["runs/one/model", "./runs/one/model", "one/model", "runs/../runs/one/model"]
)
def test_instructions_choose_by_path_folder_or_the_end_of_the_path(door, checkpoint):
    with Client(door.endpoint) as client:
        client.ready()
        client.instruct(os.path.abspath(checkpoint) if checkpoint.startswith(".") else checkpoint)
        client.observe()
        assert client.actions()


@pytest.mark.parametrize(
    "checkpoint",
    [
        "lerobot/smolvla_base",
        "/etc",
        "model",
        "",
        ".",
        "..",
        "/",
        "one",
        "runs/one\0",
        "x" * 100_000,
        "a/" * 400_000,
    ],
)
def test_what_is_not_served_is_refused_and_nothing_is_loaded(door, checkpoint, monkeypatch):
    loaded = []
    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", lambda *args, **options: loaded.append(args))
    with Client(door.endpoint) as client:
        client.ready()
        code, text = refused(client.instruct, checkpoint)
        assert code is Code.NOT_FOUND and "runs/one/model (stand-in), runs/two/model (other)" in text
        assert refused(client.observe)[0] is Code.FAILED_PRECONDITION
    assert loaded == []


def test_a_policy_of_another_type_is_refused(door):
    with Client(door.endpoint) as client:
        code, text = refused(client.instruct, "runs/two/model", "smolvla")
    assert code is Code.INVALID_ARGUMENT
    assert "runs/two/model is a policy of type 'other', the client says policy_type='smolvla'" in text


def test_a_robot_that_lacks_an_input_is_refused_before_it_moves(door):
    with Client(door.endpoint) as client:
        code, text = refused(client.instruct, given=features(camera="observation.images.front"))
    assert code is Code.INVALID_ARGUMENT
    assert "observation.images.side is missing" in text and "observation.images.front" in text


def test_rename_map_is_applied(door, stand_in):
    with Client(door.endpoint) as client:
        front = "observation.images.front"
        client.instruct(given=features(camera=front), rename_map={front: SIDE})
        observation = raw(40)
        observation["front"] = observation.pop("side")
        client.observe(observation=observation)
        np.testing.assert_allclose(client.actions()[0].get_action()[0], 40.04)


def test_policies_that_look_at_the_past_are_refused(door, stand_in):
    depth = FeatureSpec(STATE, "vector", (DIM,), ("float32",), history=10)
    for served in (
        Served("stand-in", (depth,), DIM, CHUNK, CHUNK),
        Served("stand-in", stand_in.served.inputs, DIM, CHUNK, CHUNK, n_obs_steps=2),
    ):
        stand_in.served = served
        with Client(door.endpoint) as client:
            code, text = refused(client.instruct)
        assert code is Code.INVALID_ARGUMENT and "one control step apart" in text


def test_an_observation_without_what_was_announced_is_told(client):
    lacking = raw()
    del lacking["joint3.pos"]
    code, text = refused(client.observe, observation=lacking)
    assert code is Code.INVALID_ARGUMENT and "joint3.pos" in text
    code, text = refused(client.observe, observation={**raw(), "side": "a picture"})
    assert code is Code.INVALID_ARGUMENT and "observation.images.side is str" in text
    code, text = refused(client.observe, observation={**raw(), "joint3.pos": np.zeros((1000, 1000))})
    assert code is Code.INVALID_ARGUMENT and "'joint3.pos' is ndarray, expected a number" in text
    client.observe()
    assert client.actions()


def test_numbers_that_are_none_are_refused_and_the_next_observation_goes(client, stand_in):
    for value in (float("nan"), float("inf"), 1e300):
        client.observe(0, {**raw(), "joint3.pos": value})
        code, text = refused(client.actions)
        assert code is Code.INVALID_ARGUMENT and "observation.state has a value that is not finite" in text
    assert stand_in.seen == []
    client.observe(0)
    assert client.actions()


def test_what_is_refused_is_told_and_logged_in_few_words(client, caplog):
    foreign = {"\N{CJK UNIFIED IDEOGRAPH-5173}" * 900 + str(i): 1.0 for i in range(100)}
    code, text = refused(client.observe, observation={"a\nERROR forged": 1.0, **foreign})
    assert code is Code.INVALID_ARGUMENT and text.startswith("the observation does not have what")
    (line,) = [each.getMessage() for each in caplog.records if each.getMessage().startswith("refused")]
    assert len(line) < 2500 and "\n" not in line


class Evil:
    """Its pickle runs a command where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_hostile_pickles_are_refused_and_the_door_goes_on(client, door, tmp_path):
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation

    evil = Evil(tmp_path / "executed")
    config = RemotePolicyConfig("stand-in", "runs/one/model", features(), 5)
    hostile = [
        pickle.dumps(evil),
        pickle.dumps(RemotePolicyConfig(evil, "runs/one/model", {}, 5)),
        pickle.dumps(RemotePolicyConfig("stand-in", "runs/one/model", {"observation.state": evil}, 5)),
        pickle.dumps(TimedObservation(0.0, 0, {"joint0.pos": evil})),
        pickle.dumps(TimedAction(0.0, 0, None)),
        pickle.dumps({"policy_type": "stand-in"}),
        pickle.dumps(config)[:-5],
        b"cos\nsystem\n(S'true'\ntR.",
        b"",
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little"),
        b"(" * 100_000 + b".",
    ]
    for data in hostile:
        with Client(door.endpoint) as other:
            assert refused(other.send_instructions, data)[0] is Code.INVALID_ARGUMENT
        if data:
            assert refused(client.send_bytes, data)[0] is Code.INVALID_ARGUMENT
    assert not (tmp_path / "executed").exists()
    client.observe()
    assert client.actions()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actions_per_chunk", 0),
        ("actions_per_chunk", True),
        ("actions_per_chunk", "5"),
        ("policy_type", 3),
        ("pretrained_name_or_path", None),
        ("rename_map", {"a": 1}),
        ("rename_map", {STATE: "x" * 500_000}),
        ("lerobot_features", []),
        ("lerobot_features", {"observation.state": {"dtype": "float32", "shape": (6,)}}),
        ("lerobot_features", {"observation.state": {"dtype": "float32", "shape": (-6,), "names": []}}),
        ("lerobot_features", {"observation.state": {"dtype": "object", "shape": (6,), "names": []}}),
        ("lerobot_features", {f"observation.{i}": features()[STATE] for i in range(300)}),
    ],
)
def test_values_that_cannot_be_are_refused(door, field, value):
    from lerobot.async_inference.helpers import RemotePolicyConfig

    config = RemotePolicyConfig("stand-in", "runs/one/model", features(), 5)
    setattr(config, field, value)
    with Client(door.endpoint) as client:
        assert refused(client.send_instructions, pickle.dumps(config))[0] is Code.INVALID_ARGUMENT


def test_messages_are_bounded(client):
    def pieces(count, state=State.TRANSFER_MIDDLE, size=2**21):
        yield services_pb2.Observation(transfer_state=State.TRANSFER_BEGIN, data=b"0")
        for _ in range(count):
            yield services_pb2.Observation(transfer_state=state, data=bytes(size))

    code, text = refused(client.send_pieces, pieces(MAX_OBSERVATION // 2**21 + 1))
    assert code is Code.INVALID_ARGUMENT and "more than" in text
    code, text = refused(client.send_pieces, pieces(2, size=10))
    assert code is Code.INVALID_ARGUMENT and "ends early" in text
    assert refused(client.send_pieces, pieces(1, State.TRANSFER_UNKNOWN, 10))[0] is Code.INVALID_ARGUMENT
    with grpc.insecure_channel(client.address, compression=grpc.Compression.Gzip) as zipped:
        setup = services_pb2.PolicySetup(data=bytes(10**6))
        call = zipped.unary_unary(
            "/transport.AsyncInference/SendPolicyInstructions",
            request_serializer=services_pb2.PolicySetup.SerializeToString,
        )
        assert refused(call, setup)[0] is Code.UNIMPLEMENTED, "a small message must stay small"
    client.observe()
    assert client.actions()


def test_an_upload_that_does_not_end_is_cut(client, monkeypatch):
    monkeypatch.setattr(lerobot_grpc, "_UPLOAD_S", 0.1)
    forever = threading.Event()

    def pieces():
        yield services_pb2.Observation(transfer_state=State.TRANSFER_BEGIN, data=b"0")
        forever.wait(20)

    try:
        assert refused(client.send_pieces, pieces())[0] is Code.CANCELLED
    finally:
        forever.set()
    client.observe()
    assert client.actions()


def test_two_clients_do_not_mix(door, client):
    with Client(door.endpoint) as other:
        other.ready()
        other.instruct("runs/two/model", "other", actions=3)
        client.observe(5, raw(50))
        other.observe(0, raw(90))
        theirs, ours = other.actions(), client.actions()
    assert [each.get_timestep() for each in theirs] == [0, 1, 2]
    assert [each.get_timestep() for each in ours] == [5, 6, 7, 8, 9]
    np.testing.assert_allclose(
        [theirs[0].get_action()[0], ours[0].get_action()[0]], [90.09, 50.05], rtol=1e-6
    )


def test_two_clients_of_one_process_over_one_connection_are_told_apart_or_refused(door, client, stand_in):
    door._obs_queue_timeout_s = 5.0
    asking = threading.Thread(target=client.actions)
    asking.start()
    for _ in range(100):
        (robot,) = door._robots.values()
        if robot.present:
            break
        time.sleep(0.02)
    code, text = refused(client.ready)
    assert code is Code.ALREADY_EXISTS and "process of its own" in text
    client.observe()
    asking.join()
    client.ready()
    assert refused(client.actions)[0] is Code.FAILED_PRECONDITION, "a new client gives instructions first"


def test_a_connection_without_instructions_is_told_what_to_do(door):
    with Client(door.endpoint) as client:
        for call in (client.actions, client.observe):
            code, text = refused(call)
            assert code is Code.FAILED_PRECONDITION and "start the robot client again" in text


def test_a_client_that_is_gone_frees_its_place(door, client, monkeypatch):
    monkeypatch.setattr(lerobot_grpc, "_IDLE_S", 0.1)
    for _ in range(100):
        if not door._robots:
            break
        time.sleep(0.05)
    assert refused(client.actions)[0] is Code.FAILED_PRECONDITION
    monkeypatch.setattr(lerobot_grpc, "_IDLE_S", 30.0)  # however slow this machine is
    client.instruct()
    client.observe()
    assert client.actions()


def test_more_robots_than_admitted_are_refused(door, client, monkeypatch):
    monkeypatch.setattr(lerobot_grpc, "MAX_ROBOTS", 1)
    with Client(door.endpoint) as other:
        code, text = refused(other.instruct)
    assert code is Code.RESOURCE_EXHAUSTED and "1 robots" in text


def test_stopping_ends_all_and_frees_the_port(stand_in):
    port = free_port()
    with Worker(stand_in, "runs/one/model") as brain:
        for _ in range(2):
            door = LeRobotGrpcDoor([brain], "127.0.0.1", port, obs_queue_timeout_s=30)
            door.start()
            with pytest.raises(UserError, match=f"door lerobot_grpc cannot listen on 127.0.0.1:{port}"):
                LeRobotGrpcDoor([brain], "127.0.0.1", port).start()
            with Client(door.endpoint) as client:
                client.ready()
                client.instruct()
                told = []
                asked = threading.Thread(
                    target=lambda client=client, told=told: told.append(refused(client.actions))
                )
                asked.start()
                door.stop()
                door.stop()
                asked.join(10)
                assert told, "who waits for actions learns of it"
    assert not [each.name for each in threading.enumerate() if "lerobot_grpc" in each.name]
