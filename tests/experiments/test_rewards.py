"""The rewards of a policy: what an answer is worth, closed forms, fronts, and the command."""

from typing import Any

import cvxpy as cp
import pytest
import torch

import mtlfunc as mf
from common.cells import Cell
from experiments.rewards import __main__, adding, exact
from experiments.rewards.methods import advantages


def worth(text: str, total: int, problem: str) -> list[float]:
    """The rewards, read from text."""
    digits = [c for c in text if c.isdigit()]
    inner = text[1:-1]
    return [
        float(bool(digits) and int("".join(digits)) == total),
        float(text[:1] == "<" and text[-1:] == ">" and inner.isdigit()),
        float(len(text) <= 4) if problem == "limit" else 1 - len(text) / adding.LONGEST,
    ]


@pytest.mark.parametrize("problem", adding.PROBLEMS)
def test_rewards_are_those_of_the_text(problem):
    letters = "0123456789+=<>"
    texts = ["", "7", "07", "<7>", "<07>", "<7", "7>", "<>", "<+7>", "1<6>", "<16>", "<<7>>", "=7="]
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        picked = torch.randint(14, (int(torch.randint(6, (), generator=draw)),), generator=draw)
        texts.append("".join(letters[i] for i in picked))
    answers = torch.full((len(texts), adding.LONGEST + 1), adding.END)
    for row, text in zip(answers, texts, strict=True):
        for i, c in enumerate(text):
            row[i] = letters.index(c)
    for first, second in ((3, 4), (9, 7)):
        full = torch.full((len(texts),), first), torch.full((len(texts),), second)
        found = adding.rewards(problem, adding.Questions(*full), answers)
        wanted = torch.tensor([worth(text, first + second, problem) for text in texts])
        torch.testing.assert_close(found.T, wanted)


def test_the_probabilities_of_all_answers_sum_to_1():
    """By a loop over all answers of up to two tokens, in a policy that ends after these."""
    policy = adding.Policy(16)
    with torch.no_grad():
        total = torch.zeros(())
        asked = adding.every().at(torch.tensor([34]))
        for length in range(2):
            for number in range(adding.TOKENS**length):
                body = [(number // adding.TOKENS**i) % adding.TOKENS for i in range(length)]
                if adding.END not in body:
                    row = body + [adding.END] * (adding.LONGEST + 1 - length)
                    total += (-adding.surprise(policy, asked, torch.tensor([row]))).exp()[0]
        scores = policy(asked.tokens)[:, -1].softmax(-1)
        ends = scores[0, adding.END]
        for token in range(adding.TOKENS - 1):
            longer = torch.cat([asked.tokens, torch.tensor([[token]])], 1)
            ends = ends + scores[0, token] * policy(longer)[0, -1].softmax(-1)[adding.END]
    torch.testing.assert_close(total, ends)


def test_gdpo_is_the_papers_example_and_scales_away():
    """Two answers: sums (0, 1), (0, 2), (1, 2); arXiv:2601.05242, figure 4."""
    one, none, both = [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]
    pairs, halves = torch.tensor([[one, one, one], [none, one, both]]), torch.full((3, 2), 0.5)
    for kind, wanted in (("GRPO", [1.0, 1.0, 1.0]), ("GDPO", [1.0, 2.0, 1.0])):
        found = advantages(kind, pairs, halves).sum(0)[:, 1]
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-3, atol=0)
    scaled = pairs * torch.tensor([10.0, 0.5])[:, None, None]
    one, other = (advantages("GDPO", x, halves) for x in (pairs, scaled))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", exact.PROBLEMS)
def test_the_losses_of_all_answers_have_the_gradients_of_the_expected_rewards(name):
    rewards = exact.drawn(exact.PROBLEMS[name], 3)
    scores = mf.random.normal(mf.random.key(1), (exact.QUESTIONS, exact.ANSWERS)).double()
    found = torch.func.jacrev(lambda s: exact.losses_fn({"scores": s}, ("centred", rewards)))(
        scores
    )
    wanted = torch.func.jacrev(lambda s: exact.expected(s, rewards))(scores)
    torch.testing.assert_close(-found, wanted)


def test_room_is_nought_on_the_front_and_cvxpys_elsewhere():
    rewards = exact.drawn(exact.PROBLEMS["two opposed"], 0)
    for corner in exact.front(rewards):
        assert exact.room(rewards, corner) == pytest.approx(0, abs=1e-9)
    inside = rewards.mean((1, 2))
    policy = cp.Variable((exact.QUESTIONS, exact.ANSWERS), nonneg=True)
    t = cp.Variable()
    gained = [
        cp.sum(cp.multiply(policy, r.numpy())) / exact.QUESTIONS >= j + t
        for r, j in zip(rewards, inside.tolist(), strict=True)
    ]
    limits: list[Any] = [cp.sum(policy, 1) == 1, *gained]
    best: Any = cp.Problem(cp.Maximize(t), limits).solve()
    assert exact.room(rewards, inside) == pytest.approx(best, rel=1e-5)


def test_exact_runs_are_those_of_a_plain_loop():
    """The sum and MGDA, one seed, against gradient descent by autograd and a closed form."""
    assert __main__.there.__module__ == "common.device"  # a worker has no `__main__` of a study
    for method in ("sum", "MGDA"):
        cell = Cell("two opposed", method, "", 5.0, 4)
        found = exact.together(20, [cell, cell._replace(seed=5)])[0]
        rewards = exact.drawn(exact.PROBLEMS["two opposed"], 4)
        gradients = torch.func.jacrev(exact.expected)
        scores = torch.zeros(exact.QUESTIONS, exact.ANSWERS, dtype=torch.float64)
        for _ in range(20):
            rows = gradients(scores, rewards).flatten(1)
            apart = rows[0] - rows[1]
            nearest = (-(rows[1] @ apart) / (apart @ apart)).clamp(0, 1)
            share = nearest if method == "MGDA" else torch.tensor(0.5, dtype=torch.float64)
            step = share * rows[0] + (1 - share) * rows[1]
            scores = scores + 5.0 * step.unflatten(0, scores.shape)
        torch.testing.assert_close(found["last"], exact.expected(scores, rewards))
