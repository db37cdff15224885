"""IA2, ICL Activation Alignment: teach a model to work inside as it does with demos in its prompt, then to answer.

    python ia2.py --dataset sst2 --n 4                    one few-shot set, the five main methods, a table
    python ia2.py --dataset sst2 --n 2 4 8 16 --sets 5 --lr 1e-4 3e-4 1e-3 --eval sst2 finsen     a sweep
    python ia2.py --report runs/results.jsonl             tables from results, nothing is run

Read from here down: the targets (the paper's A_ICL), the losses (equations in their docstrings), the stages and
methods that are made of them, one training loop, evaluation. The command line that runs them is in sweep.py.

Shapes: L layers, G output positions, d hidden size, V vocabulary, N examples.
"""
import random
import time
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

import data
import lora
import metrics
import model as base
import packing
from fetch import UserError
from tasks import Task

# ---- methods ------------------------------------------------------------------------------------------------------

# A stage is a sum of terms (loss, which response it is read on); a method is a list of stages on one adapter.
# `own` is the response that --sft-on chooses: the ground truth (gold) or the ICL run's (icl).
STAGES = {
    "ia2": (("ia2", "icl"),),
    "sft": (("sft", "own"),),
    "sft-icl": (("sft", "icl"),),
    "kd": (("kd", "icl"),),
    "ia2+sft": (("ia2", "icl"), ("sft", "own")),
}
METHODS = {
    "base": (),
    "icl": (),
    "sft": ("sft",),
    "ia2": ("ia2",),
    "ia2-sft": ("ia2", "sft"),
    "sft-ia2": ("sft", "ia2"),
    "ia2+sft": ("ia2+sft",),
    "sft-icl": ("sft-icl",),
    "kd": ("kd",),
}
MAIN_METHODS = ("base", "icl", "sft", "ia2", "ia2-sft")


# ---- targets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One example and what the ICL run of the base model leaves for it.

    query: tokens of X, no demos. icl: tokens of Yhat, the greedy response with demos (G). activations (L, G, d): the
    self-attention outputs of that run at the output positions. hidden (G, d): its last hidden states, whose vocabulary
    projection is the teacher's distribution (kept instead of (G, V) log-probabilities, which are V/d times larger).
    gold: tokens of the ground truth Y.
    """
    query: tuple
    icl: tuple
    activations: torch.Tensor
    hidden: torch.Tensor
    gold: tuple

    def response(self, which):
        return self.gold if which == "gold" else self.icl


def sequence(query, response, run=0):
    """X and Y as the model reads them: the last token of Y predicts nothing of the response, so it is left out."""
    return packing.Sequence((*query, *response[:-1]), len(response), run)


def prompt_tokens(model, tokenizer, demos, query, max_tokens=1):
    """The tokens of the demos and the query, joined by blank lines; with no demos, of the query alone.

    Raises UserError if they do not fit into the model's context; nothing is ever cut silently.
    """
    text = data.BLANK_LINE.join([*(demo.query + demo.response for demo in demos), query])
    tokens, limit = tuple(base.encode(tokenizer, text)), base.context_length(model)
    if len(tokens) + max_tokens > limit:
        raise UserError(f"a prompt with {len(demos)} demos has {len(tokens) + max_tokens} tokens with its response, "
                        f"more than the model's context of {limit}; use a smaller --n or --max-tokens, or shorter texts")
    return tokens


def gold_tokens(tokenizer, example, max_tokens):
    """The ground truth as tokens: a label's first token, or a free text up to `max_tokens`, end token included."""
    tokens = base.encode_response(tokenizer, example.response)
    return tuple(tokens[:1] if example.label is not None else [*tokens, tokenizer.eos_token_id][:max_tokens])


@torch.inference_mode()
def collect_targets(model, tokenizer, examples, demos, max_tokens=1):
    """ICL targets of `examples`, each with its own list of demos in front (the paper's A_ICL, leave-one-out).

    The base model answers greedily: one token for label tasks, else up to `max_tokens` by one generation with a KV
    cache, then one forward pass over demos + X + Yhat reads the activations. Adapters are switched off meanwhile.
    """
    with lora.disable(model):
        prompts = [prompt_tokens(model, tokenizer, before, example.query, max_tokens)
                   for example, before in zip(examples, demos)]
        responses = [(0,)] * len(prompts)  # of one token: read off the forward pass below
        if max_tokens > 1:
            responses = [tuple(tokens) for tokens in base.generate(model, tokenizer, prompts, max_tokens)]
        sequences = [sequence(prompt, response) for prompt, response in zip(prompts, responses)]
        targets = [None] * len(examples)
        for placed, output in base.forward(model, sequences, capture=True):
            for number, places in placed:
                targets[number] = make_target(model, tokenizer, examples[number], output, places, max_tokens,
                                              responses[number] if max_tokens > 1 else None)
    return targets


def make_target(model, tokenizer, example, output, places, max_tokens, response=None):
    """The Target of one example from its places in an ICL pass; without a response, the likeliest token is it."""
    hidden = output.hidden[places].clone()
    if response is None:
        response = tuple(base.logits(model, hidden).argmax(-1).tolist())
    return Target(tuple(base.encode(tokenizer, example.query)), response, output.activations[:, places].clone(), hidden,
                  gold_tokens(tokenizer, example, max_tokens))


def few_shot_targets(model, tokenizer, few_shot, max_tokens=1, each=False):
    """(training targets, dev targets): leave-one-out demos for the first, all training examples for the second.

    With `each`, see data.leave_one_out."""
    demos = [data.leave_one_out(few_shot, place, each) for place in range(len(few_shot.train))]
    demos += [few_shot.train] * len(few_shot.dev)
    targets = collect_targets(model, tokenizer, few_shot.train + few_shot.dev, demos, max_tokens)
    return targets[:len(few_shot.train)], targets[len(few_shot.train):]


# ---- losses of one example ------------------------------------------------------------------------------------------


def ia2_loss(activations, icl_activations):
    """L_IA2 = sum_l mean_{g,d} (A - A_icl)^2, both (L, G, d) (the paper's L_IA2, as a mean over tokens and features)."""
    return (activations.float() - icl_activations.float()).square().mean(dim=(1, 2)).sum()


def sft_loss(logits, response):
    """L_SFT = mean_g -log p(y_g | X, y_<g), logits (G, V), response (G) of token ids."""
    return F.cross_entropy(logits.float(), response)


def kd_loss(logits, teacher_logits):
    """L_KD = mean_g KL(p_icl || p) over the vocabulary, both (G, V) (soft labels; Hinton et al., 2015)."""
    return F.kl_div(logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1), log_target=True,
                    reduction="batchmean")


@dataclass(frozen=True)
class Stage:
    """One training phase: the loss terms of STAGES, with `own` resolved, and the weight of SFT in a joint stage."""
    name: str
    terms: tuple
    beta: float | None = None

    def sequences(self, target, run=0):
        """The forward passes that one example needs: {Sequence: [(loss, response tokens)]}; equal ones are one."""
        passes = {}
        for loss, which in self.terms:
            response = target.response(which)
            passes.setdefault(sequence(target.query, response, run), []).append((loss, response))
        return passes

    def loss(self, model, terms, output, places, target, beta=1.0):
        """The loss of one pass of one example; `places` are its output positions in `output`."""
        total = 0.0
        scores = None
        if any(loss != "ia2" for loss, _ in terms):  # IA2 alone never pays for the vocabulary projection
            scores = base.logits(model, output.hidden[places])
        for loss, response in terms:
            if loss == "ia2":
                total = total + ia2_loss(output.activations[:, places], target.activations)
            elif loss == "kd":
                total = total + kd_loss(scores, base.logits(model, target.hidden))
            else:
                weight = beta if len(self.terms) > 1 else 1.0
                total = total + weight * sft_loss(scores, torch.tensor(response, device=scores.device))
        return total


def stage(name, sft_on=None, beta=None):
    """The Stage `name`. `sft_on` is gold or icl; by default gold for a stage of SFT alone, icl for the joint one."""
    own = sft_on or ("icl" if len(STAGES[name]) > 1 else "gold")
    return Stage(name, tuple((loss, own if which == "own" else which) for loss, which in STAGES[name]), beta)


BATCH = 4  # examples a step at most

# ---- training -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One adapter in training: its number among the model's runs, its targets, learning rate and what came of it."""
    number: int
    train: list
    dev: list
    lr: float
    seed: str = "0"
    beta: float = 1.0
    steps: int = 0
    best_step: int = 0
    dev_loss: float = float("inf")
    seconds: float = 0.0
    history: list = field(default_factory=list)   # (step, mean training loss since the last entry, dev loss)
    best: dict = None
    recent: list = field(default_factory=list)
    waited: int = 0

    def batches(self, size, epochs):
        """Batches of training targets, each epoch in a new order drawn from the run's seed."""
        rng = random.Random(f"batches-{self.seed}")
        for _ in range(epochs):
            order = rng.sample(range(len(self.train)), len(self.train))
            for start in range(0, len(order), size):
                yield [self.train[place] for place in order[start:start + size]]


def losses(model, kind, batches, backward=False):
    """The stage's loss of each run on its batch: {run number: mean over examples}, all runs in shared passes.

    `batches` is [(Run, targets)]. With `backward`, gradients are summed up pass by pass, so that memory is bounded;
    an example's gradient reaches the adapter of its own run only.
    """
    work = [(run, target, 1 / len(targets), tokens, terms) for run, targets in batches for target in targets
            for tokens, terms in kind.sequences(target, run.number).items()]
    totals = {run.number: 0.0 for run, _ in batches}
    read = {loss for loss, _ in kind.terms}
    with torch.set_grad_enabled(backward):
        for placed, output in base.forward(model, [tokens for *_, tokens, _ in work], capture="ia2" in read,
                                           hidden=read != {"ia2"}):
            total = 0.0
            for number, places in placed:
                run, target, weight, _, terms = work[number]
                loss = weight * kind.loss(model, terms, output, places, target, run.beta)
                totals[run.number] += loss.item()
                total = total + loss
            if backward:
                total.backward()
    return totals


def start_beta(model, kind, run):
    """The weight of L_SFT in a joint stage that makes both terms equal on the untrained model.

    L_IA2 depends on the model's scale (100 is common) and L_SFT does not, so a fixed weight would mean something else
    for each model. L_SFT counts as 0.1 at least, so that an ICL response that the base model gives anyway does not
    make the weight explode.
    """
    with torch.no_grad():
        ia2, sft = (losses(model, replace(kind, terms=(term,)), [(run, run.train)])[run.number] for term in kind.terms)
    return ia2 / max(sft, 0.1)


def train(model, kind, runs, max_epochs=50, batch_size=BATCH, eval_every=2, patience=5, report=lambda *values: None):
    """Train the adapters of `runs` on the stage `kind`, together; each comes out as if it had been trained alone.

    Adam without weight decay, up to `batch_size` examples a step, `max_epochs` at most. Every `eval_every` steps each
    run's dev loss is read (the stage's own loss); after `patience` readings without improvement the run leaves the
    batch. At the end every run is back at its best adapter, a real copy of its weights.
    Raises UserError when a loss is not finite.
    """
    optimiser = torch.optim.Adam([{"params": lora.parameters(model, run.number), "lr": run.lr} for run in runs], fused=True)
    queues = {run.number: run.batches(batch_size, max_epochs) for run in runs}
    last = {run.number: max_epochs * -(-len(run.train) // batch_size) for run in runs}
    for run in runs:
        if len(kind.terms) > 1:
            run.beta = start_beta(model, kind, run) if kind.beta is None else kind.beta
    active, start, step = list(runs), time.perf_counter(), 0
    while active:
        step += 1
        found = losses(model, kind, [(run, next(queues[run.number])) for run in active], backward=True)
        for run in active:
            check_finite(found[run.number], kind, run, step)
            run.recent.append(found[run.number])
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        due = [run for run in active if step % eval_every == 0 or step == last[run.number]]
        if due:
            found = losses(model, kind, [(run, run.dev) for run in due])
        for run in due:
            check_finite(found[run.number], kind, run, step)
            run.history.append((step, sum(run.recent) / len(run.recent), found[run.number]))
            run.recent, run.waited = [], run.waited + 1
            if found[run.number] < run.dev_loss:
                run.dev_loss, run.best_step, run.waited = found[run.number], step, 0
                run.best = lora.get_state(model, run.number)
        for run in active:
            run.steps, run.seconds = step, time.perf_counter() - start
        active = [run for run in active if run.waited < patience and step < last[run.number]]
        report(step, active, runs)
    for run in runs:
        lora.set_state(model, run.best, run.number)


def check_finite(loss, kind, run, step):
    if not torch.isfinite(torch.tensor(loss)):
        raise UserError(f"the {kind.name} loss is {loss} at step {step} with learning rate {run.lr:g}; "
                        "training has diverged: use a smaller --lr")


# ---- evaluation -----------------------------------------------------------------------------------------------------

ASIM_QUERIES = (200, 8)  # held-out queries whose activations are compared: label tasks, free text (G times larger each)


@dataclass(frozen=True)
class Exam:
    """Test queries of one task and how they are answered: tokens of the labels, or a parser for free text."""
    task: Task
    examples: list
    label_tokens: list
    max_tokens: int
    bins: int = 15


@torch.inference_mode()
def evaluate(model, tokenizer, exam, runs=None, demos=(), references=None, report=lambda count: None):
    """Score adapters, or the base model, on an exam: one dict of figures a run (see metrics.label_scores).

    `runs` are run numbers, all answered in shared passes. None is the base model: with `demos` in front of every query
    (icl; the figures then hold its `targets` on the first queries), or without (base). `references` holds, for each
    run, such targets; the figures then hold the `asim_table` (L, G) with them.
    """
    if runs is None:
        with lora.disable(model):
            return evaluate(model, tokenizer, exam, [0], demos, references, report)
    prompts = [prompt_tokens(model, tokenizer, demos, example.query, exam.max_tokens) for example in exam.examples]
    prefix = None
    if demos:  # encoded once; all queries share its keys and values
        common = base.split_prefix(prompts)
        prefix, prompts = base.encode_prefix(model, common), [prompt[len(common):] for prompt in prompts]
    way = answer_labels if exam.task.labels else answer_texts
    return way(model, tokenizer, exam, prompts, prefix, runs, references, report)


def answer_labels(model, tokenizer, exam, prompts, prefix, runs, references, report):
    """Probabilities of the label words at each query's last token; activations are read in the same pass."""
    many, wanted = len(prompts), exam.label_tokens
    probabilities, top1 = torch.zeros(len(runs), many, len(wanted)), torch.zeros(len(runs), many)
    tables, targets = [metrics.MeanTable() for _ in runs], [None] * min(many, ASIM_QUERIES[0])
    work = [packing.Sequence(prompt, 1, run) for run in runs for prompt in prompts]
    for placed, output in base.forward(model, work, prefix, capture=bool(prefix or references)):
        chosen, best = label_probabilities(model, output.hidden, wanted)
        for number, places in placed:
            run, query = divmod(number, many)
            example = exam.examples[query]
            probabilities[run, query] = chosen[places.start]
            top1[run, query] = best[places.start] == wanted[example.label]
            if references and query < len(references[run]):
                tables[run].add(metrics.asim(output.activations[:, places], references[run][query].activations))
            elif prefix and query < len(targets):
                targets[query] = make_target(model, tokenizer, example, output, places, 1)
        report(len(placed))
    labels = [example.label for example in exam.examples]
    return [{**metrics.label_scores(probabilities[run], labels, top1[run], exam.bins),
             "asim_table": tables[run].table(), "targets": targets} for run in range(len(runs))]


def label_probabilities(model, hidden, wanted, chunk=32):
    """hidden (N, d) -> (probabilities (N, C) of the label tokens, likeliest token (N)), without N x V numbers at once."""
    found = []
    for some in hidden.split(chunk):
        scores = base.logits(model, some).float().softmax(-1)
        found.append((scores[:, wanted], scores.argmax(-1)))
    chosen, best = zip(*found)
    return torch.cat(chosen).cpu(), torch.cat(best).cpu()


def answer_texts(model, tokenizer, exam, prompts, prefix, runs, references, report):
    """Greedy answers, parsed and compared; activations are read in a pass of their own over X + Yhat_icl."""
    many, tables, targets = len(prompts), [metrics.MeanTable() for _ in runs], [None] * min(len(prompts), ASIM_QUERIES[1])
    owners = [run for run in runs for _ in prompts]
    tokens = base.generate(model, tokenizer, prompts * len(runs), exam.max_tokens, prefix, owners, data.BLANK_LINE, report)
    texts = [tokenizer.decode(answer, skip_special_tokens=True).strip().split(data.BLANK_LINE)[0] for answer in tokens]
    expected = [exam.task.parse(example.response) for example in exam.examples]
    correct = [exam.task.same(exam.task.parse(text), expected[place % many]) for place, text in enumerate(texts)]
    if references:
        work = [(run, target, sequence(target.query, target.icl, runs[run]))
                for run in range(len(runs)) for target in references[run]]
        for placed, output in base.forward(model, [tokens for *_, tokens in work], capture=True):
            for number, places in placed:
                run, target, _ = work[number]
                tables[run].add(metrics.asim(output.activations[:, places], target.activations))
    elif prefix:
        work = [sequence(prompts[query], tokens[query]) for query in range(len(targets))]
        for placed, output in base.forward(model, work, prefix, capture=True):
            for query, places in placed:
                targets[query] = make_target(model, tokenizer, exam.examples[query], output, places, exam.max_tokens,
                                             tuple(tokens[query]))
    return [{"accuracy": sum(correct[many * run:many * (run + 1)]) / many, "accuracy_top1": None, "ece": None,
             "asim_table": tables[run].table(), "targets": targets, "answers": texts[many * run:many * (run + 1)]}
            for run in range(len(runs))]


if __name__ == "__main__":
    import sys

    import sweep  # the command line; it imports this file under its own name

    sys.exit(sweep.main())
