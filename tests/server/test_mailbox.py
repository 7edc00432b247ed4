import threading

from simplify_work.server.mailbox import Job, Mailbox
from simplify_work.wire.messages import Infer, Reset


def infer(session: bytes, request: int) -> Job:
    return Job(session, Infer(request=request))


def taken(mailbox: Mailbox, count: int) -> list[tuple[bytes, int]]:
    return [(job.session, job.message.request) for job in (mailbox.take() for _ in range(count))]


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


def test_closing_ends_the_wait():
    mailbox = Mailbox()
    found = []
    thread = threading.Thread(target=lambda: found.append(mailbox.take()))
    thread.start()
    mailbox.close()
    thread.join(5)
    assert found == [None]
