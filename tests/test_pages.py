"""Pages and docstrings: scripts and shells accept each command, each link leads somewhere."""
import argparse
import importlib
import re
import shlex

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("*.md"))]
SOURCES = [path for folder in (".", "data", "experiments") for path in (ROOT / folder).glob("*.py")]
COMMAND = re.compile(r"^ {4}python (?:-m ((?:data|experiments)\.\w+)|(\w+)\.py)\b(.*)$", re.M)


class Accepted(Exception):
    pass


def commands():
    """-> (file, module, flags) of each indented command of the pages and docstrings."""
    for path in [*PAGES, *SOURCES]:
        for module, script, flags in COMMAND.findall(path.read_text("utf-8")):
            yield path.name, module or script, flags.partition(">")[0]


@pytest.mark.parametrize("file, module, flags", sorted(set(commands())))
def test_every_command_is_accepted_by_its_script(file, module, flags, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, argv=None, namespace=None):
        args = parse(parser, argv, namespace)
        if argv == []:  # of which the defaults are made
            return args
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    argv = shlex.split(flags, comments=True)
    if argv:
        with pytest.raises(Accepted):
            importlib.import_module(module).main(argv)


def test_commands_are_for_any_shell():
    """Double quotes, no && and no VAR=1 in front: cmd and PowerShell take what is left."""
    text = "\n".join(path.read_text("utf-8") for path in [*PAGES, *SOURCES])
    commands = re.findall(r"^    (?:\w+=\S+ )*(?:python|pip) .*", text, re.M)
    assert len(commands) > 40
    for command in commands:
        command = re.sub('"[^"]*"', '""', command.strip()).partition("  ")[0]
        assert command.startswith(("python ", "pip ")) and not re.search("['&;$]", command), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def numbers(pages):
    """-> the numbers of pages that have one decimal, not in code; those with a deviation also with
    it (set of str)."""
    text = "\n".join(page.read_text("utf-8") for page in pages).replace("+-", "±")
    text = re.sub("(?m)^ {4}.*", "", text)
    pairs = re.findall(r"(?<![\d.])(\d+\.\d)(?![\d.])( ± \d+\.\d)?", text)
    return {number for number, _ in pairs} | {number + deviation for number, deviation in pairs}


def test_the_numbers_of_the_readme_stand_in_the_pages_that_it_cites():
    assert numbers(PAGES[:1]) <= numbers(PAGES[1:]) | {"2.6"}  # of PyTorch


@pytest.mark.parametrize("module", sorted({module for _, module, _ in commands()}))
def test_help(module, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main(["--help"])
    assert stop.value.code == 0 and "usage: " in capsys.readouterr().out
