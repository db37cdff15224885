"""Many runs: few-shot sets x n x learning rates x methods, on the functions of ia2.py. An interrupted sweep resumes.

    python -m lab.sweep --dataset movies --eval movies amazon --n 2 4 8 --sets 5 --lr 1e-4 3e-4 1e-3 --out runs/movies

Targets, ICL and base scores are shared by all that is trained on a few-shot set, and so is a stage that two methods
begin with. Job arrays give each job its `--set` and all of them one `--out`.
"""
import copy
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import data
import ia2
import lora
import metrics
from lab import report
from sources import offline, tasks
from sources.offline import UserError, say

STAGES = {"sft": ["sft"], "ia2": ["ia2"], "ia2-sft": ["ia2", "sft"], "sft-ia2": ["sft", "ia2"], "ia2+sft": ["ia2+sft"],
          "sft-icl": ["sft-icl"], "kd": ["kd"]}
METHODS = ("base", "icl", *STAGES)

# ---- losses beside L_IA2 and L_SFT --------------------------------------------------------------------------------


def sft_icl_loss(model, batch):
    """Cross-entropy of ICL's own responses: what there is to learn without true ones."""
    return ia2.sft_loss(model, [replace(target, gold=target.icl) for target in batch])


def joint_loss(beta, sft_loss):
    """L_IA2 + beta L_SFT."""
    def loss(model, batch):
        return ia2.ia2_loss(model, batch) + beta * sft_loss(model, batch)
    return loss


def equal_beta(model, sft_loss, targets):
    """The beta that makes both terms equal on the untrained model. L_IA2 depends on the model's scale (100 is common) and
    L_SFT does not; L_SFT counts as 0.1 at least, so that a response that the model gives anyway does not make it explode."""
    return ia2.mean_loss(model, ia2.ia2_loss, targets) / max(ia2.mean_loss(model, sft_loss, targets), 0.1)


def kd_loss(model, targets):
    """mean_g KL(p_ICL || p) at the output positions over the vocabulary (soft labels; Hinton et al., 2015)."""
    teachers = {}
    with torch.no_grad(), lora.disable(model):
        for target in targets:
            (_, logits), = ia2.forward(model, [target.prompt], [target.icl])
            teachers[id(target)] = logits.float().log_softmax(-1)                                       # (G, V)

    def loss(model, batch):
        outputs = ia2.forward(model, [target.query for target in batch], [target.icl for target in batch])
        return sum(F.kl_div(logits.float().log_softmax(-1), teachers[id(target)], log_target=True, reduction="batchmean")
                   for (_, logits), target in zip(outputs, batch)) / len(batch)
    return loss


# ---- the teacher's demos --------------------------------------------------------------------------------------------


def change_demos(few_shot, kind, train_data, foreign):
    """The set with other demos for its teacher: its own examples, the same with labels or responses that are another's
    (flipped), examples of the task `foreign`, or none."""
    if kind == "own":
        return few_shot
    if kind == "none":
        return replace(few_shot, demos=[])
    if kind == "foreign":
        return replace(few_shot, demos=foreign)
    texts = train_data.label_texts
    if texts:
        wrong = [(example.label + 1) % len(texts) for example in few_shot.train]
        return replace(few_shot, demos=[replace(example, response=texts[i], label=i)
                                        for example, i in zip(few_shot.train, wrong)])
    others = few_shot.train[1:] + few_shot.train[:1]
    return replace(few_shot, demos=[replace(example, response=other.response) for example, other in zip(few_shot.train, others)])


def foreign_task(args, train_data):
    """A task of the same family that is neither trained nor tested on. Raises UserError where there is none."""
    used = (args.dataset, train_data.task.name, *(args.eval or ()))
    for task in tasks.TASKS.values():
        alike = task.family == train_data.task.family and bool(task.snippets) == bool(train_data.task.snippets)
        if alike and task.name not in used:
            return task.name
    raise UserError(f"--demos foreign needs another task of the family of {train_data.task.name}; leave one out of --eval")


# ---- the sweep ------------------------------------------------------------------------------------------------------


def run_set(args, loaded, few_shot, previous):
    """Every method and rate that is missing of one few-shot set; `previous` is another set, the control of overlaps."""
    train_data, tests, tokenizer, model, settings = loaded
    settings = {**settings, **data.settings(train_data, few_shot), "demos": args.demos}

    def missing(method, **trained):
        run = offline.run_name({**settings, **trained, "method": method})
        there = {offline.row_key(row) for row in offline.read_rows(Path(args.out, "results.jsonl"))}
        return {(run, *list(data.held_out_settings(test).values())[::3]) for test in tests} - there

    untrained = dict.fromkeys(("lr", "rank", "epochs"))
    plain = [method for method in ("base", "icl") if method in args.methods and missing(method, **untrained)]
    plans = [(rate, method) for rate in args.lr for method in STAGES if method in args.methods]
    plans = [(rate, method) for rate, method in plans if missing(method, **trained_settings(args, rate, method))]
    if not plain and not plans:
        return
    say(f"n = {args.n}, set {args.set}: base, icl and targets")
    with lora.disable(model):
        icl = [ia2.evaluate(model, tokenizer, test, few_shot) for test in tests]
        base = [ia2.evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
    for method, found in (("base", base), ("icl", icl)):
        if method in plain:
            ia2.record(args, settings, method, tests, found)
    if not plans:
        return
    targets, dev = ia2.few_shot_targets(model, tokenizer, few_shot, train_data.max_tokens)
    sft_loss = sft_icl_loss if args.sft_on == "icl" else ia2.sft_loss
    losses = {"ia2": ia2.ia2_loss, "sft": sft_loss, "sft-icl": sft_icl_loss}
    if any(method == "kd" for _, method in plans):
        losses["kd"] = kd_loss(model, targets + dev)
    stages = {}  # what is trained already: {(rate, names of the stages): (adapter, records)}
    for rate, method in plans:
        if not missing(method, **trained_settings(args, rate, method)):  # another process was faster
            continue
        say(f"n = {args.n}, set {args.set}, rate {rate:g}: {method}")
        args.lr_now, extra = rate, {}
        lora.reset(model, 1000 * args.seed + args.set)
        if method == "ia2+sft":
            joint = ia2.sft_loss if args.sft_on == "gold" else sft_icl_loss
            extra["beta_used"] = args.beta or equal_beta(model, joint, targets)
            losses["ia2+sft"] = joint_loss(extra["beta_used"], joint)
        names, records = tuple(STAGES[method]), []
        if (rate, names[:1]) in stages and len(names) > 1:
            state, records = stages[rate, names[:1]]
            lora.set_state(model, state)
        for name in names[len(records):]:
            seed = f"{args.seed}-{args.set}"
            records = [*records, ia2.train(model, losses[name], targets, dev, rate, args.epochs, name, seed)]
            stages[rate, names[:len(records)]] = lora.get_state(model), records
        one = copy.copy(args)
        one.lr = rate
        found = [ia2.evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
        own = {**settings, **trained_settings(args, rate, method)}
        ia2.record(one, own, method, tests, found, records, model, dev,
                   overlap=overlaps(one, model, own, previous and {**own, **data.settings(train_data, previous)}), **extra)


def trained_settings(args, rate, method):
    """The settings of a trained run beyond those of its set; what a method does not use is no part of its name."""
    found = {"lr": rate, "rank": args.rank, "epochs": args.epochs}
    if args.sft_on and "sft" in method:
        found["sft_on"] = args.sft_on
    return {**found, "beta": args.beta} if args.beta and method == "ia2+sft" else found


def overlaps(args, model, settings, previous):
    """How much the adapter on the model shares with those of sft and ia2, of its own set and, as a control, of `previous`:
    {method or "<method>, other set": mean over modules}, and "chance", the share of random updates."""
    found, own = {}, {name: weight for name, weight in lora.weights(model).items() if ".lora_B." in name}
    for label, other in (("{}", settings), ("{}, other set", previous)):
        for method in ("sft", "ia2"):
            file = other and Path(args.out, offline.run_name({**other, "method": method}), "adapter_model.safetensors")
            if file and file.exists():
                theirs = load_file(file)
                shares = [metrics.subspace_overlap(weight.detach().cpu(), theirs[lora.PREFIX + name])
                          for name, weight in own.items()]
                found[label.format(method)] = round(sum(shares) / len(shares), 5)
    return {**found, "chance": round(sum(args.rank / len(weight) for weight in own.values()) / len(own), 5)}


def main():
    parser = offline.options(__doc__.split("\n")[0], METHODS, several="+")
    parser.add_argument("--sets", type=offline.whole(1), metavar="K", help="random few-shot sets 0 to K - 1 (--set alone)")
    parser.add_argument("--demos", type=offline.one_of(("own", "flipped", "foreign", "none")), default="own",
                        metavar="KIND", help="what the teacher sees: own, flipped, foreign or none (own)")
    parser.add_argument("--sft-on", type=offline.one_of(("gold", "icl")), metavar="WHICH",
                        help="responses of SFT: gold or icl (gold, in ia2+sft icl)")
    parser.add_argument("--beta", type=offline.rate, help="weight of SFT in ia2+sft (both losses equal at the start)")
    args = parser.parse_args()
    args.lr, sizes = sorted(set(args.lr if isinstance(args.lr, list) else [args.lr])), args.n
    sizes = sorted(set(sizes if isinstance(sizes, list) else [sizes]))
    loaded = ia2.prepare(args)
    train_data, balanced = loaded[0], loaded[-1]["balanced"]
    numbers = range(args.sets) if args.sets else [args.set]
    foreign = None
    if args.demos == "foreign":
        name = foreign_task(args, train_data)
        foreign = data.load(name, loaded[2], args, train_data.prompt != train_data.task.prompt, train_data.label_style)
    for args.n in sizes:
        draw = [data.few_shot_set(train_data.pool, args.n, number, args.seed, balanced) for number in numbers]
        for args.set, few_shot in zip(numbers, draw):
            shown = foreign and data.few_shot_set(foreign.pool, args.n, args.set, args.seed, balanced).train
            previous = draw[args.set - 1] if args.sets and args.sets > 1 else None
            run_set(args, loaded, change_demos(few_shot, args.demos, train_data, shown), previous)
    print(report.tables(offline.read_rows(Path(args.out, "results.jsonl"))))


if __name__ == "__main__":
    sys.exit(offline.run_main(main, lora.LoRAError))
