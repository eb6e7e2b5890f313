"""Other systems, simulated: what Windows lacks, and what its shells do not understand."""
import re
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


def test_commands_are_for_any_shell():
    """Double quotes, no && and no VAR=1 in front: cmd and PowerShell take what is left."""
    commands = []
    for path in [ROOT / "README.md", ROOT / "experiments/exercises.md", *ROOT.glob("*.py"),
                 *ROOT.glob("data/*.py"), *ROOT.glob("experiments/*.py")]:
        text = path.read_text("utf-8")
        commands += re.findall(r"^    (?:\w+=\S+ )*(?:python|pip) .*", text, re.M)
    assert len(commands) > 40
    for command in commands:
        command = re.sub('"[^"]*"', '""', command.strip()).partition("  ")[0]
        assert command.startswith(("python ", "pip ")) and not re.search("['&;$]", command), command
