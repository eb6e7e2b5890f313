"""Drawing the examples of labelled sets, and what the rows of all of them have in common."""
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import examples_of

from data import agnews, dbpedia, fewrel
from data.examples import choose_sizes, make_labelled_set, read_examples
from data.rows import Skipped
from data.tokenfile import Dataset
from data.tokenizer import get_tokenizer


def rows(n, split="either", word="about", n_labels=4):
    return [(split, "abcd"[i % n_labels], f"{word} number {i}") for i in range(n)]


def draw(rows, n_train=None, n_test=None, seed=0, fewer=None, keep_duplicates=False):
    """rows: (allowed split, label, text). -> the examples (sorted list of (label, text)) to train
    and to test on, which have no text in common."""
    args = SimpleNamespace(name="x", n_train=n_train, n_test=n_test, seed=seed, fewer=fewer,
                           tokenizer=get_tokenizer())
    files = [(split, Path(__file__), [(label, text, text)]) for split, label, text in rows]
    make_labelled_set(args, files, {}, keep_duplicates=keep_duplicates)
    train, test = examples_of("x"), examples_of("x", "test")
    assert not {text for _, text in train} & {text for _, text in test}
    return sorted(train), sorted(test)


def per_label(part):
    return set(Counter(label for label, _ in part).values())


@pytest.mark.parametrize("table", [rows(280), rows(200, "train") + rows(80, "test", "test")])
def test_draws_are_nested_and_do_not_depend_on_the_order(bin_dir, capsys, table):
    a = draw(table, 47, 18)
    assert [per_label(part) for part in a] == [{47}, {18}]
    assert "x: 4 labels, 47 training and 18 test examples each\n" in capsys.readouterr().out
    assert draw(table, 47, 18) == draw(table[::-1], 47, 18) == a
    b = draw(table, 20, 18)
    assert set(b[0]) < set(a[0]) and b[1] == a[1]  # the same n_test, the same test examples
    assert set(draw(table, 20, 10)[1]) < set(a[1])
    assert draw(table, 20, 18, seed=1) != b
    meta = Dataset("x").meta
    assert meta["labels"] == list("abcd") and meta["source"]["n_train"] == 20


def test_the_same_rows_and_seed_give_the_same_draw_in_every_version(bin_dir):
    train, test = draw(rows(40), 2, 1, seed=5)
    assert [int(text.split()[-1]) for _, text in train + test] == [
        12, 16, 1, 17, 30, 38, 31, 35, 8, 9, 14, 11]


def test_duplicates_are_dropped(bin_dir, capsys, monkeypatch):
    train, test = rows(200, "train"), rows(80, "test", "test")
    train[5] = ("train", *test[5][1:])  # a training text that is also a test text
    test[3] = ("test", "d", "TÉST number 7")  # the same for the tokenizer, the same label
    train[10] = ("train", "c", train[11][2])  # the same text, another label
    draw(train + test, 47, 18)
    expected = {"duplicates": 1, "texts under two labels": 2,
                "training texts that are also test texts": 1}
    assert Dataset("x").meta["source"]["skipped"] == expected
    out = capsys.readouterr().out
    assert "skipped: " in out and all(f"{n} {reason}" in out for reason, n in expected.items())
    monkeypatch.setattr(get_tokenizer(), "lowercase", False)
    draw(train + test, 47, 18)
    del expected["duplicates"]
    assert Dataset("x").meta["source"]["skipped"] == expected


def test_all_rows_of_a_text_go_to_one_split(bin_dir, capsys):
    both = [("either", label, f"text {i}") for i in range(100) for label in "ab"]
    train, test = draw(both, 70, 30, keep_duplicates=True)
    assert per_label(train) == {70} and per_label(test) == {30}
    thrice = [("either", "a", f"text {i // 3}") for i in range(99)] + both[1::2]
    draw(thrice, 50, 10, keep_duplicates=True)
    assert "x: 2 labels, 48 to 50 training and 3 to 10 test" in capsys.readouterr().out
    with pytest.raises(SystemExit, match='^label "a": no example is left to train on'):
        draw([("either", "a", "the same")] * 50 + both[1::2], 20, 5, keep_duplicates=True)


def test_fewer(bin_dir, capsys):
    table = [row for row in rows(200, "train") if row[1] != "c" or int(row[2][13:]) < 100]
    table += [row for row in rows(80, "test", "test") if row[1] != "d"]
    with pytest.raises(SystemExit, match='^2 of 4 labels have too few examples, such as "d": 40 '
                       "to train and 0 to test on, 20 too few; add some, lower .*--fewer=drop"):
        draw(table, 40, 20)
    train, test = draw(table, 40, 20, fewer="keep")
    assert Counter(label for label, _ in train) == {"a": 40, "b": 40, "c": 25, "d": 40}
    assert per_label(test) == {20} and Dataset("x").label_names == ["a", "b", "c", "d"]
    out = capsys.readouterr().out
    assert "x: 4 labels, 25 to 40 training and 0 to 20 test examples each\n" in out
    assert "trained on, but without test examples: 1 labels, such as d\n" in out
    train, _ = draw(table, 40, 20, fewer="drop")
    assert {label for label, _ in train} == {"a", "b"} and per_label(train) == {40}
    assert "dropped, too few examples: 2 labels, such as c\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="labels left: 0, but two are needed"):
        draw(table, 40, 30, fewer="drop")


def test_labels_that_one_side_lacks(bin_dir, capsys):
    table = rows(60, "train", n_labels=3) + rows(8, "test", "test", n_labels=2)
    train, test = draw(table)  # no flag: what there is
    assert per_label(train) == {20} and per_label(test) == {4}
    assert "without test examples: 1 labels, such as c\n" in capsys.readouterr().out
    train, test = draw(rows(41, n_labels=2) + [("either", "c", "the only one")])
    assert ("c", "the only one") in train and {label for label, _ in test} == {"a", "b"}
    table += [("test", "new", "of no training example")]
    for fewer, message in ((None, "1 of 4 .*, 1 too few; add some, or choose --fewer=drop$"),
                           ("keep", 'label "new": no example is left to train on; add some')):
        with pytest.raises(SystemExit, match=f"^{message}"):
            draw(table, fewer=fewer)
    assert draw(table, fewer="drop")[1] == draw(table[:-1])[1]
    with pytest.raises(SystemExit, match="no example is left to test on; add some"):
        draw([("either", "a", "one"), ("either", "b", "two")])


@pytest.mark.parametrize("counts, wanted, train, test, missing", [
    ((0, 0, 11), (40, 10), 9, 2, 39), ((0, 0, 1), (40, 10), 1, 0, 49),  # each gets its share
    ((0, 0, 50), (40, 10), 40, 10, 0), ((0, 0, 50), (None, None), 45, 5, 0),
    ((0, 0, 1), (None, None), 1, 0, 0), ((0, 0, 2), (1, 40), 1, 1, 39),
    ((5, 3, 0), (4, 4), 4, 3, 1), ((5, 3, 0), (None, None), 5, 3, 0),
    ((0, 5, 0), (None, None), 0, 5, 1),
    ((5, 0, 0), (None, None), 5, 0, 0), ((5, 0, 0), (None, 4), 5, 0, 4)])
def test_sizes(counts, wanted, train, test, missing):
    counts = Counter(dict(zip(("train", "test", "either"), counts)))
    assert choose_sizes(counts, *wanted) == {"train": train, "test": test, "missing": missing}


def test_rows_without_a_label_or_text_are_skipped():
    rows = [("x", "Texté", "written"), ("", "b", "b"), ("x", " ", " "), ("x", None, None)]
    skipped, files = Skipped(), [("train", "a", rows), ("train", "empty", [])]
    [example] = read_examples(files, 0, get_tokenizer(), skipped)
    assert (example.label, example.allowed_split, example.text) == ("x", "train", "written")
    assert str(skipped) == "1 without a label, 2 without a text"
    with pytest.raises(SystemExit, match="^b: no row with a label and a text; skipped: 3 without "):
        read_examples([*files, ("test", "b", rows[1:])], 0, get_tokenizer(), skipped)


@pytest.mark.parametrize("module", [fewrel, agnews, dbpedia])
@pytest.mark.parametrize("flag", ["--tokenizer=absent", "--source=absent"])
def test_mistakes(tmp_path, bin_dir, module, flag):
    with pytest.raises(SystemExit, match="absent"):
        module.main([flag])
    assert not list(tmp_path.iterdir())
