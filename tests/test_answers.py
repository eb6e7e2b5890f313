"""The answers to the questions of exercises.md: its commands as they are run, and their tables."""
import json
import subprocess

import pytest

from experiments import answers
from experiments.answers import (
    TEXT,
    change_code,
    find_blocks,
    find_questions,
    make_table,
    measure,
    with_seed,
    write_tables,
)

QUESTIONS = """# Exercises

    python not_a_question.py

## Change one thing

    python pretrain.py --n_layer=1

Words.

| old | table |
| --- | --- |

### 1. A question

    python pretrain.py --pos=learned

<details><summary>For the teacher</summary>

A reason.
</details>

## Projects

    python neither.py
"""


def test_questions_and_their_commands():
    first, question = find_questions(QUESTIONS)
    assert find_blocks(first) == ["python pretrain.py --n_layer=1\n"]
    assert find_blocks(question) == ["python pretrain.py --pos=learned\n"]


def test_the_projects_own_commands_are_bash():
    questions = find_questions(TEXT.read_text("utf-8"))
    assert len(questions) == 13
    for number, question in enumerate(questions):
        commands = [with_seed(block, 3) for block in find_blocks(question) if "python" in block]
        assert commands, number
        for block in commands:
            subprocess.run(["bash", "-n", "-c", block], check=True)


@pytest.mark.parametrize("command, seeded", [
    ("python pretrain.py --n_layer=1", "python pretrain.py --n_layer=1 --seed=2"),
    ("python finetune.py --seed=3 --n=x", "python finetune.py --seed=$((3 + 20)) --n=x"),
    ("    python pretrain.py --seed=$seed", "    python pretrain.py --seed=$(($seed + 20))"),
    ("python committee.py out/*", "python committee.py out/*"),
    ("python -m data.pocket", "python -m data.pocket")])
def test_seeds(command, seeded):
    assert with_seed(command, 2) == seeded


def test_a_line_of_code_goes_behind_the_one_that_begins_alike(tmp_path):
    (tmp_path / "code.py").write_text("def f():\n    old = 1\n    new = 2\n    return new\n")
    change_code(tmp_path / "code.py", "new = 3\n")
    assert (tmp_path / "code.py").read_text() == (
        "def f():\n    old = 1\n    new = 2\n    new = 3\n    return new\n")


def test_a_question_is_measured_in_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "OUT", tmp_path / "out")
    monkeypatch.setattr(answers, "RESULTS", tmp_path / "exercises.jsonl")
    last = json.dumps({"val_loss": 4.5, "seconds": 3.0, "tokens": 7})
    measure(0, f"    mkdir -p out/base data/bin; python --version; pwd > out/base/where\n"
               f"    echo '{last}' > out/base/log.jsonl", 1, 1)
    measure(1, "    new = 5\n\n    mkdir out/x; python -c 'import pretrain'; grep -c 'new = 5' "
               "pretrain.py\n    cp out/base/log.jsonl out/x", 1, 1)
    rows = [json.loads(line) for line in (tmp_path / "exercises.jsonl").read_text().splitlines()]
    assert [row["runs"] for row in rows] == [{"base": {"val_loss": 4.5, "seconds": 3.0}},
                                             {"x": {"val_loss": 4.5, "seconds": 3.0}}]
    where = (tmp_path / "out" / "0-1" / "out" / "base" / "where").read_text().strip()
    assert where == str(tmp_path / "out" / "0-1")
    assert not (tmp_path / "out" / "1-1").exists()
    with pytest.raises(SystemExit, match="question 2 failed, see .*2-1/log"):
        measure(2, "    python --version; false", 1, 1)


def test_tables_hold_means_and_replace_older_ones():
    rows = [{"question": number, "seed": seed, "runs": {
                f"run-{i}": {"accuracy": 0.5 + 0.1 * seed + 0.01 * i} for i in (1, 3)}}
            for number in (0, 1) for seed in (0, 1)]
    table = make_table(rows[:2])
    assert table.splitlines()[2] == "| run | 57.0 +- 7.1 |"
    text = write_tables(QUESTIONS, rows)
    assert f"Words.\n\n{table}\n### 1" in text and f"A reason.\n\n{table}</details>" in text
    assert "old" not in text and text.endswith(QUESTIONS.partition("</details>")[2])
    assert write_tables(text, rows) == text
