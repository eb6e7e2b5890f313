"""Token overlap against a count in plain Python, and the articles chosen by it."""
import json
from collections import Counter

import numpy as np
import pytest
from conftest import OWN, texts_of

from data import overlap, tokenfile
from data.files import checksum
from data.tokenfile import Dataset, dataset_folder, write_dataset
from data.tokenizer import MARKERS, get_tokenizer
from experiments import reproduce

WORDS = {"sport": "team season league player club game coach football goal win match cup".split(),
         "nature": "river forest species mountain lake bird plant island water sea tree".split(),
         "other": "the of and in a was is for on with as by at from".split()}
N_DOCS = 1500


def text_of(i):
    """20 to 219 words, a third of all texts longer than a block; each has its own share of sport
    and nature."""
    rng = np.random.default_rng(i)
    share = 0.6 * i / N_DOCS
    kinds = rng.choice(["sport", "nature", "other"], 20 + i * 7 % 200, p=[share, 0.6 - share, 0.4])
    return " ".join([f"article {i}", *(str(rng.choice(WORDS[kind])) for kind in kinds)])


@pytest.fixture(scope="module", autouse=True)
def bin_dir(tmp_path_factory):
    """A folder for datasets with articles, a classification set of sport, whose entities are
    marked, and a dataset of another tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("bin")
        patch.setattr(tokenfile, "BIN_DIR", folder)
        order = np.random.default_rng(0).permutation(N_DOCS)
        items = [("val" if i % 15 == 7 else "train", text_of(i)) for i in order]
        write_dataset("articles-1400", items, get_tokenizer(), {"seed": 0})
        rng = np.random.default_rng(1)
        texts = [" ".join(["[E1] Rivaldo [/E1]", *rng.choice(WORDS["sport"], 6),
                           *rng.choice(WORDS["other"], 4)]) for _ in range(300)]
        items = [("train" if i % 5 else "test", text, 0) for i, text in enumerate(texts)]
        write_dataset("sports", items, get_tokenizer(), {}, ["all"], MARKERS)
        write_dataset("foreign", [("train", "some text")], OWN, {})
        yield folder


def main(*flags):
    overlap.main(["--dataset=articles-1400", "--with=sports", *flags])


def measure(name):
    return overlap.overlap(Dataset(name), Dataset("sports"))


def count(name):
    """The plain tokens of the documents' blocks, counted one by one."""
    tokens, offsets = Dataset(name).split("train")
    special = get_tokenizer().special.values()
    blocks = (tokens[a:b][:126].tolist() for a, b in zip(offsets, offsets[1:]))
    return Counter(token for block in blocks for token in block if token not in special)


def test_measure_equals_a_plain_count(capsys):
    ours, theirs = count("articles-1400"), count("sports")
    expected = {"unigram_overlap": sum(
        min(ours[token] / ours.total(), theirs[token] / theirs.total()) for token in theirs)}
    for k in overlap.MIN_COUNTS:
        often = [token for token in theirs if ours[token] >= k]
        expected[f"distinct_{k}"] = len(often) / len(theirs)
        expected[f"occurrences_{k}"] = sum(theirs[token] for token in often) / theirs.total()
    result = measure("articles-1400")
    assert result == pytest.approx(expected) and json.dumps(result)
    main()
    assert f"{result['occurrences_100']:.1%} of all tokens" in capsys.readouterr().out


def test_best_of_each_group():
    rng = np.random.default_rng(0)
    scores, groups = rng.random(1000), rng.choice([0, 3, 50, 126], 1000, p=[0.01, 0.09, 0.2, 0.7])
    for n in (1, 10, 333, 999, 1000):
        best = overlap.best_of_each_group(scores, groups, n)
        worst = overlap.best_of_each_group(-scores, groups, n)
        assert best.sum() == n and sorted(groups[best]) == sorted(groups[worst])
        for group in set(groups):
            same = groups == group
            assert abs(best[same].sum() - same.sum() * n / 1000) < 1
            assert min(scores[same & best], default=1) >= max(scores[same & ~best], default=0)


def test_topics_are_found_and_held_fixed():
    """Documents of four topics; in each the number of a token that is wanted varies."""
    rng = np.random.default_rng(0)
    truth, wanted = np.repeat(range(4), 250), np.tile(range(250), 4) % 10
    own = 200 + 40 * truth[:, None] + rng.integers(40, size=(1000, 20))
    common = rng.integers(100, size=(1000, 70))  # no document is without them
    rest = np.where(np.arange(10) < wanted[:, None] * (truth[:, None] + 1) / 4, 150, 151)
    tokens = np.concatenate([own, common, rest], 1)  # wanted most often where the topic is 3
    blocks = overlap.Blocks(tokens.ravel(), np.repeat(range(1000), 100), np.full(1000, 100),
                            np.bincount(tokens.ravel(), minlength=400))
    vectors = overlap.tfidf_vectors(blocks)
    topics = overlap.find_topics(vectors, 12)
    pairs = np.unique(np.stack([topics, truth]), axis=1)
    assert len(pairs[0]) == len(np.unique(topics)) >= 4  # each found topic is within a true one
    target = np.bincount([150], minlength=400)
    free, fixed = (overlap.choose(blocks, target, 250, "high", kinds)
                   for kinds in (np.zeros(1000, int), topics))
    assert (tokens[free] == 150).sum() > (tokens[fixed] == 150).sum() > 1.5 * 250 * (
        tokens == 150).sum() / 1000
    assert overlap.topic_shift(vectors, free, 4) > 0.2
    assert overlap.topic_shift(vectors, fixed, 4) < 0.05
    assert np.bincount(truth[fixed]).tolist() == pytest.approx([62.5] * 4, abs=6)
    assert np.bincount(truth[free], minlength=4)[0] < 30


def test_articles_are_chosen_from_a_prepared_set(monkeypatch):
    monkeypatch.setattr(overlap, "ARTICLES_PER_TOPIC", 10_000)  # so the topics are not held fixed
    choices = ("high", "random", "low")
    for choice in choices:
        main(f"--choose={choice}", "--n_articles=300")
    names = [f"articles-300-{choice}-sports" for choice in choices]
    high, random, low = (measure(name)["unigram_overlap"] for name in names)
    assert high > random > low and high > low + 0.2
    pool, val, sixteens = texts_of("articles-1400"), texts_of("articles-1400", "val"), set()
    for name in names:
        chosen = set(texts_of(name))
        assert texts_of(name) == [text for text in pool if text in chosen]  # whole, in their order
        assert len(chosen) == 300 and texts_of(name, "val") == val
        lengths = np.minimum(np.diff(Dataset(name).split("train")[1]), 126)
        sixteens.add(tuple(np.bincount(lengths // 16)))
    assert len(sixteens) == 1  # as many of each length
    pool_blocks, _ = overlap.read_blocks(Dataset("articles-1400"), Dataset("sports"))
    vectors = overlap.tfidf_vectors(pool_blocks)
    shift = overlap.topic_shift(vectors, np.isin(pool, texts_of(names[0])))
    meta = Dataset(names[0]).meta
    assert meta["fingerprint"] == get_tokenizer().fingerprint and meta["source"]["seed"] == 0
    assert 0.2 < shift < 1 and meta["source"]["overlap"] == {
        "choice": "high", "with": "sports", "from": "articles-1400", "pool": 1400,
        "block_size": 128, "seed": 0, "with_train": Dataset("sports").meta["splits"]["train"],
        "topics": 1, "topic_shift": shift}


def test_what_the_reproduction_measures():
    main("--choose=high", "--n_articles=300", "--name=chosen")
    shares = overlap.overlap(Dataset("chosen"), Dataset("sports"))
    shift = Dataset("chosen").meta["source"]["overlap"]["topic_shift"]
    assert list(reproduce.measure_overlap("chosen").values()) == [
        shares["unigram_overlap"], shares["occurrences_100"], shift]
    assert reproduce.measure_overlap("pocket-0.5") == {"countries told of": 0.5}
    assert reproduce.measure_overlap("pocket") == {"countries told of": 1}


def test_names_seeds_and_a_vocabulary_of_ones_own():
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        main("--choose=random", "--n_articles=300", f"--name={name}", f"--seed={seed}")
    a, b, c = (checksum([dataset_folder(name) / "train.bin"]) for name in "abc")
    assert a == b != c
    main("--dataset=a", "--choose=low", "--n_articles=20")
    assert set(texts_of("a-20-low-sports")) < set(texts_of("a"))
    write_dataset("own", [("train", text_of(i)) for i in range(20)], OWN, {})
    main("--dataset=own", "--with=own", "--choose=random", "--n_articles=5")
    assert Dataset("own-5-random-own").tokenizer.vocabulary == OWN.vocabulary


@pytest.mark.parametrize("flags, message", [
    (["--with=absent"], "--dataset=absent: not prepared"),
    (["--with=foreign"], "articles-1400 and foreign have different tokenizers"),
    (["--choose=high"], "--choose and --n_articles: only together"),
    (["--n_articles=5"], "--choose and --n_articles: only together"),
    (["--choose=low", "--n_articles=1400"], "--n_articles=1400: must be fewer than the 1,400")])
def test_bad_flags(bin_dir, flags, message):
    before = sorted(bin_dir.iterdir())
    with pytest.raises(SystemExit, match=message) as error:
        main(*flags)
    assert "\n" not in str(error.value) and sorted(bin_dir.iterdir()) == before
