import threading

from hypothesis import given
from hypothesis import strategies as st

from simplify_work.server.mailbox import Job, Mailbox
from simplify_work.wire.messages import Infer, Reset


def infer(session: bytes, request: int) -> Job:
    return Job(session, Infer(request=request))


def names(jobs: list[Job]) -> list[tuple[bytes, int]]:
    return [(job.session, job.message.request) for job in jobs]


def taken(mailbox: Mailbox, count: int) -> list[tuple[bytes, int]]:
    return [name for _ in range(count) for name in names(mailbox.take())]


def test_the_newest_observation_takes_the_waiting_ones_place():
    mailbox = Mailbox()
    assert mailbox.put(infer(b"a", 1)) == []
    assert [job.message.request for job in mailbox.put(infer(b"a", 2))] == [1]
    assert taken(mailbox, 1) == [(b"a", 2)]


def test_sessions_take_turns():
    mailbox = Mailbox()
    for job in (Job(b"a", Reset(request=1)), infer(b"a", 2), infer(b"b", 3), infer(b"c", 4)):
        mailbox.put(job)
    assert taken(mailbox, 4) == [(b"a", 1), (b"b", 3), (b"c", 4), (b"a", 2)]


def test_a_reset_clears_what_waits_and_comes_before_what_follows():
    mailbox = Mailbox()
    mailbox.put(infer(b"a", 1))
    assert [job.message.request for job in mailbox.put(Job(b"a", Reset(request=2)))] == [1]
    mailbox.put(infer(b"a", 3))
    assert taken(mailbox, 2) == [(b"a", 2), (b"a", 3)]


def test_an_ended_session_leaves_nothing_behind():
    mailbox = Mailbox()
    mailbox.put(infer(b"a", 1))
    mailbox.put(infer(b"b", 2))
    mailbox.discard(b"a")
    assert taken(mailbox, 1) == [(b"b", 2)]


def test_several_sessions_are_taken_at_once_and_each_gives_one_job():
    mailbox = Mailbox()
    for job in (Job(b"a", Reset(request=1)), infer(b"a", 2), infer(b"b", 3), infer(b"c", 4)):
        mailbox.put(job)
    assert names(mailbox.take(16)) == [(b"a", 1), (b"b", 3), (b"c", 4)]
    assert names(mailbox.take(16)) == [(b"a", 2)]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.booleans()), max_size=60),
    st.integers(1, 4),
)
def test_nobody_waits_longer_than_one_turn_of_the_others(asked, limit):
    """However often some ask: until a session is served, no other session is served twice."""
    mailbox, waiting_since, served = Mailbox(), {}, []
    for number, (session, take) in enumerate(asked):
        mailbox.put(infer(session, number))
        waiting_since.setdefault(session, len(served))
        if take:
            for name, _ in names(mailbox.take(limit)):
                others = served[waiting_since.pop(name) :]
                assert all(others.count(other) <= 1 for other in others)
                served.append(name)


def test_who_is_superseded_keeps_the_turn():
    mailbox = Mailbox()
    for job in (infer(b"a", 1), infer(b"b", 2), infer(b"a", 3)):
        mailbox.put(job)
    assert names(mailbox.take(2)) == [(b"a", 3), (b"b", 2)]


def test_a_job_whose_pictures_are_being_decoded_holds_up_nobody_else():
    mailbox = Mailbox()
    slow = Job(b"a", Infer(request=1), arrays=None)
    mailbox.put(slow)
    mailbox.put(infer(b"b", 2))
    assert names(mailbox.take(16)) == [(b"b", 2)]
    mailbox.complete(slow, {})
    assert names(mailbox.take(16)) == [(b"a", 1)]


def test_a_job_can_be_withdrawn_while_it_waits():
    mailbox = Mailbox()
    job = Job(b"a", Infer(request=1), arrays=None)
    mailbox.put(job)
    assert mailbox.withdraw(job)
    assert not mailbox.withdraw(job)
    assert len(mailbox) == 0


def test_closing_ends_the_wait():
    mailbox = Mailbox()
    found = []
    thread = threading.Thread(target=lambda: found.append(mailbox.take()))
    thread.start()
    mailbox.close()
    thread.join(5)
    assert found == [None]
