"""A folder of `mf.grid` holds the answers for these values: what counts as the same value, and what
cannot be compared and is refused."""

import os
import subprocess
import sys
import threading
import types

import pytest
import torch

from mtlfunc import grid
from tests.support.registry import RULES

HEAD = """
import collections, copy, dataclasses, datetime, decimal, enum, fractions, functools, math, operator
import re, types
import numpy as np, torch
import mtlfunc as mf
from torch import nn
"""

# each makes `value`; K is 0 or 1
SOURCES = """
# constant
value = lambda: sum([1.0, 2.0, 3.0 + K])
# tuple in the code
value = lambda x: x in (1, (2, K))
# set in the code
value = lambda x: x in {'a', 'bK'}
# complex number in the code
value = lambda: 1j + Kj
# sign of a zero
value = lambda: [0.0, -0.0][K]
# kind of a constant
value = [lambda: 1, lambda: True][K]
# bytes in the code
value = lambda: b'K'
# inner lambda
value = lambda: (lambda: K)
# comprehension
value = lambda: [k + K for k in range(3)]
# inner def
def value():
    def inner(): return K
    return inner()
# argument's name
value = [lambda c: 1, lambda d: 1][K]
# name of an attribute
value = [lambda x: x.real, lambda x: x.imag][K]
# body of a def
def value(): return K
# loop of a def
def value():
    for k in range(2 + K): pass
    return k
# handler
def value():
    try: return 1
    except [ValueError, TypeError][K]: return 2
# rule of a lambda
value = mf.stateless(lambda gramian: torch.tensor([.5, .3, .2 + K]))
# rule of a def
def rule(gramian): return gramian[0] * K
value = mf.stateless(rule)
# global
SCALE = K
value = lambda: SCALE
# global in an inner lambda
SCALE = K
value = lambda: (lambda: SCALE)
# global list
SCALES = [1, [K]]
value = lambda: SCALES
# global array
SCALES = np.array([1.0, K])
value = lambda: SCALES
# global def
def helper(): return K
value = lambda: helper()
# global of a global
S = K
def helper(): return S
def other(): return helper()
value = lambda: other()
# recursion
def value(k): return 0 if k < 1 else value(k - 1) + K
# mutual recursion
def even(k): return k < 1 or odd(k - 1)
def odd(k): return even(k - 1) + K
value = even
# attribute of one's own module
helpers = types.ModuleType('helpers')
helpers.scale = K
value = lambda: helpers.scale
# function of one's own module
helpers = types.ModuleType('helpers')
exec('def f(): return K', vars(helpers))
value = lambda: helpers.f()
# closure
def make(k):
    return lambda: k
value = make([K])
# closure on oneself
def make(k):
    def inner(n): return inner(n - 1) if n else k
    return inner
value = make(K)
# default
value = lambda x=K: x
# keyword default
value = lambda *, x=K: x
# attribute of a function
def value(): return value.scale
value.scale = K
# decorated
def twice(f):
    @functools.wraps(f)
    def g(): return f()
    return g
@twice
def value(): return K
# cached
@functools.cache
def value(): return K
# partial
value = functools.partial(lambda a, b: a, 1, b=K)
# method
class C:
    def f(self): return K
value = C()
# inherited method
class B:
    def f(self): return K
class C(B): pass
value = C()
# static method
class C:
    @staticmethod
    def f(): return K
value = C
# class method
class C:
    @classmethod
    def f(cls): return K
value = C
# property
class C:
    @property
    def f(self): return K
value = C()
# attribute of a class
class C:
    scale = K
value = C()
# attribute
class C: pass
value = C()
value.scale = K
# slot
class C:
    __slots__ = ('scale',)
value = C()
value.scale = K
# bound method
class C:
    def f(self): return self.k
c = C()
c.k = K
value = c.f
# bound method of a list
value = [K].count
# base
class A: pass
class B:
    k = 1
class C([A, B][K]): pass
value = C()
# modules that name each other
one, two = types.ModuleType('one'), types.ModuleType('two')
one.two, two.one, one.scale = two, one, K
value = lambda: one.two.one.scale
# import of an installed package
def value():
    import json.decoder
    return json.decoder, K
# data class
@dataclasses.dataclass
class C:
    k: int = 0
value = C(K)
# default of a data class
@dataclasses.dataclass
class C:
    k: int = K
value = C
# named tuple
C = collections.namedtuple('C', 'k')
value = C(K)
# enumeration
class C(enum.Enum):
    A = 0
    B = 1
value = C(K)
# member's value
class C(enum.Enum):
    A = 5 + K
value = C.A
# module
torch.manual_seed(K)
value = nn.Linear(2, 2)
# forward of a module
class Net(nn.Module):
    def forward(self, x): return x + K
value = Net()
# mode of a module
value = nn.Dropout().train(bool(K))
# kind of a number
value = [[1, 2], [True, 2]][K]
# integer or float
value = [1, 1.0][K]
# nested
value = {'a': [1, (2, {'b': K})]}
# order of a dict
value = [dict(a=1, b=2), dict(b=2, a=1)][K]
# tuple or list
value = [(1,), [1]][K]
# set
value = {1, 2 + K}
# frozen set of tuples
value = frozenset({(1, 'a'), (2, 'K')})
# bytes
value = b'aK'
# byte array
value = bytearray([K])
# complex
value = complex(0, K)
# range
value = range(K, 5)
# slice
value = slice(K, 5)
# slice of arrays
value = slice(np.arange(2) + K)
# date
value = datetime.datetime(2020, 1, 1 + K)
# span
value = datetime.timedelta(K)
# decimal
value = decimal.Decimal(K)
# fraction
value = fractions.Fraction(K, 3)
# pattern
value = re.compile('aK')
# deque
value = collections.deque([1 + K])
# counter
value = collections.Counter(a=1 + K)
# default dict
value = collections.defaultdict(list, a=[K])
# factory of a default dict
value = collections.defaultdict([list, dict][K])
# ordered dict
value = collections.OrderedDict(a=K)
# name space
value = types.SimpleNamespace(c=K)
# list of itself
value = [K]
value.append(value)
# dict of itself
value = {'k': K}
value['me'] = value
# object of itself
class C: pass
value = C()
value.me, value.k = value, K
# array
value = np.arange(3) + K
# array of objects
value = np.array([[1], [K, 2]], dtype=object)
# masked array
value = np.ma.array([1, 2], mask=[False, bool(K)])
# scalar of numpy
value = np.float32(K)
# kind of a numpy scalar
value = [np.float32(1), np.float64(1)][K]
# generator of numpy
value = np.random.default_rng(K)
# generator of torch
value = torch.Generator().manual_seed(K)
# tensor
value = torch.tensor([0.0, K], dtype=torch.bfloat16)
# complex tensor
value = torch.tensor([1j, K]).conj()
# boolean tensor
value = torch.tensor([True, bool(K)])
# shape of a tensor
value = torch.zeros([(2, 3), (3, 2)][K])
# sparse tensor
value = torch.tensor([[0.0, 1.0 + K]]).to_sparse()
# place in a sparse tensor
value = torch.eye(3)[[K, 2]].to_sparse()
# empty tensor
value = torch.zeros(K, 0)
# frozen module
value = torch.nn.Linear(2, 2).requires_grad_(bool(K)).eval()
for x in value.parameters(): x.data.fill_(1)
# tensor of a class of one's own
class T(torch.Tensor): pass
value = torch.ones(2).mul(K).as_subclass(T)
# tensor's class
class T(torch.Tensor):
    def scaled(self): return K
value = torch.ones(2).as_subclass(T)
# parameter
value = nn.Parameter(torch.tensor([1.0 + K]))
# what a rule was made with
value = mf.cagrad(0.4 + K)
# what a rule inside was made with
value = mf.momentum(mf.cagrad(0.4 + K), 0.9)
# what a probe was made with
value = mf.jacobian(['*', 'trunk.*'][K])
# a rule's lambda
value = mf.stateless(lambda gramian, k=K: gramian[k])
# solver
value = mf.mgda([mf.solvers.faces(), mf.solvers.active_set()][K])
# iterator
value = iter([1, K])
# one of two library functions
value = [torch.sin, torch.cos][K]
# one of two operators
value = operator.itemgetter(K)
"""
PARTS = SOURCES.strip().removeprefix("# ").split("\n# ")
CHANGED = {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in PARTS}


def made(source, k=0, before=""):
    scope = {"__name__": "a_study"}
    exec(HEAD + before + source.replace("K", str(k)), scope)
    return scope["value"]


def axis(value):
    return {"x": {"one": value, "two": 2.0}}


def first(x):
    return torch.tensor(1.0)


@pytest.mark.parametrize("source", CHANGED.values(), ids=CHANGED)
def test_a_folder_is_of_these_values(source, tmp_path):
    """The same source made anew, further down in its file, is the same value; a changed one not."""
    expected = grid(first, axis(made(source)), path=tmp_path)
    again = axis(made(source, before="unused = 3\n\n\n"))
    assert grid(first, again, path=tmp_path).identical(expected)
    with pytest.raises(ValueError, match=r"axes\['x'\] with other values under the same labels"):
        grid(first, axis(made(source, 1)), path=tmp_path)


def endless():
    yield 1


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


lock = threading.Lock()
REFUSED = {
    "generator": (endless, "a generator"),
    "lock": (threading.Lock, "a lock"),
    "object with a lock": (lambda: types.SimpleNamespace(lock=threading.Lock()), "a lock"),
    "global lock": (lambda: lambda: lock, r"a lock.*, the global 'lock' of .*<lambda>"),
    "file": (lambda: sys.stdout, "a "),
    "deep": (deep, "nested too deep"),
    "long": (lambda: [[k] for k in range(200_000)], "more than .* objects"),
    "import": (
        lambda: made("def value():\n    import a_helper\n    return a_helper.x"),
        "a_helper",
    ),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(make, words, tmp_path):
    with pytest.raises(ValueError, match=rf"axes\['x'\]\['one'\]: .*{words}.* cannot be compared"):
        grid(first, axis(make()), path=tmp_path / "new")
    assert not list((tmp_path / "new").glob("*")), "nothing is left behind"
    grid(first, axis(make()))  # without a folder there is nothing to compare


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([1, 2, 3], [True, 2, 3]),
        ([1, 2], [1.0, 2.0]),
        ([0, 2], [False, 2]),
        ({1: "a", 2: "b"}, {True: "a", 2: "b"}),
    ],
)
def test_labels_of_another_kind_are_another_axis(before, now, tmp_path):
    grid(first, {"x": before}, path=tmp_path)
    grid(first, {"x": before}, path=tmp_path)
    with pytest.raises(ValueError, match=r"holds axes\['x'\]"):
        grid(first, {"x": now}, path=tmp_path)


SAID = """
import runpy, sys
from mtlfunc.studies._values import digest_of
here = runpy.run_path(sys.argv[1])
for name, source in here["CHANGED"].items():
    print(name, digest_of(here["made"](source)))
"""


def test_values_are_the_same_in_every_process():
    said = [
        subprocess.run(
            [sys.executable, "-c", SAID, __file__],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in "12"
    ]
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == len(CHANGED)


def test_rules_and_modules_of_every_kind_can_be_compared(tmp_path):
    """No value of this package's own is refused."""
    for _ in range(2):
        rules = {name: case.make() for name, case in RULES.items()}
        grid(first, {"x": rules}, path=tmp_path)
