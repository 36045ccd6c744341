"""What a call of `losses_fn` changes outside of it, undone afterwards."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from .internals import TorchDispatchMode, hooks_of_all_modules, memory
from .transforms import tensors_of


@contextmanager
def assignments_undone() -> Iterator[None]:
    """Undo what modules re-assign in a call: buffers, and other attributes that are tensors."""
    here, called = get_ident(), list[nn.Module]()
    mine: Any = object()
    outer: nn.Module | None = None
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []
    changes: list[tuple[dict[str, Any], str, Any, Any]] = []

    def watch(module: nn.Module, _: Any) -> None:
        nonlocal outer
        if outer is not None or get_ident() != here:
            return
        outer = module
        del hooks_of_all_modules[mine]  # which what is compiled inside would be compiled with
        parts = (x for x in module.modules() if not isinstance(x, torch.jit.ScriptModule))
        held[:] = [(place, dict(place)) for x in parts for place in (vars(x), x._buffers)]
        # after the module's own hooks; functional_call exchanges buffers before and after both.
        # Without a handle, which would be taken for one of a hook on derivatives.
        called.append(module)
        module._forward_hooks[mine] = compare
        module._forward_hooks_always_called[mine] = True

    def compare(module: nn.Module, *_: Any) -> None:
        nonlocal outer
        if module is not outer:
            return
        outer = None
        hooks_of_all_modules[mine] = watch
        for place, before in held:
            for name in before.keys() | place.keys():
                old, new = before.get(name), place.get(name)
                if new is not old and (isinstance(old, Tensor) or isinstance(new, Tensor)):
                    changes.append((place, name, before.get(name, place), new))

    hooks_of_all_modules[mine] = watch
    try:
        with warnings.catch_warnings():  # of a compiled module that is the outer one
            warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there")
            yield
    finally:
        hooks_of_all_modules.pop(mine, None)
        for module in called:
            module._forward_hooks.pop(mine, None)
            module._forward_hooks_always_called.pop(mine, None)
        for place, name, old, new in reversed(changes):
            if place.get(name) is new:  # else functional_call took it back
                if old is place:  # there was none
                    del place[name]
                else:
                    place[name] = old


class WritesUndone(TorchDispatchMode):
    """Undo what is changed in place: keeps a copy of a tensor from outside before it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()  # memory

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, before in self.kept.values():
                if not torch.equal(tensor, before):
                    tensor.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        norm = "batch_norm" in func.__name__  # its schema does not admit the change
        for i, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or (norm and argument.name.startswith("running_")):
                for x in tensors_of(args[i] if i < len(args) else kwargs.get(argument.name)):
                    known = memory(x) in self.made or id(x) in self.kept
                    if not known and x.layout is torch.strided:
                        self.kept[id(x)] = (x, x.clone())
        out = func(*args, **kwargs)
        self.made |= set(map(memory, tensors_of(out))) - {*map(memory, tensors_of((args, kwargs)))}
        return out
