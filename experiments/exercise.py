"""Write a part of the project again: a working copy in which one function has lost its body.

    python -m experiments.exercise              # what there is
    python -m experiments.exercise schedule     # make the folder exercise-schedule

The docstring says what the function must do, and so does experiments/exercises.md, which has a hint
for each. The project's own tests grade what you write; nothing outside the folder is touched.
"""
import ast
import os
import re
import shutil
import tempfile
from pathlib import Path

from data.files import retry
from data.flags import new_parser, run_script, user_path

ROOT = Path(__file__).parent.parent
FILES = ["*.py", "*.md", "*.toml", "*.txt", "data/*.*", "data/facts/*", "experiments/*.*",
         "tests/*.py"]

# name -> file, function, the tests that grade it
EXERCISES = {
    "schedule": (
        "training.py", "lr_factor", ["tests/test_training.py::test_learning_rate_schedule"]),
    "calibration": (
        "committee.py", "calibration_error", ["tests/test_committee.py::test_calibration_error"]),
    "hard-vote": ("committee.py", "majority_vote", ["tests/test_committee.py::test_votes"]),
    "soft-vote": (
        "committee.py", "accuracy_by_size", ["tests/test_committee.py::test_accuracy_by_size"]),
    "batches": (
        "data/batches.py", "make_batches",
        ["tests/test_batches.py::test_an_epoch_holds_every_document_once",
         "tests/test_batches.py::test_batches_are_of_similar_length_but_not_in_order_of_length"]),
    "masking": (
        "pretrain.py", "mask_tokens",
        ["tests/test_pretrain.py::test_masks_follow_bert",
         "tests/test_pretrain.py::test_masks_are_a_function_of_their_seed"]),
    "rotary": (
        "model.py", "rotate",
        ["tests/test_exercise.py::test_rotation_is_a_complex_product",
         "tests/test_model.py::test_rotary_attention_sees_distances_only"]),
    "attention": (
        "model.py", "SelfAttention.forward",
        ["tests/test_exercise.py::test_attention_token_by_token",
         "tests/test_model.py::test_padding_changes_nothing",
         "tests/test_model.py::test_states_at_positions_equal_those_of_the_full_pass"]),
    "step": (
        "training.py", "training_step",
        ["tests/test_pretrain.py::test_a_training_step_written_out_by_hand"]),
    "muon": (
        "training.py", "orthogonalise",
        ["tests/test_training.py::test_our_muon_is_torchs",
         "tests/test_training.py::test_directions_become_about_equally_long"]),
    "bpe": (
        "data/tokenizer.py", "train_bpe",
        ["tests/test_tokenizer.py::test_training_equals_the_naive_algorithm",
         "tests/test_tokenizer.py::test_training_from_files"]),
}


def read_section(name):
    """-> what experiments/exercises.md says of an exercise: its title, and the text down to the
    hint."""
    text = (ROOT / "experiments" / "exercises.md").read_text("utf-8")
    return re.search(rf"^### \d+\. ([^\n]*) \(`{name}`\)\n\n(.*?)\n\n<details>", text,
                     re.M | re.S).groups()


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
    file, function, _ = EXERCISES[name]
    if folder.exists():
        raise SystemExit(f"{folder} is there already: go on in it, or name another --out_dir")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exercise-", dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            copy_project(new)
            source, line = without_body((ROOT / file).read_text("utf-8"), function)
            (new / file).write_text(source, "utf-8")
            retry(os.rename, new, folder)
    except OSError as error:
        raise SystemExit(f"cannot write {folder}: {error.strerror}") from None
    return line


def main(argv=None):
    parser = new_parser("python -m experiments.exercise", __doc__)
    lines = [f"  {name:13}{read_section(name)[0]}" for name in EXERCISES]
    parser.epilog = "\n".join(["exercises:", *lines])
    parser.add_argument("name", nargs="?", metavar="NAME", choices=EXERCISES, help="an exercise")
    parser.add_argument("--out_dir", type=user_path, metavar="FOLDER",
                        help="where the copy goes; by default exercise-NAME")
    args = parser.parse_args(argv)
    if args.name is None:
        return parser.print_help()
    folder = Path(args.out_dir or f"exercise-{args.name}")
    line = make_copy(args.name, folder)
    file, function, tests = EXERCISES[args.name]
    title, text = read_section(args.name)
    print(f"{title}\n\n{text}\n\nWrite the body of {function}() in {folder / file}, line {line}. "
          f"To have it graded:\n\n    cd {folder}\n    python -m pytest {' '.join(tests)}\n\n"
          "When the tests pass, the scripts in the folder use your function. The solution is "
          f"{function}()\nin the project's own {file}; hints and the next exercise are in "
          "experiments/exercises.md.")


if __name__ == "__main__":
    run_script(main)
