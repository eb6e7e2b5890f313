"""Exercises: without its body every function fails the tests that grade it, and so do typical
mistakes. That the project's own functions pass, the other test files show, and the first two tests
here, which grade what those leave open."""
import ast
import json
import re
import subprocess
import sys

import pytest
import torch

from experiments import exercise
from experiments.exercise import EXERCISES, ROOT, find_function, main, make_copy, without_body
from model import BertConfig, SelfAttention, rotary_cos_sin, rotate


def test_rotation_is_a_complex_product():
    torch.manual_seed(0)
    cos_sin, x = rotary_cos_sin(7, 6), torch.randn(2, 3, 7, 6)
    a, b = x[..., :3], x[..., 3:]
    expected = torch.complex(a, b) * torch.complex(cos_sin[0], cos_sin[1])
    rotated = rotate(x, cos_sin)
    assert rotated.shape == x.shape
    assert torch.allclose(rotated[:, :, 0], x[:, :, 0]), "at position 0 nothing must be rotated"
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-5), \
        "a rotation must not change lengths"
    assert torch.allclose(rotated[..., :3], expected.real, atol=1e-5) and torch.allclose(
        rotated[..., 3:], expected.imag, atol=1e-5), \
        "feature i and feature i + hs / 2 are the real and the imaginary part of a number, which " \
        "is multiplied by cos + i sin"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_attention_token_by_token(padded, rotary):
    """In loops over texts, heads and tokens."""
    torch.manual_seed(0)
    attention, B, T, n_head, size = SelfAttention(BertConfig(n_embd=12, n_head=2)), 2, 5, 2, 6
    x, cos_sin = torch.randn(B, T, 12), rotary_cos_sin(T, size)
    n_real = [5, 3 if padded else 5]
    mask = torch.arange(T) < torch.tensor(n_real)[:, None] if padded else None
    expected = torch.zeros(B, T, 12)
    for text in range(B):
        q, k, v = (part(x[text]).view(T, n_head, size).transpose(0, 1)
                   for part in (attention.query, attention.key, attention.value))
        if rotary:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        for i in range(T):
            heads = []
            for head in range(n_head):
                scores = torch.stack([q[head, i] @ k[head, j] for j in range(n_real[text])])
                weights = (scores / size ** 0.5).softmax(0)
                heads.append(weights @ v[head, :n_real[text]])
            expected[text, i] = attention.proj(torch.cat(heads))
    y = attention(x, x, mask, cos_sin if rotary else None, None)
    assert y.shape == (B, T, 12)
    assert torch.allclose(y, expected, atol=1e-5), \
        "not softmax(q k' / sqrt(hs)) v, head by head, and then proj"


# A mistake that students make: exercise -> the code in the function, and what replaces it.
MISTAKES = {
    "schedule": ("(step + 1) / n_warmup", "step / n_warmup"),
    "calibration": ("np.abs(gaps)", "gaps"),
    "hard-vote": ("votes + 1e-6 * outputs.mean(0)", "votes"),
    "soft-vote": ("statistics.pstdev", "statistics.stdev"),
    "batches": ("rng.permutation(range(0, len(order), batch_size))",
                "range(0, len(order), batch_size)"),
    "masking": ("dice < 0.9", "dice < 0.85"),
    "rotary": ("a * cos - b * sin", "a * cos + b * sin"),
    "attention": ("k.size(-1) ** 0.5", "k.size(-1)"),
    "step": ("model(*micro_batch) / n_targets",
             "model(*micro_batch) / (micro_batch.targets >= 0).sum() / len(micro_batches)"),
    "muon": ("n_steps):", "n_steps - 1):"),
    "bpe": ("(-n, pair)", "(n, pair)"),
}

# Run in a process of its own: pytest in one copy after the other; torch is loaded only once.
GRADE_ALL = """
import json, os, sys, pytest, torch

class Recorder:
    def __init__(self):
        self.cases = []
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.cases.append([report.nodeid, report.outcome, report.longreprtext])

results, known = {}, set(sys.modules)
for folder, tests in json.load(sys.stdin).items():
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and name.split(".")[0] in (
                "model", "training", "pretrain", "finetune", "committee", "data", "experiments",
                "conftest") or name.startswith("test_"):
            del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if path not in results]
    recorder = Recorder()
    code = pytest.main(["-p", "no:cacheprovider", "--rootdir=.", "--assert=plain", "--tb=line",
                        *tests], plugins=[recorder])
    results[folder] = {"code": int(code), "cases": recorder.cases}
json.dump(results, open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize("kind", ["empty", "wrong"])
def test_no_body_and_typical_mistakes_fail_the_grading_tests(tmp_path, kind):
    graders = {}  # folder: the tests that grade its exercise
    for name, (file, function, tests) in EXERCISES.items():
        folder = tmp_path / name
        graders[str(folder)] = tests
        make_copy(name, folder)
        source = (ROOT / file).read_text("utf-8")
        body = ast.get_source_segment(source, find_function(source, function))
        right, wrong = MISTAKES[name]
        assert body.count(right) == 1
        if kind == "wrong":
            source = source.replace(body, body.replace(right, wrong))
            (folder / file).write_text(source, "utf-8")
    done = subprocess.run([sys.executable, "-c", GRADE_ALL, str(tmp_path / "results.json")],
                          input=json.dumps(graders), text=True, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder, result in json.loads((tmp_path / "results.json").read_text()).items():
        failed = [(test, text) for test, outcome, text in result["cases"] if outcome == "failed"]
        assert result["code"] == 1 and failed, folder
        is_empty = ["NotImplementedError: write me" in text for _, text in failed]
        assert all(is_empty) if kind == "empty" else not any(is_empty)
        for test in graders[folder] if kind == "empty" else []:
            outcomes = {outcome for case, outcome, _ in result["cases"] if case.startswith(test)}
            assert outcomes & {"failed", "skipped"}, f"{test} needs no body"


@pytest.mark.parametrize("name", EXERCISES)
def test_only_the_body_is_gone(name):
    file, function, *_ = EXERCISES[name]
    source = (ROOT / file).read_text("utf-8")
    emptied, line = without_body(source, function)
    before, after = (find_function(text, function) for text in (source, emptied))
    assert ast.get_docstring(before) == ast.get_docstring(after) and len(after.body) == 2
    lines, left = source.splitlines(), emptied.splitlines()
    assert left.pop(line - 1).strip() == 'raise NotImplementedError("write me")'
    assert left == lines[:line - 1] + lines[before.end_lineno:]


def test_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([])
    listed = capsys.readouterr().out
    assert "\n  rotary       Rotary positions\n  attention    Attention with padding\n" in listed
    assert all(f"\n  {name} " in listed for name in EXERCISES)
    main(["rotary"])
    output = capsys.readouterr().out
    lines = (tmp_path / "exercise-rotary" / "model.py").read_text().splitlines()
    number = lines.index('    raise NotImplementedError("write me")') + 1
    assert output.startswith("Rotary positions\n\n`model.rotate`: rotates") and "\nWhy: " in output
    assert f"rotate() in exercise-rotary/model.py, line {number}." in output.replace("\\", "/")
    assert "    cd exercise-rotary\n    python -m pytest tests/test_exercise.py::test_rot" in output
    assert "The solution is rotate()\nin the project's own model.py" in output
    assert (tmp_path / "exercise-rotary" / "data" / "facts" / "countries.tsv").exists()
    with pytest.raises(SystemExit, match="exercise-rotary is there already: go on in it"):
        main(["rotary"])
    monkeypatch.setattr(exercise, "without_body", lambda *_: 1 / 0)  # interrupted in the middle
    with pytest.raises(ZeroDivisionError):
        main(["attention"])
    assert [path.name for path in tmp_path.iterdir()] == ["exercise-rotary"]
    with pytest.raises(SystemExit):
        main(["absent"])
    error = capsys.readouterr().err
    assert "invalid choice: 'absent'" in error and error.count("\n") == 1


def test_the_text_names_every_exercise():
    text = (ROOT / "experiments" / "exercises.md").read_text("utf-8")
    assert re.findall(r"^### \d+\. .* \(`(.*)`\)$", text, re.M) == list(EXERCISES)
    assert re.findall(r"^\| \d+ `(.*)` \|", text, re.M) == list(EXERCISES)
    assert all(f".{function}`" in text for _, function, *_ in EXERCISES.values())
