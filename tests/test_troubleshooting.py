"""The messages that the documentation explains are those that the package gives."""

import ast
import re

import pytest

from .conftest import ROOT

TEXT = (ROOT / 'docs/troubleshooting.md').read_text(encoding='utf8')
HEADINGS = re.findall(r'^### `(.+)`$', TEXT, re.M)


def _texts():
    """Every string of the package, with … for what is filled in."""
    for path in (ROOT / 'mmdeform_upgrade').rglob('*.py'):
        if '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf8'))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield ''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)


STRINGS = [re.sub(r'[\s…]+', ' ', text) for text in _texts()]


def test_there_are_messages_to_check():
    assert len(HEADINGS) >= 18


@pytest.mark.parametrize('heading', HEADINGS)
def test_a_documented_message_is_given(heading):
    message = re.sub(r'[\s…]+', ' ', heading).strip()
    assert any(message in text for text in STRINGS), message
