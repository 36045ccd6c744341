"""Which tests are run, with which examples, types (MTLFUNC_TYPES) and noise (MTLFUNC_NUDGE)."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from .support.rounding import nudged

if os.environ.get("MTLFUNC_TYPES"):
    shared = ("cells", "command", "files", "intervals", "judge", "pool", "study", "tables")
    studies = ("arena", "auxiliary", "control", "multimnist", "scenes")
    rooms = [f"common.{x}" for x in (*shared, "problems.digits")]
    rooms += [f"experiments.{x}" for x in studies]
    install_import_hook(["mtlfunc", *rooms], "beartype.beartype")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

JOBS = ("reproductions", "experiments", "docs", "distributed", "compiled", "laboratory")

settings.register_profile(
    "mtlfunc",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mtlfunc")

NUDGE = os.environ.get("MTLFUNC_NUDGE")


@pytest.fixture(scope="session", autouse=NUDGE is not None)
def another_processor():
    """The whole session on `MTLFUNC_NUDGE`, the seed of its roundings."""
    with nudged(int(NUDGE or 0)):
        yield


@pytest.fixture(scope="module", params=[NUDGE] if NUDGE else ["none", "1", "2"])
def roundings(request):
    """For `usefixtures`: a test on this processor's own roundings and on two others'."""
    with nudged(int(request.param)) if request.param not in ("none", NUDGE) else nullcontext():
        yield


@pytest.fixture
def share(request):
    """For tests that run others: `--share` chooses of those, and never leaves out this one."""
    return request.config.getoption("--share")


@pytest.fixture
def formed(monkeypatch):
    """Shapes of all that the backward passes of a test give, as they come."""
    from mtlfunc.gradients.backward import Backward  # the import hook comes first

    shapes, original = [], Backward.__call__

    def watched(self, root, cotangent, targets, **options):
        answers = original(self, root, cotangent, targets, **options)
        shapes.extend(tuple(answer.shape) for answer in answers)
        return answers

    monkeypatch.setattr(Backward, "__call__", watched)
    return shapes


def pytest_addoption(parser):
    parser.addoption(
        "--share", default="1", help="N, or K/N: the K-th (first) Nth of the tests, by their names"
    )


def pytest_configure(config):
    """A job's tests run where `-m` or a path names it, `exhaustive` by `-m` alone."""
    named = {job for job in JOBS for path in config.args if f"tests/{job}" in Path(path).as_posix()}
    if "exhaustive" not in (given := config.option.markexpr):
        others = [f"({given})"] if given else [f"not {job}" for job in JOBS if job not in named]
        config.option.markexpr = " and ".join(["not exhaustive", *others])
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        from mtlfunc.core.compiling import COMPILER  # the import hook comes first
        from mtlfunc.warmup import warmup

        if COMPILER.installed:
            warmup()  # no test may hang on whether a kernel is compiled yet
    if os.environ.get("MTLFUNC_TYPES"):  # beartype looks at one item of a list, by `random`
        config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module inside")


def pytest_ignore_collect(collection_path, config):
    """What `-m` leaves out as a whole is not even imported."""
    chosen = config.option.markexpr.removeprefix("not exhaustive and ").strip("()")
    parents = (collection_path, *collection_path.parents)
    job = next((job for job in JOBS if Path(__file__).parent / job in parents), None)
    if chosen in JOBS:
        return True if job != chosen and (job or collection_path.is_file()) else None
    return True if f"not {job}" in chosen.split(" and ") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """A job's mark for its folder; the chosen share; slow tests first where workers share them."""
    first, _, count = config.getoption("--share").rpartition("/")
    items[:] = [
        item
        for item in items
        if "share" in item.fixturenames
        or crc32(item.nodeid.encode()) % int(count) == int(first or 1) - 1
    ]
    for item in items:
        if item.path.parent.name in JOBS:
            item.add_marker(item.path.parent.name)
    if hasattr(config, "workerinput"):  # one process would make a module's fixtures twice
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


collect_ignore = ["support"]
# the compiler does not look through enforced annotations, which forestall the package's own errors
# and hide the functions whose names are shown
if os.environ.get("MTLFUNC_TYPES"):
    collect_ignore += ["test_slips.py", "test_errors.py", "test_active_set_gpu.py"]
    collect_ignore_glob = ["compiled/test_compile*"]


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal; what a shell starts with "&" ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
