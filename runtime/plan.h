/* Memory planning: from lifetimes and sizes to offsets. Pure functions over plain data, linked into
 * the compiler (--emit=plan) and into every program (which plans in milliseconds once the data is
 * known). */
#ifndef PEFT_PLAN_H
#define PEFT_PLAN_H

#include "error.h"
#include "peftrt.h"

#define PEFT_ALIGN 64

/* Steps that a temporary's bytes stay unused on a GPU: one that reuses bytes at once would have to
 * wait for a step that could otherwise run beside it (cuda/order.h). With 10 the longest chain of a
 * LoRA step is that without any reuse. */
#define PLAN_GPU_SLACK 10

typedef struct PlanItem {
    int64_t bytes;       /* > 0, before alignment */
    int32_t first, last; /* steps, inclusive; two items overlap in time when the ranges meet */
    int64_t offset;      /* result */
} PlanItem;

typedef struct PlanSummary {
    int64_t peak;        /* bytes that the offsets need */
    int64_t lower_bound; /* most bytes alive at one step: no plan can need less */
    int32_t peak_step;   /* the step of the lower bound */
} PlanSummary;

/* Gives each item an offset, a multiple of PEFT_ALIGN, so that items alive together do not overlap.
 */
bool plan_offsets(PlanItem *item, int n, PlanSummary *out, PeftError *err);
/* Brute force: true when no two items alive together overlap and all offsets are aligned. */
bool plan_check(const PlanItem *item, int n, PeftError *err);

/* Bytes of a buffer of this type for these symbol values; -1 on overflow. */
int64_t plan_bytes(uint8_t dtype, int rank, const int64_t *dim, const int64_t sym[PEFT_SYM_COUNT]);

/* Bytes of scratch that a step's runtime routine asks for; 0 for generated kernels. */
int64_t step_workspace_bytes(const PeftProgram *p, const PeftStep *s,
                             const int64_t sym[PEFT_SYM_COUNT]);

/* Bytes of a function's temporary: of its type, or of the scratch that its step asks for; -1 on
 * overflow. */
int64_t plan_temp_bytes(const PeftProgram *p, PeftFn fn, int temp,
                        const int64_t sym[PEFT_SYM_COUNT]);

/* Bytes that a buffer takes up in the arena: an empty one keeps an address of its own. */
int64_t plan_placed(int64_t bytes);

typedef struct PlanSpan { /* steps, inclusive, for which a temporary's bytes are its own */
    int32_t first, last;
} PlanSpan;

/* A program's whole plan: every variable, input and temporary of the functions that will run. */
typedef struct ProgramPlan {
    int64_t *var_offset; /* per variable */
    int64_t input_offset[PEFT_IN_COUNT];
    int64_t
        *temp_offset[PEFT_FN_COUNT]; /* per temporary, or NULL when the function is not planned */
    PlanSpan *temp_span[PEFT_FN_COUNT]; /* likewise */
    int64_t persistent;                 /* bytes of variables and inputs, at the arena's start */
    PlanSummary fn[PEFT_FN_COUNT];      /* temporaries of each function, relative to `persistent` */
    int64_t peak;                       /* persistent + largest function peak */
    int64_t lower_bound;                /* persistent + largest function lower bound */
    PeftFn peak_fn;
    int64_t by_class[PEFT_MEM_CLASSES]; /* bytes alive at the peak step; sums to lower_bound */
} ProgramPlan;

/* fn_mask: bit per PeftFn to plan; train_sym, eval_sym: worst-case symbol values of the two kinds
 * of batch. */
bool program_plan(const PeftProgram *p, unsigned fn_mask, const int64_t train_sym[PEFT_SYM_COUNT],
                  const int64_t eval_sym[PEFT_SYM_COUNT], ProgramPlan *out, PeftError *err);
void program_plan_free(ProgramPlan *plan);

#endif
