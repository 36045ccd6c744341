"""What 1.0 removed says what replaces it."""

import inspect
from operator import attrgetter

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import mtlfunc as mf
from mtlfunc.core.gone import gone, gone_names


def test_an_option_that_went_names_its_recipe():
    @gone(scale="weigh scaled losses: docs/how-to/x.md")
    def double(x: int) -> int:
        return 2 * x

    assert double(3) == double(x=3) == 6
    assert list(inspect.signature(double).parameters) == ["x"]
    with pytest.raises(TypeError, match=r"double: scale= went in 1\.0; weigh scaled losses: docs"):
        double(3, scale=2)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        double(3, other=2)  # pyright: ignore[reportCallIssue]


def test_a_name_that_went():
    refuse = gone_names("mtlfunc.x", {"old": "write `a - b`"})
    with pytest.raises(AttributeError, match=r"mtlfunc\.x\.old went in 1\.0; write `a - b`"):
        refuse("old")


def test_names_that_moved_from_a_room_say_where_they_are():
    moved = {
        "optim.LineSearch": "types.LineSearch",
        "optim.line_search": "physics.line_search",
        "diagnostics.NewtonError": "types.NewtonError",
        "diagnostics.newton_error": "physics.newton_error",
        "muon_gradients": "muon.gradients",
        "solvers.nuclear": "muon.nuclear",
        "solvers.Certificate": "types.Certificate",
        "physics.Laplacian": "types.Laplacian",
        "Balance": "types.Balance",
        "excess": "excess_risk",
        "gauss_newton": "physics.gauss_newton",
        "jets": "physics",
        "kernel_traces": "physics.kernel_traces",
        "ntk": "physics.ntk",
        "revisit": "second_evaluation",
        "sample_lengths": "sample_norms",
        "scalars": "log_dict",
        "tracked": "moving_average",
    }
    for old, new in moved.items():
        assert attrgetter(new)(mf)
        with pytest.raises(AttributeError, match=rf"mtlfunc\.{new} now"):
            attrgetter(old)(mf)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        attrgetter("nothing")(mf)


def test_a_balancer_is_not_entered():
    balancer = mf.Balancer(nn.Linear(2, 2), mf.mgda())
    with pytest.raises(TypeError, match="leave out `with balancer:`"), balancer:  # pyright: ignore
        pass


OPTIONS = {
    "task_gramian": ("other", "memory"),
    "sample_gramian": ("other",),
    "explain_gramian": ("memory",),
}


@pytest.mark.parametrize(("name", "option"), [(k, x) for k, xs in OPTIONS.items() for x in xs])
def test_options_of_gramians_name_their_page(name, option):
    with pytest.raises(TypeError, match=rf"{option}= went in 1\.0; .*: docs/how-to/recipes\.md"):
        getattr(mf, name)(**{option: 2.0})


def test_colour_bars_are_changed_afterwards():
    for draw in (mf.plot.simplex, mf.plot.heatmap):
        with pytest.raises(TypeError, match=r"colorbar= went in 1\.0; .*docs/from/zero\.md"):
            draw(torch.eye(3), colorbar=False)  # pyright: ignore[reportCallIssue]
    image = mf.plot.simplex(torch.eye(3), ax=Figure().add_subplot(), resolution=4).collections[0]
    assert image.colorbar is not None
    image.colorbar.remove()
    assert image.colorbar is None
