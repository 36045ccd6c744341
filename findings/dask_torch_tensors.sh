#!/usr/bin/env bash
# dask and distributed 2026.8.0 with torch 2.13.0: what a job returns is not always what arrives.
#
# A worker process returns a tensor, and the client asks for the result. Seen:
#     a tensor with .grad                 arrives with its .grad
#     a torch.nn.Parameter with .grad     arrives as a Parameter whose .grad is None
#     a tensor that still has a graph     arrives as a leaf that requires grad
#     a bfloat16 tensor                   TypeError: Could not serialize object of type Tensor
#     a bfloat16 tensor, pickled by hand  arrives
#     a list with one bfloat16 tensor     TypeError
# A tensor is sent as a NumPy array, and NumPy has no bfloat16. What pickle could send is not handed
# to pickle: the job has run, and its result is lost.
#
# Why it matters: tasks or seeds on several workers return gradients. Those in the .grad of a
# module's parameters are gone without a word, where those of plain tensors are there. A study in
# mixed precision fails when its first job is finished.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 dask==2026.8.0 distributed==2026.8.0 || exit 2
cat > "$folder/jobs.py" <<'END'
import logging
import pickle
import sys

import torch
from distributed import Client


def tensor():
    x = torch.ones(2, requires_grad=True)
    (3 * x).sum().backward()
    return x


def parameter():
    x = torch.nn.Parameter(torch.ones(2))
    (3 * x).sum().backward()
    return x


def graph():
    return 3 * torch.ones(2, requires_grad=True)


def half():
    return torch.ones(2, dtype=torch.bfloat16)


def pickled():
    return pickle.dumps(half())


def several():
    return [torch.ones(2), half()]


def told(call):
    try:
        x = client.submit(call).result(timeout=60)
    except TypeError as error:
        return str(error).splitlines()[0]
    x = pickle.loads(x) if isinstance(x, bytes) else x
    grad = None if x.is_leaf and x.grad is None else x.grad.tolist()
    return f"{type(x).__name__} {x.dtype}, leaf {x.is_leaf}, requires grad {x.requires_grad}, grad {grad}"


if __name__ == "__main__":
    refused = "Could not serialize object of type"
    wanted = {
        tensor: "Tensor torch.float32, leaf True, requires grad True, grad [3.0, 3.0]",
        parameter: "Parameter torch.float32, leaf True, requires grad True, grad None",
        graph: "Tensor torch.float32, leaf True, requires grad True, grad None",
        half: f"{refused} Tensor",
        pickled: "Tensor torch.bfloat16, leaf True, requires grad False, grad None",
        several: refused,
    }
    logging.disable(logging.CRITICAL)
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        found = {call: told(call) for call in wanted}
    for call, words in found.items():
        print(f"{call.__name__:10}", words)
    same = all(found[call].startswith(words) for call, words in wanted.items())
    sys.exit(0 if same else 1)
END
cd "$folder"
venv/bin/python -W ignore jobs.py 2> errors.txt || { code=$?; tail -n 5 errors.txt; exit "$code"; }
