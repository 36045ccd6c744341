"""A small transformer that adds two digits: how it answers, and what an answer is worth.

A prompt is `3 + 4 =`, an answer up to five tokens, `< 0 7 >` say, and then the end.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLUS, EQUALS, OPEN, CLOSE, END = range(10, 15)
TOKENS, LONGEST, ASKED = 15, 5, 4
REWARDS = ("correctness", "format", "length")
PROBLEMS = ("limit", "cost")
"""An answer is short enough with four tokens, as a right one in brackets; or a token costs .2."""


class Policy(nn.Module):
    """A transformer of one layer, from tokens [sample, place] to scores of the next ones."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(TOKENS, width)
        self.places = nn.Embedding(ASKED + LONGEST, width)
        self.before, self.between, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(places)
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.back(F.gelu(self.wide(self.between(x))))
        return self.head(self.last(x))


class Questions(NamedTuple):
    """Two digits each, [sample]."""

    first: Tensor
    second: Tensor

    @property
    def tokens(self) -> Tensor:
        full = torch.full_like
        marks = full(self.first, PLUS), full(self.first, EQUALS)
        return torch.stack([self.first, marks[0], self.second, marks[1]], 1)

    def at(self, index: Tensor) -> "Questions":
        return Questions(self.first[index], self.second[index])


def every() -> Questions:
    """All hundred."""
    found = torch.arange(100)
    return Questions(found // 10, found % 10)


def surprise(policy: nn.Module, questions: Questions, answers: Tensor) -> Tensor:
    """−log π(answer | question), [sample]; answers [sample, LONGEST + 1] are padded with END."""
    scores = policy(torch.cat([questions.tokens, answers[:, :-1]], 1))[:, ASKED - 1 :]
    each = F.cross_entropy(scores.mT, answers, reduction="none")
    ended = (answers == END).cumsum(1) - (answers == END).long()
    # the end after the longest answer is not chosen, but comes
    chosen = (ended == 0) & (torch.arange(LONGEST + 1, device=answers.device) < LONGEST)
    return (each * chosen).sum(1)


@torch.no_grad()
def answer(policy: nn.Module, questions: Questions, generator: torch.Generator) -> Tensor:
    """Answers that the policy draws, [sample, LONGEST + 1]; the generator is of the CPU."""
    seen = questions.tokens
    done = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    for _ in range(LONGEST):
        shares = policy(seen)[:, -1].softmax(-1)
        drawn = torch.multinomial(shares.cpu(), 1, generator=generator)[:, 0].to(seen.device)
        drawn = drawn.masked_fill(done, END)
        done |= drawn == END
        seen = torch.cat([seen, drawn[:, None]], 1)
    return torch.cat([seen[:, ASKED:], seen.new_full((len(seen), 1), END)], 1)


def rewards(problem: str, questions: Questions, answers: Tensor) -> Tensor:
    """[reward, sample], each between 0 and 1. Correctness: its digits, read without all else, are
    the sum. Format: digits alone between brackets. Length: see `PROBLEMS`.
    """
    digit = answers < 10
    number = torch.zeros_like(answers[:, 0])
    for value, is_digit in zip(answers.T, digit.T, strict=True):
        number = torch.where(is_digit, 10 * number + value, number)
    digits, length = digit.sum(1), (answers != END).sum(1)
    right = (digits > 0) & (number == questions.first + questions.second)
    end = answers.gather(1, (length - 1).clamp_min(0)[:, None])[:, 0]
    bracketed = (answers[:, 0] == OPEN) & (end == CLOSE) & (digits == length - 2) & (digits > 0)
    short = (length <= 4).float() if problem == "limit" else 1 - length / LONGEST
    return torch.stack([right.float(), bracketed.float(), short])


def demonstrations(generator: torch.Generator, copies: int) -> tuple[Questions, Tensor]:
    """Answers to learn from: every question some times, 60 % right, with brackets and a leading
    zero each by chance.
    """
    asked = Questions(*(x.repeat(copies) for x in every()))
    count = len(asked.first)
    chance = torch.rand(4, count, generator=generator)
    wrong = torch.randint(19, (count,), generator=generator)
    number = torch.where(chance[0] < 0.6, asked.first + asked.second, wrong)
    absent = torch.full((count,), -1)
    columns = [
        torch.where(chance[1] < 0.6, OPEN, absent), torch.where(chance[2] < 0.5, 0, absent),
        torch.where(number > 9, number // 10, absent), number % 10,
        torch.where(chance[3] < 0.6, CLOSE, absent),
    ]  # fmt: skip
    answers = torch.full((count, LONGEST + 1), END)
    place = torch.zeros(count, dtype=torch.long)
    for column in columns:
        rows = (column >= 0).nonzero()[:, 0]
        answers[rows, place[rows]] = column[rows]
        place[rows] += 1
    return asked, answers


def taught(seed: int, steps: int) -> Policy:
    """A policy that imitates the demonstrations: where all methods of a seed begin. All is drawn on
    the CPU, and learnt on the device of the moment.
    """
    here = torch.get_default_device()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy().to(here)
        generator = torch.Generator().manual_seed(seed)
        asked, answers = demonstrations(generator, 20)
    questions, answers = Questions(*(x.to(here) for x in asked)), answers.to(here)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(steps):
        some = torch.randint(len(answers), (128,), generator=generator, device="cpu").to(here)
        optimizer.zero_grad()
        surprise(policy, questions.at(some), answers[some]).mean().backward()
        optimizer.step()
    return policy
