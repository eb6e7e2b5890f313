"""Uncased byte-level BPE: text is normalised and a vocabulary learned here; tiktoken encodes.

    python -m data.tokenizer --source="articles/*.jsonl.gz" --vocab_size=16384 --out=my.tiktoken

A vocabulary is learned by byte-pair encoding: it begins with the 256 bytes, and again and again the
most frequent pair of neighbours becomes a token. Its file is in tiktoken's format: on each line, in
this order, a token's bytes in base64 and its rank, which is its id. The shipped one
(data/uncased-16k.tiktoken) was learned from introductions of English Wikipedia.
"""
import base64
import hashlib
import heapq
import os
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

import tiktoken

from data.documents import UNSPACED, read_documents
from data.files import write_atomically
from data.flags import new_parser, number, run_script
from data.rows import ENDINGS, Skipped, find_files

SHIPPED = Path(__file__).with_name("uncased-16k.tiktoken")
SHIPPED_CRC32 = 3051916220
SPECIAL_TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[E1]", "[/E1]", "[E2]", "[/E2]"]
MAX_PLAIN_TOKENS = 2**16 - len(SPECIAL_TOKENS)  # token files are uint16
MARKERS = SPECIAL_TOKENS[4:]  # around the two entities of a relation (Baldini Soares et al. 2019)

# Text is cut into words before BPE, which never merges across them. Letters are ranges of code
# points (a-z, then all beyond ASCII except most punctuation), which Python's `re` (to learn) and
# tiktoken (to encode) read alike.
LETTERS = "a-z\u00c0-\u1fff\u2c00-\u2fff\u3040-\U0010ffff"
WORDS = "|".join([r"['’](?:s|t|re|ve|m|ll|d)\b",  # English endings
                  f" ?[{LETTERS}]+",  # letters, with the space before them, as all that follow
                  " ?[0-9]{1,4}",  # up to four digits
                  f" ?[^ {LETTERS}0-9]+",  # the rest, such as punctuation
                  " +"])
# Scripts without spaces (Thai to Burmese, Khmer, kana, Chinese characters) are cut into PIECES to
# learn from: a whole clause is hardly ever seen twice. The encoder needs no such cuts.
PIECES = re.compile(f" ?[{UNSPACED}]{{1,4}}|[^{UNSPACED}]+")
# Diacritics, in decomposed text, where the letter before them is Latin, Greek or Cyrillic. In other
# scripts combining marks are letters: without them "かぎ" (key) would be "かき" (oyster).
DIACRITICS = re.compile(
    "[\u0300-\u036f](?<=[a-z\u00c0-\u02af\u0370-\u052f\u1e00-\u1fff].)[\u0300-\u036f]*")


def normalise(text, lowercase=True):
    """What tokens can express of `text` (str): single spaces for white space, none at the ends; if
    `lowercase`, no capitals and no diacritics."""
    if not text.isascii():  # half a surrogate pair becomes U+FFFD
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if lowercase:
        text = text.lower()
        if not text.isascii():
            text = DIACRITICS.sub("", unicodedata.normalize("NFD", text))
            text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


class Tokenizer:
    """Text to token ids and back. Ids below n_plain are plain text; the last are SPECIAL_TOKENS."""

    def __init__(self, name, pattern, ranks, lowercase, reserved=0, vocabulary=None):
        """pattern: a word (regular expression). ranks: bytes -> id of the plain tokens, after which
        `reserved` ids are not used. vocabulary: content (str) of a user's own .tiktoken file."""
        self.name, self.lowercase, self.n_plain = name, lowercase, len(ranks)
        self.vocabulary = vocabulary
        first = len(ranks) + reserved
        self.special = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = first + len(SPECIAL_TOKENS)
        self.pad, self.cls, self.sep, self.mask = list(self.special.values())[:4]
        self.bpe = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special)
        by_rank = sorted(ranks.items(), key=lambda item: item[1])
        content = repr((pattern, by_rank, self.special, lowercase))
        for letter in "\u1fff\u2fff\u3040":  # some Pythons' repr escapes these
            content = content.replace(letter, f"\\u{ord(letter):04x}")
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text, allow=()):
        """Token ids (list of int, without [CLS] and [SEP]). Special tokens in `text` are read as
        such only if they are in `allow` (list of str)."""
        special, ids = "|".join(map(re.escape, allow)), []
        for i, part in enumerate(re.split(f"({special})", text) if allow else [text]):
            if part in allow:
                ids.append(self.special[part])
            elif words := normalise(part, self.lowercase):
                # A text begins as if after a space: its first word is the same token as elsewhere.
                has_space = i == 0 or part[0].isspace()
                ids += self.bpe.encode_ordinary(" " + words if has_space else words)
        return ids

    def decode(self, ids):
        """The normalised text of `ids`; decode(encode(text)) == normalise(text)."""
        return self.bpe.decode([int(i) for i in ids]).removeprefix(" ")


@lru_cache
def load_gpt2():
    """-> GPT-2's cased Tokenizer. Its own special token <|endoftext|> keeps its id, before ours."""
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' many errors, a wrong checksum, an unreadable cache
        raise SystemExit(
            f"--tokenizer=gpt2: tiktoken cannot get GPT-2's files ({type(error).__name__}); go "
            "online once, or set TIKTOKEN_CACHE_DIR to their folder") from None
    return Tokenizer("gpt2", gpt2._pat_str, gpt2._mergeable_ranks, lowercase=False, reserved=1)


def parse_vocabulary(text):
    """The text of a .tiktoken file -> {token (bytes): rank}. ValueError says where it is wrong."""
    ranks = {}
    for line_number, line in enumerate(text.splitlines(), start=1):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            # BPE merges two tokens at a time: one that is no such pair could never be used.
            is_pair = any(token[:i] in ranks and token[i:] in ranks for i in range(1, len(token)))
            if token in ranks or int(rank) != len(ranks) or not (is_pair or len(token) == 1):
                raise ValueError
        except ValueError:
            raise ValueError(f"line {line_number}") from None
        ranks[token] = len(ranks)
    if not {bytes([i]) for i in range(256)} <= ranks.keys() or len(ranks) > MAX_PLAIN_TOKENS:
        raise ValueError(f"lacks one of the 256 bytes, or has over {MAX_PLAIN_TOKENS:,} tokens")
    return ranks


@lru_cache  # by the content: a file may change while a notebook is open
def read_vocabulary(name, text, is_shipped):
    """-> the Tokenizer of a .tiktoken file's content (str). ValueError if it is damaged."""
    if is_shipped and zlib.crc32(text.encode()) != SHIPPED_CRC32:
        raise ValueError("it is not as it was shipped, get it again")
    vocabulary = None if is_shipped else text
    return Tokenizer(name, WORDS, parse_vocabulary(text), True, vocabulary=vocabulary)


def get_tokenizer(name="uncased-16k", vocabulary=None):
    """-> the shipped Tokenizer, "gpt2" (tiktoken's), or that of a .tiktoken file (path), whose
    content (str) can be given instead. SystemExit if the file is missing or damaged."""
    if name == "gpt2" and vocabulary is None:
        return load_gpt2()
    is_shipped = name == SHIPPED.stem and vocabulary is None
    path = SHIPPED if is_shipped else Path(os.path.expanduser(name))
    try:
        text = path.read_text("ascii") if vocabulary is None else vocabulary
        return read_vocabulary(name, text, is_shipped)
    except OSError as error:
        raise SystemExit(
            f"--tokenizer={name}: no such vocabulary ({error.strerror}: {path}); give "
            f"{SHIPPED.stem}, gpt2 or a .tiktoken file made by python -m data.tokenizer") from None
    except ValueError as error:
        raise SystemExit(f"--tokenizer={name}: {path} is not a vocabulary in tiktoken's format, or "
                         f"is damaged ({error})") from None


def count_words(texts):
    """texts (iterable of str) -> how often each word or piece of one occurs (Counter of bytes)."""
    words = Counter(word for text in texts for word in re.findall(WORDS, " " + normalise(text)))
    pieces = Counter()
    while words:  # both are large
        word, n = words.popitem()
        for piece in PIECES.findall(word):
            pieces[piece.encode()] += n
    return pieces


def merge(word, pair, new):
    """Replace each `pair` in the word, a list of token ids, by the id `new`."""
    i = 0
    while i < len(word) - 1:
        if (word[i], word[i + 1]) == pair:
            word[i:i + 2] = [new]
        i += 1


def train_bpe(word_counts, n_tokens):
    """Byte-pair encoding of bytes (Sennrich et al. 2016): word_counts (Counter of bytes) ->
    {token (bytes): rank}, up to n_tokens of them, the 256 bytes first.

    Again and again the most frequent pair of neighbouring tokens becomes a token, of equally
    frequent pairs the one of lower ids.
    """
    tokens = [bytes([i]) for i in range(256)]
    # A word seen once says nothing of frequency.
    words = [(list(word), n) for word, n in word_counts.items() if n > 1]
    pair_counts, words_with = Counter(), defaultdict(set)
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += n
            words_with[pair].add(i)
    heap = [(-n, pair) for pair, n in pair_counts.items()]
    heapq.heapify(heap)
    while len(tokens) < n_tokens and heap:
        n, pair = heapq.heappop(heap)
        if n != -pair_counts[pair]:  # outdated: the current count has an entry of its own
            continue
        changes = Counter()
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for i in words_with.pop(pair):
            word, n = words[i]
            for old in zip(word, word[1:]):
                changes[old] -= n
            merge(word, pair, len(tokens) - 1)
            for new in zip(word, word[1:]):
                changes[new] += n
                words_with[new].add(i)
        pair_counts.update(changes)
        for other in changes:
            if pair_counts[other] > 0:
                heapq.heappush(heap, (-pair_counts[other], other))
    return {token: rank for rank, token in enumerate(tokens)}


def main(argv=None):
    parser = new_parser("python -m data.tokenizer", __doc__)
    flag = parser.add_argument
    flag("--source", nargs="+", required=True, metavar="FILES",
         help="files or globs, as data.custom")
    flag("--text", metavar="COLUMN", default="text", help="the column of a table's texts")
    flag("--vocab_size", type=number(int, 256 + len(SPECIAL_TOKENS), 2**16), default=16384,
         help="tokens in all, the 8 special ones included")
    flag("--out", required=True, metavar="FILE", help="what to write, for example my.tiktoken")
    args = parser.parse_args(argv)
    skipped = Skipped()
    texts = read_documents(find_files(args.source, ENDINGS), skipped, column=args.text)
    word_counts = count_words(texts)
    skipped.report()
    print(f"{word_counts.total():,} words, {len(word_counts):,} different")
    ranks = train_bpe(word_counts, args.vocab_size - len(SPECIAL_TOKENS))
    vocab_size = len(ranks) + len(SPECIAL_TOKENS)
    if vocab_size < args.vocab_size:
        raise SystemExit(f"--vocab_size={args.vocab_size}: the text yields only {vocab_size}")
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    write_atomically(args.out, "".join(lines).encode())
    print(f"{len(ranks) - 256:,} merges learned: {args.out}")


if __name__ == "__main__":
    run_script(main)
