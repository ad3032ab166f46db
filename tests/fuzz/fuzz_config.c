/* libFuzzer: any bytes as config.json. What is accepted has to be safe to size buffers with; what
 * is refused has to say why, in one printable line. */
#include <stdint.h>
#include <stdlib.h>

#include "../../runtime/io/config.h"

static void require(bool ok) {
    if (!ok) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    BertConfig c;
    PeftError err = {0};
    if (config_parse((const char *)data, n, "config.json", &c, &err)) {
        require(c.vocab_size > 0 && c.layers > 0 && c.heads > 0 && c.hidden % c.heads == 0);
        require(c.hidden > 0 && c.ffn > 0 && c.positions > 0 && c.types > 0 && c.num_labels >= 0);
        require(c.hidden <= INT64_MAX / 4 / c.vocab_size && c.hidden <= INT64_MAX / 4 / c.ffn);
        require(c.eps > 0 && c.hidden_dropout >= 0 && c.hidden_dropout < 1);
        require(c.attention_dropout < 1 && c.classifier_dropout < 1);
        return 0;
    }
    require(err.msg[0]);
    for (const char *p = err.msg; *p; p++) require((unsigned char)*p >= 0x20 && *p != 0x7f);
    return 0;
}
