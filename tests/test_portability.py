"""Other systems, simulated: what Windows lacks."""
import signal
import subprocess
import sys

from conftest import ROOT

POSIX = ["fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"]  # modules


def run(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_what_only_posix_has():
    """Everything is imported, and a study and its runs start."""
    program = "import signal, sys\n"
    program += "".join(f"sys.modules[{name!r}] = None\n" for name in POSIX)
    program += "del signal.SIGHUP\n" if hasattr(signal, "SIGHUP") else ""
    program += ("from experiments import bag_of_words, exercise, look, play, race, reproduce\n"
                "from data.flags import run_script\n"
                "run_script(lambda: reproduce.main(['--scale=pocket', '--list']))\n")
    assert "python committee.py " in run(program)


def test_commands_of_data_do_not_load_torch():
    names = [path.stem for path in (ROOT / "data").glob("*.py") if path.stem != "batches"]
    program = "".join(f"import data.{name}\n" for name in names if name != "__init__")
    assert run(f"import sys\n{program}print('torch' in sys.modules)") == "False\n"
