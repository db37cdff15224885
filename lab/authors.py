"""The authors' code beside ours: its steps as `lab.bench` measures them, and where both agree.

github.com/aamixsh/ia2, `scripts/` at commit 8fee5ab. Its modules are imported under their own
names (`data` and `utils` among them) and taken out of Python's table again, so that ours stay.
"""

import contextlib
import importlib
import io
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import ia2
import lora
from support.cli import UserError, log

COMMIT = "8fee5ab"
LORA = {"lora_type": "qko", "lora_r": 8, "lora_alpha": 8}
MODULES = ("utils", "data", "train_unified", "evaluate_batch_optimized")
LONG = 48  # response tokens of the target of a word problem
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Code:
    """The authors' modules."""

    folder: Path
    training: types.ModuleType
    data: types.ModuleType
    evaluation: types.ModuleType


def load(folder: str) -> Code:
    """Import the authors' code from a checkout. Raises UserError if it is not there."""
    scripts = Path(folder, "scripts")
    if not (scripts / "train_unified.py").exists():
        raise UserError(
            f"{folder} is no checkout of the authors' code (scripts/train_unified.py is missing); "
            "clone github.com/aamixsh/ia2 and give its folder"
        )
    git = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if not git.stdout.startswith(COMMIT):
        log(f"warning: {folder} is not at commit {COMMIT}, with which this was written")
    try:
        found = import_from(scripts.resolve())
    except ImportError as error:
        raise UserError(
            f"the authors' code needs a package that is not here ({error}); install "
            "tests/requirements.txt, or leave --authors out"
        ) from None
    return Code(
        Path(folder), found["train_unified"], found["data"], found["evaluate_batch_optimized"]
    )


def import_from(scripts: Path) -> dict[str, types.ModuleType]:
    """The authors' modules by name; afterwards Python knows only ours under these names."""
    ours = {name: sys.modules.pop(name, None) for name in MODULES}
    stub = "wandb" not in sys.modules  # they log with it only when asked to
    if stub:
        sys.modules["wandb"] = types.ModuleType("wandb")
    sys.path.insert(0, str(scripts))
    try:
        return {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(scripts))
        for name, module in ours.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        if stub:
            del sys.modules["wandb"]


# ---- their steps ---------------------------------------------------------------------------------


class Theirs:
    """Their models and data sets for the work of a bench."""

    def __init__(self, code: Code, choice, work):
        self.code = code
        self.work = work
        self.device = work.model.device
        self.tokenizer = AutoTokenizer.from_pretrained(choice.source)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.base = self.read_model(choice)
        config = code.training.create_lora_config(**LORA)
        self.tuned = code.training.get_peft_model(self.read_model(choice), config)
        few_shot = work.few_shot
        demos = [data.leave_one_out(few_shot, i) for i in range(len(few_shot.train))]
        self.train = self.dataset(few_shot.train, demos)
        self.dev = self.dataset(few_shot.dev, [few_shot.demos] * len(few_shot.dev))
        tests = work.task.test
        self.test = self.dataset(tests, [few_shot.train] * len(tests))

    def read_model(self, choice):
        model = AutoModelForCausalLM.from_pretrained(choice.source, dtype=self.work.model.dtype)
        return model.to(self.device).eval()

    def dataset(self, examples, demos, tokens: int = 1):
        """Examples, each with its own list of demos, in their class."""
        rows = []
        texts = []
        for i, (example, shown) in enumerate(zip(examples, demos)):
            rows.append({"idx": i, "question": example.query, "answer": example.response})
            texts.append([demo.query + demo.response for demo in shown])
        return self.code.data.ICLDataset(
            rows, self.tokenizer, texts, num_generated_tokens=tokens, parse_answer_func=str
        )

    def targets(self, dataset, tokens: int = 1) -> dict:
        """{number of the example: generated tokens and activations}."""
        collect = self.code.training.get_activations
        return quiet(collect, self.base, dataset, self.tokenizer, self.device, tokens)["with_icl"]

    def with_targets(self, dataset, loss: str):
        """Their data set for training with a loss: "act" (IA2) or "tok" (SFT)."""
        if loss == "tok":
            return self.code.data.ICLDatasetWithOutputs(dataset, training_mode="ground_truth")
        found = self.targets(dataset)
        return self.code.data.ICLDatasetWithOutputs(
            dataset,
            icl_outputs={i: each["generated_tokens"] for i, each in found.items()},
            icl_activations={i: each["activations"] for i, each in found.items()},
        )

    def reset(self) -> None:
        """The adapter changes nothing again."""
        for name, weight in self.tuned.named_parameters():
            if "lora_B" in name:
                weight.data.zero_()

    def stage(self, loss: str) -> Callable[[], None]:
        """A job that trains one stage; all epochs are run."""
        train = self.with_targets(self.train, loss)
        dev = self.with_targets(self.dev, loss)

        def job():
            self.reset()
            with tempfile.TemporaryDirectory() as folder:
                quiet(
                    self.code.training.train_unified_model,
                    loss,
                    self.tuned,
                    train,
                    dev,
                    self.tokenizer,
                    self.device,
                    num_epochs=self.work.epochs,
                    patience=10**6,
                    lr=3e-4,
                    label_type="icl_outputs" if loss == "act" else "ground_truth",
                    model_save_path=folder,
                )

        return job

    @torch.no_grad()
    def first_loss(self) -> float:
        """L_IA2 of the training examples before any step, by their function."""
        self.reset()
        training = self.code.training
        outputs, hooks = quiet(training.register_attention_hooks, self.tuned)
        losses = []
        train = self.with_targets(self.train, "act")
        for i in range(len(train)):
            found = training.compute_loss(
                "act", self.tuned, train[i], self.tokenizer, self.device, outputs
            )
            losses.append(found["total_loss"].item())
        quiet(training.remove_hooks, hooks)
        return sum(losses) / len(losses)

    def evaluate(self, with_icl: bool) -> list[dict]:
        """Their evaluation of label tasks, in their batches of eight."""
        labels = list(self.work.task.label_texts)
        side = "with_icl" if with_icl else "without_icl"
        return quiet(
            self.code.evaluation.evaluate_model_batched,
            self.base,
            self.test,
            self.tokenizer,
            self.device,
            eval_with_icl=with_icl,
            eval_without_icl=not with_icl,
            uncertainty_analysis=True,
            label_tokens=labels,
        )[side]

    def word_problem(self):
        """The last word problem behind the others, with 48 tokens to come."""
        *demos, last = self.work.problems
        return self.dataset([last], [demos], LONG)


def quiet(job: Callable, *words, **options):
    """Run a job that prints and shows progress bars, without these."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return job(*words, **options)


def jobs(theirs: Theirs) -> dict[str, Callable[[], object]]:
    """The steps of `lab.bench` in the authors' way, by name."""
    problem = theirs.word_problem()
    return {
        "targets, 1 token": lambda: [theirs.targets(part) for part in (theirs.train, theirs.dev)],
        "targets, 48 tokens": lambda: theirs.targets(problem, LONG),
        "ia2 stage": theirs.stage("act"),
        "sft stage": theirs.stage("tok"),
        "evaluation": lambda: theirs.evaluate(with_icl=False),
        "icl evaluation": lambda: theirs.evaluate(with_icl=True),
    }


# ---- where both agree, and how long both are -----------------------------------------------------


def agreement(theirs: Theirs) -> str:
    """Lines that say whether both ways give the same: targets, first loss, answers."""
    work = theirs.work
    model, tokenizer = work.model, work.tokenizer
    targets, dev = ia2.few_shot_targets(model, tokenizer, work.few_shot)
    *demos, last = work.problems
    long = ia2.collect_target(model, tokenizer, last, demos, LONG)
    pairs = [*zip(targets, theirs.targets(theirs.train).values())]
    pairs += [*zip(dev, theirs.targets(theirs.dev).values())]
    pairs.append((long, theirs.targets(theirs.word_problem(), LONG)[0]))
    same = 0
    largest = 0.0
    for target, found in pairs:
        if list(found["generated_tokens"]) == list(target.Y_icl):
            same += 1
            gap = found["activations"].float() - target.A_icl.cpu().float()
            largest = max(largest, gap.abs().max().item())
    lora.reset(model)
    with torch.no_grad():
        ours = ia2.ia2_loss(model, targets).item()
    answers = ia2.evaluate(model, tokenizer, work.task).answers
    found = [each["generated_answer"] for each in theirs.evaluate(with_icl=False)]
    equal = sum(tokenizer.decode([a]).strip() == b for a, b in zip(answers, found))
    return (
        f"same tokens in {same} of {len(pairs)} targets; their activations differ by "
        f"{largest:.1e} at most\nfirst IA2 loss: {ours:.4f} here, {theirs.first_loss():.4f} there\n"
        f"same answer of the untrained model to {equal} of {len(answers)} queries"
    )


def sizes(folder: Path) -> str:
    """How many lines of Python both have, comments and blank lines included."""
    own = [*ROOT.glob("*.py")]
    for name in ("engine", "sources", "support", "lab"):
        own += ROOT.glob(f"{name}/*.py")
    theirs = [*folder.glob("scripts/*.py")]
    tests = [*ROOT.glob("tests/**/*.py")]
    core = line_count(ROOT.glob("*.py"))
    return (
        f"lines of Python: {line_count(own):,} here ({core:,} of them the four scripts; "
        f"{line_count(tests):,} of tests apart), {line_count(theirs):,} there"
    )


def line_count(paths) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)
