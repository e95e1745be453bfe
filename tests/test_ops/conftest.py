"""Exact float32 on GPUs: what TF32 does to convolutions is asked of it where a test is about it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
