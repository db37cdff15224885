"""The commands behind docs/results.md: `python -m lab.reproduce` prints them, `--run` runs them."""
import shlex
import subprocess
import sys
from pathlib import Path

from sources import offline

RUNS = (  # (hours on one core by the logs, commits that made the rows, folder, options of lab.sweep)
    (0.99, "6643878", "qwen2.5-coder-1.5b-sst2", "--n 4 --sets 5 --lr 3e-4 --test 100 --data-dir benchmarks "
     "--model qwen2.5-coder-1.5b --dataset sst2 --eval sst2 finsen"),  # local copies; not needed with the hub
    (0.93, "6643878", "qwen2.5-coder-1.5b-movies", "--n 4 --sets 5 --lr 3e-4 --test 100 "
     "--model qwen2.5-coder-1.5b --dataset movies --eval movies amazon"),
    (0.29, "187f037", "qwen2.5-coder-0.5b-movies", "--n 4 --sets 5 --lr 3e-4 --test 100 "
     "--model qwen2.5-coder-0.5b --dataset movies --eval movies amazon"),
    (0.46, "187f037", "smollm2-135m-movies", "--n 4 --sets 5 --lr 3e-4 "
     "--dataset movies --eval movies amazon tweets"),
)

def main():
    parser = offline.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    args = parser.parse_args()
    for hours, commit, folder, options in RUNS:
        command = f"python -m lab.sweep {options} --out reproduced/{folder}"
        rows = Path("results", folder, "results.jsonl")
        print(f"{command}    # {hours} h, {commit}, rows {offline.sha256(rows)[:12]}", flush=True)
        if args.run:
            subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)

if __name__ == "__main__":
    sys.exit(offline.run_main(main, subprocess.CalledProcessError))
