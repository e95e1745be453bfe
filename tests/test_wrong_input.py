"""Wrong calls: some examples of each check of ``tests/faults/wrong_input.py``, the same ones in every run."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger

from .faults import wrong_input


@pytest.fixture(autouse=True)
def _quiet():
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize('name', wrong_input.CHECKS)
def test_a_call_keeps_its_promise_or_changes_nothing(name):

    @settings(max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        wrong_input.CHECKS[name](data)

    check()
