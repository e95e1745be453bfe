# %% [markdown]
# # From a trained detector to a deformable one, and back
#
# Each `# %%` is a cell: open this file in VS Code, PyCharm or Spyder, convert it with jupytext, or run it whole from
# the root of the checkout, which takes some minutes on a CPU and leaves everything in `tutorial_output`:
#
#     python docs/tutorial.py
#
# The tests run it, too, with fewer pictures. It does in Python what `tools/upgrade.py`, `tools/train.py`,
# `show_offsets.py`, `publish_model.py` and `revert.py` do on the command line.

# %%
import copy
from pathlib import Path

import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner

from benchmarks.datasets import compose_shapes
from mmdeform_upgrade import find_targets, load_baseline, upgrade_config
from mmdeform_upgrade.analysis import plots
from mmdeform_upgrade.analysis.look import fields, look, object_points
from mmdeform_upgrade.analysis.offsets import sampling_points, statistics
from mmdeform_upgrade.mm.preflight import build_network, load_network, plan_upgrade
from mmdeform_upgrade.release import inspect_checkpoint, publish
from mmdeform_upgrade.release.revert import judge, output_difference, reverted_checkpoint, reverted_config

OUT = Path('tutorial_output').absolute()
PICTURES, EPOCHS, BATCH = 600, 12, 16

# %% [markdown]
# ## 1. A trained baseline
#
# You have yours: a config and its checkpoint. Here one is made first, an SSD on a narrow ResNet-18, on pictures of
# generated shapes. Nothing in this part is of the upgrade.

# %%
compose_shapes(OUT / 'VOCdevkit', train=PICTURES, val=PICTURES // 4, test=8, seed=0)
(OUT / 'baseline.py').write_text(f"""
_base_ = [{str(Path('benchmarks/demo/configs/ssd96_r18_shapes.py').absolute())!r}]
data = dict(batch_size={BATCH}, dataset=dict(data_root={str(OUT / 'VOCdevkit')!r}))
train_dataloader = data
val_dataloader = data
test_dataloader = data
train_cfg = dict(max_epochs={EPOCHS}, val_interval={EPOCHS})
param_scheduler = [dict(type='MultiStepLR', end={EPOCHS}, milestones=[{EPOCHS * 2 // 3}], gamma=0.1)]
work_dir = {str(OUT / 'baseline')!r}
""")
baseline = Config.fromfile(OUT / 'baseline.py')
Runner.from_cfg(copy.deepcopy(baseline)).train()
baseline_file = str(OUT / 'baseline' / f'epoch_{EPOCHS}.pth')

# %% [markdown]
# ## 2. Look at it
#
# Any file that can be a baseline is read without running what it holds. `find_targets` says which convolutions a choice
# means before anything is changed; `docs/targets.md` has all the forms.

# %%
print(inspect_checkpoint(baseline_file))
plain = build_network(baseline).eval()
plain.load_state_dict(load_baseline(baseline_file, plain))
print('last:3         ', find_targets(plain.backbone, 'last:3'))
print('in:layer3 and 4', find_targets(plain.backbone, ['in:layer3', 'in:layer4']))

# %% [markdown]
# ## 3. Upgrade the config
#
# The architecture stands in the config: `type='DeformUpgrade'` builds what `type` was, with deformable layers. The plan
# builds the network and fits the checkpoint to it; whatever would stop the training stops it here, with the reason.

# %%
upgraded = upgrade_config(baseline, load_from=baseline_file, targets=['in:layer3', 'in:layer4'])
upgraded.work_dir = str(OUT / 'upgraded')
upgraded.visualizer.name = 'upgraded'  # one of a name exists once a process, with the first run's folder
upgraded.optim_wrapper.offset_optimizer.lr = 2e-3  # the offsets' own rate
upgraded.custom_hooks.append(dict(type='OffsetLoggerHook', interval=10))
upgraded.dump(OUT / 'upgraded.py')
print({key: upgraded.model.backbone[key] for key in ('type', 'base_type', 'targets')})
_, plan = plan_upgrade(baseline, upgraded, baseline_file)
print(plan)

# %% [markdown]
# ## 4. The same outputs
#
# All offsets are zero, so the upgraded network computes what the baseline computes: on a CPU to the last bit.

# %%
deformable = build_network(upgraded).eval()
missing, unexpected = deformable.load_state_dict(load_baseline(baseline_file), strict=False)
assert not unexpected and all('conv_offset' in name for name in missing)
pictures = torch.randn(2, 3, 96, 96)
with torch.no_grad():
    pairs = list(zip(plain.backbone(pictures), deformable.backbone(pictures), strict=True))
assert all(torch.equal(before, after) for before, after in pairs)
print(f'{len(missing)} offset tensors are new; all {len(pairs)} maps of the backbone are equal')

# %% [markdown]
# ## 5. Fine-tune it for a quarter of the epochs
#
# The plain runner: `DeformUpgradeHook` loads and verifies the baseline, adds the zeros, and scores the untouched
# upgrade first. That score is the baseline's.

# %%
runner = Runner.from_cfg(copy.deepcopy(upgraded))
runner.train()
upgraded_file = str(OUT / 'upgraded' / f'epoch_{upgraded.train_cfg.max_epochs}.pth')
provenance = inspect_checkpoint(upgraded_file).provenance
print('before its first step:', provenance['before_training'])

# %% [markdown]
# ## 6. Where it looks now
#
# How far the offsets went, in pixels of each layer's input; then, at detections, the points that the last layers
# sample, and the effective receptive field without and with the offsets: `tutorial_output/offsets.png`.

# %%
picture = str(sorted((OUT / 'VOCdevkit/VOC2007/JPEGImages').glob('*.jpg'))[-1])
model = load_network(str(OUT / 'upgraded.py'), upgraded_file)
seen = look(model, picture)
for record in seen.records:
    found = statistics(record)
    print(f'{record.layer}: mean {found.mean:.3f} px, 95 % below {found.percentile95:.3f} px')
rows = []
for point in object_points(seen, 2):
    size = seen.picture.shape[:2]
    points = {f'{depth} layers': sampling_points(seen.records, point, size, depth) for depth in (1, 2)}
    rows.append((point, points, dict(zip(('offsets at zero', 'as learned'), fields(model, seen, point), strict=True))))
plots.draw_sampling(seen.picture, rows, OUT / 'offsets.png')

# %% [markdown]
# ## 7. Publish it
#
# Weights, classes, config and provenance, without the optimizer; named after the config and the hash of the file. It
# loads wherever checkpoints load.

# %%
release, tensors, stock = publish(upgraded_file, str(OUT / 'zoo'), config=str(OUT / 'upgraded.py'), force=True)
print(release, tensors, stock, sep='\n')
detector = init_detector(str(OUT / 'upgraded.py'), f'baseline://{tensors}', device='cpu')
detections = inference_detector(detector, picture).pred_instances
print(detector.dataset_meta['classes'], f'{len(detections)} detections, the surest {detections.scores.max():.2f}')

# %% [markdown]
# ## 8. And back
#
# Layers whose offsets stay short on given data can become plain convolutions again. What that costs is measured first:
# the relative change of the backbone's outputs. The result has a config and a checkpoint of its own.

# %%
runs = [lambda: inference_detector(detector, picture)]
verdicts = judge(detector, 0.25, runs)  # 95 % of offsets below a quarter of a pixel
print(*verdicts, sep='\n')
gone = [verdict.name for verdict in verdicts if verdict.revert]
print(f'{len(gone)} layers go back, which changes the outputs by {output_difference(detector, gone, runs):.3g}')
smaller = reverted_checkpoint({'state_dict': detector.state_dict()}, detector, verdicts)
reverted = build_network(reverted_config(upgraded, detector, verdicts, smaller['state_dict']))
reverted.load_state_dict(smaller['state_dict'])
counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, detector, reverted)]
print('parameters of the baseline, the upgrade, and what is left of it: {}, {}, {}'.format(*counts))
