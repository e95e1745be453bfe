"""The exporter logs whole programs; pytest would show them with every failure."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _no_traces_of_the_exporter():
    logger = logging.getLogger('torch.__trace')
    propagate, logger.propagate = logger.propagate, False
    yield
    logger.propagate = propagate
