/* Inputs of the op table's test instances. The name of a sample variable is its domain and a
 * number; this file writes those names and alone reads them. */
#include "sample.h"

#include <string.h>

static const char *const domain_name[SAMPLE_DOMAINS] = {"real.", "positive.", "large.",
                                                        "step.", "index.",    "slot."};

static Node *make(Graph *g, SampleDomain domain, Type type, double bound) {
    Var v = {.type = type, .kind = VAR_PARAM, .init = {PEFT_CONSTANT, bound}, .group = -1};
    v.name = graph_printf(g, "%s%d", domain_name[domain], g->nvar);
    return nd_var(g, graph_var(g, v));
}

Node *sample_var(Graph *g, SampleDomain domain, Type type) {
    return make(g, domain, type, 0);
}

Node *sample_real(Graph *g, int rank, int64_t d0, int64_t d1) {
    return make(g, SAMPLE_REAL, type_f32(rank, d0, d1), 0);
}

Node *sample_index(Graph *g, int64_t n, int64_t bound) {
    return make(g, SAMPLE_INDEX, type_i32(n), (double)bound);
}

Node *sample_slot(Graph *g, int64_t n, int64_t bound) {
    return make(g, SAMPLE_SLOT, type_i32(n), (double)bound);
}

Node *sample_nf4(Graph *g, int64_t rows, int64_t cols, bool plain) {
    Type t = type_f32(2, rows, cols);
    t.dt = plain ? DT_NF4_PLAIN : DT_NF4;
    return make(g, SAMPLE_REAL, t, 0);
}

Node *sample_shape(Graph *g, SampleDomain domain, const SampleShape *list, int n, int k) {
    if (k >= n) return NULL;
    return sample_var(g, domain, type_f32(list[k].rank, list[k].d0, list[k].d1));
}

/* ---- values ---- */

void sample_symbols(int64_t sym[PEFT_SYM_COUNT]) {
    memset(sym, 0, PEFT_SYM_COUNT * sizeof *sym);
    sym[PEFT_SYM_T] = SAMPLE_T;
    sym[PEFT_SYM_S] = SAMPLE_S;
    sym[PEFT_SYM_M] = SAMPLE_M;
    sym[PEFT_SYM_L] = 4;
    sym[PEFT_SYM_P] = 1;
}

/* splitmix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014) as a
 * number in [0, 1). */
static double uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static double draw(SampleDomain domain, double bound, uint64_t *state) {
    double u = uniform(state);
    switch (domain) {
    case SAMPLE_REAL: return (0.1 + 1.9 * u) * (uniform(state) < 0.5 ? -1 : 1);
    case SAMPLE_POSITIVE: return 0.1 + 1.9 * u;
    case SAMPLE_LARGE: return 1000 + 2 * u;
    case SAMPLE_STEP: return 1 + (double)(int)(u * 100);
    case SAMPLE_INDEX: return (double)(int64_t)(u * bound);
    default: return (double)(int64_t)(u * (bound + 1)) - 1;
    }
}

static SampleDomain domain_of(const Var *v) {
    for (int d = 0; d < SAMPLE_DOMAINS; d++)
        if (strncmp(v->name, domain_name[d], strlen(domain_name[d])) == 0) return d;
    PANIC(NULL, "%s is not a sample variable", v->name);
}

void sample_fill(const Var *v, uint64_t seed, double *out, int64_t n) {
    SampleDomain domain = domain_of(v);
    uint64_t state = seed;
    for (const char *s = v->name; *s; s++) state = (state ^ (unsigned char)*s) * 0x100000001b3u;
    for (int64_t i = 0; i < n; i++) out[i] = draw(domain, v->init.a, &state);
}

void sample_batch(PeftInputId id, double *out, int64_t n) {
    /* three sequences of 2, 1 and 4 tokens */
    static const double offsets[] = {0, 2, 3, 7}, positions[] = {0, 1, 0, 0, 1, 2, 3};
    static const double masked[] = {1, 3, 4, 6}, token_sample[] = {9, 9, 4, 6, 6, 6, 6};
    static const double seq_sample[] = {9, 4, 6}, rng[] = {7, 0, 3, 1};
    static const double *const value[PEFT_IN_COUNT] = {
        [PEFT_IN_offsets] = offsets,
        [PEFT_IN_first] = offsets,
        [PEFT_IN_positions] = positions,
        [PEFT_IN_masked_positions] = masked,
        [PEFT_IN_token_sample] = token_sample,
        [PEFT_IN_seq_sample] = seq_sample,
        [PEFT_IN_rng] = rng,
    };
    for (int64_t i = 0; i < n; i++) out[i] = value[id] ? value[id][i] : 1;
}
