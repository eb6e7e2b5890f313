"""What a bag of words classifies right: the baseline that a tiny language model has to beat.

    python -m experiments.bag_of_words --dataset=agnews --n_per_class=30

Tokens and pairs of neighbouring tokens, weighted by TF-IDF, and a linear support vector machine
(scikit-learn; pip install scikit-learn), on the very examples and tokens that finetune.py has with
the same flags. Its penalty on errors, C, is chosen by cross-validation on the training examples.
"""
import time

import numpy as np

import finetune
from data.flags import new_parser, number, run_script, user_path
from data.tokenfile import MAX_TOKENS, Dataset
from training import SEED, check_existing_run, write_log

COSTS = [0.03, 0.1, 0.3, 1, 3]  # what C is chosen from


def read_texts(dataset, split, block_size):
    """-> the tokens of each text of a Dataset in digits (list of str), cut as a model of this
    block_size reads it."""
    tokens, offsets = dataset.split(split)
    return [" ".join(map(str, tokens[start:end][:block_size - 2]))
            for start, end in zip(offsets, offsets[1:])]


def classify(texts, labels, test_texts):
    """-> the labels that a classifier of texts with these labels gives test_texts (numpy)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC
    vectorizer = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True)
    vectors = vectorizer.fit_transform(texts)
    search = GridSearchCV(LinearSVC(random_state=0), {"C": COSTS}, cv=3)
    search.fit(vectors, labels)
    return search.predict(vectorizer.transform(test_texts))


def get_parser():
    parser = new_parser("python -m experiments.bag_of_words", __doc__)
    flag = parser.add_argument
    flag("--dataset", type=user_path, default="agnews", help="a labelled folder of data/bin")
    flag("--n_per_class", type=number(int, 0), default=0,
         help="training examples of each class; 0: all")
    flag("--seed", type=SEED, default=0, help="seed for the choice of examples")
    flag("--block_size", type=number(int, 3, MAX_TOKENS + 2), default=128,
         help="tokens a text is cut to, as in the models")
    flag("--out_dir", type=user_path, help="where log.jsonl and test.npz go; by default nowhere")
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    if args.out_dir:
        check_existing_run(args.out_dir)
    dataset = Dataset(args.dataset)
    labels, truth, names = dataset.labels("train"), dataset.labels("test"), dataset.label_names
    chosen, _ = finetune.pick_examples(labels, args.n_per_class, 0.0, args.seed)
    if np.bincount(labels[chosen]).min() < 3:
        raise SystemExit("the bag of words needs three examples of each class to choose C")
    texts = read_texts(dataset, "train", args.block_size)
    test_texts = read_texts(dataset, "test", args.block_size)
    start = time.perf_counter()
    try:
        guesses = classify([texts[i] for i in chosen], labels[chosen], test_texts)
    except ImportError:
        raise SystemExit("the bag of words needs scikit-learn: pip install scikit-learn") from None
    result = {"n_examples": len(chosen), "seconds": time.perf_counter() - start, "n": len(truth)}
    probabilities = np.eye(len(names), dtype=np.float32)[guesses]
    result |= finetune.score(probabilities, truth, names)
    if args.out_dir:
        finetune.save_outputs(args.out_dir, dataset, probabilities, truth)
        write_log(args.out_dir, [result])
    print(f"{args.dataset}: test accuracy {result['accuracy']:.1%} of {len(truth):,}, from "
          f"{len(chosen):,} examples, in {result['seconds']:.0f} s")
    return result


if __name__ == "__main__":
    run_script(main)
