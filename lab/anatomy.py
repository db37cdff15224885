"""What ICL's shift is made of, by layer and over few-shot sets. Nothing is trained.

    python -m lab.anatomy --dataset movies --n 4 --sets 5
    python -m lab.anatomy --show runs/anatomy.jsonl --json anatomy.json --plot anatomy.png

The shift is ICL's activations minus the base model's on the same query, at the answer position of
label tasks. How much of its square is one constant vector a layer, how near to ICL a constant gets
by `asim`, what the vector of the training examples does when it is added, and what of ICL's
activations depends on its demos: with flipped labels, of a foreign task, or of another query. Each
few-shot set and test is a record in OUT/anatomy.jsonl as soon as it is there. An interrupted run
resumes, and processes that are given different sets may share one --out.

Shapes: Q test queries, L layers, d hidden size.
"""

import random
import statistics
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

import data
import ia2
import metrics
from engine import cpu, models
from lab import variants
from lab.anatomy_report import (
    FILE,
    check_picture,
    groups_of,
    read_files,
    read_records,
    rounded,
    save_picture,
    tables,
    write_summary,
)
from lab.rows import is_number
from support import cli, records
from support.cli import UserError, log

FEWEST = 4  # test queries: two in each half
SCORES = (  # of an evaluation, kept in the record; the table of each query's outcome is not
    "accuracy",
    "accuracy_among_labels",
    "nll",
    "brier",
    "ece",
    "gap",
    "label_mass",
    "largest_share",
    "asim",
    "asim_layers",
    "asim_centred",
    "asim_centred_layers",
    "agreement",
)

# ---- 1. The constant: pure functions of the shift ------------------------------------------------


@dataclass(frozen=True)
class Share:
    """How much of the squared shift a vector explains: 1 is all, below 0 is worse than none."""

    layers: Tensor  # (L)
    whole: float  # of all layers together: squares are summed over layers


def explained(shift: Tensor, vector: Tensor) -> Share:
    """1 - sum_q ||shift - vector||^2 / sum_q ||shift||^2 of a shift (Q, L, d) and a vector (L, d).

    Not finite where nothing shifts.
    """
    left = (shift - vector).square().sum(dim=(0, 2))  # (L)
    total = shift.square().sum(dim=(0, 2))
    return Share(1 - left / total, (1 - left.sum() / total.sum()).item())


def split(count: int, seed: str) -> list[list[int]]:
    """Two random halves of the numbers below `count`; the second has one more if it is odd."""
    order = random.Random(f"halves-{seed}").sample(range(count), count)
    return [order[: count // 2], order[count // 2 :]]


def constant_share(shift: Tensor, halves: list[list[int]]) -> Share:
    """What the mean shift of one half of the queries explains of the other half's, and the other
    way round, averaged: the constant is never fitted to the queries that it is tested on.
    """
    first, second = halves
    shares = [
        explained(shift[second], shift[first].mean(dim=0)),
        explained(shift[first], shift[second].mean(dim=0)),
    ]
    layers = torch.stack([share.layers for share in shares]).mean(dim=0)
    return Share(layers, sum(share.whole for share in shares) / 2)


def constant_asim(A_icl: Tensor, halves: list[list[int]]) -> Tensor:
    """asim of a constant that ignores the query, by layer: (Q, L, d) -> (L).

    It is the mean of ICL's activations over one half, compared with each query's of the other.
    """
    first, second = halves
    cosines = []
    for seen, held in ((first, second), (second, first)):
        constant = A_icl[seen].mean(dim=0)  # (L, d)
        cosines.append(torch.cosine_similarity(A_icl[held], constant[None], dim=-1))
    return torch.cat(cosines).mean(dim=0)


def stacked(activations: list[Tensor]) -> Tensor:
    """Q activations (L, 1, d) as one tensor (Q, L, d), in float64."""
    return torch.stack([A[:, 0].double().cpu() for A in activations])


# ---- 2. One few-shot set on one test -------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """What all records of a command have in common."""

    setup: ia2.Setup
    out: str
    command: str
    foreign: data.Data | None  # whose examples are foreign demos
    balanced: bool
    test: int  # queries of each test
    seed: int

    @property
    def file(self) -> Path:
        return Path(self.out, FILE)

    def draw(self, n: int, number: int) -> data.FewShotSet:
        return data.few_shot_set(self.setup.task.pool, n, number, self.seed, self.balanced)

    def settings(self, few_shot: data.FewShotSet) -> dict:
        """What every record of a few-shot set says."""
        return {
            **self.setup.settings,
            **data.training_settings(self.setup.task, few_shot, self.balanced),
            "method": "anatomy",
            "foreign": self.foreign.spec.name if self.foreign else None,
        }

    def key(self, few_shot: data.FewShotSet, test: data.Data) -> tuple:
        run = records.run_name(self.settings(few_shot))
        return records.row_key({"run": run, **data.test_settings(test)})

    def evaluate(self, test: data.Data, few_shot=None, edit=None) -> ia2.Evaluation:
        setup = self.setup
        return ia2.evaluate(setup.model, setup.tokenizer, test, few_shot, edit=edit)


def steering_of(study: Study, few_shot: data.FewShotSet) -> variants.Steering:
    """The vector of the training examples, as the method `steer` has it."""
    setup = study.setup
    targets, _ = ia2.few_shot_targets(setup.model, setup.tokenizer, replace(few_shot, dev=[]))
    return variants.make_steering(setup.model, targets)


def measure(study: Study, few_shot, test: data.Data, base: ia2.Evaluation, steering) -> dict:
    """All figures of a few-shot set on a test, without the settings."""
    icl = study.evaluate(test, few_shot)
    halves = split(len(test.test), f"{study.seed}-{few_shot.number}")
    A_icl = stacked(icl.activations)
    shift = A_icl - stacked(base.activations)  # (Q, L, d)
    steered = study.evaluate(test, edit=steering.edit)
    methods = {
        "base": scored(base, icl),
        "icl": scored(icl, icl),
        "steer": scored(steered, icl),
        "exact": exact_scores(study, test, icl, shift, halves),
    }
    return {
        **shift_figures(shift, A_icl, halves, steering.vector.double().cpu()),
        "methods": methods,
        "teachers": teacher_scores(study, few_shot, test, icl),
    }


def shift_figures(shift: Tensor, A_icl: Tensor, halves: list[list[int]], vector: Tensor) -> dict:
    """What the shift (Q, L, d) is made of, and what a constant and the training examples' vector
    (L, d) have of it.
    """
    share = constant_share(shift, halves)
    asim = constant_asim(A_icl, halves)
    of_vector = explained(shift, vector)
    cosines = torch.cosine_similarity(vector, shift.mean(dim=0), dim=-1)  # (L)
    finite = [value for value in share.layers.tolist() if is_number(value)]
    return {
        "share": share.whole,
        "share_median": statistics.median(finite) if finite else None,
        "share_layers": share.layers.tolist(),
        "constant_asim": asim.mean().item(),
        "constant_asim_layers": asim.tolist(),
        "vector_share": of_vector.whole,
        "vector_share_layers": of_vector.layers.tolist(),
        "vector_cosine": cosines.mean().item(),
        "vector_cosine_layers": cosines.tolist(),
    }


def scored(evaluation: ia2.Evaluation, icl: ia2.Evaluation) -> dict:
    """The scores of an evaluation, and how near it is to ICL, also layer by layer."""
    centred = metrics.asim_centred(evaluation.activations, icl.activations)
    scores = {**ia2.compare(evaluation, icl), "asim_centred_layers": centred.tolist()}
    return {name: scores[name] for name in SCORES}


def exact_scores(study: Study, test, icl: ia2.Evaluation, shift: Tensor, halves) -> dict:
    """Steering with the mean shift of the other half of the *test* queries: an oracle.

    Each half is centred on its own, because each has another vector.
    """
    first, second = halves
    parts = []
    centred = []
    for seen, held in ((second, first), (first, second)):
        vector = shift[seen].mean(dim=0).float().to(study.setup.model.device)
        half = replace(test, test=[test.test[i] for i in held])
        part = study.evaluate(half, edit=variants.Steering(vector).edit)
        of_icl = [icl.activations[i] for i in held]
        centred.append(metrics.asim_centred(part.activations, of_icl))
        parts.append(part)
    scores = scored(joined(parts), picked(icl, first + second))
    sizes = torch.tensor([len(half) for half in halves]).to(centred[0])
    layers = (torch.stack(centred) * sizes[:, None]).sum(dim=0) / sizes.sum()
    return {
        **scores,
        "asim_centred": layers.mean().item(),
        "asim_centred_layers": layers.tolist(),
    }


def joined(parts: list[ia2.Evaluation]) -> ia2.Evaluation:
    """Evaluations of several queries each as one of all of them."""
    values = {}
    for field in fields(metrics.LabelAnswers):
        tensors = [getattr(part.label_answers, field.name) for part in parts]
        values[field.name] = tensors[0] if field.name == "label_tokens" else torch.cat(tensors)
    answers = metrics.LabelAnswers(**values)
    return replace(
        parts[0],
        scores=metrics.label_scores(answers),
        answers=sum((part.answers for part in parts), []),
        confidence=sum((part.confidence for part in parts), []),
        responses=sum((part.responses for part in parts), []),
        activations=sum((part.activations for part in parts), []),
        label_answers=answers,
    )


def picked(icl: ia2.Evaluation, numbers: list[int]) -> ia2.Evaluation:
    """ICL's evaluation with what is compared of it in another order."""
    return replace(
        icl,
        answers=[icl.answers[i] for i in numbers],
        activations=[icl.activations[i] for i in numbers],
    )


def teacher_scores(study: Study, few_shot, test: data.Data, icl: ia2.Evaluation) -> dict:
    """ICL behind other demos, compared with ICL behind its own: `asim` is the cosine of the two,
    `asim_centred` the same without each side's mean over the queries. `shuffled` compares each
    query's own activations with those of the next query.
    """
    flipped = variants.change_demos(few_shot, "flipped", study.setup.task.label_texts)
    scores = {"flipped": scored(study.evaluate(test, flipped), icl), "foreign": None}
    if study.foreign:
        demos = variants.foreign_demos(study.foreign, few_shot, study.balanced)
        foreign = variants.change_demos(few_shot, "foreign", [], demos)
        scores["foreign"] = scored(study.evaluate(test, foreign), icl)
    count = len(icl.activations)
    following = picked(icl, [*range(1, count), 0])
    compared = scored(following, icl)
    scores["shuffled"] = {name: compared[name] for name in SCORES if name.startswith("asim")}
    return scores


# ---- 3. Records, one after the other -------------------------------------------------------------


def add_record(study: Study, few_shot, test: data.Data, figures: dict) -> None:
    """Add a record, if it is new. The file is written whole, or stays as it was."""
    settings = study.settings(few_shot)
    record = {
        **settings,
        **data.test_settings(test),
        **rounded(figures),
        **records.made_by(records.run_name(settings), study.command),
    }
    with FileLock(Path(study.out, records.LOCK)):
        known = read_records(study.file)
        if records.row_key(record) not in {records.row_key(other) for other in known}:
            records.write_rows(study.file, [*known, record])


def is_there(study: Study, few_shot, test: data.Data) -> bool:
    """Whether the file as it is now has the record of a few-shot set and test."""
    there = {records.row_key(record) for record in read_records(study.file)}
    return study.key(few_shot, test) in there


def run_set(study: Study, sizes: list[int], number: int) -> None:
    """Measure what is missing of the few-shot sets of one number, all of which have the same test
    queries: the base model answers them once.
    """
    few_shots = [study.draw(n, number) for n in sizes]  # a pool that is too small fails first
    tests = [data.draw_test(test, study.test, study.seed, number) for test in study.setup.tests]
    bases = {}
    for few_shot in few_shots:
        missing = [test for test in tests if not is_there(study, few_shot, test)]
        if not missing:
            continue
        steering = steering_of(study, few_shot)
        for test in missing:
            if is_there(study, few_shot, test):  # another process was faster
                continue
            name = test.spec.name
            log(f"n = {len(few_shot.train)}, set {number}: {name}")
            start = time.perf_counter()
            if name not in bases:
                bases[name] = study.evaluate(test)
            figures = measure(study, few_shot, test, bases[name], steering)
            seconds = round(time.perf_counter() - start, 1)
            add_record(study, few_shot, test, {**figures, "seconds": seconds})


# ---- 4. The command line -------------------------------------------------------------------------

NOT_TRAINED = ("--lr", "--epochs", "--keep", "--rank", "--methods", "--max-tokens")


def anatomy_parser() -> cli.Parser:
    """The options of a run that apply where nothing is trained, and what is made of records."""
    first = __doc__.split("\n\n")[0]
    parser = cli.experiment_parser(first, (), (), several=True, leave_out=NOT_TRAINED)
    parser.set_defaults(max_tokens=None)
    shown = "print the tables of these files, and run nothing"
    parser.add_argument("--show", nargs="+", metavar="FILE", help=shown)
    parser.add_argument("--json", metavar="FILE", help="write the means as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, .png or .svg")
    return parser


def set_up(choice, names: list[str], options: data.Options) -> ia2.Setup:
    """As `ia2.set_up`, without an adapter and without unrelated texts: nothing is trained.

    Raises UserError for free text before the model is loaded.
    """
    task, tests = data.load_with_tests(names[0], names[1:], choice.tokenizer, options)
    if not task.label_tokens:
        raise UserError(
            f"{task.spec.name} is free text, and lab.anatomy reads activations where a label is "
            "predicted; use a task with labels as --dataset"
        )
    for test in tests:
        check_count(test.spec.name, len(test.test))
    model = models.load_model(choice)
    cpu.speed_up(model)
    settings = models.settings(choice, model)
    return ia2.Setup(model, choice.tokenizer, task, tests, 0, settings, [], None)


def check_count(name: str, count: int) -> None:
    """Raise UserError for fewer queries than two halves need."""
    if count < FEWEST:
        raise UserError(
            f"{name} would have {count} test queries and the two halves need {FEWEST}; use more"
        )


def find_foreign(setup: ia2.Setup, options: data.Options) -> data.Data | None:
    """A task for foreign demos, or None, with a message."""
    try:
        return variants.foreign_task(setup.task, setup.tests, setup.tokenizer, options)
    except UserError:
        log(
            f"no foreign demos: no task with the labels of {setup.task.spec.name} is left that is "
            "neither trained nor tested on"
        )
        return None


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, or read what is there; then the tables, and what is asked for."""
    args = anatomy_parser().parse_args(argv)
    check_picture(args.plot)
    if args.show:
        show(read_files(args.show), args.json, args.plot)
        return
    numbers = cli.set_numbers(args.set, args.sets)
    check_count("each test", args.test)
    records.make_out(args.out)
    read_records(Path(args.out, FILE))  # a file that is none of ours fails first
    choice = models.find(args.model, args.device, args.dtype)
    options = data.Options.of(args, choice.entry)
    setup = set_up(choice, [args.dataset, *(args.eval or [])], options)
    study = Study(
        setup=setup,
        out=args.out,
        command=cli.command_line("-m lab.anatomy", argv),
        foreign=find_foreign(setup, options),
        balanced=data.balance(setup.task, args.balanced, choice.entry.balanced),
        test=args.test,
        seed=args.seed,
    )
    for number in numbers:
        run_set(study, cli.in_order(args.n), number)
    show(read_records(study.file), args.json, args.plot)


def show(found: list[dict], summary_file: str | None, picture: str | None) -> None:
    """Print the tables, and write the files that are asked for."""
    print(tables(found))
    if summary_file and found:
        write_summary(groups_of(found), summary_file)
    if picture and found:
        save_picture(groups_of(found), picture)


if __name__ == "__main__":
    sys.exit(cli.run_main(main))
