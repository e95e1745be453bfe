"""Several runs one after another in each of two processes on a CPU: ``torchrun ddp_runs.py CONFIG FOLDER``.

Each process writes what it holds after a run to FOLDER/RUN/RANK.pth, or the error that the run ended with.
"""

import os
import re
import sys
import traceback
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS, RUNNERS, DefaultScope

torch.cuda.set_device = lambda device: None  # MMEngine's launcher sets one whatever the backend is

WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None)
# Not 'full', which is this with offload_to_cpu=True: PyTorch's FSDP crashes there where the tensors are on a CPU.
WHOLE = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', offload_to_cpu=False),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', offload_to_cpu=False),
)
FSDP = dict(
    type='FSDPStrategy',
    state_dict_cfg=WHOLE,
    model_wrapper=dict(type='MMFullyShardedDataParallel', device_id='cpu', use_orig_params=True),
)
RANDOM = {'model.decode_head.dropout_ratio': 0.5, 'train_cfg.max_epochs': 2, 'train_dataloader.sampler.shuffle': True}
ADAM = {
    'optim_wrapper.constructor': 'OffsetOptimizerConstructor',
    'optim_wrapper.offset_optimizer': dict(type='Adam', lr=1e-3),
    'optim_wrapper.optimizer.momentum': 0.9,
    'custom_hooks.0.max_step': 1e-4,
}
APART = dict(FSDP, model_wrapper=dict(FSDP['model_wrapper'], auto_wrap_policy='offsets_apart'))
FSDP_ADAM = dict(ADAM, runner_type='FlexibleRunner', strategy=APART)
DOCS = Path(__file__).parents[2] / 'docs' / 'recipes.md'
exec(re.search(r'```python\n([^`]*class ResumableFSDPStrategy[^`]*)```', DOCS.read_text(encoding='utf8')).group(1))
RUNS = {
    'ddp': {},
    'static_graph': {'model_wrapper_cfg': dict(WRAPPER, static_graph=True)},
    'flexible': dict(runner_type='FlexibleRunner', strategy=dict(type='DDPStrategy', model_wrapper=WRAPPER)),
    'whole': RANDOM,
    'resumed': {**RANDOM, 'resume': True, 'load_from': '{folder}/whole/epoch_1.pth'},
    'offsets_alone': {
        'model.type': 'TrainOffsets',
        'model.base_type': 'EncoderDecoder',
        'model.backbone.norm_eval': False,
        'model.decode_head.dropout_ratio': 0.5,
    },
    'sync_bn': {'sync_bn': 'torch', 'model.backbone.norm_eval': False},
    'ddp_adam': ADAM,
    'fsdp_adam': FSDP_ADAM,
    'fsdp_whole': dict(FSDP_ADAM, **{'train_cfg.max_epochs': 2}),
    'fsdp_resumed': {
        **FSDP_ADAM,
        'strategy.type': 'ResumableFSDPStrategy',
        'train_cfg.max_epochs': 2,
        'resume': True,
        'load_from': '{folder}/fsdp_whole/epoch_1.pth',
    },
    'fsdp': dict(runner_type='FlexibleRunner', strategy=FSDP),
    'fsdp_plain_resumed': dict(
        runner_type='FlexibleRunner', strategy=FSDP, resume=True, load_from='{folder}/fsdp/epoch_1.pth'
    ),
    'fsdp_checkpointed': dict(
        runner_type='FlexibleRunner', strategy=dict(FSDP, activation_checkpointing=dict(check_fn='is_a_block'))
    ),
}


@FUNCTIONS.register_module()
def is_a_block(module):
    return type(module).__name__ == 'BasicBlock'


class Losses(Hook):
    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


def run(cfg, changes, folder):
    """Train; returns what this process holds at the end."""
    DefaultScope._instance_dict.clear()
    cfg.merge_from_dict(
        {key: value.format(folder=folder.parent) if isinstance(value, str) else value for key, value in changes.items()}
    )
    cfg.work_dir, cfg.experiment_name, hook = str(folder), folder.name, Losses()
    cfg.update(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='gloo')))
    if 'runner_type' not in cfg:
        cfg.setdefault('model_wrapper_cfg', WRAPPER)
    runner = RUNNERS.get(cfg.get('runner_type', 'Runner')).from_cfg(cfg)
    runner.register_hook(hook)
    runner.train()
    return {'wrapper': type(runner.model).__name__, 'losses': hook.losses, 'state_dict': runner.model.state_dict()}


def main():
    config, folder = sys.argv[1], Path(sys.argv[2])
    for name, changes in RUNS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            result = run(Config.fromfile(config), changes, folder / name)
        except Exception:
            result = {'error': traceback.format_exc()}
        torch.save(result, folder / name / f'{os.environ["RANK"]}.pth')


if __name__ == '__main__':
    main()
