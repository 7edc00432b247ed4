from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.cameras.counts import FrameCounter, Stamp


def stamps(number, depth=None, at_ms=None, depth_ms=None, clock="global_time"):
    at_ms = number * 33.3 if at_ms is None else at_ms
    depth = number if depth is None else depth
    return {
        "color": Stamp(number, at_ms, clock),
        "depth": Stamp(depth, at_ms if depth_ms is None else depth_ms, clock),
    }


def test_what_comes_in_order_is_received():
    counter = FrameCounter()
    assert all(counter.accept(stamps(n), 30) for n in range(100, 120))
    assert counter.as_dict() == {"received": 20, "dropped": 0, "repeated": 0, "reconnects": 0}


@given(st.lists(st.booleans(), max_size=60))
def test_received_and_dropped_together_are_all_that_the_device_took(lost):
    counter = FrameCounter()
    sent = [1, *(2 + i for i, gone in enumerate(lost) if not gone)]
    assert all(counter.accept(stamps(n), 30) for n in sent)
    assert counter.received + counter.dropped == sent[-1]


def test_a_frame_that_comes_again_is_no_new_one():
    counter = FrameCounter()
    assert [counter.accept(stamps(n), 30) for n in (1, 1, 1, 2)] == [True, False, False, True]
    assert (counter.repeated, counter.dropped) == (2, 0)


def test_colour_at_half_the_rate_makes_pairs_at_half_the_rate():
    counter = FrameCounter()
    pairs = [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5)]
    taken = [counter.accept(stamps(c, d, at_ms=c * 66, depth_ms=d * 33), 30) for c, d in pairs]
    assert taken == [True, False, True, False, True]
    assert (counter.repeated, counter.dropped) == (2, 0)


def test_streams_of_two_instants_are_no_frameset():
    counter = FrameCounter()
    assert counter.accept(stamps(50), 30)
    assert not counter.accept(stamps(1, 51, at_ms=33, depth_ms=1700), 30), "a file that begins anew"
    assert counter.dropped == 1
    assert counter.accept(stamps(2), 30) and counter.dropped == 1


def test_unlike_clocks_are_not_compared():
    found = stamps(1)
    found["depth"] = Stamp(1, 1e12, "system_time")
    assert FrameCounter().accept(found, 30)


def test_numbers_that_begin_anew_are_not_drops():
    counter = FrameCounter()
    counter.accept(stamps(900), 30)
    assert counter.accept(stamps(3), 30)
    counter.begin()
    assert counter.accept(stamps(700), 30)
    assert counter.dropped == 0
