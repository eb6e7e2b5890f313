"""DBPedia: what kind of thing does an abstract tell of? (Zhang et al. 2015; 14 classes.)

    python -m data.dbpedia
    python -m data.dbpedia --source train.csv test.csv          # or the one archive dbpedia_csv.tgz
"""
from data import fetch, labelled
from data.agnews import find_pair, read_classes
from data.files import find_files
from data.tokenfile import BIN_DIR

URL = "https://s3.amazonaws.com/fast-ai-nlp/dbpedia_csv.tgz"
CLASSES = ["Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building",
           "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"]


def main(argv=None, bin_dir=BIN_DIR, download_dir=fetch.DOWNLOAD_DIR / "dbpedia"):
    parser = labelled.new_parser("dbpedia", __doc__, "train.csv and test.csv of DBPedia, or its .tgz", 100, 100)
    args = labelled.check_flags(parser.parse_args(argv), n_train=1, n_test=1, seed=0)
    source = args.source or [str(fetch.download(URL, download_dir / "dbpedia_csv.tgz"))]
    if len(source) == 1 and source[0].endswith((".tgz", ".tar.gz")):
        # The archive is read as a stream; nothing in it is ever extracted to where its names say.
        paths = find_files(source)
        parts = [(use, paths[0], f"dbpedia_csv/{name}.csv")
                 for use, name in ((labelled.TRAIN, "train"), (labelled.TEST, "test"))]
    else:
        paths = find_pair(source)
        parts = [(labelled.TRAIN, paths[0], None), (labelled.TEST, paths[1], None)]
    labelled.prepare("dbpedia", lambda skipped: read_classes(parts, CLASSES, skipped), args, paths,
                     {} if args.source else {"url": URL}, bin_dir, CLASSES)


if __name__ == "__main__":
    main()
