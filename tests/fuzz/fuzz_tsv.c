/* libFuzzer: any bytes as a TSV file (first byte even) or as plain text (odd). What is accepted is
 * tokenised and split, and no row may get lost or change on the way. */
#include "check_dataset.h"

static void check_split(Dataset *ds) {
    PeftError err = {0};
    int32_t period = 3, rows = ds->n;
    if (rows < period) return;
    Dataset *part = dataset_split_every(ds, period, &err);
    require(part && part->n == rows / period && part->n + ds->n == rows);
    for (int32_t i = 0; i < part->n; i++) {
        require(part->sample[i] == i * period + period - 1);
        require(strlen(dataset_text(part, i)) == dataset_text_len(part, i));
    }
    for (int32_t i = 0; i < ds->n; i++) {
        require(ds->sample[i] == i + i / (period - 1));
        require(strlen(dataset_text(ds, i)) == dataset_text_len(ds, i));
    }
    dataset_free(part);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static WordPiece *wp;
    if (!wp) wp = tiny_vocabulary();
    if (n == 0) return 0;
    DataFormat format = data[0] & 1 ? DATA_TEXT : DATA_TSV;
    PeftError err = {0};
    Dataset *ds = dataset_parse("data", copy_bytes(data + 1, n - 1), n - 1, format, &err);
    if (ds) {
        require((ds->label != NULL) == (format == DATA_TSV));
        check_rows(ds);
        check_tokens(ds, wp, 2 + data[0] / 2);
        check_split(ds);
    } else {
        check_message(&err);
    }
    dataset_free(ds);
    return 0;
}
