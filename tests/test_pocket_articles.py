"""The pocket encyclopedia: its tables, its sentences, and that the two splits share facts but no
phrasing."""
import random
import re

import pytest
from conftest import write

from data import pocket_facts
from data.pocket_articles import articles
from data.pocket_facts import FIELD, HEADINGS, facts_in, fill, load_facts, load_templates

MISTAKES = re.compile(r"[{}_\t\n]|  | [,.;:?]|\.\.|,,|; |the the |\ba [aeio]\w+ (that|of|in)\b")


TABLES = load_facts()


@pytest.fixture(scope="module")
def train():
    return articles("train")


@pytest.fixture(scope="module")
def val():
    return articles("val")


def templates(heading):
    return {sentence for kind in TABLES for sentence in load_templates(kind)[heading]}


def test_size(train, val):
    assert len(TABLES) >= 12 and sum(map(len, TABLES.values())) >= 800
    assert max(len(text.split()) for text in train + val) <= 95
    assert len(set(train + val)) == len(train + val)  # none comes twice


def test_sentences_are_clean(train, val):
    for text in train + val:
        assert not MISTAKES.search(text), text
        assert text[-1] in ".!?", text
        for sentence in re.split(r"(?<=[a-z0-9][.!?]) ", text):
            assert sentence[0].upper() == sentence[0], text


def test_phrasings_of_val_are_not_in_train(train):
    in_train = set.union(*(templates(heading) for heading in HEADINGS if "train" in heading))
    in_val = templates("val") | templates("val opening")
    assert all("{name" in sentence for sentence in in_train | in_val)  # each names its subject
    assert len(in_train) > 500 and len(in_val) > 100
    assert not in_train & in_val
    # Nor do they differ only by punctuation or fields: without these a sentence is new too.
    def bare(sentences):
        return {tuple(re.findall("[a-z]+", FIELD.sub("", text).lower())) for text in sentences}
    assert not bare(in_train) & bare(in_val)


def test_every_fact_has_many_phrasings():
    for kind, rows in TABLES.items():
        found = load_templates(kind)
        assert len(found["train opening"]) >= 3, kind
        for column in list(rows[0])[1:]:
            n_train, n_val = (sum(column in facts_in(sentence) for sentence in found[split])
                              for split in ("train", "val"))
            assert n_train >= 4 and n_val >= 1, (kind, column)


def test_every_fact_is_told(train):
    """Each cell in some sentence together with the name of its row; a list at least in part."""
    told = {}
    for sentence in (sentence.lower() for text in train for sentence in text.split(". ")):
        for word in sentence.replace(",", " ").replace(".", " ").split():
            told.setdefault(word, []).append(sentence)
    for row in TABLES["rivers"] + TABLES["countries"]:
        sentences = told[row["name"].lower().split()[-1]]
        for column, cell in row.items():
            if cell and "." not in cell:  # St. George's looks like the end of a sentence
                members = cell.lower().split("; ")
                assert any(member in sentence for member in members
                           for sentence in sentences), (row["name"], column)
    text = "\n".join(train)
    assert text.count("The capital of France is Paris.") >= 5  # the first question that people ask
    assert re.search(r"\bgold\b[^.]*\bAu\b", text, re.I)


def test_borders_have_two_sides_and_elements_are_numbered():
    neighbours = {row["name"]: row["neighbours"].split("; ") for row in TABLES["countries"]}
    for country, others in neighbours.items():
        for other in filter(None, others):
            assert country in neighbours[other], (country, other)
    assert [int(row["number"]) for row in TABLES["elements"]] == list(range(1, 119))
    assert len({row["symbol"] for row in TABLES["elements"]}) == 118


def test_some_rows_only():
    europe = {"countries": [row for row in TABLES["countries"] if row["continent"] == "Europe"]}
    text = "\n".join(articles("train", facts=europe))
    assert text.count("Paris") >= 3 and "Tokyo" not in text


def test_tables_and_sentences_fit():
    for kind, rows in TABLES.items():
        assert all(row["name"] for row in rows) and len({row["name"] for row in rows}) == len(rows)
        for heading, sentences in load_templates(kind).items():
            known = rows[0].keys() | ({"names"} if heading == "train survey" else set())
            for sentence in sentences:
                assert {column for _, column, _ in FIELD.findall(sentence)} <= known, sentence
                assert not re.search("[{}]", FIELD.sub("", sentence)), sentence


def test_fields():
    row = {"name": "the harp", "kind": "old thing", "works": "A; B; C"}
    rng = random.Random(0)
    assert fill("{name} is {kind.a}: {works}.", rng, row) == "The harp is an old thing: A, B and C."
    assert fill("{kind.s}, {other.kind.s}", rng, row, {"kind": "gas"}) == "Old things, gases"
    assert fill("{works.one}", rng, row) in ("A", "B", "C")
    assert len(fill("{works.some}", rng, row)) == len("A, B and C")


def test_an_article_needs_an_opening_whose_facts_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr(pocket_facts, "FACTS", tmp_path)
    write(tmp_path / "fruit.tsv", "name\tcolour\tshape\nlemon\tyellow\t\nplum\t\tround\n")
    write(tmp_path / "._fruit.tsv", b"\xff")  # what some systems leave beside a file
    write(tmp_path / "fruit.txt",
          "# train opening\nA {name} is {colour}.\n# train\nA {name} is {shape}.\n")
    texts = articles("train", n_per_fact=1)
    assert set(texts) == {"A lemon is yellow.", "A plum is round."}
