"""What a graph proves about samples, on programs in which every axis has the same length."""

# pyright: reportArgumentType=false

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.func import grad, vmap

import mtlfunc as mf
from mtlfunc.gradients.layerwise.graph import read_graph
from mtlfunc.gradients.layerwise.owners import walk
from tests.support.oracles import F64, literal

N = 3  # samples, tasks, heads and features: every mistake about axes is possible


def written_at(h, x):
    out = h * 1
    out[:, 1:2] = x
    return out


def added_at(h, x):
    out = h * 1
    out[1:].add_(x)
    return out


def summed_at(h):
    out = h * 1
    out[:2].cumsum_(0)
    return out


def tensor(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


PLACES = torch.arange(N**3).reshape(N, N, N)
RECURRENT = {  # the last, of float32, is one operation
    "rnn": nn.RNN(N, N, batch_first=True).double(),
    "gru": nn.GRU(N, N, batch_first=True, bidirectional=True).double(),
    "lstm": nn.LSTM(N, N, batch_first=True, num_layers=2).double(),
    "fused lstm": nn.LSTM(N, N, batch_first=True),
}


def _run(layer, h):
    return layer(h.to(layer.weight_hh_l0.dtype))


STEPS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "plain product": lambda h: (h[:, 0] @ tensor(0, N, N))[:, None] * h,
    "plain product from the left": lambda h: (tensor(0, N, N) @ h[:, 0])[:, None] * h,
    "tanh in place": lambda h: (h + 0).tanh_(),
    "turned twice": lambda h: h.mT.mT**2,
    "copied as turned": lambda h: h.transpose(0, 1).contiguous(),
    "centred": lambda h: h - h.mean(1, keepdim=True),
    "centred, wrongly": lambda h: h - h.mean(0),
    "centred by all": lambda h: h - h.mean(),
    "sums added": lambda h: h + h.sum(-1)[..., None],
    "sums added, wrongly": lambda h: h + h.sum(1),
    "one of each": lambda h: h * h[:, 1:2],
    "one of each, wrongly": lambda h: h * h[:, 1],
    "over a detached number": lambda h: h / h.detach().abs().max(),
    "below the largest": lambda h: h - h.amax(0),
    "softmax": lambda h: h.softmax(-1),
    "log of a softmax": lambda h: h.log_softmax(1),
    "expanded anew": lambda h: h[:, 0].expand(N, N, N),
    "turned": lambda h: h.transpose(0, 1),
    "turned back": lambda h: h.permute(1, 2, 0),
    "merged and split": lambda h: h.reshape(N * N, N).reshape(N, N, N),
    "merged with features": lambda h: h.mT.reshape(N, N * N).reshape(N, N, N),
    "unmatched": lambda h: h.reshape(-1).reshape(1, N * N, N, 1).reshape(N, N, N),
    "linear": lambda h: F.linear(h, tensor(0, N, N), tensor(1, N)),
    "from the left": lambda h: tensor(0, N, N) @ h,
    "own product": lambda h: h @ h.mT,
    "wrong product": lambda h: h @ h.permute(1, 2, 0),
    "first product": lambda h: h @ h[0],
    "addition to a product": lambda h: torch.baddbmm(h[:, :1], h, h.mT, alpha=0.5),
    "addition to a wrong product": lambda h: torch.baddbmm(h[:1], h, h),
    "add to matrix": lambda h: torch.addmm(h[0], h[1], h[2]).expand(N, N, N),
    "unbound": lambda h: torch.stack([x.tanh() for x in h.unbind(1)], 1),
    "split": lambda h: torch.cat([x.exp() for x in h.split([1, 2], 0)], 0),
    "split and turned": lambda h: torch.cat(h.split(2, 0)[::-1], 0),
    "joined with constants": lambda h: torch.cat([tensor(3, 1, N, N), h], 0)[-3:],
    "joined with constant features": lambda h: torch.cat([tensor(3, N, N, 1), h], 2)[..., -N:],
    "before constants": lambda h: torch.cat([h[:2], tensor(3, 1, N, N)], 0),
    "features before constants": lambda h: torch.cat([h[..., :1], tensor(3, N, N, 2)], 2),
    "between constants": lambda h: torch.cat([tensor(3, 1, N, N), h[:1], tensor(4, 1, N, N)], 0),
    "chunked": lambda h: torch.cat(h.chunk(2, 2), 2),
    "whole": lambda h: h[:, :N],
    "last": lambda h: h[..., -1:] + h,
    "steps": lambda h: torch.cat([h[::2], h[1::2]]),
    "logsumexp": lambda h: h - h.logsumexp(1, keepdim=True),
    "logsumexp, wrongly": lambda h: h - h.logsumexp(1),
    "largest": lambda h: h * h.max(-1)[0][..., None],
    "smallest": lambda h: h * h.amin((1, 2), keepdim=True),
    "length": lambda h: h / h.norm(dim=-1, keepdim=True),
    "length of all": lambda h: h / h.norm(),
    "variance": lambda h: h + h.var(0),
    "deviation": lambda h: h + h.std((1, 2))[:, None, None],
    "cumulative": lambda h: h.cumsum(1),
    "softmax of a number": lambda h: h * h.sum().softmax(0),
    "where": lambda h: torch.where(h > 0, h, h[:, :1]),
    "where, wrongly": lambda h: torch.where(h > 0, h, h[:1]),
    "layer norm": lambda h: F.layer_norm(h, (N, N)),
    "layer norm of all": lambda h: F.layer_norm(h, (N, N, N)),
    "layer norm's scale": lambda h: F.layer_norm(h, (N,), h[0, 0]),
    "group norm": lambda h: F.group_norm(h, 1),
    "convolution": lambda h: F.conv1d(h, tensor(0, N, N, 1)),
    "unbatched convolution": lambda h: F.conv2d(h[None], tensor(0, N, N, 1, 1))[0],
    "own kernel": lambda h: F.conv1d(h, h[..., :1]),
    "pooled": lambda h: h + F.max_pool2d(h, 1),
    "pooled, adaptively": lambda h: h + F.adaptive_avg_pool2d(h, 1),
    "attention": lambda h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0],
    "attention of others": lambda h: F.scaled_dot_product_attention(
        h[:, None], h.transpose(0, 1)[:, None], h[:, None]
    )[:, 0],
    "attention as heads": lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "vector": lambda h: (h.reshape(N * N, N) @ tensor(0, N)).reshape(N, N, 1) * h,
    "expand": lambda h: h[:1].expand(N, N, N),
    "repeat": lambda h: h[:, :1].repeat(1, N, 1),
    "diagonal": lambda h: h + h.diagonal(dim1=0, dim2=1),
    "on a diagonal": lambda h: h + h[..., 0].diag_embed() + h[:, 0].diag_embed(0, 1),
    "index": lambda h: h[torch.tensor([0, 2, 1])],
    "gather": lambda h: h.gather(0, torch.arange(N**3).reshape(N, N, N) % N),
    "rolled": lambda h: h.roll(1, 2),
    "rolled as one": lambda h: h.roll(1),
    "flipped": lambda h: h.flip(1),
    "products along": lambda h: h.cumprod(1),
    "product": lambda h: h + h.prod(1, keepdim=True),
    "sorted": lambda h: h.sort(-1)[0],
    "highest": lambda h: h + h.topk(1, 1)[0],
    "picked": lambda h: h.index_select(1, torch.tensor([2, 0, 0])),
    "gated": lambda h: F.glu(torch.cat([h, h.exp()], 1), 1),
    "batch norm": lambda h: F.batch_norm(h, None, None, training=True),
    "batch norm's statistics": lambda h: F.batch_norm(h, torch.ones(N).to(h), torch.ones(N).to(h)),
    "batch norm's scale": lambda h: F.batch_norm(h, None, None, h[0, 0], training=True),
    "instance norm": lambda h: F.instance_norm(h),
    "padded": lambda h: F.pad(h, (1, 1))[..., 1:-1],
    "padded and moved": lambda h: F.pad(h, (0, 0, 0, 0, 1, -1)),
    "padded in the middle": lambda h: F.pad(h, (0, 0, 1, -1, 0, 0), value=0.3),
    "reflected": lambda h: F.pad(h, (1, 1), mode="reflect")[..., 1:-1],
    "reflected in two": lambda h: F.pad(h[None], (1, 1, 1, 1), mode="reflect")[0, :, 1:-1, 1:-1],
    "replicated": lambda h: F.pad(h, (1, 1), mode="replicate")[..., 1:-1],
    "larger": lambda h: F.interpolate(h, scale_factor=2)[..., :N],
    "smooth": lambda h: F.interpolate(h[:, None], scale_factor=2, mode="bilinear")[:, 0, :N, :N],
    "smoother": lambda h: F.interpolate(h[:, None], scale_factor=2, mode="bicubic")[:, 0, :N, :N],
    "windows": lambda h: F.unfold(h[:, None], 1).reshape(N, N, N),
    "windows of one": lambda h: F.unfold(h, 1).reshape(N, N, N),
    "averaged": lambda h: F.avg_pool3d(h[:, None, None], 1)[:, 0, 0],
    "averages": lambda h: h + F.adaptive_avg_pool3d(h[:, None, None], 1)[:, 0, 0],
    "sampled": lambda h: F.grid_sample(
        h[:, None], h[..., None, :2].expand(N, N, N, 2).tanh(), align_corners=False
    )[:, 0],
    "shrunk": lambda h: F.hardshrink(h, 0.1) + F.softshrink(h, 0.1) + F.threshold(h, 0.1, 1.0),
    "leaky": lambda h: F.prelu(h, h[0, 0]) + F.celu(h),
    "angles": lambda h: torch.atan2(h, h[:1]) + torch.logaddexp(h, h),
    "lower part": lambda h: h.tril() + h.triu(1),
    "ones": lambda h: torch.cat([x.sum()[None] for x in h.reshape(-1).split(1)]).reshape(N, N, N),
    "repeated": lambda h: h[:, :1].repeat(1, 3, 1) + h.repeat(2, 1, 1)[:N],
    "repeated as new": lambda h: h[0].repeat(N, 1, 1),
    "written into a piece": lambda h: written_at(h, h[:, :1] * 2),
    "added to a piece": lambda h: added_at(h, h[:1]),
    "added up in a piece": lambda h: summed_at(h),
    "split unsafely": lambda h: torch.cat(torch.unsafe_split(h, 2, 0)[::-1], 0),
    "split unsafely by sizes": lambda h: torch.cat(h.unsafe_split_with_sizes([1, 2], 1)[::-1], 1),
    "turned in place": lambda h: (h * 1).transpose_(1, 2),
    "each turned in place": lambda h: torch.stack([(x * 1).t_() for x in h]),
    "with an axis in place": lambda h: (h * 1).unsqueeze_(1)[:, 0],
    "windows of an axis": lambda h: torch.cat(h.unfold(1, 2, 1).unbind(3), 1)[:, :N],
    "pixels": lambda h: F.pixel_shuffle(h[:, None].expand(N, 4, N, N), 2)[:, 0, :N, :N],
    "pixels of one": lambda h: F.pixel_shuffle(h.repeat(4, 1, 1)[:4], 2)[0, :N, :N] + h,
    "pixels as channels": lambda h: F.pixel_unshuffle(h.repeat(1, 2, 2)[:, None], 2)[:, 1],
    "channels": lambda h: F.channel_shuffle(h, 3),
    "channels of one": lambda h: F.channel_shuffle(h[None], 3)[0],
    "added by places": lambda h: torch.zeros_like(h).scatter_add(1, PLACES % N, h),
    "put": lambda h: h.scatter(2, PLACES % N, h.tanh()).scatter(1, PLACES % N, 0.5),
    "put along": lambda h: h.scatter(1, PLACES // N % N, h.exp()),
    "largest of what is put": lambda h: h.scatter_reduce(1, PLACES % 2, h.exp(), "amax"),
    "added by index": lambda h: h.index_add(1, torch.tensor([0, 0, 2]), h.sin()),
    "copied by index": lambda h: h.index_copy(1, torch.tensor([1, 2]), h[:, :2].sin()),
    "masked": lambda h: h.index_put((PLACES % 2 == 0,), torch.zeros(()).double()),
    "masked by others": lambda h: h.masked_scatter(PLACES % 2 == 0, h.flip(0)),
    "spectrum": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1).exp(), n=N, dim=1),
    "real spectrum": lambda h: torch.view_as_real(torch.fft.rfft2(h.exp()))[..., :1, 1] * h,
    "spectrum in two": lambda h: torch.fft.fft2(h).abs(),
    "middle": lambda h: h * h.median(1, keepdim=True)[0],
    "middles": lambda h: h + h.kthvalue(1, 2)[0][..., None] + h.mode(1)[0][:, None],
    "largest so far": lambda h: h.cummax(1)[0],
    "smallest and sums so far": lambda h: h.cummin(1)[0] + h.logcumsumexp(1),
    "inverse": lambda h: torch.linalg.inv(h + 4 * torch.eye(N).to(h)),
    "square root": lambda h: torch.linalg.cholesky(h @ h.mT + torch.eye(N).to(h)),
    "exponential": lambda h: torch.matrix_exp(h.tanh()),
    "rotated": lambda h: h.rot90(1, (1, 2)),
    "folded": lambda h: F.fold(F.unfold(h[:, None], 2), (N, N), 2)[:, 0],
    "folded as one": lambda h: F.fold(F.unfold(h, 1), (N, N), 1),
    "larger in three": lambda h: F.interpolate(h[:, None, None], scale_factor=2)[:, 0, 0, :N, :N],
    **{name: lambda h, f=f: _run(f, h)[0][..., :N].to(h) for name, f in RECURRENT.items()},
    "last state": lambda h: h * _run(RECURRENT["fused lstm"], h)[1][0][0, :, None].to(h),
    "state": lambda h: RECURRENT["fused lstm"](h.float(), (h[:1].float(),) * 2)[0].to(h),
    "gates": lambda h: torch.gru_cell(h[:, 0], h[:, 1], tensor(0, 9, N), tensor(1, 9, N)) * h,
    "aligned": lambda h: (
        h
        * F.ctc_loss(
            h.transpose(0, 1).log_softmax(-1),
            torch.ones(N, 1).long(),
            torch.full((N,), N),
            torch.ones(N).long(),
            reduction="none",
        )[:, None, None]
    ),
    "written": lambda h: (h * 1).index_fill_(0, torch.tensor([1]), 0.5),
}
LAST = {
    "first": lambda h: h.square().mean((1, 2)),
    "second": lambda h: h.mean((0, 2)),
    "third": lambda h: h.sum((0, 1)),
    "stacked": lambda h: torch.stack([x.square().sum() for x in h]),
    "sums one by one": lambda h: torch.stack([h[2].sum(), h[0].sum(), h[1].sum()]),
    "parts": lambda h: torch.stack([x.square().sum() for x in h.reshape(-1).split([9, 12, 6])]),
    "cross-entropy": lambda h: F.cross_entropy(
        h, torch.arange(9).reshape(3, 3) % 3, reduction="none"
    ).mean(1),
    "plain cross-entropy": lambda h: F.cross_entropy(
        h[:, 0], torch.tensor([0, 2, 1]), reduction="none"
    ),
    "error": lambda h: F.mse_loss(h, h[:1].expand(N, N, N), reduction="none").sum((1, 2)),
    "sizes": lambda h: h[:, 0].norm(dim=1),
    "all": lambda h: h,
    "turned": lambda h: h.mT,
    "diagonal": lambda h: h.diagonal(),
    "one of each": lambda h: h[:, 0],
    "one": lambda h: h[0],
}


def owners(losses, places):
    """Of every tensor, which loss each entry is proved to serve alone (-1 none, -2 several)."""
    graph, found = read_graph((get_gradient_edge(losses),), {}), {}

    def visit(place, owner):
        found[place] = owner
        return True

    each = np.arange(len(losses)).reshape(-1, *(1,) * (losses.ndim - 1))
    walk(tuple(graph.reach), [((losses.grad_fn, losses.output_nr), each)], visit)
    return [np.broadcast_to(found.get((x.grad_fn, x.output_nr), -1), x.shape) for x in places]


def wrong(steps, last):
    """Whether an entry serves another loss than the graph is said to prove; and what is said."""
    h = first = tensor(7, N, N, N).requires_grad_() * 1
    for step in steps:
        h = STEPS[step](h)
    losses = LAST[last](h)
    if losses.grad_fn is None:
        return False, np.full(first.shape, -1)
    (claimed,) = owners(losses, [first])
    for i in range(N):
        (row,) = torch.autograd.grad(losses[i].sum(), first, retain_graph=True, allow_unused=True)
        served = np.zeros(first.shape, bool) if row is None else row.numpy() != 0
        if (served & (claimed != i) & (claimed != -2)).any():
            return True, claimed
    return False, claimed


def test_nothing_false_is_proved_of_any_operation():
    answers = {(step, last): wrong([step], last) for step in STEPS for last in LAST}
    assert not [names for names, (bad, _) in answers.items() if bad]
    assert sum((said != -2).all() for _, said in answers.values()) > 200


ACROSS = {  # what is said to mix the samples where they are the second axis of a step
    "tanh": None, "masked": None, "with an axis in place": None,
    "split unsafely by sizes": "another order", "turned in place": "another order",
    "each turned in place": "another order", "windows of an axis": "unfold",
    "pixels": "pixel_shuffle", "pixels as channels": "pixel_unshuffle", "folded": "fold",
    "channels": "channel_shuffle", "added by places": "scatter_add", "put along": "scatter",
    "largest of what is put": "scatter_reduce", "added by index": "index_add",
    "copied by index": "index_copy", "spectrum": "irfft", "spectrum in two": "fft",
    "middle": "median", "largest so far": "cummax", "inverse": "linalg_inv",
    "square root": "linalg_cholesky", "exponential": "linalg_matrix_exp", "aligned": "ctc_loss",
    "rnn": r"\w+", "gru": r"\w+", "lstm": r"\w+", "fused lstm": "lstm", "last state": "lstm",
}  # fmt: skip


@pytest.mark.parametrize("step", ACROSS)
def test_steps_inside_samples_and_across_them(step):
    """One pass has the numbers of a row a sample; the refusal names what stopped the proof."""
    params, x, said = {"w": tensor(5, N, N * N)}, tensor(6, N, N), ACROSS[step]

    def losses(params, x, across=False):
        h = (x @ params["w"]).reshape(N, N, N)
        h = STEPS[step](h.transpose(0, 1)).transpose(0, 1) if across else STEPS[step](h)
        return (h * tensor(7, N, N)).sin().sum((1, 2))

    rows = literal(losses, params, x)
    near = {"rtol": 1e-4, "atol": 1e-5} if step in ("fused lstm", "last state") else {}
    torch.testing.assert_close(mf.sample_gramian(losses, params, x)[1], rows @ rows.mT, **near)
    torch.testing.assert_close(mf.sample_norms(losses, params, x)[1], rows.norm(dim=1), **near)
    if said is None:
        mf.sample_gramian(partial(losses, across=True), params, x)
        return
    with pytest.raises(ValueError, match=rf"samples mix .*{said}\..* engine=\"rows\""):
        mf.sample_gramian(partial(losses, across=True), params, x)


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=3), st.sampled_from(sorted(LAST)))
@settings(max_examples=150)
def test_nothing_false_is_proved_of_programs(steps, last):
    assert not wrong(steps, last)[0]


def test_as_many_ensembles_as_samples():
    """vmap over parameters, N of them: their axis is not taken for the samples'."""
    x = torch.randn(N, 4, dtype=F64)
    params = {"w": torch.randn(N, 4, N, dtype=F64)}

    def losses(params, batch):
        return torch.tanh(batch @ params["w"]).square().sum(1)

    def mixing(params, batch):
        return (batch @ params["w"]).softmax(0).square().sum(1)

    together = vmap(lambda p: mf.sample_gramian(losses, p, x)[1])(params)
    rows = [mf.sample_gramian(losses, {"w": w}, x, engine="rows")[1] for w in params["w"]]
    torch.testing.assert_close(together, torch.stack(rows), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="samples mix in softmax"):
        vmap(lambda p: mf.sample_gramian(mixing, p, x)[1])(params)
    for measure in (mf.sample_gramian, mf.sample_norms):
        with pytest.raises(ValueError, match="samples mix in softmax"):
            grad(lambda p, f=measure: f(mixing, p, x)[1].sum())({"w": params["w"][0]})
    one = {"w": params["w"][0]}
    inside = mf.sample_gramian(
        lambda p, batch: vmap(lambda s: torch.tanh(s @ p["w"]).square().sum())(batch), one, x
    )[1]
    torch.testing.assert_close(inside, rows[0], rtol=1e-12, atol=1e-14)
    features = vmap(lambda feature: torch.tanh(feature).sum(), in_dims=1)
    with pytest.raises(ValueError, match="the samples mix"):
        mf.sample_gramian(lambda p, batch: features(batch @ p["w"]), one, x)


def test_counts_of_a_batch_have_no_gradients_of_samples():
    """Refused by every function of samples alike, and taken without the counts."""
    indices, params = torch.tensor([[0, 2, 2], [1, 0, 3], [2, 2, 2]]), {"w": tensor(0, 4, 2)}
    doors = {
        "rows": lambda f, **how: mf.sample_gradients(f, params, indices, **how)[1]["w"].flatten(1),
        "gramian": lambda f, **how: mf.sample_gramian(f, params, indices, **how)[1],
        "norms": lambda f, **how: mf.sample_norms(f, params, indices, **how)[1],
    }
    for table in (F.embedding, lambda i, w, **how: F.embedding_bag(i, w, **how)[:, None]):

        def losses(p, i, counts=False, table=table):
            return table(i, p["w"], scale_grad_by_freq=counts).sum(1).sin().sum(1)

        for name, door in doors.items():
            for how in ({"samples_at_once": 1},) if name == "rows" else ({}, {"engine": "rows"}):
                with pytest.raises(NotImplementedError, match=r"scale_grad_by_freq.*leave it out"):
                    door(partial(losses, counts=True), **how)
        rows = doors["rows"](losses, samples_at_once=1)
        torch.testing.assert_close(doors["gramian"](losses), rows @ rows.mT)
        torch.testing.assert_close(doors["norms"](losses), rows.norm(dim=1))
    with pytest.raises(NotImplementedError, match=r"scale_grad_by_freq.*leave it out"):
        doors["rows"](lambda p, i: F.embedding(i, p["w"], scale_grad_by_freq=True).sum((1, 2)))


MERGED = {
    "a low rank": lambda a, b, g, v: a @ b,
    "a low rank beside a fixed one": lambda a, b, g, v: torch.ones_like(v) + 2 * (a @ b),
    "a normed one": lambda a, b, g, v: g * v / v.norm(dim=1, keepdim=True),
}


@pytest.mark.parametrize("samples", [3, 4, 8])
@pytest.mark.parametrize("name", MERGED)
def test_weights_made_of_weights_have_no_samples(name, samples):
    """Their axis of 8 is a multiple of 4 and of 8 samples."""
    generator = torch.Generator().manual_seed(samples)
    shapes = {"a": (8, 2), "b": (2, 5), "g": (8, 1), "v": (8, 5)}
    params = {key: torch.randn(s, dtype=F64, generator=generator) for key, s in shapes.items()}
    x = torch.randn(2, samples, 5, dtype=F64, generator=generator)

    def losses(params, x):
        return F.linear(x, MERGED[name](**params)).square().sum(1)

    def found(x):
        return mf.sample_gramian(losses, params, x)[1]

    rows = torch.stack([literal(losses, params, one) for one in x])
    torch.testing.assert_close(found(x[0]), rows[0] @ rows[0].mT)
    torch.testing.assert_close(vmap(found)(x), rows @ rows.mT)
