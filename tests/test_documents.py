"""Documents for pre-training: which are left out, and which validate and which train."""
import pytest
from conftest import jsonl, write

from data.documents import read_documents, reason_to_skip, scan_files, split_documents
from data.files import checksum
from data.rows import Skipped


def read(*paths, min_words=0):
    skipped = Skipped()
    return list(read_documents(paths, skipped, min_words)), skipped.report()


@pytest.mark.parametrize("line, reason", [
    ('{"title": "a"}', "without a text"), ('{"text": NaN}', "without a text"),
    ('{"text": " \\n "}', "without a text"), ('{"text": "one two"}', "shorter than 3 words"),
    ('{"text": " four  five six\\n"}', "duplicates")])
def test_what_is_left_out(tmp_path, line, reason):
    good = ["one two three", "four five six"]
    path = write(tmp_path / "a.jsonl", f"{jsonl(good)}{line}\n{jsonl(['seven eight nine'])}{line}")
    assert read(path, min_words=3) == ([*good, "seven eight nine"], {reason: 2})


def test_files_of_all_kinds(tmp_path):
    paths = [write(tmp_path / "a.txt", "one\n\ntwo"), write(tmp_path / "b.txt.gz", " \n\n"),
             write(tmp_path / "b.JSONL.GZ", jsonl(["three"])),
             write(tmp_path / "c.csv", "id;Text\n1;four\n;\n")]
    assert read(*paths) == (["one", "two", "three", "four"], {})
    tables = [write(tmp_path / "e.json", '[{"body": "five"}]'), write(tmp_path / "e.csv", "")]
    documents = read_documents([paths[0], *tables], Skipped(), column="body")
    assert list(documents) == ["one", "two", "five"]
    with pytest.raises(SystemExit, match="b.txt.gz and 1 more files; skipped: nothing$"):
        read(paths[1], write(tmp_path / "d.jsonl", ""))
    with pytest.raises(SystemExit, match="no text in .*a.txt; skipped: 2 shorter than 9 words"):
        read(paths[0], min_words=9)


def test_split_is_nested_and_shares_the_validation_set(tmp_path):
    texts = [f"number {i}" for i in range(500)]
    path = write(tmp_path / "a.jsonl", jsonl([*texts, "", texts[7]]))

    def split(n_train, seed=0):
        items = list(split_documents([path], 500, 50, n_train, seed))
        return [{text for split, text in items if split == name} for name in ("val", "train")]
    val, small = split(100)
    same, large = split(300)
    assert (len(val), len(small), len(large)) == (50, 100, 300)
    assert val == same and small < large and not val & large
    assert split(100) == [val, small] and split(100, seed=1)[0] != val
    assert set.union(*split(450)) == set(texts)
    numbers = [int(text.split()[1]) for text in val]
    assert min(numbers) < 100 and max(numbers) > 400


def test_scan_files(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", jsonl(["one two three", "one", "four five"]))
    paths, source = scan_files([str(path)], min_words=2)
    assert paths == [path]
    assert source == {"files": [str(path)], "sha256": checksum([path]), "n_docs": 2, "min_words": 2,
                      "skipped": {"shorter than 2 words": 1}}
    assert capsys.readouterr().out == "skipped: 1 shorter than 2 words\n"
    write(tmp_path / "a.txt", "a\n\nb"), write(tmp_path / "b.txt", "")
    lines = [write(tmp_path / f"{i}.txt", f"one\n{i} lines\n\n") for i in range(2)]
    assert scan_files([f"{tmp_path}/*.txt"])[1]["n_docs"] == 5
    assert capsys.readouterr().out == (f"2 .txt files without blank lines, such as {lines[0]}: "
                                       "each line is a document\nskipped: 1 duplicates\n")
    with pytest.raises(SystemExit, match=r"a\.pdf: unknown ending; can read \.txt, "):
        scan_files([str(path), str(write(tmp_path / "a.pdf", ""))])


def test_words_of_scripts_without_spaces():
    for text, n in [("two words", 2), ("", 0), ("日本の首都は東京です", 5), ("ภาษาไทย", 3)]:
        assert reason_to_skip(text, set(), n) is None
        assert reason_to_skip(text, set(), n + 1) == f"shorter than {n + 1} words"
