/* BERT's normaliser and pre-tokeniser in one pass over the bytes: from a text to its words.
 *
 * In the tokenizer's order: control characters and U+FFFD are removed, white space is one kind of
 * separator, ideographs are set apart, the rest is decomposed (NFD), its accents are removed and it
 * is lower-cased; then each punctuation character is a word of its own. A byte that is not part of
 * valid UTF-8 counts as U+FFFD. Words come in text order, never empty, never allocated. */
#ifndef PEFT_PRETOKENIZE_H
#define PEFT_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WORD_MAX_CHARS = 100, WORD_MAX_BYTES = 4 * WORD_MAX_CHARS };

typedef struct Word {
    const uint8_t *bytes; /* normalised UTF-8, valid until the next call */
    int len;              /* in bytes, 1..WORD_MAX_BYTES */
    bool too_long;        /* over WORD_MAX_CHARS code points: bytes hold its beginning only */
} Word;

typedef struct WordReader {
    const uint8_t *at, *end; /* what is left of the text */
    uint8_t bytes[WORD_MAX_BYTES];
    int len;     /* of the word being built, in bytes */
    int chars;   /* its code points, at most WORD_MAX_CHARS */
    int settled; /* bytes that no mark may move into any more */
    bool too_long;
} WordReader;

void words_open(WordReader *r, const char *text, size_t len);

/* The next word; false at the end of the text. */
bool words_next(WordReader *r, Word *word);

#endif
