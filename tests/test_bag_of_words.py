"""The bag of words, the baseline."""
import pytest
from conftest import log_of

import committee
import finetune
from data.tokenfile import Dataset
from experiments import bag_of_words


def test_it_learns_from_the_examples_of_finetune(weather, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    seen, classify = {}, bag_of_words.classify

    def watch(texts, labels, test_texts):
        seen["labels"], seen["lengths"] = labels, [len(text.split()) for text in test_texts]
        return classify(texts, labels, test_texts)
    monkeypatch.setattr(bag_of_words, "classify", watch)
    result = bag_of_words.main([f"--dataset={weather}/labelled", "--n_per_class=8", "--seed=3",
                                f"--out_dir={tmp_path}", "--block_size=6"])
    labels = Dataset(weather / "labelled").labels("train")
    chosen, _ = finetune.pick_examples(labels, 8, 0.0, 3)
    assert (seen["labels"] == labels[chosen]).all() and max(seen["lengths"]) == 4
    assert result["accuracy"] > 0.6 and result["n_examples"] == 24
    assert log_of(tmp_path) == [result]
    outputs, truth, _ = committee.load_output(tmp_path)
    assert committee.accuracy(outputs, truth) == result["accuracy"]
    (tmp_path / "ckpt.pt").touch()  # of a run of finetune.py, whose votes must not be replaced
    with pytest.raises(SystemExit, match="holds a run"):
        bag_of_words.main([f"--dataset={weather}/labelled", f"--out_dir={tmp_path}"])


def test_pairs_of_words_count():
    pytest.importorskip("sklearn")
    assert list(bag_of_words.classify(["1 2", "2 1"] * 9, [0, 1] * 9, ["2 1", "1 2"])) == [1, 0]


def test_too_few_examples(weather):
    with pytest.raises(SystemExit, match="three examples"):
        bag_of_words.main([f"--dataset={weather}/labelled", "--n_per_class=2"])
