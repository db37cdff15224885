"""IA2, ICL Activation Alignment (ICLR 2026): distil what demonstrations do inside a model into its
weights, then fine-tune.

    python ia2.py --dataset sst2 --n 4

The teacher is the model with demonstrations (demos) in its prompt, the student is the same model
without them. IA2 trains LoRA until the student's self-attention outputs are the teacher's. Ordinary
supervised fine-tuning (SFT) follows.

Shapes: B batch, T tokens, L layers, G output positions of an example, N of a batch, d hidden size,
V vocabulary.
"""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import data
import lora
import metrics
from engine import cpu, models, peft_files, running
from support import cli, records
from support.cli import UserError, log

# ---- 1. What self-attention puts out -------------------------------------------------------------


@contextmanager
def read_attention(model, rows: list[int], columns: list[int]) -> Iterator[list[Tensor]]:
    """Yield a list that the next pass fills: what each layer's self-attention puts out at N
    positions, L tensors (N, d).

    It is read after W_O and before the residual addition: the paper's SA(.).
    """
    outputs = []

    def hook(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output  # (B, T, d)
        outputs.append(hidden[rows, columns])

    handles = [layer.self_attn.register_forward_hook(hook) for layer in model.get_decoder().layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Reading:
    """What the model did at the G positions that predict an example's response."""

    activations: Tensor  # A (L, G, d)
    logits: Tensor  # (G, V)


def forward(model, prompts, responses=None, prefix=None, edit=None) -> list[Reading]:
    """Run prompts followed by their responses (lists of token ids) in one batch; a Reading of each.

    A response is predicted at the prompt's last token and at all its own tokens but the last.
    Without responses, only the token after each prompt is predicted (G = 1). `prefix` is a cache of
    tokens that stand before every prompt. With `edit` the pass goes on with other outputs of
    self-attention (see `running.edit_attention`).
    """
    if responses is None:
        inputs = prompts
        sizes = [1] * len(prompts)
    else:
        inputs = [prompt + response[:-1] for prompt, response in zip(prompts, responses)]
        sizes = [len(response) for response in responses]
    rows, columns = [], []  # the N output positions of the batch
    for b, (prompt, size) in enumerate(zip(prompts, sizes)):
        rows += [b] * size
        columns += range(len(prompt) - 1, len(prompt) - 1 + size)
    with (
        running.edit_attention(model, rows, columns, edit),
        read_attention(model, rows, columns) as outputs,
    ):
        logits = running.logits_at(model, inputs, rows, columns, prefix)  # (N, V)
    activations = torch.stack(outputs)  # (L, N, d)
    return [Reading(A, z) for A, z in zip(activations.split(sizes, dim=1), logits.split(sizes))]


# ---- 2. Targets: the teacher's activations, A_ICL ------------------------------------------------


@dataclass
class Target:
    """One training example and what the teacher leaves for it."""

    teacher_prompt: list[int]  # I + X, demos and query
    student_prompt: list[int]  # X, without demos
    gold: list[int]  # Y, the true response
    Y_icl: list[int]  # Yhat, the teacher's own response
    A_icl: Tensor  # (L, G, d), the teacher's activations where it predicts Yhat


@torch.no_grad()
def collect_target(model, tokenizer, example, demos, max_tokens=1) -> Target:
    """Let the teacher, the base model behind demos, answer an example; keep its activations."""
    teacher_prompt = data.prompt_tokens(tokenizer, demos, example.query)
    student_prompt = data.prompt_tokens(tokenizer, [], example.query)
    gold = data.gold_tokens(tokenizer, example, max_tokens)
    running.check_length(model, teacher_prompt, max_tokens)
    with lora.disable(model):
        if max_tokens == 1:
            [reading] = forward(model, [teacher_prompt])
            Y_icl = [reading.logits[0].argmax().item()]
        else:
            # Encoded once: the cache serves the generation and the pass that reads A_ICL.
            prefix, rests = running.share_prefix(model, [teacher_prompt])
            [Y_icl] = running.generate(model, tokenizer, rests, max_tokens, prefix)
            [reading] = forward(model, rests, [Y_icl], prefix)
    return Target(teacher_prompt, student_prompt, gold, Y_icl, reading.activations)


def few_shot_targets(model, tokenizer, few_shot, max_tokens=1) -> tuple[list[Target], list[Target]]:
    """Targets of the training examples, each with the others as demos (leave-one-out), and of the
    dev examples, with all training examples as demos.
    """
    targets = []
    for i, example in enumerate(few_shot.train):
        demos = data.leave_one_out(few_shot, i)
        targets.append(collect_target(model, tokenizer, example, demos, max_tokens))
    dev = []
    for example in few_shot.dev:
        dev.append(collect_target(model, tokenizer, example, few_shot.demos, max_tokens))
    if few_shot.train[0].label is None:
        say_if_cut(targets + dev, tokenizer.eos_token_id, max_tokens)
    return targets, dev


def say_if_cut(targets: list[Target], end: int, max_tokens: int) -> None:
    """Print how many free-text responses do not fit, and therefore lack their end token."""
    cut = [target for target in targets if target.gold[-1] != end]
    if cut:
        log(f"{len(cut)} of {len(targets)} responses are cut to {max_tokens} tokens (--max-tokens)")


# ---- 3. Losses -----------------------------------------------------------------------------------


def ia2_loss(model, batch: list[Target]) -> Tensor:
    """L_IA2 = mean_i sum_l mean_{g,d} (A - A_ICL)^2: the student, fed X and Yhat, matches the
    teacher inside. The example's own true response is not used.
    """
    prompts = [target.student_prompt for target in batch]
    readings = forward(model, prompts, [target.Y_icl for target in batch])
    losses = []
    for reading, target in zip(readings, batch):
        difference = reading.activations.float() - target.A_icl.float()  # (L, G, d)
        losses.append(difference.square().mean(dim=(1, 2)).sum())
    return torch.stack(losses).mean()


def sft_loss(model, batch: list[Target]) -> Tensor:
    """L_SFT = -log p(Y | X), the mean over the tokens of Y, then over examples."""
    prompts = [target.student_prompt for target in batch]
    readings = forward(model, prompts, [target.gold for target in batch])
    losses = []
    for reading, target in zip(readings, batch):
        gold = torch.tensor(target.gold, device=reading.logits.device)
        losses.append(F.cross_entropy(reading.logits.float(), gold))
    return torch.stack(losses).mean()


# A method is a path of stages; each stage trains the adapter that the path before it left. `main`
# makes them in this order.
METHODS = {
    "sft": (sft_loss,),
    "ia2": (ia2_loss,),
    "ia2-sft": (ia2_loss, sft_loss),
}

# ---- 4. Training: where a loss is minimised ------------------------------------------------------


@dataclass
class Recipe:
    """How a stage is trained."""

    lr: float = 3e-4
    epochs: int = 50
    batch_size: int = 4
    patience: int = 5  # readings of the dev loss without improvement, then training stops
    keep: str = "best"  # the adapter with the lowest dev loss, or the "last"
    seed: str = "0-0"  # of the order of the examples


@dataclass
class Stage:
    """How a stage of training went."""

    name: str
    history: list[tuple[int, float, float]] = field(default_factory=list)  # step, loss, dev loss
    first_loss: float = math.nan  # of the first batch, before any step
    steps: int = 0
    kept_step: int = 0  # the step whose adapter was kept
    dev_loss: float = math.inf  # of that adapter
    seconds: float = 0.0


def train(model, loss_fn: Callable, targets, dev, recipe: Recipe) -> Stage:
    """Minimise a loss over the adapter with Adam.

    The dev loss is read every second step and at the end of each epoch, so at every step for up to
    four examples; training stops after `patience` readings without improvement. Unless the recipe
    keeps the last adapter, the one with the lowest dev loss of those read is put back, never the
    one that the stage began with. Raises UserError if a loss is not finite.
    """
    stage = Stage(loss_fn.__name__.removesuffix("_loss"))
    optimizer = torch.optim.Adam(lora.weights(model).values(), recipe.lr, fused=True)
    steps_an_epoch = math.ceil(len(targets) / recipe.batch_size)
    start = time.perf_counter()
    recent = []  # training losses since the last reading
    without_improvement = 0  # readings since the best one
    for step, batch in enumerate(batches(targets, recipe, stage.name), start=1):
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step == 1:
            stage.first_loss = loss.item()
        is_read = step % 2 == 0 or step % steps_an_epoch == 0
        if not is_read:
            continue
        dev_loss = average_loss(model, loss_fn, dev)
        stage.history.append((step, sum(recent) / len(recent), dev_loss))
        stage.steps = step
        recent.clear()
        check_and_log(stage)
        if dev_loss < stage.dev_loss:
            stage.dev_loss = dev_loss
            stage.kept_step = step
            best = lora.state(model)
            without_improvement = 0
        else:
            without_improvement += 1
        if without_improvement == recipe.patience:
            break
    if recipe.keep == "best":
        lora.load_state(model, best)
    else:
        stage.kept_step = stage.steps
        stage.dev_loss = dev_loss
    stage.seconds = time.perf_counter() - start
    return stage


def batches(targets, recipe: Recipe, name: str) -> Iterator[list[Target]]:
    """The batches of all epochs; each epoch has the examples in a new order."""
    rng = random.Random(f"batches-{recipe.seed}-{name}")
    for _ in range(recipe.epochs):
        order = rng.sample(targets, len(targets))
        for start in range(0, len(order), recipe.batch_size):
            yield order[start : start + recipe.batch_size]


@torch.no_grad()
def average_loss(model, loss_fn: Callable, targets, batch_size=4) -> float:
    """A loss over all targets, a few at a time so that memory is bounded."""
    total = 0.0
    for start in range(0, len(targets), batch_size):
        batch = targets[start : start + batch_size]
        total += loss_fn(model, batch).item() * len(batch)
    return total / len(targets)


def check_and_log(stage: Stage) -> None:
    """Stop at a loss that is not finite; print every fifth reading."""
    step, loss, dev_loss = stage.history[-1]
    if not math.isfinite(loss + dev_loss):
        raise UserError(
            f"the {stage.name} loss is {loss} and the dev loss {dev_loss} at step {step}; training "
            "has diverged: use a smaller --lr"
        )
    if len(stage.history) % 5 == 1:
        log(f"{stage.name}: step {step}, loss {loss:.4g}, dev loss {dev_loss:.4g}")


@dataclass
class Trained:
    """Where a path of stages ended."""

    adapter: dict[str, Tensor]
    stages: list[Stage]


def follow(model, path: tuple, targets, dev, recipe: Recipe, trained: dict) -> list[Stage]:
    """Train a path's stages one after the other and leave the last adapter on the model.

    `trained` maps paths to where they ended, () to the start. What is in it is not trained again:
    `ia2-sft` begins with the adapter that `ia2` left. Examples and recipe are those of every stage
    that is still to be trained.
    """
    if path not in trained:
        stages = follow(model, path[:-1], targets, dev, recipe, trained)
        stage = train(model, path[-1], targets, dev, recipe)
        trained[path] = Trained(lora.state(model), [*stages, stage])
    lora.load_state(model, trained[path].adapter)
    return trained[path].stages


# ---- 5. Evaluation -------------------------------------------------------------------------------

COMPARED_TEXTS = 8  # free-text queries whose activations are compared: they are G times larger


@dataclass
class Evaluation:
    """What one state of the model did on the test queries of a task."""

    scores: dict
    answers: list  # to each query: a token, or what the parser finds in the text
    confidence: list  # the probability of that token; None for free text
    responses: list[list[int]]
    activations: list[Tensor]  # (L, G, d) of each query; of free text, of the first ones only
    label_answers: metrics.LabelAnswers | None = None  # what the scores of a label task are made of


def evaluate(model, tokenizer, test, few_shot=None, icl=None, edit=None) -> Evaluation:
    """Answer the held-out queries of `test`, behind the demos of `few_shot` (ICL) or alone.

    `icl` is ICL's Evaluation. Of free text, activations are read over ICL's responses, so that both
    can be compared; a label's are read where its one token is predicted. `edit` changes what
    self-attention puts out there (see `running.edit_attention`).
    """
    if test.label_tokens:
        return evaluate_labels(model, tokenizer, test, few_shot, edit)
    return evaluate_texts(model, tokenizer, test, few_shot, icl, edit)


@dataclass
class Pass:
    """Queries that run together."""

    numbers: list[int]
    prompts: list[list[int]]  # whole
    rests: list[list[int]]  # what is left of them behind the prefix
    prefix: object  # the cache of what they share, or None


def passes(model, tokenizer, test, few_shot=None, size=data.BLOCK) -> Iterator[Pass]:
    """The test queries, `size` at a time; demos are encoded once for a block of queries."""
    blocks = data.query_blocks(tokenizer, test.test, few_shot)
    for block in tqdm(blocks, unit="block", leave=False, disable=None):
        running.check_length(model, max(block.prompts, key=len), test.max_tokens)
        prefix = None
        rests = block.prompts
        if few_shot:
            prefix, rests = running.share_prefix(model, block.prompts)
        for start in range(0, len(rests), size):
            part = slice(start, start + size)
            yield Pass(block.numbers[part], block.prompts[part], rests[part], prefix)


@dataclass
class NextToken:
    """What a label task needs of one query's Reading: the rest of the vocabulary is let go."""

    token: int
    confidence: float
    label_logprobs: Tensor  # (C)
    activations: Tensor  # (L, 1, d)


def next_token(reading: Reading, label_tokens: list[int]) -> NextToken:
    """The likeliest next token, its probability, and the labels' log-probabilities."""
    logprobs = reading.logits[0].float().log_softmax(-1)  # (V)
    best = logprobs.max(-1)
    labels = logprobs[label_tokens].cpu()
    return NextToken(best.indices.item(), best.values.exp().item(), labels, reading.activations)


@torch.no_grad()
def evaluate_labels(model, tokenizer, test, few_shot=None, edit=None) -> Evaluation:
    """The next token after each query is the answer; its activations come from the same pass."""
    found = {}
    size = data.BLOCK // 2 if few_shot else data.BLOCK  # halves of similar lengths
    for each in passes(model, tokenizer, test, few_shot, size):
        readings = forward(model, each.rests, None, each.prefix, edit)
        for number, reading in zip(each.numbers, readings):
            found[number] = next_token(reading, test.label_tokens)
    ordered = [found[number] for number in range(len(test.test))]
    tokens = [each.token for each in ordered]
    confidence = [each.confidence for each in ordered]
    answers = metrics.LabelAnswers(
        tokens=torch.tensor(tokens),
        confidence=torch.tensor(confidence),
        label_logprobs=torch.stack([each.label_logprobs for each in ordered]),
        label_tokens=torch.tensor(test.label_tokens),
        labels=torch.tensor([example.label for example in test.test]),
    )
    scores = {**metrics.label_scores(answers), "outcomes": metrics.outcomes(answers)}
    activations = [each.activations for each in ordered]
    responses = [[token] for token in tokens]
    return Evaluation(scores, tokens, confidence, responses, activations, answers)


@torch.no_grad()
def evaluate_texts(model, tokenizer, test, few_shot=None, icl=None, edit=None) -> Evaluation:
    """Greedy texts up to a blank line, parsed and compared; activations in passes of their own."""
    prompts = {}
    texts = {}
    for each in passes(model, tokenizer, test, few_shot):
        prompts.update(zip(each.numbers, each.prompts))
        with running.edit_attention(model, slice(None), -1, edit):
            generated = running.generate(
                model, tokenizer, each.rests, test.max_tokens, each.prefix, data.BLANK_LINE
            )
        texts.update(zip(each.numbers, generated))
    responses = [texts[number] for number in range(len(test.test))]
    ends = running.end_tokens(model, tokenizer)
    answers, right = data.read_answers(tokenizer, test, responses, ends)
    compared = icl.responses if icl else responses
    activations = []
    for number, response in enumerate(compared[:COMPARED_TEXTS]):
        [reading] = forward(model, [prompts[number]], [response], edit=edit)
        activations.append(reading.activations)
    scores = {"accuracy": sum(right) / len(right), "outcomes": right}
    return Evaluation(scores, answers, [None] * len(answers), responses, activations)


def compare(evaluation: Evaluation, icl: Evaluation) -> dict:
    """Its scores, and how near it is to ICL: inside (`asim`, also with each side's mean over the
    queries taken off), and in its answers (`agreement`; two texts without an answer do not agree).
    """
    by_query = []
    for A, A_icl in zip(evaluation.activations, icl.activations):
        by_query.append(metrics.asim(A, A_icl).mean(dim=1))  # (L)
    layers = torch.stack(by_query).mean(dim=0).tolist()
    centred = metrics.asim_centred(evaluation.activations, icl.activations)  # (L)
    same = []
    for answer, other in zip(evaluation.answers, icl.answers):
        same.append(answer not in (None, "") and answer == other)
    return {
        **evaluation.scores,
        "asim": sum(layers) / len(layers),
        "asim_layers": [round(value, 6) for value in layers],
        "asim_centred": centred.mean().item(),
        "agreement": sum(same) / len(same),
    }


@torch.no_grad()
def next_logprobs(model, prompts, edit=None) -> Tensor:
    """Log-probabilities (Q, V) of the token after each prompt."""
    rows = []
    for start in range(0, len(prompts), data.BLOCK):
        for reading in forward(model, prompts[start : start + data.BLOCK], edit=edit):
            rows.append(reading.logits[0].float().log_softmax(-1))
    return torch.stack(rows)


# ---- 6. The experiment ---------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """The paper's experiment on one few-shot set: baselines, targets, and each method's stages."""
    parser = cli.experiment_parser(SUMMARY, ("base", "icl", *METHODS), tuple(METHODS))
    args = parser.parse_args(argv)
    records.make_out(args.out)
    choice = models.find(args.model, args.device)
    options = data.Options.of(args, choice.entry)
    task, tests = data.load_with_tests(args.dataset, args.eval or [], choice.tokenizer, options)
    balanced = data.balance(task, args.balanced, choice.entry.balanced)
    few_shot = data.few_shot_set(task.pool, args.n, args.set, args.seed, balanced)
    tests = [data.draw_test(test, args.test, args.seed, args.set) for test in tests]
    setup = set_up(choice, task, tests, args.rank)  # the model comes last: it may be large
    model, tokenizer = setup.model, setup.tokenizer

    with lora.disable(model):
        icl = evaluate_all(model, tokenizer, tests, few_shot)
        base = evaluate_all(model, tokenizer, tests, icl=icl)
    settings = {**setup.settings, **data.training_settings(task, few_shot, balanced)}
    results = Results(args.out, settings, cli.command_line("ia2.py", argv), tests, icl)
    results.add("base", base)
    results.add("icl", icl)

    targets, dev = few_shot_targets(model, tokenizer, few_shot, task.max_tokens)
    recipe = Recipe(args.lr, args.epochs, keep=args.keep, seed=f"{args.seed}-{args.set}")
    lora.reset(model, seed=1000 * args.seed + args.set)
    trained = {(): Trained(lora.state(model), [])}  # IA2 stays in it, for ia2-sft to begin with
    for method, path in METHODS.items():
        if method in args.methods:
            stages = follow(model, path, targets, dev, recipe, trained)
            evaluations = evaluate_all(model, tokenizer, tests, icl=icl)
            training = describe(setup, few_shot, recipe, stages, targets, dev)
            results.add(method, evaluations, training)
    print(results.text(tokenizer, model))


# ---- 7. Around it: set-up, and what is written down ----------------------------------------------

SUMMARY = __doc__.split("\n\n")[0]


@dataclass
class Setup:
    """A model with an adapter that changes nothing yet, and what it is trained and tested on."""

    model: torch.nn.Module
    tokenizer: object
    task: data.Data
    tests: list[data.Data]
    rank: int  # of the adapter
    settings: dict  # what every row says of the model
    unrelated: list[list[int]]  # prompts that have nothing to do with the task
    unrelated_logprobs: Tensor | None  # (Q, V), of the base model after them


def set_up(choice: models.ModelChoice, task: data.Data, tests: list, rank: int) -> Setup:
    """Load the model, and let the base model read the texts on which forgetting is measured."""
    unrelated = data.unrelated_prompts(choice.tokenizer, leave_out=[task, *tests])
    model = models.load_model(choice)
    cpu.speed_up(model)
    lora.add(model, rank, alpha=rank)
    with lora.disable(model):
        logprobs = next_logprobs(model, unrelated) if unrelated else None
    settings = models.settings(choice, model)
    return Setup(model, choice.tokenizer, task, tests, rank, settings, unrelated, logprobs)


def evaluate_all(model, tokenizer, tests, few_shot=None, icl=None, edit=None) -> list[Evaluation]:
    """An Evaluation on each test; `icl` are ICL's."""
    evaluations = []
    for i, test in enumerate(tests):
        reference = icl[i] if icl else None
        evaluations.append(evaluate(model, tokenizer, test, few_shot, reference, edit))
    return evaluations


def forgetting(setup: Setup, edit=None) -> float | None:
    """How far tuning moved the model elsewhere: mean KL(base || now) of the next token after texts
    that have nothing to do with the task, in nats.
    """
    prompts = setup.unrelated
    if not prompts:
        return None
    total = 0.0
    for start in range(0, len(prompts), data.BLOCK):  # a few at a time: the vocabulary is large
        part = slice(start, start + data.BLOCK)
        now = next_logprobs(setup.model, prompts[part], edit)
        total += metrics.mean_kl(setup.unrelated_logprobs[part], now) * len(now)
    return total / len(prompts)


@dataclass
class Training:
    """What the rows of a trained method say beyond its scores."""

    settings: dict  # how it was trained
    left: dict  # what training left
    save: Callable  # writes the adapter into a folder


def describe(setup: Setup, few_shot, recipe: Recipe, stages, targets, dev) -> Training:
    """The Training of the adapter that is on the model."""
    model = setup.model
    settings = {
        "lr": recipe.lr,
        "rank": setup.rank,
        "epochs": recipe.epochs,
        "keep": recipe.keep,
    }
    left = {
        "stages": [asdict(stage) for stage in stages],
        "dev_gold_loss": average_loss(model, sft_loss, dev),
        "teacher_right": teacher_right(setup, few_shot, targets),
        "forgets": forgetting(setup),
        "peak_memory_gb": round(running.peak_memory(model.device) / 1e9, 3),
    }
    return Training(settings, left, lambda folder: peft_files.save(model, folder))


def teacher_right(setup: Setup, few_shot, targets: list[Target]) -> float:
    """The share of training examples that the leave-one-out teacher answers right."""
    if setup.task.label_tokens:
        right = [target.Y_icl == target.gold for target in targets]
    else:
        examples = replace(setup.task, test=few_shot.train)
        ends = running.end_tokens(setup.model, setup.tokenizer)
        responses = [target.Y_icl for target in targets]
        _, right = data.read_answers(setup.tokenizer, examples, responses, ends)
    return sum(right) / len(right)


class Results:
    """Writes a method's rows and adapter as soon as they are there; tells all at the end."""

    def __init__(self, out: str, settings: dict, command: str, tests, icl: list[Evaluation]):
        self.out = out
        self.settings = settings
        self.command = command
        self.tests = tests
        self.icl = icl
        self.rows: list[dict] = []
        self.evaluations: dict[str, list[Evaluation]] = {}

    def add(self, method: str, evaluations: list[Evaluation], training=None) -> None:
        """A row for each test."""
        settings = {**self.settings, "method": method, **(training.settings if training else {})}
        scores = []
        for test, evaluation, reference in zip(self.tests, evaluations, self.icl):
            scores.append({**data.test_settings(test), **compare(evaluation, reference)})
        left = training.left if training else None
        save = training.save if training else None
        self.rows += records.add_rows(self.out, settings, scores, self.command, left, save)
        # What is shown at the end; the activations are large.
        self.evaluations[method] = [replace(each, activations=[]) for each in evaluations]

    def text(self, tokenizer, model) -> str:
        """Three queries with each method's answer, the table, and `key: value` lines."""
        samples = {}
        for method, [evaluation, *_] in self.evaluations.items():
            samples[method] = sample_answers(tokenizer, evaluation)
        queries = [(example.query, example.response) for example in self.tests[0].test]
        memory = running.peak_memory(model.device)
        parts = [
            records.show_samples(queries, samples),
            records.table(self.rows),
            what_to_compare(self.rows),
            records.key_values(self.rows, memory),
        ]
        return "\n\n".join(filter(None, parts))


def what_to_compare(rows: list[dict]) -> str:
    """How to read the table of some rows, if they hold both methods of the paper's claim."""
    if not {"sft", "ia2-sft"} <= {row["method"] for row in rows}:
        return ""
    scores = "accuracy, NLL," if rows[0]["labels"] else "accuracy"
    return f"Compare ia2-sft with sft and with icl: {scores} and how near to icl inside (asim)."


def sample_answers(tokenizer, evaluation: Evaluation, count: int = 3) -> list[str]:
    """The answers to the first queries as text, those of label tasks with their confidence."""
    texts = []
    for answer, confidence in zip(evaluation.answers[:count], evaluation.confidence):
        if confidence is None:
            texts.append(str(answer))
        else:
            texts.append(f"{tokenizer.decode([answer])!r} {confidence:.2f}")
    return texts


if __name__ == "__main__":
    sys.exit(cli.run_main(main, lora.LoRAError))
