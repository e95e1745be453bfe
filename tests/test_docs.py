"""Links, tools and configs that the documentation names exist."""

import re

import pytest

from .conftest import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_and_tools_exist(page):
    text = page.read_text(encoding='utf8')
    for target in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r'\b(?:tools|configs|tests|benchmarks)/[\w/.-]+\.(?:py|sh|txt)', text):
        assert (ROOT / target).is_file(), target
