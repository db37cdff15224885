"""What is measured: accuracy, calibration, similarity of activations, overlap of updates.

Pure functions. N answers to a label task with C labels, Q queries, L layers, G output positions,
d hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

BINS = 15  # of ECE


# ---- scores of label tasks -----------------------------------------------------------------------


@dataclass(frozen=True)
class LabelAnswers:
    """What a model answers to N queries of a task with C labels."""

    tokens: Tensor  # (N), the likeliest next token
    confidence: Tensor  # (N), its probability over the whole vocabulary
    label_logprobs: Tensor  # (N, C), log-probabilities of the label tokens over the vocabulary
    label_tokens: Tensor  # (C)
    labels: Tensor  # (N), the number of the right label


def label_scores(answers: LabelAnswers) -> dict:
    """Scores by the likeliest token of the vocabulary (the paper's), and over the label set.

    `accuracy` and `ece_top1` take the likeliest token and its probability. The others take the
    probabilities of the labels, normalised among themselves, so that they also hold where all
    labels are unlikely; `label_mass` says how likely they are together.
    """
    right_token = answers.label_tokens[answers.labels]
    top1_correct = answers.tokens == right_token  # (N)
    logprobs = answers.label_logprobs.double()
    probabilities = label_probabilities(answers)  # (N, C)
    confidence, chosen = probabilities.max(-1)
    correct = chosen == answers.labels
    floor, floor_sd = ece_floor(confidence)
    return {
        "accuracy": top1_correct.double().mean().item(),
        "ece_top1": ece(answers.confidence.double().clamp(0, 1), top1_correct),
        "accuracy_among_labels": correct.double().mean().item(),
        "accuracy_batch_calibrated": batch_calibrated_accuracy(probabilities, answers.labels),
        "nll": nll(probabilities, answers.labels),
        "brier": brier(probabilities, answers.labels),
        "gap": (confidence.mean() - correct.double().mean()).item(),
        "ece": ece(confidence, correct),
        "ece_floor": floor,
        "ece_floor_sd": floor_sd,
        "ece_equal_mass": ece_equal_mass(confidence, correct),
        "auroc": auroc(confidence, correct),
        "label_auroc": label_auroc(probabilities, answers.labels),
        "label_mass": logprobs.exp().sum(-1).mean().item(),
        "largest_share": torch.bincount(chosen).max().item() / len(chosen),
    }


def outcomes(answers: LabelAnswers) -> list[list]:
    """For each query: the right label, the likeliest label, the label that is the likeliest token
    of all or None, that token's probability, and the labels' probabilities among themselves.
    """
    numbers = {token: number for number, token in enumerate(answers.label_tokens.tolist())}
    probabilities = label_probabilities(answers)
    rows = []
    for i, label in enumerate(answers.labels.tolist()):
        chosen = probabilities[i].argmax().item()
        top1 = numbers.get(answers.tokens[i].item())
        confidence = round(answers.confidence[i].item(), 4)
        shares = [round(share, 4) for share in probabilities[i].tolist()]
        rows.append([label, chosen, top1, confidence, shares])
    return rows


def label_probabilities(answers: LabelAnswers) -> Tensor:
    """The labels' probabilities (N, C), normalised among themselves, in float64."""
    return answers.label_logprobs.double().log_softmax(-1).exp().clamp(0, 1)


def batch_calibrated_accuracy(probabilities, labels) -> float:
    """Accuracy where each label's probabilities (N, C) are divided by their mean over the queries
    before the likeliest one is taken (batch calibration, Zhou et al., ICLR 2024).

    This takes off a part of a preference for some labels. It needs many queries, but not their
    labels (N), and expects that all labels are about as frequent.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    mean = probabilities.mean(axis=0)  # (C)
    chosen = (probabilities / np.maximum(mean, 1e-300)).argmax(axis=1)
    return float((chosen == np.asarray(labels)).mean())


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log p(right label), in nats; (N, C), (N). A proper score: lower is better."""
    picked = probabilities.gather(1, labels[:, None])
    return -picked.clamp_min(1e-300).log().mean().item()


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of sum_c (p_c - [c is right])^2, between 0 and 2; (N, C), (N). A proper score."""
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - truth).square().sum(-1).mean().item()


def auroc(confidence, correct) -> float | None:
    """The chance that a right answer has more confidence than a wrong one; ties count half.

    None if all answers are right or all are wrong.
    """
    confidence, correct = checked(confidence, correct)
    right = confidence[correct == 1]
    wrong = confidence[correct == 0]
    if not len(right) or not len(wrong):
        return None
    wins = stats.mannwhitneyu(right, wrong).statistic
    return float(wins / (len(right) * len(wrong)))


def label_auroc(probabilities, labels) -> float | None:
    """How well the labels (N) are told apart by their probabilities (N, C): the chance that a query
    of a label gives it more probability than a query of another label does, mean over labels.

    With two labels it does not change with a preference for one of them, which shifts the log odds
    of all queries alike; accuracy does. None if all queries have one label.
    """
    found = []
    for number in range(probabilities.shape[1]):
        value = auroc(probabilities[:, number], labels == number)
        if value is not None:
            found.append(value)
    return sum(found) / len(found) if found else None


# ---- calibration ---------------------------------------------------------------------------------


def checked(confidence, correct) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 arrays (N). Raises ValueError for other shapes or ranges."""
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = np.asarray(correct, dtype=np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            f"confidence {confidence.shape}, correct {correct.shape} must be equal, not empty"
        )
    if not ((confidence >= 0) & (confidence <= 1)).all() or not np.isin(correct, (0, 1)).all():
        raise ValueError("confidence must be within 0 and 1 and correct must be 0 or 1")
    return confidence, correct


def bin_numbers(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each confidence: equal widths, ((b-1)/bins, b/bins]; the first takes 0 too."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence."""

    count: int
    confidence: float  # mean
    accuracy: float


def reliability(confidence, correct, bins: int = BINS) -> list[Bin]:
    """Predictions grouped by confidence, in bins of equal width; empty bins are left out.

    confidence (N) in [0, 1] and correct (N) of 0 and 1; ValueError for anything else.
    """
    confidence, correct = checked(confidence, correct)
    bin_of = bin_numbers(confidence, bins)
    found = []
    for b in range(bins):
        members = bin_of == b
        if members.any():
            mean = float(confidence[members].mean())
            found.append(Bin(int(members.sum()), mean, float(correct[members].mean())))
    return found


def ece(confidence, correct, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., 2017), sum_b n_b / N |accuracy_b - confidence_b|."""
    return mean_gap(reliability(confidence, correct, bins))


def ece_equal_mass(confidence, correct, bins: int = BINS) -> float:
    """ECE with bins that hold equally many predictions, as in the authors' code."""
    confidence, correct = checked(confidence, correct)
    order = np.argsort(confidence, kind="stable")
    found = []
    for members in np.array_split(order, min(bins, len(order))):
        mean = float(confidence[members].mean())
        found.append(Bin(len(members), mean, float(correct[members].mean())))
    return mean_gap(found)


def mean_gap(groups: list[Bin]) -> float:
    """The mean distance of accuracy and confidence over all predictions in some bins."""
    total = sum(group.count for group in groups)
    return sum(g.count * abs(g.accuracy - g.confidence) for g in groups) / total


def ece_floor(confidence, bins: int = BINS, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """The ECE of a perfectly calibrated model with these confidences (N): mean, standard deviation.

    Simulated: each prediction is right with the probability that is its confidence. With few
    predictions a bin, accuracy and confidence differ by chance, so an ECE near this floor is no
    sign of miscalibration. It belongs to these confidences: another method has its own.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    right = np.random.default_rng(seed).random((draws, len(confidence))) < confidence  # (draws, N)
    in_bin = bin_numbers(confidence, bins)[:, None] == np.arange(bins)  # (N, bins)
    gaps = np.abs((right - confidence) @ in_bin).sum(axis=1) / len(confidence)  # (draws)
    return float(gaps.mean()), float(gaps.std())


# ---- activations and updates ---------------------------------------------------------------------


def asim(A1: Tensor, A2: Tensor) -> Tensor:
    """The paper's activation similarity: cosine over the features, (L, G, d) twice -> (L, G)."""
    return torch.nn.functional.cosine_similarity(A1.float(), A2.float(), dim=-1)


def asim_centred(A1: list[Tensor], A2: list[Tensor]) -> Tensor:
    """The same after each side's mean over the queries is taken off, layer by layer.

    Q activations (L, G, d) a side -> (L). What all queries share, which is most of ICL's shift,
    no longer counts: what is left is whether each query is moved its own way. 0 for a side that
    is the same at every query.
    """
    cosines = []
    for layer in range(len(A1[0])):
        centred1 = centred([A[layer] for A in A1])  # (all positions, d)
        centred2 = centred([A[layer] for A in A2])
        cosines.append(torch.nn.functional.cosine_similarity(centred1, centred2, dim=-1))
    return mean_by_query(torch.stack(cosines), [A.shape[1] for A in A1])


def centred(parts: list[Tensor]) -> Tensor:
    """Activations (G, d) of all queries, one below the other, without their mean.

    In float64: float32 would leave a rounding error of equal activations, which has a direction.
    """
    positions = torch.cat(parts).double()
    return positions - positions.mean(dim=0)


def mean_by_query(values: Tensor, sizes: list[int]) -> Tensor:
    """(L, all positions) -> (L): the mean over a query's positions, then over the queries."""
    return torch.stack([part.mean(dim=1) for part in values.split(sizes, dim=1)]).mean(dim=0)


def subspace_overlap(B1: Tensor, B2: Tensor) -> float:
    """||U1^T U2||_F^2 / r, U the left singular vectors of B (d_out, r): what two updates share.

    1 where both span the same space, r / d_out by chance (paper, figure 4). Of two ranks r is the
    larger one. A B of zeros shares nothing: 0.
    """
    U1 = column_space(B1)
    U2 = column_space(B2)
    return (U1.T @ U2).square().sum().item() / max(B1.shape[1], B2.shape[1])


def column_space(B: Tensor) -> Tensor:
    """An orthonormal basis (d_out, rank of B) of what B can put out."""
    U, S, _ = torch.linalg.svd(B.double(), full_matrices=False)
    tolerance = S.max() * max(B.shape) * torch.finfo(torch.float64).eps
    return U[:, tolerance < S]


def mean_kl(logprobs: Tensor, other_logprobs: Tensor) -> float:
    """Mean of KL(p || q) over N distributions, in nats; log-probabilities (N, V) twice."""
    p = logprobs.double()
    q = other_logprobs.double()
    return (p.exp() * (p - q)).sum(-1).mean().item()


# ---- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; the bounds are nan for fewer than two values."""

    mean: float
    low: float
    high: float


def t_interval(values, level: float = 0.95) -> Interval:
    """The mean of independent values with its interval by Student's t."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    quantile = stats.t.ppf((1 + level) / 2, len(values) - 1)
    half = quantile * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, float(mean - half), float(mean + half))


def rank_correlation(first, second) -> float:
    """Spearman's rank correlation, or nan for fewer than three pairs or values all the same."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)
