"""What a command means: its data, model and few-shot sets, the runs it asks for, and the row that each leaves.

A plan is one run of one method. Its name holds a hash of everything that its outcome depends on, so a row or an adapter
that is there already is known to be the one that is asked for.
"""
import hashlib
import json
import platform
import random
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

import data
import ia2
import lora
import model as base
import options
import results
from fetch import UserError

OVERLAPPING = ("sft", "ia2", "ia2-sft")  # methods whose updates are compared


def say(*words):
    print(*words, file=sys.stderr, flush=True)


@contextmanager
def progress(label, total=None, unit="it"):
    """A bar on a terminal; where the output is piped, a line when the step ends. Yields the bar."""
    shown, start = sys.stderr.isatty(), time.perf_counter()
    with tqdm(total=total, desc=label, unit=unit, disable=not shown, file=sys.stderr, leave=True) as bar:
        yield bar
    if not shown:
        say(f"{label}: {time.perf_counter() - start:.1f} s{', ' + bar.postfix if getattr(bar, 'postfix', None) else ''}")


@dataclass
class Lab:
    """Everything that the runs of one command share. The model is loaded when the first run needs it."""
    options: object
    device: object
    name: str
    fingerprint: str
    tokenizer: object
    train: data.Data
    sets: dict          # n -> the few-shot sets of this command
    exams: dict         # task -> Exam
    sources: dict       # task -> where its rows come from
    digests: dict       # task -> hash of its test queries
    path: Path
    command: str
    balanced: bool
    rows: dict
    loaded: list = field(default_factory=list)

    def max_tokens(self):
        """G: the response tokens of the training task at most."""
        return 1 if self.train.task.labels else self.options.max_tokens or self.train.task.max_tokens

    def model(self):
        if not self.loaded:
            with progress(f"loading {self.name}"):
                model = base.load_model(self.name, self.device)
            runs = len(self.options.numbers) * len(self.options.lr)
            self.loaded = [model, min(self.options.together or runs_in_memory(model, self.options), runs)]
            lora.add(model, self.options.rank, self.options.alpha, self.options.targets, runs=self.loaded[1])
        return self.loaded[0]

    def together(self):
        self.model()
        return self.loaded[1]


def runs_in_memory(model, options):
    """How many adapters may train together: what half of the free memory holds of weights, gradients, Adam's two moments
    and the best copy, 16 at most on a CPU, where more gain nothing, and 64 on a GPU."""
    sizes = [module.in_features + module.out_features for name, module in model.named_modules()
             if name.rpartition(".")[2] in {f"{target}_proj" for target in options.targets}]
    need = max(1, 5 * 4 * options.rank * sum(sizes))
    if model.device.type == "cuda":
        return max(1, min(64, torch.cuda.mem_get_info()[0] // 2 // need))
    return max(1, min(16, psutil.virtual_memory().available // 2 // need))


# ---- what a command means ---------------------------------------------------------------------------------------------


def open_lab(settings, argv):
    """Read the data and the tokenizer of a command, and the results that are there. Raises UserError for what is wrong."""
    path = Path(settings.out) / "results.jsonl"
    rows = {results.key(row): row for row in results.read(path)}
    device = base.pick_device(settings.device)
    name = base.pick_model(settings.model, device)
    entry = base.entry(name)
    tokenizer = base.load_tokenizer(name)
    for task in dict.fromkeys([settings.dataset, *settings.eval]):
        data.find_task(task)
    load = task_reader(settings, name, tokenizer)
    train = load(settings.dataset)
    base.label_tokens(tokenizer, train.label_texts, name)
    if train.task.family == "own":
        kind = f"a label task: {', '.join(train.task.labels)}" if train.task.labels else "free text, compared as a whole"
        say(f"{train.task.name} is {kind}")
    exams, sources = {}, {}
    for name_of_task in settings.eval:
        tested = train if name_of_task == settings.dataset else load(name_of_task, train.label_style)
        data.check_pair(train.task, tested.task)
        exams[tested.task.name] = make_exam(settings, tokenizer, tested, name)
        sources[tested.task.name] = tested.source
    balanced = bool(train.task.labels) and (entry.balanced if settings.balanced is None else settings.balanced)
    if settings.leave_out == "each":
        count = len(train.task.labels) if balanced else 0
        if not count or any(n % count or n < 2 * count for n in settings.n):
            raise UserError("--leave-out each needs balanced sets with two or more examples of every label: " + (
                f"use an --n that is a multiple of {count}, {2 * count} or more" if count else "give --balanced and a task with labels"))
    sets = {n: [data.few_shot_set(train.pool, n, number, settings.seed, balanced) for number in settings.numbers]
            for n in settings.n}
    results.make_folder(path.parent)
    return Lab(settings, device, name, base.fingerprint(name), tokenizer, train, sets, exams, sources,
               {task: data.digest(exam.examples) for task, exam in exams.items()}, path,
               shlex.join(["python", "ia2.py", *argv]), balanced, rows)


def task_reader(settings, name, tokenizer):
    """load(task, style of its labels) for the model `name`: by default --labels, else the task's style or the model's."""
    entry = base.entry(name)
    one_token = lambda text: len(base.encode_response(tokenizer, text)) == 1

    def load(task, style=None):
        if style is None:
            style = settings.labels if settings.labels != "auto" else data.find_task(task).label_style or entry.labels
        return data.load(task, settings.data_dir, entry.plain, style, settings.seed, one_token, say)
    return load


def make_exam(settings, tokenizer, tested, name):
    """The test queries that a command takes of a task, drawn by seed where it has more, as an Exam."""
    examples = tested.test
    if settings.test < len(examples):
        examples = random.Random(f"test-{settings.seed}").sample(examples, settings.test)
    tokens = base.label_tokens(tokenizer, tested.label_texts, name)
    longest = 1 if tokens else settings.max_tokens or tested.task.max_tokens
    return ia2.Exam(tested.task, examples, tokens, longest, settings.bins)


@dataclass(frozen=True)
class Plan:
    """One run of one method: what it is, and the name that tells it from all others."""
    few_shot: data.FewShotSet
    n: int
    lr: float | None
    method: str


def settings_of(lab, plan):
    """All that the outcome of a run depends on, as a flat dict; it goes into every row."""
    options, trained = lab.options, bool(ia2.METHODS[plan.method])
    common = {
        "method": plan.method, "model": lab.name, "model_hash": lab.fingerprint, "dataset": lab.train.task.name,
        "source": lab.train.source, "labels": lab.train.label_style, "balanced": lab.balanced,
        "n": plan.n, "set": plan.few_shot.number,
        "seed": options.seed, "train_data": data.digest(plan.few_shot.train), "dev_data": data.digest(plan.few_shot.dev),
        "max_tokens": lab.max_tokens(),
    }
    if options.leave_out != "one":  # not the paper's: only then part of a run's name
        common["leave_out"] = options.leave_out
    return {**common, "lr": plan.lr, "rank": options.rank, "alpha": options.alpha, "targets": "".join(options.targets),
            "max_epochs": options.max_epochs,
            "sft_on": options.sft_on, "beta": options.beta} if trained else {**common, "lr": None, "rank": None}


def run_name(lab, plan):
    """A readable name with a short hash of everything that the run depends on; also the adapter's folder."""
    found = settings_of(lab, plan)
    short = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    rate = f"-lr{plan.lr:g}" if plan.lr else ""
    return f"{lab.train.task.name}-n{plan.n}-set{plan.few_shot.number}-{plan.method}{rate}-{short}"


def row_key(lab, plan, task):
    return run_name(lab, plan), task, lab.digests[task], lab.options.bins


def plans_of(lab, n):
    """{method: its runs of one n}, in the order in which they are done."""
    return {method: [Plan(few_shot, n, lr, method) for few_shot in lab.sets[n]
                     for lr in (lab.options.lr if ia2.METHODS[method] else [None])] for method in lab.options.methods}


def missing(lab, plan):
    """The tasks that a run has not been tested on yet."""
    return [task for task in lab.exams if row_key(lab, plan, task) not in lab.rows]


def make_row(lab, plan, task, figures, extra):
    """One line of the results file."""
    run, _, test_data, bins = row_key(lab, plan, task)
    table = figures.pop("asim_table")
    figures.pop("targets", None), figures.pop("answers", None)
    activations = {"asim": None, "asim_layers": None, "asim_positions": None} if table is None else {
        "asim": table.mean().item(), "asim_layers": [round(value, 5) for value in table.mean(1).tolist()],
        "asim_positions": [round(value, 5) for value in table.mean(0).tolist()]}
    return {**settings_of(lab, plan), "prompt": lab.train.prompt, "eval_dataset": task,
            "eval_source": lab.sources[task], "test_data": test_data,
            "test": len(lab.exams[task].examples), "bins": bins, **figures, **activations, **extra, "run": run,
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "transformers": version("transformers")},
            "command": row_command(lab, plan, task), "part_of": lab.command}


def row_command(lab, plan, task):
    """The command that makes this row, and what it is compared with, without the rest of its sweep."""
    methods = OVERLAPPING[:OVERLAPPING.index(plan.method) + 1] if plan.method in OVERLAPPING else (plan.method,)
    eval_name = next(name for name in lab.options.eval if data.find_task(name).name == task)
    return shlex.join(options.command(
        lab.options, model=lab.name, eval=[eval_name], n=[plan.n], sets=None, set=plan.few_shot.number,
        lr=[plan.lr] if plan.lr else None, methods=list(methods), shard=None, together=None, out=None))


def folder_of(lab, plan):
    """Where the adapter of a plan is kept."""
    return lab.path.parent / run_name(lab, plan)


def keep(lab, rows):
    results.append(lab.path, rows)
    lab.rows.update({results.key(row): row for row in rows})
