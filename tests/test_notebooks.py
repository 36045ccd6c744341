"""The notebooks are stored without outputs, and run from the first cell to the last in a fresh
kernel of this interpreter.
"""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_five_are_there():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")


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
    """Errors in a cell raise; what a cell writes to stderr is progress bars and no warning; it
    draws something.
    """
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, km=kernel(tmp_path), timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute(env=environment(tmp_path), cleanup_kc=True)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    written = "".join(
        output.text
        for output in outputs
        if output.output_type == "stream" and output.name == "stderr"
    )
    assert [line for line in written.splitlines() if "Warning" in line] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)


def kernel(folder):
    """A kernel of this interpreter, whatever kernels are installed for the user."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    home = folder / "kernels" / "python3"
    home.mkdir(parents=True)
    (home / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(home.parent)], ensure_native_kernel=False)
    return AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=specs,
        connection_file=str(folder / "connection.json"),
    )


def environment(folder):
    """Of the kernel: warnings shown but those that pyproject.toml excuses, one thread, nothing of
    the user's, this checkout wherever it was installed from.
    """
    settings = {
        "PYTHONWARNINGS": "default,ignore:`torch.jit.script:DeprecationWarning",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return os.environ | settings
