"""FewRel: its format, its markers, and the names of its relations."""
import json
import re

import pytest
from conftest import Reply, examples_of, write

from data import fewrel
from data.tokenfile import Dataset
from data.tokenizer import MARKERS, get_tokenizer


def sentence(i, head=(0, 1), tail=(3,)):
    return {"tokens": ["Old", f"Name{i}", "is", f"place{i}", "."], "h": ["", "Q1", [list(head)]],
            "t": ["", "Q2", [list(tail), [4]]]}


def relations(n=50):
    """Three relations of n sentences: each third one of P1 occurs there twice, each fifth one of P1
    is also in P2."""
    content = {f"P{p}": [sentence(1000 * p + i) for i in range(n)] for p in (1, 2, 3)}
    for i in range(0, n - 1, 3):
        content["P1"][i + 1] = sentence(1000 + i)
    for i in range(0, n, 5):
        content["P2"][i] = content["P1"][i]
    return content


@pytest.fixture
def draw(tmp_path, bin_dir):
    """A function: content of a file, flags -> the examples (sets) to train and to test on, which
    have no text in common."""
    def draw(content, *flags):
        content = content if isinstance(content, bytes) else json.dumps(content)
        path = write(tmp_path / "train_wiki.json", content)
        numbers = ["--n_train=40", "--n_test=10", "--name=x"]
        fewrel.main(["--source", str(path), *numbers, *flags])
        train, test = set(examples_of("x")), set(examples_of("x", "test"))
        assert not {text for _, text in train} & {text for _, text in test}
        return train, test
    return draw


def test_end_to_end(draw, tmp_path, capsys):
    names = {"P1": ["capital", ""], "P2": ["same", ""], "P9": ["same", ""]}
    write(tmp_path / "pid2name.json", json.dumps(names))
    content = relations()
    content["P3"].append(sentence(1) | {"tokens": [" "] * 5})
    train, test = draw(content)  # all 50 of each relation, although many share their text
    meta = Dataset("x").meta
    assert meta["labels"] == ["P2", "P3", "capital"] and meta["source"]["markers"] is False
    assert "x: 3 labels, 40 training and 10 test examples each" in capsys.readouterr().out
    assert meta["source"]["skipped"] == {"without a text": 1}
    assert [meta["splits"][split]["n_docs"] for split in ("train", "test")] == [120, 30]
    assert draw(relations()) == (train, test)
    assert draw(relations(), "--n_train=20")[0] <= train
    marked = draw(relations(), "--markers")
    plain = [{(label, " ".join(re.sub(r"\[/?E.\]", " ", text).split())) for label, text in part}
             for part in marked]
    assert plain == [train, test]
    assert all(re.fullmatch(r"\[E1\] old name\d+\[/E1\] is\[E2\] place\d+\[/E2\] .", text)
               for _, text in marked[0])
    tokens, special = Dataset("x").split("test")[0], get_tokenizer().special
    assert all((tokens == special[marker]).sum() == 30 for marker in MARKERS)
    write(tmp_path / "pid2name.json", '{"P1": "a"}')
    with pytest.raises(SystemExit, match="pid2name.json:1: not FewRel's names of relations"):
        draw(relations())


@pytest.mark.parametrize("as_array", [False, True])
def test_an_object_for_each_sentence(draw, as_array):
    expected = draw(relations(), "--markers")
    entities = [{"text": "a", "type": "Q1", "indices": positions}
                for positions in ([[0, 1]], [[3], [4]])]
    rows = [{"relation": relation, "tokens": sentence["tokens"], "head": entities[0],
             "tail": entities[1], "names": ["a", "b"]}
            for relation, sentences in relations().items() for sentence in sentences]
    content = json.dumps(rows) if as_array else "\n".join(map(json.dumps, rows))
    assert draw(content.encode(), "--markers") == expected


def test_several_files_are_one_pool(draw, tmp_path):
    write(tmp_path / "b.json", json.dumps({"P3": [sentence(9000 + i) for i in range(8)],
                                           "P4": [sentence(i) for i in range(11)]}))
    source = ["--source", f"{tmp_path}/train_wiki.json", f"{tmp_path}/b.json"]
    with pytest.raises(SystemExit, match='1 of 4 labels .*"P4": 9 to train and 2 to test on, 39 '):
        draw(relations(), *source)
    train, test = draw(relations(), *source, "--fewer=keep")
    assert [sum(label == "P4" for label, _ in part) for part in (train, test)] == [9, 2]
    with pytest.raises(SystemExit, match="--with_val: .* with --source, name your own"):
        draw(relations(), *source, "--with_val")


@pytest.mark.parametrize("head, tail, marked", [
    ((1, 2), (0, 3), "[E2] a [E1] b [/E1] c [/E2]"),
    ((0, 3), (0, 1), "[E1] [E2] a [/E2] b c [/E1]"),
    ((1, 3), (2, 3), "a [E1] b [E2] c [/E2] [/E1]"),
    ((0, 2), (1, 3), "[E1] a [E2] b [/E1] c [/E2]"),
    ((1, 2), (1, 2), "a [E2] [E1] b [/E1] [/E2] c")])
def test_entities_that_overlap(head, tail, marked):
    assert " ".join(fewrel.mark(["a", "b", "c"], head, tail)) == marked


@pytest.mark.parametrize("content, message", [
    (b"[]", "no row with"), (b'{"P1": []}', "no row with"),
    (b'{"P1": 1}', "1: not of the format {\"P931\": "),
    (sentence(1, head=(4, 5)), "an entity outside of the sentence"),
    (sentence(1, head=(-1, 0)), "an entity outside of the sentence"),
    (sentence(1, head=()), "not of the format .*"),
    (sentence(1, head=(1.5,)), "not of the format"),
    (sentence(1) | {"tokens": ["a", "[/E1]", "b", "c"]}, "one of the markers .* in the text"),
    (sentence(1) | {"tokens": ["a", None, "b", "c"]}, "not of the format"),
    (sentence(1) | {"tokens": "abcd"}, "not of the format"), ("a", "not of the format")])
def test_files_that_are_not_fewrel(draw, bin_dir, content, message):
    if not isinstance(content, bytes):
        content, message = relations() | {"P3": [sentence(1), content]}, rf"P3\[1\]: .*{message}"
    with pytest.raises(SystemExit, match=f"train_wiki.json: ?{message}"):
        draw(content)
    assert not bin_dir.exists()


def test_download(server, monkeypatch):
    files = {"/train_wiki.json": json.dumps(relations()).encode(), "/pid2name.json": b"{}"}
    server.respond = lambda path: Reply(files[path])
    monkeypatch.setattr(fewrel, "URL", f"{server.url}/")
    fewrel.main(["--n_train=9", "--n_test=4", "--markers"])
    assert len(examples_of("fewrel-markers")) == 27
    assert Dataset("fewrel-markers").meta["source"]["url"] == f"{server.url}/"
    assert set(server.requests) == set(files)
