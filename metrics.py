"""What is measured: accuracy, calibration, similarity of activations, overlap of updates. Pure functions."""
import numpy as np
import torch
from scipy import stats

# ---- calibration -------------------------------------------------------------------------------------------


def reliability(confidence, correct, bins=15):
    """Group predictions by confidence: one (count, mean confidence, accuracy) a bin, empty bins left out.

    confidence (N) in [0, 1] and correct (N) of 0 and 1. Bins have equal width, ((b-1)/bins, b/bins]; the
    first takes 0 too. Raises ValueError for other shapes or ranges.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence {confidence.shape}, correct {correct.shape} must be equal, not empty")
    if not ((confidence >= 0) & (confidence <= 1)).all() or not np.isin(correct, (0, 1)).all():
        raise ValueError("confidence must be within 0 and 1 and correct must be 0 or 1")
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    groups = [np.flatnonzero(bin_of == b) for b in range(bins)]
    return [(len(group), float(confidence[group].mean()), float(correct[group].mean()))
            for group in groups if len(group)]


def ece(confidence, correct, bins=15):
    """Expected calibration error: sum_b (n_b / N) |accuracy_b - confidence_b| (Guo et al., 2017)."""
    groups = reliability(confidence, correct, bins)
    return sum(count * abs(accuracy - mean) for count, mean, accuracy in groups) / len(confidence)


def ece_floor(confidence, bins=15, draws=500, seed=0):
    """The ECE of a perfectly calibrated model with these confidences (N): (mean, standard deviation).

    Simulated: each prediction is right with the probability that is its confidence. With few predictions a
    bin, accuracy and confidence differ by chance, so an ECE near this floor is no sign of miscalibration.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    right = np.random.default_rng(seed).random((draws, len(confidence))) < confidence             # (draws, N)
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    gaps = np.abs((right - confidence) @ (bin_of[:, None] == np.arange(bins))).sum(axis=1) / len(confidence)
    return float(gaps.mean()), float(gaps.std())


def label_scores(tokens, confidence, label_logits, label_mass, label_tokens, labels, bins=15):
    """Scores of N answers to a task with C labels, by the whole vocabulary (the paper) and among the labels.

    tokens, confidence (N): the likeliest next token and its probability. label_logits (N, C), label_mass (N):
    the logits of the label tokens, and their probability together. label_tokens (C); labels (N) their
    numbers. Shares among labels are softmaxed over their logits: they hold also where all are unlikely.
    """
    labels = torch.as_tensor(labels)
    correct = torch.as_tensor(tokens) == torch.as_tensor(label_tokens)[labels]
    confidence = torch.as_tensor(confidence).double().clamp(0, 1)
    among, chosen = torch.as_tensor(label_logits).double().log_softmax(-1).exp().clamp(0, 1).max(-1)
    floor, deviation = ece_floor(confidence, bins)
    return {"accuracy": correct.double().mean().item(), "ece": ece(confidence, correct, bins),
            "ece_floor": floor, "ece_floor_sd": deviation,
            "accuracy_among_labels": (chosen == labels).double().mean().item(),
            "ece_among_labels": ece(among, chosen == labels, bins),
            "label_mass": torch.as_tensor(label_mass).double().mean().item(),
            "largest_share": (torch.bincount(chosen).max() / len(chosen)).item(),
            "reliability": [[count, round(mean, 6), round(accuracy, 6)]
                            for count, mean, accuracy in reliability(confidence, correct, bins)]}


# ---- activations and updates -------------------------------------------------------------------------------


def asim(first, second):
    """The paper's activation similarity: cosine over the features, (L, G, d), (L, G, d) -> (L, G)."""
    return torch.nn.functional.cosine_similarity(first.float(), second.float(), dim=-1)


def subspace_overlap(B1, B2):
    """||U1^T U2||_F^2 / r, U the left singular vectors of B (d_out, r): what outputs two updates share.

    1 where one contains the other, r / d_out by chance (paper, figure 4). A B of zeros shares nothing: 0.
    """
    bases = []
    for B in (B1, B2):
        U, S, _ = torch.linalg.svd(B.double(), full_matrices=False)
        bases.append(U[:, S > S.max() * max(B.shape) * torch.finfo(torch.float64).eps])
    return ((bases[0].T @ bases[1]) ** 2).sum().item() / max(B1.shape[1], B2.shape[1])


# ---- statistics --------------------------------------------------------------------------------------------


def t_interval(values, level=0.95):
    """(mean, low, high) of independent values by Student's t; the bounds are nan for fewer than two."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return mean, float(mean - half), float(mean + half)


def rank_correlation(first, second):
    """Spearman's rank correlation, or nan for fewer than three pairs or values that are all the same."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)
