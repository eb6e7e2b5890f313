"""FewRel: which of 64 relations holds between two entities of a sentence? (Han et al. 2018)

    python -m data.fewrel
    python -m data.fewrel --source train_wiki.json val_wiki.json --fewer=drop

Plain sentences, as in the paper, do not say which two entities are meant; with --markers they do:
"[E1] Mozart [/E1] was born in [E2] Salzburg [/E2] ." (Baldini Soares et al. 2019).
"""
import json
from collections import Counter

from data import examples, fetch
from data.flags import run_script
from data.rows import Skipped, clean, find_files, open_bytes
from data.tokenizer import MARKERS

URL = "https://raw.githubusercontent.com/thunlp/FewRel/master/data/"
FORM = ('upstream\'s format, {"P931": [{"tokens": [...], "h": [name, id, [[positions]]], '
        '"t": ...}, ...], ...}, in UTF-8')


def read_relations(path):
    """Yield (place, (relation, sentence)) of each sentence (dict) of a file."""
    try:
        with open_bytes(path) as file:
            relations = json.load(file)
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"{path}: not JSON, or cut short ({error}); it must be {FORM}") from None
    if not isinstance(relations, dict) or not all(
            isinstance(rows, list) for rows in relations.values()):
        raise SystemExit(f"{path}: not an object of lists; it must be {FORM}")
    for relation, sentences in relations.items():
        for i, sentence in enumerate(sentences):
            yield f"{path}:{clean(relation)}[{i}]", (relation, sentence)


def mark(tokens, head, tail):
    """tokens (list of str) with markers around two spans, (start, end). ValueError if they cross.
    """
    (a, b), (c, d) = head, tail
    if a < c < b < d or c < a < d < b:
        raise ValueError("whose entities cross")
    marked = [(b - a, a, b, *MARKERS[:2]), (d - c, c, d, *MARKERS[2:])]
    marked.sort(key=lambda span: span[0])  # the longer span comes last: its markers are outside
    tokens = tokens.copy()
    for _, start, end, opening, closing in marked:
        tokens[start] = f"{opening} {tokens[start]}"
        tokens[end - 1] += f" {closing}"
    return tokens


def parse(relation, sentence, names, markers):
    """-> name of the relation, plain sentence, sentence to write. ValueError if it is broken, with
    or without markers: the draw is the same."""
    try:
        tokens = sentence["tokens"]
        positions = [sentence[key][2][0] for key in ("h", "t")]
        head, tail = [(places[0], places[-1] + 1) for places in positions]
        plain = " ".join(tokens)
        if not isinstance(tokens, list) or not all(isinstance(i, int) for i in head + tail):
            raise TypeError
    except (KeyError, TypeError, IndexError):
        raise ValueError("not of the format") from None
    if not all(0 <= start < end <= len(tokens) for start, end in (head, tail)):
        raise ValueError("with an entity outside of the sentence")
    if any(marker in plain for marker in MARKERS):
        raise ValueError("with a marker in its text")
    marked = " ".join(mark(tokens, head, tail))
    return clean(names.get(relation, relation)), plain, marked if markers else plain


def read_names(folders):
    """The relations' names (P-number -> str), by pid2name.json where it is in one of the folders,
    but those that several share."""
    names = {}
    for path in (folder / "pid2name.json" for folder in folders):
        try:
            pairs = json.loads(path.read_bytes()).items()
            names |= {relation: str(name) for relation, (name, _) in pairs}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SystemExit(f"{path}: not FewRel's names of relations ({error}); "
                             "get it again or remove it") from None
    counts = Counter(names.values())
    return {relation: name for relation, name in names.items() if counts[name] == 1}


def main(argv=None):
    parser = examples.new_public_parser(
        "fewrel", __doc__, "FewRel's .json files, pid2name.json beside them", 630, 70)
    flag = parser.add_argument
    flag("--markers", action="store_true",
         help="put markers around the two entities, and -markers at the end of the default name")
    flag("--with_val", action="store_true", help="fetch the 16 relations of val_wiki.json too")
    args = examples.parse_flags(parser, argv)
    if args.markers and args.name == "fewrel":
        args.name = "fewrel-markers"
    if args.source and args.with_val:
        raise SystemExit("--with_val: fetches val_wiki.json; name yours beside the other --source")
    if args.source:
        paths = find_files(args.source)
    else:
        files = ["pid2name.json", "train_wiki.json"] + ["val_wiki.json"] * args.with_val
        folder = fetch.DOWNLOAD_DIR / "fewrel"
        paths = [fetch.download(URL + file, folder / file) for file in files][1:]
    names = read_names({path.parent for path in paths})
    files = [("either", path, read_relations(path)) for path in paths]
    source = {"markers": args.markers} | ({} if args.source else {"url": URL})
    examples.prepare(
        args, files, lambda row: parse(*row, names, args.markers), FORM, Skipped(), source,
        keep_doubles=True, allow=MARKERS if args.markers else ())


if __name__ == "__main__":
    run_script(main)
