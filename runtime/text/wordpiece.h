/* WordPiece exactly as the Hugging Face fast tokenizer of bert-base-uncased.
 *
 * [PAD] [UNK] [CLS] [SEP] [MASK] in the text are taken as those tokens; what lies between them goes
 * through pretokenize.h; each word becomes the longest vocabulary entries that spell it, left to
 * right, entries inside a word being written with "##", or [UNK] if it cannot be spelled or has
 * more than WORD_MAX_CHARS characters. A WordPiece is immutable once loaded: any number of threads
 * may encode with it. */
#ifndef PEFT_WORDPIECE_H
#define PEFT_WORDPIECE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

typedef struct WordPiece WordPiece;

typedef enum SpecialToken {
    SPECIAL_PAD,
    SPECIAL_UNK,
    SPECIAL_CLS,
    SPECIAL_SEP,
    SPECIAL_MASK,
    SPECIAL_COUNT
} SpecialToken;

/* Room that holds the ids of any text of len bytes untruncated: no character yields more tokens
 * than its UTF-8 has bytes. */
#define WORDPIECE_MAX_IDS(len) ((len) + 2)

/* Reads a vocab.txt: one token a line (LF or CRLF), the id is the line number from 0. NULL for an
 * unreadable or empty file, a blank, repeated or overlong line, a NUL byte, broken UTF-8, or a
 * missing special token. */
WordPiece *wordpiece_load(const char *vocab_path, PeftError *err);

/* The same from memory; name stands for the file in messages. Takes over bytes (from malloc, with a
 * NUL at bytes[len]), also on failure. */
WordPiece *wordpiece_parse(const char *name, char *bytes, size_t len, PeftError *err);

void wordpiece_free(WordPiece *wp);

/* Writes [CLS] tokens [SEP], at most max_ids of them, to ids and returns their number. A longer
 * text loses its last tokens, never the [SEP], and sets *truncated (which may be NULL). max_ids
 * below 2 has no room for the two: nothing is written, 0 returned. Needs no NUL behind the text. */
int wordpiece_encode(const WordPiece *wp, const char *text, size_t len, int32_t *ids, int max_ids,
                     bool *truncated);

int32_t wordpiece_size(const WordPiece *wp);

/* The token of an id, "##" included; NULL for an id outside the vocabulary. */
const char *wordpiece_token(const WordPiece *wp, int32_t id);

int32_t wordpiece_special(const WordPiece *wp, SpecialToken which);
bool wordpiece_is_special(const WordPiece *wp, int32_t id);

#endif
