#!/usr/bin/env python3
"""Reference values for runtime/text, from transformers' fast BERT tokenizer and from torch.

    python tests/golden/make_tokenizer.py --vocab BASE/vocab.txt [--data DIR] [--utf8proc LIB]...

Writes runtime/text/bert_unicode.inc and tests/golden/tokenizer/:
    vocab.txt       a small vocabulary cut from the real one, so that the tests need no download
    cases.tsv       max_ids, text in hex, ids under the small vocabulary, hash of those under the real one,
                    hash of the words
    codepoints.txt  for each 1,024 code points the hash of the words that three contexts give
    corpora.txt     per data file: rows, hash of the texts; ids and their hash at two lengths
    torch_rng.txt   permutations and uniform numbers of torch's CPU generator, on a processor with AVX2
Needs torch, transformers and libutf8proc. bert_unicode.inc pins every code point on which one of the
given builds of libutf8proc (default: the system's) differs from the tokenizer. Made with the versions
that the files name; a rerun with those gives the same bytes.
"""
import argparse
import csv
import ctypes
import gzip
import random
import tempfile
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import BertTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/tokenizer"
INC = ROOT / "runtime/text/bert_unicode.inc"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
MARK_216, MARK_226 = "\U0001d165", "\U0001d16d"  # spacing marks: kept, with these combining classes
FNV_OFFSET, FNV_PRIME, MASK64 = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def fnv(values, h=FNV_OFFSET):
    """FNV-1a over whole values (bytes, or ids as one unit each).""",
    for v in values:
        h = (h ^ v) * FNV_PRIME & MASK64
    return h


# ---- code points ----


class Tables:
    """One build of libutf8proc, asked as bert_unicode.c asks it.""",

    CATEGORIES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co".split()
    COMPOSED_STABLE = 1 << 4 | 1 << 1

    class Property(ctypes.Structure):
        _fields_ = [("category", ctypes.c_int16), ("combining", ctypes.c_int16)]

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.utf8proc_version.restype = ctypes.c_char_p
        self.lib.utf8proc_get_property.restype = ctypes.POINTER(self.Property)
        self.lib.utf8proc_decompose_char.restype = ctypes.c_ssize_t
        self.lib.utf8proc_decompose_char.argtypes = [
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        self.version = self.lib.utf8proc_version().decode()
        self.buffer = (ctypes.c_int32 * 32)()

    def category(self, c):
        return self.CATEGORIES[self.lib.utf8proc_category(c)]

    def combining(self, c):
        return self.lib.utf8proc_get_property(c).contents.combining

    def lower(self, c):
        return self.lib.utf8proc_tolower(c)

    def decomposed(self, c):
        n = self.lib.utf8proc_decompose_char(c, self.buffer, 32, self.COMPOSED_STABLE, None)
        return list(self.buffer[:n])


def kept(tables, c):
    """A caseless character that this build leaves alone, and that no later build may see otherwise.""",
    category = tables.category(c)
    return (category[0] not in "CPZ" and category != "Mn" and tables.decomposed(c) == [c] and tables.lower(c) == c)


def reorders(normalize, char):
    """Whether the tokenizer moves this character among combining marks.""",
    return normalize("a" + char + MARK_216) == "a" + MARK_216 + char or \
        normalize("a" + MARK_226 + char) == "a" + char + MARK_226


def pins(tok, builds):
    """{code point: its pin}, the code points that need theirs, {code point: delta} where case differs.""",
    normalize, split = tok.normalizer.normalize_str, tok.pre_tokenizer.pre_tokenize_str
    kinds, wanted, cases = {}, set(), {}
    for c in range(0x80, 0x110000):
        if 0xD800 <= c < 0xE000 or c == 0xFFFD:
            continue
        char, normal = chr(c), normalize("a" + chr(c) + "b")
        if normal == "a" + char + "b" and len(split(normal)) == 1:
            moves = reorders(normalize, char)
            kinds[c] = "PIN_PLAIN_MARK" if moves else "PIN_PLAIN"
            if not all(kept(t, c) and (t.combining(c) != 0) == moves for t in builds):
                wanted.add(c)
        elif normal == "a" + char + "b" and any(t.category(c)[0] != "P" for t in builds):
            kinds[c] = "PIN_PUNCTUATION"
            wanted.add(c)
        elif normal == "ab" and any(t.category(c) not in ("Mn", "Cc", "Cf", "Co") for t in builds):
            kinds[c] = "PIN_ACCENT"
            wanted.add(c)
        elif len(normal) == 3 and normal[1] != char and all(t.decomposed(c) == [c] for t in builds):
            if any(t.category(c)[0] != "Z" and t.lower(c) != ord(normal[1]) for t in builds):
                cases[c] = ord(normal[1]) - c
    return kinds, wanted, cases


def pinned_ranges(kinds, wanted):
    """Ranges as long as possible: code points of the same kind between two wanted ones join them.""",
    ranges, open_kind = [], None
    for c in range(0x110000):
        if kinds.get(c) != open_kind:
            open_kind = None
        if c in wanted:
            if open_kind:
                ranges[-1][1] = c
            else:
                ranges.append([c, c, kinds[c]])
                open_kind = kinds[c]
    return ranges


def case_ranges(cases):
    ranges = []
    for c, delta in sorted(cases.items()):
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == delta:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, delta])
    return ranges


def write_table(lines, name, rows):
    lines.append(f"static const {name} = {{")
    line = "   "
    for row in rows:
        if len(line) + len(row) > 99:
            lines.append(line)
            line = "   "
        line += " " + row
    lines += [line, "};"]


def write_inc(tok, builds):
    kinds, wanted, cases = pins(tok, builds)
    lines = [
        "/* Made by tests/golden/make_tokenizer.py from tokenizers " + tokenizers.__version__ + " against utf8proc "
        + ", ".join(t.version for t in builds) + ";",
        " * do not edit. Code points that the tokenizer sees otherwise than utf8proc, or as unassigned. */",
        "/* clang-format off */"]
    write_table(lines, "PinnedRange pinned_ranges[]",
                [f"{{0x{a:X}, 0x{b:X}, {k}}}," for a, b, k in pinned_ranges(kinds, wanted)])
    write_table(lines, "CaseRange case_ranges[]",
                [f"{{0x{a:X}, 0x{b:X}, {d}}}," for a, b, d in case_ranges(cases)])
    INC.write_text("\n".join(lines + ["/* clang-format on */", ""]))


def words_hash(tok, text, h=FNV_OFFSET):
    """Words too long to be looked up count as one byte that no word contains.""",
    for word, _ in tok.pre_tokenizer.pre_tokenize_str(tok.normalizer.normalize_str(text)):
        h = fnv((word.encode() if len(word) <= 100 else b"\x1d") + b"\x1f", h)
    return h


def write_codepoints(tok):
    lines, h, block = [], FNV_OFFSET, 0
    for c in CODE_POINTS + [0x110000]:
        if c >> 10 != block:
            lines.append(f"{block << 10:x} {h:016x}")
            h, block = FNV_OFFSET, c >> 10
        if c == 0x110000:
            break
        for text in ("a" + chr(c) + "b", chr(c), " " + chr(c) + " "):
            h = fnv(b"\x1e", words_hash(tok, text, h))
    (OUT / "codepoints.txt").write_text("\n".join(lines) + "\n")


# ---- texts ----

HAND_WRITTEN = [
    "", " ", "\t\r\n", "a", "Hello, World!", "don't can't won't o'clock", "U.S.A. e.g. i.e.", "...", "?!?!",
    "a--b---c",
    "it 's a charming and often affecting journey . ", "unaffable", "electroencephalographically",
    "antidisestablishmentarianism",
    "The quick brown fox jumps over the lazy dog", "HELLO hello HeLLo", "1234567890", "3.14159 1,000,000 $9.99 50%",
    "10/12/2024 12:34:56",
    "https://www.example.org/a/b?c=d&e=f#g", "user.name+tag@example.co.uk", "#hashtag @mention", "C++ C# F# .NET",
    "a_b_c snake_case camelCase",
    "<html><body>&nbsp;</body></html>", "(a)[b]{c}", "`code` ~tilde~ ^caret^ |pipe|", "\\ backslash / slash",
    "\"quoted\" 'single'",
    # accents, composed and decomposed
    "café cafe\u0301 CAFÉ", "naïve façade coöperate", "Ångström Å A\u030a", "Zürich Köln Müller",
    "Crème Brûlée à l'été", "ñ ç ø å æ œ ß ð þ ł đ",
    "Straße STRASSE ẞ", "İstanbul ISTANBUL ıstanbul i\u0307", "ǅ ǆ Ǆ ǈ ǋ ǲ", "ﬁ ﬂ ﬀ ﬃ ﬄ ﬅ ﬆ", "Việt Nam tiếng Việt",
    "Čeština Žluťoučký kůň",
    "ĳ Ĳ ŀ ŉ ſ ǰ", "a\u0300\u0301\u0302\u0303\u0304b", "\u0301abc", "e\u0301\u0323 e\u0323\u0301",
    "Z\u0351\u036b\u0343a\u0363l\u0356g\u034fo",
    "K\u212a \u212b \u2126 \u2160 \u24b6 \u2100", "\u1e9b\u0323 \u1e69 \u0073\u0323\u0307 \u0073\u0307\u0323",
    # Greek, Cyrillic, Armenian, Georgian
    "Σίσυφος ΣΊΣΥΦΟΣ σς Σ", "ΟΔΥΣΣΕΥΣ ὈΔΥΣΣΕΎΣ", "ᾳ ᾼ ᾷ ἄ ὕ ῥ ΐ", "Привет, МИР! ёж Ёж йод Йод", "Ђорђе Њ Љ ѝ ї Ї",
    "Հայաստան և ԵՒ", "საქართველო ᲡᲐᲥ", "\u037e \u0387 \u1fef \u1ffd",
    # scripts written from right to left, and their controls
    "שָׁלוֹם שלום", "مرحبا بالعالم", "مَرْحَبًا ٱلْعَالَم", "\u200fabc\u200e \u202eabc\u202c \u2066x\u2069",
    "السّلام ١٢٣٤ ۱۲۳", "ﻻ ﷲ ﷺ",
    # India, South-East Asia, Africa
    "हिन्दी में", "क्षत्रिय ज्ञान ड़ क़", "தமிழ் கொ கௌ", "বাংলা কো কৌ", "ಕನ್ನಡ ಕೊ", "മലയാളം", "ภาษาไทย น้ำ",
    "ພາສາລາວ", "བོད་ཡིག", "မြန်မာ", "ភាសាខ្មែរ", "አማርኛ፡ሰላም።",
    # ideographs, kana, hangul
    "我爱北京天安门", "中文abc中文", "日本語テキスト カタカナ ひらがな", "ﾊﾝｶｸ ガギグ ガ", "한국어 텍스트", "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "각 가\u11a8",
    "㐀㐁 𠀀𠀁 𪜀 𫝀 𫠠\U0002b820x\U0002b91fy \U0002b920z \U0002ceb0w \U00030000v",
    "豈更車 \uf900 \ufa0e \U0002f800 \U0002fa1d", "〇 々 〆 ㈱ ㍻ ㎏", "。、「」・，！？", "ＡＢＣ ａｂｃ １２３",
    # emoji
    "I ❤️ you 😀😃", "👨‍👩‍👧‍👦 family", "👍🏽 🏳️‍🌈 🇩🇪🇫🇷", "☺ ☹ ♥ ★ ☆ ♫", "1️⃣ #️⃣ ©️ ™", "🧑\u200d🚀 \U0001fae0 \U0001f979",
    # spaces and characters that are removed
    "a\u00a0b\u1680c\u2000d\u2009e\u200af\u202fg\u205fh\u3000i", "a\u2028b\u2029c",
    "a\u200bb\u200cc\u200dd\ufeffe\u2060f", "a\x00b\x01c\x1fd\x7fe\x85f\x9fg",
    "a\x0bb\x0cc\x1cd\x1de", "soft\u00adhyphen", "\ufeffBOM", "a\ufffdb \ufffd",
    "\ue000x\uf8ffy\U000f0000z\U0010fffdw", "\ufdd0a\uffffb\U0001ffffc\U0010ffffd",
    "\u180ea\u180fb", "a\U000e0001b\U000e0041c\U000e0100d", "\u0378\u0379 \u0870\u0890x",
    "\u1734a \u1715b \U0001171ec",
    # marks that stay, and their order
    "\U0001d165\U0001d16d \U0001d16d\U0001d165", "a\U0001d16d\u0301\U0001d165", "a\U0001d16d\u0903\U0001d165",
    "a\U0001d16d\u200d\U0001d165", "a\U0001d16d\u093e\U0001d165", "a\U0001d16d\u0941\U0001d165",
    "a\U0001d16d\U0001e945\U0001d165",
    "a\U0001d16d\U00010f46\U0001d165 a\U0001d16d\u1df6\U0001d165 a\U0001d16d\u1dfb\U0001d165",
    "\u302e\u302f\u302a \u302f\U0001d165\u302e", "!\u302e\U0001d165", "中\u302e\U0001d165",
    "\u0915\u094d\u0937\u093f \u0995\u09cb \u09c7\u09be", "\U0001e944\U0001e94a\U0001e900\U0001e94a\U0001e944",
    # punctuation and symbols beyond ASCII
    "“quoted” ‘single’ „low‟ «guillemets»", "en–dash em—dash figure‒ bar― minus−", "¡Hola! ¿Qué?", "a…b a‥b",
    "§ ¶ † ‡ • ‰ ′ ″", "€ £ ¥ ¢ ₹ ₽ ₿", "± × ÷ ≠ ≤ ≥ ≮ ∞ √ ∑ ∫", "→ ← ↑ ↓ ⇒", "½ ¼ ² ³ ₁ ⁿ º ª",
    "\u2e43\u2e4f\u2e52 \u166d \U000111c9 \u061d", "\u00b4 \u00a8 \u00b8 \u02c6 \u02dc \u0384",
    # special tokens in the text
    "[MASK]", "a [MASK] b", "a[MASK]b", "[CLS][SEP][PAD][UNK][MASK]", "[mask] [Mask] [cls]", "[MASK [MASK]] [[MASK]]",
    "[ MASK ]", "x[SEP]y[SEP]z", "[MA\x00SK] [MA\u00adSK]", "[unused1] [UNK]unk",
    "é[MASK]\u0301x", "[", "[[[", "[PAD", "[SEP]\u302e\U0001d165", "##ing un##able ## #",
    # words at and beyond the limit of 100 characters, and words that cannot be spelled
    "a" * 99, "a" * 100, "a" * 101, "ab" * 500, "é" * 100, "é" * 101, "e\u0301" * 100, "e\u0301" * 101, "ạ́" * 101,
    "\U00010400" * 100, "\U00010400" * 101, "가" * 33, "가" * 34, "x" * 100 + " y " + "x" * 101 + "!",
    "\U0001d165" * 150,
    "\U0001f600" * 3 + "abc", "abc\u4e00\U0001f600def", "qqqqq\u0f00zz", "The \u10ffff end",
]
INVALID = [
    b"\xff", b"a\xffb", b"\xc3", b"caf\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82x", b"\xe2(\xa1", b"\xf0\x9f\x98",
    b"\xf0\x9f\x98 x", b"\xf0\x28\x8c\xbc", b"\xed\xa0\x80", b"a\xed\xb0\x80b", b"\xc0\x80", b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\x80\x81 abc", b"\xef\xbf\xbe", b"[MA\xffSK]", b"[MASK]\xff[SEP]",
    b"caf\xe9 au lait", b"\xfe\xff\x00a", b"e\xcc\x81\xcc", b"\xe4\xb8\xad\xe4\xb8",
]
POOL = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFXYZ", "0123456789", " \t\u00a0\u3000", "!?.,-'[]#", "éÀñÅßİıſ",
    "\u0300\u0301\u0323\u0327\u0345\u0307", "αΣςΩἄ", "БйЁї", "中文〇豈\U0002b820\U00020000", "가각힣\u1100\u1161",
    "かガハ\u3099",
    "\U0001d165\U0001d16d\u302e\u302f\U00016ff0\U0001e944\U0001e94a\u1dfb\u08d4\U00011442",
    "\u093e\u0941\u094d\u1b44\u0bca\u0dde", "\u200d\u00ad\ufe0f\u0000\ufffd", "\U0001f600\U0001f3fd\u2764",
    "≠≮\u037e\u1fef\u2e43\u166d", "\u0378\U0001611e\ua7cb\U00010d50\U00016ea0\U000105c9",
]
SPECIAL = ["[MASK]", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "##"]


def random_text(rng):
    marks = [POOL[6], POOL[12], POOL[13]]
    pools = marks if rng.random() < 0.25 else rng.sample(POOL, rng.randint(1, 5)) + ["abcdefghijklmnopqrstuvwxyz "]
    text = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40)))
    if rng.random() < 0.3:
        cut = rng.randint(0, len(text))
        text = text[:cut] + rng.choice(SPECIAL) + text[cut:]
    return text


def cases():
    rng = random.Random(20240607)
    texts = [t.encode() for t in HAND_WRITTEN] + INVALID + [random_text(rng).encode() for _ in range(400)]
    for text in texts:
        yield 512, text
    for n in (2, 3, 4, 7, 16):
        for text in ("The unaffable electroencephalographically naïve fox [MASK] " + "b" * 101 + " jumps!", "", "fox",
                     "qq" * 49 + "\u0f00 fox"):
            yield n, text.encode()


def encode(tok, text, max_ids):
    return tok(text.decode("utf-8", "replace"), truncation=True, max_length=max_ids)["input_ids"]


def small_vocab(real, folder):
    """Characters and common words of the real vocabulary, and what the cases need, in its order.""",
    by_id = sorted(real.get_vocab(), key=real.get_vocab().get)
    keep = {t for t in by_id if len(t.removeprefix("##")) == 1 and ord(t[-1]) < 0x3000} | set(real.all_special_tokens)
    for max_ids, text in cases():
        keep |= set(real.convert_ids_to_tokens(encode(real, text, max_ids)))
    keep |= set(by_id[1996:2400])
    path = folder / "vocab.txt"
    path.write_text("".join(t + "\n" for t in by_id if t in keep))
    return BertTokenizerFast(str(path))


def write_cases(real, small):
    lines = []
    for max_ids, text in cases():
        ids = " ".join(map(str, encode(small, text, max_ids)))
        words = words_hash(real.backend_tokenizer, text.decode("utf-8", "replace"))
        real_ids = fnv(encode(real, text, max_ids))
        lines.append(f"{max_ids}\t{text.hex() or '-'}\t{ids}\t{real_ids:016x}\t{words:016x}")
    (OUT / "cases.tsv").write_text("\n".join(lines) + "\n")


# ---- data files ----


def tsv_texts(path):
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t")[0] for line in lines if line]


def csv_texts(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [f"{title} {description}".strip(" \t\r\n") for _, title, description in csv.reader(file)]


def write_corpora(real, data):
    lines = []
    for name, read in (("sst2/train.tsv", tsv_texts), ("sst2/dev.tsv", tsv_texts),
                       ("agnews/train.csv.gz", csv_texts), ("agnews/test.csv.gz", csv_texts)):
        texts = read(data / name)
        text_hash = fnv(b for t in texts for b in t.encode() + b"\x00")
        line = f"{name} {len(texts)} {text_hash:016x}"
        for max_ids in (512, 24):
            rows = real(texts, truncation=True, max_length=max_ids)["input_ids"]
            line += f" {max_ids} {sum(map(len, rows))} {fnv(i for row in rows for i in row):016x}"
        lines.append(line)
    (OUT / "corpora.txt").write_text("\n".join(lines) + "\n")


# ---- torch's generator ----


def write_torch_rng():
    lines = [f"# torch {torch.__version__}"]
    for seed, n in ((42, 1), (42, 2), (42, 10), (42, 67349), (43, 67349), (44, 67349), (42, 66297), (42, 120000),
                    (2**40 + 5, 1000)):
        perm = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
        lines.append(f"randperm {seed} {n} {' '.join(map(str, perm[:8]))} hash {fnv(perm):016x}")
    b = 768**-0.5  # the second row is the LoRA A of bert-base's first query: two draws of 6,144 go before it
    for seed, skip, n, low, high in ((42, 0, 1000, 0.0, 1.0), (42, 12288, 6144, -b, b), (7, 624, 5000, -0.3, 0.7)):
        g = torch.Generator().manual_seed(seed)
        torch.empty(skip).uniform_(generator=g)
        values = torch.empty(n).uniform_(low, high, generator=g)
        bits = [b & 0xFFFFFFFF for b in values.view(torch.int32).tolist()]
        first = " ".join(f"{b:08x}" for b in bits[:4])
        lines.append(f"uniform {seed} {skip} {n} {low!r} {high!r} {first} hash {fnv(bits):016x}")
    (OUT / "torch_rng.txt").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", required=True, type=Path, help="vocab.txt of bert-base-uncased")
    parser.add_argument("--data", type=Path, help="folder with sst2/ and agnews/; without it corpora.txt stays")
    parser.add_argument("--utf8proc", action="append", help="a build of libutf8proc; repeatable")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.set_verbosity_error()
    real = BertTokenizerFast(str(args.vocab))
    write_inc(real.backend_tokenizer, [Tables(p) for p in args.utf8proc or ["libutf8proc.so.2"]])
    write_codepoints(real.backend_tokenizer)
    write_cases(real, small_vocab(real, OUT))
    if args.data:
        write_corpora(real, args.data)
    write_torch_rng()


if __name__ == "__main__":
    main()
