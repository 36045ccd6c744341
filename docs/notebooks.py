"""The notebooks with their outputs: `python docs/build.py` makes pages of them."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
KEPT = ROOT / "docs" / ".notebooks"


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook after its last cell, run in a fresh kernel of this interpreter.

    Args:
        path: of the notebook.
        folder: an empty one, for what the kernel writes.

    Returns:
        the notebook with outputs.

    Raises:
        CellExecutionError: where a cell raises.
    """
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        book, km=_kernel(folder), timeout=600, startup_timeout=300, resources=where
    )
    client.execute(env=_environment(folder), cleanup_kc=True)
    return book


def _kernel(folder: Path) -> AsyncKernelManager:
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


def _environment(folder: Path) -> dict[str, str]:
    """Warnings shown but those that pyproject.toml excuses, one thread, nothing of the user's, this
    checkout wherever it was installed from.
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


def write(target: Path) -> None:
    """Put all notebooks into a folder, with outputs but progress bars.

    They are run once, and kept in `docs/.notebooks` until a source that they may read changes.
    """
    found = hashlib.sha256(f"{version('matplotlib')} {version('torch')}".encode())
    rooms = (ROOT / "mtlfunc", ROOT / "common", ROOT / "experiments")
    for path in (*NOTEBOOKS, *(p for room in rooms for p in sorted(room.rglob("*.py")))):
        found.update(path.read_bytes())
    current = KEPT / found.hexdigest()
    if not current.is_dir():
        shutil.rmtree(KEPT, ignore_errors=True)
        current.mkdir(parents=True)
    for path in NOTEBOOKS:
        if not (current / path.name).exists():
            print(f"notebook {path.name}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                book = executed(path, Path(folder))
            for cell in book.cells:
                if cell.cell_type == "code":
                    cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
            half = current / f"{path.stem}.part"
            nbformat.write(book, half)
            half.replace(current / path.name)
    for path in NOTEBOOKS:
        shutil.copy(current / path.name, target)
