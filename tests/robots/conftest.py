"""Robots on a bench of pseudo-terminals, made as LeRobot makes them."""

from collections.abc import Iterator

import pytest
from bench import Bench, running_bench
from lerobot.robots import make_robot_from_config

import lerobot_ext

lerobot_ext.register()


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    with running_bench(tmp_path) as running:
        yield running


@pytest.fixture
def make(bench):
    """Makes robots as LeRobot does, and releases them after the test."""
    made = []

    def make_one(**more):
        made.append(make_robot_from_config(bench.config(**more)))
        return made[-1]

    yield make_one
    for robot in made:
        robot.disconnect()
