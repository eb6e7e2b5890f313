"""Any flags of the scripts, any damage to a run: it works, or is refused in one line, and nothing
is left half-written. See fuzzing.py."""
import pytest
from conftest import write
from fuzzing import damaged, new_folder, succeeds
from hypothesis import given
from hypothesis import strategies as st

import committee
import finetune
import pretrain
import training

# Values of the scripts' flags, sensible and senseless, which keep a run small.
VALUES = ["0", "1", "2", "3", "5", "16", "-1", "0.5", "0.99", "1e-9", "1e400", "nan", "inf", "-inf",
          "99999999999999999999", "", "x", "None", "auto", "é", "scratch", "float32", "cls"]
SMALL = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--block_size=16", "--batch_size=16",
         "--device=cpu"]
NEVER = {"help", "compile", "device", "dtype", "runs", "eval_interval", "n_members", "out_dir"}


def flags_of(script):
    """-> a strategy of command lines of a script (list of str): up to three flags, any values."""
    actions = [action for action in script.get_parser()._actions if action.dest not in NEVER]
    names = [action.option_strings[0] for action in actions if action.nargs != 0]
    switches = [action.option_strings[0] for action in actions if action.nargs == 0]
    flag = (st.tuples(st.sampled_from(names), st.sampled_from(VALUES)).map("=".join)
            | st.sampled_from(switches or ["--device=cpu"]))
    return st.lists(flag, max_size=3)


def run_once(function, tokens):
    """In place of committee.seconds_of, which runs a function for seconds."""
    function(tokens)
    return 1.0


@pytest.mark.parametrize("script", ["pretrain", "finetune", "committee"])
@given(data=st.data())
def test_flags(runs, weather, script, data):
    module = {"pretrain": pretrain, "finetune": finetune, "committee": committee}[script]
    flags = data.draw(flags_of(module))
    with new_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(committee, "seconds_of", run_once)
        before = {"pretrain": [f"--dataset={weather}/plain", *SMALL, "--epochs=0.5"],
                  "finetune": [f"--dataset={weather}/labelled", f"--init_from={runs}/run",
                               "--epochs=1"],
                  "committee": [f"{runs}/member-*", "--no-latency"]}[script]
        succeeds(module.main, [*before, f"--out_dir={folder}/out", "--device=cpu", *flags])
        assert not list(folder.glob("out/*.tmp"))


@given(data=st.data())
def test_runs(runs, data):
    """Damage to any file of a run is said, or lies where nothing is read."""
    run, file = data.draw(st.sampled_from(
        [("run", "ckpt.pt"), ("member-0", "ckpt.pt"), ("member-0", "test.npz")]))
    whole = (runs / run / file).read_bytes()
    content = data.draw(damaged(whole))
    with new_folder() as folder:
        write(folder / file, content)
        read = committee.load_outputs if file == "test.npz" else training.load_checkpoint
        arguments = ([str(folder)] if file == "test.npz" else folder,)
        if succeeds(read, *arguments):
            expected = read([str(runs / run)] if file == "test.npz" else runs / run)
            assert repr(read(*arguments)) == repr(expected)
