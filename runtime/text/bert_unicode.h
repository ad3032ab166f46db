/* Unicode as the fast tokenizer of bert-base-uncased sees it.
 *
 * Categories, canonical decompositions, combining classes and case mappings come from utf8proc. The
 * tokenizer's own tables are of other versions (categories of Unicode 8, decompositions of 9, case
 * mappings of 17), so bert_unicode.inc, generated from the tokenizer itself by
 * tests/golden/make_tokenizer.py, lists every code point on which they differ and pins all that
 * were unassigned then. What comes out therefore does not depend on the version of utf8proc: the
 * invariant that test_wordpiece checks over all of U+0000..U+10FFFF. */
#ifndef PEFT_BERT_UNICODE_H
#define PEFT_BERT_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

typedef enum CharClass {
    CHAR_WORD,     /* part of a word */
    CHAR_ISOLATED, /* punctuation: a word of its own */
    CHAR_SPACE,    /* separates words */
    CHAR_CONTROL,  /* removed before decomposition: control, format, private use, NUL, U+FFFD */
    CHAR_ACCENT,   /* non-spacing mark, removed after decomposition */
} CharClass;

enum { CHAR_MAX_DECOMPOSED = 4 }; /* the longest canonical decomposition, in code points */

CharClass char_class(int32_t cp);

/* An ideograph, which makes a word of its own whatever its class. */
bool char_is_cjk(int32_t cp);

/* Canonical decomposition (NFD, not reordered) into out[CHAR_MAX_DECOMPOSED]; the number written.
 */
int char_decompose(int32_t cp, int32_t *out);

/* Canonical combining class; 0 for a starter, which marks are never moved across. */
int char_combining(int32_t cp);

int32_t char_lower(int32_t cp);

#endif
