"""Drawing the examples of labelled sets, and what the rows of all of them have in common."""
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import examples_of

from data import agnews, dbpedia, fewrel, wikipedia
from data.examples import prepare, read_examples, set_quota
from data.rows import Skipped
from data.tokenfile import read_meta
from data.tokenizer import get_tokenizer


def rows(n, side="either", word="about", n_labels=4):
    return [(side, "abcd"[i % n_labels], f"{word} number {i}") for i in range(n)]


def draw(rows, n_train=None, n_test=None, seed=0, fewer="stop", keep_doubles=False):
    """rows: (side, label, text). -> the examples (sorted list of (label, text)) to train and to
    test on, which have no text in common."""
    args = SimpleNamespace(name="x", n_train=n_train, n_test=n_test, seed=seed, fewer=fewer,
                           tokenizer=get_tokenizer())
    files = [(side, Path(__file__), [("place", (label, text, text))]) for side, label, text in rows]
    prepare(args, files, tuple, "", Skipped(), {}, keep_doubles=keep_doubles)
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
    assert read_meta("x")["labels"] == list("abcd") and read_meta("x")["source"]["n_train"] == 20


def test_all_there_is(bin_dir):
    train, test = draw(rows(200))
    assert per_label(train) == {45} and per_label(test) == {5}
    train, test = draw(rows(200, "train") + rows(80, "test", "test"))
    assert per_label(train) == {50} and per_label(test) == {20}


def test_doubles_are_dropped(bin_dir, capsys):
    train, test = rows(200, "train"), rows(80, "test", "test")
    train[5] = ("train", *test[5][1:])  # a training text that is also a test text
    test[3] = ("test", "d", "test number 7")  # the same text, the same label
    train[10] = ("train", "c", train[11][2])  # the same text, another label
    test[2] = ("test", "c", test[6][2])  # once more the same label
    draw(train + test, 47, 18)
    expected = {"doubles": 2, "texts under two labels": 2,
                "training texts that are also test texts": 1}
    assert read_meta("x")["source"]["skipped"] == expected
    out = capsys.readouterr().out
    assert "dropped: " in out and all(f"{n} {reason}" in out for reason, n in expected.items())


def test_all_rows_of_a_text_go_to_one_side(bin_dir, capsys):
    both = [("either", label, f"text {i}") for i in range(100) for label in "ab"]
    train, test = draw(both, 70, 30, keep_doubles=True)
    assert per_label(train) == {70} and per_label(test) == {30}
    thrice = [("either", "a", f"text {i // 3}") for i in range(99)] + both[1::2]
    draw(thrice, 50, 10, keep_doubles=True)
    assert "9 examples fewer, as all rows of a text go to one side" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="a label is left without .* too few different texts"):
        draw([("either", "a", "the same")] * 50 + both[1::2], 20, 5, keep_doubles=True)


def test_fewer(bin_dir, capsys):
    table = [row for row in rows(200, "train") if row[1] != "c" or int(row[2][13:]) < 100]
    table += [row for row in rows(80, "test", "test") if row[1] != "d"]
    with pytest.raises(SystemExit, match='^2 of 4 labels have too few examples, such as "d": 40 '
                       "to train and 0 to test on, 20 too few; lower .*--fewer=keep, --fewer=drop"):
        draw(table, 40, 20)
    train, test = draw(table, 40, 20, fewer="keep")
    assert Counter(label for label, _ in train) == {"a": 40, "b": 40, "c": 25}
    assert per_label(test) == {20} and read_meta("x")["labels"] == ["a", "b", "c"]
    out = capsys.readouterr().out
    assert "dropped for want of examples: 1 labels, d\nkept with fewer examples: 1 labels\n" in out
    assert "x: 3 labels, 25 to 40 training and 20 test examples each\n" in out
    train, _ = draw(table, 40, 20, fewer="drop")
    assert {label for label, _ in train} == {"a", "b"} and per_label(train) == {40}
    with pytest.raises(SystemExit, match="labels left to tell apart: 0, but two are needed"):
        draw(table, 40, 30, fewer="drop")


def test_where_there_is_not_enough_for_both_each_gets_its_share():
    assert set_quota(Counter(either=11), 40, 10)[:2] == (9, 2)
    assert set_quota(Counter(either=1), 40, 10)[:2] == (0, 1)
    assert set_quota(Counter(either=50), 40, 10).missing == 0
    assert set_quota(Counter(train=5, test=3), 4, 4)[:2] == (4, 3)


def read(texts, skipped, lowercase=True):
    def parse(text):
        if text == "bad":
            raise ValueError("bad")
        return "label", text, "written"
    rows = [(f"file:{i}", text) for i, text in enumerate(texts)]
    return list(read_examples("file", rows, parse, "a table", skipped, lowercase))


def test_texts_are_doubles_if_the_tokenizer_cannot_tell_them_apart(bin_dir, monkeypatch):
    table = rows(200) + [("either", "d", "ABOUT number 7"), ("either", "a", "Ábout number 8")]
    draw(table)
    assert read_meta("x")["source"]["skipped"] == {"doubles": 2}
    monkeypatch.setattr(get_tokenizer(), "lowercase", False)
    draw(table)
    assert read_meta("x")["source"]["skipped"] == {}


@pytest.mark.parametrize("broken, reason", [([], ""), (["bad"], "1 bad (first: file:0)"),
                                            ([" "], "1 empty text (first: file:0)")])
def test_a_broken_row_is_skipped(broken, reason):
    skipped = Skipped()
    assert read([*broken, "Texté"], skipped) == [("label", "texte", "written")]
    assert str(skipped) == reason


@pytest.mark.parametrize("texts, message", [
    (["bad"] * 2 + ["x"] * 40, "2 of 42 rows are broken: 2 bad .first: file:0.; it must be a tab"),
    (["bad"], "1 of 1 rows"), ([], "file: no rows; it must be a table")])
def test_too_many_broken_rows(texts, message):
    with pytest.raises(SystemExit, match=message):
        read(texts, Skipped())


@pytest.mark.parametrize("module", [fewrel, agnews, dbpedia, wikipedia])
@pytest.mark.parametrize("flag", ["--tokenizer=absent", "--source=absent"])
def test_mistakes(tmp_path, bin_dir, module, flag):
    with pytest.raises(SystemExit, match="absent"):
        module.main([flag])
    assert not list(tmp_path.iterdir())
