"""The embedded corpus: a pocket encyclopedia, generated from tables of true facts, and a task for who has read it.

    python -m data.pocket                   make "pocket" and "pocket-places", and print some of them
    python -m data.pocket --coverage=0.5    make "pocket-0.5", which tells of half of the task's countries only

It needs no network, and "pocket" and "pocket-places" are made by themselves where they are needed. Everything comes
from two plain files per kind of thing, which can be read and mended by hand:

data/facts/KIND.tsv   A table of facts. The first line names the columns, of which the first is `name`; cells are
                      separated by tabs, the members of a list by "; ". An empty cell is a fact that we leave out.
data/facts/KIND.txt   Sentences, one a line (one that stands twice is used twice as often), under headings: "# train"
                      and "# val" for the facts, "# train opening" and "# val opening" for first sentences, "# train
                      survey" for several things at once, "# train pair" for comparisons of two. Validation shares the
                      facts with training but no phrasing: who does well there has learned more than sentences.

In a sentence {capital} is the cell of that column, a list joined by commas and "and"; {works.one} is one member of a
list, {works.some} up to three, {kind.a} the cell with "a" or "an" before it, {kind.s} its plural. In a survey {names}
are things that agree in all columns of the sentence. In a pair {other.capital} is the second thing's cell; columns
mentioned of both differ, all others are shared. A sentence is used only where all the cells it needs are filled.

The task, the classification set "pocket-places": a sentence mentions a country, on which continent does that lie? The
sentence doesn't say, and the countries to test on are not among those to train on: the answer must be known from
before. Of countries the articles tell most. "pocket-0.5" has as many tokens as "pocket", but half of the task's
countries occur nowhere in them: what pre-training covers differs, its size doesn't.
"""
import argparse
import math
import random
import re
from pathlib import Path

import numpy as np

from data.files import checksum
from data.tokenfile import BIN_DIR, open_split, read_meta, write_dataset
from data.tokenizer import get_tokenizer, normalise

FACTS = Path(__file__).with_name("facts")
HEADINGS = ["train opening", "train", "train survey", "train pair", "val opening", "val"]
FIELD = re.compile(r"\{(other\.)?(\w+)(\.one|\.some|\.a|\.s)?\}")
MIN_WORDS, MAX_WORDS = 32, 78  # so that an article rarely has more tokens than fit into a block of 128
N_VAL = 800
CONTINENTS = ["Africa", "Asia", "Europe", "North America", "Oceania", "South America"]
N_TRAIN = 6  # countries of each continent, all in the same sentences, so that nothing but the name can tell
MENTIONS = ["A painting of {name} hangs above the sofa.",
            "Every evening he reads to his daughter from a book about {name}.",
            "For years she had been saving for a journey to {name}.",
            "He closed his eyes and thought of {name}.",
            "I have kept all the letters that you sent me from {name}.",
            "In the last chapter of the novel the two friends meet again in {name}.",
            "Last night my brother dreamed of {name}.",
            "Nobody at our table had ever been to {name}.",
            "The film begins with a view of {name}.",
            "They talked about {name} until it grew late.",
            "We still laugh about what happened to us in {name}.",
            "When she is old, she wants to see {name} once more."]
UNCHANGED = ("fish", "deer", "sheep", "moose", "bison", "salmon", "trout", "squid", "cod", "carp", "pike", "tuna")
IRREGULAR = {"goose": "geese", "mouse": "mice", "wolf": "wolves"}


def load_facts():
    """The tables in the order of their files: kind -> rows, each a dict of column -> cell (str, "" if unknown).

    Raises ValueError with file and line for a row with too few or too many cells, or a name that comes twice.
    """
    facts = {}
    for path in sorted(FACTS.glob("*.tsv")):
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        columns, names = header.split("\t"), set()
        if columns[0] != "name":
            raise ValueError(f"{path}:1: the first column must be 'name', not {columns[0]!r}")
        facts[path.stem] = []
        for number, line in enumerate(lines, start=2):
            cells = line.split("\t")
            if len(cells) != len(columns):
                raise ValueError(f"{path}:{number}: {len(cells)} cells for {len(columns)} columns")
            if not cells[0] or cells[0] in names:
                raise ValueError(f"{path}:{number}: the name {cells[0]!r} is empty or was there before")
            names.add(cells[0])
            facts[path.stem].append(dict(zip(columns, cells)))
    return facts


def load_templates(kind, columns):
    """The sentences for a kind whose table has these columns: heading -> list of str.

    Raises ValueError with file and line for an unknown heading or field.
    """
    path, templates, heading = FACTS / f"{kind}.txt", {heading: [] for heading in HEADINGS}, None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("#"):
            heading = line[1:].strip()
            if heading not in HEADINGS:
                raise ValueError(f"{path}:{number}: the heading must be one of {', '.join(HEADINGS)}")
        elif line:
            known = {*columns, "names"} if heading == "train survey" else columns
            unknown = [field for _, field, _ in FIELD.findall(line) if field not in known]
            if unknown or heading is None or re.search("[{}]", FIELD.sub("", line)):
                raise ValueError(f"{path}:{number}: unknown field or no heading: {', '.join(unknown) or line}")
            templates[heading].append(line)
    return templates


def facts_in(template):
    """The columns (set of str) whose facts a sentence states: all that it mentions but the name."""
    return {field for _, field, _ in FIELD.findall(template)} - {"name", "names"}


def join(words):
    """['A', 'B', 'C'] -> 'A, B and C'."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def plural(noun):
    """'noble gas' -> 'noble gases'."""
    if noun.endswith(UNCHANGED) or noun in IRREGULAR:
        return IRREGULAR.get(noun, noun)
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh", "quito")) else "s")


def fill(template, rng, row, other=None):
    """One sentence: the template with its fields replaced by cells of `row` (and, in a pair, of `other`)."""
    def cell(match):
        from_other, column, form = match.groups()
        text = (other if from_other else row)[column]
        words = text.split("; ")
        return {None: join(words), ".one": rng.choice(words), ".some": join(rng.sample(words, min(3, len(words)))),
                ".a": ("an " if text[0] in "aeiouAEIOU" else "a ") + text, ".s": plural(text)}[form]
    sentence = FIELD.sub(cell, template)
    return sentence[0].upper() + sentence[1:].replace("D.C..", "D.C.")


def stated(template, row):
    """Whether `row` has all the facts that the template states."""
    return all(row[column] for column in facts_in(template))


def tell(rng, row, templates, told, n_words):
    """Sentences on facts of `row` in random order, none on the columns in `told` (set), up to about n_words words."""
    sentences = []
    for template in rng.sample(templates, len(templates)):
        if not told & facts_in(template) and stated(template, row):
            sentences.append(fill(template, rng, row))
            told = told | facts_in(template)
            n_words -= len(sentences[-1].split())
            if n_words <= 0:
                break
    return sentences


def entity_article(rng, row, openings, templates):
    """An opening sentence and other facts on one thing. "" if there is no opening whose facts it has."""
    openings = [template for template in openings if stated(template, row)]
    if not openings:
        return ""
    opening = rng.choice(openings)
    n_words = rng.randint(MIN_WORDS, MAX_WORDS) - 10  # the last sentence may exceed this
    return " ".join([fill(opening, rng, row), *tell(rng, row, templates, facts_in(opening), n_words)])


def survey_article(rng, rows, survey, templates):
    """A sentence on three to five of `rows`, then facts on some of them. "" if the draw finds no such group."""
    first, shared = rng.choice(rows), facts_in(survey)
    group = [row for row in rows if all(row[column] == first[column] for column in shared)]
    if len(group) < 3 or not stated(survey, first):
        return ""
    group = rng.sample(group, min(len(group), rng.randint(3, 5)))
    sentences = [fill(survey, rng, {**first, "names": "; ".join(row["name"] for row in group)})]
    for row in group[:rng.randint(2, 3)]:
        sentences += tell(rng, row, templates, shared, n_words=rng.randint(1, 12))
    return " ".join(sentences)


def pair_article(rng, rows, pair, templates):
    """A comparison of two of `rows`, then facts on each. "" if it does not hold for the two that are drawn."""
    row, other = rng.sample(rows, 2)
    compared = {column for from_other, column, _ in FIELD.findall(pair) if from_other}
    if not (stated(pair, row) and stated(pair, other)):
        return ""
    if any((row[column] != other[column]) != (column in compared) for column in facts_in(pair)):
        return ""
    sentences = [fill(pair, rng, row, other)]
    for one in (row, other):
        sentences += tell(rng, one, templates, facts_in(pair), n_words=rng.randint(1, 20))
    return " ".join(sentences)


def articles(split, seed=0, n_per_fact=0.45, facts=None):
    """The articles of a split in random order: list of str, none twice: paragraphs of about 20 to 85 words,
    and for training also unrelated notes of one sentence, alone or a few together.

    split: "train", or "val": one article each on N_VAL of the things, in phrasings that training never uses.
    seed: the same seed gives the same articles. n_per_fact: train articles on a thing for each cell filled, so that
    the facts of all kinds come up about equally often. facts: `load_facts()`, or some of its rows, to leave the
    other things out; they are then still mentioned where they are facts of something else.
    """
    rng = random.Random(f"{split}-{seed}")
    # text -> None: sets that keep their order, which that of a set of str would not from run to run
    found, notes = {}, {}
    for kind, rows in (load_facts() if facts is None else facts).items():
        templates = load_templates(kind, rows[0]) if rows else {}
        # Countries count six times: a minute of training learns only what it sees a hundred times, and the capital of
        # France is the first thing that people ask a small model.
        weight, before = 6 if kind == "countries" else 1, len(found)
        for row in rows:
            n = round(n_per_fact * weight * sum(cell != "" for cell in row.values())) if split == "train" else 1
            for _ in range(n):
                found[entity_article(rng, row, templates[f"{split} opening"], templates[split])] = None
            for _ in range((weight + 1) // 2 if split == "train" else 0):  # every fact, so that none goes untold
                notes.update(dict.fromkeys(tell(rng, row, templates[split], set(), n_words=math.inf)))
        n_more = round(0.05 * (len(found) - before))  # of each
        if split == "train" and len(rows) > 1:
            for heading, write in [("train survey", survey_article), ("train pair", pair_article)]:
                n_wanted = len(found) + n_more
                for _ in range(20 * n_more):  # not every draw fits, and the same one may come twice
                    if len(found) < n_wanted:
                        found[write(rng, rows, rng.choice(templates[heading]), templates[split])] = None
    found.pop("", None)
    # Most names in an article can be copied from the sentence before. Among unrelated notes they must be known, and
    # alone as in a question that somebody asks.
    notes = rng.sample(list(notes), len(notes))
    while notes:
        n = rng.choice([1, 1, 2, 3, 4, 5, 6])
        found[" ".join(notes[:n])] = None
        notes = notes[n:]
    texts = rng.sample(list(found), len(found))
    return texts if split == "train" else texts[:N_VAL]


def bare(text):
    """The words that the tokenizer sees, with a space around each, so that `in` finds whole words."""
    return " " + " ".join(re.findall(r"\w+", normalise(text))) + " "


def places(facts, seed=0):
    """The countries of the task: split -> continent -> names in random order.

    Left out are names that say the continent (South Africa) and those of which one is part of another: who was told of
    Equatorial Guinea in training would know Guinea.
    """
    rng, found = random.Random(f"places-{seed}"), {continent: [] for continent in CONTINENTS}
    names = [bare(row["name"].removeprefix("the ")) for row in facts["countries"]]
    for row, name in zip(facts["countries"], names):
        alone = not any(name != other and (name in other or other in name) for other in names)
        if row["continent"] in found and alone and not re.search("Africa|America|Asia|Europe|Oceania", row["name"]):
            found[row["continent"]].append(row["name"])
    for of_continent in found.values():
        rng.shuffle(of_continent)
    return {"train": {continent: of_continent[:N_TRAIN] for continent, of_continent in found.items()},
            "test": {continent: of_continent[N_TRAIN:] for continent, of_continent in found.items()}}


def labelled_sentences(seed=0):
    """Yield (split, sentence, index of the continent): all MENTIONS of each country to train on, one of each other."""
    rng = random.Random(f"sentences-{seed}")
    for split, found in places(load_facts(), seed).items():
        for label, continent in enumerate(CONTINENTS):
            for name in found[continent]:
                for mention in MENTIONS if split == "train" else [rng.choice(MENTIONS)]:
                    yield split, mention.format(name=name), label


def left_out(facts, coverage):
    """The countries of the task (list of str) but the share `coverage` of them: of each split and continent the first.
    So a larger coverage adds countries to those of a smaller one."""
    return [name for found in places(facts).values() for names in found.values()
            for name in names[round(coverage * len(names)):]]


def covering_articles(split, coverage):
    """As many tokens of articles as articles(split) has, but only the share `coverage` of the task's countries in them.

    The others lose their rows and are taken out of all cells. Things that are named after them, such as Lake Chad, go
    too, and so do articles that mention them for any other reason.
    """
    told = articles(split)
    if coverage == 1:
        return told
    facts = load_facts()
    names = [bare(name.removeprefix("the ")) for name in left_out(facts, coverage)]

    def is_free(text):
        text = bare(text)
        return not any(name in text for name in names)

    def count_tokens(texts):
        return [len(get_tokenizer().encode(text)) for text in texts]

    facts = {kind: [{column: "; ".join(filter(is_free, cell.split("; "))) for column, cell in row.items()}
                    for row in rows if is_free(row["name"])] for kind, rows in facts.items()}
    if split == "val":
        return list(filter(is_free, articles(split, facts=facts)))
    n_tokens, n_per_fact, ends = sum(count_tokens(told)), 0.45, [0]
    while ends[-1] < n_tokens:  # fewer things: more on each
        told = list(filter(is_free, articles(split, n_per_fact=n_per_fact, facts=facts)))
        ends = np.cumsum(count_tokens(told))  # how many there are up to the end of each article
        n_per_fact *= 1.05 * n_tokens / ends[-1]
    return told[:np.searchsorted(ends, n_tokens)]


def prepare(bin_dir=BIN_DIR, coverage=1.0):
    """Write the articles and the task "pocket-places", unless they are there already and neither the tables, this file
    nor the vocabulary has changed since. Returns the name of the articles: "pocket", or "pocket-0.5" if that is the
    coverage."""
    source = {"seed": 0, "sha256": checksum([__file__, *sorted(FACTS.iterdir())])}
    told, tokenizer = "pocket" if coverage == 1 else f"pocket-{coverage:g}", get_tokenizer()
    texts = ((split, text) for split in ("train", "val") for text in covering_articles(split, coverage))
    for name, items, labels in [(told, texts, None), ("pocket-places", labelled_sentences(), CONTINENTS)]:
        if (Path(bin_dir) / name).exists():
            meta = read_meta(name, bin_dir)
            if meta["source"] == source and meta["fingerprint"] == tokenizer.fingerprint:
                continue
        write_dataset(name, items, tokenizer, source, bin_dir, labels)
    return told


def main(argv=None, bin_dir=BIN_DIR):
    parser = argparse.ArgumentParser(prog="python -m data.pocket", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage", type=float, default=1, metavar="SHARE",
                        help="share of the task's countries that the articles tell of (default: 1)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    coverage = parser.parse_args(argv).coverage
    if not 0 <= coverage <= 1:
        raise SystemExit(f"--coverage={coverage}: must lie between 0 and 1")
    name, facts, tokenizer = prepare(bin_dir, coverage), load_facts(), get_tokenizer()
    for kind, rows in facts.items():
        print(f"{kind:12}{len(rows):4} things: {', '.join(list(rows[0])[1:])}")
    for split in ("train", "val"):
        tokens, offsets = open_split(name, split, bin_dir)
        print(f"\n{name}, {split}: {len(offsets) - 1:,} articles, such as, in the tokenizer's spelling,\n")
        print("\n\n".join(f"  {tokenizer.decode(tokens[a:b])}" for a, b in zip(offsets[:4], offsets[1:])))
    missing = left_out(facts, coverage)
    for split, found in places(facts).items():
        print(f"\npocket-places, {split}: countries, how many of them are in {name}, the first few")
        for continent, names in found.items():
            n = sum(country not in missing for country in names)
            print(f"  {continent:14}{len(names):3}{n:4}  {', '.join(names[:5])}")


if __name__ == "__main__":
    main()
