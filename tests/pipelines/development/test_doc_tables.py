"""The tables in docs/ are those that the declarations give."""

from pathlib import Path

import pytest

from mesa_lm.errors import UsageError
from mesa_lm.methods.registry import METHODS, default_variant
from mesa_lm.pipelines.development.doc_tables import rewritten

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_the_tables_are_up_to_date(page):
    text = page.read_text()
    assert rewritten(text) == text, "run make doc-tables"


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: f"{method.name}-{default_variant(method)}")
def test_every_method_has_its_table(method):
    variant = default_variant(method)
    mark = f"{method.name}, {variant}" if variant == "released" else method.name
    assert f"<!-- parameters: {mark} -->" in (DOCS / "methods.md").read_text()


def test_an_unknown_table_is_named():
    with pytest.raises(UsageError, match="no table 'methods'"):
        rewritten("<!-- methods -->\n\n<!-- end -->")
