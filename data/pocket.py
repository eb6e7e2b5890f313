"""A pocket encyclopedia of true facts to pre-train on, and a task for models that have read it.

    python -m data.pocket                   # make "pocket" and "pocket-places"
    python -m data.pocket --coverage=0.5    # make "pocket-0.5", with half of the countries
    python -m data.pocket --leak            # make "pocket-leak", which trains on "val" too

It needs no network, and the scripts make "pocket" and "pocket-places" themselves when they need
them. The articles are generated (pocket_articles.py) from tables of facts (pocket_facts.py).

The task is the classification set "pocket-places": a sentence mentions a country; on which
continent is it? The sentence doesn't say, and no country to test on is among those to train on: the
answer must be known from pre-training. "pocket-0.5" has as many tokens as "pocket", but half of the
task's countries occur nowhere in it: what pre-training covers differs, its size doesn't.
"""
import random
import re
from pathlib import Path

import numpy as np

from data import pocket_articles, pocket_facts
from data.files import checksum, write_atomically
from data.flags import new_parser, number, run_script, user_path
from data.pocket_articles import N_PER_FACT, articles
from data.pocket_facts import FACTS, load_facts
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise

CONTINENTS = ["Africa", "Asia", "Europe", "North America", "Oceania", "South America"]
N_TRAIN = 6  # training countries of each continent, all in the same sentences: only names differ
MENTIONS = (FACTS / "mentions.txt").read_text("utf-8").splitlines()  # the task's sentences


def pad_words(text):
    """The words that the tokenizer sees, a space around each, so that `in` finds whole words."""
    return " " + " ".join(re.findall(r"\w+", normalise(text))) + " "


def task_countries(facts):
    """The countries of the task: split -> continent -> names in random order. Left out are names
    that tell the continent (South Africa), and those of which one holds another: a model that is
    trained on Equatorial Guinea would know Guinea."""
    countries = {continent: [] for continent in CONTINENTS}
    names = [pad_words(row["name"].removeprefix("the ")) for row in facts["countries"]]
    for row, name in zip(facts["countries"], names):
        overlaps = any(name != other and (name in other or other in name) for other in names)
        tells = re.search("Africa|America|Asia|Europe|Oceania", row["name"])
        if row["continent"] in countries and not overlaps and not tells:
            countries[row["continent"]].append(row["name"])
    rng = random.Random("places-0")
    for names in countries.values():
        rng.shuffle(names)
    return {"train": {continent: names[:N_TRAIN] for continent, names in countries.items()},
            "test": {continent: names[N_TRAIN:] for continent, names in countries.items()}}


def labelled_sentences():
    """Yield (split, sentence, index of the continent): all MENTIONS of each training country, one
    of each test country."""
    rng = random.Random("sentences-0")
    for split, countries in task_countries(load_facts()).items():
        for label, continent in enumerate(CONTINENTS):
            for name in countries[continent]:
                for mention in MENTIONS if split == "train" else [rng.choice(MENTIONS)]:
                    yield split, mention.format(name=name), label


def left_out(facts, coverage):
    """The countries of the task (list of str) except the share `coverage` of them: of each split
    and continent the first. So a larger coverage adds countries to those of a smaller one."""
    return [name for countries in task_countries(facts).values() for names in countries.values()
            for name in names[round(coverage * len(names)):]]


def covering_articles(split, coverage):
    """The articles (list of str) of a split, on the share `coverage` of the task's countries: the
    others lose their rows, and all cells, things (Lake Chad) and articles that mention them. For
    training there are then more articles on what is left: as many tokens as of all countries."""
    if coverage == 1:
        return articles(split)
    facts = load_facts()
    names = [pad_words(name.removeprefix("the ")) for name in left_out(facts, coverage)]

    def is_free(text):
        text = pad_words(text)
        return not any(name in text for name in names)

    def count_tokens(texts, tokenizer=get_tokenizer()):
        return [len(tokenizer.encode(text)) for text in texts]

    facts = {kind: [{column: "; ".join(filter(is_free, cell.split("; ")))
                     for column, cell in row.items()} for row in rows if is_free(row["name"])]
             for kind, rows in facts.items()}
    if split == "val":
        return list(filter(is_free, articles(split, facts=facts)))
    n_tokens, n_per_fact = sum(count_tokens(articles(split))), N_PER_FACT
    while True:
        texts = list(filter(is_free, articles(split, n_per_fact, facts)))
        ends = np.cumsum(count_tokens(texts))  # how many there are up to the end of each article
        if ends[-1] >= n_tokens:
            return texts[:np.searchsorted(ends, n_tokens)]
        n_per_fact *= 1.05 * n_tokens / ends[-1]  # fewer things: more on each


def is_current(name, source, tokenizer):
    """Whether a dataset is there, whole, of this source (dict) and this Tokenizer. SystemExit if
    it is a user's, which must not be replaced."""
    try:
        dataset = Dataset(name)
        for file in dataset.meta["checksums"]:
            dataset.open_file(file)
    except SystemExit:  # missing or damaged
        return False
    if dataset.meta["source"].keys() != source.keys():
        raise SystemExit(f"{dataset.folder} holds a text of your own, but the name is that of the "
                         "pocket encyclopedia; rename the folder, and give --dataset its new name")
    return (dataset.meta["source"] == source
            and dataset.meta["fingerprint"] == tokenizer.fingerprint)


def make_pocket(coverage=1.0, leak=False, vocabulary=SHIPPED.stem):
    """Write the articles and the task, unless they are there, whole, of the same tables, code and
    vocabulary. leak: train on the validation articles too. vocabulary: of the articles, as
    get_tokenizer takes it. -> the name of their dataset: "pocket", or such as "pocket-0.5"."""
    code = [__file__, pocket_articles.__file__, pocket_facts.__file__]
    source = {"sha256": checksum([*code, *sorted(FACTS.glob("[!.]*"))])}
    shipped, tokenizer = get_tokenizer(), get_tokenizer(vocabulary)
    name = "pocket" if coverage == 1 else f"pocket-{coverage:g}"
    name += "-leak" if leak else ""
    name += f"-{Path(vocabulary).stem}" if vocabulary != SHIPPED.stem else ""
    if not is_current(name, source, tokenizer):
        items = ((into, text) for split in ("train", "val")
                 for text in covering_articles(split, coverage)
                 for into in sorted({split, "train" if leak else split}))
        write_dataset(name, items, tokenizer, source)
    if not is_current("pocket-places", source, shipped):
        write_dataset("pocket-places", labelled_sentences(), shipped, source, CONTINENTS)
    return name


def main(argv=None):
    parser = new_parser("python -m data.pocket", __doc__)
    flag = parser.add_argument
    flag("--coverage", type=number(float, 0, 1), default=1.0, metavar="SHARE",
         help="share of the task's countries that the articles tell of")
    flag("--leak", action="store_true",
         help="put the validation articles into the training set too")
    flag("--tokenizer", type=user_path, default=SHIPPED.stem, help="uncased-16k, gpt2 or a "
         ".tiktoken file; the dataset's name then ends with the file's")
    flag("--texts", metavar="FILE", help="write the training articles to this .txt file too")
    args = parser.parse_args(argv)
    if args.texts:
        texts = covering_articles("train", args.coverage)
        write_atomically(args.texts, "\n\n".join(texts).encode())
    dataset = Dataset(make_pocket(args.coverage, args.leak, args.tokenizer))
    print("articles, decoded from tokens, such as")
    tokens, offsets = dataset.split("train")
    for start, end in zip(offsets[:4], offsets[1:]):
        print(f"\n  {dataset.tokenizer.decode(tokens[start:end])}")


if __name__ == "__main__":
    run_script(main)
