"""Which names of PyTorch the package uses, and which of them an older release has.

    python tests/families/torch_names.py 2.1.0

takes that release's wheel for macOS (60 MB; only its Python sources are looked at, so any machine will do), writes the
names that it has to torch-2.1.0.txt beside this file, prints the others, and has mypy check the package's calls against
those sources. tests/test_versions.py holds the package to the list.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / 'mmdeform_upgrade'


class _Names(ast.NodeVisitor):
    def __init__(self):
        self.aliases, self.found = {}, set()

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split('.')[0] == 'torch':
                self.found.add(alias.name)
                self.aliases[alias.asname or 'torch'] = alias.name if alias.asname else 'torch'

    def visit_ImportFrom(self, node):
        if node.module and not node.level and node.module.split('.')[0] == 'torch':
            for alias in node.names:
                self.found.add(f'{node.module}.{alias.name}')
                self.aliases[alias.asname or alias.name] = f'{node.module}.{alias.name}'

    def visit_Attribute(self, node):
        parts, root = [], node
        while isinstance(root, ast.Attribute):
            parts.append(root.attr)
            root = root.value
        if isinstance(root, ast.Name) and root.id in self.aliases:
            self.found.add('.'.join([self.aliases[root.id], *reversed(parts)]))
        self.generic_visit(root) if not isinstance(root, ast.Name) else None


def names_used(folder=PACKAGE):
    """Dotted names of PyTorch in the sources of a folder; custom operators, which no release lists, left out."""
    found = set()
    for path in sorted(folder.rglob('*.py')):
        if '.mim' not in path.parts:
            visitor = _Names()
            visitor.visit(ast.parse(path.read_text(encoding='utf8')))
            found |= visitor.found
    return {name for name in found if not name.startswith('torch.ops')}


def has_name(sources, name):
    """Whether the unpacked sources of a release bind a name: a module, or a name in the last module on the way."""
    module, parts = sources / 'torch', name.split('.')[1:]
    while parts and ((module / parts[0]).is_dir() or list(module.glob(f'{parts[0]}.py*'))):
        module = module / parts.pop(0)
    if not parts:
        return True
    files = [module / '__init__.py', *module.parent.glob(f'{module.name}.py*'), module / 'modules' / '__init__.py']
    if module == sources / 'torch':
        files += [module / 'functional.py', module / '_C' / '__init__.pyi', module / '_C' / '_VariableFunctions.pyi']
    pattern = re.compile(
        rf'^\s*(?:(?:def|class)\s+{parts[0]}\b|{parts[0]}\s*[:=,]|.*\bimport\b.*\b{parts[0]}\b|'
        rf'{parts[0]}$|{parts[0]} as |.*["\']{parts[0]}["\'])',
        re.M,
    )
    return any(pattern.search(file.read_text(encoding='utf8')) for file in files if file.is_file())


def main(version):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                '-m',
                'pip',
                'download',
                '-q',
                '--no-deps',
                '--only-binary=:all:',
                '--platform',
                'macosx_11_0_arm64',
                '--python-version',
                '3.11',
                '-d',
                folder,
                f'torch=={version}',
            ],
            check=True,
        )
        sources = Path(folder) / 'sources'
        with zipfile.ZipFile(next(Path(folder).glob('*.whl'))) as wheel:
            wheel.extractall(sources, [name for name in wheel.namelist() if name.endswith(('.py', '.pyi'))])
        used = sorted(names_used())
        known = [name for name in used if has_name(sources, name)]
        (HERE / f'torch-{version}.txt').write_text('\n'.join(known) + '\n', encoding='utf8')
        print(
            f'PyTorch {version} has {len(known)} of {len(used)} names; it lacks:',
            *(name for name in used if name not in known),
            sep='\n  ',
        )
        result = subprocess.run(
            [sys.executable, '-m', 'mypy', '--cache-dir', f'{folder}/cache'],
            cwd=PACKAGE.parent,
            env={**os.environ, 'MYPYPATH': str(sources)},
            capture_output=True,
            text=True,
        )
        print(
            "mypy on the package's calls:",
            *(line for line in result.stdout.splitlines() if line.startswith(PACKAGE.name)),
            sep='\n  ',
        )


if __name__ == '__main__':
    main(*sys.argv[1:])
