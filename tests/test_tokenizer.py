"""The tokenizer: any text round-trips, special tokens stay out of plain text, training is BPE."""
import base64
import os
import random
import re
import unicodedata
from collections import Counter
from unittest.mock import Mock, patch

import pytest
import tiktoken
from conftest import write

from data import tokenizer as module
from data.tokenizer import count_words, get_tokenizer, normalise, train_bpe

# Code points of all kinds: ASCII and its controls, accents, CJK, emoji with modifiers, half
# surrogate pairs, the rest.
RANGES = [(0, 0x7F), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x900, 0x97F),
          (0x2000, 0x206F), (0x3040, 0x9FFF), (0xAC00, 0xD7A3), (0xD800, 0xDFFF),
          (0x1F300, 0x1FAFF), (0, 0x10FFFF)]
TOKENIZER = get_tokenizer()


def random_texts(n, seed=0):
    rng = random.Random(seed)
    for _ in range(n):
        kinds = rng.sample(RANGES, rng.randint(1, 3))
        yield "".join(chr(rng.randint(*rng.choice(kinds))) for _ in range(rng.randint(0, 40)))


def test_any_text_encodes_and_decodes_to_its_normalised_form():
    for text in ["", " ", "\ud800", "a\x00b", " [MASK] ", *random_texts(3000)]:
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == normalise(text), repr(text)
        assert all(0 <= i < TOKENIZER.n_plain for i in ids)


def test_normalising():
    assert normalise("  Café\n\tMÜNCHEN  São  Þór ") == "cafe munchen sao þor"
    assert normalise("Ἀθῆναι Йога ỆTÉ ǅ") == "αθηναι иога ete ǆ"
    for text in random_texts(2000, seed=1):
        once = normalise(text)
        assert normalise(once) == once
    for letters in ("abcxyz", "αβγω", "абвя"):
        marks = "".join(chr(code) for code in range(0x300, 0x370))
        text = unicodedata.normalize("NFC", "".join(c + marks[i::6] for i, c in enumerate(letters)))
        assert normalise(text) == letters


def test_marks_that_are_letters_stay():
    for text in ["かぎ", "कु", "노이지", "กำ", "بِسْمِ", "الإسلام", "שָׁלוֹם", "পরীক্ষা", "མི"]:
        for form in ("NFC", "NFD"):
            written = unicodedata.normalize(form, text)
            assert normalise(written) == unicodedata.normalize("NFC", text)
    assert normalise("かぎ") != normalise("かき") and normalise("कु") != normalise("क")


def test_special_tokens_only_where_allowed():
    assert sorted(TOKENIZER.special.values()) == [TOKENIZER.n_plain + i for i in range(8)]
    text = "the [MASK] of [E1] France [/E1]."
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text.lower()
    for allow in (["[MASK]"], ["[MASK]", "[E1]", "[/E1]"]):
        ids = [i for i in TOKENIZER.encode(text, allow) if i >= TOKENIZER.n_plain]
        assert ids == [TOKENIZER.special[token] for token in allow]


def test_a_masked_sentence_has_the_tokens_of_the_sentence():
    """The tokens around a [MASK] must be those that training has seen in such a position."""
    whole = TOKENIZER.encode("Paris is in France.")
    masked = TOKENIZER.encode("Paris is in [MASK].", allow=["[MASK]"])
    assert masked == [*whole[:3], TOKENIZER.mask, *whole[4:]]
    assert TOKENIZER.encode("[MASK] is in France.", allow=["[MASK]"])[1:] == whole[1:]


def test_the_shipped_vocabulary():
    text = "The city was founded in 1856 and is the capital of the province."
    assert len(TOKENIZER.encode(text)) == 14  # a token a word, the year included, and the full stop
    assert TOKENIZER.vocab_size % 64 == 0 and TOKENIZER.fingerprint == "9b06a1e18486af36"


def test_the_fingerprint_is_the_same_in_all_versions_of_python(monkeypatch):
    """repr escapes letters that Unicode did not have yet when the Python version was made."""
    monkeypatch.setattr(module, "repr", lambda value: re.sub(
        r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), repr(value)), raising=False)
    newer = module.Tokenizer("newer", module.WORDS, TOKENIZER.bpe._mergeable_ranks, True)
    assert newer.fingerprint == TOKENIZER.fingerprint


def test_words_are_cut_alike_by_trainer_and_encoder():
    """No token may span two of the words that the trainer has counted, in any script."""
    own = "it's 12345 o'clock, 'tis 3.5% (say “fünf”) — 日本語"
    for text in [*random_texts(300, seed=2), own]:
        words = list(count_words([text]).elements())
        counted = Counter(i for word in words for i in TOKENIZER.bpe.encode_ordinary(word.decode()))
        assert Counter(TOKENIZER.encode(text)) == counted or not normalise(text)


def naive_bpe(word_counts, n_tokens):
    """Byte-pair encoding by recounting everything at each step."""
    tokens = [bytes([i]) for i in range(256)]
    words = {tuple(word): n for word, n in word_counts.items()}
    while len(tokens) < n_tokens:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for word in list(words):
            new, i = [], 0
            while i < len(word):
                both = word[i:i + 2] == pair
                new.append(len(tokens) - 1 if both else word[i])
                i += 2 if both else 1
            words[tuple(new)] = words.pop(word)
    return {token: rank for rank, token in enumerate(tokens)}


def test_training_equals_the_naive_algorithm():
    rng = random.Random(0)
    words = [bytes(rng.choices(b"abcd", k=rng.randint(1, 9))) for _ in range(200)]
    counts = Counter({word: rng.randint(2, 50) for word in words})
    assert list(train_bpe(counts, 300)) == list(naive_bpe(counts, 300)), \
        "not the tokens of an algorithm that counts all pairs again after each merge (naive_bpe)"


def test_training_from_files(tmp_path, capsys):
    source, out = tmp_path / "text.txt", tmp_path / "own.tiktoken"
    words = "low lower lowest new newer newest wide wider widest " * 3
    source.write_text("\n\n".join(f"{i} {words}" for i in range(5)))

    def train(vocab_size):
        module.main([f"--source={source}", f"--vocab_size={vocab_size}", f"--out={out}"])
        return out.read_bytes()
    first = train(280)
    assert train(280) == first, "the same text gave another vocabulary the second time"
    own, home = get_tokenizer(str(out)), {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    with patch.dict(os.environ, home):
        assert get_tokenizer("~/own.tiktoken").fingerprint == own.fingerprint
        module.main([f"--source={source}", "--vocab_size=270", "--out=~/own.tiktoken"])
        assert get_tokenizer("~/own.tiktoken").vocab_size == 270  # not what it was before
    train(280)
    assert own.vocab_size == 280, "not as many tokens as were asked for"
    assert own.decode(own.encode("Lowest wider")) == "lowest wider", "encoding loses letters"
    assert own.fingerprint != get_tokenizer().fingerprint
    with pytest.raises(SystemExit, match="yields only"):  # it ends early: no pair is left
        train(5000)
    assert out.read_bytes() == first, "the file must stay as it was when there is an error"


def test_scripts_without_spaces_are_cut_finer_to_learn_from():
    counts = count_words(["日本語の学校，日本語の学校！", "โรงเรียน iphone手机 пример"])
    assert {word.decode(): n for word, n in counts.items()} == {
        " 日本語の": 1, "日本語の": 1, "学校": 2, "，": 1, "！": 1, " โรงเ": 1, "รียน": 1,
        " iphone": 1, "手机": 1, " пример": 1}
    rng = random.Random(0)
    nouns, verbs = ["学生", "北京大学", "老师", "中国", "朋友"], ["喜欢", "看见", "知道", "认识"]
    texts = ["".join(f"{rng.choice(nouns)}{rng.choice(verbs)}{rng.choice(nouns)}，"
                     for _ in range(9)) for _ in range(200)]
    tokens = {token.decode("utf-8", "replace") for token in train_bpe(count_words(texts), 330)}
    assert {*nouns, *verbs} - {"北京大学"} <= tokens and not any("，" in t[1:] for t in tokens)


LINES = module.SHIPPED.read_text().splitlines()[:300]


@pytest.mark.parametrize("lines, reason", [
    ([], "lacks one of the 256 bytes"), (LINES[:200], "lacks one of the 256 bytes"),
    (["not base64 at all"], "line 1"), ([*LINES, "YWJjZGVmZ2g= 300"], "line 301"),  # of no pair
    ([*LINES[:299], LINES[280].replace("280", "299")], "line 300"),  # a token that comes twice
    (LINES[:280] + LINES[281:], "line 281"), ([*LINES, "=a 300"], "line 301"),
    ([*LINES, "\xff 300"], "ascii"),
    (LINES[:256] + [f"{base64.b64encode(bytes(divmod(i, 256))).decode()} {256 + i}"
                    for i in range(65_300)], "65,528")])
def test_a_damaged_vocabulary_is_refused(tmp_path, lines, reason):
    path = write(tmp_path / "own.tiktoken", "\n".join(lines))
    with pytest.raises(SystemExit, match=rf"own.tiktoken is not a vocabulary .*\(.*{reason}"):
        get_tokenizer(str(path))
    with pytest.raises(SystemExit, match="no such vocabulary"):
        get_tokenizer(str(tmp_path / "absent.tiktoken"))


def test_a_shipped_vocabulary_that_was_changed_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / module.SHIPPED.name, "\n".join(LINES))
    monkeypatch.setattr(module, "SHIPPED", path)
    with pytest.raises(SystemExit, match="uncased-16k.tiktoken .*not as it was shipped, get"):
        get_tokenizer()


def test_gpt2_is_cased_and_has_our_special_tokens(monkeypatch):
    class SmallGPT2:  # tiktoken's own needs a download; what matters here is what we make of it
        _pat_str, _mergeable_ranks = r"\S+|\s+", {bytes([i]): i for i in range(256)}
    module.load_gpt2.cache_clear()
    get_encoding = Mock(side_effect=[ConnectionError("no network"), SmallGPT2])
    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    with pytest.raises(SystemExit, match="TIKTOKEN_CACHE_DIR"):
        module.load_gpt2()
    gpt2 = module.load_gpt2()
    assert gpt2.decode(gpt2.encode("  Über  Alles\n")) == "Über Alles"
    assert gpt2.pad == 257 and gpt2.vocab_size == 265  # 256 is <|endoftext|>'s
    module.load_gpt2.cache_clear()  # it is not the true one
