"""Speed: each step against the plain way of doing it, in one run, about 6 minutes.

    python -m lab.bench
    python -m lab.bench --authors DIR    against a checkout of the authors' code (commit 8fee5ab)

The plain way is written out below: one example at a time, straight through transformers' own model
on the same weights, with its full vocabulary projection and no cache. Timed in turn; seconds are
medians.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import data
import ia2
import lora
from engine import cpu, models
from lab import authors
from lab.authors import LONG
from support import cli
from support.cli import log
from support.records import grid

# With its answer 190 tokens of SmolLM2, the mean of GSM8K.
PROBLEM = (
    "Question:On Monday morning the {a} children of the village school each bring {b} ripe red "
    "apples from home, because the whole school is getting ready for the harvest fair. The teacher "
    "asks them to share all of their apples out into {c} large baskets, so that every basket holds "
    "the same number and no apple is left over. How many apples are there in one of the large "
    "baskets in the end?\nAnswer:"
)
WORKED = (
    " There are {a} children in the school, and each of them brings {b} apples.\nSo together they "
    "bring {a} * {b} = <<{a}*{b}={ab}>>{ab} apples to the school on Monday.\nAll of these {ab} "
    "apples are shared out into {c} baskets, with the same number in each.\nSo in the end one "
    "basket gets {ab} / {c} = <<{ab}/{c}={q}>>{q} apples for the harvest fair.\n#### {q}"
)


def word_problems(count: int) -> list[data.Example]:
    """Problems of one wording and other numbers."""
    problems = []
    for k in range(count):
        numbers = {"a": 4 + 2 * k, "b": 6, "c": 3, "ab": 24 + 12 * k, "q": 8 + 4 * k}
        problems.append(data.Example(PROBLEM.format(**numbers), WORKED.format(**numbers)))
    return problems


# ---- what is measured ----------------------------------------------------------------------------


@dataclass
class Work:
    """A model with an adapter, and the work on which both ways are measured."""

    model: torch.nn.Module
    tokenizer: object
    task: data.Data  # with as many test queries as are measured
    few_shot: data.FewShotSet
    problems: list[data.Example]
    epochs: int


def make_work(model, choice, epochs: int, queries: int) -> Work:
    """A few-shot set of rated reviews with test queries, and word problems."""
    options = data.Options(default_labels=choice.entry.labels, plain=choice.entry.plain)
    task = data.draw_test(data.load("movies", choice.tokenizer, options), queries)
    few_shot = data.few_shot_set(task.pool, 4, balanced=True)
    return Work(model, choice.tokenizer, task, few_shot, word_problems(4), epochs)


def our_jobs(work: Work) -> dict[str, Callable[[], object]]:
    """The steps as this project does them, by name."""
    model, tokenizer = work.model, work.tokenizer
    targets, dev = ia2.few_shot_targets(model, tokenizer, work.few_shot)
    *demos, last = work.problems

    def stage(loss):
        lora.reset(model)
        recipe = ia2.Recipe(epochs=work.epochs, patience=2 * work.epochs)  # all epochs are run
        return ia2.train(model, loss, targets, dev, recipe)

    return {
        "targets, 1 token": lambda: ia2.few_shot_targets(model, tokenizer, work.few_shot),
        "targets, 48 tokens": lambda: ia2.collect_target(model, tokenizer, last, demos, LONG),
        "ia2 stage": lambda: stage(ia2.ia2_loss),
        "sft stage": lambda: stage(ia2.sft_loss),
        "evaluation": lambda: ia2.evaluate(model, tokenizer, work.task),
        "icl evaluation": lambda: ia2.evaluate(model, tokenizer, work.task, work.few_shot),
    }


def described(work: Work) -> dict[str, str]:
    """What each step works on, by its name."""
    *demos, last = work.problems
    length = len(data.prompt_tokens(work.tokenizer, demos, last.query))
    stage = f"n = {len(work.few_shot.train)}, {work.epochs} epochs"
    queries = f"{len(work.task.test)} queries"
    count = len(work.few_shot.train) + len(work.few_shot.dev)
    return {
        "targets, 1 token": f"{count} examples, 3 or 4 demos each",
        "targets, 48 tokens": f"one example, a prompt of {length} tokens",
        "ia2 stage": stage,
        "sft stage": stage,
        "evaluation": queries,
        "icl evaluation": f"{queries}, 4 demos each",
    }


def timed(job: Callable[[], object], device: torch.device) -> float:
    """Seconds that a job takes, the GPU's work included."""
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(work: Work, theirs: dict[str, Callable], repeats: int) -> list[list[str]]:
    """Lines of the table: step, our seconds, their seconds, the ratio, and what was done."""
    what = described(work)
    device = work.model.device
    lines = []
    for name, job in our_jobs(work).items():
        job()  # warms up
        ours = []
        others = []
        ratios = []
        for _ in range(repeats):
            ours.append(timed(job, device))
            others.append(timed(theirs[name], device))
            ratios.append(others[-1] / ours[-1])
        figures = [statistics.median(each) for each in (ours, others, ratios)]
        lines.append([name, *(f"{figure:.2f}" for figure in figures), what[name]])
        log(*lines[-1])
    return lines


# ---- the plain way -------------------------------------------------------------------------------


def plain_model(model):
    """The model as transformers makes it, on the weights of `model`: no second copy of them."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.get_decoder().rotary_emb = model.get_decoder().rotary_emb  # no part of the state
    plain = plain.eval().requires_grad_(False)
    lora.add(plain)
    return plain


def plain_pass(model, tokens: list[int], count: int) -> ia2.Reading:
    """The last `count` positions of one example; logits are made at every position."""
    kept = []

    def keep(module, inputs, output):
        kept.append(output[0])

    handles = []
    for layer in model.get_decoder().layers:
        handles.append(layer.self_attn.register_forward_hook(keep))
    inputs = torch.tensor([tokens], device=model.device)
    logits = model(input_ids=inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    activations = torch.stack([output[0, -count:] for output in kept])  # (L, G, d)
    return ia2.Reading(activations, logits[0, -count:])


@torch.no_grad()
def plain_target(model, tokenizer, example, demos, max_tokens: int) -> ia2.Target:
    """A target by a full forward pass for each response token."""
    prompt = data.prompt_tokens(tokenizer, demos, example.query)
    tokens = list(prompt)
    activations = []
    with lora.disable(model):
        for _ in range(max_tokens):
            reading = plain_pass(model, tokens, 1)
            tokens.append(reading.logits[0].argmax().item())
            activations.append(reading.activations)
    student = data.prompt_tokens(tokenizer, [], example.query)
    gold = data.gold_tokens(tokenizer, example, max_tokens)
    return ia2.Target(prompt, student, gold, tokens[len(prompt) :], torch.cat(activations, dim=1))


def plain_targets(model, work: Work) -> tuple[list[ia2.Target], list[ia2.Target]]:
    few_shot = work.few_shot
    targets = []
    for i, example in enumerate(few_shot.train):
        demos = data.leave_one_out(few_shot, i)
        targets.append(plain_target(model, work.tokenizer, example, demos, 1))
    dev = []
    for example in few_shot.dev:
        dev.append(plain_target(model, work.tokenizer, example, few_shot.demos, 1))
    return targets, dev


def plain_loss(model, name: str, target: ia2.Target) -> torch.Tensor:
    """The loss of one example."""
    response = target.Y_icl if name == "ia2" else target.gold
    reading = plain_pass(model, [*target.student_prompt, *response[:-1]], len(response))
    if name == "ia2":
        return (reading.activations - target.A_icl).square().mean((1, 2)).sum()
    return F.cross_entropy(reading.logits, torch.tensor(response, device=model.device))


def plain_train(model, name: str, targets, dev, epochs: int) -> None:
    """One stage, an example at a time, with a reading of the dev loss after each epoch."""
    lora.reset(model)
    optimizer = torch.optim.Adam(lora.weights(model).values(), lr=3e-4)
    for _ in range(epochs):
        for target in targets:
            (plain_loss(model, name, target) / len(targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for target in dev:
                plain_loss(model, name, target).item()


@torch.no_grad()
def plain_evaluate(model, prompts: list[list[int]], label_tokens: list[int]) -> None:
    for prompt in prompts:
        inputs = torch.tensor([prompt], device=model.device)
        logits = model(input_ids=inputs, use_cache=False).logits[0, -1]
        logits.softmax(-1)[label_tokens].tolist()


def plain_jobs(model, work: Work) -> dict[str, Callable[[], object]]:
    """The steps in the plain way, by name."""
    tokenizer, tokens = work.tokenizer, work.task.label_tokens
    *demos, last = work.problems
    targets, dev = plain_targets(model, work)
    alone = []
    behind_demos = []
    for example in work.task.test:
        alone.append(data.prompt_tokens(tokenizer, [], example.query))
        behind_demos.append(data.prompt_tokens(tokenizer, work.few_shot.train, example.query))
    return {
        "targets, 1 token": lambda: plain_targets(model, work),
        "targets, 48 tokens": lambda: plain_target(model, tokenizer, last, demos, LONG),
        "ia2 stage": lambda: plain_train(model, "ia2", targets, dev, work.epochs),
        "sft stage": lambda: plain_train(model, "sft", targets, dev, work.epochs),
        "evaluation": lambda: plain_evaluate(model, alone, tokens),
        "icl evaluation": lambda: plain_evaluate(model, behind_demos, tokens),
    }


# ---- the command ---------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="auto", help="as in ia2.py (auto)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(auto)")
    add("--repeats", type=cli.positive_int, default=3, help="times each step is measured (3)")
    add("--epochs", type=cli.positive_int, default=10, help="epochs of a measured stage (10)")
    add("--queries", type=cli.positive_int, default=60, help="queries of an evaluation (60)")
    add("--authors", metavar="DIR", help="a checkout of the authors' code to compare with")
    args = parser.parse_args(argv)
    code = authors.load(args.authors) if args.authors else None
    choice = models.find(args.model, args.device)
    model = models.load_model(choice)
    plain = None if code else plain_model(model)  # before our model is changed
    cpu.speed_up(model)
    lora.add(model)
    work = make_work(model, choice, args.epochs, args.queries)
    theirs = authors.Theirs(code, choice, work) if code else None
    if theirs:
        print(authors.agreement(theirs), flush=True)  # first: or else the ratios mean nothing
    jobs = authors.jobs(theirs) if theirs else plain_jobs(plain, work)
    lines = measure(work, jobs, args.repeats)
    way = "authors' code" if theirs else "plain way"
    print(grid([["step", "seconds", way, "ratio", "what"], *lines]))
    print(f"\n{choice.name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if code:
        print(authors.sizes(code.folder))


if __name__ == "__main__":
    sys.exit(cli.run_main(main, lora.LoRAError))
