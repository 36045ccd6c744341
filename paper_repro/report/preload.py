"""What every worker needs, imported once, in the process that all of them are forked from."""

import signal
from importlib import import_module

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, in silence, from here on

import_module("torch").set_num_threads(1)
# torch.func imports it at its first call, which takes a second: here once, not in every worker
import_module("torch._dynamo")
import_module("scipy.stats")  # likewise, at the first share
import_module("paper_repro.__main__").reproductions()
import_module("mtlfunc.warmup").warmup()
