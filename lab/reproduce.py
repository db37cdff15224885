"""The commands behind docs/results.md: `python -m lab.reproduce` prints them, `--run` runs them."""
import shlex
import subprocess
import sys
from pathlib import Path

from sources import offline

RATES, CONTROL = "--lr 1e-4 3e-4 1e-3", "--lr 3e-4 --methods base icl ia2 ia2-sft --demos"
RUNS = (  # (hours on one core by the logs, commits that made the rows, model, data, options of lab.sweep)
    (2.45, "6643878, 35b636f", "qwen2.5-coder-1.5b", "sst2", f"--eval sst2 finsen {RATES} --test 100 "
     "--data-dir benchmarks"),  # local copies; not needed with the hub
    (2.06, "6643878, 35b636f", "qwen2.5-coder-1.5b", "movies", f"--eval movies amazon {RATES} --test 100"),
    (0.57, "35b636f", "qwen2.5-coder-1.5b", "movies", f"--eval movies amazon {CONTROL} flipped --test 100"),
    (0.29, "187f037", "qwen2.5-coder-0.5b", "movies", "--eval movies amazon --lr 3e-4 --test 100"),
    (1.18, "187f037, 35b636f", "smollm2-135m", "movies", f"--eval movies amazon tweets {RATES}"),
    (0.26, "35b636f", "smollm2-135m", "movies", f"--eval movies {CONTROL} flipped"),
    (0.22, "35b636f", "smollm2-135m", "movies", f"--eval movies {CONTROL} foreign"),
    (0.15, "35b636f", "smollm2-135m", "movies", f"--eval movies {CONTROL} none"),
)

def main():
    parser = offline.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    args = parser.parse_args()
    for hours, commits, model, dataset, options in RUNS:
        command = (f"python -m lab.sweep --model {model} --dataset {dataset} --n 4 --sets 5 {options} "
                   f"--out reproduced/{model}-{dataset}")
        rows = Path("results", f"{model}-{dataset}", "results.jsonl")
        print(f"{command}    # {hours} h, {commits}, rows {offline.sha256(rows)[:12]}", flush=True)
        if args.run:
            subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)

if __name__ == "__main__":
    sys.exit(offline.run_main(main, subprocess.CalledProcessError))
