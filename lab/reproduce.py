"""The commands behind docs/results.md: `python -m lab.reproduce` prints them, `--run` runs them."""
import shlex
import subprocess
import sys

from sources import offline

RUNS = (  # (hours on 2 cores by the logs, folder under results/, options of lab.sweep)
)

def main():
    parser = offline.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    args = parser.parse_args()
    for hours, folder, options in RUNS:
        command = f"python -m lab.sweep {options} --out reproduced/{folder}"
        print(f"{command}    # {hours}", flush=True)
        if args.run:
            subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)

if __name__ == "__main__":
    sys.exit(offline.run_main(main, subprocess.CalledProcessError))
