"""FewRel: which relation holds between two entities of a sentence? (Han et al. 2018; 64 relations, 700 sentences each.)

    python -m data.fewrel
    python -m data.fewrel --source train_wiki.json val_wiki.json --fewer=drop

Plain sentences, as in the paper, do not say which two entities are meant; with --markers they do:
"[E1] Mozart [/E1] was born in [E2] Salzburg [/E2] ." (Baldini Soares et al. 2019).
"""
import json
from collections import Counter

from data import fetch, labelled
from data.files import find_files
from data.tokenfile import BIN_DIR
from data.tokenizer import MARKERS

URL = "https://raw.githubusercontent.com/thunlp/FewRel/master/data/"
FORM = 'upstream\'s format, {"P931": [{"tokens": [...], "h": [name, id, [[positions]]], "t": ...}, ...], ...}, in UTF-8'


def relation_rows(file):
    """A binary file -> (place, 1, (relation, sentence)) of each sentence. ValueError if it holds something else."""
    try:
        relations = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON, or cut short ({error})") from None
    if not isinstance(relations, dict) or not all(isinstance(rows, list) for rows in relations.values()):
        raise ValueError("not an object of lists")
    for relation, rows in relations.items():
        for i, row in enumerate(rows):
            yield f"{relation}[{i}]", 1, (relation, row)


def mark(tokens, spans):
    """tokens (list of str) with markers around the two spans, (start, end) each. ValueError if the spans cross."""
    (a, b), (c, d) = spans
    if a < c < b < d or c < a < d < b:
        raise ValueError("whose entities cross")
    tokens = tokens.copy()
    pairs = zip(spans, (MARKERS[:2], MARKERS[2:]))
    for (start, end), (opening, closing) in sorted(pairs, key=lambda pair: pair[0][1] - pair[0][0]):
        tokens[start] = f"{opening} {tokens[start]}"  # the longer span comes last, so its markers are outside
        tokens[end - 1] += f" {closing}"
    return tokens


def parse(relation, row, names, markers):
    """-> name of the relation, plain sentence, sentence to write. ValueError if the row is broken, with or without
    markers the same, so that the draw is the same."""
    try:
        tokens, spans = row["tokens"], [(row[key][2][0][0], row[key][2][0][-1] + 1) for key in "ht"]
        plain = " ".join(tokens)
        if not isinstance(tokens, list) or not all(isinstance(place, int) for span in spans for place in span):
            raise TypeError
    except (KeyError, TypeError, IndexError):
        raise ValueError("not of the format") from None
    if not all(0 <= start < end <= len(tokens) for start, end in spans):
        raise ValueError("with an entity outside of the sentence")
    if any(marker in plain for marker in MARKERS):
        raise ValueError("with a marker in its text")
    marked = " ".join(mark(tokens, spans))
    return names.get(relation, relation), plain, marked if markers else plain


def read_names(path):
    """The relations' names (dict, P-number -> str), without those that several share; none if there is no such file."""
    try:
        names = {relation: str(name) for relation, (name, _) in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: not FewRel's names of relations ({error}); get it again or remove it") from None
    counts = Counter(names.values())
    return {relation: name for relation, name in names.items() if counts[name] == 1}


def main(argv=None, bin_dir=BIN_DIR, download_dir=fetch.DOWNLOAD_DIR / "fewrel"):
    parser = labelled.new_parser("fewrel", __doc__, "FewRel's .json files; pid2name.json beside the first", 630, 70)
    parser.add_argument("--markers", action="store_true", help="put markers around the two entities (and -markers to "
                        "the default name)")
    parser.add_argument("--with_val", action="store_true", help="download the 16 relations of val_wiki.json too")
    args = labelled.check_flags(parser.parse_args(argv), n_train=1, n_test=1, seed=0)
    if args.source:
        paths = find_files(args.source)
    else:
        files = ["pid2name.json", "train_wiki.json"] + ["val_wiki.json"] * args.with_val
        paths = [fetch.download(URL + file, download_dir / file) for file in files][1:]
    names = read_names(paths[0].with_name("pid2name.json"))

    def read(skipped):
        for path in paths:
            for row in labelled.read_file(path, relation_rows, lambda row: parse(*row, names, args.markers), FORM,
                                          skipped):
                yield labelled.EITHER, *row
    source = {"markers": args.markers} | ({} if args.source else {"url": URL})
    labelled.prepare("fewrel" + "-markers" * args.markers, read, args, paths, source, bin_dir, keep_doubles=True,
                     allow=MARKERS if args.markers else ())


if __name__ == "__main__":
    main()
