"""The notebooks are stored without outputs, and run from top to bottom in a fresh kernel."""

import json

import nbformat
import pytest

from docs.notebooks import NOTEBOOKS, executed

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_nine_are_there():
    assert [path.name[0] for path in NOTEBOOKS] == list("123456789")


@by_name
def test_stored_clean(path):
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    nbformat.validate(nbformat.from_dict(stored))
    assert text == json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    # the version is that of whoever saved it
    assert stored["metadata"]["language_info"] == {"name": "python"}
    for cell in stored["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.slow
@by_name
def test_runs(path, tmp_path):
    """Errors raise; stderr has progress bars and no warning; something is drawn."""
    book = executed(path, tmp_path)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    written = "".join(
        output.text
        for output in outputs
        if output.output_type == "stream" and output.name == "stderr"
    )
    assert [line for line in written.splitlines() if "Warning" in line] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
