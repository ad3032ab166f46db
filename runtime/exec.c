/* Arena, argument resolution and the step loop. Offsets do not depend on the batch, so all pointers
 * are resolved once; a run only dispatches. */
#include "exec.h"
#include "cpu/steps.h"
#include "cuda/device.h"
#include "measure.h"
#include "null/null.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int64_t var_bytes(const Exec *x, int var) {
    const PeftVar *v = &x->program->var[var];
    return plan_bytes(v->dtype, v->rank, v->dim, x->train_sym);
}

int64_t var_count(const PeftVar *v) {
    int64_t n = 1;
    for (int i = 0; i < v->rank; i++) n *= v->dim[i];
    return n;
}

/* ---- arena ---- */

static bool arena_map(Exec *x, PeftError *err) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = ((size_t)x->plan.peak + page - 1) / page * page;
    x->mapped = bytes + page;
    char *at = mmap(NULL, x->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        x->mapped = 0;
        err->code = 3;
        return peft_fail(err, "cannot reserve the planned %.1f MB: %s; use a smaller fit.batch",
                         (double)x->plan.peak / 1e6, strerror(errno));
    }
    /* A GPU's host fills the variables and touches nothing else: huge pages spare it the faults. On
     * the CPU, where all of the arena is used, finding them can take longer than it saves. */
    if (x->device == DEVICE_CUDA) madvise(at, bytes, MADV_HUGEPAGE);
    mprotect(at + bytes, page, PROT_NONE);
    /* The arena ends at the guard page, so that one byte too far is a fault; offsets stay aligned.
     */
    x->arena = at + (bytes - (size_t)x->plan.peak) / PEFT_ALIGN * PEFT_ALIGN;
    return true;
}

static void *resolve(const Exec *x, PeftFn fn, int32_t ref) {
    int i = PEFT_REF_INDEX(ref);
    switch (PEFT_REF_KIND(ref)) {
    case PEFT_REF_VAR: return x->arena + x->plan.var_offset[i];
    case PEFT_REF_INPUT: return x->arena + x->plan.input_offset[i];
    case PEFT_REF_TEMP: return x->arena + x->plan.persistent + x->plan.temp_offset[fn][i];
    default: return NULL;
    }
}

static bool resolve_function(Exec *x, PeftFn fn, PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    size_t total = 0;
    for (int s = 0; s < f->nstep; s++) total += (size_t)f->step[s].narg;
    x->arg[fn] = peft_zalloc(total, sizeof(void *), err);
    x->workspace[fn] = peft_zalloc((size_t)f->nstep, sizeof(void *), err);
    if (!x->arg[fn] || !x->workspace[fn]) return false;
    size_t at = 0;
    for (int s = 0; s < f->nstep; s++) {
        for (int k = 0; k < f->step[s].narg; k++)
            x->arg[fn][at++] = resolve(x, fn, f->step[s].arg[k]);
        x->workspace[fn][s] = resolve(x, fn, f->step[s].workspace);
    }
    return true;
}

static void find_scalars(Exec *x, PeftFn fn) {
    static const char *const name[EXEC_SCALARS] = {
        [EXEC_LOSS] = "loss", [EXEC_LR] = "lr", [EXEC_GRAD_NORM] = "grad_norm"};
    for (int i = 0; i < EXEC_SCALARS; i++) x->scalar[fn][i] = exec_output(x, fn, name[i], NULL);
}

bool exec_within(int64_t bytes, int64_t budget, PeftError *err) {
    if (budget <= 0 || bytes <= budget) return true;
    err->code = 3;
    return peft_fail(err, "the plan needs %.1f MB and the budget is %.1f MB", (double)bytes / 1e6,
                     (double)budget / 1e6);
}

static bool within_budget(Exec *x, int64_t budget, PeftError *err) {
    if (exec_within(x->plan.peak, budget, err)) return true;
    x->room = budget;
    return false;
}

void exec_device_symbols(Device device, Compute compute, int threads, int64_t sym[PEFT_SYM_COUNT]) {
    sym[PEFT_SYM_P] = device == DEVICE_CUDA ? 0 : threads;
    sym[PEFT_SYM_W] = compute == COMPUTE_BF16 ? 2 : sizeof(float);
    for (int s = PEFT_SYM_T; device == DEVICE_CUDA && s <= PEFT_SYM_M; s++)
        if (s != PEFT_SYM_S) sym[s] = (sym[s] + PEFT_ROW_STEP - 1) / PEFT_ROW_STEP * PEFT_ROW_STEP;
}

static void set_device_symbols(const Exec *x, int64_t *sym) {
    exec_device_symbols(x->device, x->compute, x->threads, sym);
}

bool exec_open(Exec *x, const PeftProgram *program, unsigned fn_mask, Device device,
               Compute compute, int threads, const int64_t train_sym[PEFT_SYM_COUNT],
               const int64_t eval_sym[PEFT_SYM_COUNT], int64_t budget, PeftError *err) {
    memset(x, 0, sizeof *x);
    x->program = program;
    x->device = device;
    x->compute = device == DEVICE_CUDA ? compute : COMPUTE_FP32;
    x->threads = threads;
    memcpy(x->train_sym, train_sym, sizeof x->train_sym);
    memcpy(x->eval_sym, eval_sym, sizeof x->eval_sym);
    if (device == DEVICE_CUDA) x->threads = 0;
    set_device_symbols(x, x->train_sym);
    set_device_symbols(x, x->eval_sym);
    for (int f = 0; f < PEFT_FN_COUNT; f++)
        if (program->fn[f].nstep) x->fn_mask |= (fn_mask | 1u << PEFT_FN_START) & 1u << f;
    if (device == DEVICE_CPU && !cpu_ready(err)) return false;
    bool ok = program_plan(program, x->fn_mask, x->train_sym, x->eval_sym, &x->plan, err) &&
              within_budget(x, budget, err) && arena_map(x, err);
    for (int f = 0; ok && f < PEFT_FN_COUNT; f++) {
        if (!(x->fn_mask >> f & 1)) continue;
        ok = resolve_function(x, (PeftFn)f, err);
        find_scalars(x, (PeftFn)f);
    }
    if (ok && device == DEVICE_CUDA) ok = cuda_open(x, err);
    if (!ok) {
        int64_t room = x->room;
        exec_close(x);
        x->room = room;
    }
    return ok;
}

void exec_close(Exec *x) {
    if (x->cuda) cuda_close(x);
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        free(x->arg[f]);
        free(x->workspace[f]);
        free(x->time[f]);
    }
    if (x->mapped) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        munmap((char *)((uintptr_t)x->arena / page * page), x->mapped);
    }
    program_plan_free(&x->plan);
    memset(x, 0, sizeof *x);
}

const char *device_name(Device d) {
    static const char *const name[] = {
        [DEVICE_CPU] = "cpu", [DEVICE_CUDA] = "cuda", [DEVICE_NULL] = "null"};
    return name[d];
}

bool exec_pull(Exec *x, PeftError *err) {
    return !x->cuda || cuda_pull(x, err);
}

const void *exec_value(const Exec *x, int var) {
    return x->arena + x->plan.var_offset[var];
}

void *exec_var(const Exec *x, int var) {
    if (x->cuda) cuda_touch(x, var);
    return (void *)exec_value(x, var);
}

bool exec_zero(const Exec *x, int var) {
    return x->cuda && cuda_zero(x, var);
}

int64_t exec_driver_bytes(const Exec *x) {
    return x->cuda ? cuda_driver_bytes(x) : -1;
}

void *exec_input(const Exec *x, PeftInputId id) {
    return x->arena + x->plan.input_offset[id];
}

const void *exec_output(const Exec *x, PeftFn fn, const char *name, const PeftOutput **info) {
    const PeftFunction *f = &x->program->fn[fn];
    for (int i = 0; i < f->nout; i++) {
        if (strcmp(f->out[i].name, name) != 0) continue;
        if (info) *info = &f->out[i];
        return resolve(x, fn, f->out[i].ref);
    }
    return NULL;
}

/* ---- running ---- */

/* The arena's high-water mark is what the step's buffers need for this batch's sizes. */
static void note_step(Exec *x, PeftFn fn, const PeftStep *s, const int64_t *sym) {
    for (int k = -1; k < s->narg; k++) {
        int32_t ref = k < 0 ? s->workspace : s->arg[k];
        if (PEFT_REF_KIND(ref) != PEFT_REF_TEMP) continue;
        int i = PEFT_REF_INDEX(ref);
        int64_t bytes = plan_placed(plan_temp_bytes(x->program, fn, i, sym));
        int64_t end = x->plan.persistent + x->plan.temp_offset[fn][i] + bytes;
        if (end > x->high_water) x->high_water = end;
    }
}

static bool at_least(const int64_t *a, const int64_t *b) {
    for (int i = 0; i < PEFT_SYM_COUNT; i++)
        if (a[i] < b[i]) return false;
    return true;
}

/* Buffers grow with every symbol, so a batch that is nowhere larger than one noted before cannot
 * raise the mark. The last batches noted are remembered: few of them are larger than most others.
 */
static void note_high_water(Exec *x, PeftFn fn, const int64_t *sym) {
    const PeftFunction *f = &x->program->fn[fn];
    for (int64_t i = 0; i < x->nlargest[fn] && i < EXEC_LARGEST; i++)
        if (at_least(x->largest[fn][i], sym)) return;
    memcpy(x->largest[fn][x->nlargest[fn]++ % EXEC_LARGEST], sym, sizeof x->largest[fn][0]);
    if (x->plan.persistent > x->high_water) x->high_water = x->plan.persistent;
    for (int i = 0; i < f->nstep; i++) note_step(x, fn, &f->step[i], sym);
}

bool exec_profile(Exec *x, PeftFn fn, PeftError *err) {
    free(x->time[fn]);
    x->time[fn] = peft_zalloc((size_t)x->program->fn[fn].nstep, sizeof(StepTime), err);
    return x->time[fn] != NULL;
}

static double argument_bytes(const PeftProgram *p, PeftFn fn, const PeftStep *s, int from, int to,
                             const int64_t *sym) {
    double bytes = 0;
    for (int k = from; k < to; k++) {
        int i = PEFT_REF_INDEX(s->arg[k]);
        const PeftTemp *t = &p->fn[fn].temp[i];
        const PeftVar *v = &p->var[i];
        if (PEFT_REF_KIND(s->arg[k]) == PEFT_REF_TEMP)
            bytes += (double)plan_bytes(t->dtype, t->rank, t->dim, sym);
        else if (PEFT_REF_KIND(s->arg[k]) == PEFT_REF_VAR)
            bytes += (double)plan_bytes(v->dtype, v->rank, v->dim, sym);
    }
    return bytes;
}

/* Bytes a step moves at least: every buffer it was given, once. */
static double step_bytes(const Exec *x, PeftFn fn, const PeftStep *s, const int64_t *sym) {
    const PeftProgram *p = x->program;
    if (x->device != DEVICE_CUDA) return argument_bytes(p, fn, s, 0, s->narg, sym);
    PeftSpan span[PEFT_SPANS];
    double bytes = 0;
    if (peft_is_second(p, s) && peft_own_args(p, s) == peft_product_args(s)) return 0;
    peft_spans(p, s, span);
    for (int i = 0; i < PEFT_SPANS; i++)
        bytes += argument_bytes(p, fn, span[i].step, span[i].begin, span[i].end, sym);
    return bytes;
}

static double product_flop(const PeftStep *s, const int64_t *sym) {
    const PeftGemm *g = s->desc;
    return 2.0 * (double)peft_dim(g->m, sym) * (double)peft_dim(g->n, sym) *
           (double)peft_dim(g->k, sym);
}

/* What a step multiplies itself. */
static double step_flop(const Exec *x, const PeftStep *s, const int64_t *sym) {
    const PeftProgram *p = x->program;
    if (p->kernel[s->kernel].kind != PEFT_KERNEL_GEMM) return 0;
    if (x->device != DEVICE_CUDA) return product_flop(s, sym);
    const PeftStep *second = peft_second(p, s);
    return (peft_is_second(p, s) ? 0 : product_flop(s, sym)) +
           (second ? product_flop(second, sym) : 0);
}

void exec_note_time(Exec *x, PeftFn fn, int step, double seconds,
                    const int64_t sym[PEFT_SYM_COUNT]) {
    const PeftStep *s = &x->program->fn[fn].step[step];
    StepTime *t = &x->time[fn][step];
    t->calls++;
    t->seconds += seconds;
    t->bytes += step_bytes(x, fn, s, sym);
    t->flop += step_flop(x, s, sym);
}

static bool fits_plan(const Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    static const char *const names[] = {"?", "tokens", "sequences", "masked positions",
                                        "tokens in a sequence"};
    const int64_t *planned = fn == PEFT_FN_EVAL ? x->eval_sym : x->train_sym;
    for (int s = PEFT_SYM_T; s <= PEFT_SYM_L; s++)
        if (sym[s] > planned[s])
            return peft_fail(err, "the batch has %lld %s and the plan has room for %lld",
                             (long long)sym[s], names[s], (long long)planned[s]);
    return true;
}

/* Checks a batch's sizes against the plan and adds the device's symbols to them. */
static bool prepare(Exec *x, PeftFn fn, const int64_t *sym, int64_t full[PEFT_SYM_COUNT],
                    PeftError *err) {
    if (!fits_plan(x, fn, sym, err)) return false;
    memcpy(full, sym, PEFT_SYM_COUNT * sizeof *sym);
    set_device_symbols(x, full);
    if (x->device == DEVICE_NULL && !null_check(x, fn, full, err)) return false;
    note_high_water(x, fn, full);
    return true;
}

bool exec_warm_up(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    int64_t full[PEFT_SYM_COUNT];
    if (x->device != DEVICE_CUDA) return true;
    if (!fits_plan(x, fn, sym, err)) return false;
    memcpy(full, sym, PEFT_SYM_COUNT * sizeof *sym);
    set_device_symbols(x, full);
    return cuda_warm_up(x, fn, sym, full, err);
}

bool exec_run(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    int64_t full[PEFT_SYM_COUNT];
    if (!prepare(x, fn, sym, full, err)) return false;
    if (x->device == DEVICE_CUDA) return cuda_run(x, fn, sym, full, err);
    void **arg = x->arg[fn];
    for (int i = 0; i < f->nstep; i++) {
        const PeftStep *s = &f->step[i];
        if (x->device == DEVICE_CPU) {
            double t0 = x->time[fn] ? clock_seconds() : 0;
            cpu_step(x->program, s, arg, x->workspace[fn][i], full, x->threads);
            if (x->time[fn]) exec_note_time(x, fn, i, clock_seconds() - t0, full);
        }
        arg += s->narg;
    }
    return true;
}

bool exec_queue_full(const Exec *x) {
    return x->pending == (x->device == DEVICE_CUDA ? EXEC_QUEUE : 1);
}

bool exec_submit(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    int64_t full[PEFT_SYM_COUNT];
    int at = (x->oldest + x->pending) % EXEC_QUEUE;
    ExecResult *r = &x->queue[at];
    *r = (ExecResult){.fn = fn, .tokens = sym[PEFT_SYM_T]};
    if (x->device == DEVICE_CUDA) {
        if (!prepare(x, fn, sym, full, err) || !cuda_submit(x, fn, sym, full, at, err))
            return false;
    } else {
        if (!exec_run(x, fn, sym, err)) return false;
        for (int i = 0; i < EXEC_SCALARS; i++)
            if (x->scalar[fn][i]) r->scalar[i] = *x->scalar[fn][i];
    }
    x->pending++;
    return true;
}

bool exec_collect(Exec *x, ExecResult *out, PeftError *err) {
    int at = x->oldest;
    if (x->device == DEVICE_CUDA && !cuda_collect(x, at, x->queue[at].scalar, err)) return false;
    *out = x->queue[at];
    x->oldest = (at + 1) % EXEC_QUEUE;
    x->pending--;
    return true;
}
