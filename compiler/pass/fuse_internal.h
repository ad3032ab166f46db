/* What the two halves of fusion share: fuse.c decides which ops form a group, fuse_body.c turns the
 * groups into kernels. */
#ifndef PEFTC_FUSE_INTERNAL_H
#define PEFTC_FUSE_INTERNAL_H

#include "fuse.h"

enum { FUSE_RESULTS = 3 }; /* most results of one op */

/* How an operand is read: as a value that the reader could compute itself, from a buffer, or not at
 * all (the reader knows a better place: an NF4 variable instead of its dequantised form). */
typedef enum OperandMode { OPERAND_VALUE, OPERAND_BUFFER, OPERAND_NONE } OperandMode;

typedef struct Use { /* a group that reads a node's result */
    int32_t group;
    bool value, buffer;
} Use;

typedef struct ProductCount { /* matrix products: those that wait for another one, and the rest */
    int32_t early, late;
} ProductCount;

typedef struct NodeInfo {
    Node *node;
    Node *proj[FUSE_RESULTS]; /* live PROJ nodes of a multi-result op */
    Use *use;
    int32_t nuse, cap_use;
    int32_t *site; /* groups that compute it */
    int32_t nsite, cap_site;
    int32_t home;          /* the group that stores it, or -1 */
    int32_t lowered_in;    /* group whose values stand in the scratch array now */
    ProductCount products; /* whose results meet in the chain that ends here */
    int32_t nuser;         /* live nodes and roots that read it */
    int32_t sum_group;     /* last COLUMN_SUM group that reads it, or -1 */
    int32_t
        free_cost; /* ops to compute it from variables and inputs alone; large when impossible */
    uint8_t pass;
    bool root;     /* an output or an update of the function */
    bool stored;   /* gets a buffer */
    bool deferred; /* a forward value that only later passes use */
    Node *chain;   /* on a single-use elementwise chain from a matrix product: the op before it; of
                      the product: itself; else NULL */
} NodeInfo;

typedef struct Group {
    PeftKernelKind kind;
    Node *anchor; /* what a runtime routine computes, or NULL */
    Node *head;   /* the node it was started for: its last one */
    int64_t rows, cols;
    uint8_t pass;
    bool has_row;   /* contains a row reduction */
    bool row_out;   /* stores one value a row */
    bool dropout;   /* contains dropout, which counts the columns of the group */
    Node *chain;    /* the matrix product whose epilogue it is, or the next op of the chain that
                       leads there; NULL: it is on no such chain */
    uint64_t *down; /* groups that depend on this one, as a bit set */
    Node **node;    /* ascending ids */
    int32_t nnode, cap_node;
} Group;

typedef struct Fuser {
    Graph *g;
    PeftFn fn;
    const FuseOptions *options;
    Node **live;
    int32_t nlive;
    NodeInfo *info; /* by node id */
    Group *group;
    int32_t ngroup;
    int32_t words; /* of a bit set of groups */
} Fuser;

OperandMode operand_mode(const Fuser *f, const Node *n, int i);
/* The op that computes a value, through views that keep the index space, and which result it is. */
Node *producer_of(Node *n, int *k);
bool has_row_reduction(const Node *n);

/* value: room for FUSE_RESULTS values a node, by node id. */
Kernel *group_kernel(Fuser *f, int32_t group, KVal *value);

#endif
