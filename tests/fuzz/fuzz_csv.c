/* libFuzzer: any bytes as an AG News CSV. What is accepted must read back the same once written out
 * with every field quoted. */
#include "check_dataset.h"

#include <stdio.h>

/* The rows as "class","","text". */
static char *write_csv(const Dataset *ds, size_t *len) {
    char *csv = malloc(2 * ds->text_at[ds->n] + (size_t)ds->n * 24 + 1), *to = csv;
    require(csv);
    for (int32_t i = 0; i < ds->n; i++) {
        to += sprintf(to, "\"%d\",\"\",\"", ds->label[i] + 1);
        for (const char *p = dataset_text(ds, i); *p; p++) {
            if (*p == '"') *to++ = '"';
            *to++ = *p;
        }
        to = stpcpy(to, "\"\n");
    }
    *len = (size_t)(to - csv);
    return csv;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static WordPiece *wp;
    if (!wp) wp = tiny_vocabulary();
    PeftError err = {0};
    Dataset *ds = dataset_parse("data", copy_bytes(data, n), n, DATA_CSV, &err);
    if (!ds) {
        check_message(&err);
        return 0;
    }
    check_rows(ds);
    check_tokens(ds, wp, 512);
    size_t len;
    char *csv = write_csv(ds, &len);
    Dataset *again = dataset_parse("again", csv, len, DATA_CSV, &err);
    require(again && again->n == ds->n && again->text_at[again->n] == ds->text_at[ds->n]);
    require(memcmp(again->arena, ds->arena, ds->text_at[ds->n]) == 0);
    require(memcmp(again->label, ds->label, (size_t)ds->n * sizeof *ds->label) == 0);
    dataset_free(again);
    dataset_free(ds);
    return 0;
}
