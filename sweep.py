"""The command line: the runs that a command means are done, in as few passes as it takes.

A cell is one n. Its runs, few-shot sets x learning rates, train together, stage by stage; what two methods share
(targets, ICL scores, the IA2 stage of ia2 and ia2-sft) is done once.
"""
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import adapters
import claims
import ia2
import lora
import metrics
import model as base
import options
import results
from fetch import UserError, new_folder
from lab import OVERLAPPING, Plan, folder_of, keep, make_row, missing, open_lab, plans_of, progress, row_key, say, settings_of

# ---- doing it ---------------------------------------------------------------------------------------------------------


def run_cell(lab, n):
    """Everything of one n: the teacher, then chunk by chunk every method, stage by stage."""
    plans = plans_of(lab, n)
    wanted = {plan.few_shot.number for method in plans for plan in plans[method] if missing(lab, plan)}
    teachers = {few_shot.number: teach(lab, n, few_shot) for few_shot in lab.sets[n]
                if few_shot.number in wanted}
    trained = [method for method in plans if ia2.METHODS[method]]
    pairs = [(plan.few_shot, plan.lr) for plan in (plans[trained[0]] if trained else ())
             if plan.few_shot.number in wanted]
    while pairs:
        chunk, pairs = pairs[:lab.together()], pairs[lab.together():]
        states = {}
        for method in trained:
            run_method(lab, [Plan(few_shot, n, lr, method) for few_shot, lr in chunk], teachers, states)


def teach(lab, n, few_shot):
    """ICL and base scores of one few-shot set, and its targets: ((training, dev) targets, {task: references})."""
    model, options = lab.model(), lab.options
    references, targets = {}, None
    for method, demos in (("icl", few_shot.train), ("base", ())):
        plan, rows = Plan(few_shot, n, None, method), []
        for task, exam in lab.exams.items():
            if method == "base" and (method not in options.methods or task not in missing(lab, plan)):
                continue
            start = time.perf_counter()
            with progress(f"n={n} set {few_shot.number}: {method} on {task}", len(exam.examples)) as bar:
                figures, = ia2.evaluate(model, lab.tokenizer, exam, demos=demos,
                                        references=[references[task]] if task in references else None, report=bar.update)
            if method == "icl":
                references[task] = figures["targets"]
                warn_about_teacher(lab, exam, few_shot, figures)
                table = torch.ones(model.config.num_hidden_layers, max(len(t.icl) for t in references[task]))
                figures["asim_table"] = table  # ICL is what asim compares with
            if method in options.methods:
                rows.append(make_row(lab, plan, task, figures, {
                    "steps": 0, "train_seconds": 0.0, "eval_seconds": round(time.perf_counter() - start, 2),
                    "dev_loss": None}))
        keep(lab, [row for row in rows if row["eval_dataset"] in missing(lab, plan)])
    if any(ia2.METHODS[method] for method in options.methods):
        with progress(f"n={n} set {few_shot.number}: targets"):
            targets = ia2.few_shot_targets(model, lab.tokenizer, few_shot, lab.max_tokens(), options.leave_out == "each")
    return targets, references


def warn_about_teacher(lab, exam, few_shot, figures):
    """Say so where ICL is a bad teacher: then there is nothing worth copying."""
    if not exam.task.labels:
        return
    chance, share = 1 / len(exam.task.labels), figures["largest_share"]
    if figures["accuracy"] <= chance or share > 0.9:
        say(f"warning: set {few_shot.number}: ICL is {'not better than chance' if figures['accuracy'] <= chance else 'stuck'}"
            f" (accuracy {figures['accuracy']:.2f}, one label for {share:.0%} of queries): IA2 copies that; "
            "try another --n, --labels or --balanced")


def run_method(lab, plans, teachers, states):
    """Train and test what is missing of one method's plans, together. `states` keeps the adapters of shared stages."""
    plans = [plan for plan in plans if missing(lab, plan)]
    if not plans:
        return
    model, method = lab.model(), plans[0].method
    folders = [folder_of(lab, plan) for plan in plans]
    if not all((folder / "training.json").exists() for folder in folders):
        train_method(lab, plans, folders, teachers, states)
    else:
        for number, folder in enumerate(folders):
            lora.set_state(model, lora.read(folder)[0], number)
    records = [{**json.loads((folder / "training.json").read_text()), **overlaps(lab, plan)}
               for plan, folder in zip(plans, folders)]
    for record in records:
        del record["history"], record["settings"]
    rows = [[] for _ in plans]
    for task, exam in lab.exams.items():
        due = [number for number, plan in enumerate(plans) if task in missing(lab, plan)]
        start = time.perf_counter()
        with progress(f"{label(plans)}: {method} on {task}", len(exam.examples) * len(due)) as bar:
            figures = ia2.evaluate(model, lab.tokenizer, exam, due, report=bar.update, references=[
                teachers[plans[number].few_shot.number][1][task] for number in due])
        seconds = round((time.perf_counter() - start) / max(len(due), 1), 2)
        for number, found in zip(due, figures):
            extra = {**records[number], "eval_seconds": seconds}
            rows[number].append(make_row(lab, plans[number], task, found, extra))
    keep(lab, [row for found in rows for row in found])


def label(plans):
    sets, rates = {plan.few_shot.number for plan in plans}, {plan.lr for plan in plans}
    return f"n={plans[0].n}, {len(sets)} set{'s' * (len(sets) > 1)}, {len(rates)} learning rate{'s' * (len(rates) > 1)}"


def train_method(lab, plans, folders, teachers, states):
    """Train the stages of one method for several plans together and save the adapters with a record of the training."""
    model, options, method = lab.model(), lab.options, plans[0].method
    stages, done, records = ia2.METHODS[method], (), [{"stages": []} for _ in plans]
    for number, plan in enumerate(plans):
        lora.reset(model, number, seed=options.seed * 1000 + plan.few_shot.number)
    for name in stages:
        done += (name,)
        shared = shared_stage(lab, plans, done, states) if done != stages else None
        if shared is None:
            kind = ia2.stage(name, options.sft_on, options.beta)
            runs = [ia2.Run(number, *teachers[plan.few_shot.number][0], plan.lr,
                            f"{options.seed}-{plan.few_shot.number}-{name}") for number, plan in enumerate(plans)]
            steps = options.max_epochs * -(-plans[0].n // ia2.BATCH)
            with progress(f"{label(plans)}: training {method}, stage {name}", steps, "step") as bar:
                def report(step, active, runs):
                    bar.update(step - bar.n)
                    if runs[0].history:
                        bar.set_postfix_str(f"step {step}, {len(active)} of {len(runs)} going on, first run: loss "
                                            f"{runs[0].history[-1][1]:.4g}, best dev loss {runs[0].dev_loss:.4g}")
                ia2.train(model, kind, runs, options.max_epochs, report=report)
            shared = [(lora.get_state(model, run.number), describe(run, kind)) for run in runs]
            states[done] = dict(zip(map(pair, plans), shared))
        for number, (state, record) in enumerate(shared):
            lora.set_state(model, state, number)
            records[number]["stages"].append(record)
    for plan, folder, record, number in zip(plans, folders, records, range(len(plans))):
        with new_folder(folder, keep=lambda: (folder / "training.json").exists()) as partial:
            lora.save(model, partial, number, base.hub_name(lab.name))
            last = record["stages"][-1]
            (partial / "README.md").write_text(adapters.card(lab, plan, last["dev_loss"]), encoding="utf-8")
            (partial / "training.json").write_text(json.dumps({
                "settings": settings_of(lab, plan), "dev_loss": last["dev_loss"],
                "steps": sum(stage["steps"] for stage in record["stages"]),
                "train_seconds": round(sum(stage["seconds"] for stage in record["stages"]), 2),
                "stages": [{key: value for key, value in stage.items() if key != "history"} for stage in record["stages"]],
                "history": [stage["history"] for stage in record["stages"]]}))


def pair(plan):
    return plan.few_shot.number, plan.lr


def describe(run, kind):
    """What is recorded of one run's stage."""
    return {"name": kind.name, "steps": run.steps, "best_step": run.best_step, "dev_loss": run.dev_loss,
            "seconds": round(run.seconds, 2), "beta": run.beta if len(kind.terms) > 1 else None, "history": run.history}


def shared_stage(lab, plans, done, states):
    """[(adapter, record)] of the stages `done` for these plans, if this command or an earlier one trained them already.

    Both are exact: adapters are saved in the float32 in which they are trained.
    """
    if done in states and all(pair(plan) in states[done] for plan in plans):
        return [states[done][pair(plan)] for plan in plans]
    method = next((method for method, stages in ia2.METHODS.items() if stages == done), None)
    folders = [folder_of(lab, replace(plan, method=method)) for plan in plans] if method else []
    if not folders or not all((folder / "training.json").exists() for folder in folders):
        return None
    found = []
    for folder in folders:
        training = json.loads((folder / "training.json").read_text())
        found.append((lora.read(folder)[0], {**training["stages"][-1], "history": training["history"][-1]}))
    return found


def overlaps(lab, plan):
    """How much this run's update shares with those of sft and ia2 on the same few-shot set.

    overlap: {other method: {module: [by layer]}}; overlap_chance: {module: r / d_out}, what random updates share.
    """
    if plan.method not in OVERLAPPING:
        return {}
    own, found, chance = lora.read(folder_of(lab, plan))[0], {}, {}
    for method in OVERLAPPING[:OVERLAPPING.index(plan.method)]:
        folder = folder_of(lab, replace(plan, method=method))
        if folder.exists():
            other, found[method] = lora.read(folder)[0], {}
            for name, (_, B) in own.items():
                module = name.rpartition(".")[2].removesuffix("_proj")
                found[method].setdefault(module, []).append(round(metrics.subspace_overlap(B, other[name][1]), 5))
                chance[module] = B.shape[1] / B.shape[0]
    return {"overlap": found, "overlap_chance": chance} if found else {}


def run(settings, argv):
    """Run a command's sweep and print its table."""
    lab = open_lab(settings, argv)
    for n in settings.n:
        run_cell(lab, n)
        adapters.write_cards(lab, [plan for plans in plans_of(lab, n).values() for plan in plans])
    keys = [row_key(lab, plan, task) for n in settings.n for plans in plans_of(lab, n).values() for plan in plans
            for task in lab.exams]
    rows = [lab.rows[key] for key in keys]
    print(results.tables(rows, list(ia2.METHODS)), end="")
    say(f"results: {lab.path}; adapters: the folders beside it")
    draw(rows, settings.plots)


def draw(rows, folder):
    """Save the figures of some rows, where a folder for them is given."""
    if folder:
        import plots  # matplotlib is slow to start and not needed otherwise

        say(f"figures: {len(plots.save_all(rows, folder))} in {folder}")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    settings = options.parse(argv)
    try:
        if settings.report:
            rows = results.read(settings.report)
            if not Path(settings.report).exists():
                raise UserError(f"there is no results file {settings.report}; give the path of a results.jsonl")
            text = "\n".join(filter(None, [results.report(rows, list(ia2.METHODS)), claims.table(rows)]))
            print(text, end="")
            say(results.write_report(settings.report, text, rows))
            draw(rows, settings.plots)
        elif settings.adapter:
            adapters.evaluate(settings)
        else:
            run(settings, argv)
        return 0
    except torch.OutOfMemoryError:
        problem = "the GPU is out of memory; use a smaller --together, --n or --max-tokens, or a smaller --model"
    except (UserError, lora.LoRAError) as error:
        problem = str(error)
    except OSError as error:  # a full disk, a folder taken away
        problem = f"{error}; mend that and run the same command again: what is finished is kept"
    except KeyboardInterrupt:
        problem = "interrupted; what is finished is kept, the same command goes on from there"
    print(f"error: {problem}", file=sys.stderr)
    return 2
