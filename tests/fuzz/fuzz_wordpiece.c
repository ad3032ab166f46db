/* libFuzzer: any bytes as a text (first byte even) or as a vocab.txt, a NUL and a text under it
 * (odd). Truncated and full encodings must agree, and every id must name a token. */
#include "check_dataset.h"

static void check_encoding(const WordPiece *wp, const char *text, size_t len, int max_ids) {
    int room = WORDPIECE_MAX_IDS((int)len);
    int32_t *full = malloc((size_t)room * sizeof *full);
    int32_t *cut = malloc((size_t)max_ids * sizeof *cut);
    require(full && cut);
    bool truncated;
    int n = wordpiece_encode(wp, text, len, full, room, &truncated);
    require(!truncated && n >= 2 && n <= room);
    require(full[0] == wordpiece_special(wp, SPECIAL_CLS));
    require(full[n - 1] == wordpiece_special(wp, SPECIAL_SEP));
    for (int i = 0; i < n; i++) require(wordpiece_token(wp, full[i]));
    int m = wordpiece_encode(wp, text, len, cut, max_ids, &truncated);
    require(truncated == (n > max_ids) && m == (n < max_ids ? n : max_ids));
    require(memcmp(cut, full, (size_t)(m - 1) * sizeof *cut) == 0);
    require(cut[m - 1] == full[n - 1]);
    free(full);
    free(cut);
}

static void check_vocabulary(const uint8_t *data, size_t n, int max_ids) {
    const uint8_t *nul = n ? memchr(data, 0, n) : NULL;
    size_t len = nul ? (size_t)(nul - data) : n;
    PeftError err = {0};
    WordPiece *wp = wordpiece_parse("vocab", copy_bytes(data, len), len, &err);
    if (wp) {
        for (int s = 0; s < SPECIAL_COUNT; s++)
            require(wordpiece_is_special(wp, wordpiece_special(wp, (SpecialToken)s)));
        for (int32_t id = 0; id < wordpiece_size(wp); id++) require(wordpiece_token(wp, id)[0]);
        if (nul) check_encoding(wp, (const char *)nul + 1, n - len - 1, max_ids);
    } else {
        check_message(&err);
    }
    wordpiece_free(wp);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static WordPiece *tiny;
    if (!tiny) tiny = tiny_vocabulary();
    if (n == 0) return 0;
    int max_ids = 2 + data[0] / 2;
    if (data[0] & 1)
        check_vocabulary(data + 1, n - 1, max_ids);
    else
        check_encoding(tiny, (const char *)data + 1, n - 1, max_ids);
    return 0;
}
