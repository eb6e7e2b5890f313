"""Command lines: one line for a mistake, defaults in the help."""
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import write

from data import agnews, custom, fewrel, overlap, pocket, tokenizer, wikipedia
from data.flags import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_limits, new_parser
from data.tokenfile import write_dataset


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


DRAW = ["--n_train=5", "--n_test=2", "--name=x"]


@pytest.mark.parametrize("module, flags, numbers", [
    (custom, ["--name=x", "--source=a.jsonl"], ["n_val", "min_words", "seed"]),
    (custom, ["--name=x", "--source=a.jsonl", "--label=label"], ["n_train", "n_test", "seed"]),
    (fewrel, ["--source=train_wiki.json", *DRAW], ["n_train", "n_test", "seed"]),
    (agnews, ["--source", "a.csv", "a.csv", *DRAW], ["n_train", "n_test", "seed"]),
    (wikipedia, ["--source=a.jsonl", "--n_articles=9", "--n_val=9"],
     ["n_articles", "n_val", "seed"]),
    (overlap, ["--dataset=old", "--with=old", "--choose=low", "--n_articles=9", "--name=x"],
     ["n_articles", "seed", "block_size", "min_count"]),
    (tokenizer, ["--source=a.jsonl", "--out=x.tiktoken"], ["vocab_size"]),
    (pocket, [], ["coverage"])])
def test_any_number_works_or_is_refused(
        tmp_path, bin_dir, monkeypatch, capsys, module, flags, numbers):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pocket, "covering_articles", lambda *of: ["some text"])
    rows = [{"text": f"number {i} " + "word " * 30, "label": i % 2} for i in range(40)]
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "a.csv", "".join(f"{i % 4 + 1},,number {i}\n" for i in range(40)))
    places = {"h": ["", "", [[0]]], "t": ["", "", [[1]]]}
    write(tmp_path / "train_wiki.json", json.dumps(
        {p: [places | {"tokens": [p, str(i)]} for i in range(20)] for p in ("P1", "P2")}))
    write_dataset("old", [("train", row["text"]) for row in rows], tokenizer.get_tokenizer(), {})
    for flag in numbers:
        for number in ["0", "-1", "nan", "-inf", "1e-300", "270", "9" * 18, "9" * 400, ""]:
            try:
                module.main([*flags, f"--{flag}={number}"])
            except SystemExit as error:  # argparse has printed its line
                said = error.code if isinstance(error.code, str) else capsys.readouterr().err
                assert len(said.splitlines()) == 1, said


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
