"""What a Balancer is given, checked; and its state in a dict."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.expect import expect_probe, probe_for
from ..core.internals import keystr, tree_flatten_with_path, tree_unflatten
from ..gradients.losses import Tasks, check_task_count, expect_weightings
from ..gradients.run import Forward
from ..probes import jacobian, losses_only
from ..processes import Group
from ..types import Params, Probe, Rule, Select, State

_EXTENDED = (
    "module: hooks of another library expect one backward pass of it, as those of Opacus "
    "(GradSampleModule) and BackPACK (backpack(...)) do, and there is one a task: call "
    "module.disable_hooks() before the forward pass, or leave the `with backpack(...)` block."
)
CURES = {
    "backward through the graph a second time": (
        "losses: an earlier backward() has freed their graph: call the balancer first, or pass "
        "retain_graph=True there."
    ),
    "backward an extra time": (
        "losses: selective checkpoints are recomputed for one backward pass: pass each loss as a "
        "function without arguments, or leave context_fn= out of the checkpoint."
    ),
    "modified by an inplace operation": (
        "losses: a tensor of their graph has been changed since, most often a parameter by "
        "optimizer.step(): compute the losses anew after every step."
    ),
    "donated": (
        "module: a compiled module frees its graph in the first backward pass, of several: import "
        "torch._functorch.config and set its donated_buffer = False before it is compiled."
    ),
    "fabric.backward": (
        "module: Fabric forbids every other backward pass of its wrapper's output in this "
        "precision: call the module inside, under Fabric's autocast, as in `with "
        "fabric.autocast(): out = wrapped.module(x)`."
    ),
    "pop from empty list": _EXTENDED,
    "object has no attribute 'output'": _EXTENDED,
}
"""What to do about errors of torch and of other libraries, by words of theirs."""


class Memory(NamedTuple):
    """What a Balancer keeps from step to step."""

    tasks: Tasks = ()
    states: State = None  # the probe's and the rule's, after the first losses
    loaded: dict[str, Tensor] | None = None  # from a file, and not used yet


class Explained(AbstractContextManager[None]):
    """Errors that name a cure."""

    def __exit__(self, _: object, error: BaseException | None, *rest: object) -> None:
        if isinstance(error, RuntimeError | IndexError | AttributeError):
            for words, cure in CURES.items():
                if words in str(error):
                    raise RuntimeError(f"{cure} It said: {error}") from error


Functions = dict[Any, Callable[[], Any]]
"""By the tasks' names, or by their numbers."""

IN_TURN = "losses are functions, whose graphs are gone after their turn; pass the losses themselves"


def functions_of(losses: Any) -> Functions:
    """The functions that losses are given as; none where they are tensors."""
    if not isinstance(losses, dict | list | tuple):
        return {}
    entries = dict(losses if isinstance(losses, dict) else enumerate(losses))
    others = [name for name, x in entries.items() if not callable(x)]
    if 0 < len(others) < len(entries):
        raise ValueError(
            f"losses: some are functions, and losses[{others[0]!r}] is none; make each a function "
            "without arguments that returns its loss, or none"
        )
    return {} if others else entries


def no_autocast(leaves: Params) -> AbstractContextManager[Any]:
    """Products of gradients are not for half precision."""
    device = next(iter(leaves.values())).device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def chosen_probe(probe: Probe | Select | None, shared: Select | None, group: Group) -> Probe:
    """The probe that a Balancer's arguments ask for."""
    default = isinstance(shared, str) and shared == "*"
    if getattr(probe, "__module__", "").startswith(jacobian.__module__.rpartition(".")[0]):
        expect_probe(probe)  # a function that makes probes, and is none
    if not isinstance(probe, Probe):
        if not (default or (isinstance(probe, str) and probe == "*")):
            raise ValueError("probe: it says what is shared, and so does shared=; pass one")
        which = probe if default else shared
        return losses_only(group=group) if which is None else jacobian(which, group=group)
    if group is not None or not default:
        raise ValueError("probe: it has options of its own; pass shared= and group= to it")
    if probe.calls_model:
        raise ValueError(
            "probe: it calls the model itself, and a Balancer has only losses that exist already; "
            "use mtlfunc.balance, or instead of second_evaluation balancer.observe, and "
            "docs/how-to/recipes.md for the representation"
        )
    return probe


def cure_for(rule: Rule, probe: Probe) -> str:
    """What to do where the probe of a balancer does not measure what the rule reads."""
    source = probe_for(rule)
    if "kernel_traces" in source:
        return (
            "a Balancer cannot run the model again. In a stock loop take grads, state, info = "
            f"mtlfunc.balance(losses_fn, rule, {source}).update(mtlfunc.parameters(module), batch, "
            "state) with torch.func.functional_call in losses_fn, and "
            "mtlfunc.assign_gradients(module, grads) before optimizer.step()"
        )
    if "mtlfunc.jacobian(...)" in source and not probe.measures:
        return (
            "say which parameters the tasks share, for instance by "
            "mtlfunc.Balancer(module, rule, shared='*') all of them"
        )
    return f"use mtlfunc.Balancer(module, rule, {source})"


def check_weightings(probe: Probe, weightings: Tensor, tasks: Tasks) -> None:
    """Raise unless these can be the tasks of this step."""
    if probe.weightings is None:
        raise ValueError(
            "weightings: they go with mtlfunc.jacobian without mix=, or shared=, not this probe"
        )
    check_task_count(expect_weightings(weightings), tasks, "the first step")


def flat_state(state: State) -> dict[str, Tensor]:
    return {keystr(path): leaf.detach().clone() for path, leaf in tree_flatten_with_path(state)[0]}


def filled_state(fresh: State, kept: dict[str, Tensor]) -> State:
    """A state of the structure of `fresh` with the tensors that were kept."""
    leaves, structure = tree_flatten_with_path(fresh)
    shapes = {keystr(path): list(leaf.shape) for path, leaf in leaves}
    found = {name: list(leaf.shape) for name, leaf in kept.items()}
    if shapes != found:
        raise ValueError(
            f"state_dict: it is of another rule or number of tasks: this rule's state is {shapes}, "
            f"and the dict has {found}"
        )
    return tree_unflatten([kept[keystr(path)].to(leaf.device) for path, leaf in leaves], structure)


VERSION = 1
"""Of what `Balancer.state_dict` returns."""


def parse_state(given: Any) -> tuple[bool, Tasks, dict[str, Tensor]]:
    """Whether it had started, the tasks and the tensors, of what `Balancer.state_dict` returned."""

    def number(x: Any) -> Any:
        return x.item() if isinstance(x, Tensor) and x.ndim == 0 else x

    version = number(given.get("version", VERSION)) if isinstance(given, dict) else VERSION
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"state_dict: it has version {version!r}, and this mtlfunc reads {VERSION}; load it "
            "with the mtlfunc that made it, or a later one"
        )
    try:
        given["version"]
        started, count = number(given["started"]), number(given["tasks"]["count"])
        names, flat, pairs = given["tasks"]["names"], dict(given["state"]), len(given["state"])
        tasks = dict.fromkeys(names, ())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "state_dict: expected what Balancer.state_dict returned, a dict with 'started', "
            "'tasks' (their 'count' and 'names') and 'state'"
        ) from error
    fits = {
        "started": type(started) is bool and started >= bool(flat),
        "count": type(count) is int and count >= (started is True),
        "names": isinstance(names, list | tuple) and len(tasks) == len(names) in (0, count),
        "state": len(flat) == pairs and all(isinstance(x, Tensor) for x in flat.values()),
    }
    if not all(fits.values()):
        wrong = ", ".join(repr(key) for key, fine in fits.items() if not fine)
        raise ValueError(
            f"state_dict: its {wrong} is not what Balancer.state_dict returned; load it as it was"
        )
    return started, tasks or ((),) * count, flat


def tasks_in_words(tasks: Tasks) -> str:
    return ", ".join(map(repr, tasks)) if isinstance(tasks, dict) else f"{len(tasks)} tasks"


def foreign_parameters(forwards: list[Forward], leaves: Params) -> list[Tensor]:
    """Parameters that train, on which the losses depend, and that are not among the leaves."""
    known = set(map(id, leaves.values()))
    found = [x for way in forwards for x in way.graph.variables.values() if id(x) not in known]
    return [x for x in found if isinstance(x, nn.Parameter) and x.requires_grad] if found else []


def check_outside(forwards: list[Forward], leaves: Params) -> None:
    """Raise where a trained parameter is not the module's: it would get no gradient."""
    if shapes := [list(x.shape) for x in foreign_parameters(forwards, leaves)]:
        raise ValueError(
            f"module: the losses depend on parameters that are not in it, of shapes {shapes}, "
            "which would get no gradient; put all modules that train into one torch.nn.ModuleDict, "
            "and say with shared= which of their parameters the tasks share; freeze the others "
            "(requires_grad_(False))"
        )
