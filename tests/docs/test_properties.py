"""The table of properties is what the audit of every rule finds."""

import pytest
import torch

from docs import properties
from mtlfunc.audit import Report
from tests.support import ROOT
from tests.support.audits import RULES


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return properties.reports()


@pytest.mark.slow
def test_table_of_properties_is_what_the_audit_finds(reports):
    text = (ROOT / "docs" / "properties.md").read_text()
    text = text.split(properties.BEGIN)[1].split(properties.END)[0].strip()
    assert properties.table(reports) == text


def test_built_in_rules_compute_as_they_should(reports):
    for rule in RULES.values():
        assert reports[rule].sound, str(reports[rule])
        assert reports[rule]["positive homogeneity"].status == "holds"
        assert reports[rule]["differentiability"].status == "holds"


def test_counterexamples_are_small_integers_that_can_be_pasted(reports):
    for rule in RULES.values():
        for row in reports[rule].rows:
            assert (row.status == "fails") == (row.jacobian is not None) == bool(row.literal)
            if row.jacobian is not None:
                assert len(row.jacobian) <= 3, rule
                assert torch.equal(row.jacobian, row.jacobian.round()), rule
                assert row.jacobian.abs().max() <= 5, rule
                assert torch.equal(eval(row.literal, {"torch": torch}).double(), row.jacobian)
                assert row.failures > 0
                assert row.detail
