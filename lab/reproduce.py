"""The commands behind docs/results.md: `python -m lab.reproduce` prints them, `--run` runs them."""
import shlex
import subprocess
import sys
from pathlib import Path

from sources import offline

SMALL, MIDDLE, LARGE = "smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"
RATES, CONTROL = "--n 4 --lr 1e-4 3e-4 1e-3", "--n 4 --lr 3e-4 --methods ia2 ia2-sft --demos"
SST2 = "--eval sst2 finsen --test 100 --data-dir benchmarks"  # local copies; not needed with the hub
AMAZON, TWEETS = "--eval movies amazon --test 100", "--eval movies amazon tweets"
OTHERS = "--methods sft-ia2 ia2+sft sft-icl kd"
RUNS = (  # (hours on one core by the logs, commits that made the rows, model, data, options of lab.sweep)
    (2.45, "6643878, 35b636f", LARGE, "sst2", f"{SST2} {RATES}"),
    (1.16, "edabf18", LARGE, "sst2", f"{SST2} --n 4 --lr 3e-4 {OTHERS}"),
    (2.06, "6643878, 35b636f", LARGE, "movies", f"{AMAZON} {RATES}"),
    (1.73, "edabf18", LARGE, "movies", f"{AMAZON} --n 2 8 --lr 3e-4"),
    (0.57, "35b636f", LARGE, "movies", f"{AMAZON} {CONTROL} flipped"),
    (4.69, "187f037, abc8560", MIDDLE, "movies", f"{AMAZON} --n 2 4 8 --lr 1e-4 3e-4 1e-3"),
    (0.41, "edabf18", MIDDLE, "movies", f"{AMAZON} --n 8 --lr 3e-4 --labels digits"),
    (2.71, "187f037, 35b636f, edabf18", SMALL, "movies", f"{TWEETS} {RATES} {OTHERS} sft ia2 ia2-sft"),
    (0.26, "35b636f", SMALL, "movies", f"--eval movies {CONTROL} flipped"),
    (0.22, "35b636f", SMALL, "movies", f"--eval movies {CONTROL} foreign"),
    (0.15, "35b636f", SMALL, "movies", f"--eval movies {CONTROL} none"),
)

def main():
    parser = offline.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    args = parser.parse_args()
    for hours, commits, model, dataset, options in RUNS:
        command = (f"python -m lab.sweep --model {model} --dataset {dataset} --sets 5 {options} "
                   f"--out reproduced/{model}-{dataset}")
        rows = Path("results", f"{model}-{dataset}", "results.jsonl")
        print(f"{command}    # {hours} h, {commits}, rows {offline.sha256(rows)[:12]}", flush=True)
        if args.run:
            subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)

if __name__ == "__main__":
    sys.exit(offline.run_main(main, subprocess.CalledProcessError))
