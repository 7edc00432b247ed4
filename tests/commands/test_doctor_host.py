"""`lerobot-ext doctor --policy.path`: can this machine serve that checkpoint, on that port?"""

from __future__ import annotations

import shutil
import struct
from functools import partial

import pytest
import zmq
from doctoring import examine, program_that, zmq_program

from lerobot_ext.virtual.testing import free_port
from simplify_work.wire.keys import make_keys


@pytest.fixture
def doctor(capsys):
    """`status, checks = doctor("--server=…")`: the exit status, and each check's finding by its name."""
    return partial(examine, capsys)


def test_a_checkpoint_that_can_be_served(act, doctor):
    status, checks = doctor(f"--policy.path={act}", f"--port={free_port()}", "--device=cpu")
    assert status == 0, checks
    assert list(checks) == ["port", "keys", "checkpoint", "policy", "device", "memory", "dtype"]
    assert {each["status"] for each in checks.values()} == {"ok"}
    figures = checks["checkpoint"]["figures"]
    assert figures["policy_type"] == "act"
    assert 4 * sum(figures["parameters"].values()) == pytest.approx(figures["nbytes"], rel=0.01)
    assert checks["memory"]["figures"]["needed_bytes"] > figures["nbytes"]


def test_a_taken_port_names_what_has_it(act, doctor):
    with zmq_program(zmq.PUB) as port:
        status, checks = doctor(f"--policy.path={act}", f"--port={port}")
    assert status == 1 and f"port {port} is taken by a ZeroMQ program" in checks["port"]["found"]
    assert "another --port" in checks["port"]["advice"]
    with program_that(lambda c: c.sendall(b"SSH-2.0\r\n")) as port:
        _, checks = doctor(f"--policy.path={act}", f"--port={port}")
    assert "no lerobot_ext server" in checks["port"]["found"]


def test_an_address_of_another_machine_and_a_port_without_keys(act, doctor):
    _, checks = doctor(f"--policy.path={act}", "--host=192.0.2.1")
    assert checks["port"]["status"] == "failed" and "address of this machine" in checks["port"]["advice"]
    _, checks = doctor(f"--policy.path={act}", "--host=0.0.0.0", f"--port={free_port()}")
    assert checks["port"]["status"] == "ok" and checks["keys"]["status"] == "failed"
    assert "lerobot-ext keys" in checks["keys"]["advice"]


def test_the_servers_keys(act, doctor, tmp_path):
    make_keys(tmp_path / "keys", ["arm", "leg"])
    words = [f"--policy.path={act}", "--host=0.0.0.0", f"--port={free_port()}", "--device=cpu"]
    status, checks = doctor(*words, f"--keys={tmp_path}/keys/server")
    assert status == 0 and checks["keys"]["found"].endswith("which admit arm, leg")
    status, checks = doctor(*words, f"--keys={tmp_path}/nowhere")
    assert status == 1 and "nowhere" in checks["keys"]["found"]
    make_keys(tmp_path / "lonely", [])
    status, checks = doctor(*words, f"--keys={tmp_path}/lonely/server")
    assert status == 0 and checks["keys"]["status"] == "warning"
    status, checks = doctor(*words, "--insecure")
    assert status == 0 and checks["keys"]["status"] == "warning"


@pytest.fixture
def broken(act, tmp_path):
    return shutil.copytree(act, tmp_path / "broken")


def test_an_incomplete_checkpoint(broken, doctor):
    (broken / "policy_preprocessor.json").unlink()
    status, checks = doctor(f"--policy.path={broken}", f"--port={free_port()}")
    assert status == 1 and "policy_preprocessor.json is missing" in checks["checkpoint"]["found"]
    assert checks["device"]["status"] == "skipped" and checks["port"]["status"] == "ok"


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_weights_that_were_cut_off(kept, broken, doctor):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    status, checks = doctor(f"--policy.path={broken}", f"--port={free_port()}")
    assert status == 1 and checks["checkpoint"]["status"] == "failed"
    assert "copy the checkpoint again" in checks["checkpoint"]["advice"]


def test_a_header_of_nonsense(broken, doctor):
    weights = broken / "model.safetensors"
    for header in (b"[1, 2]", b'{"a": 1}', b'{"a": {"data_offsets": [0]}}', b"\xff\xfe"):
        weights.write_bytes(struct.pack("<Q", len(header)) + header)
        _, checks = doctor(f"--policy.path={broken}", f"--port={free_port()}")
        assert "cannot be read" in checks["checkpoint"]["found"], header


def test_a_device_that_is_not_there_and_a_policy_that_is_not_known(act, broken, doctor):
    status, checks = doctor(f"--policy.path={act}", f"--port={free_port()}", "--device=nonsense")
    assert status == 1 and "device 'nonsense' is not available" in checks["policy"]["found"]
    config = broken / "config.json"
    config.write_text(config.read_text().replace('"type": "act"', '"type": "acht"'))
    status, checks = doctor(f"--policy.path={broken}", f"--port={free_port()}")
    assert status == 1 and "acht" in checks["policy"]["found"]


def test_dtypes(act, doctor):
    words = [f"--policy.path={act}", f"--port={free_port()}", "--device=cpu"]
    assert doctor(*words, "--dtype=int3")[1]["dtype"]["status"] == "failed"
    assert doctor(*words, "--dtype=bfloat16")[1]["dtype"]["status"] == "warning"


def test_weights_larger_than_the_memory(act, doctor, monkeypatch):
    from lerobot_ext.commands import doctor_host

    for free, expected in ((10 * 2**20, "failed"), (500 * 2**20, "warning")):
        monkeypatch.setattr(doctor_host, "available_bytes", lambda free=free: free)
        _, checks = doctor(f"--policy.path={act}", f"--port={free_port()}", "--device=cpu")
        assert checks["memory"]["status"] == expected
