/* Runs a program's functions in one arena. Everything a program touches (variables, the batch,
 * temporaries, workspace) lies at planned offsets in one allocation of exactly the planned bytes,
 * followed by a page that must not be touched; the high-water mark is kept step by step. */
#ifndef PEFT_EXEC_H
#define PEFT_EXEC_H

#include "error.h"
#include "peftrt.h"
#include "plan.h"

typedef enum Device {
    DEVICE_CPU,
    DEVICE_CUDA,
    DEVICE_NULL /* walks every step and checks every buffer, computes nothing */
} Device;

typedef enum Compute { /* how a GPU multiplies and stores matrices; the CPU's way is fp32 */
                       COMPUTE_FP32,
                       COMPUTE_BF16 /* with fp32 sums, statistics and master weights */
} Compute;

typedef struct StepTime { /* of one step of one function, summed over its runs */
    int64_t calls;
    double seconds, flop, bytes;
} StepTime;

typedef enum ExecScalar { EXEC_LOSS, EXEC_LR, EXEC_GRAD_NORM, EXEC_SCALARS } ExecScalar;

typedef struct ExecResult { /* of a submitted run */
    PeftFn fn;
    int64_t tokens;             /* of its batch */
    float scalar[EXEC_SCALARS]; /* its outputs of these names; 0 where it has none */
} ExecResult;

enum {
    EXEC_QUEUE = 32,  /* runs that may be submitted and not yet collected */
    EXEC_LARGEST = 16 /* sizes of batches that are kept, see exec.c */
};

typedef struct Exec {
    const PeftProgram *program;
    ProgramPlan plan;
    Device device;
    Compute compute;
    int threads;
    unsigned fn_mask;
    int64_t train_sym[PEFT_SYM_COUNT], eval_sym[PEFT_SYM_COUNT]; /* largest batches planned for */
    char *arena;                                                 /* plan.peak bytes */
    size_t mapped;                                               /* with the guard page */
    void *
        *arg[PEFT_FN_COUNT]; /* resolved buffers of all steps of a function, one after the other */
    void **workspace[PEFT_FN_COUNT]; /* per step */
    StepTime *time[PEFT_FN_COUNT];   /* per step when profiling, else NULL */
    int64_t room;       /* bytes that a refused plan would have had (exec_open failed), else 0 */
    int64_t high_water; /* last byte of the arena that a step needed, so far */
    int64_t largest[PEFT_FN_COUNT][EXEC_LARGEST][PEFT_SYM_COUNT]; /* sizes it was noted for */
    int64_t nlargest[PEFT_FN_COUNT];
    const float *scalar[PEFT_FN_COUNT][EXEC_SCALARS]; /* where a function leaves it, or NULL */
    ExecResult queue[EXEC_QUEUE]; /* a ring: `pending` submitted runs, the oldest first */
    int oldest, pending;
    struct CudaExec *cuda; /* of DEVICE_CUDA: the arena above mirrors its memory */
} Exec;

/* Plans for the worst batches (train_sym, eval_sym) and reserves the arena. fn_mask: bit per PeftFn
 * that will run. `budget` > 0 refuses a larger plan (exit code 3). */
bool exec_open(Exec *x, const PeftProgram *program, unsigned fn_mask, Device device,
               Compute compute, int threads, const int64_t train_sym[PEFT_SYM_COUNT],
               const int64_t eval_sym[PEFT_SYM_COUNT], int64_t budget, PeftError *err);
void exec_close(Exec *x);

/* Refuses a plan of more bytes than the budget (exit code 3); 0 is no budget. */
bool exec_within(int64_t bytes, int64_t budget, PeftError *err);

/* Completes a batch's symbols for a device: threads (0 on a GPU), bytes of a work value, and the
 * sizes that a GPU rounds up (PEFT_ROW_STEP). */
void exec_device_symbols(Device device, Compute compute, int threads, int64_t sym[PEFT_SYM_COUNT]);

const char *device_name(Device d); /* as --device and the metrics files write it */

/* A variable's place in the host's memory: exec_var to write it before the next run, exec_value to
 * read it. On a GPU its value there is what the host wrote, or what exec_pull copied back. */
void *exec_var(const Exec *x, int var);
const void *exec_value(const Exec *x, int var);
/* Sets a variable that nobody has written yet to zero without a byte of the host's; false: not on
 * this device, or too late. */
bool exec_zero(const Exec *x, int var);
bool exec_pull(Exec *x, PeftError *err);
void *exec_input(const Exec *x, PeftInputId id);
/* A function's output by name after a run; NULL when it has none of that name. */
const void *exec_output(const Exec *x, PeftFn fn, const char *name, const PeftOutput **info);

/* GPU memory the driver counts for this process beyond its context; -1 without a GPU. */
int64_t exec_driver_bytes(const Exec *x);

bool exec_profile(Exec *x, PeftFn fn, PeftError *err); /* starts timing the function's steps */

/* Adds a step's time, and what it moved and computed, to its row. */
void exec_note_time(Exec *x, PeftFn fn, int step, double seconds,
                    const int64_t sym[PEFT_SYM_COUNT]);

/* Starts what a device does only the first time that it runs a function, on the batch that lies in
 * the inputs. To be called before any function has run; variables may be written meanwhile. */
bool exec_warm_up(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);

/* Runs a function on the batch that lies in the inputs; sym are its symbol values. */
bool exec_run(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);

/* The same without waiting for it: the inputs may be written again at once, functions run in the
 * order in which they were submitted or run, and exec_collect gives the oldest one's scalars when
 * they are there. Submit only while the queue is not full, collect only while runs are pending. On
 * the CPU a run has ended when exec_submit returns, and one is a full queue. */
bool exec_submit(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);
bool exec_collect(Exec *x, ExecResult *out, PeftError *err);
bool exec_queue_full(const Exec *x);

/* Bytes of a variable as stored. */
int64_t var_bytes(const Exec *x, int var);
int64_t var_count(const PeftVar *v); /* logical elements */

#endif
