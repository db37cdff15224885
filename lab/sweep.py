"""Many runs: few-shot sets x n x rates x methods, on the functions of ia2.py. What is interrupted resumes.

    python -m lab.sweep --dataset movies --eval movies amazon --n 2 4 8 --sets 5 --lr 1e-4 3e-4 1e-3

Targets, ICL and base scores are shared by all that is trained on a few-shot set, and so is a stage that two
methods begin with. Job arrays give each job its `--set` and all of them one `--out`.
"""
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file

import data
import ia2
import lora
import metrics
from lab import report
from sources import offline, tasks
from sources.offline import UserError, say

STAGES = {"sft": ["sft"], "ia2": ["ia2"], "ia2-sft": ["ia2", "sft"], "sft-ia2": ["sft", "ia2"],
          "ia2+sft": ["ia2+sft"], "sft-icl": ["sft-icl"], "kd": ["kd"]}
METHODS = report.ORDER

# ---- losses beside L_IA2 and L_SFT -------------------------------------------------------------------------

def sft_icl_loss(model, batch):
    """Cross-entropy of ICL's own responses: what there is to learn without true ones."""
    return ia2.sft_loss(model, [replace(target, gold=target.icl) for target in batch])

def joint_loss(beta, sft_loss):
    """L_IA2 + beta L_SFT."""
    def loss(model, batch):
        return ia2.ia2_loss(model, batch) + beta * sft_loss(model, batch)
    return loss

def losses_of(args, model, targets, dev, methods):
    """{stage: its loss} for the methods of a few-shot set.

    The beta of ia2+sft is by default the one that makes both terms equal on the untrained model: L_IA2
    depends on the model's scale (100 is common) and L_SFT does not. L_SFT counts as 0.1 at least, so that a
    response that the model gives anyway does not make beta explode.
    """
    sft = sft_icl_loss if args.sft_on == "icl" else ia2.sft_loss
    losses = {"ia2": ia2.ia2_loss, "sft": sft, "sft-icl": sft_icl_loss}
    if "kd" in methods:
        losses["kd"] = kd_loss(model, targets + dev)
    if "ia2+sft" in methods:
        joined = ia2.sft_loss if args.sft_on == "gold" else sft_icl_loss
        lora.reset(model)
        equal = ia2.mean_loss(model, ia2.ia2_loss, targets) / max(ia2.mean_loss(model, joined, targets), 0.1)
        losses["ia2+sft"] = joint_loss(args.beta or equal, joined)
    return losses

def kd_loss(model, targets):
    """mean_g KL(p_ICL || p) at the output positions over the vocabulary (soft labels; Hinton et al. 2015)."""
    teachers = {}
    with torch.no_grad(), lora.disable(model):
        for target in targets:
            (_, logits), = ia2.forward(model, [target.prompt], [target.icl])
            teachers[id(target)] = logits.float().log_softmax(-1)                                     # (G, V)

    def loss(model, batch):
        outputs = ia2.forward(model, [target.query for target in batch], [target.icl for target in batch])
        parts = [F.kl_div(logits.float().log_softmax(-1), teachers[id(target)], log_target=True,
                          reduction="batchmean") for (_, logits), target in zip(outputs, batch)]
        return sum(parts) / len(batch)
    return loss

# ---- the teacher's demos -----------------------------------------------------------------------------------

def change_demos(few_shot, kind, label_texts, foreign):
    """The set with other demos for its teacher: the same with the label or response of another (flipped), the
    examples `foreign`, none, or its own."""
    if kind == "flipped" and label_texts:
        wrong = [(example.label + 1) % len(label_texts) for example in few_shot.train]
        return replace(few_shot, demos=[replace(example, response=label_texts[i], label=i)
                                        for example, i in zip(few_shot.train, wrong)])
    if kind == "flipped":
        responses = [example.response for example in few_shot.train[1:] + few_shot.train[:1]]
        return replace(few_shot, demos=[replace(example, response=response)
                                        for example, response in zip(few_shot.train, responses)])
    return replace(few_shot, demos={"own": few_shot.train, "foreign": foreign, "none": []}[kind])

def foreign_data(args, loaded):
    """A task of the same family, and of the same kind of source, that is neither trained nor tested on."""
    train_data, _, tokenizer, *_ = loaded
    for task in tasks.TASKS.values():
        own = train_data.task
        alike = task.family == own.family and bool(task.snippets) == bool(own.snippets)
        if alike and task.name not in (args.dataset, train_data.task.name, *(args.eval or ())):
            plain = train_data.prompt != train_data.task.prompt
            return data.load(task.name, tokenizer, args, plain, train_data.label_style)
    raise UserError(f"--demos foreign needs a task like {train_data.task.name}; leave one out of --eval")

# ---- the sweep ---------------------------------------------------------------------------------------------

def run_set(args, loaded, few_shot, previous):
    """Every method and rate that is missing of a few-shot set; `previous` is another set, the control."""
    train_data, tests, tokenizer, model, settings = loaded
    settings = {**settings, **data.settings(train_data, few_shot), "demos": args.demos}
    file = Path(args.out, "results.jsonl")

    def missing(method, **trained):
        plain = {"lr": None, "rank": None, "epochs": None}
        run = offline.run_name({**settings, **plain, **trained, "method": method})
        there = set(map(offline.row_key, offline.read_rows(file)))
        return any((run, test.task.name, data.digest(test.test)) not in there for test in tests)

    plain = [method for method in ("base", "icl") if missing(method)]
    plans = [(rate, method) for rate in args.rates for method in STAGES if method in args.methods
             and missing(method, **trained_settings(args, rate, method))]
    if not plain and not plans:
        return
    say(f"n = {args.n}, set {args.set}: base, icl and targets")
    with lora.disable(model):
        icl = [ia2.evaluate(model, tokenizer, test, few_shot) for test in tests]
        base = [ia2.evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
    for method in plain:
        ia2.record(args, settings, method, tests, base if method == "base" else icl)
    if not plans:
        return
    targets, dev = ia2.few_shot_targets(model, tokenizer, few_shot, train_data.max_tokens)
    losses = losses_of(args, model, targets, dev, [method for _, method in plans])
    trained = {}  # {(rate, *names of stages): (adapter, what train returned)}
    for args.lr, method in plans:
        own = trained_settings(args, args.lr, method)
        if not missing(method, **own):  # another process was faster
            continue
        say(f"n = {args.n}, set {args.set}, rate {args.lr:g}: {method}")
        lora.reset(model, 1000 * args.seed + args.set)
        names, stages = STAGES[method], []
        if (args.lr, names[0]) in trained:  # a stage that another method began with
            state, stages = trained[args.lr, names[0]]
            lora.set_state(model, state)
        for name in names[len(stages):]:
            loss, seed = losses[name], f"{args.seed}-{args.set}"
            stages = [*stages, ia2.train(model, loss, targets, dev, args.lr, args.epochs, name, seed)]
            trained[args.lr, *names[:len(stages)]] = lora.get_state(model), stages
        found = [ia2.evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
        own = {**settings, **own}
        others = {**own, **data.settings(train_data, previous)} if previous else None
        shares = overlaps(args, model, own, others)
        ia2.record(args, own, method, tests, found, stages, model, dev, overlap=shares)

def trained_settings(args, rate, method):
    """The settings of a trained run beyond those of its set, as far as its method uses them."""
    found = {"lr": rate, "rank": args.rank, "epochs": args.epochs}
    if args.sft_on and "sft" in method:
        found["sft_on"] = args.sft_on
    return {**found, "beta": args.beta} if args.beta and method == "ia2+sft" else found

def overlaps(args, model, settings, previous):
    """What the adapter on the model shares with those of sft and ia2, of its own set and of `previous`:
    {method or "<method>, other set": mean over modules}, and "chance", what random updates share."""
    found, own = {}, {name: weight for name, weight in lora.weights(model).items() if ".lora_B." in name}
    for label, other in (("{}", settings), ("{}, other set", previous)):
        for method in ("sft", "ia2"):
            run = other and offline.run_name({**other, "method": method})
            file = run and Path(args.out, run, "adapter_model.safetensors")
            with FileLock(Path(args.out, offline.LOCK)):
                theirs = load_file(file) if file and file.exists() else None
            if theirs:
                shares = [metrics.subspace_overlap(weight.detach().cpu(), theirs[lora.PREFIX + name])
                          for name, weight in own.items()]
                found[label.format(method)] = round(sum(shares) / len(shares), 5)
    return {**found, "chance": round(sum(args.rank / len(weight) for weight in own.values()) / len(own), 5)}

def main():
    parser = offline.options(__doc__.split("\n")[0], METHODS, several="+")
    add = parser.add_argument
    add("--sets", type=offline.count, metavar="K", help="random few-shot sets 0 to K - 1 (--set alone)")
    add("--demos", choices=("own", "flipped", "foreign", "none"), default="own", help="what ICL sees (own)")
    add("--sft-on", choices=("gold", "icl"), help="responses of SFT (gold, in ia2+sft icl)")
    add("--beta", type=offline.rate, help="weight of SFT in ia2+sft (both losses equal at the start)")
    args = parser.parse_args()
    args.rates, sizes = (sorted(set(given if isinstance(given, list) else [given]))
                         for given in (args.lr, args.n))
    loaded = ia2.prepare(args)
    train_data, balanced = loaded[0], loaded[-1]["balanced"]
    foreign, numbers = foreign_data(args, loaded) if args.demos == "foreign" else None, range(args.sets or 0)
    for args.n in sizes:
        sets = [data.few_shot_set(train_data.pool, args.n, i, args.seed, balanced)
                for i in numbers or [args.set]]
        for few_shot in sets:
            args.set = few_shot.number
            shown = foreign and data.few_shot_set(foreign.pool, args.n, args.set, args.seed, balanced).train
            changed = change_demos(few_shot, args.demos, train_data.label_texts, shown)
            run_set(args, loaded, changed, sets[sets.index(few_shot) - 1] if len(sets) > 1 else None)
    print(report.tables(offline.read_rows(Path(args.out, "results.jsonl"))))

if __name__ == "__main__":
    sys.exit(offline.run_main(main, lora.LoRAError))
