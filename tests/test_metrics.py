"""pytest tests/test_metrics.py: every score against torchmetrics, scipy, or a written-out sum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
)

import metrics
from metrics import Bin

PAIRS = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 1)), min_size=1, max_size=60)


def random_probabilities(count=200, classes=3, seed=0):
    """(probabilities (N, C), labels (N)) of predictions that are right more often than not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) * 2
    logits[torch.arange(count), labels] += 1
    return logits.softmax(-1), labels


def random_predictions(count=200, seed=0):
    """(confidence, correct) as arrays (N)."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, count)
    return confidence, (rng.random(count) < confidence - 0.1).astype(int)


# ---- scores of label tasks -----------------------------------------------------------------------


def answers_to(logits, labels, label_tokens):
    """LabelAnswers as a model with these logits (N, V) gives them."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.max(-1)
    return metrics.LabelAnswers(
        tokens=best.indices,
        confidence=best.values.exp(),
        label_logprobs=logprobs[:, label_tokens],
        label_tokens=label_tokens,
        labels=labels,
    )


@pytest.mark.parametrize("seed", range(4))
def test_label_scores_take_the_vocabulary_for_top1_and_the_labels_for_the_rest(seed):
    """Four labels among nine tokens, against torchmetrics and loops over the queries."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(300, 9, generator=generator) * 2
    labels = torch.randint(0, 4, (300,), generator=generator)
    label_tokens = torch.tensor([7, 2, 0, 5])
    scores = metrics.label_scores(answers_to(logits, labels, label_tokens))

    vocabulary = logits.softmax(-1)
    among = logits[:, label_tokens].double().softmax(-1)
    gold = label_tokens[labels]
    confidence, chosen = among.max(-1)
    correct = (chosen == labels).long()
    counts = [int((chosen == label).sum()) for label in range(4)]
    floor, floor_sd = metrics.ece_floor(confidence)
    expected = {
        "accuracy": multiclass_accuracy(vocabulary, gold, num_classes=9, average="micro"),
        "ece_top1": multiclass_calibration_error(vocabulary, gold, num_classes=9, n_bins=15),
        "accuracy_among_labels": multiclass_accuracy(among, labels, 4, average="micro"),
        "accuracy_batch_calibrated": batch_calibrated_by_loop(among.tolist(), labels.tolist()),
        "nll": np.mean([-math.log(among[i, label]) for i, label in enumerate(labels)]),
        "brier": np.mean([brier_of(row, label) for row, label in zip(among, labels.tolist())]),
        "gap": confidence.mean() - correct.double().mean(),
        "ece": multiclass_calibration_error(among, labels, num_classes=4, n_bins=15),
        "ece_floor": floor,
        "ece_floor_sd": floor_sd,
        "ece_equal_mass": equal_mass_by_loop(confidence.tolist(), correct.tolist(), 15),
        "auroc": binary_auroc(confidence, correct),
        "label_auroc": multiclass_auroc(among, labels, num_classes=4, average="macro"),
        "label_mass": vocabulary[:, label_tokens].sum(-1).mean(),
        "largest_share": max(counts) / 300,
    }
    assert list(scores) == list(expected)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize(
    "lowest, gap, share", [(-90.0, math.log(3), 0.75), (-200.0, math.log(9), 0.9), (-700.0, 0, 0.5)]
)
def test_shares_of_labels_that_are_all_very_unlikely_are_exact(lowest, gap, share):
    """Both labels have next to no probability; one has 3, 9 or 1 times the other's."""
    logits = torch.tensor([[0.0, lowest, lowest + gap]]).repeat(5, 1)
    answers = answers_to(logits, torch.ones(5, dtype=torch.long), torch.tensor([1, 2]))
    probabilities = metrics.label_probabilities(answers)
    assert probabilities[0].tolist() == pytest.approx([1 - share, share], abs=1e-6)
    scores = metrics.label_scores(answers)
    assert scores["accuracy"] == 0
    assert scores["label_mass"] == pytest.approx(0, abs=1e-30)
    assert scores["nll"] == pytest.approx(-math.log(share), abs=1e-6)
    right = scores["accuracy_among_labels"]
    assert scores["ece"] == pytest.approx(abs(right - share), abs=1e-6)
    assert scores["gap"] == pytest.approx(share - right, abs=1e-6)


def test_a_model_that_is_certain_has_finite_scores():
    """One wrong answer of probability 0, and confidences that float32 rounds to above 1."""
    logits = torch.tensor([[80.0, -80.0, 0.0], [80.0, -80.0, 0.0]])
    answers = answers_to(logits, torch.tensor([0, 1]), torch.tensor([0, 1]))
    answers = replace(answers, confidence=torch.tensor([1.0000001, 1.0000001]))
    scores = metrics.label_scores(answers)
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["nll"] == pytest.approx(160 / 2)
    assert scores["brier"] == pytest.approx(1)
    for name in ("gap", "ece", "ece_top1", "ece_equal_mass", "auroc", "label_auroc"):
        assert scores[name] == 0.5


def test_scores_can_be_written_as_json_and_say_none_where_no_answer_is_wrong():
    logits = torch.eye(3) * 4
    scores = metrics.label_scores(answers_to(logits, torch.arange(3), torch.arange(3)))
    assert scores["auroc"] is None
    assert {type(score) for score in scores.values()} == {float, type(None)}


def test_outcomes_say_of_each_query_what_was_right_and_what_was_answered():
    """Three labels among five tokens; the second query's likeliest token is no label."""
    logits = torch.tensor([[0.0, 1, 0, 3, 2], [9, 1, 0, 3, 2], [0, 1, 0, 2, 4]])
    answers = answers_to(logits, torch.tensor([1, 1, 0]), torch.tensor([4, 3, 1]))
    rows = metrics.outcomes(answers)
    assert [row[:3] for row in rows] == [[1, 1, 1], [1, 1, None], [0, 0, 0]]
    for row, query in zip(rows, logits.tolist()):
        weights = [math.exp(value) for value in query]
        assert row[3] == round(max(weights) / sum(weights), 4)
        among = [weights[token] for token in (4, 3, 1)]
        assert row[4] == [round(weight / sum(among), 4) for weight in among]
    scores = metrics.label_scores(answers)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["accuracy_among_labels"] == 1


def test_nll_is_the_cross_entropy():
    probabilities, labels = random_probabilities()
    theirs = torch.nn.functional.nll_loss(probabilities.log(), labels).item()
    assert metrics.nll(probabilities, labels) == pytest.approx(theirs)
    certain = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert metrics.nll(certain, torch.tensor([0])) == 0
    assert math.isfinite(metrics.nll(certain, torch.tensor([1])))


def batch_calibrated_by_loop(probabilities, labels):
    columns = list(zip(*probabilities))
    prior = [sum(column) / len(column) for column in columns]
    right = 0
    for row, label in zip(probabilities, labels):
        ratios = [p / q for p, q in zip(row, prior)]
        right += ratios.index(max(ratios)) == label
    return right / len(labels)


def test_batch_calibration_takes_off_a_preference():
    labels = np.array([1, 1, 0, 0])
    positive = np.array([0.99, 0.98, 0.9, 0.8])  # "positive" to all, though more to the positive
    both = np.stack([1 - positive, positive], axis=1)
    assert (both.argmax(axis=1) == labels).mean() == 0.5
    assert metrics.batch_calibrated_accuracy(both, labels) == 1
    never = np.array([[1.0, 0.0], [1.0, 0.0]])  # a label that no query may have is never taken
    assert metrics.batch_calibrated_accuracy(never, np.array([0, 1])) == 0.5


def brier_of(probabilities, label):
    total = 0.0
    for c, p in enumerate(probabilities.tolist()):
        total += (p - (c == label)) ** 2
    return total


def test_brier_is_the_mean_squared_distance_from_the_truth():
    probabilities, labels = random_probabilities()
    by_loop = [brier_of(row, label) for row, label in zip(probabilities, labels.tolist())]
    assert metrics.brier(probabilities, labels) == pytest.approx(np.mean(by_loop))
    certain = torch.tensor([[1.0, 0.0]])
    assert metrics.brier(certain, torch.tensor([0])) == 0
    assert metrics.brier(certain, torch.tensor([1])) == 2


@pytest.mark.parametrize("score", [metrics.nll, metrics.brier])
def test_proper_scores_are_best_at_the_true_probabilities(score):
    """Of 1,000 queries 700 have the label 1: whoever says 0.7 scores best."""
    labels = torch.tensor([1] * 700 + [0] * 300)
    scores = {}
    for percent in range(5, 100, 5):
        p = percent / 100
        scores[percent] = score(torch.tensor([[1 - p, p]]).double().repeat(1000, 1), labels)
    assert min(scores, key=scores.get) == 70


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_torchmetrics_with_and_without_ties(digits, seed):
    confidence, correct = random_predictions(seed=seed)
    confidence = confidence.round(digits)
    theirs = binary_auroc(torch.tensor(confidence), torch.tensor(correct)).item()
    assert metrics.auroc(confidence, correct) == pytest.approx(theirs, abs=1e-6)


@given(PAIRS)
def test_auroc_counts_the_pairs_of_a_right_and_a_wrong_answer(pairs):
    confidence, correct = zip(*pairs)
    wins = []
    for right in [c for c, y in pairs if y == 1]:
        for wrong in [c for c, y in pairs if y == 0]:
            wins.append(0.5 if right == wrong else float(right > wrong))
    if not wins:
        assert metrics.auroc(confidence, correct) is None
    else:
        assert metrics.auroc(confidence, correct) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("seed", range(3))
def test_how_well_two_labels_are_told_apart_does_not_change_with_a_preference(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 40)
    logits = generator.normal(size=40) + labels
    found = []
    for preference in (0, 3, -20):
        positive = 1 / (1 + np.exp(-logits - preference))
        both = np.stack([1 - positive, positive], axis=1)
        found.append(metrics.label_auroc(both, labels))
    wins = [a > b for a in logits[labels == 1] for b in logits[labels == 0]]
    assert found == pytest.approx([np.mean(wins)] * 3)
    assert metrics.label_auroc(both, np.ones(40)) is None


def test_auroc_by_hand():
    assert metrics.auroc([0.9, 0.8, 0.3], [1, 1, 0]) == 1
    assert metrics.auroc([0.9, 0.8, 0.3], [0, 0, 1]) == 0
    assert metrics.auroc([0.7, 0.7, 0.7], [0, 1, 1]) == 0.5
    assert metrics.auroc([0.9, 0.8], [1, 1]) is None
    assert metrics.auroc([0.9, 0.8], [0, 0]) is None


# ---- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 5, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_is_torchmetrics(bins, seed):
    confidence, correct = random_predictions(seed=seed)
    theirs = binary_calibration_error(
        torch.tensor(confidence), torch.tensor(correct), n_bins=bins, norm="l1"
    )
    assert metrics.ece(confidence, correct, bins) == pytest.approx(theirs.item(), abs=1e-6)


def test_ece_and_its_bins_by_hand():
    """(0.5, 0.75] and (0.75, 1] hold predictions: 3/5 |2/3 - 0.63| + 2/5 |1/2 - 0.9|."""
    confidence = [0.6, 0.64, 0.65, 0.8, 1.0]
    correct = [1, 0, 1, 0, 1]
    low, high = metrics.reliability(confidence, correct, bins=4)
    assert low == Bin(3, pytest.approx(0.63), pytest.approx(2 / 3))
    assert high == Bin(2, pytest.approx(0.9), 0.5)
    expected = 3 / 5 * (2 / 3 - 0.63) + 2 / 5 * 0.4
    assert metrics.ece(confidence, correct, bins=4) == pytest.approx(expected)


def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first():
    bins = metrics.reliability([0.0, 0.5, 0.5 + 1e-9, 1.0], [0, 0, 1, 1], bins=2)
    assert [each.count for each in bins] == [2, 2]
    assert [each.accuracy for each in bins] == [0, 1]


@given(PAIRS, st.integers(1, 20))
def test_ece_is_a_mean_of_distances_whatever_the_order(pairs, bins):
    confidence, correct = zip(*pairs)
    found = metrics.reliability(confidence, correct, bins)
    assert sum(each.count for each in found) == len(pairs)
    value = metrics.ece(confidence, correct, bins)
    assert 0 <= value <= 1
    assert metrics.ece(confidence[::-1], correct[::-1], bins) == pytest.approx(value, abs=1e-9)
    assert metrics.ece(correct, correct, bins) == 0
    gap = abs(np.mean(confidence) - np.mean(correct))
    assert gap <= value + 1e-9, "one bin alone gives the least ECE, the size of the gap"


def equal_mass_by_loop(confidence, correct, bins):
    """Sorted by confidence; the first N mod `bins` bins hold one prediction more than the rest."""
    pairs = sorted(zip(confidence, correct))
    total = 0.0
    start = 0
    for b in range(bins):
        size = len(pairs) // bins + (b < len(pairs) % bins)
        members = pairs[start : start + size]
        total += abs(sum(c for c, _ in members) - sum(y for _, y in members))
        start += size
    assert start == len(pairs)
    return total / len(pairs)


@pytest.mark.parametrize("count", [7, 15, 200])
def test_bins_of_equal_mass_hold_equally_many_predictions(count):
    confidence, correct = random_predictions(count, seed=3)
    expected = equal_mass_by_loop(confidence, correct, 15)
    assert metrics.ece_equal_mass(confidence, correct) == pytest.approx(expected)


def test_equal_mass_sees_what_equal_widths_average_away():
    """What has 0.45 is always right and what has 0.55 never: in one bin, half of all is right."""
    confidence = [0.45] * 50 + [0.55] * 50
    correct = [1] * 50 + [0] * 50
    assert metrics.ece(confidence, correct, bins=1) == pytest.approx(0)
    assert metrics.ece_equal_mass(confidence, correct, bins=2) == pytest.approx(0.55)


@pytest.mark.parametrize(
    "score", [metrics.ece, metrics.ece_equal_mass, metrics.auroc, metrics.reliability]
)
@pytest.mark.parametrize(
    "confidence, correct",
    [
        ([], []),
        ([0.5], [0, 1]),
        ([[0.5]], [[1]]),
        ([1.5], [1]),
        ([-0.1], [1]),
        ([float("nan")], [1]),
        ([0.5], [2]),
    ],
)
def test_what_is_no_prediction_is_refused(score, confidence, correct):
    with pytest.raises(ValueError, match="must be"):
        score(confidence, correct)


def test_the_noise_floor_is_what_perfectly_calibrated_predictions_score():
    """Against a loop of its own; 200 predictions give about 0.06, and 20,000 almost nothing."""
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.5, 1, 200)
    draws = []
    for _ in range(400):
        right = (rng.random(200) < confidence).astype(int)
        draws.append(metrics.ece(confidence, right))
    mean, deviation = metrics.ece_floor(confidence)
    assert mean == pytest.approx(np.mean(draws), abs=0.004)
    assert deviation == pytest.approx(np.std(draws), abs=0.004)
    assert mean > 0.04
    assert metrics.ece_floor(rng.uniform(0.5, 1, 20000), draws=100)[0] < 0.01


def test_the_floor_belongs_to_its_confidences():
    assert metrics.ece_floor([1.0] * 50) == (0, 0), "who is certain and calibrated is never wrong"
    doubtful = metrics.ece_floor([0.55] * 50)
    assert doubtful[0] > metrics.ece_floor([0.95] * 50)[0] > 0
    assert metrics.ece_floor([0.55] * 50) == doubtful, "the same digits at every call"


# ---- activations ---------------------------------------------------------------------------------


def cosine(first, second):
    """By a loop over features in Python's floats; 0 where one side is zero."""
    product = sum(a * b for a, b in zip(first, second))
    lengths = math.hypot(*first) * math.hypot(*second)
    return product / lengths if lengths else 0.0


def test_asim_is_the_cosine_by_layer_and_position():
    torch.manual_seed(0)
    first = torch.randn(3, 2, 16)
    second = torch.randn(3, 2, 16)
    similarity = metrics.asim(first, second)
    assert similarity.shape == (3, 2)
    for layer in range(3):
        for position in range(2):
            expected = cosine(first[layer, position].tolist(), second[layer, position].tolist())
            assert similarity[layer, position].item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(metrics.asim(first, 7 * first), torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, -first), -torch.ones(3, 2))
    torch.testing.assert_close(metrics.asim(first, 3 * second), similarity)


def test_asim_of_bfloat16_activations_is_computed_in_float32():
    first = torch.randn(3, 2, 16).bfloat16()
    assert metrics.asim(first, first).dtype == torch.float32
    torch.testing.assert_close(metrics.asim(first, first), torch.ones(3, 2))


def random_activations(sizes, seed, layers=3, d=16):
    """One tensor (L, G, d) a query; all queries share a large part."""
    generator = torch.Generator().manual_seed(seed)
    shared = 5 * torch.randn(layers, 1, d, generator=generator)
    activations = []
    for size in sizes:
        activations.append(shared + torch.randn(layers, size, d, generator=generator))
    return activations


def centred_by_loop(A1, A2, layer):
    """Take each side's mean over all positions off, then average by query, then over queries."""

    def centred(side):
        rows = [position for A in side for position in A[layer].tolist()]
        mean = [sum(column) / len(rows) for column in zip(*rows)]
        return iter([[x - m for x, m in zip(row, mean)] for row in rows])

    rows1 = centred(A1)
    rows2 = centred(A2)
    by_query = []
    for A in A1:
        cosines = [cosine(next(rows1), next(rows2)) for _ in range(A.shape[1])]
        by_query.append(sum(cosines) / len(cosines))
    return sum(by_query) / len(by_query)


@pytest.mark.parametrize("sizes", [[1] * 6, [1, 4, 2], [3]])
def test_asim_centred_equals_loops(sizes):
    """Also where queries have different numbers of positions: each query counts once."""
    A1 = random_activations(sizes, seed=1)
    A2 = [2 * A + noise for A, noise in zip(A1, random_activations(sizes, seed=2))]
    centred = metrics.asim_centred(A1, A2)
    assert centred.shape == (3,)
    for layer in range(3):
        expected = centred_by_loop(A1, A2, layer)
        assert centred[layer].item() == pytest.approx(expected, abs=1e-5)


def test_a_constant_that_ignores_the_query_is_near_by_asim_and_not_when_centred():
    A_icl = random_activations([1] * 40, seed=1)
    constant = torch.stack(A_icl).mean(dim=0)
    raw = [metrics.asim(constant, A).mean() for A in A_icl]
    assert torch.stack(raw).mean() > 0.9
    zeros = [0, 0, 0]
    assert metrics.asim_centred([constant] * 40, A_icl).tolist() == zeros
    assert metrics.asim_centred(A_icl, [constant] * 40).tolist() == zeros


def test_centring_sees_that_each_query_moves_its_own_way_under_another_constant():
    A_icl = random_activations([1] * 40, seed=1)
    mean = torch.stack(A_icl).mean(dim=0)
    moved = [3 * (A - mean) - 9 * mean for A in A_icl]
    raw = [metrics.asim(M, A).mean() for M, A in zip(moved, A_icl)]
    assert torch.stack(raw).mean() < -0.5
    torch.testing.assert_close(metrics.asim_centred(moved, A_icl).float(), torch.ones(3))


@pytest.mark.parametrize("queries", [1, 2, 3, 100])
def test_two_constants_have_no_centred_similarity_rather_than_nan(queries):
    """Nor is what rounding leaves of equal activations taken for a movement."""
    constant = torch.randn(3, 1, 64)
    others = [[constant] * queries, [2 * constant] * queries, [torch.zeros(3, 1, 64)] * queries]
    for other in others:
        assert metrics.asim_centred([constant] * queries, other).tolist() == [0, 0, 0]


# ---- updates and distributions -------------------------------------------------------------------


def test_subspace_overlap_of_equal_orthogonal_and_random_spans():
    torch.manual_seed(0)
    B = torch.randn(40, 4)
    eye = torch.eye(40)
    assert metrics.subspace_overlap(B, B @ torch.randn(4, 4)) == pytest.approx(1)
    assert metrics.subspace_overlap(eye[:, :4], eye[:, 10:14]) == pytest.approx(0)
    assert metrics.subspace_overlap(eye[:, :4], eye[:, 2:6]) == pytest.approx(0.5)
    assert metrics.subspace_overlap(B, torch.zeros(40, 4)) == 0
    chance = []
    for _ in range(400):
        chance.append(metrics.subspace_overlap(torch.randn(40, 4), torch.randn(40, 4)))
    assert np.mean(chance) == pytest.approx(4 / 40, abs=0.01)


def test_subspace_overlap_is_the_mean_squared_cosine_of_scipys_principal_angles():
    from scipy.linalg import subspace_angles

    torch.manual_seed(0)
    B1 = torch.randn(20, 5)
    B2 = torch.randn(20, 5)
    expected = np.mean(np.cos(subspace_angles(B1.double().numpy(), B2.double().numpy())) ** 2)
    assert metrics.subspace_overlap(B1, B2) == pytest.approx(expected)


def test_directions_that_an_update_does_not_use_are_no_overlap():
    """A B of rank 1 in 4 columns: its other singular vectors are arbitrary."""
    B = torch.zeros(40, 4)
    B[0] = torch.randn(4)
    assert metrics.subspace_overlap(B, torch.eye(40)[:, :4]) == pytest.approx(1 / 4)
    assert metrics.subspace_overlap(B, torch.eye(40)[:, 1:5]) == pytest.approx(0)


def test_mean_kl_is_scipys_relative_entropy():
    torch.manual_seed(0)
    p = torch.randn(7, 50).log_softmax(-1)
    q = torch.randn(7, 50).log_softmax(-1)
    theirs = stats.entropy(p.double().exp().numpy(), q.double().exp().numpy(), axis=1).mean()
    assert metrics.mean_kl(p, q) == pytest.approx(theirs, abs=1e-5)
    assert metrics.mean_kl(p, p) == 0
    assert metrics.mean_kl(p, q) != pytest.approx(metrics.mean_kl(q, p), abs=1e-3)


# ---- statistics ----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=12).filter(
        lambda values: np.std(values) > 1e-3
    ),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_the_t_interval_is_that_of_scipy(values, level):
    theirs = stats.ttest_1samp(values, 0).confidence_interval(level)
    interval = metrics.t_interval(values, level)
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert interval.low == pytest.approx(theirs.low, abs=1e-6)
    assert interval.high == pytest.approx(theirs.high, abs=1e-6)


def test_one_value_has_no_interval():
    interval = metrics.t_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert math.isnan(metrics.t_interval([]).mean)


def test_rank_correlation():
    assert metrics.rank_correlation([1, 2, 3, 9], [10, 20, 25, 26]) == pytest.approx(1)
    assert metrics.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(metrics.rank_correlation([1, 2], [1, 2]))
    assert math.isnan(metrics.rank_correlation([1, 1, 1], [1, 2, 3]))
