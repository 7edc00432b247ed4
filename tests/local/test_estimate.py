"""The choice of a codec from measured round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplify_work.local.estimate import CodecChoice, LinkEstimate

RAW = 3 * 480 * 640 * 3


def link_of(mbit: float, latency_s: float) -> LinkEstimate:
    link = LinkEstimate()
    link.add_small(latency_s)
    for nbytes in (30_000, 60_000, 60_000):
        link.add(nbytes, latency_s + nbytes * 8e-6 / mbit)
    return link


@given(st.floats(1, 10_000), st.floats(1e-4, 0.5))
def test_a_link_is_known_by_its_round_trips(mbit, latency_s):
    link = link_of(mbit, latency_s)
    assert link.latency_s == pytest.approx(latency_s)
    assert link.seconds(1e6) == pytest.approx(latency_s + 8 / mbit, rel=1e-3)
    assert f"{1e3 * latency_s:.1f} ms" in str(link)


@pytest.mark.parametrize(
    ("mbit", "latency_s", "codec"),
    [(10_000, 0.0003, "raw"), (1_000, 0.001, "jpeg"), (100, 0.04, "jpeg"), (5, 0.2, "jpeg")],
)
def test_the_quickest_codec_is_chosen(mbit, latency_s, codec):
    choice = CodecChoice(link_of(mbit, latency_s))
    choice.decide(RAW)
    assert choice.current == codec


def test_nothing_is_chosen_before_something_is_known():
    choice = CodecChoice(LinkEstimate())
    assert not choice.decide(RAW)
    assert choice.current == "raw"


def test_a_loopback_address_needs_proof_that_the_link_is_slow():
    hiccups = LinkEstimate()
    hiccups.add_small(0.0003)
    for seconds in (0.02, 0.02, 0.03):
        hiccups.add(256_000, seconds)
    assert CodecChoice(hiccups, on_loopback=False).decide(RAW)
    busy = CodecChoice(hiccups, on_loopback=True)
    assert not busy.decide(RAW)  # probes alone are no proof
    for seconds in (0.2, 0.009, 0.2):
        hiccups.add(RAW, seconds)
        assert not busy.decide(RAW)  # one that was quick outweighs those that were not
    for _ in range(3):
        hiccups.add(RAW, 0.2)
    assert busy.decide(RAW)
    hopeless = CodecChoice(link_of(5, 0.04), on_loopback=True)
    assert hopeless.decide(RAW)  # no raw one is tried where it would take seconds


def test_a_choice_stands_while_another_is_hardly_better():
    choice = CodecChoice(link_of(100, 0.04))
    choice.decide(RAW)
    # Encoding turns out slow: raw would now take a little less, but not a quarter.
    for _ in range(30):
        choice.sent("lossless", RAW, RAW, 1.0)
        choice.sent("jpeg", RAW, RAW // 10, 0.14)
    assert choice.expected_s("raw", RAW) < choice.expected_s("jpeg", RAW)
    assert not choice.decide(RAW)
    for _ in range(30):
        choice.sent("jpeg", RAW, RAW // 10, 0.5)
    assert choice.decide(RAW)
    assert choice.current != "jpeg"


def test_probes_are_as_large_as_the_link_bears():
    assert link_of(10_000, 0.001).probe_bytes() == 256 * 1024
    assert link_of(100, 0.02).probe_bytes() == pytest.approx(62_500, rel=0.01)
    assert link_of(1, 0.02).probe_bytes() == 16 * 1024
