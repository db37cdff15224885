"""Many runs: few-shot sets x n x rates x methods, on the functions of ia2.py.

    python -m lab.sweep --dataset movies --eval movies amazon --n 2 4 8 --sets 5 --lr 1e-4 3e-4 1e-3

ICL, base and targets are shared by all that is trained on a few-shot set, and so is a stage that
two methods begin with. An interrupted sweep resumes: what has its rows is not run again. Job arrays
give each job its `--set` and all of them one `--out`.
"""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file

import data
import ia2
import lora
import metrics
from engine import models, peft_files
from lab import report, variants
from lab.variants import METHODS, Choices
from support import cli, records
from support.cli import UserError, log

NEVER = sys.maxsize  # readings without improvement that stop a training

# ---- what is to be run ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One method, trained at one rate if it is trained."""

    method: str
    lr: float | None = None


@dataclass(frozen=True)
class Sweep:
    """What all runs of a sweep have in common."""

    setup: ia2.Setup
    out: str
    command: str
    methods: list[str]  # to run beside base and icl
    rates: list[float]
    recipe: ia2.Recipe  # its rate and seed are set for each run
    primer_epochs: int | None  # of stages that another one follows; None: the recipe's
    choices: Choices
    foreign: data.Data | None  # whose examples are the teacher's demos
    balanced: bool
    test: int  # queries of each test
    seed: int

    @property
    def results_file(self) -> Path:
        return Path(self.out, "results.jsonl")

    def draw(self, n: int, number: int) -> data.FewShotSet:
        """Few-shot set `number`, with the demos that its teacher sees."""
        task = self.setup.task
        few_shot = data.few_shot_set(task.pool, n, number, self.seed, self.balanced)
        foreign = None
        if self.foreign:
            foreign = variants.foreign_demos(self.foreign, few_shot, self.balanced)
        return variants.change_demos(few_shot, self.choices.demos, task.label_texts, foreign)

    def settings(self, few_shot: data.FewShotSet) -> dict:
        """What every row of a few-shot set says."""
        settings = {
            **self.setup.settings,
            **data.training_settings(self.setup.task, few_shot, self.balanced),
        }
        if self.foreign:
            settings["demos"] = f"foreign: {self.foreign.spec.name}"
        elif self.choices.demos != "own":
            settings["demos"] = self.choices.demos
        return settings

    def settings_of(self, few_shot: data.FewShotSet, plan: Plan) -> dict:
        """What the rows of one method say: they are its run's name."""
        settings = {**self.settings(few_shot), "method": plan.method}
        if plan.method in METHODS:
            settings.update(self.choices.settings(plan.method))
        if plan.lr is not None:
            settings.update(
                lr=plan.lr,
                rank=self.setup.rank,
                epochs=self.recipe.epochs,
                keep=self.recipe.keep,
            )
            if self.primer_epochs and len(METHODS[plan.method].path) > 1:
                settings["primer_epochs"] = self.primer_epochs
        return settings

    def plans(self) -> list[Plan]:
        """All that is to be made of a few-shot set, in the order of the table of methods."""
        plans = [Plan("base"), Plan("icl")]
        wanted = [method for method in METHODS if method in self.methods]
        plans += [Plan(method) for method in wanted if not METHODS[method].path]
        for lr in self.rates:
            plans += [Plan(method, lr) for method in wanted if METHODS[method].path]
        return plans


def missing_plans(
    sweep: Sweep, few_shot: data.FewShotSet, tests: list[data.Data], plans: list[Plan]
) -> list[Plan]:
    """The plans that lack a row for some test in the results file as it is now."""
    there = {records.row_key(row) for row in records.read_rows(sweep.results_file)}
    missing = []
    for plan in plans:
        run = records.run_name(sweep.settings_of(few_shot, plan))
        keys = {records.row_key({"run": run, **data.test_settings(test)}) for test in tests}
        if not keys <= there:
            missing.append(plan)
    return missing


# ---- few-shot sets -------------------------------------------------------------------------------


def run_sets(sweep: Sweep, sizes: list[int], numbers: list[int]) -> None:
    """Run what is missing of every few-shot set."""
    for n in sizes:
        for number in numbers:
            other = sweep.draw(n, number - 1) if number else None
            run_set(sweep, sweep.draw(n, number), other)


@dataclass
class Workshop:
    """What the methods of a few-shot set are made with, and what is there already."""

    few_shot: data.FewShotSet
    examples: variants.Examples
    steering: variants.Steering | None
    losses: dict  # by stage
    trained: dict = field(default_factory=dict)  # {a recipe's numbers: what `ia2.follow` shares}

    def trained_by(self, recipe: ia2.Recipe, primer_epochs: int | None) -> dict:
        """What is trained already by a recipe; that of other rates is let go."""
        for key in list(self.trained):
            if key[0] != recipe.lr:
                del self.trained[key]
        key = (recipe.lr, recipe.epochs, recipe.patience, primer_epochs)
        return self.trained.setdefault(key, {})


def open_workshop(sweep: Sweep, few_shot: data.FewShotSet, plans: list[Plan]) -> Workshop:
    """Collect the targets, and what else the plans need."""
    setup = sweep.setup
    methods = [METHODS[plan.method] for plan in plans]
    stages = {stage for method in methods for stage in method.path}
    examples = variants.make_examples(setup, few_shot, sweep.choices, stages)
    steering = None
    if any(method.steered for method in methods):
        at = sweep.choices.steer_at
        steering = variants.make_steering(setup.model, examples.queries, at)
    losses = variants.make_losses(setup.model, examples, sweep.choices, stages, steering)
    return Workshop(few_shot, examples, steering, losses)


def run_set(sweep: Sweep, few_shot: data.FewShotSet, other: data.FewShotSet | None = None) -> None:
    """Run what is missing of a few-shot set; `other` is the set before it, whose adapters are the
    control of the overlaps where they are saved already.
    """
    setup = sweep.setup
    seed, number = few_shot.seed, few_shot.number
    tests = [data.draw_test(test, sweep.test, seed, number) for test in setup.tests]
    plans = missing_plans(sweep, few_shot, tests, sweep.plans())
    if not plans:
        return
    log(f"n = {len(few_shot.train)}, set {number}: icl, base and targets")
    with lora.disable(setup.model):
        icl = ia2.evaluate_all(setup.model, setup.tokenizer, tests, few_shot)
        results = ia2.Results(sweep.out, sweep.settings(few_shot), sweep.command, tests, icl)
        if Plan("base") in plans:
            base = ia2.evaluate_all(setup.model, setup.tokenizer, tests, icl=icl)
            results.add("base", base)
    if Plan("icl") in plans:
        results.add("icl", icl)
    plans = [plan for plan in plans if plan.method in METHODS]
    if plans:
        run_methods(sweep, open_workshop(sweep, few_shot, plans), plans, results, other)


def run_methods(sweep: Sweep, workshop: Workshop, plans: list[Plan], results, other) -> None:
    """Make each method and write down its rows, unless another process was faster."""
    few_shot = workshop.few_shot
    for plan in plans:
        if not missing_plans(sweep, few_shot, results.tests, [plan]):
            continue
        rate = "" if plan.lr is None else f", rate {plan.lr:g}"
        log(f"n = {len(few_shot.train)}, set {few_shot.number}{rate}: {plan.method}")
        made = make_method(sweep, workshop, plan, results)
        if plan.lr is not None:
            made.training.left["overlap"] = overlaps(sweep, few_shot, other, plan)
        results.add(plan.method, made.evaluations, made.training)


@dataclass
class Made:
    """A method's evaluations, and what its training left."""

    evaluations: list[ia2.Evaluation]
    training: ia2.Training


def make_method(sweep: Sweep, workshop: Workshop, plan: Plan, results: ia2.Results) -> Made:
    """Train and evaluate a method. Its adapter stays on the model."""
    setup = sweep.setup
    method = METHODS[plan.method]
    steering = workshop.steering if method.steered else None
    with steering.in_place(setup.model) if steering else nullcontext() as edit:
        stages = train_path(sweep, workshop, plan)
        evaluations = ia2.evaluate_all(
            setup.model, setup.tokenizer, results.tests, icl=results.icl, edit=edit
        )
        if method.corrected:
            evaluations = variants.correct_priors(
                setup.model, setup.tokenizer, results.tests, evaluations
            )
        training = describe(sweep, workshop, plan, stages, edit)
    return Made(evaluations, training)


def train_path(sweep: Sweep, workshop: Workshop, plan: Plan) -> list[ia2.Stage]:
    """Train a method's stages one after the other and leave its adapter on the model."""
    model = sweep.setup.model
    method = METHODS[plan.method]
    number = workshop.few_shot.number
    recipe = replace(
        sweep.recipe,
        lr=plan.lr,
        epochs=method.epochs * sweep.recipe.epochs,
        patience=sweep.recipe.patience if method.stops_early else NEVER,
        seed=f"{sweep.seed}-{number}",
    )
    primer_epochs = sweep.primer_epochs if len(method.path) > 1 else None
    primer_recipe = replace(recipe, epochs=primer_epochs or recipe.epochs)
    start_seed = 1000 * sweep.seed + number
    trained = workshop.trained_by(recipe, primer_epochs)
    if not trained:
        lora.reset(model, seed=start_seed)
        trained[()] = ia2.Trained(lora.state(model), [])
    lora.load_state(model, trained[()].adapter)
    if "random" in method.path:
        train_stage(sweep, workshop, ("ia2",), primer_recipe, trained)
        norms = trained[(workshop.losses["ia2"],)].adapter
        drawn = variants.random_adapter(norms, start_seed)
        trained[(workshop.losses["random"],)] = ia2.Trained(drawn, [])
    stages = []
    for length in range(1, len(method.path) + 1):
        is_last = length == len(method.path)
        own = recipe if is_last else primer_recipe
        stages = train_stage(sweep, workshop, method.path[:length], own, trained)
    return stages


def train_stage(
    sweep: Sweep, workshop: Workshop, stages: tuple, recipe: ia2.Recipe, trained: dict
) -> list[ia2.Stage]:
    """Train the last of some stages on its own examples, unless it is in `trained` already."""
    path = tuple(workshop.losses[stage] for stage in stages)
    examples = workshop.examples
    uses_gold = sweep.choices.uses_gold(stages[-1])
    targets = examples.labelled if uses_gold else examples.queries
    return ia2.follow(sweep.setup.model, path, targets, examples.dev, recipe, trained)


def describe(sweep: Sweep, workshop: Workshop, plan: Plan, stages, edit) -> ia2.Training:
    """What the rows of a method say beyond its scores, as `ia2.describe` does for the paper's."""
    setup = sweep.setup
    model = setup.model
    few_shot = workshop.few_shot
    labelled, dev = workshop.examples.labelled, workshop.examples.dev
    is_steered = METHODS[plan.method].steered
    gold_loss = ia2.sft_loss
    if is_steered:
        gold_loss = variants.steered_loss(workshop.steering)
    left = {
        "dev_gold_loss": ia2.average_loss(model, gold_loss, dev),
        "teacher_right": ia2.teacher_right(setup, few_shot, labelled),
        "forgets": ia2.forgetting(setup, edit),
    }
    if "ia2+sft" in METHODS[plan.method].path:
        left["joint_beta"] = workshop.losses["ia2+sft"].beta
    settings = sweep.settings_of(few_shot, plan)
    if not stages:
        return ia2.Training(settings, left, save=None)

    def save(folder: Path) -> None:
        peft_files.save(model, folder)
        if is_steered:
            workshop.steering.save(folder)

    left["stages"] = [asdict(stage) for stage in stages]
    return ia2.Training(settings, left, save)


# ---- overlaps of updates -------------------------------------------------------------------------


def overlaps(sweep: Sweep, few_shot: data.FewShotSet, other, plan: Plan) -> dict[str, float]:
    """What the adapter on the model shares with those of sft and ia2 at its rate, of its own set
    and of an `other` one: {method or "<method>, other set": mean over modules}, and "chance", what
    random updates share.

    Where a stage started from an adapter, overlap with that one is partly by construction.
    """
    own = {}
    for name, weight in lora.weights(sweep.setup.model).items():
        if ".lora_B." in name:
            own[name] = weight.detach().cpu()
    shares = {}
    for label, numbered in (("{}", few_shot), ("{}, other set", other)):
        for method in ("sft", "ia2"):
            theirs = None
            if numbered is not None:
                theirs = read_adapter(sweep, numbered, Plan(method, plan.lr))
            if theirs is not None:
                shares[label.format(method)] = mean_overlap(own, theirs)
    chance = [sweep.setup.rank / len(B) for B in own.values()]
    shares["chance"] = round(sum(chance) / len(chance), 5)
    return shares


def read_adapter(sweep: Sweep, few_shot: data.FewShotSet, plan: Plan) -> dict | None:
    """The saved weights of a run, None where there are none (yet)."""
    run = records.run_name(sweep.settings_of(few_shot, plan))
    file = Path(sweep.out, run, peft_files.WEIGHTS)
    with FileLock(Path(sweep.out, records.LOCK)):  # no other process is just replacing it
        return load_file(file) if file.exists() else None


def mean_overlap(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    shares = []
    for name, B in own.items():
        shares.append(metrics.subspace_overlap(B, theirs[peft_files.PREFIX + name]))
    return round(sum(shares) / len(shares), 5)


# ---- the command line ----------------------------------------------------------------------------


def sweep_parser() -> cli.Parser:
    """The options of ia2.py, and those of a sweep."""
    sentences = [f"  {name}: {method.sentence}" for name, method in METHODS.items()]
    summary = __doc__.split("\n\n")[0]
    methods = ("base", "icl", *METHODS)
    parser = cli.experiment_parser(summary, methods, tuple(ia2.METHODS), several=True)
    parser.epilog = "methods:\n" + "\n".join(sentences)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_choices(parser)
    return parser


def add_choices(parser: cli.Parser) -> None:
    """The options behind `Choices`."""
    add = parser.add_argument
    add(
        "--demos",
        choices=("own", "flipped", "foreign", "none"),
        default="own",
        help="what ICL and the teacher see (own)",
    )
    add("--sft-on", choices=("gold", "icl"), help="responses of SFT (gold, in ia2+sft icl)")
    add(
        "--beta",
        type=cli.learning_rate,
        help="weight of SFT in ia2+sft (both losses equal at the start)",
    )
    add(
        "--targets",
        choices=("own", "unlabelled"),
        default="own",
        help="whose ICL responses and activations are trained on: the training examples', or "
        "those of --queries from the pool, without their labels (own)",
    )
    add("--queries", type=cli.positive_int, metavar="M", help="unlabelled queries (16)")
    add(
        "--primer-epochs",
        type=cli.positive_int,
        metavar="E",
        help="epochs at most of a stage that another one follows, as IA2 in ia2-sft (--epochs)",
    )
    add(
        "--steer-at",
        choices=("output", "all"),
        default="output",
        help="positions at which steering adds its vector; at all it is a bias of o_proj "
        "and moves the query's own tokens too (output)",
    )


def unlabelled_count(targets: str, queries: int | None) -> int | None:
    """How many unlabelled queries there are; None without any. Raises UserError for half of it."""
    if targets == "own":
        if queries is not None:
            raise UserError("--queries needs --targets unlabelled; give both, or neither")
        return None
    return queries or 16


def choices_of(args) -> Choices:
    """What the options say of targets, demos and losses. Raises UserError for half of a choice."""
    return Choices(
        demos=args.demos,
        sft_on=args.sft_on,
        beta=args.beta,
        queries=unlabelled_count(args.targets, args.queries),
        steer_at=args.steer_at,
    )


def main(argv: list[str] | None = None) -> None:
    """All few-shot sets, one after the other, and then the tables of what is there."""
    args = sweep_parser().parse_args(argv)
    numbers = cli.set_numbers(args.set, args.sets)
    records.make_out(args.out)
    choices = choices_of(args)
    choice = models.find(args.model, args.device, args.dtype)
    options = data.Options.of(args, choice.entry)
    task, tests = data.load_with_tests(args.dataset, args.eval or [], choice.tokenizer, options)
    methods = [method for method in METHODS if method in args.methods]
    variants.check_methods(methods, choices, task)
    variants.say_without_effect(methods, choices, args.primer_epochs)
    foreign = None
    if args.demos == "foreign":
        foreign = variants.foreign_task(task, tests, choice.tokenizer, options)
    balanced = data.balance(task, args.balanced, choice.entry.balanced)
    sizes = cli.in_order(args.n)
    for n in sizes:  # a pool that is too small is reported before the model is loaded
        few_shot = data.few_shot_set(task.pool, n, numbers[0], args.seed, balanced)
        variants.check_pools(few_shot, choices, task, foreign, balanced)
    sweep = Sweep(
        setup=ia2.set_up(choice, task, tests, args.rank),
        out=args.out,
        command=cli.command_line("-m lab.sweep", argv),
        methods=methods,
        rates=cli.in_order(args.lr),
        recipe=ia2.Recipe(epochs=args.epochs, keep=args.keep),
        primer_epochs=args.primer_epochs,
        choices=choices,
        foreign=foreign,
        balanced=balanced,
        test=args.test,
        seed=args.seed,
    )
    run_sets(sweep, sizes, numbers)
    print(report.tables(report.read_all([str(sweep.results_file)])))


if __name__ == "__main__":
    sys.exit(cli.run_main(main, lora.LoRAError))
