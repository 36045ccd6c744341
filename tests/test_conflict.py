"""`diagnostics.conflict` against loops over vectors, and its coverage where the truth is known."""

import itertools
import math
from statistics import median

import numpy as np
import pytest
import torch
from scipy.stats import binom
from scipy.stats import t as student
from torch.func import vmap

import mtlfunc as mf
from experiments.conflict.coverage import TAILED, Setting, alarms, covered, gramians, tailed
from mtlfunc.analysis import diagnostics
from mtlfunc.types import Conflict
from tests.support.every import every, in_turn

SAMPLES, TASKS = 9, 3


def drawn(seed: int, samples: int = SAMPLES) -> torch.Tensor:
    """[sample, task, coordinate]"""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(TASKS, 4, generator=generator, dtype=torch.float64)
    return mean + torch.randn(samples, TASKS, 4, generator=generator, dtype=torch.float64)


def gramian_of(vectors: torch.Tensor) -> torch.Tensor:
    rows = vectors.flatten(0, 1)
    return rows @ rows.mT


def literal(vectors: np.ndarray, s: int, t: int) -> float:
    """The mean over pairs of different samples, term by term."""
    pairs = list(itertools.permutations(range(len(vectors)), 2))
    return sum(
        0.5 * (vectors[b, s] @ vectors[c, t] + vectors[b, t] @ vectors[c, s]) for b, c in pairs
    ) / len(pairs)


@pytest.mark.parametrize("level", [0.9, 0.999])
@pytest.mark.parametrize(("samples", "seed"), [(3, 0), (4, 0), (30, 0), (SAMPLES, 0), (SAMPLES, 1)])
def test_estimate_and_interval_are_those_of_a_loop_over_vectors(seed, samples, level):
    vectors = drawn(seed, samples)
    found = diagnostics.conflict(gramian_of(vectors), TASKS, level)
    loose = vectors.numpy()
    quantile = student.ppf((1 + level) / 2, samples - 1)
    # of a kind of that share there are fewer than two with that probability
    assert binom.cdf(1, samples, found.rare.item()) == pytest.approx(1 - level)
    for s, t in itertools.product(range(TASKS), repeat=2):
        whole = literal(loose, s, t)
        left = [literal(np.delete(loose, b, 0), s, t) for b in range(samples)]
        squares = [(x - np.mean(left)) ** 2 for x in left]
        error = math.sqrt((samples - 1) / samples * sum(squares))
        effective = sum(squares) ** 2 / sum(x**2 for x in squares)
        case = f"seed {seed}, tasks {s} and {t}"
        assert found.inner[s, t].item() == pytest.approx(whole, abs=1e-12), case
        half = (found.high - found.low)[s, t].item() / 2
        assert half == pytest.approx(quantile * error, rel=1e-9), case
        assert found.effective[s, t].item() == pytest.approx(effective, rel=1e-6), case
        verdict = (int(whole > half) - int(whole < -half)) * (effective >= 6)
        assert found.verdict[s, t].item() == verdict, case
        square = literal(loose, s, s) * literal(loose, t, t)
        if found.low[s, s] > 0 and found.low[t, t] > 0:
            cosine = max(-1.0, min(1.0, whole / math.sqrt(square)))
            assert found.cosine[s, t].item() == pytest.approx(cosine, abs=1e-12), case
        else:
            assert math.isnan(found.cosine[s, t].item()), case


def test_vmapped_is_the_loop():
    every = torch.stack([gramian_of(drawn(seed)) for seed in range(5)])
    levels = torch.tensor([0.5, 0.8, 0.9, 0.95, 0.99], dtype=torch.float64)
    mapped = vmap(lambda gramian, level: diagnostics.conflict(gramian, TASKS, level))
    together = mapped(every, levels)
    states = vmap(lambda g: diagnostics.running_conflict(None, g, TASKS)[1])(every)
    later, _ = vmap(lambda s, g: diagnostics.running_conflict(s, g, TASKS))(states, every)
    for i, (gramian, level) in enumerate(zip(every, levels, strict=True)):
        _, state = diagnostics.running_conflict(None, gramian, TASKS)
        following, _ = diagnostics.running_conflict(state, gramian, TASKS)
        alone = diagnostics.conflict(gramian, TASKS, level)
        for one, other in zip((*together, *later), (*alone, *following), strict=True):
            torch.testing.assert_close(one[i], other, equal_nan=True)


def test_the_sequence_is_the_published_formula():
    state = None
    estimates, variances = [], []
    for step in range(1, 6):
        gramian = gramian_of(drawn(step, SAMPLES + step))
        single = diagnostics.conflict(gramian, TASKS, level=0.9)
        quantile = (single.high - single.inner)[0, 1].item()
        found, state = diagnostics.running_conflict(state, gramian, TASKS, level=0.9)
        estimates.append(single.inner[0, 1].item())
        variances.append((quantile / student.ppf(0.95, SAMPLES + step - 1)) ** 2)
        grown = 0.1 * step + 1
        half = math.sqrt(
            np.mean(variances) * 2 * grown / (step**2 * 0.1) * math.log(math.sqrt(grown) / 0.1)
        )
        assert found.inner[0, 1].item() == pytest.approx(np.mean(estimates), abs=1e-12)
        assert (found.high - found.inner)[0, 1].item() == pytest.approx(half, rel=1e-9)
        samples = sum(SAMPLES + k for k in range(1, step + 1)) * (half / np.mean(estimates)) ** 2
        assert found.needed[0, 1].item() == pytest.approx(samples, rel=1e-9)
    assert state is not None
    assert int(state.steps) == 5


def judged(vectors: torch.Tensor) -> Conflict:
    rows = vectors.flatten(1, 2)
    return vmap(lambda gramian: diagnostics.conflict(gramian, 2))(rows @ rows.mT)


@pytest.mark.parametrize(("family", "samples"), in_turn(TAILED, [3, 16, 64, 4, 32, 8, 128], 2))
@every("samples")
def test_a_verdict_is_wrong_only_about_what_no_sample_shows(family, samples):
    """5 % at most where no rare strong sample can be missed; else what `rare` states."""
    vectors, hit = tailed(family, samples, 400, samples)
    found = judged(vectors)
    verdict = found.verdict[:, 0, 1]
    wrong = verdict * TAILED[family] < 0
    told = wrong & (hit.any(1) if family == "rare" else True)
    # three standard errors of 5 % in 400
    assert told.double().mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    if samples < 6:
        assert not verdict.any()
    if family == "rare":  # the share of which no sample is there
        missed = 0.98**samples
        assert wrong.double().mean() <= missed + 4 * math.sqrt(missed * (1 - missed) / 400)
        assert found.rare.min() > 0.02, "the premise is said not to hold"


def test_what_gaussian_noise_keeps_of_its_verdicts():
    for samples, kept in ((16, 0.5), (32, 0.95), (128, 1.0)):
        vectors, _ = tailed("Gaussian", samples, 100 if samples == 128 else 400, 0)
        found = judged(vectors)
        sure = (found.low[:, 0, 1] > 0) | (found.high[:, 0, 1] < 0)
        assert sure.double().mean() > 0.9
        assert (found.verdict[:, 0, 1] != 0).sum() >= kept * sure.sum(), samples


def test_a_run_that_has_seen_the_rare_samples_does_not_err():
    """At every look of 40 runs over 60 batches of 8, of which one in a hundred holds two."""
    wrong, seen = torch.zeros(2, 40, dtype=torch.bool)
    state = found = None
    for look in range(60):
        vectors, hit = tailed("rare", 8, 40, look)
        rows = vectors.flatten(1, 2)
        dims = (None if state is None else 0, 0)
        found, state = vmap(lambda s, g: diagnostics.running_conflict(s, g, 2), dims)(
            state, rows @ rows.mT
        )
        seen = seen | (hit.sum(1) > 1)
        wrong = wrong | (seen & (found.verdict[:, 0, 1] > 0))
    assert wrong.double().mean() <= 0.05
    assert state is not None
    assert found is not None
    assert int(state.samples[0]) == 480
    assert binom.cdf(1, 8, found.rare[0].item()) ** 60 == pytest.approx(0.05)
    assert found.rare[0] > 0.02, "the premise is said not to hold"
    assert seen.sum() > 10


def test_samples_needed_are_right_in_order_of_magnitude():
    """From a large sample: at so many samples half of the intervals exclude 0."""
    large = Setting(2048, 11.0, 0.3, 0.0)
    found = diagnostics.conflict(gramians(large, 1, mf.random.key(0))[0], 2)
    needed = round(found.needed[0, 1].item())
    assert 20 < needed < 1000
    several = gramians(large._replace(samples=needed), 100, mf.random.key(1))
    verdict = vmap(lambda x: diagnostics.conflict(x, 2))(several).verdict[:, 0, 1]
    assert 0.3 < (verdict == 1).double().mean().item() < 0.7


@pytest.mark.parametrize("correlation", [-0.3, 0.3])
def test_samples_in_common_do_not_bias_it(correlation):
    """The naive product is off by correlation·noise/n; U is within 4 of its standard errors."""
    setting = Setting(32, 100.0, 0.2, correlation)
    found = covered(setting, 400)
    off = correlation * setting.noise / setting.samples
    assert abs(found.bias) < 4
    # its standard error: products of noise spread by 100/32/√50, over 400 replicates
    assert found.naive_bias == pytest.approx(off, abs=4 * 100 / 32 / math.sqrt(50 * 400))


def test_coverage():
    """Of the 81 settings of `python -m experiments.conflict`, nine; as many replicates."""
    some = [
        Setting(32, noise, cosine, 0.3)
        for noise, cosine in itertools.product((1.0, 11.0, 100.0), (-0.2, 0.0, 0.8))
    ]
    shares = {setting: covered(setting, 400).covered for setting in some}
    assert min(shares.values()) >= 0.88, shares
    assert median(shares.values()) >= 0.94, shares


def test_false_alarms_over_200_looks():
    found = alarms(11.0, 0.3, runs=25, looks=200)
    assert found.sequence <= 0.05
    assert found.peeking > 0.2  # what it is for


def test_scale_and_precision():
    vectors = drawn(0)
    known = diagnostics.conflict(gramian_of(vectors), TASKS)
    for scale in (1e-6, 1e6):
        found = diagnostics.conflict(gramian_of(scale * vectors), TASKS)
        torch.testing.assert_close(found.inner, scale**2 * known.inner)
        torch.testing.assert_close(found.needed, known.needed)
        assert torch.equal(found.verdict, known.verdict)
    single = diagnostics.conflict(gramian_of(vectors).float(), TASKS)
    assert single.inner.dtype == torch.float32
    torch.testing.assert_close(single.inner, known.inner.float())


def test_an_absent_task_is_open():
    vectors = drawn(0)
    vectors[:, 1] = 0
    found = diagnostics.conflict(gramian_of(vectors), TASKS)
    assert found.inner[1].tolist() == found.low[1].tolist() == found.high[1].tolist() == [0.0] * 3
    assert found.verdict[1].tolist() == [0, 0, 0]
    assert found.needed[1].isinf().all()
    assert found.cosine[1].isnan().all()


def test_nan_is_nan_under_vmap():
    every = torch.stack([gramian_of(drawn(0)), gramian_of(drawn(1))])
    every[1, 0, 0] = torch.nan
    found = vmap(lambda gramian: diagnostics.conflict(gramian, TASKS))(every)
    assert found.inner[0].isfinite().all()
    assert found.inner[1].isnan().all()
    assert found.verdict[1].tolist() == [[0] * TASKS] * TASKS


def test_what_it_refuses():
    gramian = gramian_of(drawn(0))
    for tasks in (0, 2, 27, 14):
        with pytest.raises(ValueError, match=rf"tasks={tasks}: expected a divisor"):
            diagnostics.conflict(gramian, tasks)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="level: expected"):
            diagnostics.conflict(gramian, TASKS, level=level)
    with pytest.raises(ValueError, match="not symmetric"):
        diagnostics.conflict(gramian + torch.triu(gramian.abs(), 1), TASKS)
    _, state = diagnostics.running_conflict(None, gramian, TASKS)
    with pytest.raises(ValueError, match=r"state: it is of 3 tasks, and the Gramian of 1"):
        diagnostics.running_conflict(state, gramian, 1)


def test_a_level_counts_in_all_its_digits():
    """In float32, 1 - 1e-9 is 1."""
    gramian = gramian_of(drawn(0, 30))
    high = {level: diagnostics.conflict(gramian, TASKS, level=level) for level in (0.99, 1 - 1e-9)}
    assert (high[1 - 1e-9].high > high[0.99].high).all()
    assert high[1 - 1e-9].high.isfinite().all()
    found, state = diagnostics.running_conflict(None, gramian, TASKS, level=0.95)
    expected = torch.sqrt(2 * 1.1 / 0.1 * state.variance * math.log(math.sqrt(1.1) / 0.05))
    torch.testing.assert_close(found.high - found.inner, expected, rtol=1e-12, atol=0)
