"""Test a saved adapter, ours or PEFT's: `python -m lab.adapters runs/.../ia2-sft --eval movies tweets`.

Model, labels and task are by default those of its training, where the folder tells them.
"""
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import data
import ia2
import lora
from sources import models, offline, tasks
from sources.offline import UserError

TRAINING = ("--dataset", "--n", "--set", "--lr", "--methods", "--balanced", "--epochs", "--rank", "--out")

def read_settings(folder):
    """(settings of the training as far as known, name of the model) of the adapter in `folder`."""
    settings, config = {}, {}
    for name, found in (("training.json", settings), ("adapter_config.json", config)):
        try:
            found.update(json.loads(Path(folder, name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # PEFT's have no training.json; lora.load says more
            pass
    hub = config.get("base_model_name_or_path")
    known = next((name for name, entry in models.MODELS.items() if entry.hub == hub), hub)
    return settings, settings.get("model") or known

def main():
    parser = offline.options(__doc__.split("\n")[0], leave_out=TRAINING)
    parser.add_argument("folder", help="the adapter's folder")
    args = parser.parse_args()
    settings, name = read_settings(args.folder)
    name = name if args.model == "auto" else args.model
    names = args.eval or ([settings["dataset"]] if settings else [])
    if not Path(args.folder, "adapter_config.json").exists():
        raise UserError(f"{args.folder} is not an adapter folder: adapter_config.json is missing")
    if not name or not names:
        what = "which model it is for; give it with --model" if not name else "its task; give one with --eval"
        raise UserError(f"the adapter in {args.folder} does not say {what}")
    found = models.find(name, args.device)
    if settings and settings["model_hash"] != found.fingerprint:
        raise UserError(f"the adapter in {args.folder} was trained on {settings['model']} with other weights "
                        f"than those of {name}; test it on the model that it was trained on")
    tokenizer, style = found.tokenizer, args.labels or settings.get("labels")
    tests = [data.load(task, tokenizer, args, found.entry.plain, style, found.entry.labels) for task in names]
    for test in tests[1:]:
        tasks.check_pair(tests[0].task, test.task)
    model = models.load_model(found)
    lora.load(model, args.folder)
    rows = []
    for method in ("base", "adapter"):
        with lora.disable(model) if method == "base" else nullcontext():
            evaluations = [ia2.evaluate(model, tokenizer, test) for test in tests]
        rows += [{"dataset": tests[0].task.name, **settings, **data.held_out(test), **evaluation.scores,
                  "method": method} for test, evaluation in zip(tests, evaluations)]
    print(f"{name}; {len(tests[0].test)} test queries\n\n{offline.score_grid(rows)}")

if __name__ == "__main__":
    sys.exit(offline.run_main(main, lora.LoRAError))
