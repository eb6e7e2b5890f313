"""Command lines: defaults stand in --help, a mistake is answered in one line, and so is an end that
comes from outside."""
import argparse
import math
import os
import signal
import sys

ABOVE_0 = math.nextafter(0, 1)  # as the least value in a table of limits: 0 itself is refused
BELOW_1 = math.nextafter(1, 0)  # as the largest: 1 itself is refused
AT_LEAST_0 = (0, math.inf)
AT_LEAST_1 = (1, math.inf)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks, and adds "(default: X)" to the help of a flag, unless X
    is None or False, which helps nobody."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def new_parser(prog, description):
    """-> an argument parser without abbreviations, which answers a mistake in one line. prog: the
    command as it is typed."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=HelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{prog}: {message}; see --help\n")
    return parser


def add_dataset_flags(parser, draws, **name):
    """Give a parser the flags of all commands that make a dataset. `name`: options of --name."""
    flag = parser.add_argument
    flag("--name", **{"help": "the dataset's folder in data/bin"} | name)
    flag("--seed", type=int, default=0, help=f"draws {draws}")
    flag("--tokenizer", default="uncased-16k", help="uncased-16k, gpt2 or a .tiktoken file")


def check_limits(args, limits):
    """SystemExit for the first flag beyond its limits (flag -> (least, most), both allowed), for
    nan and for infinity. None passes, as do limits of flags that args lacks; of a list each number
    is checked."""
    for flag, (least, most) in limits.items():
        value = getattr(args, flag, None)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None or abs(number) < math.inf and least <= number <= most:
                continue
            bounds = ["above 0" if least == ABOVE_0 else f"at least {least}"]
            if most < math.inf:
                bounds.append("below 1" if most == BELOW_1 else f"at most {most}")
            elif not abs(number) < math.inf:
                bounds.append("finite")
            raise SystemExit(f"--{flag}={number}: must be {' and '.join(bounds)}")


def parse(parser, argv, limits):
    """-> the flags of argv, checked against their limits, and the names of those that were typed
    (set): a default is not a wish."""
    args = parser.parse_args(argv)
    check_limits(args, limits)
    unset = dict.fromkeys(vars(args), limits)  # no flag has this value
    untouched = parser.parse_args(argv, argparse.Namespace(**unset))
    return args, {name for name, value in vars(untouched).items() if value is not limits}


def refuse(names, reason):
    """SystemExit for the first of these flags (set), if there is one: it would do nothing."""
    for name in sorted(names):
        raise SystemExit(f"--{name}: {reason}; leave it out")


def run_script(main):
    """Call a script's main(). SIGTERM (of a scheduler, or a machine that shuts down) ends it as
    Ctrl-C does, in one line; a reader of its output who has gone away, as in `| head`, ends it
    quietly; what the console's encoding lacks is printed as a question mark."""
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    sys.stdout.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        raise SystemExit(1) from None
