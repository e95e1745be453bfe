# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
import os
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = 'mmdeform_upgrade'
# What MIM (`mim train mmdeform_upgrade ...`) looks for inside an installed package.
MIM_ITEMS = ('configs', 'tools', 'model-index.yml')


def read(name):
    with open(os.path.join(HERE, name), encoding='utf8') as file:
        return file.read()


class BuildWithMim(build_py):
    """Puts configs and tools under `.mim`: copies in a wheel, links in an editable install."""

    def run(self):
        super().run()
        editable = getattr(self, 'editable_mode', False)
        target = os.path.join(HERE if editable else self.build_lib, PACKAGE, '.mim')
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.makedirs(target)
        for item in MIM_ITEMS:
            source = os.path.join(HERE, item)
            if not os.path.exists(source):
                continue
            if editable:
                os.symlink(os.path.relpath(source, target), os.path.join(target, item))
            elif os.path.isdir(source):
                shutil.copytree(source, os.path.join(target, item), ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(source, target)


setup(
    name=PACKAGE,
    version=re.search(r"__version__ = '(.+)'", read(f'{PACKAGE}/__init__.py')).group(1),
    description='Upgrade the convolutions of a trained MMDetection or MMSegmentation model to deformable ones',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    python_requires='>=3.10',
    # The two families share their import names; choose one by its extra, or keep the one you have.
    install_requires=['torch>=2.1', 'numpy', 'safetensors>=0.4.3', 'tqdm'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
            'pycocotools',
        ],
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0',
            'mmdet>=3.3.0',
            'mmsegmentation>=1.2.2',
            'numpy<2',
            'pycocotools',
        ],
        'triton': ['triton>=3.0'],
        # onnxscript is what PyTorch's exporter is written with; onnxruntime runs what was exported
        'onnx': ['onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.25'],
        # triton: its interpreter tests the GPU kernels on any machine; model-index: what MIM reads metafiles with
        'dev': [
            'pytest',
            'pytest-xdist',
            'hypothesis',
            'ruff',
            'mypy',
            'model-index',
            'triton>=3.0; platform_system == "Linux"',
            'onnx>=1.17',
            'onnxscript>=0.5',
            'onnxruntime>=1.25; python_version >= "3.11"',
        ],
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
