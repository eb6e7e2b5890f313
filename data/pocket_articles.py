"""The articles of the pocket encyclopedia, made of its tables and sentences."""
import math
import random

from data.pocket_facts import FIELD, facts_in, fill, has_facts, load_facts, load_templates

MIN_WORDS, MAX_WORDS = 32, 78  # so that an article rarely has more tokens than a block of 128
N_VAL = 800
N_PER_FACT = 0.45  # training articles on a thing for each of its cells that is not empty


def fact_sentences(rng, row, templates, known, n_words):
    """Sentences (list of str) on facts of `row` in random order, about n_words words. No two are on
    the same columns, and none is on the columns in `known` (set)."""
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
    """-> an opening and other facts on one thing (str), "" if no opening suits its facts."""
    openings = [template for template in openings if has_facts(row, template)]
    if not openings:
        return ""
    opening = rng.choice(openings)
    n_words = rng.randint(MIN_WORDS, MAX_WORDS) - 10  # the last sentence may exceed this
    sentences = [fill(opening, rng, row)]
    sentences += fact_sentences(rng, row, templates, facts_in(opening), n_words)
    return " ".join(sentences)


def survey_article(rng, rows, survey, templates):
    """-> a sentence on three to five of `rows` that agree, then facts on some of them (str). "" if
    those drawn do not suit it."""
    first, shared = rng.choice(rows), facts_in(survey)
    group = [row for row in rows if all(row[column] == first[column] for column in shared)]
    if len(group) < 3 or not has_facts(first, survey):
        return ""
    group = rng.sample(group, min(len(group), rng.randint(3, 5)))
    names = "; ".join(row["name"] for row in group)
    sentences = [fill(survey, rng, {**first, "names": names})]
    for row in group[:rng.randint(2, 3)]:
        sentences += fact_sentences(rng, row, templates, shared, n_words=rng.randint(1, 12))
    return " ".join(sentences)


def pair_article(rng, rows, pair, templates):
    """-> a comparison of two of `rows`, then facts on each (str). "" if these do not suit it."""
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
        sentences += fact_sentences(rng, subject, templates, facts_in(pair), n_words)
    return " ".join(sentences)


def add_new(texts, n, write):
    """Add n articles of write() that `texts` (dict) does not hold yet, or fewer if 20 draws for
    each do not suffice: not all succeed."""
    n_wanted = len(texts) + n
    for _ in range(20 * n):
        if len(texts) < n_wanted:
            texts[write()] = None


def combine_notes(rng, notes):
    """The notes (list of str) in random order, alone or up to six together (list of str).

    Most names in an article can be copied from the sentence before. Among unrelated notes they must
    be known, and alone as in a question that somebody asks.
    """
    notes, texts = rng.sample(notes, len(notes)), []
    while notes:
        n = rng.choice([1, 1, 2, 3, 4, 5, 6])
        texts.append(" ".join(notes[:n]))
        notes = notes[n:]
    return texts


def articles(split, n_per_fact=N_PER_FACT, facts=None):
    """The articles of a split in random order: list of str, none twice. Paragraphs of about 20 to
    85 words, and for training also unrelated notes of one sentence, alone or a few together.

    split: "train", or "val": one article each on N_VAL of the things, in phrasings that training
    never uses. n_per_fact: see N_PER_FACT; so facts of all kinds come up about equally often.
    facts: load_facts(), or some of its rows; other things then only occur as facts of these.
    """
    rng, is_train = random.Random(f"{split}-0"), split == "train"
    # Dicts of text -> None are sets that keep their order, the same from run to run.
    texts, notes = {}, {}
    for kind, rows in (load_facts() if facts is None else facts).items():
        if not rows:
            continue
        templates = load_templates(kind)
        # Countries count six times: a minute of training learns only what it sees a hundred times,
        # and the capital of France is the first thing that people ask a small model.
        weight, n_before = 6 if kind == "countries" else 1, len(texts)
        for row in rows:
            n_facts = sum(cell != "" for cell in row.values())
            for _ in range(round(n_per_fact * weight * n_facts) if is_train else 1):
                article = entity_article(rng, row, templates[f"{split} opening"], templates[split])
                texts[article] = None
            for _ in range((weight + 1) // 2 if is_train else 0):  # so that no fact is missing
                notes |= dict.fromkeys(fact_sentences(rng, row, templates[split], set(), math.inf))
        if is_train and len(rows) > 1:
            n_more = round(0.05 * (len(texts) - n_before))
            add_new(texts, n_more, lambda: survey_article(
                rng, rows, rng.choice(templates["train survey"]), templates["train"]))
            add_new(texts, n_more, lambda: pair_article(
                rng, rows, rng.choice(templates["train pair"]), templates["train"]))
    texts.pop("", None)
    texts |= dict.fromkeys(combine_notes(rng, list(notes)))
    texts = rng.sample(list(texts), len(texts))
    return texts if is_train else texts[:N_VAL]
