/* What the verbs share: opening a base, its vocabulary and the data, checking them against the
 * program, and finding the worst batches. */
#ifndef PEFT_CLI_SESSION_H
#define PEFT_CLI_SESSION_H

#include "../exec.h"
#include "../text/batch.h"
#include "../text/splits.h"
#include "../text/wordpiece.h"
#include "../measure.h"
#include "options.h"

Device session_device(const Options *o);
Compute session_compute(const Options *o);
int session_threads(const Options *o);
/* Of --device and --compute. */
bool session_check_device(const Options *o, PeftError *err);

/* The base folder's config.json must describe the encoder this program was compiled for. */
bool session_check_base(const PeftProgram *p, const char *base, PeftError *err);
WordPiece *session_vocabulary(const PeftProgram *p, const char *base, PeftError *err);

typedef struct Session {
    const PeftProgram *program;
    const Options *options;
    PeftFit fit;
    WordPiece *vocabulary;
    SplitSet data; /* tokenised */
    int64_t steps_per_epoch, total_steps;
    int64_t batch_tokens; /* most tokens of a whole batch (all micro-batches) */
    int64_t train_sym[PEFT_SYM_COUNT], eval_sym[PEFT_SYM_COUNT]; /* worst batches */
    uint64_t data_hash;
} Session;

/* Opens base and data, applies --set. Talks about truncated and repaired rows on stderr. */
bool session_open(Session *s, const PeftProgram *p, const Options *o, const char *base,
                  PeftError *err);
void session_close(Session *s);

#endif
