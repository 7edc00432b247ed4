"""What doors share: sessions that end when they should, and a log that clients cannot fill."""

from __future__ import annotations

import logging

import pytest

from simplify_work.server.doors.guests import Guest, Refusals
from simplify_work.wire.errors import SessionLost


class Lost:
    """A session that ended by itself."""

    def __init__(self):
        self.closed = False

    def infer(self, *args, **options):
        raise SessionLost("it is over")

    def close(self):
        self.closed = True


def test_a_guest_that_is_closed_while_it_begins_anew_leaves_no_session():
    sessions: list[Lost] = []

    class Brain:
        def open_session(self, client):
            sessions.append(Lost())
            if len(sessions) == 2:
                guest.close()
            return sessions[-1]

    guest = Guest(Brain(), "a robot")
    with pytest.raises(SessionLost):
        guest.infer({}, "", 1.0)
    assert [session.closed for session in sessions] == [True, True]


def test_what_is_refused_takes_one_short_line_a_second(caplog):
    refusals = Refusals(logging.getLogger("a door"))
    refusals.note("a name\n2026-01-01 ERROR the arm fell \x1b[2J" + "x" * 10**6)
    refusals.note("another")
    (record,) = caplog.records
    assert record.getMessage().startswith("refused a name\N{REPLACEMENT CHARACTER}2026-01-01 ERROR")
    assert len(record.getMessage()) < 2100
    assert record.getMessage()[7:].isprintable()
