"""What waits for a GPU, by one command: the tests of its path, then the benchmark, in one table.

    python -m experiments.gpu                                          # again: it goes on
    python -m experiments.gpu --device=cpu --n_layer 1 --repeats=1     # minutes, to try it

What a part prints is kept in out/gpu-DEVICE-N-repeats/PART.txt (PART.part until it has ended well),
and it is not run again while that is there; table.md beside them holds all. The classification set
is pocket-places, which needs no network.
"""
import subprocess
import sys
from pathlib import Path

from data import pocket
from data.flags import AT_LEAST_1, check_limits, new_parser, run_script
from data.tokenfile import write_atomically
from experiments.bench import ROWS

ROOT = Path(__file__).parent.parent


def main(argv=None):
    parser = new_parser("python -m experiments.gpu", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("--device", default="cuda", help="cuda or cpu")
    flag("--dataset", default="pocket-places", help="prepared set to fine-tune on and to classify")
    flag("--n_layer", type=int, nargs="+", default=[1, 6], help="depths")
    flag("--repeats", type=int, default=5, help="turns of each contestant")
    args = parser.parse_args(argv)
    check_limits(args, {"n_layer": AT_LEAST_1, "repeats": AT_LEAST_1})
    if args.dataset == "pocket-places":
        pocket.prepare()
    parts = {"tests": ["-m", "pytest", "-vv", "tests/test_cuda.py", "tests/test_meta.py"]}
    for table in ROWS:
        for n_layer in args.n_layer:
            parts[f"{table}-{n_layer}"] = [
                "-m", "experiments.bench", table, f"--n_layer={n_layer}",
                f"--repeats={args.repeats}", f"--device={args.device}", f"--dataset={args.dataset}"]
    folder, outputs = ROOT / "out" / f"gpu-{args.device}-{args.repeats}-repeats", []
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in parts.items():
        path = folder / f"{name}.txt"
        if not path.exists():
            print(" ".join(["python", *command]), flush=True)
            printed = path.with_suffix(".part")  # it tells of a part that is cut short, too
            with open(printed, "w") as file:
                done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file)
            if done.returncode:
                raise SystemExit(f"{printed.read_text()}\n{name} failed; the same command goes on "
                                 "there")
            printed.rename(path)
        outputs.append(path.read_text())
        print(outputs[-1], flush=True)
    write_atomically(folder / "table.md", "\n".join(outputs).encode())
    print(f"wrote {folder}/table.md")


if __name__ == "__main__":
    run_script(main)
