"""pytest tests/test_metrics.py: figures against torchmetrics, scipy, hand-computed cases and properties."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

import metrics

predictions = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 1)), min_size=1, max_size=60)


def scores(logits, labels, label_tokens, bins=15):
    """label_scores of N rows of logits over a whole vocabulary."""
    probabilities = logits.softmax(-1)
    confidence, tokens = probabilities.max(-1)
    return metrics.label_scores(tokens, confidence, logits[:, label_tokens], probabilities[:, label_tokens].sum(-1),
                                label_tokens, labels, bins)


@pytest.mark.parametrize("bins", [1, 5, 15])
@pytest.mark.parametrize("seed", range(4))
def test_top1_and_among_labels_equal_torchmetrics(bins, seed):
    """Four labels among nine tokens: ECE by the whole vocabulary, and by the softmax over the labels alone."""
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(300, 9, generator=generator) * 2, torch.randint(0, 4, (300,), generator=generator)
    wanted = torch.tensor([7, 2, 0, 5])
    found = scores(logits, labels, wanted.tolist(), bins)
    whole, among = logits.softmax(-1), logits[:, wanted].softmax(-1)
    theirs = multiclass_calibration_error(whole, wanted[labels], num_classes=9, n_bins=bins, norm="l1").item()
    assert found["ece"] == pytest.approx(theirs, abs=1e-6)
    theirs = multiclass_calibration_error(among, labels, num_classes=4, n_bins=bins, norm="l1").item()
    assert found["ece_among_labels"] == pytest.approx(theirs, abs=1e-6)
    assert found["accuracy"] == pytest.approx((whole.argmax(-1) == wanted[labels]).float().mean().item())
    assert found["accuracy_among_labels"] == pytest.approx((among.argmax(-1) == labels).float().mean().item())
    assert found["label_mass"] == pytest.approx(whole[:, wanted].sum(-1).mean().item(), abs=1e-6)
    assert sum(count for count, *_ in found["reliability"]) == 300


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
    assert metrics.reliability([0.0, 1.0], [0, 1], bins=2) == [(1, 0.0, 0.0), (1, 1.0, 1.0)]


@given(predictions, st.integers(1, 20))
def test_ece_is_a_mean_of_distances_whatever_the_order(pairs, bins):
    confidence, correct = zip(*pairs)
    assert sum(count for count, _, _ in metrics.reliability(confidence, correct, bins)) == len(pairs)
    assert 0 <= metrics.ece(confidence, correct, bins) <= 1
    assert metrics.ece(confidence[::-1], correct[::-1], bins) == pytest.approx(metrics.ece(confidence, correct, bins), abs=1e-9)
    assert metrics.ece(correct, correct, bins) == 0


@pytest.mark.parametrize("confidence, correct", [([], []), ([0.5], [0, 1]), ([1.5], [1]), ([0.5], [2]), ([float("nan")], [1])])
def test_ece_refuses_what_is_no_prediction(confidence, correct):
    with pytest.raises(ValueError):
        metrics.ece(confidence, correct)


@pytest.mark.parametrize("lowest, gap, share", [(-90.0, math.log(3), 0.75), (-200.0, math.log(9), 0.9), (-700.0, 0.0, 0.5)])
def test_shares_of_labels_that_are_all_very_unlikely_are_exact(lowest, gap, share):
    """Both labels have next to no probability; between them one has three or nine times the other's."""
    logits = torch.tensor([[0.0, lowest, lowest + gap]]).repeat(5, 1)
    found = scores(logits, torch.ones(5, dtype=torch.long), [1, 2])
    right = found["accuracy_among_labels"]
    assert found["ece_among_labels"] == pytest.approx(abs(right - share), abs=1e-6) and found["accuracy"] == 0


def test_the_noise_floor_is_what_perfectly_calibrated_predictions_score():
    """Against a loop of its own over draws; 200 uniform confidences give about 0.06, 20,000 almost nothing."""
    confidence = np.random.default_rng(1).uniform(0.5, 1, 200)
    mean, deviation = metrics.ece_floor(confidence)
    rng = np.random.default_rng(5)
    draws = [metrics.ece(confidence, (rng.random(200) < confidence).astype(int)) for _ in range(400)]
    assert (mean, deviation) == (pytest.approx(np.mean(draws), abs=0.004), pytest.approx(np.std(draws), abs=0.004))
    assert metrics.ece_floor(np.random.default_rng(1).uniform(0.5, 1, 20000))[0] < 0.01 and mean > 0.04


def test_asim_is_one_for_equal_tensors_and_ignores_scale():
    first, second = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    assert metrics.asim(first, first).shape == (3, 2)
    torch.testing.assert_close(metrics.asim(first, first), torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, 7 * first), torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, -first), -torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, 3 * second), metrics.asim(first, second))
    by_hand = (first[1, 0] @ second[1, 0]) / (first[1, 0].norm() * second[1, 0].norm())
    assert metrics.asim(first, second)[1, 0].item() == pytest.approx(by_hand.item(), abs=1e-6)


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
    assert metrics.rank_correlation([1, 2, 3, 9], [10, 20, 25, 26]) == pytest.approx(1)
    assert metrics.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(metrics.rank_correlation([1, 2], [1, 2])) and math.isnan(metrics.rank_correlation([1, 1, 1], [1, 2, 3]))


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3))
def test_the_t_interval_is_that_of_scipy(values):
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert metrics.t_interval(values) == pytest.approx((np.mean(values), theirs.low, theirs.high), abs=1e-6)


def test_one_value_has_no_interval():
    assert metrics.t_interval([0.5])[0] == 0.5 and all(map(math.isnan, metrics.t_interval([0.5])[1:]))
    assert math.isnan(metrics.t_interval([])[0])
