from typing import Any, NamedTuple
class Results(NamedTuple):
    a: Any; b: Any; c: Any; d: Any; e: Any
def table(r): return "x"
def figures(r): return {}
def numbers_of(r, d): return {"d": d}
