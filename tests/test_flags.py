"""Command lines: one line for a mistake, defaults in the help, limits beside the flag."""
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import needs_signals, write

from data import agnews, custom, fewrel, overlap, pocket, tokenizer, wikipedia
from data.flags import new_parser, number, parse_flags, refuse, refuse_other, run_script, user_path
from data.tokenfile import write_dataset


def parser():
    parser = new_parser("python -m data.x", "First line.\n\n    an example\n")
    parser.add_argument("--n_train", type=number(int, 0, 1000), default=0, help="how many")
    parser.add_argument("--rate", type=number(float, above=0, below=1), help="how fast")
    parser.add_argument("--weights", type=number(float), nargs="+", default=[1.0], help="of each")
    parser.add_argument("--markers", action="store_true", help="with markers")
    return parser


def test_help_names_the_defaults_and_keeps_the_layout(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    out = capsys.readouterr().out
    assert "First line.\n\n    an example\n" in out
    assert "how many (default: 0)" in out and out.count("(default") == 2


@pytest.mark.parametrize("flags, message", [
    ("--n_train=a", "--n_train: invalid int value: 'a'"),
    ("--n_t=1", "unrecognized arguments: --n_t=1"),
    ("--n_train=-1", "--n_train: -1 must be at least 0 and at most 1,000"),
    (f"--n_train={10**400}", "must be at least 0 and at most 1,000"),
    ("--rate=0", "--rate: 0 must be above 0 and below 1"),
    ("--rate=1", "--rate: 1 must be above 0 and below 1"),
    ("--rate=nan", "--rate: nan must be above 0"),
    ("--weights 1 inf", "--weights: inf must be finite"),
    ("--rate=", "--rate: invalid float value: ''")])
def test_a_mistake_is_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        parser().parse_args(flags.split(" "))
    out = capsys.readouterr().err
    assert error.value.code == 2 and message in out
    assert out.startswith("python -m data.x: ") and out.endswith("; see --help\n")
    assert out.count("\n") == 1


def test_flags_that_are_typed():
    args, typed = parse_flags(parser(), ["--n_train=0", "--weights", "2", "1e-300"])
    assert typed == {"n_train": 0, "weights": [2, 1e-300]}  # a default too, if it is typed
    assert vars(args) == typed | {"rate": None, "markers": False}
    assert parse_flags(parser(), ["--markers", "--rate=0.5"])[1] == {"markers": True, "rate": 0.5}
    refuse(typed, {"rate"}, "does nothing")
    with pytest.raises(SystemExit, match="^--n_train: does nothing; leave it out$"):
        refuse(typed, {"rate", "n_train"}, "does nothing")
    refuse_other(typed, {"n_train": 0, "rate": 0.1}, "out/run")
    with pytest.raises(SystemExit, match="^--n_train=0: out/run has 5; leave the flag out, or"):
        refuse_other(typed, {"n_train": 5, "weights": [2, 1e-300]}, "out/run")


DRAW = ["--n_train=5", "--n_test=2", "--name=x"]


@pytest.mark.parametrize("module, flags, numbers", [
    (custom, ["--name=x", "--source=a.jsonl"], ["n_val", "min_words", "seed"]),
    (custom, ["--name=x", "--source=a.jsonl", "--label=label"], ["n_train", "n_test", "seed"]),
    (fewrel, ["--source=train_wiki.json", *DRAW], ["n_train", "n_test", "seed"]),
    (agnews, ["--source", "a.csv", "a.csv", *DRAW], ["n_train", "n_test", "seed"]),
    (wikipedia, ["--source=a.jsonl", "--n_articles=9", "--n_val=9"],
     ["n_articles", "n_val", "seed"]),
    (overlap, ["--dataset=old", "--with=old", "--choose=low", "--n_articles=9", "--name=x"],
     ["n_articles", "seed"]),
    (tokenizer, ["--source=a.jsonl", "--out=x.tiktoken"], ["vocab_size"]),
    (pocket, [], ["coverage"])])
def test_any_number_works_or_is_refused(
        tmp_path, bin_dir, monkeypatch, capsys, module, flags, numbers):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pocket, "covering_articles", lambda *of: ["some text"])
    rows = [{"text": f"number {i} " + "word " * 30, "label": i % 2} for i in range(40)]
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "a.csv", "".join(f"{i % 4 + 1},,number {i}\n" for i in range(40)))
    entities = {"h": ["", "", [[0]]], "t": ["", "", [[1]]]}
    write(tmp_path / "train_wiki.json", json.dumps(
        {p: [entities | {"tokens": [p, str(i)]} for i in range(20)] for p in ("P1", "P2")}))
    write_dataset("old", [("train", row["text"]) for row in rows], tokenizer.get_tokenizer(), {})
    for flag in numbers:
        for value in ["0", "-1", "nan", "-inf", "1e-300", "270", "9" * 18, "9" * 400, ""]:
            try:
                module.main([*flags, f"--{flag}={value}"])
            except SystemExit as error:  # or argparse has printed its line
                message = error.code if isinstance(error.code, str) else capsys.readouterr().err
                assert len(message.splitlines()) == 1, message


START = "import errno, os, signal, sys, time\nfrom data.flags import run_script\n"


@pytest.mark.parametrize("script, code, message", [
    ("signal.raise_signal(signal.SIGTERM); time.sleep(60)", 1, "interrupted\n"),
    pytest.param("signal.raise_signal(signal.SIGHUP); time.sleep(60)", 1, "interrupted\n",
                 marks=needs_signals),
    ("print('x' * 100_000)", 1, ""),  # to a reader that has gone away
    ("os.name = 'nt'; raise OSError(errno.EINVAL, 'a closed pipe')", 1, ""),
    ("print('日本 \\udcff')", 0, ""),
    ("print('a line'); os._exit(3)", 3, ""),  # killed: the line is there all the same
])
def test_signals_and_closed_pipes_are_no_traceback(script, code, message):
    program = START + f"def main():\n    {script}\nrun_script(main)\n"
    reading, writing = os.pipe()
    if "100_000" in script:
        os.close(reading)
    result = subprocess.run([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE,
                            text=True, env={name: value for name, value in os.environ.items()
                                            if name != "PYTHONUNBUFFERED"}
                            | {"PYTHONIOENCODING": "cp1252"})
    assert (result.returncode, result.stderr) == (code, message)
    if "a line" in script:
        assert os.read(reading, 99).split() == [b"a", b"line"]


def test_ignored_signals_stay_ignored():
    """As with nohup, and in the background of a shell script."""
    program = ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + START
               + "run_script(lambda: (signal.raise_signal(signal.SIGINT), print('alive')))")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


def test_a_notebook_has_no_signals_in_threads_and_no_reconfigure(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=printed.append, flush=lambda: None))
    thread = threading.Thread(target=run_script, args=[lambda: print("done")])
    thread.start()
    thread.join()
    assert "done" in printed


def test_paths_as_users_type_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    for text, path in [("~/x", "/home/me/x"), ("out/x/ckpt.pt", "out/x"), ("out/x/", "out/x"),
                       ("pocket", "pocket"), ("", "")]:
        assert user_path(text) == path.replace("/", os.sep)
