/* What must hold of any Dataset that a reader accepts, and of any message with which one refuses.
 */
#ifndef PEFT_FUZZ_CHECK_DATASET_H
#define PEFT_FUZZ_CHECK_DATASET_H

#include <stdlib.h>
#include <string.h>

#include "../../runtime/text/dataset.h"

static inline void require(bool ok) {
    if (!ok) abort();
}

static inline void check_message(const PeftError *err) {
    require(err->msg[0]);
    for (const char *p = err->msg; *p; p++) require((unsigned char)*p >= 0x20 && *p != 0x7f);
}

static inline char *copy_bytes(const uint8_t *data, size_t n) {
    char *copy = malloc(n + 1);
    require(copy);
    if (n) memcpy(copy, data, n);
    copy[n] = '\0';
    return copy;
}

static inline WordPiece *tiny_vocabulary(void) {
    static const char tokens[] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nab\n##a\n##b\n##ab\n.\n"
                                 "\xC3\x9F\n##\xC3\xB8\n\xE4\xB8\xAD\n##\xF0\x9D\x85\xA5\n";
    PeftError err = {0};
    WordPiece *wp = wordpiece_parse("tiny", copy_bytes((const uint8_t *)tokens, sizeof tokens - 1),
                                    sizeof tokens - 1, &err);
    require(wp);
    return wp;
}

static inline void check_rows(const Dataset *ds) {
    require(ds->n > 0 && ds->n <= DATASET_MAX_ROWS && ds->text_at[0] == 0);
    int32_t largest = -1;
    for (int32_t i = 0; i < ds->n; i++) {
        require(strlen(dataset_text(ds, i)) == dataset_text_len(ds, i));
        require(ds->sample[i] == i);
        if (!ds->label) continue;
        require(ds->label[i] >= 0 && ds->label[i] <= DATASET_MAX_LABEL);
        if (ds->label[i] > largest) largest = ds->label[i];
    }
    require(ds->classes == largest + 1);
}

static inline void check_tokens(Dataset *ds, const WordPiece *wp, int max_len) {
    PeftError err = {0};
    require(dataset_tokenize(ds, wp, max_len, &err));
    require(ds->offsets[0] == 0 && ds->truncated <= ds->n && ds->invalid_utf8 <= ds->n);
    for (int32_t i = 0; i < ds->n; i++) {
        int32_t len = ds->offsets[i + 1] - ds->offsets[i];
        require(len >= 2 && len <= max_len);
        require(ds->tokens[ds->offsets[i]] == wordpiece_special(wp, SPECIAL_CLS));
        require(ds->tokens[ds->offsets[i + 1] - 1] == wordpiece_special(wp, SPECIAL_SEP));
    }
}

#endif
