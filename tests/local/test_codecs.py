"""How pictures travel: what each codec loses, and what `auto` chooses over links of different speed."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import standin

from lerobot_ext.virtual.network import Link
from simplify_work.local import PolicyClient
from simplify_work.wire.keys import ServerKeys, make_keys
from simplify_work.wire.messages import PictureUse

RAW_BYTES = 480 * 640 * 3


def seen_of(runner, name=standin.SIDE) -> np.ndarray:
    return runner.seen[-1].observation[name]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def infer(address: str, frame, **options):
    with PolicyClient(address, timeout_s=30, **options) as client:
        return client.infer(frame)


def test_jpeg_is_small_and_near_and_leaves_depth_exact(serve):
    runner = standin.StandIn(depth=True)
    _, address = serve(runner)
    frame = standin.observation(depth=True)
    chunk = infer(address, frame, codec="jpeg")
    assert chunk.codec == "jpeg"
    assert chunk.sent_bytes < (RAW_BYTES + frame[standin.DEPTH].nbytes) / 3
    assert psnr(seen_of(runner), frame[standin.SIDE]) > 35
    np.testing.assert_array_equal(seen_of(runner, standin.DEPTH), frame[standin.DEPTH])
    assert np.abs(chunk.actions - standin.actions_for(frame)).max() < 1e-2
    rough = infer(address, frame, codec="jpeg", jpeg_quality=30)
    assert rough.sent_bytes < chunk.sent_bytes


def test_lossless_is_exact(serve):
    runner = standin.StandIn(depth=True)
    _, address = serve(runner)
    frame = standin.observation(depth=True)
    chunk = infer(address, frame, codec="lossless")
    assert chunk.codec == "lossless"
    assert chunk.sent_bytes < RAW_BYTES + frame[standin.DEPTH].nbytes
    for name, array in frame.items():
        np.testing.assert_array_equal(seen_of(runner, name), array)


@pytest.mark.parametrize(("fit", "size"), [("pad", (240, 320)), ("stretch", (256, 256))])
def test_pictures_are_made_as_small_as_the_policy_sees_them_but_not_when_raw(serve, fit, size):
    use = (
        PictureUse(standin.SIDE, 256, 320, "pad") if fit == "pad" else PictureUse(standin.SIDE, 256, 256, fit)
    )
    runner = standin.StandIn(pictures=(use,))
    _, address = serve(runner)
    frame = standin.observation()
    infer(address, frame, codec="jpeg")
    assert seen_of(runner).shape == (*size, 3)
    infer(address, frame, codec="jpeg", shrink=False)
    assert seen_of(runner).shape == (480, 640, 3)
    infer(address, frame, codec="raw")
    np.testing.assert_array_equal(seen_of(runner), frame[standin.SIDE])


def test_auto_stays_raw_on_this_machine(serve):
    runner = standin.StandIn()
    _, address = serve(runner)
    frame = standin.observation()
    with PolicyClient(address, timeout_s=30) as client:
        chunks = [client.infer(frame) for _ in range(10)]
    assert {chunk.codec for chunk in chunks} == {"raw"}
    np.testing.assert_array_equal(seen_of(runner), frame[standin.SIDE])


def test_auto_finds_a_narrow_link_behind_a_loopback_address_and_says_so(serve, caplog):
    _, address = serve()
    frame = standin.observation()
    with (
        Link("127.0.0.1", int(address.rpartition(":")[2]), bandwidth_mbit=50, delay_ms=10) as link,
        caplog.at_level(logging.INFO, "simplify_work.local"),
        PolicyClient(link.address, timeout_s=30) as client,
    ):
        codecs = [client.infer(frame).codec for _ in range(5)]
    assert codecs == ["raw", "raw", "jpeg", "jpeg", "jpeg"]
    said = [record.getMessage() for record in caplog.records if "pictures travel jpeg" in record.getMessage()]
    assert len(said) == 1
    assert "Mbit/s" in said[0]


def test_auto_changes_when_the_link_does(serve):
    _, address = serve()
    frame = standin.observation()
    with (
        Link("127.0.0.1", int(address.rpartition(":")[2])) as link,
        PolicyClient(link.address, timeout_s=60) as client,
    ):
        assert client.infer(frame).codec == "raw"
        link.slow(bandwidth_mbit=40, delay_ms=5)
        codecs = [client.infer(frame).codec for _ in range(12)]
        assert codecs[-1] == "jpeg"
        link.slow(bandwidth_mbit=None, delay_ms=0)
        client._gauge._every_s = 0.0  # do not wait 20 s for each look at the link
        codecs = [client.infer(frame).codec for _ in range(40)]
    assert codecs[-1] == "raw"


def test_small_observations_are_never_encoded(serve):
    _, address = serve(standin.StandIn(48, 64))
    with Link("127.0.0.1", int(address.rpartition(":")[2]), bandwidth_mbit=10, delay_ms=5) as link:
        assert infer(link.address, standin.observation(0, 48, 64)).codec == "raw"


def test_what_the_keys_encrypt_arrives(serve, tmp_path):
    make_keys(tmp_path, ["arm"])
    runner = standin.StandIn()
    _, address = serve(runner, keys=ServerKeys.load(tmp_path / "server"))
    frame = standin.observation()
    chunk = infer(address, frame, keys=tmp_path / "arm")
    np.testing.assert_array_equal(chunk.actions, standin.actions_for(frame))
    np.testing.assert_array_equal(seen_of(runner), frame[standin.SIDE])


def test_a_codec_that_is_none_is_refused():
    with pytest.raises(ValueError, match="codec is 'mp4', expected one of auto"):
        PolicyClient(codec="mp4")
    with pytest.raises(ValueError, match="jpeg_quality"):
        PolicyClient(jpeg_quality=0)
