"""Test a saved adapter, ours or PEFT's, or merge it into its model.

    python -m lab.adapters runs/.../ia2-sft --eval movies tweets
    python -m lab.adapters runs/.../ia2-sft --merge merged

Model, labels and task are by default those of its training, where the folder tells them. A merged
model needs neither this project nor PEFT: any program that reads transformers' models serves it.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import data
import ia2
import lora
from engine import cpu, models, peft_files
from lab import variants
from support import cache, cli, records
from support.cli import UserError, log

# Options of training, which an adapter has behind it.
TRAINING = (
    "--dataset",
    "--n",
    "--set",
    "--lr",
    "--methods",
    "--balanced",
    "--epochs",
    "--keep",
    "--rank",
    "--out",
)

# ---- what a folder tells -------------------------------------------------------------------------


DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Saved:
    """An adapter's folder, and what it tells of its training."""

    folder: Path
    settings: dict  # of the training; none of adapters that PEFT saved
    model: str | None  # the name of the model that it is for

    @property
    def is_corrected(self) -> bool:
        """Whether its method corrects the answers when they are read."""
        method = variants.METHODS.get(self.settings.get("method"))
        return method is not None and method.corrected

    def check_labels(self, test: data.Data) -> None:
        """Raise UserError for a test that shares no label with the training, where it is known."""
        if not self.settings:
            return
        trained = set(self.settings.get("train_labels") or [])
        labels = {text.strip() for text in test.label_texts}
        if trained & labels or not trained | labels:
            return
        raise UserError(
            f"the adapter in {self.folder} cannot be tested on {test.spec.name}: it was trained on "
            f"{', '.join(sorted(trained)) or 'free text'}, and the answers there are "
            f"{', '.join(sorted(labels)) or 'free text'}; choose a task with the same answers"
        )

    def check_model(self, choice: models.ModelChoice) -> None:
        """Raise UserError for a model with other weights than those of the training."""
        if self.settings and self.settings["model_hash"] != choice.fingerprint:
            raise UserError(
                f"the adapter in {self.folder} was trained on {self.settings['model']} with other "
                f"weights than those of {choice.name}; test it on the model that it was trained on"
            )


def read_saved(folder: str) -> Saved:
    """Raises UserError if the folder holds no adapter."""
    if not Path(folder, peft_files.CONFIG).exists():
        raise UserError(f"{folder} is not an adapter folder: {peft_files.CONFIG} is missing")
    settings = read_object(Path(folder, records.TRAINING_FILE))
    hub = read_object(Path(folder, peft_files.CONFIG)).get("base_model_name_or_path")
    name = settings.get("model")
    if not name:
        known = [known for known, entry in models.MODELS.items() if entry.hub == hub]
        name = known[0] if known else hub
    return Saved(Path(folder), settings, name)


def read_object(path: Path) -> dict:
    """A file's JSON object; {} where there is none: `peft_files.load` says what is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def choose_model(saved: Saved, given: str, device: str, dtype: str) -> models.ModelChoice:
    """The model that is `given`, or the adapter's own, in the dtype of the training unless another
    one is given. Raises UserError if no model is known.
    """
    name = saved.model if given == "auto" else given
    if not name:
        raise UserError(
            f"the adapter in {saved.folder} does not say which model it is for; give it with "
            "--model"
        )
    trained_in = saved.settings.get("dtype")
    if dtype == "auto" and trained_in in DTYPES:
        dtype = trained_in
    choice = models.find(name, device, dtype)
    saved.check_model(choice)
    return choice


def load_adapted(saved: Saved, choice: models.ModelChoice):
    """The model with the adapter on it. Raises UserError if they do not fit."""
    model = models.load_model(choice)
    peft_files.load(model, saved.folder)
    return model


# ---- testing -------------------------------------------------------------------------------------


def load_tests(names: list[str], saved: Saved, choice, options: data.Options, count: int):
    """The tests, worded as in the training. Raises UserError if they do not go together."""
    if not names:
        raise UserError(
            f"the adapter in {saved.folder} does not say its task; give one with --eval"
        )
    tests = data.load_alike(names, choice.tokenizer, options)
    for test in tests.values():
        saved.check_labels(test)
    number = saved.settings.get("set", 0)  # the queries that its training was tested on
    return [data.draw_test(test, count, options.seed, number) for test in tests.values()]


def test_adapter(saved: Saved, choice, tests: list[data.Data]) -> str:
    """A table of the base model and the adapter on the tests."""
    model = load_adapted(saved, choice)
    cpu.speed_up(model)
    steering = variants.read_steering(saved.folder, model.device)
    rows = []
    for method in ("base", "adapter"):
        is_base = method == "base"
        steered = steering is not None and not is_base
        with (
            lora.disable(model) if is_base else nullcontext(),
            steering.in_place(model) if steered else nullcontext() as edit,
        ):
            evaluations = ia2.evaluate_all(model, choice.tokenizer, tests, edit=edit)
            if saved.is_corrected and not is_base:
                evaluations = variants.correct_priors(model, choice.tokenizer, tests, evaluations)
        for test, evaluation in zip(tests, evaluations):
            rows.append(
                {
                    "dataset": tests[0].spec.name,
                    **saved.settings,
                    **data.test_settings(test),
                    **evaluation.scores,
                    "method": method,
                }
            )
    counts = ", ".join(f"{len(test.test)} of {test.spec.name}" for test in tests)
    return f"{choice.name}; test queries: {counts}\n\n{records.score_grid(rows)}"


# ---- merging -------------------------------------------------------------------------------------


def merge_adapter(saved: Saved, choice, out: Path) -> None:
    """Write the model with the adapter folded into its weights, and its tokenizer, to `out`.

    The folder appears whole or not at all. Raises UserError where something is there already, or
    the adapter is more than its weights.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; give a new folder to --merge")
    if variants.is_steered(saved.folder):
        raise UserError(
            f"the adapter in {saved.folder} was trained with a steering vector in place, which a "
            "merged model cannot hold; merge another one"
        )
    if saved.is_corrected:
        raise UserError(
            f"the adapter in {saved.folder} is of sft-prior, whose answers are corrected when they "
            "are read, which a merged model cannot hold; merge another one"
        )
    model = lora.merge(load_adapted(saved, choice))
    try:
        with cache.new_folder(out) as folder:
            model.save_pretrained(folder)
            choice.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror or error}); make room or give another folder"
        ) from error


def main(argv: list[str] | None = None) -> None:
    parser = cli.experiment_parser(__doc__.split("\n\n")[0], (), (), leave_out=TRAINING)
    parser.add_argument("folder", help="the adapter's folder")
    parser.add_argument(
        "--merge", metavar="OUT", help="write the merged model to the new folder OUT instead"
    )
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="(auto: that of the training)"
    )
    parser.set_defaults(seed=None)
    args = parser.parse_args(argv)
    saved = read_saved(args.folder)
    choice = choose_model(saved, args.model, args.device, args.dtype)
    if args.merge:
        merge_adapter(saved, choice, Path(args.merge))
        log(f"{args.merge} holds {choice.name} with the adapter merged, and its tokenizer")
        return
    options = data.Options(
        labels=args.labels or saved.settings.get("labels"),
        default_labels=choice.entry.labels,
        plain=choice.entry.plain,
        data_dir=args.data_dir,
        max_tokens=args.max_tokens or saved.settings.get("max_tokens"),
        seed=saved.settings.get("seed", 0) if args.seed is None else args.seed,
    )
    names = args.eval or ([saved.settings["dataset"]] if saved.settings else [])
    tests = load_tests(names, saved, choice, options, args.test)
    print(test_adapter(saved, choice, tests))


if __name__ == "__main__":
    sys.exit(cli.run_main(main, lora.LoRAError))
