"""Every command of the README and the pages: its tool takes it as it stands; cheap ones run."""

import argparse
import re
import runpy
import shlex
from importlib import import_module
from importlib.util import find_spec

import pytest

from .conftest import ROOT
from .test_release.conftest import files  # noqa: F401  (fixture)

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


# Those that are not of Python, or not of this package, and why they may stand there.
OTHERS = {
    'make': 'the target is in the Makefile',
    'mim': 'make mim runs them (tests/families/mim.py)',
    'pip': 'the extras are in setup.py',
    'apt-get': "Debian's",
}


def _code(text):
    """Lines of code blocks, fenced or indented, those that end in a backslash joined; comments taken off."""
    fenced = '\n'.join(re.findall(r'^ *```bash\n(.*?)^ *```', text, re.M | re.S))
    rest = re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)
    indented = '\n'.join(re.findall(r'^ {4}(.*)$', rest, re.M))
    for line in re.sub(r'\\\n\s*', ' ', f'{fenced}\n{indented}').splitlines():
        line = re.sub(r'(^|\s)#.*', '', line).strip()
        if re.match(rf'(?:python|bash|tools/\S+\.sh|{"|".join(OTHERS)})\s', line):
            yield line


def _inline(text):
    """Whole commands in the running text."""
    text = re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)
    spans = (re.sub(r'\s+', ' ', span) for span in re.findall(r'`([^`]+)`', text))
    yield from (span for span in spans if re.match(r'(?:python|make|mim|pip) \S+ \S', span) and '…' not in span)


COMMANDS = sorted(
    {
        (path.relative_to(ROOT).as_posix(), command)
        for path in PAGES
        for text in [path.read_text(encoding='utf8')]
        for command in (*_code(text), *_inline(text))
    }
)


class _ParsedError(Exception):
    """What was asked for, instead of doing it."""


def _parse(tool, arguments, monkeypatch):
    _parsed(runpy.run_path(str(ROOT / 'tools' / tool))['main'], tool, arguments, monkeypatch)


def _parsed(main, name, arguments, monkeypatch):
    """The tool's own parser on a command; the tool itself goes no further."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise _ParsedError(original(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    monkeypatch.setattr('mmdeform_upgrade.release.inspect_checkpoint', lambda path: path)
    with pytest.raises((_ParsedError, SystemExit)) as found:
        main(arguments)
    if isinstance(found.value, SystemExit):
        assert found.value.code in (0, None), f'{name} does not take {arguments}'


def _parse_module(name, arguments, monkeypatch):
    spec = find_spec(name)
    module = import_module(f'{name}.__main__' if spec.submodule_search_locations else name)
    _parsed(module.main, name, arguments, monkeypatch)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 40
    assert {'README.md', 'docs/releases.md', 'docs/recipes.md'} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize('page,command', COMMANDS)
def test_a_command_is_one_that_its_tool_takes(page, command, monkeypatch, capsys):
    program, *words = shlex.split(command)
    for word in words:
        assert (
            not re.match(r'(?:configs|tools|docs|tests)/.*\.(?:py|sh)$', word)
            or (ROOT / word).is_file()
            or words[words.index(word) - 1] in ('--out', '--control')
            or 'upgrade' in word
            or 'control' in word
        ), word
    if program == 'python' and words[0] != '-m':
        assert (ROOT / words[0]).is_file(), words[0]
        if words[0].startswith('tools/'):
            _parse(words[0].removeprefix('tools/'), words[1:], monkeypatch)
    elif words[0] == '-m' and words[1].startswith('benchmarks.'):
        _parse_module(words[1], words[2:], monkeypatch)
    elif program == 'make':
        targets = [word for word in words if '=' not in word]
        for target in targets:
            assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.M), target
    elif program == 'pip':
        for extra in re.findall(r'\[(\w+)\]', command):
            assert f"'{extra}': [" in (ROOT / 'setup.py').read_text(), extra
    elif program == 'mim':
        assert page == 'docs/releases.md' or words[:2] == ['train', 'onedl-mmdetection'], 'make mim runs that page'
    else:
        assert program in ('apt-get', 'python') or (ROOT / program).is_file(), program


def _cheap():
    pages = ('README.md', 'docs/getting_started.md')
    tools = ('upgrade.py', 'model_converters/publish_model.py', 'model_converters/delta.py')
    return [
        (page, command)
        for page, command in COMMANDS
        if page in pages
        and not re.search(r'\.params|--list', command)
        and any(command.startswith(f'python tools/{tool} ') for tool in tools)
    ]


def test_cheap_commands_run_as_they_stand(files, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))
    monkeypatch.chdir(tmp_path)
    commands = _cheap()
    assert len(commands) >= 7
    for page, command in commands:
        tool, *words = shlex.split(command)[1:]
        upgrades = tool.endswith('upgrade.py') and '--inspect' not in words
        given = {
            'CONFIG': files.baseline_config if upgrades else files.config,
            'my_detector.py': files.baseline_config,
            'CHECKPOINT': files.baseline if upgrades else files.checkpoint,
            'my_detector.pth': files.baseline,
            'BASELINE': files.baseline,
            'UPGRADED': files.checkpoint,
        }
        main = runpy.run_path(str(ROOT / tool))['main']
        try:
            main([given.get(word, word) for word in words])
        except SystemExit as end:
            assert end.code in (0, None) and '--inspect' in words, (page, command)
        said = capsys.readouterr().out
        assert re.search('written: |dry run: nothing was written|an upgrade of 3 layers', said), (page, command)
        for word in words:
            assert not re.match(r'(?:OUT|my_upgrade|my_control)\.', word) or (tmp_path / word).is_file(), word
