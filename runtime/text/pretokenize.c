/* One code point at a time: ASCII through a table, everything else through bert_unicode.
 * A code point that ends a word is left in the text until that word has been handed out, so the
 * reader's only state is the word being built. This is sound because no canonical decomposition
 * mixes punctuation or white space with anything that stays. */
#include "pretokenize.h"

#include <string.h>
#include <utf8proc.h>

#include "bert_unicode.h"

/* ASCII at a glance: the lower-cased character for part of a word, else one of these. */
enum { ASCII_REMOVED = 1, ASCII_SPACE = 2, ASCII_ISOLATED = 3, NOT_ASCII = 0 };

/* clang-format off */
static const uint8_t ascii[256] = {
    1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 3, 3, 3, 3, 3, 3,
    3, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o',
    'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y', 'z', 3, 3, 3, 3, 3,
    3, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o',
    'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y', 'z', 3, 3, 3, 3, 1,
};
/* clang-format on */

void words_open(WordReader *r, const char *text, size_t len) {
    r->at = (const uint8_t *)text;
    r->end = r->at + len;
}

/* Where a mark of combining class ccc goes: behind everything of a class up to ccc, starters (class
 * 0) included. */
static int mark_position(const WordReader *r, int ccc) {
    int at = r->len;
    while (at > r->settled) {
        int before = at - 1;
        int32_t cp;
        while ((r->bytes[before] & 0xC0) == 0x80) before--;
        utf8proc_iterate(r->bytes + before, at - before, &cp);
        if (char_combining(cp) <= ccc) break;
        at = before;
    }
    return at;
}

static void append_part(WordReader *r, int32_t cp) {
    if (char_class(cp) == CHAR_ACCENT) {
        if (char_combining(cp) == 0)
            r->settled = r->len; /* a starter: though removed, marks do not cross it */
        return;
    }
    if (r->chars == WORD_MAX_CHARS) {
        r->too_long = true;
        return;
    }
    uint8_t utf8[4];
    int ccc = char_combining(cp);
    int n = (int)utf8proc_encode_char(char_lower(cp), utf8);
    int at = ccc ? mark_position(r, ccc) : r->len;
    memmove(r->bytes + at + n, r->bytes + at, r->len - at);
    memcpy(r->bytes + at, utf8, n);
    r->len += n;
    r->chars++;
}

/* Takes one code point beyond ASCII into the word, one that is CHAR_ISOLATED only when no word is
 * begun. CHAR_SPACE and CHAR_CONTROL have no effect. */
static CharClass append_char(WordReader *r, int32_t cp) {
    CharClass class = char_class(cp);
    if (class == CHAR_CONTROL || class == CHAR_SPACE) return class;
    int32_t part[CHAR_MAX_DECOMPOSED];
    int n = char_decompose(cp, part);
    if (char_is_cjk(cp) || char_class(part[0]) == CHAR_ISOLATED) {
        if (r->len == 0) append_part(r, part[0]);
        return CHAR_ISOLATED;
    }
    for (int i = 0; i < n; i++) append_part(r, part[i]);
    return CHAR_WORD;
}

/* Takes the ASCII letters and digits at the cursor. */
static void append_ascii(WordReader *r) {
    for (; r->at < r->end && ascii[*r->at] > ASCII_ISOLATED; r->at++) {
        if (r->chars == WORD_MAX_CHARS) {
            r->too_long = true;
            continue;
        }
        r->bytes[r->len++] = ascii[*r->at];
        r->chars++;
    }
}

/* Takes what stands at the cursor, and says what it was; the cursor stays before a code point that
 * ends a word already begun. */
static CharClass take(WordReader *r) {
    CharClass class;
    int32_t cp = 0;
    utf8proc_ssize_t n = 1;
    bool begun = r->len > 0;
    switch (ascii[*r->at]) {
    case ASCII_REMOVED: class = CHAR_CONTROL; break;
    case ASCII_SPACE: class = CHAR_SPACE; break;
    case ASCII_ISOLATED:
        class = CHAR_ISOLATED;
        if (!begun) r->bytes[r->len++] = *r->at;
        break;
    case NOT_ASCII:
        n = utf8proc_iterate(r->at, r->end - r->at, &cp);
        class = n > 0 ? append_char(r, cp) : CHAR_CONTROL;
        if (n <= 0) n = 1;
        break;
    default: append_ascii(r); return CHAR_WORD;
    }
    if (class != CHAR_ISOLATED || !begun) r->at += n;
    return class;
}

bool words_next(WordReader *r, Word *word) {
    r->len = r->chars = r->settled = 0;
    r->too_long = false;
    while (r->at < r->end) {
        CharClass class = take(r);
        if (class == CHAR_ISOLATED || (class == CHAR_SPACE && r->len > 0)) break;
    }
    *word = (Word){.bytes = r->bytes, .len = r->len, .too_long = r->too_long};
    return r->len > 0;
}
