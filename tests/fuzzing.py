"""What the fuzz tests share: odd text and JSON, damage, and what must hold in the end. The inputs
are the same each time; FUZZ_EXAMPLES=2000 tries more of them."""
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from hypothesis import settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

settings.register_profile("ours", derandomize=True, deadline=None, database=None,
                          max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)))
settings.load_profile("ours")

# Words that mean something to some reader, between any other characters.
ODD = ["", " ", "\n", "\r\n", "\r", '"', '""', ",", ";", "\t", "|", "\0", "\ufeff", "\u200b", "nan",
       "None", "NA", "null", "text", "label", "\u2028", "\x85", "\x1c", "é", "e\u0301", "かぎ", "कु",
       "한국", "שָׁלוֹם", "بِسْمِ", "ไทย", "😀", "[MASK]", "[E1]", "\\", "{", "[", "1", "1e999"]
TEXT = st.lists(st.sampled_from(ODD) | st.text(max_size=9), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4),
    max_leaves=12)


@contextmanager
def new_folder():
    """A folder (Path) that is empty again, or holds the dataset "mine" alone, at the end."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bin").mkdir()
        yield Path(folder)
        names = [path.name for path in (Path(folder) / "bin").iterdir()]
        assert names in ([], ["mine"])


def succeeds(function, *arguments):
    """Call a function. -> whether it succeeded; if not, it ended in one line."""
    try:
        function(*arguments)
    except SystemExit as error:
        if error.code != 2:  # argparse's, which has printed its line
            assert isinstance(error.code, str) and len(error.code.splitlines()) == 1, error.code
        return False
    return True


@st.composite
def damaged(draw, content):
    """content (bytes), in up to three places of which something is cut out or put in."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 1, 9, len(content)]))
        more = draw(st.binary(max_size=9) | TEXT.map(lambda text: text.encode("utf-8", "replace")))
        content = content[:start] + more + content[start + length:]
    return content
