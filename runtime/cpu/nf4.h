/* NF4 weights: 4-bit codes in blocks of 64 with one absmax per block, the absmax itself optionally
 * quantised to 8 bits in groups of 256 (double quantisation). This header owns the byte layout of
 * such a buffer, the two code tables and the way back to float; the quantiser lives in runtime/io.
 *
 * A weight of n elements (row-major, flattened) is one buffer; every section starts at a multiple
 * of 64 bytes from the buffer's start, which is itself at least 64-byte aligned:
 *   codes    (n + 1) / 2 bytes, byte k = code[2k] << 4 | code[2k + 1]; an odd n pads a nibble
 *   with double quantisation:            without:
 *     absmax codes  uint8 per block        absmax  float per block
 *     nested absmax float per 256 blocks
 *     offset        one float
 * value = lut[code] * absmax, absmax = code8[absmax_code] * nested[block / 256] + offset, each
 * operation rounded to fp32 on its own (no fused multiply-add). Method: Dettmers et al., QLoRA,
 * 2023, sections 3 and 4. */
#ifndef PEFT_CPU_NF4_H
#define PEFT_CPU_NF4_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NF4_BLOCK = 64, NF4_GROUP = 256 /* blocks under one nested absmax */ };

typedef struct Nf4Layout { /* byte offsets of the sections; unused ones are equal to bytes */
    size_t codes, absmax_codes, nested, offset, absmax, bytes;
} Nf4Layout;

typedef struct Nf4View {
    int64_t n;                   /* elements */
    const uint8_t *codes;        /* [(n + 1) / 2] */
    const float *absmax;         /* [blocks], NULL with double quantisation */
    const uint8_t *absmax_codes; /* [blocks], NULL without */
    const float *nested;         /* [ceil(blocks / 256)] */
    const float *offset;         /* [1] */
    const float *code8;          /* the 256-entry table of nf4_code8 */
} Nf4View;

extern const float nf4_lut[16]; /* ascending; code 7 is zero */

/* The signed dynamic 8-bit map: 256 ascending values from -0.99297 to 1, zero at index 127. Seven
 * decades 10^-6..1, decade e split evenly in 2^e cells of [0.1, 1] whose midpoints are the values.
 */
const float *nf4_code8(void);

int64_t nf4_blocks(int64_t n); /* ceil(n / 64) */
int64_t nf4_groups(int64_t n); /* ceil(blocks / 256) */
Nf4Layout nf4_layout(int64_t n, bool dq);
size_t nf4_bytes(int64_t n, bool dq);
/* Points into buf; reads nothing, so it may be made before the buffer is filled. n >= 0. */
Nf4View nf4_view(const void *buf, int64_t n, bool dq);

/* The absmax of one block and the value of one element: the scalar reference. */
float nf4_absmax(const Nf4View *v, int64_t block);
float nf4_value(const Nf4View *v, int64_t i);
/* out[i] = value[first + i] for i < n, the same bits as nf4_value. 0 <= first, first + n <= v->n.
 */
void nf4_dequant_row(const Nf4View *v, int64_t first, int64_t n, float *out);

#endif
