"""Fine-tuning from flags to files: what is learned, reported, saved, predicted and refused."""
import csv
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import OWN, ROOT, log_of, texts_of

import finetune
import pretrain
import training
from data.batches import Corpus
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import MARKERS, get_tokenizer
from model import BertConfig

MODEL = ["--n_layer=1", "--n_embd=32", "--n_head=2", "--block_size=32"]
CPU = ["--device=cpu", "--dtype=float32"]
FAST = ["--epochs=6", "--batch_size=8", "--lr=1e-2", *CPU]


@pytest.fixture(scope="module")
def folder(weather):
    """The datasets "labelled" and "plain", and a run that was pre-trained on the latter ("run")."""
    pretrain.main([f"--dataset={weather}/plain", f"--out_dir={weather}/run", "--epochs=1", *MODEL,
                   *CPU])
    return weather


def run(folder, out_dir, *flags):
    """Fine-tune on "labelled", from the pre-trained run unless the flags say otherwise."""
    return finetune.main([f"--dataset={folder}/labelled", f"--init_from={folder}/run",
                          f"--out_dir={out_dir}", *FAST, *flags])


def test_learning_files_and_prediction(folder, tmp_path, capsys, monkeypatch):
    result = run(folder, tmp_path)
    assert result["accuracy"] > 0.9 and result["part"] == "test" and result["n"] == 30
    summary = f"test accuracy {result['accuracy']:.1%} of 30 (the most frequent class alone: 33.3%)"
    assert summary in capsys.readouterr().out
    assert {"ckpt.pt", "log.jsonl", "test.npz", "predictions.csv"} == set(os.listdir(tmp_path))
    rows = log_of(tmp_path)
    assert rows[-1] == result and [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert result["examples"] == 6 * 69 and result["positions"] >= result["tokens"]
    # the saved outputs are those of the saved model, in the order of the test set
    saved = np.load(tmp_path / "test.npz")
    model, tokenizer, names = finetune.load_classifier(tmp_path)
    assert names == ["day", "night", "rain"]
    dataset = Dataset(folder / "labelled")
    assert (saved["labels"] == dataset.labels("test")).all()
    corpus = Corpus(*dataset.split("test"), 32)
    for i in (0, 7, 29):
        tokens, _, _ = corpus.rows(np.array([i]), tokenizer)
        probabilities = model(tokens).softmax(-1)[0].detach()
        np.testing.assert_allclose(saved["probabilities"][i], probabilities, atol=1e-5)
    assert (saved["probabilities"].argmax(1) == saved["labels"]).mean() == result["accuracy"]
    # --predict: a text, or a line each from standard input, empty ones included
    finetune.main([f"--out_dir={tmp_path}", "--predict=moon and stars", "--device=cpu"])
    assert capsys.readouterr().out.startswith("night ")
    lines = "the sun\n\nwet drops of\n" + "sun " * 200
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    finetune.main([f"--out_dir={tmp_path}", "--predict=-", "--device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [lines[i].split()[0] for i in (0, 2, 3)] == ["day", "rain", "day"] and len(lines) == 4
    assert lines[0].count("%") == 3


def test_weights_come_from_the_run_or_from_the_seed(folder):
    def encoder(*flags):
        args = finetune.get_parser().parse_args(flags)
        return finetune.make_model(args, {}, Dataset(folder / "labelled")).bert
    saved = training.load_checkpoint(folder / "run")["model"]
    trained = encoder(f"--init_from={folder}/run")
    for name, weights in trained.state_dict().items():
        assert torch.equal(weights, saved[f"bert.{name}"])
    like = encoder("--init_from=scratch", f"--like={folder}/run")
    fresh = encoder("--init_from=scratch", *MODEL)
    other = encoder("--init_from=scratch", *MODEL, "--seed=1")
    assert like.config == fresh.config == trained.config
    assert torch.equal(like.wte.weight, fresh.wte.weight)
    for different in (trained, other):
        assert not torch.equal(like.wte.weight, different.wte.weight)


def test_a_table_of_predictions(tmp_path):
    """The most confident mistakes first; what a cell may hold comes back as it was."""
    texts = ["right", 'a "quoted", text', "unsure", "sure\tand wrong"]
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.99, 0.01]])
    labels = np.array([0, 1, 1, 1])
    finetune.write_table(tmp_path / "x.csv", texts, labels, probabilities, ["a", "b"])
    rows = list(csv.reader(open(tmp_path / "x.csv", newline="")))
    assert rows[0] == ["text", "true label", "predicted label", "probability"]
    assert [row[0] for row in rows[1:]] == [texts[i] for i in (3, 2, 0, 1)]
    assert rows[1][1:] == ["b", "a", "0.990"]


def test_a_classifier_is_tested_on_another_dataset(folder, tmp_path, capsys):
    """Its classes in another order, and one that it does not know."""
    result = run(folder, tmp_path / "run")
    source, items = Dataset(folder / "labelled"), []
    for text, label in zip(texts_of(folder / "labelled", "test"), source.labels("test")):
        items.append(("test", text, 2 - label))
    items += [("train", "the sun", 0), ("test", "a blizzard", 3)]
    names = [*reversed(source.label_names), "snow"]
    write_dataset(tmp_path / "other", items, get_tokenizer(), {}, names)
    flags = [f"--out_dir={tmp_path}/run/ckpt.pt", "--device=cpu"]
    other = finetune.main([*flags, f"--test={tmp_path}/other"])
    assert other["accuracy"] == pytest.approx(result["accuracy"] * 30 / 31)
    output = capsys.readouterr().out
    assert "texts of snow count as mistakes" in output and " of 31 (the most" in output
    rows = list(csv.reader(open(tmp_path / "run" / "predictions-other.csv", newline="")))
    assert len(rows) == 32 and rows[-1][1] == rows[-1][2]
    assert {row[0] for row in rows if row[1] != row[2]} >= {"text", "a blizzard"}
    write_dataset(tmp_path / "alien", [("train", "x", 0), ("test", "y", 1)], get_tokenizer(), {},
                  ["one", "two"])
    with pytest.raises(SystemExit, match="alien has none of the classes day, night"):
        finetune.main([*flags, f"--test={tmp_path}/alien"])


def test_learning_rates_rise_from_the_embeddings_to_the_head():
    config = BertConfig(vocab_size=64, n_embd=32, n_head=2, n_layer=2)
    model = finetune.BertForClassification(config, 3)
    args = finetune.get_parser().parse_args(["--init_from=run", "--embedding_rate=0.125"])
    expected = {"classifier": 1, "pooler": 1, "bert.blocks.1": 1 / 2, "bert.blocks.0": 1 / 4,
                "bert.wte": 1 / 8, "bert.ln": 1 / 8}
    for name, _ in model.named_parameters():
        rate = next(rate for part, rate in expected.items() if name.startswith(part))
        assert finetune.rate_of(name, model, args) == pytest.approx(rate)
    args.init_from = "scratch"
    assert {finetune.rate_of(name, model, args) for name, _ in model.named_parameters()} == {1}


def test_only_deep_models_of_random_weights_learn_slowly_by_default(folder, runs, tmp_path):
    starts = {"1": [f"--init_from={folder}/run"], "2": [f"--init_from={runs}/run"],
              "3": ["--init_from=scratch", *MODEL],
              "4": ["--init_from=scratch", *MODEL, "--n_layer=2"]}
    rates = []
    for name, flags in starts.items():
        finetune.main([f"--dataset={folder}/labelled", "--epochs=1", f"--out_dir={tmp_path / name}",
                       *flags, *CPU])
        rates.append(training.load_checkpoint(tmp_path / name)["args"]["lr"])
    assert rates == [0.001, 0.001, 0.001, 0.0003]


def test_embeddings_move_at_their_own_rate(folder, tmp_path):
    def weights(name, *flags):
        run(folder, tmp_path / name, "--epochs=1", *flags)
        return training.load_checkpoint(tmp_path / name)["model"]
    old = training.load_checkpoint(folder / "run")["model"]
    slow, fast = (weights(rate, f"--embedding_rate={rate}") for rate in ("0.01", "1"))
    for part, ratio in (("bert.wte.weight", 100), ("bert.blocks.0.mlp.fc.weight", 10)):
        times = (fast[part] - old[part]).norm() / (slow[part] - old[part]).norm()
        assert 0.4 * ratio < times < 2.5 * ratio


def test_label_smoothing():
    torch.manual_seed(0)
    model = finetune.BertForClassification(BertConfig(vocab_size=64, n_embd=32, n_head=2), 4)
    tokens, targets = torch.randint(64, (3, 9)), torch.tensor([2, 0, 3])
    surprise = -model(tokens).log_softmax(-1)  # (3, 4)
    model.label_smoothing = 0.2
    smooth = 0.8 * surprise[range(3), targets] + 0.2 * surprise.mean(1)
    torch.testing.assert_close(model(tokens, None, targets), smooth.sum())


def test_embedding_noise_is_added_in_training_alone(folder):
    args = finetune.get_parser().parse_args(["--init_from=scratch", *MODEL, "--dropout=0",
                                             "--embedding_noise=0.5"])
    bert, seen = finetune.make_model(args, {}, Dataset(folder / "labelled")).bert, []
    bert.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.randint(16384, (16, 30), generator=torch.Generator().manual_seed(0))
    bert(tokens), bert.eval()(tokens), bert(tokens)
    noise = seen[0] - seen[1]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.5, abs=0.02) and torch.equal(seen[1], seen[2])


@pytest.fixture(scope="module")
def relations(folder):
    """A dataset in which all that tells the classes apart is which of two words is [E1]."""
    items = []
    for i in range(90):
        word = ["moon", "sun"][i % 2]
        text = "town " * (i % 5) + f"the sun and the moon, [E1] {word} [/E1] was [E2] old [/E2]"
        items.append(("train" if i < 60 else "test", text, i % 2))
    write_dataset(folder / "relations", items, get_tokenizer(), {}, ["moon", "sun"], MARKERS)
    return folder


def test_relations_by_their_entities(relations, tmp_path, capsys):
    flags = [f"--dataset={relations}/relations", f"--init_from={relations}/run", *FAST,
             "--epochs=20", "--lr=3e-3", "--embedding_rate=1", "--pooling=entities"]
    result = finetune.main([*flags, f"--out_dir={tmp_path / 'a'}"])
    assert result["accuracy"] > 0.9
    assert "lost a marker" not in capsys.readouterr().out
    predict = [f"--out_dir={tmp_path / 'a'}", "--device=cpu"]
    finetune.main([*predict, "--predict=the moon and the [E1] sun [/E1] was [E2] old [/E2]"])
    assert capsys.readouterr().out.startswith("sun ")
    with pytest.raises(SystemExit, match="'the sun' has no markers"):
        finetune.main([*predict, "--predict=the sun"])
    finetune.main([f"--dataset={relations}/relations", "--init_from=scratch", *MODEL, "--epochs=1",
                   "--block_size=14", "--pooling=entities", f"--out_dir={tmp_path / 'b'}", *CPU])
    assert "36 of 60 texts have lost a marker by the cut" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no text of .* has the markers"):
        run(relations, tmp_path / "c", "--pooling=entities")


def test_members_of_a_committee_can_share_their_examples(folder, tmp_path, monkeypatch):
    def tell(labels, n_per_class, holdout, seed):
        raise SystemExit(f"seed {seed}")
    monkeypatch.setattr(finetune, "pick_examples", tell)
    for flags, seed in ((["--seed=2"], 2), (["--seed=2", "--example_seed=0"], 0)):
        with pytest.raises(SystemExit, match=f"^seed {seed}$"):
            run(folder, tmp_path, *flags)


def test_holdout_never_opens_the_test_set(folder, tmp_path, monkeypatch):
    monkeypatch.undo()  # conftest.no_pictures: its picture has another curve
    for file in folder.glob("labelled/test*"):
        file.rename(file.with_suffix(".hidden"))
    try:
        result = run(folder, tmp_path, "--holdout=0.25", "--n_per_class=10")
    finally:
        for file in folder.glob("labelled/*.hidden"):
            file.rename(file.with_suffix(".bin"))
    assert result["part"] == "held-out" and result["n"] == 18 and result["examples"] == 6 * 30
    assert result["accuracy"] == result["holdout_accuracy"] > 0.6
    assert {"ckpt.pt", "log.jsonl"} == set(os.listdir(tmp_path)) - {"loss.png"}


def test_empty_rows_of_compiled_batches_do_not_count(folder, tmp_path, monkeypatch):
    """Compiled runs fill up batches and pad in larger steps; the loss must be the same."""
    monkeypatch.setattr(training, "compile_model", lambda *args: None)
    flags = ["--epochs=2", "--dropout=0", "--batch_size=32"]
    plain = run(folder, tmp_path / "plain", *flags)
    filled = run(folder, tmp_path / "filled", *flags, "--compile")
    assert filled["positions"] > plain["positions"]
    assert filled["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-4)


def test_the_papers_schedule_and_padding(folder, tmp_path, monkeypatch):
    factors, update = [], training.update_weights
    monkeypatch.setattr(training, "update_weights", lambda *args: (
        factors.append(args[2]), update(*args)))
    result = run(folder, tmp_path, "--epochs=4", "--warmup=0.25", "--lr_per_epoch", "--pad_to=32")
    assert result["positions"] == 4 * 69 * 32
    assert factors == [factors[9 * epoch] for epoch in range(4) for _ in range(9)]
    assert factors[::9] == pytest.approx([0, 1, 2 / 3, 1 / 3], abs=0.12)


def test_picked_examples_are_nested_and_apart():
    labels = np.random.default_rng(0).integers(0, 4, 400)
    few, held_out = finetune.pick_examples(labels, 5, 0.2, seed=1)
    more, same = finetune.pick_examples(labels, 20, 0.2, seed=1)
    rest, _ = finetune.pick_examples(labels, 0, 0.2, seed=1)
    assert (held_out == same).all() and set(few) < set(more) < set(rest)
    assert np.bincount(labels[few]).tolist() == [5] * 4
    assert np.bincount(labels[more]).tolist() == [20] * 4
    assert sorted([*rest, *held_out]) == list(range(400))
    share = np.bincount(labels[held_out]) / np.bincount(labels)
    assert (abs(share - 0.2) < 0.01).all()
    assert set(few) != set(finetune.pick_examples(labels, 5, 0.2, seed=2)[0])


def test_scores():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    scores = finetune.score(np.eye(4)[predicted], labels, ["a", "b", "c", "d"])
    assert scores["accuracy"] == 4 / 6
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)  # there is no d
    assert scores["class_accuracy"] == {"a": 2 / 3, "b": 1.0, "c": 0.0}
    assert scores["confusions"] == [["a", "b", 1], ["c", "a", 1]]


@pytest.mark.parametrize("flags, message", [
    (["--dataset={folder}/plain"], "have no labels"),
    (["--dataset=nonesuch"], "not prepared"),
    (["--init_from={folder}/nonesuch"], "no checkpoint"),
    (["--init_from={folder}/done"], "is a run of finetune.py; name a run of pretrain.py"),
    (["--n_embd=64"], "has 32"),
    (["--n_layer=6"], "--n_layer=6: {folder}/run has 1"),  # 6 is the default, and was typed
    (["--init_from=scratch", "--embedding_rate=1"], "--embedding_rate: goes with a pre-trained"),
    (["--like={folder}/run"], "--like: goes with --init_from=scratch"),
    (["--muon_lr=0.1"], "--muon_lr: is Muon's, but --optimizer=adamw"),
    (["--holdout=0.99"], "nothing to train on"),
    (["--holdout=1"], "below 1"),
    (["--epochs=0"], "at least 1"),
    (["--lr=1e9", "--warmup=0"], "not finite"),
    (["--out_dir={folder}/done"], "holds a run"),
    (["--out_dir={folder}/labelled/meta.json/x"], "cannot write"),  # a file is no folder
    (["--out_dir={folder}/run", "--predict=x"], "name a run of finetune.py"),
])
def test_mistakes_end_with_one_line(folder, tmp_path, capsys, flags, message):
    if not (folder / "done").exists():
        run(folder, folder / "done", "--epochs=1")
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "new", *(flag.format(folder=folder) for flag in flags))
    said = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert message.format(folder=folder) in said and "\n" not in said
    assert not (tmp_path / "new" / "ckpt.pt").exists()


def test_of_two_at_once_the_first_to_end_stays(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "write_log", lambda *args: (tmp_path / "ckpt.pt").touch())
    with pytest.raises(SystemExit, match="holds a run"):
        run(folder, tmp_path, "--epochs=1")
    assert os.listdir(tmp_path) == ["ckpt.pt"]


def test_a_damaged_test_set_is_found_before_the_training(folder, tmp_path):
    shutil.copytree(folder / "labelled", tmp_path / "task")
    with open(tmp_path / "task" / "test.bin", "r+b") as file:
        file.write(b"\0\0\0")
    with pytest.raises(SystemExit, match="test.bin is damaged"):
        run(folder, tmp_path / "run", f"--dataset={tmp_path}/task")
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_another_vocabulary_is_refused(folder, tmp_path):
    items = [(split, word, i % 2) for split in ("train", "test") for i, word in enumerate("abcd")]
    write_dataset(tmp_path / "own", items, OWN, {}, ["x", "y"])
    for script in (pretrain, finetune):
        with pytest.raises(SystemExit, match=r"run was .* than .*own is encoded with \(own\); "):
            script.main([f"--dataset={tmp_path}/own", f"--init_from={folder}/run",
                         f"--out_dir={tmp_path}/new", "--device=cpu"])


def test_a_shape_that_is_typed_as_the_run_has_it(folder, tmp_path):
    flags = ["--n_layer=1", "--n_embd=32", "--n_conv=2", "--conv_kernel", "4", "3"]
    pretrain.main([f"--dataset={folder / 'plain'}", f"--out_dir={tmp_path / 'conv'}", *flags,
                   "--block_size=32", "--epochs=0.1", "--conv_channels=2", "--device=cpu"])
    result = run(folder, tmp_path / "new", f"--init_from={tmp_path / 'conv'}", *flags, "--epochs=1")
    assert result["epoch"] == 1


def test_a_person_is_answered_line_by_line(runs):
    """A terminal gets its answer before the next line; a reader that has had enough ends it."""
    pty = pytest.importorskip("pty")  # Windows has none
    command = [sys.executable, "finetune.py", f"--out_dir={runs}/member-0", "--predict=-",
               "--device=cpu"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for text in ("the sun", "the moon"):
        os.write(ours, f"{text}\n".encode())
        assert process.stdout.readline().count("%") == 3
    process.stdout.close()
    os.write(ours, b"the rain\n")
    assert process.wait(60) == 1 and process.stderr.read() == ""
