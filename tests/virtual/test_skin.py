"""The skin's frames and what is in them."""

import os
import time

import numpy as np
import serial

from lerobot_ext.virtual.skin import AXES, END, FRAME, NOISE_UT, POSITIONS, Skin, frame
from lerobot_ext.virtual.terminal import Terminal


def samples(skin, force, n=200):
    return np.array([skin.step(0.01, np.array(force)) for _ in range(n)])[50:, :, 1:].reshape(-1, 15)


def test_a_frame_is_82_bytes_that_parse():
    values = Skin(seed=1).step(0.01, np.zeros(3))
    data = frame(values)
    assert len(data) == 82 and data.endswith(END)
    assert np.array_equal(np.frombuffer(data[:80], "<f4").reshape(5, 4), values)
    assert np.allclose(FRAME.unpack(data[:80]), values.ravel())


def test_the_noise_is_what_is_stated():
    quiet = samples(Skin(seed=2), (0, 0, 0), 1000)
    assert np.allclose(quiet.std(axis=0), NOISE_UT, rtol=0.2)


def test_pressing_and_shearing_show_above_the_noise_and_differ():
    skin = Skin(seed=3)
    zero = samples(skin, (0, 0, 0)).mean(axis=0)
    press, shear = (samples(skin, force).mean(axis=0) - zero for force in ((2, 0, 0), (0, 1, 0)))
    assert np.linalg.norm(press) > 20 * NOISE_UT
    assert np.linalg.norm(shear) > 10 * NOISE_UT
    assert abs(press @ shear) < 0.5 * np.linalg.norm(press) * np.linalg.norm(shear)


def test_more_force_gives_more_field():
    skin = Skin(seed=4)
    norms = []
    zero = samples(skin, (0, 0, 0)).mean(axis=0)
    for newton in (0.5, 1, 2, 3, 6):
        norms.append(np.linalg.norm(samples(skin, (newton, 0, 0)).mean(axis=0) - zero))
    assert norms == sorted(norms)


def test_on_the_boards_layout_pressing_spreads_the_field_and_shearing_shifts_it():
    skin = Skin(seed=5)

    def on_the_board(force):
        change = samples(skin, force).mean(axis=0).reshape(5, 3) - zero
        return np.einsum("mij,mj->mi", AXES, change[:, :2]), change[:, 2]

    zero = samples(skin, (0, 0, 0)).mean(axis=0).reshape(5, 3)
    sideways, normal = on_the_board((3, 0, 0))
    assert (normal < -20).all() and normal.argmin() == 0
    assert ((sideways[1:] * POSITIONS[1:]).sum(axis=1) > 15).all()  # outwards from the centre
    sideways, _ = on_the_board((0, 2, 0))
    assert (sideways[:, 0] > 15).all() and np.abs(sideways[:, 1]).max() < 15


def test_a_stream_without_a_reader_does_not_block_and_leaves_nothing_old(tmp_path):
    terminal = Terminal(tmp_path / "skin", keep_open=False)
    try:
        assert not terminal.listening
        with serial.Serial(str(terminal.link), 115200, timeout=1) as port:
            assert terminal.listening
            start = time.monotonic()
            sent = [terminal.write(b"x" * 82) for _ in range(1000)]
            assert time.monotonic() - start < 5
            assert not all(sent)  # it was full: dropped
            terminal.forget()
            terminal.write(b"new")
            assert port.read(3) == b"new"
        assert not terminal.listening
    finally:
        terminal.close()
    assert not os.path.lexists(tmp_path / "skin")
