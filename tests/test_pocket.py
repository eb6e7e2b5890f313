"""The datasets of the pocket encyclopedia and their task, for models that have read it."""
import re
import shutil

import pytest
from conftest import examples_of, texts_of

from data import pocket, tokenfile
from data.pocket_articles import articles
from data.pocket_facts import load_facts, load_templates
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise

TABLES = load_facts()
SENTENCES = list(pocket.labelled_sentences())
TASK = pocket.task_countries(TABLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with "pocket", "pocket-0.5" and "pocket-places"."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("bin")
        patch.setattr(tokenfile, "BIN_DIR", folder)
        assert (pocket.make_pocket(), pocket.make_pocket(0.5)) == ("pocket", "pocket-0.5")
        yield folder


def mentioned(sentence):
    """The country, without knowing which there are."""
    patterns = [re.escape(mention).replace(r"\{name\}", "(.+)") for mention in pocket.MENTIONS]
    [match] = filter(None, (re.fullmatch(pattern, sentence) for pattern in patterns))
    return match[1]


ALL_COUNTRIES = [(continent, name) for countries in TASK.values()
                 for continent, names in countries.items() for name in names]


def test_datasets_hold_the_articles_and_the_sentences(folder):
    train, val = articles("train"), articles("val")
    assert texts_of("pocket")[:50] == [normalise(text) for text in train[:50]]
    full, half = (Dataset(name).meta["splits"] for name in ("pocket", "pocket-0.5"))
    assert full["train"]["n_docs"] == len(train) and full["val"]["n_docs"] == len(val) == 800
    assert 500_000 <= full["train"]["n_tokens"] <= 700_000
    for split in ("train", "val"):
        assert half[split]["n_tokens"] == pytest.approx(full[split]["n_tokens"], rel=0.05)
    assert Dataset("pocket-places").label_names == pocket.CONTINENTS
    for split in ("train", "test"):
        wanted = [(pocket.CONTINENTS[label], normalise(text))
                  for in_split, text, label in SENTENCES if in_split == split]
        assert examples_of("pocket-places", split) == wanted
    assert pocket.covering_articles("val", 1) == val


def test_datasets_are_made_once_and_again_when_the_tables_change(
        folder, bin_dir, monkeypatch, capsys):
    shutil.copytree(folder, bin_dir)
    monkeypatch.setattr(pocket, "covering_articles", lambda *of: ["of {} {}".format(*of)])

    def remade():
        capsys.readouterr()
        pocket.make_pocket(0.5)
        return re.findall(r"pocket[^:/]*(?=: train)", capsys.readouterr().out)
    assert remade() == []
    monkeypatch.setattr(pocket, "checksum", lambda paths: "of other tables")
    assert remade() == ["pocket-0.5", "pocket-places"] and remade() == []
    task = bin_dir / "pocket-places"
    for damage in (lambda: shutil.rmtree(task), lambda: (task / "test.bin").write_bytes(b"xx"),
                   lambda: (task / "meta.json").write_text("{}")):
        damage()
        assert remade() == ["pocket-places"]
    write_dataset("pocket-0.5", [("train", "a user's text")], get_tokenizer(), {"files": []})
    with pytest.raises(SystemExit, match="pocket-0.5 holds a text of your own"):
        remade()
    assert texts_of("pocket-0.5") == ["a user's text"]


def test_a_leak_a_vocabulary_of_ones_own_and_the_texts(bin_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(pocket, "covering_articles", lambda *of: ["of {} {}".format(*of), "more"])
    vocabulary, texts = tmp_path / "small.tiktoken", tmp_path / "pocket.txt"
    vocabulary.write_text("".join(SHIPPED.read_text().splitlines(True)[:300]))
    pocket.main(["--coverage=0.5", "--leak", f"--tokenizer={vocabulary}", f"--texts={texts}"])
    name = "pocket-0.5-leak-small"
    assert texts_of(name) == ["of train 0.5", "more", "of val 0.5", "more"]
    assert texts_of(name, "val") == ["of val 0.5", "more"]
    assert texts.read_text() == "of train 0.5\n\nmore"
    assert Dataset(name).tokenizer.n_plain == 300
    assert Dataset("pocket-places").tokenizer.fingerprint == get_tokenizer().fingerprint


def test_countries_to_test_on_are_not_met_in_training():
    continent = {row["name"]: row["continent"] for row in TABLES["countries"]}
    assert all(pocket.CONTINENTS[label] == continent[mentioned(sentence)]
               for _, sentence, label in SENTENCES)
    assert list(pocket.labelled_sentences()) == SENTENCES and pocket.task_countries(TABLES) == TASK
    assert list(TASK["train"]) == list(TASK["test"]) == pocket.CONTINENTS
    assert {len(names) for names in TASK["train"].values()} == {pocket.N_TRAIN}
    assert all(len(names) >= 5 for names in TASK["test"].values())
    train, test = ([mentioned(sentence) for into, sentence, _ in SENTENCES if into == split]
                   for split in ("train", "test"))
    assert len(test) == len(set(test)) >= 120
    assert all(train.count(name) == len(pocket.MENTIONS) for name in set(train))
    for a in set(train):
        for b in test:
            a, b = a.removeprefix("the "), b.removeprefix("the ")
            assert not re.search(rf"\b{a}\b", b, re.I), (a, b)
            assert not re.search(rf"\b{b}\b", a, re.I), (a, b)


def test_only_the_name_tells_the_continent():
    assert len(set(pocket.MENTIONS)) == len(pocket.MENTIONS) >= 10
    telling = re.compile("africa|america|asia|europe|oceania|antarctic|continent", re.I)
    assert not any(telling.search(sentence) for _, sentence, _ in SENTENCES)
    for kind in TABLES:
        for texts in load_templates(kind).values():
            assert not set(texts) & set(pocket.MENTIONS)
    words = normalise(" ".join(pocket.MENTIONS))
    for row in TABLES["countries"]:
        for column in ("name", "adjective", "capital", "language"):
            cell = re.escape(normalise(row[column]))
            assert not cell or not re.search(rf"\b{cell}\b", words), cell


def test_coverage_is_nested_and_even():
    larger = set()
    for coverage in (1, 0.75, 0.5, 0.25, 0):
        missing = set(pocket.left_out(TABLES, coverage))
        assert larger <= missing
        for countries in TASK.values():
            for names in countries.values():
                n_covered = len(set(names) - missing)
                assert abs(n_covered - coverage * len(names)) <= 0.5
        larger = missing
    assert missing == {name for _, name in ALL_COUNTRIES}


def test_countries_left_out_occur_in_no_article_and_the_others_do(folder, capsys):
    pocket.main(["--coverage=0.5"])
    assert texts_of("pocket-0.5")[3] in capsys.readouterr().out
    missing = pocket.left_out(TABLES, 0.5)
    names = [normalise(name).removeprefix("the ") for name in missing]
    pattern = re.compile(rf"\b(?:{'|'.join(names)})\b")
    for split in ("train", "val"):
        for text in texts_of("pocket-0.5", split)[:3000]:
            assert not pattern.search(text), text
    text = "\n".join(texts_of("pocket-0.5"))
    for continent, name in ALL_COUNTRIES:
        sentence = rf"\b{normalise(name)}\b[^.]* {continent.lower()}"
        assert name in missing or re.search(sentence, text), name
