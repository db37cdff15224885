"""pytest tests/test_metrics.py: figures against torchmetrics, scipy, hand-computed cases and properties."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

import metrics

predictions = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 1)), min_size=1, max_size=60)


@pytest.mark.parametrize("bins", [1, 5, 15])
@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_torchmetrics(bins, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(300, 4, generator=generator).pow(4)
    probabilities /= probabilities.sum(-1, keepdim=True)
    labels = torch.randint(0, 4, (300,), generator=generator)
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=bins, norm="l1").item()
    scores = metrics.label_scores(probabilities, labels, torch.zeros(300), bins)
    assert scores["ece"] == pytest.approx(theirs, abs=1e-6)
    assert scores["accuracy"] == pytest.approx((probabilities.argmax(-1) == labels).float().mean().item())


def test_ece_of_two_labels_equals_the_binary_one_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + torch.rand(200, generator=generator) / 2
    correct = torch.randint(0, 2, (200,), generator=generator)
    theirs = binary_calibration_error(confidence, correct, n_bins=15, norm="l1").item()
    assert metrics.ece(confidence.tolist(), correct.tolist()) == pytest.approx(theirs, abs=1e-6)


def test_ece_by_hand():
    # Bins (0.5, 0.75] and (0.75, 1]: |2/3 - 0.63| * 3/5 + |1/2 - 0.9| * 2/5
    confidence, correct = [0.6, 0.64, 0.65, 0.8, 1.0], [1, 0, 1, 0, 1]
    assert metrics.ece(confidence, correct, bins=4) == pytest.approx(0.6 * (2 / 3 - 0.63) + 0.4 * 0.4)
    # Equal mass, two bins: the first three, the last two (numpy's array_split gives the larger part first).
    assert metrics.ece(confidence, correct, bins=2, equal_mass=True) == pytest.approx(0.6 * (2 / 3 - 0.63) + 0.4 * 0.4)
    # Equal mass, five bins of one: the mean distance.
    assert metrics.ece(confidence, correct, 5, True) == pytest.approx(np.mean([0.4, 0.64, 0.35, 0.8, 0.0]))
    assert metrics.reliability([0.0, 1.0], [0, 1], bins=2) == [(1, 0.0, 0.0), (1, 1.0, 1.0)]


@given(predictions, st.integers(1, 20), st.booleans())
def test_ece_is_a_mean_of_distances_whatever_the_order(pairs, bins, equal_mass):
    confidence, correct = zip(*pairs)
    groups = metrics.reliability(confidence, correct, bins, equal_mass)
    assert sum(count for count, _, _ in groups) == len(pairs)
    assert 0 <= metrics.ece(confidence, correct, bins, equal_mass) <= 1
    if not equal_mass:
        backwards = metrics.ece(confidence[::-1], correct[::-1], bins)
        assert backwards == pytest.approx(metrics.ece(confidence, correct, bins), abs=1e-9)
    assert metrics.ece(correct, correct, bins, equal_mass) == 0


@pytest.mark.parametrize("confidence, correct", [([], []), ([0.5], [0, 1]), ([1.5], [1]), ([0.5], [2]), ([float("nan")], [1])])
def test_ece_refuses_what_is_no_prediction(confidence, correct):
    with pytest.raises(ValueError):
        metrics.ece(confidence, correct)


def test_scores_normalise_over_the_labels():
    scores = metrics.label_scores([[0.03, 0.01], [0.2, 0.6]], [0, 0], [0, 1])
    assert scores["accuracy"] == 0.5 and scores["accuracy_top1"] == 0.5
    assert scores["ece"] == pytest.approx(0.25)  # both in the bin of 0.75: |0.5 - 0.75|
    assert scores["largest_share"] == 0.5


def test_asim_is_one_for_equal_tensors_and_ignores_scale():
    first, second = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    assert metrics.asim(first, first).shape == (3, 2)
    torch.testing.assert_close(metrics.asim(first, first), torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, 7 * first), torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, -first), -torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, 3 * second), metrics.asim(first, second))
    by_hand = (first[1, 0] @ second[1, 0]) / (first[1, 0].norm() * second[1, 0].norm())
    assert metrics.asim(first, second)[1, 0].item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_a_mean_table_averages_each_position_over_the_queries_that_reach_it():
    mean = metrics.MeanTable()
    assert mean.table() is None
    mean.add(torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    mean.add(torch.tensor([[5.0], [6.0]]))
    torch.testing.assert_close(mean.table(), torch.tensor([[3.0, 3.0], [4.0, 4.0]], dtype=torch.float64))


def test_subspace_overlap_of_equal_orthogonal_and_random_spans():
    torch.manual_seed(0)
    B = torch.randn(40, 4)
    assert metrics.subspace_overlap(B, B @ torch.randn(4, 4)) == pytest.approx(1)
    assert metrics.subspace_overlap(torch.eye(40)[:, :4], torch.eye(40)[:, 10:14]) == pytest.approx(0)
    assert metrics.subspace_overlap(torch.eye(40)[:, :4], torch.eye(40)[:, 2:6]) == pytest.approx(0.5)
    assert metrics.subspace_overlap(B, torch.zeros(40, 4)) == 0
    chance = np.mean([metrics.subspace_overlap(torch.randn(40, 4), torch.randn(40, 4)) for _ in range(400)])
    assert chance == pytest.approx(4 / 40, abs=0.01)


def test_rank_correlation():
    assert metrics.rank_correlation([1, 2, 3, 9], [10, 20, 25, 26])[0] == pytest.approx(1)
    assert metrics.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1])[0] == pytest.approx(-1)
    assert math.isnan(metrics.rank_correlation([1, 2], [1, 2])[0])


@settings(max_examples=20)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_the_bootstrap_interval_holds_the_mean_of_its_draws(differences):
    mean, low, high = metrics.bootstrap_interval(differences, draws=500)
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    assert mean == pytest.approx(np.mean(differences))


def test_the_bootstrap_interval_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    mean, low, high = metrics.bootstrap_interval(values)
    spread = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((mean - spread, mean + spread), abs=0.01)
