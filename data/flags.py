"""Command lines: a flag's default, limits and help stand together; a mistake, Ctrl-C, SIGTERM and a
closed pipe end a script with at most one line."""
import argparse
import errno
import math
import os
import signal
import sys
import threading
from pathlib import Path


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks, and adds "(default: X)" to the help of a flag, unless X
    is None or False."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def new_parser(prog, description):
    """-> an argument parser without abbreviations, which exits with one line for a mistake. prog:
    the command as it is typed."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=HelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{prog}: {message}; see --help\n")
    return parser


def number(kind, least=-math.inf, most=math.inf, above=-math.inf, below=math.inf):
    """-> the type= of a flag: text -> a finite number of this kind (int or float) with
    least <= number <= most and above < number < below."""
    limits = {"at least": least, "at most": most, "above": above, "below": below}
    expected = " and ".join(f"{word} {limit:,}" for word, limit in limits.items()
                            if abs(limit) < math.inf)

    def parse(text):
        value = kind(text)
        if not (abs(value) < math.inf and least <= value <= most and above < value < below):
            raise argparse.ArgumentTypeError(f"{text} must be {expected or 'finite'}")
        return value
    parse.__name__ = kind.__name__  # for argparse's "invalid int value"
    return parse


def user_path(text):
    """The type= of a flag that names a run, a dataset or a file: ~ is the home folder, and a run's
    checkpoint stands for the run."""
    path = Path(os.path.expanduser(text))
    return str(path.parent if path.name == "ckpt.pt" else path) if text else text


def add_dataset_flags(parser, draws, **name):
    """Give a parser the flags of all commands that make a dataset. draws: what --seed draws (str).
    name: options of --name."""
    flag = parser.add_argument
    flag("--name", type=user_path, **{"help": "the dataset's folder in data/bin"} | name)
    flag("--seed", type=number(int, 0), default=0, help=f"seed for {draws}")
    flag("--tokenizer", type=user_path, default="uncased-16k",
         help="uncased-16k, gpt2 or a .tiktoken file")


def parse_flags(parser, argv=None):
    """-> all flags of a parser without required ones (Namespace), and the values of those typed in
    argv (dict): defaults don't count."""
    args = parser.parse_args([])
    untyped = argparse.Namespace(**dict.fromkeys(vars(args)))
    typed = {name: value for name, value in vars(parser.parse_args(argv, untyped)).items()
             if value not in (None, [])}
    vars(args).update(typed)
    return args, typed


def refuse(typed, names, reason):
    """SystemExit if one of these flags (names) is among those typed (dict): it would do nothing."""
    for name in sorted(typed.keys() & names):
        raise SystemExit(f"--{name}: {reason}; leave it out")


def refuse_other(typed, saved, where, advice="leave the flag out, or name another run"):
    """SystemExit if one of the typed flags (dict) has another value than was saved (dict)."""
    for name in sorted(typed.keys() & saved.keys()):
        if typed[name] != saved[name]:
            raise SystemExit(f"--{name}={typed[name]}: {where} has {saved[name]}; {advice}")


def handle_signals(handler):
    """Let handler(number, frame) handle Ctrl-C, SIGTERM (from a scheduler, or when a machine shuts
    down) and SIGHUP (when a terminal or a notebook's cell is closed). -> {number: its handler
    before}. Ignored signals stay ignored (nohup); only the main thread can handle signals."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
               if hasattr(signal, name)]  # Windows has no SIGHUP
    return {number: signal.signal(number, handler) for number in numbers
            if signal.getsignal(number) != signal.SIG_IGN}


def run_script(main):
    """Call a script's main(). Ctrl-C, SIGTERM and SIGHUP end it in one line; a closed pipe, as in
    `| head`, without any; characters that the console's encoding lacks are printed as question
    marks, and a line is in a log file as soon as it is printed."""
    def interrupt(*_):
        raise KeyboardInterrupt

    handle_signals(interrupt)
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's output has none
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    except OSError as error:
        is_closed_pipe = isinstance(error, BrokenPipeError) or (
            os.name == "nt" and error.errno == errno.EINVAL)  # as Windows says it
        if not is_closed_pipe:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        raise SystemExit(1) from None
