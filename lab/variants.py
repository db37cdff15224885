"""Variants of the paper's method: other losses, other teachers, other primers, and steering.

A method is a path of stages, as in `ia2.METHODS`. A stage is a loss; a first stage before SFT is a
primer. Most losses here are IA2's with other targets or SFT's with other responses.

Shapes: L layers, G output positions, d hidden size, B batch, C labels, V vocabulary.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import data
import ia2
import lora
import metrics
from sources import tasks
from support.cli import UserError, log

SMOOTHING = 0.1  # of the labels, in sft_smooth_loss
MASS_WEIGHT = 0.1  # of the label set's own loss, in sft_labels_loss
STEERING_FILE = "steering.safetensors"  # beside the adapter that was trained with it in place
CONTENT_FREE = "N/A"  # the text of a query that says nothing (Zhao et al., 2021)

# ---- 1. The methods ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """How a method comes about, in a sentence and in names that the code below resolves."""

    sentence: str
    path: tuple[str, ...] = ()  # stages, trained one after the other
    steered: bool = False  # the steering vector is in place, in training and in evaluation
    epochs: int = 1  # times --epochs
    stops_early: bool = True  # or all epochs are trained
    corrected: bool = False  # in evaluation, by what a content-free query is answered


METHODS = {
    # the paper's
    "sft": Method("Cross-entropy of the true responses.", ("sft",)),
    "ia2": Method("The student matches ICL's activations.", ("ia2",)),
    "ia2-sft": Method("IA2, then SFT: the paper's method.", ("ia2", "sft")),
    "ia2+sft": Method("Both losses at once, L_IA2 + beta L_SFT.", ("ia2+sft",)),
    "sft-icl": Method("Cross-entropy of ICL's own responses.", ("sft-icl",)),
    "kd": Method("KL to ICL's next-token distributions: context distillation.", ("kd",)),
    "sft-ia2": Method("The two stages in the other order.", ("sft", "ia2")),
    # no training
    "steer": Method(
        "No training: the mean shift of the training examples, one vector a layer, is added.",
        steered=True,
    ),
    # primers alone, and before the same SFT
    "mean": Method("IA2 toward one mean target for all queries.", ("mean",)),
    "rotated": Method("IA2 in which each query gets the target of the next query.", ("rotated",)),
    "format": Method("-log p(label set): that a label follows, no matter which.", ("format",)),
    "mean-sft": Method("Primer mean, then SFT.", ("mean", "sft")),
    "rotated-sft": Method("Primer rotated, then SFT.", ("rotated", "sft")),
    "flipped-sft": Method(
        "IA2 toward the targets of a teacher whose demos have wrong labels, then SFT.",
        ("flipped", "sft"),
    ),
    "format-sft": Method("Primer format, then SFT.", ("format", "sft")),
    "random-sft": Method(
        "SFT that starts from a random adapter with the norms of IA2's.", ("random", "sft")
    ),
    "steer-sft": Method("SFT with the steering vector in place.", ("steered-sft",), steered=True),
    "sft-100": Method(
        "SFT with as many steps as both stages of ia2-sft may take: twice the epochs, all of them.",
        ("sft",),
        epochs=2,
        stops_early=False,
    ),
    # simple fixes of SFT
    "sft-balanced": Method("SFT in which each label weighs the same.", ("sft-balanced",)),
    "sft-smooth": Method("SFT with smoothed labels (0.1).", ("sft-smooth",)),
    "sft-labels": Method(
        "SFT of the choice among the labels; the mass of the label set counts a tenth.",
        ("sft-labels",),
    ),
    "sft-prior": Method(
        "SFT; in evaluation each label's log-probability is taken relative to a content-free "
        "query's.",
        ("sft",),
        corrected=True,
    ),
}

USE_GOLD = ("sft", "steered-sft", "sft-balanced", "sft-smooth", "sft-labels")  # stages
SFT_ON = ("sft", "steered-sft", "ia2+sft")  # stages whose responses can be chosen
NEED_LABELS = ("flipped", "format", "sft-balanced", "sft-smooth", "sft-labels")  # stages
NEED_OTHERS = ("mean", "rotated")  # stages that are IA2 itself if there is one query


@dataclass(frozen=True)
class Choices:
    """What a sweep changes of teacher, targets and losses; the defaults are the paper's."""

    demos: str = "own"  # of the teacher: own, flipped, foreign or none
    sft_on: str | None = None  # responses of SFT: gold or icl; None: gold, in ia2+sft icl
    beta: float | None = None  # weight of SFT in ia2+sft; None: both terms start equal
    queries: int | None = None  # unlabelled queries for targets; None: the training examples
    steer_at: str = "output"  # where the vector is added: output positions, or all

    def uses_gold(self, stage: str) -> bool:
        """Whether a stage needs the true responses of its examples."""
        if stage == "ia2+sft":
            return self.sft_on == "gold"
        if stage in ("sft", "steered-sft"):
            return self.sft_on != "icl"
        return stage in USE_GOLD

    def settings(self, name: str) -> dict:
        """What a row of the method `name` says of the choices that it depends on.

        Defaults are left out, so that these rows are those of `ia2.py`.
        """
        method = METHODS[name]
        settings = {}
        default = "icl" if "ia2+sft" in method.path else "gold"
        if self.sft_on not in (None, default) and set(SFT_ON) & set(method.path):
            settings["sft_on"] = self.sft_on
        if self.beta and "ia2+sft" in method.path:
            settings["beta"] = self.beta
        uses_queries = method.steered or not all(self.uses_gold(stage) for stage in method.path)
        if self.queries and uses_queries:
            settings["targets"] = "unlabelled"
            settings["queries"] = self.queries
        if self.steer_at != "output" and method.steered:
            settings["steer_at"] = self.steer_at
        return settings


def check_methods(names: list[str], choices: Choices, task: data.Data) -> None:
    """Raise UserError where a method or the demos do not fit the task or the choices."""
    if choices.demos == "flipped" and not task.label_tokens:
        raise UserError(
            f"flipped demos have wrong labels and {task.spec.name} is free text; use a task with "
            "labels, or other --demos"
        )
    for name in names:
        method = METHODS[name]
        needs_labels = method.corrected or set(method.path) & set(NEED_LABELS)
        if needs_labels and not task.label_tokens:
            raise UserError(
                f"the method {name} needs a task with labels and {task.spec.name} is free text; "
                "leave it out of --methods"
            )
        if choices.queries == 1 and set(method.path) & set(NEED_OTHERS):
            raise UserError(f"the method {name} needs other queries; use --queries 2 or more")
        if choices.queries and name == "ia2+sft" and choices.sft_on == "gold":
            raise UserError(
                "unlabelled queries have no true responses for ia2+sft --sft-on gold; leave out "
                "--sft-on, or the method"
            )


def say_without_effect(names: list[str], choices: Choices, primer_epochs: int | None) -> None:
    """Print which of the given options changes none of the methods."""
    changed = {key for name in names for key in choices.settings(name)}
    paths = [METHODS[name].path for name in names]
    options = {  # whether it is given, and whether some method depends on it
        "--beta": (choices.beta, "beta" in changed),
        "--targets unlabelled": (choices.queries, "targets" in changed),
        "--steer-at all": (choices.steer_at != "output", "steer_at" in changed),
        "--sft-on icl": (choices.sft_on == "icl", any(set(SFT_ON) & set(path) for path in paths)),
        "--primer-epochs": (primer_epochs, any(len(path) > 1 for path in paths)),
    }
    idle = [option for option, (given, matters) in options.items() if given and not matters]
    if idle:
        log(f"{' and '.join(idle)} changes none of the methods {', '.join(names) or 'here'}")


# ---- 2. What the losses need beside a Target -----------------------------------------------------


@dataclass
class LabTarget(ia2.Target):
    """A Target with what the losses of the lab need beside it, as far as some stage needs it."""

    label: int | None = None  # the number of the true label
    label_tokens: list[int] | None = None
    weight: float = 1.0  # of the example, so that each label weighs the same
    A_mean: Tensor | None = None  # (L, 1, d), the mean of the training queries' A_icl
    rotated: ia2.Target | None = None  # the target of the next query
    flipped: ia2.Target | None = None  # the query's target by a teacher with flipped demos
    icl_logprobs: Tensor | None = None  # (G, V), the teacher's, where it predicts Yhat


@dataclass(frozen=True)
class Examples:
    """What the stages of a few-shot set train on, and stop by."""

    labelled: list[LabTarget]  # the training examples
    queries: list[LabTarget]  # for stages without true responses: the same, or unlabelled queries
    dev: list[LabTarget]


def make_examples(setup: ia2.Setup, few_shot, choices: Choices, stages: set[str]) -> Examples:
    """The targets of a few-shot set with all that the `stages` need."""
    task = setup.task
    targets, dev = ia2.few_shot_targets(setup.model, setup.tokenizer, few_shot, task.max_tokens)
    labelled = with_labels(targets, few_shot.train, task)
    dev = with_labels(dev, few_shot.dev, task)
    queries = labelled
    unlabelled = []
    if choices.queries:
        unlabelled = draw_unlabelled(task.pool, few_shot, choices.queries)
        queries = with_labels(unlabelled_targets(setup, few_shot, unlabelled), None, task)
    examples = Examples(labelled, queries, dev)
    if "mean" in stages:
        add_mean(examples)
    if "rotated" in stages:
        add_rotated(examples)
    if "flipped" in stages:
        add_flipped(setup, few_shot, unlabelled, examples)
    if "kd" in stages:
        add_logprobs(setup.model, queries + dev)
    return examples


def with_labels(targets: list[ia2.Target], examples, task: data.Data) -> list[LabTarget]:
    """Targets as LabTargets; `examples` are theirs, or None if their labels are not to be used.

    The weight of an example is n / (labels that occur * examples of its label): the mean is 1.
    """
    labels = [None] * len(targets)
    if examples is not None:
        labels = [example.label for example in examples]
    counts = Counter(labels)
    lab_targets = []
    for target, label in zip(targets, labels):
        weight = len(labels) / (len(counts) * counts[label])
        lab_target = LabTarget(
            **vars(target), label=label, label_tokens=task.label_tokens, weight=weight
        )
        lab_targets.append(lab_target)
    return lab_targets


def add_mean(examples: Examples) -> None:
    """Fill in `A_mean`, for the dev examples too: they stop the training, and are not averaged."""
    mean = mean_over_examples([target.A_icl for target in examples.queries])  # (L, d)
    for target in examples.queries + examples.dev:
        target.A_mean = mean[:, None]


def mean_over_examples(activations: list[Tensor]) -> Tensor:
    """The mean over each example's output positions, then over examples: (L, G, d) each -> (L, d).

    So a long response weighs as much as a short one.
    """
    return torch.stack([A.float().mean(dim=1) for A in activations]).mean(dim=0)


def add_rotated(examples: Examples) -> None:
    """Fill in `rotated`: the next query's target, the first one's for the last query.

    A dev example that stands alone gets the target of the first training query.
    """
    dev = examples.dev
    after_dev = dev[1:] + dev[:1] if len(dev) > 1 else examples.queries[:1]
    after_queries = examples.queries[1:] + examples.queries[:1]
    for target, following in zip(examples.queries, after_queries):
        target.rotated = following
    for target, following in zip(dev, after_dev):
        target.rotated = following


def add_flipped(setup: ia2.Setup, few_shot, unlabelled, examples: Examples) -> None:
    """Fill in `flipped`: the same queries' targets by a teacher whose demos have wrong labels."""
    flipped = flip_demos(few_shot, setup.task.label_texts)
    targets, dev = ia2.few_shot_targets(
        setup.model, setup.tokenizer, flipped, setup.task.max_tokens
    )
    if unlabelled:
        targets = unlabelled_targets(setup, flipped, unlabelled)
    for target, other in zip(examples.queries + examples.dev, targets + dev):
        target.flipped = other


@torch.no_grad()
def add_logprobs(model, targets: list[LabTarget]) -> None:
    """Fill in `icl_logprobs`: one pass of the teacher over its own response."""
    with lora.disable(model):
        for target in targets:
            [reading] = ia2.forward(model, [target.teacher_prompt], [target.Y_icl])
            target.icl_logprobs = reading.logits.float().log_softmax(-1)


# ---- 3. Losses beside L_IA2 and L_SFT ------------------------------------------------------------


def sft_icl_loss(model, batch: list[LabTarget]) -> Tensor:
    """-log p(Yhat | X): cross-entropy of ICL's own responses. No true response is used."""
    return ia2.sft_loss(model, [replace(target, gold=target.Y_icl) for target in batch])


def kd_loss(model, batch: list[LabTarget]) -> Tensor:
    """mean_i mean_g KL(p_ICL || p) at the output positions, over the vocabulary (soft labels)."""
    prompts = [target.student_prompt for target in batch]
    readings = ia2.forward(model, prompts, [target.Y_icl for target in batch])
    losses = []
    for reading, target in zip(readings, batch):
        logprobs = reading.logits.float().log_softmax(-1)  # (G, V)
        divergence = target.icl_logprobs.exp() * (target.icl_logprobs - logprobs)
        losses.append(divergence.sum(-1).mean())
    return torch.stack(losses).mean()


def mean_loss(model, batch: list[LabTarget]) -> Tensor:
    """L_IA2 with the mean target of all training queries in place of the query's own."""
    return ia2.ia2_loss(model, [replace(target, A_icl=target.A_mean) for target in batch])


def rotated_loss(model, batch: list[LabTarget]) -> Tensor:
    """L_IA2 with the next query's response and activations in place of the query's own."""
    others = []
    for target in batch:
        others.append(replace(target, Y_icl=target.rotated.Y_icl, A_icl=target.rotated.A_icl))
    return ia2.ia2_loss(model, others)


def flipped_loss(model, batch: list[LabTarget]) -> Tensor:
    """L_IA2 toward the teacher whose demos have wrong labels."""
    return ia2.ia2_loss(model, [target.flipped for target in batch])


@dataclass(frozen=True)
class JointLoss:
    """The loss L_IA2 + beta L_SFT, where `response_loss` is the cross-entropy of some response."""

    beta: float
    response_loss: Callable
    __name__ = "ia2+sft_loss"

    def __call__(self, model, batch: list[LabTarget]) -> Tensor:
        return ia2.ia2_loss(model, batch) + self.beta * self.response_loss(model, batch)


def equal_beta(model, response_loss: Callable, targets: list[LabTarget]) -> float:
    """The beta with which both terms of the joint loss are equal on the untrained model.

    L_IA2 depends on the model's scale (100 is common), L_SFT does not. L_SFT counts as 0.1 at
    least: a response that the model gives anyway would make beta explode.
    """
    with lora.disable(model):
        activations = ia2.average_loss(model, ia2.ia2_loss, targets)
        responses = ia2.average_loss(model, response_loss, targets)
    return activations / max(responses, 0.1)


def steered_loss(steering: "Steering", sft_on: str | None = None) -> Callable:
    """L_SFT of a steered model, to be trained inside `steering.in_place`."""
    edit = steering.edit if steering.at == "output" else None

    def loss(model, batch):
        responses = [target.Y_icl if sft_on == "icl" else target.gold for target in batch]
        prompts = [target.student_prompt for target in batch]
        losses = []
        for reading, response in zip(ia2.forward(model, prompts, responses, edit=edit), responses):
            tokens = torch.tensor(response, device=reading.logits.device)
            losses.append(F.cross_entropy(reading.logits.float(), tokens))
        return torch.stack(losses).mean()

    loss.__name__ = "steered-sft_loss"
    return loss


# Of label tasks. p(c) is the probability of label c's token over the vocabulary, p(set) the sum of
# all labels' and p(c | set) = p(c) / p(set).


def label_logprobs(model, batch: list[LabTarget]) -> Tensor:
    """log p(c) of every label after each query: (B, C)."""
    rows = []
    readings = ia2.forward(model, [target.student_prompt for target in batch])
    for reading, target in zip(readings, batch):
        logprobs = reading.logits[0].float().log_softmax(-1)  # (V)
        rows.append(logprobs[target.label_tokens])
    return torch.stack(rows)


def of_true_label(logprobs: Tensor, batch: list[LabTarget]) -> Tensor:
    """The entry of each query's true label: (B, C) -> (B)."""
    labels = torch.tensor([target.label for target in batch], device=logprobs.device)
    return logprobs.gather(1, labels[:, None])[:, 0]


def format_loss(model, batch: list[LabTarget]) -> Tensor:
    """mean_i -log p(set): that a label follows, no matter which. Neither activations nor labels."""
    return -label_logprobs(model, batch).logsumexp(-1).mean()


def sft_balanced_loss(model, batch: list[LabTarget]) -> Tensor:
    """mean_i -w_i log p(y_i): each label that occurs weighs the same (see `with_labels`)."""
    logprobs = of_true_label(label_logprobs(model, batch), batch)  # (B)
    weights = torch.tensor([target.weight for target in batch], device=logprobs.device)
    return -(weights * logprobs).mean()


def sft_smooth_loss(model, batch: list[LabTarget]) -> Tensor:
    """mean_i -sum_c q_c log p(c), q = 0.9 for the true label plus 0.1 / C for every label.

    The 0.1 goes to the labels: spread over the vocabulary it would go almost wholly to tokens that
    are no answer, and the choice among the labels would not be smoothed.
    """
    logprobs = label_logprobs(model, batch)  # (B, C)
    true = of_true_label(logprobs, batch)
    return -((1 - SMOOTHING) * true + SMOOTHING * logprobs.mean(-1)).mean()


def sft_labels_loss(model, batch: list[LabTarget]) -> Tensor:
    """mean_i [-log p(y_i | set) - 0.1 log p(set)].

    With a weight of 1 the sum would be -log p(y_i), plain SFT; with 0 nothing would make the model
    answer with a label. The small weight lets training spend itself on the choice.
    """
    logprobs = label_logprobs(model, batch)  # (B, C)
    mass = logprobs.logsumexp(-1)  # (B)
    choice = of_true_label(logprobs, batch) - mass
    return -(choice + MASS_WEIGHT * mass).mean()


# ---- 4. Teachers: the demos that ICL and the targets see -----------------------------------------


def change_demos(few_shot, demos: str, label_texts: list[str], foreign=None):
    """The few-shot set with other demos: its `own`, `flipped` ones, `foreign` examples, or none."""
    if demos == "flipped":
        return flip_demos(few_shot, label_texts)
    shown = {"own": few_shot.train, "foreign": foreign, "none": []}[demos]
    return replace(few_shot, demos=shown)


def flip_demos(few_shot, label_texts: list[str]):
    """The set with demos that are wrong: each has the next label."""
    demos = []
    for example in few_shot.train:
        label = (example.label + 1) % len(label_texts)
        demos.append(replace(example, response=label_texts[label], label=label))
    return replace(few_shot, demos=demos)


def foreign_task(training: data.Data, tests: list[data.Data], tokenizer, options) -> data.Data:
    """A task with the training task's labels whose texts are neither trained nor tested on.

    It is of the same kind of source, bundled or not. Texts that it shares with the others are left
    out of its pool. Raises UserError if there is none.
    """
    own = training.spec
    used = [training, *tests]
    names = {other.spec.name for other in used}
    options = replace(options, labels=training.label_style)
    for task in tasks.TASKS.values():
        alike = (task.family, task.labels, bool(task.snippets))
        if alike != (own.family, own.labels, bool(own.snippets)) or task.name in names:
            continue
        try:
            candidate = data.load(task.name, tokenizer, options)
        except UserError:  # it is not at hand; another one may be
            continue
        if not any(data.same_texts(candidate, other) for other in used):
            seen = [example for other in used for example in other.pool + other.test]
            pool = data.drop_repeats(candidate.pool, seen, as_written=False)
            return replace(candidate, pool=pool)
    raise UserError(
        f"--demos foreign needs a task with the labels of {own.name} that can be read and is "
        "neither trained nor tested on; leave one out of --eval, or use another --dataset"
    )


def foreign_demos(foreign: data.Data, few_shot, balanced: bool) -> list[data.Example]:
    """As many examples of a foreign task as the few-shot set has, drawn by its number and seed.
    Raises UserError where the task has too few.
    """
    n = len(few_shot.train)
    try:
        drawn = data.few_shot_set(foreign.pool, n, few_shot.number, few_shot.seed, balanced)
    except UserError as error:
        raise UserError(f"the foreign demos are of {foreign.spec.name}: {error}") from None
    return drawn.train


# ---- 5. Targets from queries without labels ------------------------------------------------------


def draw_unlabelled(pool: list[data.Example], few_shot, count: int) -> list[data.Example]:
    """`count` queries of the pool that are neither training nor dev examples, by seed and set.

    The first of many are those of few. Raises UserError if there are not enough.
    """
    used = {example.query for example in few_shot.train + few_shot.dev}
    others = [example for example in pool if example.query not in used]
    if count > len(others):
        raise UserError(
            f"--queries {count} is more than the {len(others)} examples that the pool has beside "
            "the few-shot set; use fewer"
        )
    random.Random(f"queries-{few_shot.seed}-{few_shot.number}").shuffle(others)
    return others[:count]


def unlabelled_targets(setup: ia2.Setup, few_shot, queries) -> list[ia2.Target]:
    """Targets of queries without labels: all training examples are demos, nothing is left out.

    The true response is taken out, so that a loss that would use it fails.
    """
    targets = []
    for query in queries:
        target = ia2.collect_target(
            setup.model, setup.tokenizer, query, few_shot.demos, setup.task.max_tokens
        )
        targets.append(replace(target, gold=[]))
    return targets


def check_pools(few_shot, choices: Choices, task: data.Data, foreign, balanced: bool) -> None:
    """Raise UserError where foreign demos or unlabelled queries are too few for the choices."""
    if foreign:
        foreign_demos(foreign, few_shot, balanced)
    if choices.queries:
        draw_unlabelled(task.pool, few_shot, choices.queries)


# ---- 6. Steering: one vector a layer, without training -------------------------------------------


@dataclass(frozen=True)
class Steering:
    """What the demos do on average, as a vector for each layer.

    For layer l, over training examples i with leave-one-out teachers:

        v_l  =  mean_i mean_g (A_ICL - A)[i, l, g]                          (d)

    A_ICL is the teacher's self-attention output at output position g, A the base model's on the
    student prompt and the teacher's response. At test, self-attention of layer l puts out

        SA_l(.) + v_l

    at the output positions. With `at="all"` the vector is added at every position. Then it is a
    bias of o_proj, which a model can hold, but the tokens of the query are moved too, and with them
    what later layers read there as keys and values.
    """

    vector: Tensor  # (L, d)
    at: str = "output"

    def edit(self, layer: int, outputs: Tensor) -> Tensor:
        """The outputs (N, d) of self-attention in a layer with its vector added."""
        return outputs + self.vector[layer].to(outputs.dtype)

    @contextmanager
    def in_place(self, model) -> Iterator[Callable | None]:
        """Inside the block the model is steered by what is yielded, given to passes as `edit`.

        With `at="all"` hooks do it, and None is yielded.
        """
        if self.at == "output":
            yield self.edit
            return
        handles = []
        try:
            for i, layer in enumerate(model.get_decoder().layers):
                hook = partial(self.add_everywhere, i)
                handles.append(layer.self_attn.register_forward_hook(hook))
            yield None
        finally:
            for handle in handles:
                handle.remove()

    def save(self, folder: str | Path) -> None:
        """Write it into the existing folder of the adapter that was trained with it in place."""
        tensors = {"vector": self.vector.cpu().contiguous()}
        save_file(tensors, Path(folder, STEERING_FILE), metadata={"at": self.at})

    def add_everywhere(self, layer: int, module, inputs, output):
        """A hook: adds the layer's vector to what its self-attention puts out, (B, T, d)."""
        if isinstance(output, tuple):
            return (self.edit(layer, output[0]), *output[1:])
        return self.edit(layer, output)


def is_steered(folder: str | Path) -> bool:
    """Whether the adapter in a folder was trained with a vector in place."""
    return Path(folder, STEERING_FILE).exists()


def read_steering(folder: str | Path, device: torch.device) -> Steering | None:
    """What `Steering.save` wrote, None where the adapter was trained without it."""
    if not is_steered(folder):
        return None
    with safe_open(Path(folder, STEERING_FILE), framework="pt") as file:
        return Steering(file.get_tensor("vector").to(device), file.metadata()["at"])


@torch.no_grad()
def make_steering(model, targets: list[ia2.Target], at: str = "output") -> Steering:
    """The vector of `Steering`, from what the teacher left for some examples."""
    shifts = []
    with lora.disable(model):
        for target in targets:
            [reading] = ia2.forward(model, [target.student_prompt], [target.Y_icl])
            shifts.append(target.A_icl.float() - reading.activations.float())
    return Steering(mean_over_examples(shifts), at)


# ---- 7. Stages as losses -------------------------------------------------------------------------


def make_losses(
    model, examples: Examples, choices: Choices, stages: set[str], steering: Steering | None
) -> dict[str, Callable]:
    """{stage: its loss} for a few-shot set; of `random`, which is not trained, what draws it."""
    losses = {
        "sft": sft_icl_loss if choices.sft_on == "icl" else ia2.sft_loss,
        "ia2": ia2.ia2_loss,
        "sft-icl": sft_icl_loss,
        "kd": kd_loss,
        "mean": mean_loss,
        "rotated": rotated_loss,
        "flipped": flipped_loss,
        "format": format_loss,
        "random": random_adapter,
        "sft-balanced": sft_balanced_loss,
        "sft-smooth": sft_smooth_loss,
        "sft-labels": sft_labels_loss,
    }
    if steering is not None:
        losses["steered-sft"] = steered_loss(steering, choices.sft_on)
    if "ia2+sft" in stages:
        response_loss = ia2.sft_loss if choices.sft_on == "gold" else sft_icl_loss
        beta = choices.beta or equal_beta(model, response_loss, examples.queries)
        losses["ia2+sft"] = JointLoss(beta, response_loss)
    return losses


RANDOM_SEEDS = 1_000_000


def random_adapter(trained: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random matrices in the shapes of a trained adapter, A and B of each module with its norms."""
    # Not the numbers that `lora.reset` draws with the same seed: training started from those.
    generator = torch.Generator().manual_seed(seed + RANDOM_SEEDS)
    drawn = {}
    for name, weight in trained.items():
        noise = torch.randn(weight.shape, generator=generator)
        scaled = noise * (weight.norm().cpu() / noise.norm())
        drawn[name] = scaled.to(weight.device)
    return drawn


# ---- 8. The prior correction of sft-prior --------------------------------------------------------


def content_free_logprobs(model, tokenizer, test: data.Data) -> Tensor:
    """log p(c) of every label after the query `N/A`: (C)."""
    query = test.prompt.format(text=CONTENT_FREE)
    prompt = data.prompt_tokens(tokenizer, [], query)
    logprobs = ia2.next_logprobs(model, [prompt])[0]  # (V)
    return logprobs[test.label_tokens].cpu()


def correct_priors(model, tokenizer, tests: list[data.Data], evaluations) -> list[ia2.Evaluation]:
    """The evaluations of label tasks, each corrected by a content-free query of its test."""
    corrected = []
    for test, evaluation in zip(tests, evaluations):
        prior = content_free_logprobs(model, tokenizer, test)
        corrected.append(correct_prior(evaluation, prior))
    return corrected


def correct_prior(evaluation: ia2.Evaluation, prior: Tensor) -> ia2.Evaluation:
    """The evaluation with log p(c | X) - log p(c | content-free) in place of log p(c | X).

    The labels keep their mass together. Where the likeliest token of the vocabulary is a label, the
    likeliest label by the corrected probabilities takes its place; elsewhere the answer stays no
    label. Activations stay, as nothing in the model changes.
    """
    answers = evaluation.label_answers
    mass = answers.label_logprobs.logsumexp(-1, keepdim=True)  # (N, 1)
    logprobs = (answers.label_logprobs - prior).log_softmax(-1) + mass  # (N, C)
    best = logprobs.max(-1)
    is_label = torch.isin(answers.tokens, answers.label_tokens)  # (N)
    corrected = replace(
        answers,
        tokens=torch.where(is_label, answers.label_tokens[best.indices], answers.tokens),
        confidence=torch.where(is_label, best.values.exp(), answers.confidence),
        label_logprobs=logprobs,
    )
    tokens = corrected.tokens.tolist()
    return replace(
        evaluation,
        scores={**metrics.label_scores(corrected), "outcomes": metrics.outcomes(corrected)},
        answers=tokens,
        confidence=corrected.confidence.tolist(),
        responses=[[token] for token in tokens],
        label_answers=corrected,
    )
