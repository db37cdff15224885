"""The commands behind docs/results.md: `python -m lab.reproduce` prints them, `--run` runs them.

The committed rows are of the former procedure (`procedure` 1): the commands give those rows again
at commit 1717b65. With the present code they give rows of the present procedure.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import cli
from support.cache import sha256

SMALL = "smollm2-135m"
MIDDLE = "qwen2.5-coder-0.5b"
LARGE = "qwen2.5-coder-1.5b"
RATES = "--n 4 --lr 1e-4 3e-4 1e-3"
CONTROL = "--n 4 --lr 3e-4 --methods ia2 ia2-sft --demos"
SST2 = "--eval sst2 finsen --test 100 --data-dir benchmarks"  # local copies; the hub needs none
AMAZON = "--eval movies amazon --test 100"
TWEETS = "--eval movies amazon tweets"
OTHERS = "--methods sft-ia2 ia2+sft sft-icl kd"


@dataclass(frozen=True)
class Run:
    """A command of lab.sweep whose rows are committed."""

    hours: float  # on one core, by the logs
    commits: str  # that made the rows
    model: str
    dataset: str
    options: str

    @property
    def name(self) -> str:
        """Of the folder with its rows."""
        return f"{self.model}-{self.dataset}"

    @property
    def command(self) -> str:
        return (
            f"python -m lab.sweep --model {self.model} --dataset {self.dataset} --sets 5 "
            f"{self.options} --out reproduced/{self.name}"
        )


RUNS = (
    Run(2.45, "6643878, 35b636f", LARGE, "sst2", f"{SST2} {RATES}"),
    Run(1.16, "edabf18", LARGE, "sst2", f"{SST2} --n 4 --lr 3e-4 {OTHERS}"),
    Run(2.06, "6643878, 35b636f", LARGE, "movies", f"{AMAZON} {RATES}"),
    Run(1.73, "edabf18", LARGE, "movies", f"{AMAZON} --n 2 8 --lr 3e-4"),
    Run(0.57, "35b636f", LARGE, "movies", f"{AMAZON} {CONTROL} flipped"),
    Run(4.69, "187f037, abc8560", MIDDLE, "movies", f"{AMAZON} --n 2 4 8 --lr 1e-4 3e-4 1e-3"),
    Run(0.41, "edabf18", MIDDLE, "movies", f"{AMAZON} --n 8 --lr 3e-4 --labels digits"),
    Run(
        2.71,
        "187f037, 35b636f, edabf18",
        SMALL,
        "movies",
        f"{TWEETS} {RATES} {OTHERS} sft ia2 ia2-sft",
    ),
    Run(0.26, "35b636f", SMALL, "movies", f"--eval movies {CONTROL} flipped"),
    Run(0.22, "35b636f", SMALL, "movies", f"--eval movies {CONTROL} foreign"),
    Run(0.15, "35b636f", SMALL, "movies", f"--eval movies {CONTROL} none"),
)


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", action="store_true", help="run the commands, not only print them")
    args = parser.parse_args(argv)
    for run in RUNS:
        rows = sha256(Path("results", run.name, "results.jsonl"))
        print(f"{run.command}    # {run.hours} h, {run.commits}, rows {rows[:12]}", flush=True)
        if args.run:
            subprocess.run([sys.executable, *shlex.split(run.command)[1:]], check=True)


if __name__ == "__main__":
    sys.exit(cli.run_main(main, subprocess.CalledProcessError))
