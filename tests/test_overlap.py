"""Token overlap against a count in plain Python, and the articles chosen by it."""
import json
import tempfile
from collections import Counter

import numpy as np
import pytest

from data import overlap, wikipedia
from data.files import checksum
from data.tokenfile import open_split, read_meta, write_dataset
from data.tokenizer import MARKERS, get_tokenizer

WORDS = {"sport": "team season league player club game coach football goal win match cup".split(),
         "nature": "river forest species mountain lake bird plant island water sea tree fish".split(),
         "other": "the of and in a was is for on with as by at from".split()}
N_DOCS, N_VAL = 1500, 100


def text_of(i):
    """20 to 219 words, a third of all texts longer than a block; each has its own share of sport and nature."""
    rng = np.random.default_rng(i)
    share = 0.6 * i / N_DOCS
    kinds = rng.choice(["sport", "nature", "other"], 20 + i * 7 % 200, p=[share, 0.6 - share, 0.4])
    return " ".join([f"article {i}", *(str(rng.choice(WORDS[kind])) for kind in kinds)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Articles as .jsonl, and a prepared classification set of sport, whose entities are marked."""
    folder = tmp_path_factory.mktemp("overlap")
    lines = [json.dumps({"text": text_of(i)}) for i in np.random.default_rng(0).permutation(N_DOCS)]
    (folder / "articles.jsonl").write_text("\n".join(lines))
    rng = np.random.default_rng(1)
    items = [("train" if i % 5 else "test", " ".join(["[E1] Rivaldo [/E1]", *rng.choice(WORDS["sport"], 6),
                                                      *rng.choice(WORDS["other"], 4)]), 0) for i in range(300)]
    write_dataset("sports", items, get_tokenizer(), {}, folder / "bin", ["all"], MARKERS)
    return folder


def prepare(folder, *flags):
    source = f"--source={folder}/articles.jsonl"
    wikipedia.main([source, f"--n_val={N_VAL}", "--n_articles=300", *flags], folder / "bin")


def texts(folder, name, split="train"):
    tokens, offsets = open_split(name, split, folder / "bin")
    return [get_tokenizer().decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]


def lengths(folder, name):
    return sorted(np.minimum(np.diff(open_split(name, "train", folder / "bin")[1]), 126).tolist())


def count(folder, name, n):
    """The plain tokens of the documents' first n, counted one by one."""
    tokens, offsets = open_split(name, "train", folder / "bin")
    special = get_tokenizer().special.values()
    blocks = (tokens[a:b][:n].tolist() for a, b in zip(offsets, offsets[1:]))
    return Counter(token for block in blocks for token in block if token not in special)


@pytest.mark.parametrize("block_size", [128, 16, 5])
def test_measure_equals_a_plain_count(folder, block_size):
    prepare(folder, "--n_articles=1400", "--name=all")  # more documents than are read at a time
    ours, theirs = count(folder, "all", block_size - 2), count(folder, "sports", block_size - 2)
    found = overlap.overlap("all", "sports", block_size, (1, 7, 5000), folder / "bin")
    assert found["documents"] == 1400 and found["other_documents"] == 240
    assert found["tokens"] == ours.total() and found["other_tokens"] == theirs.total()
    assert found["other_distinct"] == len(theirs)
    for k in (1, 7, 5000):
        often = [token for token in theirs if ours[token] >= k]
        assert found[f"distinct_{k}"] == pytest.approx(len(often) / len(theirs))
        assert found[f"occurrences_{k}"] == pytest.approx(sum(theirs[token] for token in often) / theirs.total())
    smaller = sum(min(ours[token] / ours.total(), theirs[token] / theirs.total()) for token in theirs)
    assert found["unigram_overlap"] == pytest.approx(smaller)
    assert {type(value) for value in found.values()} == {int, float} and json.dumps(found)


def test_overlap_with_itself_and_with_nothing(folder):
    found = overlap.overlap("sports", "sports", bin_dir=folder / "bin")
    assert found["unigram_overlap"] == pytest.approx(1) and found["distinct_1"] == found["occurrences_1"] == 1
    write_dataset("strange", [("train", "日本 語")], get_tokenizer(), {}, folder / "bin")
    found = overlap.overlap("strange", "sports", bin_dir=folder / "bin")
    assert found["unigram_overlap"] == found["distinct_1"] == found["occurrences_1"] == 0


def test_take_best():
    rng = np.random.default_rng(0)
    scores, sizes = rng.random(1000), rng.choice([0, 3, 50, 126], 1000, p=[0.01, 0.09, 0.2, 0.7])
    for n in (1, 10, 333, 999, 1000):
        keep, other = overlap.take_best(scores, sizes, n), overlap.take_best(-scores, sizes, n)
        assert keep.sum() == n and sorted(sizes[keep]) == sorted(sizes[other])
        for size in set(sizes):
            same = sizes == size
            assert abs(keep[same].sum() - same.sum() * n / 1000) < 1
            assert min(scores[same & keep], default=1) >= max(scores[same & ~keep], default=0)
    assert overlap.take_best(np.zeros(4), np.full(4, 7), 2).tolist() == [True, True, False, False]


def test_articles_chosen_from_files(folder, capsys):
    prepare(folder)
    for which in ("high", "random", "low"):
        prepare(folder, f"--overlap={which}", "--overlap_with=sports")
    names = [f"wikipedia-300-{which}-sports" for which in ("high", "random", "low")]
    assert "overlap of the two distributions of tokens: " in capsys.readouterr().out
    many = range(100, 1500, 100)
    found = [overlap.overlap(name, "sports", 128, many, folder / "bin") for name in names]
    for keys in (["unigram_overlap"], [f"occurrences_{k}" for k in many]):
        high, random, low = (sum(each[key] for key in keys) for each in found)
        assert high > random > low, keys
    assert found[0]["unigram_overlap"] > found[2]["unigram_overlap"] + 0.2
    assert lengths(folder, names[0]) == lengths(folder, names[1]) == lengths(folder, names[2])
    assert [each["documents"] for each in found] == [300] * 3 and len({each["tokens"] for each in found}) == 1
    val = texts(folder, "wikipedia-300", "val")
    for name in names:
        assert texts(folder, name, "val") == val and not set(texts(folder, name)) & set(val)
        assert len(set(texts(folder, name))) == 300
    source = read_meta(names[0], folder / "bin")["source"]
    assert source["overlap"] == {"choice": "high", "with": "sports", "pool": 1400, "block_size": 128,
                                 "with_train": read_meta("sports", folder / "bin")["splits"]["train"]}


def test_same_seed_same_articles(folder):
    flags = ["--overlap_with=sports", "--pool=700"]
    for which in ("high", "random"):
        for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
            prepare(folder, f"--overlap={which}", f"--name={name}", f"--seed={seed}", *flags)
        a, b, c = (checksum([folder / "bin" / name / "train.bin"]) for name in "abc")
        assert a == b != c
        prepare(folder, "--n_articles=700", "--name=pool")
        assert set(texts(folder, "a")) < set(texts(folder, "pool"))
    assert read_meta("a", folder / "bin")["source"]["overlap"]["pool"] == 700


def test_articles_chosen_from_the_download(folder, tmp_path, monkeypatch, capsys):
    def fetch_page(page):
        rows = [{"row_idx": i, "row": {"text": text_of(i)}, "truncated_cells": []}
                for i in range(100 * page, 100 * page + 100)]
        return json.dumps({"rows": rows, "num_rows_total": N_DOCS}).encode()
    monkeypatch.setattr(wikipedia, "fetch_page", fetch_page)
    def main(*flags):
        wikipedia.main([f"--n_val={N_VAL}", "--n_articles=300", *flags], folder / "bin", tmp_path)
    main("--name=ordinary")
    main("--n_articles=1200", "--name=pool")
    for which in ("high", "random", "low"):
        main(f"--name=net-{which}", f"--overlap={which}", "--overlap_with=sports")
        assert texts(folder, f"net-{which}", "val") == texts(folder, "ordinary", "val")
        assert len(texts(folder, f"net-{which}")) == 300
        assert set(texts(folder, f"net-{which}")) < set(texts(folder, "pool"))
        assert lengths(folder, f"net-{which}") == lengths(folder, "net-high")
    high, random, low = (overlap.overlap(f"net-{which}", "sports", bin_dir=folder / "bin")["unigram_overlap"]
                         for which in ("high", "random", "low"))
    assert high > random > low
    source = read_meta("net-low", folder / "bin")["source"]
    assert source["overlap"]["pool"] == 1200 and source["n_rows"] == N_DOCS and source["overlap"]["choice"] == "low"
    with pytest.raises(SystemExit, match="--pool=1401: too many, the source has only 1,500 articles"):
        main("--overlap=high", "--overlap_with=sports", "--pool=1401")


@pytest.mark.parametrize("flags, message", [
    (["--overlap=high"], "--overlap and --overlap_with: only together"),
    (["--overlap_with=sports"], "--overlap and --overlap_with: only together"),
    (["--pool=700"], "--pool=700: only with --overlap"),
    (["--overlap=low", "--overlap_with=sports", "--pool=300"], "--pool=300: must be more than --n_articles=300"),
    (["--overlap=low", "--overlap_with=sports", "--pool=0"], "--pool=0: must be more than"),
    (["--overlap=low", "--overlap_with=sports", "--pool=1401"], "--pool=1401: too many, the source has only 1,500"),
    (["--overlap=low", "--overlap_with=sports", "--n_articles=1400"], "--pool=1401: too many"),
    (["--overlap=low", "--overlap_with=absent"], "--dataset=absent: not prepared"),
    (["--overlap=low", "--overlap_with=foreign"], "--overlap_with=foreign: was prepared with the tokenizer gpt2, not "),
])
def test_bad_flags_of_wikipedia(folder, flags, message):
    foreign(folder)
    with pytest.raises(SystemExit, match=message) as error:
        prepare(folder, "--name=bad", *flags)
    assert "\n" not in str(error.value) and not (folder / "bin" / "bad").exists()


def foreign(folder):
    """A dataset that says to have been prepared with another tokenizer."""
    write_dataset("foreign", [("train", "some text")], get_tokenizer(), {}, folder / "bin")
    path = folder / "bin" / "foreign" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": "gpt2", "fingerprint": "x"}))


def test_no_room_for_the_temporary_file(folder, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(SystemExit, match=r"cannot write a temporary file in .* \(No space left .*\); set TMPDIR to"):
        prepare(folder, "--overlap=high", "--overlap_with=sports", "--name=bad")
    assert not (folder / "bin" / "bad").exists()


def test_command_line(folder, capsys):
    prepare(folder)
    capsys.readouterr()
    overlap.main(["--dataset=wikipedia-300", "--with=sports", "--min_count", "1", "50", "--block_size=64"],
                 folder / "bin")
    found = overlap.overlap("wikipedia-300", "sports", 64, (50,), folder / "bin")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wikipedia-300: 300 documents, {found['tokens']:,} tokens within 62"
    assert lines[-2].split()[:4] == ["at", "least", "50", "times:"] and f"{found['occurrences_50']:.1%}" in lines[-2]
    assert lines[-1].endswith(f": {found['unigram_overlap']:.1%}")


@pytest.mark.parametrize("flags, message", [
    (["--dataset=absent"], "--dataset=absent: not prepared"),
    (["--with=absent"], "--dataset=absent: not prepared"),
    (["--with=foreign"], "sports was prepared with the tokenizer uncased-16k and foreign with gpt2"),
    (["--block_size=3"], "--block_size=3: cuts the documents of sports to markers alone"),
    (["--block_size=2"], "--block_size=2: must be at least 3"),
    (["--min_count", "5", "0"], "--min_count=0: must be at least 1"),
])
def test_bad_flags(folder, flags, message):
    foreign(folder)
    with pytest.raises(SystemExit, match=message) as error:
        overlap.main(["--dataset=sports", "--with=sports", *flags], folder / "bin")
    assert "\n" not in str(error.value)
