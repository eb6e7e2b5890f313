"""DBPedia: what kind of thing does an abstract describe? (Zhang et al. 2015; 14 classes)

    python -m data.dbpedia
    python -m data.dbpedia --source train.csv test.csv       # or the one archive dbpedia_csv.tgz
"""
from data import examples, fetch
from data.agnews import find_pair, make_from_csv
from data.flags import run_script
from data.rows import find_files

URL = "https://s3.amazonaws.com/fast-ai-nlp/dbpedia_csv.tgz"
CLASSES = ["Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder",
           "MeanOfTransportation", "Building", "NaturalPlace", "Village", "Animal", "Plant",
           "Album", "Film", "WrittenWork"]


def main(argv=None):
    parser = examples.new_public_parser(
        "dbpedia", __doc__, "train.csv and test.csv of DBPedia, or its .tgz", 100, 100)
    args = examples.resolve_flags(parser, argv)
    archive = fetch.DOWNLOAD_DIR / "dbpedia" / "dbpedia_csv.tgz"
    source = args.source or [str(fetch.download(URL, archive))]
    if len(source) == 1 and source[0].lower().endswith((".tgz", ".tar.gz")):
        path, *others = find_files(source)
        if others:
            raise SystemExit(f"--source={source[0]}: matches {1 + len(others)} archives; name one")
        files = [(split, path, f"dbpedia_csv/{split}.csv") for split in ("train", "test")]
    else:
        files = find_pair(source)
    make_from_csv(args, files, CLASSES, URL)


if __name__ == "__main__":
    run_script(main)
