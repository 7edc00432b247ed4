"""What doors keep of their clients, without a socket: whose place is given up, whose session ends, what is told."""

import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from simplify_work.server.doors import act_messages, act_zmq, guests
from simplify_work.server.doors.act_zmq import ActZmqDoor
from simplify_work.server.doors.guests import Guest, Refusals, UnknownCheckpointError, choose
from simplify_work.server.doors.lerobot_robot import Robot
from simplify_work.server.protocol import Served
from simplify_work.wire.errors import FeatureMismatch, ServerBusy, ServerStopped, SessionLost, WireFormatError
from simplify_work.wire.features import DTYPES, FeatureSpec
from simplify_work.wire.messages import PictureUse

FRAME = {"observation.state": np.zeros(2, np.float32)}
STATE = FeatureSpec("observation.state", "vector", (2,), DTYPES["vector"])


class Session:
    def __init__(self, client):
        self.client, self.closed, self.lost = client, 0, False

    def infer(self, observation, **options):
        if self.lost or self.closed:
            raise SessionLost("it was silent")
        return observation

    def close(self):
        self.closed += 1


class Brain:
    """Sessions that note what becomes of them."""

    def __init__(self, path="runs/one/model", most=100):
        self.path, self.most, self.sessions = path, most, []
        self.served = Served("act", (STATE,), 2, 5, 5)

    def open_session(self, client):
        if sum(not each.closed for each in self.sessions) >= self.most:
            raise ServerBusy(f"{self.most} sessions")
        self.sessions.append(Session(client))
        return self.sessions[-1]


# --- the ACT door's clients ---


@pytest.fixture
def door():
    def door(**options):
        made.append(ActZmqDoor([Brain(**options)], "127.0.0.1", 0))
        return made[-1], made[-1]._brain

    made = []
    yield door
    for each in made:
        each.stop()


def silent(door, identity, seconds):
    door._clients[identity].last_seen_s = time.monotonic() - seconds


def test_the_one_that_was_silent_for_longest_gives_its_place_up(door):
    door, brain = door(most=3)
    for identity, seconds in ((b"a", 50), (b"b", 70), (b"c", 60)):
        door._client(identity)
        silent(door, identity, seconds)
    assert door._client(b"d").session is brain.sessions[3]
    assert [each.closed for each in brain.sessions] == [0, 1, 0, 0]
    assert door._clients.keys() == {b"a", b"c", b"d"}


def test_whoever_is_being_answered_or_was_just_there_keeps_its_place(door):
    door, brain = door(most=2)
    for identity, seconds in ((b"a", 500), (b"b", act_zmq._GONE_S - 5)):
        door._client(identity)
        silent(door, identity, seconds)
    door._answering.add(b"a")
    with pytest.raises(ServerBusy):
        door._client(b"c")
    assert not any(each.closed for each in brain.sessions) and b"c" not in door._clients
    door._client(b"b")
    assert time.monotonic() - door._clients[b"b"].last_seen_s < act_zmq._GONE_S / 2, "it is there again"


def test_no_more_clients_are_remembered_than_there_is_room_for(door, monkeypatch):
    monkeypatch.setattr(act_zmq, "_MAX_CLIENTS", 2)
    door, brain = door()
    for number in range(5):
        identity = b"%d" % number
        door._client(identity)
        silent(door, identity, 100 - number)
    assert door._clients.keys() == {b"3", b"4"}
    assert [each.closed for each in brain.sessions] == [1, 1, 1, 0, 0]


def test_stopping_closes_every_session_and_opens_none(door):
    door, brain = door()
    door._client(b"a"), door._client(b"b")
    door.stop()
    with pytest.raises(ServerStopped):
        door._client(b"c")
    assert [each.closed for each in brain.sessions] == [1, 1]


# --- the ACT door's messages ---


def test_only_a_policy_that_resizes_sees_pictures_of_another_size():
    image = FeatureSpec("observation.images.top", "image", (8, 6, 3), ("uint8",))

    def found(*shape, resized):
        pictures = (PictureUse(image.name, 8, 6, "stretch"),) if resized else ()
        translator = act_messages.Translator(Served("act", (STATE, image), 2, 5, 5, pictures=pictures))
        request = {"qpos": np.zeros(2), "images": {"top": np.zeros(shape, np.uint8)}}
        return translator.observation(request)[image.name].shape

    assert found(8, 6, 3, resized=False) == (8, 6, 3)
    assert found(16, 9, 3, resized=True) == (16, 9, 3)
    for shape, resized in (((16, 9, 3), False), ((16, 9, 4), True), ((16, 9), True), ((0, 9, 3), True)):
        with pytest.raises(FeatureMismatch, match=r"images\['top'\] has shape"):
            found(*shape, resized=resized)


def test_what_is_told_has_an_end():
    import pickle

    assert len(pickle.loads(act_messages.error("x" * 10_000))["message"]) == 2000
    with pytest.raises(FeatureMismatch) as caught:
        act_messages.Translator(Served("act", (STATE,), 2, 5, 5)).observation(
            {"x" * 1000: 0, **{f"n{number}": number for number in range(29)}}
        )
    assert (
        "and 10 more." in str(caught.value)
        and "n19" not in str(caught.value)
        and len(str(caught.value)) < 1000
    )


# --- what the other doors share ---


def test_a_name_that_fits_several_checkpoints_is_none(tmp_path):
    one, other = Brain("runs/one/model"), Brain("more/one/model")
    with pytest.raises(UnknownCheckpointError, match="'one/model' may be each of 2 checkpoints"):
        choose([one, other], "one/model")
    assert choose([one, other], "more/one/model") is other, "as it was given, before all"
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    linked = Brain(str(tmp_path / "link"))
    assert choose([one, linked], str(tmp_path / "model")) is linked, "the same folder"


def test_a_guest_that_was_silent_has_a_new_session_and_one_that_left_has_none():
    brain = Brain()
    guest = Guest(brain, "robot")
    assert guest.infer(FRAME, "press", 1.0) is FRAME
    brain.sessions[0].lost = True
    assert guest.infer(FRAME, "press", 1.0) is FRAME
    assert [each.client for each in brain.sessions] == ["robot", "robot"]
    guest.close()
    assert brain.sessions[1].closed
    with pytest.raises(SessionLost):
        guest.infer(FRAME, "press", 1.0)
    assert len(brain.sessions) == 2


def test_refusals_are_one_line_a_second(caplog, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(guests, "time", clock)
    refusals = Refusals(logging.getLogger("door"))
    for number in range(4):
        refusals.note(f"request {number}")
    clock.now += 1.5
    refusals.note("request 4")
    refusals.note("request 5")
    clock.now += 1.5
    refusals.note("request 6")
    assert [each.getMessage() for each in caplog.records] == [
        "refused request 0",
        "refused request 4 (3 more since the last line)",
        "refused request 6 (1 more since the last line)",
    ]


# --- LeRobot's robot ---


@pytest.fixture
def robot():
    return Robot(Guest(Brain(), "robot"), None)


def seen(timestep, must_go=False):
    return SimpleNamespace(timestep=timestep, must_go=must_go)


def test_an_observation_of_the_step_that_was_begun_is_left_out(robot):
    first = seen(3)
    robot.put(first, {"n": 0})
    robot.put(seen(4), {"n": 1})
    assert robot.take(0.0)[1] == {"n": 1}, "the newest"
    robot.put(seen(4), {"n": 2})
    assert robot.take(0.0) is None
    robot.failed(seen(3))
    robot.put(seen(4), {"n": 3})
    assert robot.take(0.0) is None, "another one failed"
    robot.failed(seen(4))
    robot.put(seen(4), {"n": 4})
    assert robot.take(0.0)[1] == {"n": 4}
    robot.put(seen(4, must_go=True), {"n": 5})
    robot.put(seen(4), {"n": 6})
    assert robot.take(0.0)[1] == {"n": 5}, "one that must go is not replaced by one that need not"
    robot.put(seen(2), {"n": 7})
    assert robot.take(0.0)[1] == {"n": 7}, "a client that began anew"


def test_an_observation_wakes_who_waits_for_one(robot):
    taken, waits = [], robot._changed.wait
    waiting = threading.Thread(target=lambda: taken.append(robot.take(60.0)))
    entered = threading.Event()
    robot._changed.wait = lambda timeout: (entered.set(), waits(timeout))[1]
    waiting.start()
    assert entered.wait(30)
    robot.put(seen(1), {"n": 1})
    waiting.join(30)
    assert taken and taken[0][1] == {"n": 1}


def test_the_end_wakes_who_waits_and_closes_the_session(robot):
    robot.put(seen(1), {})
    robot.take(0.0)
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(robot.take(60.0)))
    waiting.start()
    robot.end()
    waiting.join(30)
    assert taken == [None] and robot.guest._closed
    robot = Robot(Guest(Brain(), "robot"), None)
    robot.put(seen(1), {})
    robot.end()
    assert robot.take(60.0) is None, "what waited is not inferred any more"


class Call:
    active = True

    def is_active(self):
        return self.active


def test_who_asks_or_sends_is_there(robot):
    call = Call()
    robot._last_s -= 100
    assert robot.silent_s > 99 and not robot.present
    with robot.asking(call):
        assert robot.silent_s == 0 and robot.present
        call.active = False
        assert not robot.present, "it hung up"
    assert 0 <= robot.silent_s < 50
    robot._last_s -= 100
    with pytest.raises(ZeroDivisionError), robot.sending():
        assert robot.silent_s == 0
        with pytest.raises(WireFormatError, match="two observations come at once"), robot.sending():
            pass
        _ = 1 / 0
    assert 0 <= robot.silent_s < 50
    with robot.sending():
        pass
