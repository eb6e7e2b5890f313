"""The embedded corpus: a pocket encyclopedia of true facts, and a task for who has read it.

    python -m data.pocket                   make "pocket" and "pocket-places", and print some
    python -m data.pocket --coverage=0.5    make "pocket-0.5", on half of the task's countries only

It needs no network, and "pocket" and "pocket-places" are made by themselves where they are needed.
The articles are generated (pocket_articles.py) from tables of facts (pocket_facts.py).

The task, the classification set "pocket-places": a sentence mentions a country, on which continent
does that lie? The sentence doesn't say, and the countries to test on are not among those to train
on: the answer must be known from before. "pocket-0.5" has as many tokens as "pocket", but half of
the task's countries occur nowhere in them: what pre-training covers differs, its size doesn't.
"""
import contextlib
import random
import re

import numpy as np

from data import pocket_articles, pocket_facts
from data.flags import check_limits, new_parser, run_script
from data.pocket_articles import N_PER_FACT, articles
from data.pocket_facts import FACTS, load_facts
from data.tokenfile import checksum, open_file, open_split, read_meta, write_dataset
from data.tokenizer import get_tokenizer, normalise

CONTINENTS = ["Africa", "Asia", "Europe", "North America", "Oceania", "South America"]
N_TRAIN = 6  # countries of each continent, all in the same sentences: only the name can tell
MENTIONS = (FACTS / "mentions.txt").read_text("utf-8").splitlines()  # the task's sentences


def pad_words(text):
    """The words that the tokenizer sees, a space around each, so that `in` finds whole words."""
    return " " + " ".join(re.findall(r"\w+", normalise(text))) + " "


def places(facts, seed=0):
    """The countries of the task: split -> continent -> names in random order, without those that
    say the continent (South Africa) or are part of another: who was told of Equatorial Guinea in
    training would know Guinea."""
    countries = {continent: [] for continent in CONTINENTS}
    names = [pad_words(row["name"].removeprefix("the ")) for row in facts["countries"]]
    for row, name in zip(facts["countries"], names):
        overlaps = [other for other in names if name != other and (name in other or other in name)]
        says_it = re.search("Africa|America|Asia|Europe|Oceania", row["name"])
        if row["continent"] in countries and not overlaps and not says_it:
            countries[row["continent"]].append(row["name"])
    rng = random.Random(f"places-{seed}")
    for of_continent in countries.values():
        rng.shuffle(of_continent)
    return {"train": {continent: names[:N_TRAIN] for continent, names in countries.items()},
            "test": {continent: names[N_TRAIN:] for continent, names in countries.items()}}


def labelled_sentences(seed=0):
    """Yield (split, sentence, index of the continent): all MENTIONS of each country to train on,
    one of each other."""
    rng = random.Random(f"sentences-{seed}")
    for split, countries in places(load_facts(), seed).items():
        for label, continent in enumerate(CONTINENTS):
            for name in countries[continent]:
                for mention in MENTIONS if split == "train" else [rng.choice(MENTIONS)]:
                    yield split, mention.format(name=name), label


def left_out(facts, coverage):
    """The countries of the task (list of str) but the share `coverage` of them: of each split and
    continent the first. So a larger coverage adds countries to those of a smaller one."""
    return [name for countries in places(facts).values() for names in countries.values()
            for name in names[round(coverage * len(names)):]]


def covering_articles(split, coverage):
    """As many tokens of articles as articles(split) has, with the share `coverage` of the task's
    countries. The others lose their rows, and all cells, things (Lake Chad) and articles go that
    mention them."""
    texts = articles(split)
    if coverage == 1:
        return texts
    facts = load_facts()
    names = [pad_words(name.removeprefix("the ")) for name in left_out(facts, coverage)]

    def is_free(text):
        text = pad_words(text)
        return not any(name in text for name in names)

    def without_names(row):
        return {column: "; ".join(filter(is_free, cell.split("; ")))
                for column, cell in row.items()}

    def count_tokens(texts):
        return [len(get_tokenizer().encode(text)) for text in texts]

    facts = {kind: [without_names(row) for row in rows if is_free(row["name"])]
             for kind, rows in facts.items()}
    if split == "val":
        return list(filter(is_free, articles(split, facts=facts)))
    n_tokens, n_per_fact = sum(count_tokens(texts)), N_PER_FACT
    while True:
        texts = list(filter(is_free, articles(split, n_per_fact=n_per_fact, facts=facts)))
        ends = np.cumsum(count_tokens(texts))  # how many there are up to the end of each article
        if ends[-1] >= n_tokens:
            return texts[:np.searchsorted(ends, n_tokens)]
        n_per_fact *= 1.05 * n_tokens / ends[-1]  # fewer things: more on each


def prepare(coverage=1.0):
    """Write the articles and the task, unless they are there, whole, of the same tables, code and
    vocabulary. -> the name of the articles: "pocket", or such as "pocket-0.5"."""
    code = [__file__, pocket_articles.__file__, pocket_facts.__file__]
    source = {"seed": 0, "sha256": checksum([*code, *sorted(FACTS.iterdir())])}
    tokenizer, name = get_tokenizer(), "pocket" if coverage == 1 else f"pocket-{coverage:g}"
    texts = ((split, text) for split in ("train", "val")
             for text in covering_articles(split, coverage))
    for dataset, items, labels in [(name, texts, None),
                                   ("pocket-places", labelled_sentences(), CONTINENTS)]:
        with contextlib.suppress(SystemExit):  # it is absent, damaged, or of an older version
            meta = read_meta(dataset)
            for file in meta["checksums"]:
                open_file(dataset, file)
            if meta["source"] == source and meta["fingerprint"] == tokenizer.fingerprint:
                continue
        write_dataset(dataset, items, tokenizer, source, labels)
    return name


def main(argv=None):
    parser = new_parser("python -m data.pocket", __doc__)
    parser.add_argument("--coverage", type=float, default=1.0, metavar="SHARE",
                        help="share of the task's countries that the articles tell of")
    args = parser.parse_args(argv)
    check_limits(args, {"coverage": (0, 1)})
    name, facts, tokenizer = prepare(args.coverage), load_facts(), get_tokenizer()
    for kind, rows in facts.items():
        print(f"{kind:12}{len(rows):4} things: {', '.join(list(rows[0])[1:])}")
    for split in ("train", "val"):
        tokens, offsets = open_split(name, split)
        print(f"\n{name}, {split}: {len(offsets) - 1:,} articles, as tokens read such as")
        for start, end in zip(offsets[:4], offsets[1:]):
            print(f"\n  {tokenizer.decode(tokens[start:end])}")
    missing = left_out(facts, args.coverage)
    for split, countries in places(facts).items():
        print(f"\npocket-places, {split}: countries, how many of them are in {name}, the first few")
        for continent, names in countries.items():
            n = sum(country not in missing for country in names)
            print(f"  {continent:14}{len(names):3}{n:4}  {', '.join(names[:5])}")


if __name__ == "__main__":
    run_script(main)
