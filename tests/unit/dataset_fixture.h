/* What the tests of data sets and of batches share: data sets from a string, the small vocabulary
 * stored with the tests, and the hash of the golden files. */
#ifndef PEFT_TEST_DATASET_FIXTURE_H
#define PEFT_TEST_DATASET_FIXTURE_H

#include "scratch.h"

#include "../../runtime/text/dataset.h"

#define GOLDEN "tests/golden/tokenizer/"

static inline uint64_t fnv(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 0x100000001B3u;
}

static const uint64_t fnv_offset = 0xCBF29CE484222325u;

static inline Dataset *parse_bytes(const char *text, size_t len, DataFormat format,
                                   PeftError *err) {
    char *copy = malloc(len + 1);
    memcpy(copy, text, len);
    copy[len] = '\0';
    *err = (PeftError){0};
    return dataset_parse("data", copy, len, format, err);
}

static inline Dataset *parse(const char *text, DataFormat format) {
    PeftError err;
    Dataset *ds = parse_bytes(text, strlen(text), format, &err);
    assert_string_equal(err.msg, "");
    assert_non_null(ds);
    return ds;
}

static inline WordPiece *load_vocab(void) {
    PeftError err = {0};
    WordPiece *wp = wordpiece_load(GOLDEN "vocab.txt", &err);
    assert_string_equal(err.msg, "");
    return wp;
}

#endif
