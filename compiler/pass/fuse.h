/* Fusion: from the live nodes of a function to kernels.
 *
 * requires     a verified graph
 * gives        kernels that together compute every live node some buffer or other kernel needs; the
 *              graph of kernels has no cycle
 * leaves alone the graph
 *
 * Ops join by class: elementwise ops, row reductions and indexed loads of one index space become
 * one MAP kernel; an elementwise chain on a matrix product becomes the GEMM's epilogue; sums over
 * rows or over everything take the elementwise ops before them along. Scalars and [R,1] values join
 * where they are used. A value is stored only when another kernel reads it. */
#ifndef PEFTC_FUSE_H
#define PEFTC_FUSE_H

#include "../kernel.h"

typedef struct FuseOptions {
    bool skip; /* every node its own kernel */
    /* Called for each value that was stored although its consumer could have computed it, with the
     * reason; or NULL. */
    void (*remark)(void *ctx, const Node *producer, const Node *consumer, const char *why);
    void *ctx;
} FuseOptions;

/* The kernels of a function in no particular order; *n of them, from the graph's pool. */
Kernel **fuse_function(Graph *g, PeftFn fn, const FuseOptions *options, int32_t *n);

/* ---- shared with scheduling and emission ---- */

/* The node whose bytes a node's value lies in: views (reshape, detach) stripped. A result of a
 * multi-result op is its PROJ node. */
Node *buffer_of(const Node *n);

/* Are two types computed and indexed over the same rows and columns? */
bool space_equal(Type a, Type b);

/* Marks the instructions of a kernel's body that its results need; live has body->n elements. */
void kernel_live(const Kernel *k, bool *live);

typedef enum PassKind { PASS_FORWARD, PASS_BACKWARD, PASS_OPTIMIZER } PassKind;

typedef struct NodePass {
    uint8_t pass;  /* PassKind */
    bool deferred; /* made of forward values, but computed where a later pass uses it */
} NodePass;

/* The pass each live node of a function belongs to, by node id. Gradient nodes carry their forward
 * node; what depends on them and does not is the optimizer's. */
NodePass *node_passes(Graph *g, PeftFn fn);

#endif
