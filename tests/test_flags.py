"""Command lines: one line for a mistake, defaults in the help."""
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from data.flags import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_limits, new_parser


def parser():
    parser = new_parser("python -m data.x", "First line.\n\n    an example\n")
    parser.add_argument("--n_train", type=int, default=0, help="how many")
    parser.add_argument("--name", help="by default another")
    parser.add_argument("--markers", action="store_true", help="with markers")
    return parser


def test_help_names_the_defaults_and_keeps_the_layout(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    out = capsys.readouterr().out
    assert "First line.\n\n    an example\n" in out
    assert "how many (default: 0)" in out and out.count("(default") == 1


@pytest.mark.parametrize("flag, message", [("--n_train=a", "--n_train: invalid int value: 'a'"),
                                           ("--n_t=1", "unrecognized arguments: --n_t=1")])
def test_a_mistake_is_one_line(capsys, flag, message):
    with pytest.raises(SystemExit) as error:
        parser().parse_args([flag])
    out = capsys.readouterr().err
    assert error.value.code == 2 and message in out
    assert out.startswith("python -m data.x: ") and out.endswith("; see --help\n")
    assert out.count("\n") == 1


@pytest.mark.parametrize("value, limits, message", [
    (0, AT_LEAST_1, "--n=0: must be at least 1"),
    ([3, 0], AT_LEAST_1, "--n=0: must be at least 1"),
    (1.5, (0, 1), "--n=1.5: must be at least 0 and at most 1"),
    (math.nan, (0, 1), "--n=nan: must be at least 0 and at most 1"),
    (math.inf, AT_LEAST_0, "--n=inf: must be at least 0 and finite"),
    (0.0, (ABOVE_0, math.inf), "--n=0.0: must be above 0"),
    (1.0, (0, BELOW_1), "--n=1.0: must be at least 0 and below 1"),
])
def test_limits(value, limits, message):
    with pytest.raises(SystemExit) as error:
        check_limits(SimpleNamespace(n=value), {"n": limits})
    assert str(error.value) == message


@pytest.mark.parametrize("value", [None, 1, 0.5, [1, 0.1], 1e-300])
def test_within_limits(value):
    check_limits(SimpleNamespace(n=value), {"n": (ABOVE_0, 1)})


@pytest.mark.parametrize("script, code, said", [
    ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 1, "interrupted\n"),
    ("raise KeyboardInterrupt", 1, "interrupted\n"),
    ("print('x' * 100_000)", 1, ""),  # to a reader that has gone away
    ("print('日本 \\udcff')", 0, ""),
])
def test_an_end_from_outside_is_no_traceback(script, code, said):
    program = ("import os, signal, sys, time\nfrom data.flags import run_script\n"
               f"def main():\n    {script}\nrun_script(main)\n")
    reading, writing = os.pipe()
    if "100_000" in script:
        os.close(reading)
    result = subprocess.run([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE,
                            text=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert (result.returncode, result.stderr) == (code, said)
