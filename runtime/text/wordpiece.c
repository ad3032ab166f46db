/* The vocabulary is one block of NUL-terminated tokens and one open-addressing table over it.
 * FNV-1a runs forward, so one pass over a word yields the hash of each of its prefixes and the
 * longest match is found by probing them backwards. A token "##x" is filed under "x" with another
 * seed: continuations and beginnings are two name spaces in one table. */
#include "wordpiece.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "pretokenize.h"
#include "textfile.h"

enum {
    MAX_VOCAB_BYTES = 64 << 20, /* the largest published WordPiece vocabularies have 1-2 MB */
    MAX_TOKEN_BYTES = WORD_MAX_BYTES + 2,
    EXCERPT = 64,
};

static const char *const special_text[SPECIAL_COUNT] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]",
                                                        "[MASK]"};

typedef struct Slot {
    uint32_t hash;
    int32_t id; /* -1 when free */
} Slot;

struct WordPiece {
    char *bytes;        /* the tokens, each with its NUL */
    uint32_t *token_at; /* [size + 1] offsets into bytes */
    int32_t size;
    Slot *slots; /* [1 << slot_bits], at most half full */
    int slot_bits;
    int longest[2]; /* bytes of the longest beginning and of the longest continuation, without ## */
    int32_t special[SPECIAL_COUNT];
};

static uint32_t hash_seed(bool continuation) {
    return continuation ? 0x9E3779B9u : 0x811C9DC5u;
}

static uint32_t hash_step(uint32_t hash, uint8_t byte) {
    return (hash ^ byte) * 0x01000193u;
}

static uint32_t hash_bytes(const char *bytes, int len, bool continuation) {
    uint32_t hash = hash_seed(continuation);
    for (int i = 0; i < len; i++) hash = hash_step(hash, (uint8_t)bytes[i]);
    return hash;
}

/* Fibonacci hashing: FNV's good bits are its low ones, the product's are its high ones. */
static uint32_t first_slot(const WordPiece *wp, uint32_t hash) {
    return (uint32_t)(hash * 0x9E3779B97F4A7C15ull >> (64 - wp->slot_bits));
}

/* A token's spelling inside a word: "##" is cut off, and says that it is a continuation. */
static bool token_spelling(const WordPiece *wp, int32_t id, const char **bytes, int *len) {
    const char *token = wp->bytes + wp->token_at[id];
    *len = (int)(wp->token_at[id + 1] - wp->token_at[id] - 1);
    bool continuation = *len > 2 && token[0] == '#' && token[1] == '#';
    *bytes = token + (continuation ? 2 : 0);
    *len -= continuation ? 2 : 0;
    return continuation;
}

/* The slot of this spelling, or the free slot where it would go. */
static Slot *find_slot(const WordPiece *wp, uint32_t hash, const char *bytes, int len,
                       bool continuation) {
    uint32_t mask = (1u << wp->slot_bits) - 1;
    for (uint32_t i = first_slot(wp, hash);; i = (i + 1) & mask) {
        Slot *slot = &wp->slots[i];
        if (slot->id < 0) return slot;
        if (slot->hash != hash) continue;
        const char *other;
        int other_len;
        if (token_spelling(wp, slot->id, &other, &other_len) == continuation && other_len == len &&
            memcmp(other, bytes, len) == 0)
            return slot;
    }
}

/* ---- reading a vocabulary ---- */

static bool check_token(const char *name, size_t line, const char *token, size_t len,
                        PeftError *err) {
    char excerpt[EXCERPT];
    if (len == 0) return peft_fail(err, "%s:%zu: blank line; each line is one token", name, line);
    if (len > MAX_TOKEN_BYTES)
        return peft_fail(err, "%s:%zu: a token of %zu bytes, the limit is %d; is this a vocab.txt?",
                         name, line, len, MAX_TOKEN_BYTES);
    if (memchr(token, 0, len))
        return peft_fail(err, "%s:%zu: NUL byte; a vocab.txt is UTF-8 text", name, line);
    for (size_t at = 0; at < len;) {
        int32_t cp;
        utf8proc_ssize_t n = utf8proc_iterate((const uint8_t *)token + at, len - at, &cp);
        if (n <= 0)
            return peft_fail(err, "%s:%zu: token '%s' is not valid UTF-8", name, line,
                             textfile_excerpt(excerpt, sizeof excerpt, token, len));
        at += n;
    }
    return true;
}

/* Cuts wp->bytes into tokens in place. */
static bool split_lines(WordPiece *wp, const char *name, size_t len, PeftError *err) {
    size_t lines = 0, used = 0, at = 0;
    for (const char *p = wp->bytes; (p = memchr(p, '\n', wp->bytes + len - p)); p++) lines++;
    wp->token_at = peft_alloc(lines + 2, sizeof *wp->token_at, err);
    if (!wp->token_at) return false;
    while (at < len) {
        char *token = wp->bytes + at;
        char *newline = memchr(token, '\n', len - at);
        size_t n = newline ? (size_t)(newline - token) : len - at;
        at += n + (newline != NULL);
        if (n > 0 && token[n - 1] == '\r') n--;
        if (!check_token(name, (size_t)wp->size + 1, token, n, err)) return false;
        wp->token_at[wp->size++] = (uint32_t)used;
        memmove(wp->bytes + used, token, n);
        wp->bytes[used + n] = '\0';
        used += n + 1;
    }
    wp->token_at[wp->size] = (uint32_t)used;
    return true;
}

static bool build_table(WordPiece *wp, const char *name, PeftError *err) {
    wp->slot_bits = 4;
    while ((1 << wp->slot_bits) < 2 * wp->size) wp->slot_bits++;
    wp->slots = peft_alloc((size_t)1 << wp->slot_bits, sizeof *wp->slots, err);
    if (!wp->slots) return false;
    for (size_t i = 0; i < (size_t)1 << wp->slot_bits; i++) wp->slots[i].id = -1;
    for (int32_t id = 0; id < wp->size; id++) {
        const char *bytes;
        int len;
        bool continuation = token_spelling(wp, id, &bytes, &len);
        uint32_t hash = hash_bytes(bytes, len, continuation);
        Slot *slot = find_slot(wp, hash, bytes, len, continuation);
        if (slot->id >= 0) {
            char excerpt[EXCERPT];
            return peft_fail(err, "%s:%d: token '%s' stands on line %d already; ids must be unique",
                             name, id + 1,
                             textfile_excerpt(excerpt, sizeof excerpt, wordpiece_token(wp, id),
                                              strlen(wordpiece_token(wp, id))),
                             slot->id + 1);
        }
        *slot = (Slot){.hash = hash, .id = id};
        if (len > wp->longest[continuation]) wp->longest[continuation] = len;
    }
    return true;
}

static bool find_specials(WordPiece *wp, const char *name, PeftError *err) {
    for (int s = 0; s < SPECIAL_COUNT; s++) {
        int len = (int)strlen(special_text[s]);
        wp->special[s] =
            find_slot(wp, hash_bytes(special_text[s], len, false), special_text[s], len, false)->id;
        if (wp->special[s] < 0)
            return peft_fail(err,
                             "%s: no token %s among its %d; a BERT vocab.txt has [PAD], "
                             "[UNK], [CLS], [SEP] and [MASK]",
                             name, special_text[s], wp->size);
    }
    return true;
}

WordPiece *wordpiece_parse(const char *name, char *bytes, size_t len, PeftError *err) {
    WordPiece *wp = peft_zalloc(1, sizeof *wp, err);
    if (!wp) {
        free(bytes);
        return NULL;
    }
    wp->bytes = bytes;
    bool ok = true;
    if (len == 0)
        ok = peft_fail(err, "%s: the file is empty; expected one token a line", name);
    else if (len > MAX_VOCAB_BYTES)
        ok = peft_fail(err, "%s: %zu bytes, the limit is %d", name, len, MAX_VOCAB_BYTES);
    ok = ok && split_lines(wp, name, len, err) && build_table(wp, name, err) &&
         find_specials(wp, name, err);
    if (ok) return wp;
    wordpiece_free(wp);
    return NULL;
}

WordPiece *wordpiece_load(const char *vocab_path, PeftError *err) {
    size_t len;
    char *bytes = textfile_read(vocab_path, MAX_VOCAB_BYTES, &len, err);
    return bytes ? wordpiece_parse(vocab_path, bytes, len, err) : NULL;
}

void wordpiece_free(WordPiece *wp) {
    if (!wp) return;
    free(wp->bytes);
    free(wp->token_at);
    free(wp->slots);
    free(wp);
}

/* ---- encoding ---- */

/* Ids beyond cap are counted, not stored: a word at the limit may yet collapse into one [UNK]. */
typedef struct IdList {
    int32_t *ids;
    int n, cap;
} IdList;

static void push_id(IdList *list, int32_t id) {
    if (list->n < list->cap) list->ids[list->n] = id;
    list->n++;
}

/* The longest vocabulary entry that bytes[0..len) begins with; its length goes to *matched. -1 if
 * there is none. Both are valid UTF-8, so a prefix cut inside a character matches nothing. */
static int32_t longest_match(const WordPiece *wp, const uint8_t *bytes, int len, bool continuation,
                             int *matched) {
    uint32_t prefix_hash[WORD_MAX_BYTES];
    uint32_t hash = hash_seed(continuation);
    int limit = len < wp->longest[continuation] ? len : wp->longest[continuation];
    for (int i = 0; i < limit; i++) prefix_hash[i] = hash = hash_step(hash, bytes[i]);
    for (int n = limit; n > 0; n--) {
        int32_t id = find_slot(wp, prefix_hash[n - 1], (const char *)bytes, n, continuation)->id;
        if (id >= 0) {
            *matched = n;
            return id;
        }
    }
    return -1;
}

static void encode_word(const WordPiece *wp, const Word *word, IdList *list) {
    int begin = list->n, matched;
    bool spelled = !word->too_long;
    for (int at = 0; spelled && at < word->len; at += matched) {
        int32_t id = longest_match(wp, word->bytes + at, word->len - at, at > 0, &matched);
        if (id < 0)
            spelled = false;
        else
            push_id(list, id);
    }
    if (spelled) return;
    list->n = begin;
    push_id(list, wp->special[SPECIAL_UNK]);
}

/* The first special token in the text, as index into special_text; its place goes to *at. -1 and
 * the end of the text if there is none. */
static int find_special(const char *text, size_t len, size_t *at) {
    for (*at = 0; *at < len; ++*at) {
        const char *bracket = memchr(text + *at, '[', len - *at);
        if (!bracket) break;
        *at = (size_t)(bracket - text);
        for (int s = 0; s < SPECIAL_COUNT; s++) {
            size_t n = strlen(special_text[s]);
            if (n <= len - *at && memcmp(bracket, special_text[s], n) == 0) return s;
        }
    }
    *at = len;
    return -1;
}

int wordpiece_encode(const WordPiece *wp, const char *text, size_t len, int32_t *ids, int max_ids,
                     bool *truncated) {
    if (truncated) *truncated = max_ids < 2;
    if (max_ids < 2) return 0;
    IdList list = {.ids = ids + 1, .n = 0, .cap = max_ids - 2};
    WordReader reader;
    Word word;
    while (len > 0 && list.n <= list.cap) {
        size_t special_at;
        int special = find_special(text, len, &special_at);
        words_open(&reader, text, special_at);
        while (list.n <= list.cap && words_next(&reader, &word)) encode_word(wp, &word, &list);
        if (special < 0) break;
        push_id(&list, wp->special[special]);
        special_at += strlen(special_text[special]);
        text += special_at;
        len -= special_at;
    }
    if (truncated) *truncated = list.n > list.cap;
    int n = list.n < list.cap ? list.n : list.cap;
    ids[0] = wp->special[SPECIAL_CLS];
    ids[n + 1] = wp->special[SPECIAL_SEP];
    return n + 2;
}

int32_t wordpiece_size(const WordPiece *wp) {
    return wp->size;
}

const char *wordpiece_token(const WordPiece *wp, int32_t id) {
    return id >= 0 && id < wp->size ? wp->bytes + wp->token_at[id] : NULL;
}

int32_t wordpiece_special(const WordPiece *wp, SpecialToken which) {
    return wp->special[which];
}

bool wordpiece_is_special(const WordPiece *wp, int32_t id) {
    for (int s = 0; s < SPECIAL_COUNT; s++)
        if (wp->special[s] == id) return true;
    return false;
}
