"""Planted aggregators are called what they are; papers' answers and ours are one another's."""

import math
import time

import pytest
import torch

from experiments.peers import __main__ as peers
from experiments.peers import papers

SAID = {
    "right": "", "wrong": "1.8e+02° away, raises loss 1, raises loss 2, raises loss 3",
    "twice": "2 times as long", "none": "length 0, not 6.5", "nan": "NaN",
    "short": "[2] for 3 parameters", "raises": "KeyError: 'raises'",
    "slow": "does not finish in ten seconds",
}  # fmt: skip


def planted(call, J, losses):
    d = papers.pcgrad(J, losses, J)
    time.sleep(600 * (call == "slow"))
    answers = {"right": d, "wrong": -d, "twice": 2 * d, "none": 0 * d, "nan": math.nan * d}
    return {**answers, "short": d[:2]}[call]


@pytest.mark.parametrize("call", SAID)
def test_planted_peers_are_called_what_they_are(call, monkeypatch):
    monkeypatch.setattr(peers, "CASES", {"in conflict": peers.CASES["in conflict"]})
    monkeypatch.setattr(peers, "LIMIT", 1.0 if call == "slow" else 100.0)
    lines, details = peers.compared("torch", planted, {call: "pcgrad"})
    right = call == "right"
    assert lines[0][:4] == [call, str(int(right)), str(int(not right)), "0"]
    assert [line[:3] for line in details] == [[call, "in conflict", SAID[call]]] * (not right)


def test_a_package_that_is_missing_is_a_row(monkeypatch, capsys):
    monkeypatch.setattr(peers, "PEERS", {"nothing": ("no_such_package.part", planted, {})})
    peers.main(["--peers", "nothing"])
    assert "| nothing is not installed | –" in capsys.readouterr().out


@pytest.mark.parametrize("method", peers.OURS)
def test_papers_answer_what_ours_do(method):
    for name in peers.CASES:
        J = peers.jacobian(name)
        own, wide = peers.ours(method, J), J.double()
        d = getattr(papers, method)(wide, peers.losses_of(J), own)
        if d is not None and (method, name) != ("aligned_mtl", "near duplicates"):  # one gradient
            assert peers.error(own, d, wide) <= (1e-4 if "near" in name else 1e-5), name
    along = peers.jacobian("g and 3g")
    assert torch.equal(papers.mgda(along), along[0])
