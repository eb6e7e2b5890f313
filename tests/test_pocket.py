"""The embedded corpus: its tables, its sentences, and that the two splits share facts but no phrasing."""
import re

import pytest

from data import pocket
from data.tokenfile import read_meta


@pytest.fixture(scope="module")
def facts():
    return pocket.load_facts()


@pytest.fixture(scope="module")
def train():
    return pocket.articles("train")


@pytest.fixture(scope="module")
def val():
    return pocket.articles("val")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A function that makes a pocket encyclopedia of one table and its sentences."""
    def write(rows="name\tcolour\nlemon\tyellow\n", sentences="# train\nA {name} is {colour}.\n"):
        (tmp_path / "fruit.tsv").write_text(rows, encoding="utf-8")
        (tmp_path / "fruit.txt").write_text(sentences, encoding="utf-8")
        monkeypatch.setattr(pocket, "FACTS", tmp_path)
    return write


def templates(heading):
    found = [pocket.load_templates(kind, rows[0].keys()) for kind, rows in pocket.load_facts().items()]
    return {sentence for of_kind in found for sentence in of_kind[heading]}


def test_size(facts, train, val):
    assert len(facts) >= 12 and sum(map(len, facts.values())) >= 800
    assert 450_000 <= sum(len(text.split()) for text in train) <= 650_000
    assert 600 <= len(val) <= 1000
    assert max(len(text.split()) for text in train + val) <= 95


def test_same_seed_same_articles(train, val):
    assert pocket.articles("train") == train and pocket.articles("val") == val
    assert pocket.articles("val", seed=1) != val
    assert len(set(pocket.articles("train", seed=1)) & set(train)) < len(train) / 2


def test_sentences_are_clean(train, val):
    for text in train + val:
        assert not re.search(r"[{}_\t\n]|  | [,.;:?]|\.\.|,,|; |the the |\ba [aeio]\w+ (that|of|in)\b", text), text
        assert text[-1] in ".!?", text
        for sentence in re.split(r"(?<=[a-z0-9][.!?]) ", text):
            assert sentence[0].upper() == sentence[0], text


def test_no_article_twice(train, val):
    assert len(set(train)) == len(train) and len(set(val)) == len(val)
    assert not set(train) & set(val)


def test_phrasings_of_val_are_not_in_train(train):
    in_train = templates("train") | templates("train opening") | templates("train survey") | templates("train pair")
    in_val = templates("val") | templates("val opening")
    assert len(in_train) > 500 and len(in_val) > 100
    assert not in_train & in_val
    # Nor do they differ by punctuation or by names alone: the sentence without its fields is new as well.
    bare = [{tuple(re.findall("[a-z]+", pocket.FIELD.sub("", sentence).lower())) for sentence in sentences}
            for sentences in (in_train, in_val)]
    assert not bare[0] & bare[1]


def test_every_sentence_names_its_subject():
    for heading in ("train opening", "train", "val opening", "val"):
        for sentence in templates(heading):
            assert "{name" in sentence, sentence


def test_every_fact_has_many_phrasings(facts):
    for kind, rows in facts.items():
        found = pocket.load_templates(kind, rows[0].keys())
        assert len(found["train opening"]) >= 3, kind
        for column in list(rows[0])[1:]:
            n_train, n_val = (sum(column in pocket.facts_in(sentence) for sentence in found[split])
                              for split in ("train", "val"))
            assert n_train >= 4 and n_val >= 1, (kind, column)


@pytest.mark.parametrize("name, fact, at_least", [
    ("France", "capital is Paris", 20), ("Japan", "currency yen", 10), ("Kenya", "Africa", 20), ("gold", "Au", 1),
    ("lion", "mammal", 3), ("the Danube", "the Black Sea", 1), ("Frédéric Chopin", "Polish", 3)])
def test_known_facts_are_told_often(train, name, fact, at_least):
    """Those on countries more often than others."""
    assert sum(all(word in sentence for word in [name, *fact.split()])
               for text in train for sentence in text.split(". ")) >= at_least


def test_every_fact_is_told(facts, train):
    """Each cell in some sentence together with the name of its row; a list at least in part."""
    told = {}
    for sentence in (sentence.lower() for text in train for sentence in text.split(". ")):
        for word in sentence.replace(",", " ").replace(".", " ").split():
            told.setdefault(word, []).append(sentence)
    for row in facts["rivers"] + facts["countries"]:
        sentences = told[row["name"].lower().split()[-1]]
        for column, cell in row.items():
            if cell and "." not in cell:  # St. George's looks like the end of a sentence
                members = cell.lower().split("; ")
                assert any(member in sentence for member in members for sentence in sentences), (row["name"], column)


def test_the_first_question_is_answered(train):
    """What one asks of a first model stands in its training text word for word."""
    for country, capital in [("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Egypt", "Cairo")]:
        assert any(f"The capital of {country} is {capital}." in text for text in train), country


def test_every_entity_has_articles(facts, train):
    text = " ".join(train).lower()
    for kind, rows in facts.items():
        for row in rows:
            assert row["name"].lower() in text, (kind, row["name"])


def test_borders_have_two_sides(facts):
    neighbours = {row["name"]: set(filter(None, row["neighbours"].split("; "))) for row in facts["countries"]}
    for country, others in neighbours.items():
        for other in others:
            assert country in neighbours[other], (country, other)


def test_elements_are_numbered(facts):
    assert [int(row["number"]) for row in facts["elements"]] == list(range(1, 119))
    assert len({row["symbol"] for row in facts["elements"]}) == 118


def test_fewer_entities(facts):
    europe = {"countries": [row for row in facts["countries"] if row["continent"] == "Europe"]}
    some = pocket.articles("train", facts=europe)
    assert sum("Paris" in text for text in some) >= 3
    assert not any("Tokyo" in text for text in some)


def test_fields(table):
    row = {"name": "the harp", "kind": "old thing", "works": "A; B; C"}
    rng = pocket.random.Random(0)
    assert pocket.fill("{name} is {kind.a}: {works}.", rng, row) == "The harp is an old thing: A, B and C."
    assert pocket.fill("{kind.s}, {other.kind.s}", rng, row, {"kind": "gas"}) == "Old things, gases"
    assert pocket.fill("{works.one}", rng, row) in ("A", "B", "C")
    assert len(pocket.fill("{works.some}", rng, row)) == len("A, B and C")


@pytest.mark.parametrize("rows, line", [
    ("name\tcolour\nlemon\tyellow\nplum\n", 3),
    ("name\tcolour\nlemon\tyellow\tsour\n", 2),
    ("name\tcolour\nlemon\tyellow\nplum\tblue\nlemon\tgreen\n", 4),
    ("name\tcolour\n\tyellow\n", 2),
    ("fruit\tcolour\nlemon\tyellow\n", 1)])
def test_malformed_table(table, rows, line):
    table(rows=rows)
    with pytest.raises(ValueError, match=rf"fruit\.tsv:{line}:"):
        pocket.load_facts()


@pytest.mark.parametrize("sentences, line", [
    ("# train\nA {name} is {color}.\n", 2),
    ("# train\nA {name} is {colour.\n", 2),
    ("# training\nA {name} is {colour}.\n", 1),
    ("A {name} is {colour}.\n", 1),
    ("# train\n\nThe colours of {names} agree.\n", 3)])
def test_malformed_sentences(table, sentences, line):
    table(sentences=sentences)
    with pytest.raises(ValueError, match=rf"fruit\.txt:{line}:"):
        pocket.articles("train")


def test_the_dataset_is_made_once_and_again_when_the_tables_change(tmp_path, monkeypatch, capsys):
    pocket.prepare(tmp_path)
    assert "train" in capsys.readouterr().out
    meta = read_meta("pocket", tmp_path)
    assert meta["splits"]["train"]["n_tokens"] >= 500_000 and meta["splits"]["val"]["n_docs"] == 800
    pocket.prepare(tmp_path)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(pocket, "checksum", lambda paths: "of other tables")
    pocket.prepare(tmp_path)
    assert "train" in capsys.readouterr().out and read_meta("pocket", tmp_path) != meta
