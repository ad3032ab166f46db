/* The NF4 quantiser, streaming: fp32 weights come in row-major order in chunks of any length and
 * leave as the buffer that runtime/cpu/nf4.h describes, so the full-precision matrix is never held.
 * Scratch is one float per block of 64 (the offset of double quantisation is the mean of all
 * absmax). Codes, blocks, tie rule and nested absmax are those of bitsandbytes' quantize_4bit with
 * nf4 and compress_statistics. */
#ifndef PEFT_IO_QUANTIZE_H
#define PEFT_IO_QUANTIZE_H

#include "../cpu/nf4.h"
#include "safetensors.h"

typedef struct NfQuantizer {
    uint8_t *buf; /* nf4_bytes(n, dq) bytes, written from the front */
    Nf4Layout layout;
    bool dq;
    int64_t n;                /* elements of the whole weight */
    int64_t done;             /* elements pushed */
    float *absmax;            /* [nf4_blocks(n)]: scratch, or the buffer's own section without dq */
    float pending[NF4_BLOCK]; /* the start of a block that a chunk ended in: done % 64 values */
} NfQuantizer;

/* Prepares for n >= 0 elements; buf must be aligned to 64 bytes. */
bool nf_quantizer_init(NfQuantizer *q, void *buf, int64_t n, bool dq, PeftError *err);

/* The next `count` values. One that is not finite is an error. */
bool nf_quantizer_push(NfQuantizer *q, const float *w, int64_t count, PeftError *err);

/* Completes the buffer; fewer than n values pushed is an error. Frees the scratch either way. */
bool nf_quantizer_finish(NfQuantizer *q, PeftError *err);

/* Frees the scratch after a failed push. */
void nf_quantizer_free(NfQuantizer *q);

/* Streams a tensor from its file into buf. */
bool nf_quantize_tensor(const StTensor *t, void *buf, bool dq, PeftError *err);

#endif
