/* The tokenizer against stored results of the real one (tests/golden/make_tokenizer.py), and its
 * behaviour at the edges: truncation, broken UTF-8, NUL bytes, bad vocabularies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../runtime/text/pretokenize.h"
#include "../../runtime/text/wordpiece.h"

#define GOLDEN "tests/golden/tokenizer/"

enum { MAX_TEXT = 4096, MAX_IDS = 512 };

static WordPiece *small; /* the vocabulary stored with the tests */

static FILE *open_golden(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("%s is missing; run the tests from the top folder", path);
    return file;
}

static WordPiece *load_real_vocab(void) {
    char path[1024];
    const char *data = getenv("PEFTC_SHARED");
    snprintf(path, sizeof path, "%s/vocab/bert-base-uncased/vocab.txt",
             data ? data : "../shared/data");
    FILE *file = fopen(path, "r");
    if (!file) return NULL;
    fclose(file);
    PeftError err = {0};
    WordPiece *wp = wordpiece_load(path, &err);
    assert_string_equal(err.msg, "");
    return wp;
}

static uint64_t fnv(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 0x100000001B3u;
}

static const uint64_t fnv_offset = 0xCBF29CE484222325u;

static size_t from_hex(const char *hex, char *out) {
    size_t n = 0;
    unsigned byte;
    for (; hex[0] != '-' && sscanf(hex, "%2x", &byte) == 1; hex += 2) out[n++] = (char)byte;
    return n;
}

typedef struct Case {
    int max_ids;
    char text[MAX_TEXT];
    size_t len;
    char *expected;      /* ids under the small vocabulary, in decimal */
    uint64_t real_hash;  /* of the ids under the real one */
    uint64_t words_hash; /* of the words */
} Case;

/* One line of cases.tsv. */
static bool read_case(FILE *file, Case *c) {
    static char line[16384];
    if (!fgets(line, sizeof line, file)) return false;
    char *hex = strchr(line, '\t') + 1, *ids = strchr(hex, '\t') + 1, *hash = strchr(ids, '\t') + 1;
    char *words = strchr(hash, '\t') + 1;
    ids[-1] = hash[-1] = '\0';
    c->max_ids = atoi(line);
    assert_true(strlen(hex) / 2 <= MAX_TEXT);
    c->len = from_hex(hex, c->text);
    c->expected = ids;
    c->real_hash = strtoull(hash, NULL, 16);
    c->words_hash = strtoull(words, NULL, 16);
    return true;
}

static uint64_t hash_words(uint64_t hash, const char *text, size_t len) {
    WordReader reader;
    Word word;
    words_open(&reader, text, len);
    while (words_next(&reader, &word)) {
        if (word.too_long) hash = fnv(hash, 0x1D);
        for (int i = 0; i < word.len && !word.too_long; i++) hash = fnv(hash, word.bytes[i]);
        hash = fnv(hash, 0x1F);
    }
    return hash;
}

/* A copy in a block of exactly its length, so that a sanitizer sees any read behind it. */
static int encode_exact(const WordPiece *wp, const Case *c, int32_t *ids, bool *truncated) {
    char *text = malloc(c->len ? c->len : 1);
    memcpy(text, c->text, c->len);
    int n = wordpiece_encode(wp, text, c->len, ids, c->max_ids, truncated);
    free(text);
    return n;
}

static void cases_have_the_same_words(void **state) {
    (void)state;
    FILE *file = open_golden(GOLDEN "cases.tsv");
    static Case c;
    for (int line = 1; read_case(file, &c); line++)
        if (hash_words(fnv_offset, c.text, c.len) != c.words_hash)
            fail_msg("case on line %d has other words", line);
    fclose(file);
}

static void cases_match_the_fast_tokenizer(void **state) {
    (void)state;
    FILE *file = open_golden(GOLDEN "cases.tsv");
    static Case c;
    int32_t ids[MAX_IDS];
    int count = 0;
    for (; read_case(file, &c); count++) {
        char got[MAX_IDS * 7] = "";
        int n = encode_exact(small, &c, ids, NULL), used = 0;
        for (int i = 0; i < n; i++) used += sprintf(got + used, i ? " %d" : "%d", ids[i]);
        if (strcmp(got, c.expected) != 0) print_message("case on line %d\n", count + 1);
        assert_string_equal(got, c.expected);
    }
    fclose(file);
    assert_true(count > 400);
}

static void cases_match_under_the_real_vocabulary(void **state) {
    (void)state;
    WordPiece *real = load_real_vocab();
    if (!real) {
        print_message("skip: no bert-base-uncased vocab.txt below PEFTC_SHARED\n");
        skip();
    }
    assert_int_equal(wordpiece_size(real), 30522);
    assert_int_equal(wordpiece_special(real, SPECIAL_PAD), 0);
    assert_int_equal(wordpiece_special(real, SPECIAL_UNK), 100);
    assert_int_equal(wordpiece_special(real, SPECIAL_MASK), 103);
    FILE *file = open_golden(GOLDEN "cases.tsv");
    static Case c;
    int32_t ids[MAX_IDS];
    for (int line = 1; read_case(file, &c); line++) {
        uint64_t hash = fnv_offset;
        int n = encode_exact(real, &c, ids, NULL);
        for (int i = 0; i < n; i++) hash = fnv(hash, (uint64_t)ids[i]);
        if (hash != c.real_hash) fail_msg("case on line %d differs", line);
    }
    fclose(file);
    wordpiece_free(real);
}

static int put_utf8(char *out, int32_t cp) {
    if (cp < 0x80) return out[0] = (char)cp, 1;
    int n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)((0xF0 << (4 - n) & 0xFF) | cp);
    return n;
}

/* The words that a code point gives between letters, alone and between spaces. */
static uint64_t hash_code_point(uint64_t hash, int32_t cp) {
    static const char *const around[3][2] = {{"a", "b"}, {"", ""}, {" ", " "}};
    for (int k = 0; k < 3; k++) {
        char text[8];
        int len = (int)strlen(strcpy(text, around[k][0]));
        len += put_utf8(text + len, cp);
        for (const char *p = around[k][1]; *p; p++) text[len++] = *p;
        hash = fnv(hash_words(hash, text, (size_t)len), 0x1E);
    }
    return hash;
}

static void every_code_point_is_normalised_alike(void **state) {
    (void)state;
    FILE *file = open_golden(GOLDEN "codepoints.txt");
    unsigned block;
    unsigned long long expected;
    int blocks = 0, wrong = 0;
    for (; fscanf(file, "%x %llx", &block, &expected) == 2; blocks++) {
        uint64_t hash = fnv_offset;
        for (unsigned cp = block; cp < block + 1024; cp++)
            if (cp < 0xD800 || cp > 0xDFFF) hash = hash_code_point(hash, (int32_t)cp);
        if (hash == expected) continue;
        print_message("U+%04X..U+%04X: other words than the fast tokenizer\n", block, block + 1023);
        wrong++;
    }
    fclose(file);
    assert_int_equal(wrong, 0);
    assert_int_equal(blocks, (0x110000 - 0x800) / 1024);
}

/* A token has one character at least, so WORDPIECE_MAX_IDS is enough if a code point never becomes
 * more characters than it has bytes. */
static void no_code_point_has_more_characters_than_bytes(void **state) {
    (void)state;
    char text[8];
    WordReader reader;
    Word word;
    for (int32_t cp = 0; cp < 0x110000; cp++) {
        if (cp >= 0xD800 && cp < 0xE000) continue;
        int len = put_utf8(text, cp), characters = 0;
        words_open(&reader, text, (size_t)len);
        while (words_next(&reader, &word))
            for (int i = 0; i < word.len; i++) characters += (word.bytes[i] & 0xC0) != 0x80;
        if (characters > len) fail_msg("U+%04X becomes %d characters", (unsigned)cp, characters);
    }
}

/* Whatever the limit, the result is the beginning of the full one, closed by [SEP]. */
static void truncation_keeps_a_prefix_and_sep(void **state) {
    (void)state;
    const char *text = "The [MASK] caf\xC3\xA9, unaffable 123 [SEP] jumps!";
    int32_t full[64], cut[64];
    bool truncated;
    int n = wordpiece_encode(small, text, strlen(text), full, 64, &truncated);
    assert_false(truncated);
    assert_true(n > 10 && n < 64);
    assert_int_equal(full[0], wordpiece_special(small, SPECIAL_CLS));
    for (int limit = 2; limit < n; limit++) {
        for (int i = 0; i < 64; i++) cut[i] = -7;
        assert_int_equal(wordpiece_encode(small, text, strlen(text), cut, limit, &truncated),
                         limit);
        assert_true(truncated);
        assert_memory_equal(cut, full, (size_t)(limit - 1) * sizeof *cut);
        assert_int_equal(cut[limit - 1], wordpiece_special(small, SPECIAL_SEP));
        assert_int_equal(cut[limit], -7);
    }
    assert_int_equal(wordpiece_encode(small, text, strlen(text), cut, n, &truncated), n);
    assert_false(truncated);
    for (int limit = -1; limit < 2; limit++) {
        assert_int_equal(wordpiece_encode(small, text, strlen(text), cut, limit, &truncated), 0);
        assert_true(truncated);
    }
}

/* A word that overflows the limit and then proves unspellable is one [UNK], which fits. */
static void unspellable_word_at_the_limit_is_one_token(void **state) {
    (void)state;
    char text[] = "aaaaaaaaaaaaaaaaaaaaaaaa\xE0\xBC\x80";
    int32_t ids[4];
    bool truncated;
    assert_int_equal(wordpiece_encode(small, text, strlen(text), ids, 3, &truncated), 3);
    assert_false(truncated);
    assert_int_equal(ids[1], wordpiece_special(small, SPECIAL_UNK));
}

static void ids_and_tokens(void **state) {
    (void)state;
    assert_null(wordpiece_token(small, -1));
    assert_null(wordpiece_token(small, wordpiece_size(small)));
    for (int s = 0; s < SPECIAL_COUNT; s++)
        assert_true(wordpiece_is_special(small, wordpiece_special(small, s)));
    assert_string_equal(wordpiece_token(small, wordpiece_special(small, SPECIAL_MASK)), "[MASK]");
    int specials = 0;
    for (int32_t id = 0; id < wordpiece_size(small); id++)
        specials += wordpiece_is_special(small, id);
    assert_int_equal(specials, SPECIAL_COUNT);
}

static WordPiece *parse(const char *bytes, size_t len, PeftError *err) {
    char *copy = malloc(len + 1);
    memcpy(copy, bytes, len);
    copy[len] = '\0';
    *err = (PeftError){0};
    return wordpiece_parse("vocab.txt", copy, len, err);
}

static void crlf_and_a_missing_last_newline_are_accepted(void **state) {
    (void)state;
    const char text[] = "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\nab\r\n##c";
    PeftError err;
    WordPiece *wp = parse(text, sizeof text - 1, &err);
    assert_string_equal(err.msg, "");
    assert_int_equal(wordpiece_size(wp), 7);
    assert_string_equal(wordpiece_token(wp, 5), "ab");
    int32_t ids[8];
    assert_int_equal(wordpiece_encode(wp, "ABC abd", 7, ids, 8, NULL), 5);
    const int32_t expected[] = {2, 5, 6, 1, 3};
    assert_memory_equal(ids, expected, sizeof expected);
    wordpiece_free(wp);
}

#define SPECIALS "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"

static void bad_vocabularies_are_refused(void **state) {
    (void)state;
    static char overlong[1000];
    memset(overlong, 'x', sizeof overlong - 1);
    static const struct {
        const char *text;
        size_t len;
        const char *message;
    } bad[] = {
        {"", 0, "vocab.txt: the file is empty; expected one token a line"},
        {"[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n", 27,
         "vocab.txt: no token [SEP] among its 5; a BERT vocab.txt has [PAD], [UNK], [CLS], [SEP] and "
         "[MASK]"},
        {SPECIALS "a\n\nb\n", 36, "vocab.txt:7: blank line; each line is one token"},
        {SPECIALS "a\nb\na\n", 37,
         "vocab.txt:8: token 'a' stands on line 6 already; ids must be unique"},
        {SPECIALS "##a\n##a\n", 39,
         "vocab.txt:7: token '##a' stands on line 6 already; ids must be unique"},
        {SPECIALS "a\0b\n", 35, "vocab.txt:6: NUL byte; a vocab.txt is UTF-8 text"},
        {SPECIALS "a\xFF\n", 34, "vocab.txt:6: token 'a?' is not valid UTF-8"},
        {overlong, 999,
         "vocab.txt:1: a token of 999 bytes, the limit is 402; is this a vocab.txt?"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        PeftError err;
        assert_null(parse(bad[i].text, bad[i].len, &err));
        assert_string_equal(err.msg, bad[i].message);
    }
    PeftError err = {0};
    assert_null(wordpiece_load("no/such/vocab.txt", &err));
    assert_string_equal(err.msg, "no/such/vocab.txt: cannot read it: No such file or directory");
    err = (PeftError){0};
    assert_null(wordpiece_load("tests", &err));
    assert_string_equal(err.msg, "tests: is a folder where a file is expected");
}

static int set_up(void **state) {
    (void)state;
    PeftError err = {0};
    small = wordpiece_load(GOLDEN "vocab.txt", &err);
    if (!small) print_error("%s\n", err.msg);
    return small ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    wordpiece_free(small);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cases_have_the_same_words),
        cmocka_unit_test(cases_match_the_fast_tokenizer),
        cmocka_unit_test(cases_match_under_the_real_vocabulary),
        cmocka_unit_test(every_code_point_is_normalised_alike),
        cmocka_unit_test(no_code_point_has_more_characters_than_bytes),
        cmocka_unit_test(truncation_keeps_a_prefix_and_sep),
        cmocka_unit_test(unspellable_word_at_the_limit_is_one_token),
        cmocka_unit_test(ids_and_tokens),
        cmocka_unit_test(crlf_and_a_missing_last_newline_are_accepted),
        cmocka_unit_test(bad_vocabularies_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
