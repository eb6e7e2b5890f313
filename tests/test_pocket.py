"""The embedded corpus: its tables, its sentences, that the two splits share facts but no phrasing, and its task."""
import re
import shutil

import pytest

from data import pocket
from data.tokenfile import open_labels, open_split, read_meta
from data.tokenizer import get_tokenizer, normalise


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


# ---- the datasets and the task ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory):
    """A folder with "pocket", "pocket-0.5" and "pocket-places"."""
    folder = tmp_path_factory.mktemp("bin")
    assert pocket.prepare(folder) == "pocket" and pocket.prepare(folder, 0.5) == "pocket-0.5"
    return folder


@pytest.fixture(scope="module")
def sentences():
    return list(pocket.labelled_sentences())


def mentioned(sentence):
    """The country, without knowing which there are."""
    patterns = [re.escape(mention).replace(re.escape("{name}"), "(.+)") for mention in pocket.MENTIONS]
    found = [match[1] for match in (re.fullmatch(pattern, sentence) for pattern in patterns) if match]
    assert len(found) == 1, sentence
    return found[0]


def documents(bin_dir, name, split):
    tokens, offsets = open_split(name, split, bin_dir)
    return [get_tokenizer().decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]


def test_datasets_hold_the_articles_and_the_sentences(bin_dir, train, val, sentences):
    assert documents(bin_dir, "pocket", "train")[:50] == [normalise(text) for text in train[:50]]
    splits = read_meta("pocket", bin_dir)["splits"]
    assert splits["train"]["n_docs"] == len(train) and splits["val"]["n_docs"] == len(val) == 800
    assert 500_000 <= splits["train"]["n_tokens"] <= 700_000
    assert read_meta("pocket-places", bin_dir)["labels"] == pocket.CONTINENTS
    for split in ("train", "test"):
        wanted = [(normalise(text), label) for in_split, text, label in sentences if in_split == split]
        labels = open_labels("pocket-places", split, bin_dir)
        assert list(zip(documents(bin_dir, "pocket-places", split), labels)) == wanted


def test_datasets_are_made_once_and_again_when_the_tables_change(bin_dir, tmp_path, monkeypatch, capsys):
    shutil.copytree(bin_dir, tmp_path, dirs_exist_ok=True)
    old = read_meta("pocket-0.5", tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(pocket, "covering_articles", lambda split, coverage: [f"{split} {coverage}"])
    pocket.prepare(tmp_path, 0.5)
    assert capsys.readouterr().out == "" and read_meta("pocket-0.5", tmp_path) == old
    monkeypatch.setattr(pocket, "checksum", lambda paths: "of other tables")
    pocket.prepare(tmp_path, 0.5)
    out = capsys.readouterr().out
    assert "pocket-0.5: train 1 " in out and "pocket-places: train " in out and read_meta("pocket-0.5", tmp_path) != old
    shutil.rmtree(tmp_path / "pocket-places")
    pocket.prepare(tmp_path, 0.5)
    assert re.findall(r"pocket[^:]*(?=: train)", capsys.readouterr().out) == ["pocket-places"]


def test_labels_are_those_of_the_table(sentences):
    lines = (pocket.FACTS / "countries.tsv").read_text(encoding="utf-8").splitlines()
    continent = dict(line.split("\t")[:2] for line in lines)
    for _, sentence, label in sentences:
        assert pocket.CONTINENTS[label] == continent[mentioned(sentence)], sentence


def test_countries_to_test_on_are_not_met_in_training(sentences):
    train, test = ([mentioned(sentence) for of, sentence, _ in sentences if of == split] for split in ("train", "test"))
    assert len(test) == len(set(test)) >= 120
    assert all(train.count(name) == len(pocket.MENTIONS) for name in set(train))
    for a in set(train):
        for b in test:
            a, b = a.removeprefix("the "), b.removeprefix("the ")
            assert not re.search(rf"\b{a}\b", b, re.I) and not re.search(rf"\b{b}\b", a, re.I), (a, b)


def test_every_continent_has_countries(facts):
    task = pocket.places(facts)
    assert list(task["train"]) == list(task["test"]) == pocket.CONTINENTS
    assert all(len(names) == pocket.N_TRAIN for names in task["train"].values())
    assert all(len(names) >= 5 for names in task["test"].values())


def test_only_the_name_tells_the_continent(facts, sentences):
    assert len(set(pocket.MENTIONS)) == len(pocket.MENTIONS) >= 10
    for _, sentence, _ in sentences:
        assert not re.search("africa|america|asia|europe|oceania|antarctic|continent", sentence, re.I), sentence
    of_articles = {sentence for heading in pocket.HEADINGS for sentence in templates(heading)}
    assert not of_articles & set(pocket.MENTIONS)
    words = normalise(" ".join(pocket.MENTIONS))
    assert not any(re.search(rf"\b{re.escape(normalise(row[column]))}\b", words) for row in facts["countries"]
                   for column in ("name", "adjective", "capital", "language") if row[column])


def test_same_seed_same_task(facts, sentences):
    assert list(pocket.labelled_sentences()) == sentences != list(pocket.labelled_sentences(seed=1))
    assert pocket.places(facts) == pocket.places(facts) != pocket.places(facts, seed=1)


def test_coverage_is_nested_and_even(facts):
    task, larger = pocket.places(facts), set()
    for coverage in (1, 0.75, 0.5, 0.25, 0):
        names = set(pocket.left_out(facts, coverage))
        assert larger <= names
        for found in task.values():
            for of_continent in found.values():
                assert abs(len(set(of_continent) - names) - coverage * len(of_continent)) <= 0.5
        larger = names
    assert names == {name for found in task.values() for of_continent in found.values() for name in of_continent}


def test_countries_left_out_occur_in_no_article(bin_dir, facts):
    names = "|".join(normalise(name).removeprefix("the ") for name in pocket.left_out(facts, 0.5))
    for split in ("train", "val"):
        for text in documents(bin_dir, "pocket-0.5", split)[:3000]:
            assert not re.search(rf"\b(?:{names})\b", text), text


def test_countries_covered_are_told_of(bin_dir, facts):
    text, names = "\n".join(documents(bin_dir, "pocket-0.5", "train")), pocket.left_out(facts, 0.5)
    for found in pocket.places(facts).values():
        for continent, of_continent in found.items():
            for name in set(of_continent) - set(names):
                assert re.search(rf"\b{normalise(name)}\b[^.]* {continent.lower()}", text), name


def test_coverage_keeps_the_size(bin_dir):
    full, half = (read_meta(name, bin_dir)["splits"] for name in ("pocket", "pocket-0.5"))
    for split in ("train", "val"):
        assert half[split]["n_tokens"] == pytest.approx(full[split]["n_tokens"], rel=0.05)


def test_full_coverage_leaves_nothing_out(val):
    assert pocket.covering_articles("val", 1) == val


def test_an_article_needs_an_opening_whose_facts_are_known(table):
    table(rows="name\tcolour\tshape\nlemon\tyellow\t\nplum\t\tround\n",
          sentences="# train opening\nA {name} is {colour}.\n# train\nA {name} is {shape}.\n")
    assert set(pocket.articles("train", n_per_fact=1)) == {"A lemon is yellow.", "A plum is round."}


def test_the_command(bin_dir, capsys):
    pocket.main(["--coverage=0.5"], bin_dir)
    out = capsys.readouterr().out
    assert re.search(r"pocket-0.5, train: 1\d,\d{3} articles", out) and re.search(r"Africa +6   3  \w+", out)


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan", "half"])
def test_impossible_coverage(share, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        pocket.main([f"--coverage={share}"], tmp_path)
    message = str(error.value) if error.value.code != 2 else capsys.readouterr().err
    assert "coverage" in message and message.count("\n") <= 1 and not list(tmp_path.iterdir())
