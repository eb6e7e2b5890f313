"""Command lines: defaults stand in --help, and a mistake is answered in one line."""
import argparse
import math

ABOVE_0 = math.nextafter(0, 1)  # as the least value in a table of limits: 0 itself is refused
BELOW_1 = math.nextafter(1, 0)  # as the largest: 1 itself is refused
AT_LEAST_0 = (0, math.inf)
AT_LEAST_1 = (1, math.inf)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: X)" to the help of a flag, unless X is None or False, which helps nobody."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class ManualFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """HelpFormatter for descriptions that keep their line breaks."""


def new_parser(prog, description, keep_layout=True):
    """-> an argument parser that knows no abbreviations and answers a mistake in one line, with
    exit status 2. prog: the command as it is typed. keep_layout: don't refill the description."""
    formatter = ManualFormatter if keep_layout else HelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=formatter)
    parser.error = lambda message: parser.exit(2, f"{prog}: {message}; see --help\n")
    return parser


def check_limits(args, limits):
    """SystemExit for the first flag beyond its limits, for nan and for infinity.

    limits: flag (str) -> (least, most), both allowed. A flag that was not given (None) passes; of
    a list each number is checked.
    """
    for flag, (least, most) in limits.items():
        value = getattr(args, flag)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None or math.isfinite(number) and least <= number <= most:
                continue
            bounds = ["above 0" if least == ABOVE_0 else f"at least {least}"]
            if most < math.inf:
                bounds.append("below 1" if most == BELOW_1 else f"at most {most}")
            elif not math.isfinite(number):
                bounds.append("finite")
            raise SystemExit(f"--{flag}={number}: must be {' and '.join(bounds)}")
