"""The articles of the pocket encyclopedia, made of its tables and sentences."""
import math
import random

from data.pocket_facts import FIELD, facts_in, fill, has_facts, load_facts, load_templates

MIN_WORDS, MAX_WORDS = 32, 78  # so that an article rarely has more tokens than a block of 128
N_VAL = 800
N_PER_FACT = 0.45  # training articles on a thing for each cell filled


def tell_facts(rng, row, templates, known, n_words):
    """Sentences on facts of `row` in random order, about n_words words. No two are on the same
    columns, and none is on those in `known` (set)."""
    sentences = []
    for template in rng.sample(templates, len(templates)):
        facts = facts_in(template)
        if facts & known or not has_facts(row, template):
            continue
        sentences.append(fill(template, rng, row))
        known = known | facts
        n_words -= len(sentences[-1].split())
        if n_words <= 0:
            break
    return sentences


def entity_article(rng, row, openings, templates):
    """An opening and other facts on one thing. "" if there is no opening whose facts it has."""
    openings = [template for template in openings if has_facts(row, template)]
    if not openings:
        return ""
    opening = rng.choice(openings)
    n_words = rng.randint(MIN_WORDS, MAX_WORDS) - 10  # the last sentence may exceed this
    sentences = [fill(opening, rng, row)]
    sentences += tell_facts(rng, row, templates, facts_in(opening), n_words)
    return " ".join(sentences)


def survey_article(rng, rows, survey, templates):
    """A sentence on three to five of `rows`, then facts on some. "" if none are found."""
    first, shared = rng.choice(rows), facts_in(survey)
    group = [row for row in rows if all(row[column] == first[column] for column in shared)]
    if len(group) < 3 or not has_facts(first, survey):
        return ""
    group = rng.sample(group, min(len(group), rng.randint(3, 5)))
    names = "; ".join(row["name"] for row in group)
    sentences = [fill(survey, rng, {**first, "names": names})]
    for row in group[:rng.randint(2, 3)]:
        sentences += tell_facts(rng, row, templates, shared, n_words=rng.randint(1, 12))
    return " ".join(sentences)


def pair_article(rng, rows, pair, templates):
    """A comparison of two of `rows`, then facts on each. "" if it does not hold for those drawn."""
    row, other = rng.sample(rows, 2)
    if not has_facts(row, pair) or not has_facts(other, pair):
        return ""
    compared = {column for from_other, column, _ in FIELD.findall(pair) if from_other}
    different = {column for column in facts_in(pair) if row[column] != other[column]}
    if different != compared - {"name"}:
        return ""
    sentences = [fill(pair, rng, row, other)]
    for subject in (row, other):
        n_words = rng.randint(1, 20)
        sentences += tell_facts(rng, subject, templates, facts_in(pair), n_words)
    return " ".join(sentences)


def articles(split, seed=0, n_per_fact=N_PER_FACT, facts=None):
    """The articles of a split in random order: list of str, none twice. Paragraphs of about 20 to
    85 words, and for training also unrelated notes of one sentence, alone or a few together.

    split: "train", or "val": one article each on N_VAL of the things, in phrasings that training
    never uses. n_per_fact: so the facts of all kinds come up about equally often. facts:
    load_facts(), or some of its rows; others are then mentioned only as facts of these.
    """
    rng, is_train = random.Random(f"{split}-{seed}"), split == "train"
    # Dicts of text -> None are sets that keep their order, the same from run to run.
    texts, notes = {}, {}
    for kind, rows in (load_facts() if facts is None else facts).items():
        if not rows:
            continue
        templates = load_templates(kind, rows[0])
        # Countries count six times: a minute of training learns only what it sees a hundred times,
        # and the capital of France is the first thing that people ask a small model.
        weight, n_before = 6 if kind == "countries" else 1, len(texts)
        for row in rows:
            n_facts = sum(cell != "" for cell in row.values())
            for _ in range(round(n_per_fact * weight * n_facts) if is_train else 1):
                article = entity_article(rng, row, templates[f"{split} opening"], templates[split])
                texts[article] = None
            for _ in range((weight + 1) // 2 if is_train else 0):  # so that no fact goes untold
                notes |= dict.fromkeys(tell_facts(rng, row, templates[split], set(), math.inf))
        if is_train and len(rows) > 1:
            n_more = round(0.05 * (len(texts) - n_before))
            for heading, write in [("train survey", survey_article), ("train pair", pair_article)]:
                n_wanted = len(texts) + n_more
                for _ in range(20 * n_more):  # not every draw fits, and one may come twice
                    if len(texts) < n_wanted:
                        template = rng.choice(templates[heading])
                        texts[write(rng, rows, template, templates[split])] = None
    texts.pop("", None)
    # Most names in an article can be copied from the sentence before. Among unrelated notes they
    # must be known, and alone as in a question that somebody asks.
    notes = rng.sample(list(notes), len(notes))
    while notes:
        n = rng.choice([1, 1, 2, 3, 4, 5, 6])
        texts[" ".join(notes[:n])] = None
        notes = notes[n:]
    texts = rng.sample(list(texts), len(texts))
    return texts if is_train else texts[:N_VAL]
