"""The tables of the pocket encyclopedia, and the sentences that its articles are made of.

data/facts/KIND.tsv   A table. The first line names the columns, the first of them `name`. Tabs
                      separate cells, "; " the members of a list. An empty cell is not used.
data/facts/KIND.txt   Sentences, one a line (one that is there twice is used twice as often), under
                      HEADINGS. Validation shares the facts with training but no phrasing: a model
                      that does well there has learned more than sentences.

In a sentence {capital} is the cell of that column, a list joined by commas and "and"; {works.one}
is one member of a list, {works.some} up to three, {kind.a} the cell after "a" or "an", {kind.s} its
plural. In a survey {names} are things that have the same cells in all columns of the sentence. In a
pair {other.capital} is the second thing's cell; columns of both differ, all others are the same.
"""
import re
from pathlib import Path

FACTS = Path(__file__).with_name("facts")
HEADINGS = ["train opening", "train", "train survey", "train pair", "val opening", "val"]
FIELD = re.compile(r"\{(other\.)?(\w+)(\.one|\.some|\.a|\.s)?\}")
UNCHANGED = ("fish", "deer", "sheep", "moose", "bison", "salmon", "trout", "squid", "cod", "carp",
             "pike", "tuna")
IRREGULAR = {"goose": "geese", "mouse": "mice", "wolf": "wolves"}


def load_facts():
    """The tables: kind -> rows, dicts of column -> cell (str, "" if unknown)."""
    facts = {}
    for path in sorted(FACTS.glob("[!.]*.tsv")):
        columns, *rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
        facts[path.stem] = [dict(zip(columns, row, strict=True)) for row in rows]
    return facts


def load_templates(kind):
    """The sentences for a table: heading -> list of str."""
    templates = {heading: [] for heading in HEADINGS}
    for line in (FACTS / f"{kind}.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line[1:].strip()
        elif line:
            templates[heading].append(line)
    return templates


def facts_in(template):
    """The columns (set of str) that a sentence mentions, except the name."""
    return {field for _, field, _ in FIELD.findall(template)} - {"name", "names"}


def has_facts(row, template):
    """Whether `row` has all the facts that the template states."""
    return all(row[column] for column in facts_in(template))


def join(words):
    """['A', 'B', 'C'] -> 'A, B and C'."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def plural(noun):
    """'noble gas' -> 'noble gases'."""
    if noun.endswith(UNCHANGED):
        return noun
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh", "quito")) else "s")


def fill(template, rng, row, other=None):
    """The template with its fields replaced by cells of `row` (and, in a pair, of `other`)."""
    def cell(match):
        from_other, column, form = match.groups()
        text = (other if from_other else row)[column]
        members = text.split("; ")
        # Both are drawn for every field, used or not: so a change of a field's form changes only
        # the articles that have it.
        one = rng.choice(members)
        some = rng.sample(members, min(3, len(members)))
        if form == ".one":
            return one
        if form == ".some":
            return join(some)
        if form == ".a":
            return ("an " if text[0] in "aeiouAEIOU" else "a ") + text
        return plural(text) if form == ".s" else join(members)
    sentence = FIELD.sub(cell, template)
    return sentence[0].upper() + sentence[1:].replace("D.C..", "D.C.")
