"""What is measured: accuracy, calibration, similarity of activations, overlap of updates. Pure functions on tensors."""
import numpy as np
import torch
from scipy import stats

# ---- calibration --------------------------------------------------------------------------------------------------


def reliability(confidence, correct, bins=15, equal_mass=False):
    """Group predictions by confidence: one (count, mean confidence, accuracy) a bin, empty bins left out.

    confidence (N) in [0, 1] and correct (N) of 0 and 1. Equal-width bins are ((b-1)/bins, b/bins], the first takes 0
    too; equal-mass bins hold N/bins predictions each, give or take one. Raises ValueError for other shapes or ranges.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must be two equal, non-empty lists")
    if not ((confidence >= 0) & (confidence <= 1)).all() or not np.isin(correct, (0, 1)).all():
        raise ValueError("confidence must be within 0 and 1 and correct must be 0 or 1")
    if bins < 1:
        raise ValueError(f"there must be at least one bin, not {bins}")
    if equal_mass:
        groups = np.array_split(np.argsort(confidence, kind="stable"), bins)
    else:
        edges = np.linspace(0, 1, bins + 1)[1:-1]
        number = np.searchsorted(edges, confidence, side="left")
        groups = [np.flatnonzero(number == b) for b in range(bins)]
    return [(len(group), float(confidence[group].mean()), float(correct[group].mean())) for group in groups if len(group)]


def ece(confidence, correct, bins=15, equal_mass=False):
    """Expected calibration error: sum_b (n_b / N) |accuracy_b - confidence_b| (Guo et al., 2017), as a fraction."""
    return calibration_error(reliability(confidence, correct, bins, equal_mass))


def calibration_error(groups):
    """ECE from the (count, mean confidence, accuracy) of `reliability`."""
    total = sum(count for count, _, _ in groups)
    return sum(count / total * abs(accuracy - confidence) for count, confidence, accuracy in groups)


def label_scores(probabilities, labels, top1, bins=15):
    """Scores of a label task. probabilities (N, C) of the label words under the whole vocabulary, labels (N), top1 (N):
    whether the likeliest token of the vocabulary is the right label.

    accuracy: argmax among the labels; confidence: its probability after normalising over the labels.
    """
    probabilities, labels = torch.as_tensor(probabilities), torch.as_tensor(labels)
    normalised = probabilities / probabilities.sum(-1, keepdim=True).clamp(min=1e-30)
    confidence, predicted = normalised.max(-1)
    correct = (predicted == labels).long()
    confidence = confidence.clamp(0, 1)
    groups = reliability(confidence.tolist(), correct.tolist(), bins)
    return {
        "accuracy": correct.double().mean().item(),
        "accuracy_top1": torch.as_tensor(top1).double().mean().item(),
        "ece": calibration_error(groups),
        "ece_equal_mass": ece(confidence.tolist(), correct.tolist(), bins, equal_mass=True),
        "reliability": [[count, round(mean, 6), round(accuracy, 6)] for count, mean, accuracy in groups],
        "largest_share": (torch.bincount(predicted).max() / len(predicted)).item(),
    }


# ---- activations --------------------------------------------------------------------------------------------------


def asim(first, second):
    """Activation similarity: the cosine over the features, (L, G, d) and (L, G, d) -> (L, G) (the paper's asim)."""
    return torch.nn.functional.cosine_similarity(first.float(), second.float(), dim=-1)


class MeanTable:
    """The average of tables (L, G_i) over queries whose G_i differ: each column over the queries that reach it."""

    def __init__(self):
        self.total, self.count = None, None

    def add(self, table):
        layers, width = table.shape
        if self.total is None:
            self.total, self.count = torch.zeros(layers, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        grow = max(0, width - self.total.shape[1])
        self.total = torch.nn.functional.pad(self.total, (0, grow))
        self.count = torch.nn.functional.pad(self.count, (0, grow))
        self.total[:, :width] += table.double().cpu()
        self.count[:width] += 1

    def table(self):
        """(L, G), or None where nothing was added."""
        return None if self.total is None else self.total / self.count


# ---- updates ------------------------------------------------------------------------------------------------------


def subspace_overlap(B1, B2):
    """||U1^T U2||_F^2 / r for U the left singular vectors of two updates' B (d_out, r): 1 for equal spans, 0 for
    orthogonal ones, r / d_out by chance (paper, figure 4). A B of zeros spans nothing: its overlap is 0."""
    bases = []
    for B in (B1, B2):
        U, S, _ = torch.linalg.svd(B.double(), full_matrices=False)
        bases.append(U[:, S > S.max() * max(B.shape) * torch.finfo(torch.float64).eps] if S.max() > 0 else U[:, :0])
    rank = max(B1.shape[1], B2.shape[1])
    return ((bases[0].T @ bases[1]) ** 2).sum().item() / rank


# ---- statistics ---------------------------------------------------------------------------------------------------


def rank_correlation(first, second):
    """Spearman's rank correlation and its two-sided p-value, or (nan, nan) for fewer than three pairs."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan"), float("nan")
    result = stats.spearmanr(first, second)
    return float(result.statistic), float(result.pvalue)


def bootstrap_interval(differences, level=0.95, draws=10_000, seed=0):
    """The mean of paired differences and its percentile bootstrap interval: (mean, low, high); nan for none."""
    differences = np.asarray(differences, dtype=np.float64)
    if not len(differences):
        return (float("nan"),) * 3
    picks = np.random.default_rng(seed).integers(0, len(differences), (draws, len(differences)))
    low, high = np.quantile(differences[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(differences.mean()), float(low), float(high)
