"""FewRel: which of 64 relations holds between two entities of a sentence? (Han et al. 2018)

    python -m data.fewrel
    python -m data.fewrel --source train_wiki.json val_wiki.json --fewer=drop

Plain sentences, as in the paper, do not say which two entities are meant; with --markers they do:
"[E1] Mozart [/E1] was born in [E2] Salzburg [/E2] ." (Baldini Soares et al. 2019).
"""
from collections import Counter

from data import examples, fetch
from data.flags import run_script
from data.rows import JSON_ENDINGS, clean, find_files, read_rows
from data.tokenizer import MARKERS

URL = "https://raw.githubusercontent.com/thunlp/FewRel/master/data/"
FORMAT = '{"P931": [{"tokens": [...], "h": [name, id, [[positions]]], "t": ...}, ...], ...}'


def mark(tokens, head, tail):
    """tokens (list of str) with markers around two spans, (start, end)."""
    spans = [(head, *MARKERS[:2]), (tail, *MARKERS[2:])]
    tokens = tokens.copy()
    # Of two spans that begin together the shorter is marked first: its markers are inside.
    for (start, end), opening, closing in sorted(spans, key=lambda span: span[0][1] - span[0][0]):
        tokens[start] = f"{opening} {tokens[start]}"
        tokens[end - 1] += f" {closing}"
    return tokens


def parse(sentence):
    """A sentence (dict) -> its plain text, its text with markers. ValueError if it is broken."""
    try:
        if "head" in sentence:
            entities = sentence["head"]["indices"], sentence["tail"]["indices"]
        else:
            entities = sentence["h"][2], sentence["t"][2]
        head, tail = [(positions[0], positions[-1] + 1) for positions, *_ in entities]
        tokens = sentence["tokens"]
        plain = " ".join(tokens)
        if not isinstance(tokens, list) or not all(isinstance(i, int) for i in head + tail):
            raise TypeError
    except (KeyError, TypeError, IndexError, ValueError):
        raise ValueError(f"a sentence that is not of the format {FORMAT}") from None
    if not all(0 <= start < end <= len(tokens) for start, end in (head, tail)):
        raise ValueError("an entity outside of the sentence")
    if any(marker in plain for marker in MARKERS):
        raise ValueError(f"one of the markers {', '.join(MARKERS)} in the text")
    return plain, " ".join(mark(tokens, head, tail))


def read_relations(path):
    """Yield (place, relation, sentence) of a file: one object with lists of sentences by relation,
    or an object for each sentence."""
    for place, row in read_rows(path):
        if "relation" in row:
            yield place, str(row["relation"]), row
        elif not all(isinstance(sentences, list) for sentences in row.values()):
            raise SystemExit(f"{place}: not of the format {FORMAT}")
        else:
            for relation, sentences in row.items():
                for i, sentence in enumerate(sentences):
                    yield f"{path}:{clean(relation)}[{i}]", relation, sentence


def read_sentences(path, names, markers):
    """Yield the sentences of a file as read_examples wants them. names: see read_names. SystemExit
    if one is not of the format, with or without markers: the draw is the same."""
    for place, relation, sentence in read_relations(path):
        try:
            plain, marked = parse(sentence)
        except ValueError as error:
            raise SystemExit(f"{place}: {error}") from None
        yield clean(names.get(relation, relation)), plain, marked if markers else plain


def read_names(folders):
    """The relations' names (P-number -> str), by pid2name.json where it is in one of the folders,
    except those that several share."""
    names = {}
    for path in (folder / "pid2name.json" for folder in folders):
        for place, row in read_rows(path) if path.exists() else ():
            if not all(isinstance(pair, list) and len(pair) == 2 for pair in row.values()):
                raise SystemExit(f"{place}: not FewRel's names of relations; get it again, or move "
                                 "it away")
            names |= {relation: str(name) for relation, (name, _) in row.items()}
    counts = Counter(names.values())
    return {relation: name for relation, name in names.items() if counts[name] == 1}


def main(argv=None):
    parser = examples.new_public_parser(
        "fewrel", __doc__, "FewRel's .json files, pid2name.json beside them", 630, 70)
    flag = parser.add_argument
    flag("--markers", action="store_true",
         help="put markers around the two entities, and -markers at the end of the default name")
    flag("--with_val", action="store_true", help="fetch the 16 relations of val_wiki.json too")
    args = examples.resolve_flags(parser, argv)
    if args.markers and args.name == "fewrel":
        args.name = "fewrel-markers"
    if args.source and args.with_val:
        raise SystemExit("--with_val: fetches val_wiki.json; with --source, name your own copy")
    if args.source:
        paths = find_files(args.source, JSON_ENDINGS)
    else:
        files = ["pid2name.json", "train_wiki.json"] + ["val_wiki.json"] * args.with_val
        folder = fetch.DOWNLOAD_DIR / "fewrel"
        paths = [fetch.download(URL + file, folder / file) for file in files][1:]
    names = read_names({path.parent for path in paths})
    files = [("either", path, read_sentences(path, names, args.markers)) for path in paths]
    source = {"markers": args.markers} | ({} if args.source else {"url": URL})
    examples.make_labelled_set(args, files, source, keep_duplicates=True,
                               allow=MARKERS if args.markers else ())


if __name__ == "__main__":
    run_script(main)
