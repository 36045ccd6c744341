"""The table of properties is what the audit of every rule finds."""

import pytest

from docs import properties
from tests.support import ROOT


@pytest.mark.slow
def test_table_of_properties_is_what_the_audit_finds():
    text = (ROOT / "docs" / "properties.md").read_text()
    text = text.split(properties.BEGIN)[1].split(properties.END)[0].strip()
    assert properties.table(properties.reports()) == text
