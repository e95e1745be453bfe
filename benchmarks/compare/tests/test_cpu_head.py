"""A head's losses and boxes on the CPU are those of the head."""

import pytest
import torch
from mmengine.structures import InstanceData

from benchmarks.compare import cpu_head
from mmdeform_upgrade.errors import ConfigError
from tests.test_runs.conftest import short_cfg, train  # noqa: F401

HOOK = dict(type='CPUHeadHook')


def test_a_training_and_its_boxes_are_the_same_with_the_hook(short_cfg):
    plain, hooked = train(short_cfg), train(short_cfg, [HOOK])
    assert 'loss_by_feat' in vars(hooked.model.bbox_head)
    assert hooked.record.losses == plain.record.losses and len(plain.record.losses) > 1
    boxes = []
    for runner in (plain, hooked):
        batch = runner.model.data_preprocessor(next(iter(runner.train_dataloader)))
        found = runner.model.eval().predict(batch['inputs'], batch['data_samples'], rescale=False)
        boxes.append(torch.cat([sample.pred_instances.bboxes for sample in found]))
    assert len(boxes[0]) and torch.equal(*boxes)


def test_everything_moves_in_one_copy_a_type(monkeypatch):
    copies, plain = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: copies.append(self.dtype) or plain(self))
    maps = [torch.rand(2, 3, 4, requires_grad=True), torch.rand(5)]
    boxes, none = InstanceData(bboxes=torch.rand(2, 4), labels=torch.arange(2)), InstanceData(bboxes=torch.rand(0, 4))
    moved = cpu_head._on_cpu((maps, [boxes, none], [dict(shape=(1, 2), flip=None)]))
    assert copies == [torch.float32, torch.int64]
    assert all(torch.equal(*pair) for pair in zip(moved[0], maps, strict=True))
    assert torch.equal(moved[1][0].bboxes, boxes.bboxes) and torch.equal(moved[1][0].labels, boxes.labels)
    assert moved[1][1].bboxes.shape == (0, 4) and moved[2] == [dict(shape=(1, 2), flip=None)]
    moved[0][0].sum().backward()
    assert torch.equal(maps[0].grad, torch.ones(2, 3, 4))


def test_a_part_that_is_no_dense_head_is_named(short_cfg):
    with pytest.raises(ConfigError, match=r"CPUHeadHook: 'neck' is no part .*: set part="):
        train(short_cfg, [dict(type='CPUHeadHook', part='neck')])
