"""The tokenizer: uncased byte-level BPE. tiktoken executes it; this file normalises text and learns the vocabulary.

    python -m data.tokenizer --source='articles/*.jsonl.gz' --vocab_size=16384 --out=my.tiktoken

The shipped vocabulary (data/uncased-16k.tiktoken, tiktoken's own format: base64 bytes and rank, one a line) was made
by that command from English Wikipedia leads. `get_tokenizer("gpt2")` gives GPT-2's cased vocabulary instead.
"""
import argparse
import base64
import hashlib
import heapq
import re
import time
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

SHIPPED = Path(__file__).with_name("uncased-16k.tiktoken")
SPECIAL_TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[E1]", "[/E1]", "[E2]", "[/E2]"]
MARKERS = SPECIAL_TOKENS[4:]  # around the two entities of a relation (Baldini Soares et al. 2019)

# Words are cut out before BPE, which then never merges across them: English endings, letters, digits, the rest; each
# with the space before it. The letters are spelled as code point ranges (a-z, then everything beyond ASCII but the
# punctuation blocks), which Python's `re` and tiktoken's engine read alike, so trainer and encoder cut the same words.
LETTERS = "a-z" + "".join(f"{chr(a)}-{chr(b)}" for a, b in [(0xC0, 0x1FFF), (0x2C00, 0x2FFF), (0x3040, 0x10FFFF)])
WORDS = rf"['’](?:s|t|re|ve|m|ll|d)\b| ?[{LETTERS}]+| ?[0-9]{{1,4}}| ?[^ {LETTERS}0-9]+| +"


def normalise(text, lowercase=True):
    """What a token can express of `text`: single spaces between words; if `lowercase`, no accents and no capitals."""
    if not text.isascii():
        # Half a surrogate pair has no UTF-8 form; it becomes U+FFFD here instead of an error later.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if lowercase:
            # Accents are the combining marks (Unicode category Mn) of the decomposed text; none is below U+0300.
            text = re.sub("[\u0300-\U0010ffff]", lambda c: "" if unicodedata.category(c[0]) == "Mn" else c[0],
                          unicodedata.normalize("NFD", text))
    return " ".join((text.lower() if lowercase else text).split())


class Tokenizer:
    """Text to token ids and back. Ids 0 .. n_words-1 are plain text; n_words .. vocab_size-1 are special tokens."""

    def __init__(self, name, pattern, ranks, lowercase, reserved=0):
        """ranks: bytes -> id of the plain tokens; `reserved` ids after them belong to the vocabulary's author."""
        import tiktoken
        self.name, self.lowercase, self.n_words = name, lowercase, len(ranks)
        self.special = {token: len(ranks) + reserved + i for i, token in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = len(ranks) + reserved + len(SPECIAL_TOKENS)
        self.pad, self.cls, self.sep, self.mask = (self.special[t] for t in SPECIAL_TOKENS[:4])
        self.bpe = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special)
        content = repr((pattern, sorted(ranks.items(), key=lambda item: item[1]), self.special, lowercase))
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text, allow=()):
        """Token ids (list of int, without [CLS] and [SEP]). Special tokens are read as such only if in `allow`."""
        ids = []
        parts = re.split("(" + "|".join(map(re.escape, allow)) + ")", text) if allow else [text]
        for i, part in enumerate(parts):
            if i % 2:  # the parts between the split points alternate with the special tokens found
                ids.append(self.special[part])
            elif words := normalise(part, self.lowercase):
                # A text begins as if a space stood before it, so that its first word is the same token as elsewhere.
                ids += self.bpe.encode_ordinary(" " + words if i == 0 or part[0].isspace() else words)
        return ids

    def decode(self, ids):
        """The normalised text of `ids`; decode(encode(text)) == normalise(text)."""
        return self.bpe.decode([int(i) for i in ids]).removeprefix(" ")


@lru_cache
def get_tokenizer(name="uncased-16k"):
    """The shipped tokenizer, "gpt2" (tiktoken's, cased), or the path of a vocabulary that this module has learned."""
    if name == "gpt2":
        import tiktoken
        try:
            gpt2 = tiktoken.get_encoding("gpt2")
        except Exception as error:  # requests' many errors, a wrong checksum, an unreadable cache
            raise SystemExit(f"--tokenizer=gpt2: tiktoken cannot get GPT-2's files ({type(error).__name__}); connect "
                             "to the internet once, or set TIKTOKEN_CACHE_DIR to a folder that holds them") from None
        # GPT-2's own special token <|endoftext|> keeps its id, between its words and our special tokens.
        return Tokenizer("gpt2", gpt2._pat_str, gpt2._mergeable_ranks, lowercase=False, reserved=1)
    path = SHIPPED if name == SHIPPED.stem else Path(name)
    try:
        lines = path.read_bytes().split(b"\n")
        ranks = {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in lines if line)}
        if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
            raise ValueError
    except OSError as error:
        raise SystemExit(f"--tokenizer={name}: no such vocabulary ({error.strerror}: {path}); "
                         f"give {SHIPPED.stem}, gpt2 or a .tiktoken file made by python -m data.tokenizer") from None
    except ValueError:
        raise SystemExit(f"--tokenizer={name}: {path} is not a vocabulary in tiktoken's format") from None
    return Tokenizer(name, WORDS, ranks, lowercase=True)


def count_words(texts):
    """texts: iterable of str -> Counter of the byte strings that WORDS cuts out of the normalised texts."""
    cut, counts = re.compile(WORDS), Counter()
    for text in texts:
        counts.update(cut.findall(" " + normalise(text)))
    return Counter({word.encode(): n for word, n in counts.items()})


def train_bpe(word_counts, n_words):
    """Byte-pair encoding (Sennrich et al. 2016) on bytes: -> {bytes: rank} with n_words entries, the 256 bytes first.

    Repeatedly the most frequent pair of neighbouring tokens becomes a token (a tie: the pair of lower ids). The pair
    counts are kept up to date, so that a merge costs only the words in which its pair occurs.
    """
    tokens = [bytes([i]) for i in range(256)]
    words = [(list(word), n) for word, n in word_counts.items() if n > 1]  # a word seen once says nothing of frequency
    pair_counts, found_in = Counter(), defaultdict(set)
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += n
            found_in[pair].add(i)
    heap = [(-n, pair) for pair, n in pair_counts.items()]
    heapq.heapify(heap)
    while len(tokens) < n_words and heap:
        n, pair = heapq.heappop(heap)
        if n != -pair_counts[pair]:  # an outdated entry: the pair's present count has an entry of its own
            continue
        new, changed = len(tokens), set()
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for i in found_in.pop(pair):
            word, n = words[i]
            for old in zip(word, word[1:]):
                pair_counts[old] -= n
                changed.add(old)
            j = 0
            while j < len(word) - 1:
                if (word[j], word[j + 1]) == pair:
                    word[j:j + 2] = [new]
                j += 1
            for now in zip(word, word[1:]):
                pair_counts[now] += n
                found_in[now].add(i)
                changed.add(now)
        for each in changed:
            if pair_counts[each] > 0:
                heapq.heappush(heap, (-pair_counts[each], each))
    return {token: rank for rank, token in enumerate(tokens)}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Learn a vocabulary from text.")
    parser.add_argument("--source", nargs="+", required=True, help="files or globs: .jsonl, .jsonl.gz, .txt")
    parser.add_argument("--vocab_size", type=int, default=16384, help="tokens in all, the 8 special ones included")
    parser.add_argument("--out", required=True, help="where to write the vocabulary, for example my.tiktoken")
    args = parser.parse_args(argv)
    n_words = args.vocab_size - len(SPECIAL_TOKENS)
    if not 256 <= n_words <= 2**16 - len(SPECIAL_TOKENS):  # token files are uint16
        raise SystemExit(f"--vocab_size={args.vocab_size}: must lie between 264 and 65536")
    from data.files import find_files, read_documents, report_skipped
    from data.tokenfile import write_atomically
    start, skipped = time.time(), Counter()
    word_counts = count_words(read_documents(find_files(args.source), skipped))
    report_skipped(skipped)
    print(f"{word_counts.total():,} words, {len(word_counts):,} different, counted in {time.time() - start:.0f} s")
    start = time.time()
    ranks = train_bpe(word_counts, n_words)
    if len(ranks) < n_words:
        raise SystemExit(f"--vocab_size={args.vocab_size}: the text yields only {len(ranks) + len(SPECIAL_TOKENS)}")
    lines = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    write_atomically(args.out, lines.encode())
    print(f"{len(ranks) - 256:,} merges learned in {time.time() - start:.0f} s; wrote {args.out}")


if __name__ == "__main__":
    main()
