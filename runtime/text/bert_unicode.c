/* The five questions that BERT's normaliser asks about a code point, answered from utf8proc and,
 * for the code points listed in bert_unicode.inc, as the tokenizer's older tables answer them. Both
 * tables of the .inc file are sorted and their ranges disjoint: the searches rely on it. */
#include "bert_unicode.h"

#include <stddef.h>
#include <utf8proc.h>

typedef enum Pin {
    PIN_NONE,
    PIN_PLAIN,       /* an ordinary starter: no mark, punctuation, format or decomposition */
    PIN_PLAIN_MARK,  /* kept like a letter, but reordered among marks */
    PIN_ACCENT,      /* still a non-spacing mark */
    PIN_PUNCTUATION, /* still punctuation */
} Pin;

typedef struct PinnedRange {
    int32_t first, last;
    Pin pin;
} PinnedRange;

typedef struct CaseRange {
    int32_t first, last, delta;
} CaseRange;

#include "bert_unicode.inc"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static Pin pin_of(int32_t cp) {
    size_t lo = 0, hi = COUNT(pinned_ranges);
    if (cp < pinned_ranges[0].first) return PIN_NONE;
    while (hi - lo > 1) { /* pinned_ranges[lo].first <= cp < pinned_ranges[hi].first */
        size_t mid = lo + (hi - lo) / 2;
        if (cp < pinned_ranges[mid].first)
            hi = mid;
        else
            lo = mid;
    }
    return cp <= pinned_ranges[lo].last ? pinned_ranges[lo].pin : PIN_NONE;
}

static bool is_ascii_punctuation(int32_t cp) {
    return (cp >= 0x21 && cp <= 0x2F) || (cp >= 0x3A && cp <= 0x40) || (cp >= 0x5B && cp <= 0x60) ||
           (cp >= 0x7B && cp <= 0x7E);
}

static CharClass category_class(int32_t cp) {
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO: return CHAR_CONTROL;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return CHAR_SPACE;
    case UTF8PROC_CATEGORY_MN: return CHAR_ACCENT;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return CHAR_ISOLATED;
    default: return CHAR_WORD;
    }
}

CharClass char_class(int32_t cp) {
    if (cp == '\t' || cp == '\n' || cp == '\r') return CHAR_SPACE;
    if (cp == 0xFFFD) return CHAR_CONTROL;
    if (is_ascii_punctuation(cp)) return CHAR_ISOLATED;
    switch (pin_of(cp)) {
    case PIN_PLAIN:
    case PIN_PLAIN_MARK: return CHAR_WORD;
    case PIN_ACCENT: return CHAR_ACCENT;
    case PIN_PUNCTUATION: return CHAR_ISOLATED;
    case PIN_NONE: break;
    }
    return category_class(cp);
}

bool char_is_cjk(int32_t cp) {
    return (cp >= 0x4E00 && cp <= 0x9FFF) || (cp >= 0x3400 && cp <= 0x4DBF) ||
           (cp >= 0xF900 && cp <= 0xFAFF) || (cp >= 0x20000 && cp <= 0x2A6DF) ||
           (cp >= 0x2A700 && cp <= 0x2B73F) || (cp >= 0x2B740 && cp <= 0x2B81F) ||
           (cp >= 0x2B920 && cp <= 0x2CEAF) || (cp >= 0x2F800 && cp <= 0x2FA1F);
}

int char_decompose(int32_t cp, int32_t *out) {
    Pin pin = pin_of(cp);
    if (pin != PIN_PLAIN && pin != PIN_PLAIN_MARK) {
        utf8proc_ssize_t n = utf8proc_decompose_char(cp, out, CHAR_MAX_DECOMPOSED,
                                                     UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, NULL);
        if (n > 0 && n <= CHAR_MAX_DECOMPOSED) return (int)n;
    }
    out[0] = cp;
    return 1;
}

int char_combining(int32_t cp) {
    return pin_of(cp) == PIN_PLAIN ? 0 : utf8proc_get_property(cp)->combining_class;
}

int32_t char_lower(int32_t cp) {
    for (size_t i = 0; i < COUNT(case_ranges) && case_ranges[i].first <= cp; i++)
        if (cp <= case_ranges[i].last) return cp + case_ranges[i].delta;
    return utf8proc_tolower(cp);
}
