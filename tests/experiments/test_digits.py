"""Two digits on one canvas: pairs of digits, and parts that share no image."""

import math

import pytest
import torch
from torch.func import vmap

from common.problems import digits as data


@pytest.fixture(scope="module")
def source() -> data.Digits:
    return data.digits(dtype=torch.float64)


def test_overlay_is_the_larger_pixel_of_two_shifted_images():
    left, right = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 1.0], [0.0, 6.0]])
    expected = torch.tensor([[1.0, 2.0, 0.0], [3.0, 5.0, 1.0], [0.0, 0.0, 6.0]])
    assert torch.equal(data.overlay(left, right, offset=1), expected)


def test_splits_share_no_source_image(source):
    parts = vmap(lambda key: data.splits(source, key))(torch.arange(3))
    for seed in range(3):
        used = [set(part.sources[seed].flatten().tolist()) for part in parts]
        # disjoint, and every image is in one of them
        assert sum(map(len, used)) == len(set().union(*used)) == len(source.labels)
    assert not torch.equal(parts.train.sources[0], parts.train.sources[1])


def test_pairs_are_made_of_their_sources(source):
    for part in data.splits(source, torch.tensor(5)):
        left, right = part.sources.unbind(-1)
        assert torch.equal(part.labels, source.labels[part.sources])
        assert torch.equal(
            part.canvases.reshape(-1, 10, 10),
            data.overlay(source.images[left], source.images[right]),
        )
        assert set(left.bincount(minlength=len(source.labels)).tolist()) == {0, data.PARTNERS}
        assert set(right.tolist()) <= set(left.tolist())
        # A right digit is drawn with replacement: the number of distinct ones is that of uniform
        # draws, within five standard deviations.
        members, draws = len(left) // data.PARTNERS, len(right)
        missing = members * (1 - 1 / members) ** draws
        assert abs(members - len(right.unique()) - missing) < 5 * math.sqrt(missing)
