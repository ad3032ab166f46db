/* What the verbs share: opening a base, its vocabulary and the data, checking them against the
 * program, and finding the worst batches. */
#ifndef PEFT_CLI_SESSION_H
#define PEFT_CLI_SESSION_H

#include "../cuda/api.h"
#include "../exec.h"
#include "../text/batch.h"
#include "../text/splits.h"
#include "../text/wordpiece.h"
#include "../measure.h"
#include "options.h"

/* Turns --device auto into cuda when a GPU of this machine and the libraries can be used, else
 * into cpu; says on stderr which and why. Other names are left alone. */
void session_choose_device(Options *o, const PeftProgram *p);
/* What auto asks: a GPU, the libraries, and this program's code for it. */
bool session_cuda_usable(const PeftProgram *p, Compute compute, CudaDevice *gpu, PeftError *err);
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
    int64_t budget; /* of --memory; 0: none */
    WordPiece *vocabulary;
    SplitSet data; /* tokenised */
    int64_t steps_per_epoch, total_steps;
    int64_t batch_tokens; /* most tokens of a whole batch (all micro-batches) */
    int64_t train_sym[PEFT_SYM_COUNT], eval_sym[PEFT_SYM_COUNT]; /* worst batches */
    uint64_t data_hash;
} Session;

/* The worst batches of training and evaluation when an optimizer step takes `batch` sequences, for
 * the chosen device; batch_tokens (may be NULL): as in Session. */
bool session_worst(const Session *s, int32_t batch, int64_t train_sym[PEFT_SYM_COUNT],
                   int64_t eval_sym[PEFT_SYM_COUNT], int64_t *batch_tokens, PeftError *err);

/* Opens base and data, applies --set. Talks about truncated and repaired rows on stderr. */
bool session_open(Session *s, const PeftProgram *p, const Options *o, const char *base,
                  PeftError *err);
void session_close(Session *s);

#endif
