"""The command line's options: names, meanings, defaults, and what is allowed. Wrong values end in one line."""
import argparse
import math
import re
import sys
from difflib import get_close_matches

from ia2 import MAIN_METHODS, METHODS
from lora import PROJECTIONS, TARGETS


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr, with exit code 2."""

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def whole(low, high=10**9):
    """An option's type: a whole number from low to high."""
    def convert(text):
        if not re.fullmatch(r"\d+", text) or not low <= int(text) <= high:
            upper = f" to {high}" if high < 10**9 else " or more"
            raise argparse.ArgumentTypeError(f"must be a whole number of {low}{upper}, not {text!r}")
        return int(text)
    return convert


def positive(text):
    """An option's type: a number above zero that float32 arithmetic can take."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e30:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1e+30, not {text!r}")
    return value


def one_of(known):
    """An option's type: one of the known words; the nearest is suggested for others."""
    def convert(text):
        if text not in known:
            near = get_close_matches(text, known, n=1)
            raise argparse.ArgumentTypeError(f"{text!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; "
                                             f"use {', '.join(known)}")
        return text
    return convert


def shard(text):
    """An option's type: I/K with 0 <= I < K."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/K with I from 0 to K-1, as in 0/4, not {text!r}")
    return int(match[1]), int(match[2])


def parser():
    add = Parser(prog="ia2.py", description="Train small adapters with IA2 (ICL Activation Alignment) and SFT, and "
                 "compare them with the base model and in-context learning.", allow_abbrev=False)
    task = add.add_argument_group("task")
    option = task.add_argument
    option("--dataset", default="sst2", metavar="NAME", help="a task's name, or a folder with train.jsonl and test.jsonl")
    option("--eval", nargs="+", metavar="NAME", help="tasks to test on (default: the training task)")
    option("--data-dir", metavar="DIR", help="local copies of the benchmarks, DIR/<name>/{train,test}.jsonl, not the hub")
    option("--n", nargs="+", type=whole(2), default=[4], metavar="N", help="few-shot sizes (default: 4)")
    sets = task.add_mutually_exclusive_group()
    sets.add_argument("--sets", type=whole(1), metavar="K", help="random few-shot sets 0..K-1")
    sets.add_argument("--set", type=whole(0), metavar="I", help="one few-shot set (default: 0)")
    option("--balanced", action=argparse.BooleanOptionalAction, help="equal label counts in sets (default: the model's)")
    option("--leave-out", type=one_of(("one", "each")), default="one", metavar="WHICH",
           help="of the demos for a training example: one, itself, or each, one of each other label too (default: one)")
    option("--labels", type=one_of(("auto", "digits", "words", "remap")), default="auto", metavar="STYLE",
           help="auto (the task's or the model's), digits, words or remap")
    option("--test", type=whole(1), default=200, metavar="N", help="test queries per task (default: 200)")
    option = add.add_argument_group("model").add_argument
    option("--model", default="auto", metavar="NAME", help="auto, smollm2-135m, qwen3-4b, llama-3.2-1b, a hub id or a folder")
    option("--device", type=one_of(("auto", "cpu", "cuda")), default="auto", metavar="DEVICE", help="auto, cpu or cuda")
    option = add.add_argument_group("method (defaults: the paper's)").add_argument
    option("--methods", nargs="+", type=one_of(tuple(METHODS)), default=list(MAIN_METHODS), metavar="METHOD",
           help=f"out of {', '.join(METHODS)} (default: {' '.join(MAIN_METHODS)})")
    option("--lr", nargs="+", type=positive, default=[3e-4], metavar="LR", help="learning rates (default: 3e-4)")
    option("--rank", type=whole(1, 1024), default=8, help="LoRA's rank r (default: 8)")
    option("--alpha", type=positive, help="LoRA's alpha, the scale is alpha / r (default: the rank)")
    option("--targets", nargs="+", type=one_of(PROJECTIONS), default=list(TARGETS), metavar="NAME",
           help=f"projections that get LoRA, out of {' '.join(PROJECTIONS)} (default: {' '.join(TARGETS)})")
    option("--sft-on", type=one_of(("gold", "icl")), metavar="WHICH",
           help="responses of the SFT stage: gold or icl (default: gold, in ia2+sft icl)")
    option("--beta", type=positive, help="weight of SFT in ia2+sft (default: both losses weigh the same at the start)")
    option("--max-epochs", type=whole(1), default=50, help="epochs of a stage at most (default: 50)")
    option("--max-tokens", type=whole(2), metavar="G", help="response tokens of free-text tasks (default: the task's, 200)")
    option("--bins", type=whole(1), default=15, help="bins of the expected calibration error (default: 15)")
    option = add.add_argument_group("run").add_argument
    option("--together", type=whole(1), metavar="K", help="runs trained in one pass at most (default: by free memory)")
    option("--shard", type=shard, default=(0, 1), metavar="I/K", help="every K-th few-shot set from the I-th on")
    option("--seed", type=whole(0), default=0, help="the seed of everything random (default: 0)")
    option("--out", default="runs", metavar="DIR", help="where results and adapters go (default: runs)")
    option("--adapter", metavar="DIR", help="test a saved adapter, ours or PEFT's, on --eval; nothing is trained")
    option("--plots", metavar="DIR", help="with --report or after a run: save the figures as PNG there")
    option("--report", metavar="FILE", help="print the tables of a results.jsonl; nothing is run")
    return add


def parse(argv=None):
    options = parser().parse_args(argv)
    options.methods = [method for method in METHODS if method in options.methods]  # in the order of the table
    options.n, options.lr = sorted(set(options.n)), sorted(set(options.lr))
    options.alpha = options.alpha or options.rank
    options.targets = [name for name in PROJECTIONS if name in options.targets]
    if not options.adapter:  # an adapter knows what it was trained on
        options.eval = options.eval or [options.dataset]
    options.eval = list(dict.fromkeys(options.eval or []))
    numbers = range(options.sets) if options.sets else [options.set or 0]
    options.numbers = [number for place, number in enumerate(numbers) if place % options.shard[1] == options.shard[0]]
    return options


def command(settings, **changes):
    """The shortest command that means `settings` with some of them changed, as a list of words."""
    words, values, usual = ["python", "ia2.py"], {**vars(settings), **changes}, vars(parse([]))
    for option in parser()._actions:
        value = values.get(option.dest)
        if option.dest == "help" or value is None or value == usual[option.dest]:
            continue
        if isinstance(option, argparse.BooleanOptionalAction):
            words.append(option.option_strings[0 if value else 1])
        elif option.dest == "shard":
            words += [option.option_strings[0], "/".join(map(str, value))]
        else:
            words += [option.option_strings[0], *map(str, value if isinstance(value, list) else [value])]
    return words
