#!/usr/bin/env bash
# beartype 0.23.1: checking an argument draws from Python's global random numbers.
#
# A function that is decorated with @beartype and has a parameter `list[float]` or `tuple[float, ...]`
# moves the state of the module `random` at every call, also for a list of one entry and for an empty
# one, in which nothing can be chosen. Parameters `tuple[float, float]`, `dict[str, float]`,
# `set[int]`, `list` and `float` leave it alone. With random.seed(0):
#     random.random() alone:                                     0.844422
#     the same after one checked call with [1.0, 2.0, 3.0]:      0.385245
#     the same after the call of the function without a check:   0.844422
# beartype says that it looks at one random item of a sequence; where its random number comes from
# is found in the code that it generates.
#
# Why it matters: research code switches such checks on to find a wrong shape (jaxtyping does it with
# beartype) and off to run fast. Whatever draws from `random` after a seed, such as a replay buffer
# or an augmentation, then sees other numbers, so that a run cannot be repeated with its checks on.
# A test that global random numbers are left alone blames the function that is checked.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q beartype==0.23.1 || exit 2
"$folder/venv/bin/python" - <<'END'
import random
import sys

from beartype import beartype


def mean(losses):
    return sum(losses) / max(len(losses), 1)


def checked(hint):
    @beartype
    def annotated(losses: hint):
        return None

    return annotated


def drawn(call):
    random.seed(0)
    call()
    return random.random()


alone = drawn(lambda: None)
plain = drawn(lambda: mean([1.0, 2.0, 3.0]))
print(f"alone {alone:.6f}, after a plain call {plain:.6f}")
holds = plain == alone
for hint, value, moves in [
    (list[float], [1.0, 2.0, 3.0], True),
    (list[float], [1.0], True),
    (list[float], [], True),
    (tuple[float, ...], (1.0, 2.0), True),
    (tuple[float, float], (1.0, 2.0), False),
    (dict[str, float], {"a": 1.0}, False),
    (set[int], {1, 2}, False),
    (list, [1.0], False),
    (float, 1.0, False),
]:
    check = checked(hint)
    found = drawn(lambda: check(value))
    print(f"after a call that checks {hint}, given {value}: {found:.6f}")
    holds &= (found != alone) == moves
sys.exit(0 if holds else 1)
END
