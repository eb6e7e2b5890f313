"""Write a part of the project again: a working copy in which one function has lost its body.

    python -m experiments.exercise              # what there is
    python -m experiments.exercise schedule     # make the folder exercise-schedule

The docstring says what the function must do, and so does experiments/exercises.md, which has a hint
for each. The project's own tests grade what you write; nothing outside the folder is touched.
"""
import ast
import shutil
import tempfile
import textwrap
from pathlib import Path

from data.flags import new_parser, run_script, user_path

ROOT = Path(__file__).parent.parent
FILES = ["*.py", "*.md", "*.toml", "*.txt", "data/*.*", "data/facts/*", "experiments/*.*",
         "tests/*.py"]

# name -> file, function, the tests that grade it, what it is, what must be known besides
EXERCISES = {
    "schedule": (
        "training.py", "lr_factor", ["tests/test_training.py::test_learning_rate_schedule"],
        "the learning rate from the first step to the last",
        "Neither the first step's factor nor the last one's is 0; that of the last warm-up step is "
        "1. A run of one step has the factor 1."),
    "calibration": (
        "committee.py", "calibration_error", ["tests/test_committee.py::test_calibration_error"],
        "is a model that is 80 % sure right in 80 % of the cases?",
        "A confidence of 1 belongs to the last bin; to be sure and right always is an error of 0."),
    "hard-vote": (
        "committee.py", "majority_vote", ["tests/test_committee.py::test_votes"],
        "every member of a committee has one vote",
        "The mean probability decides where votes are equal, and only there."),
    "soft-vote": (
        "committee.py", "accuracy_by_size", ["tests/test_committee.py::test_accuracy_by_size"],
        "how good are committees of 1, 2, ... members that average their probabilities?",
        "All subsets where there are at most n_draws, else n_draws random ones. A dict has the "
        "keys size, mean, sd (of all of them, not of a sample), subsets."),
    "batches": (
        "data/batches.py", "make_batches",
        [f"tests/test_batches.py::test_{name}" for name in (
            "an_epoch_holds_every_document_once",
            "batches_are_of_similar_length_but_not_in_order_of_length")],
        "documents of similar length share a batch, yet the order is random",
        "Every document once, no batch above batch_size and only one below, at most 3 % padding, "
        "no trend in length from the first batch to the last; the same seed and epoch give the "
        "same batches, whatever random numbers other code draws."),
    "masking": (
        "pretrain.py", "mask_tokens",
        ["tests/test_pretrain.py::test_masks_follow_bert",
         "tests/test_pretrain.py::test_masks_are_a_function_of_their_seed"],
        "which tokens are masked, and by what: 80/10/10",
        "K is mask_prob of T - 2, the most tokens that a row can have, rounded, at least one; a "
        "row of n = 0 has no target. Special tokens and padding are never chosen, no position "
        "twice; all random numbers come from the generator; a random token is below "
        "tokenizer.n_plain."),
    "rotary": (
        "model.py", "rotate",
        ["tests/test_exercise.py::test_rotation_is_a_complex_product",
         "tests/test_model.py::test_rotary_attention_sees_distances_only"],
        "rotary positions: features are rotated by angles that grow with the position",
        "A pair is (i, i + hs / 2), not two neighbours; cos_sin[0] is cosine, cos_sin[1] sine."),
    "attention": (
        "model.py", "SelfAttention.forward",
        ["tests/test_exercise.py::test_attention_token_by_token",
         "tests/test_model.py::test_padding_changes_nothing",
         "tests/test_model.py::test_states_at_positions_equal_those_of_the_full_pass"],
        "what a token gathers from all others, except padding",
        "x (B, T, C), query_states (B, K, C) -> (B, K, C): query_states are x, or its states at "
        "`positions` (B, K). mask (B, T) is False at padding; cos_sin is that of rotate(), and "
        "belongs to the positions 0 to T - 1. mask, cos_sin and positions can be None."),
    "step": (
        "training.py", "training_step",
        ["tests/test_pretrain.py::test_a_training_step_written_out_by_hand"],
        "forward, backward, update",
        "The gradients of the micro-batches must add up to that of the mean over all n_targets. "
        "Several processes are not graded."),
    "muon": (
        "training.py", "orthogonalise",
        ["tests/test_training.py::test_our_muon_is_torchs",
         "tests/test_training.py::test_directions_become_about_equally_long"],
        "make all singular values of a matrix about 1, by matrix products alone",
        "The coefficients are 3.4445, -4.7750, 2.0315. A plain loop passes: working on the Gram "
        "matrix only saves time."),
    "bpe": (
        "data/tokenizer.py", "train_bpe",
        ["tests/test_tokenizer.py::test_training_equals_the_naive_algorithm",
         "tests/test_tokenizer.py::test_training_from_files"],
        "learn a vocabulary: the most frequent pair becomes a token, again and again",
        "It ends early when no pair is left. First recount all pairs each time; then be fast."),
}


def find_function(source, function):
    """source: of a module; function: such as "rotate" or "SelfAttention.forward" -> its node."""
    node = ast.parse(source)
    for name in function.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    return node


def without_body(source, function):
    """-> the source in which only signature and docstring are left of the function, and the line
    (from 1) where its body is to be written."""
    node, lines = find_function(source, function), source.splitlines(keepends=True)
    kept = node.body[0].end_lineno  # of the docstring
    gap = " " * node.body[0].col_offset + 'raise NotImplementedError("write me")\n'
    return "".join([*lines[:kept], gap, *lines[node.end_lineno:]]), kept + 1


def copy_project(folder):
    """Copy the project's files into a folder, which is made."""
    for path in (path for pattern in FILES for path in ROOT.glob(pattern) if path.is_file()):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def make_copy(name, folder):
    """Write the working copy for an exercise. -> the line of its file where to write. SystemExit if
    the folder is there, or can't be written."""
    file, function, *_ = EXERCISES[name]
    if folder.exists():
        raise SystemExit(f"{folder} is there already: go on in it, or name another --out_dir")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exercise-", dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            copy_project(new)
            source, line = without_body((ROOT / file).read_text("utf-8"), function)
            (new / file).write_text(source, "utf-8")
            new.rename(folder)
    except OSError as error:
        raise SystemExit(f"cannot write {folder}: {error.strerror}") from None
    return line


def main(argv=None):
    width = max(map(len, EXERCISES)) + 2
    lines = [f"  {name:{width}}{sentence}" for name, (_, _, _, sentence, _) in EXERCISES.items()]
    parser = new_parser("python -m experiments.exercise", __doc__)
    parser.epilog = "exercises, the easy ones first:\n" + "\n".join(lines)
    parser.add_argument("name", nargs="?", metavar="NAME", choices=EXERCISES, help="an exercise")
    parser.add_argument("--out_dir", type=user_path, metavar="FOLDER",
                        help="where the copy goes; by default exercise-NAME")
    args = parser.parse_args(argv)
    if args.name is None:
        return parser.print_help()
    folder = Path(args.out_dir or f"exercise-{args.name}")
    line = make_copy(args.name, folder)
    file, function, tests, sentence, details = EXERCISES[args.name]
    commands = [f"python -m experiments.exercise {name}" for name in EXERCISES]
    following = dict(zip(EXERCISES, [*commands[1:], "the questions in experiments/exercises.md"]))
    print(f"{args.name}: {sentence}\n\nWrite the body of {function}() in {folder / file}, line "
          f"{line}.\n{textwrap.fill(details, 79)}\n\nTo have it graded:\n\n"
          f"    cd {folder}\n    python -m pytest {' '.join(tests)}\n\n"
          "When the tests pass, the scripts in the folder use your function. Compare it with the\n"
          f"solution, {function}() in the project's own {file}; then, outside the folder:\n\n"
          f"    {following[args.name]}")


if __name__ == "__main__":
    run_script(main)
