/* A CUDA driver, NVRTC and cuBLASLt in one library that has no GPU and does everything as late as
 * the interface allows: launches and copies wait in a queue until somebody waits for them, and no
 * further than is asked for. What a caller reads or overwrites too early is wrong here every time.
 * Copies from memory that is not page-locked take it at once, copies to it run the queue, as CUDA's
 * do. All streams are one queue. Kernels are those at the end. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPS = 1 << 16, MAX_PARAMS = 8, MAX_BLOCKS = 64 };

typedef struct Op {
    char *to;
    const char *from; /* of a copy, or NULL: a kernel */
    char *staged;     /* owned */
    size_t bytes;
    const char *kernel;
    void *param[MAX_PARAMS];
} Op;

typedef struct List {
    Op op[MAX_OPS];
    int n;
} List;

typedef struct Graph {
    List list;
} Graph;

/* What the test looks at. */
int late_waits;     /* calls that had to wait */
int late_downloads; /* copies to the host */
int late_uploads;   /* copies from memory that is not page-locked */
int late_graphs;    /* made */
int late_misuse;    /* memory given back while the queue was not empty */

static List queue;
static int queue_done;
static Graph *capturing;
static struct {
    char *at;
    size_t bytes;
} locked[MAX_BLOCKS];

static int is_locked(const void *p) {
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (locked[i].at && (const char *)p >= locked[i].at &&
            (const char *)p < locked[i].at + locked[i].bytes)
            return 1;
    return 0;
}

/* ---- the queue ---- */

static void loss(void **p);
static void update(void **p);
static void receive(void **p);
static void send(void **p);

static void run(Op *op) {
    if (op->from)
        memcpy(op->to, op->from, op->bytes);
    else if (strcmp(op->kernel, "late_loss") == 0)
        loss(op->param);
    else if (strcmp(op->kernel, "late_update") == 0)
        update(op->param);
    else if (strcmp(op->kernel, "peft_receive") == 0)
        receive(op->param);
    else if (strcmp(op->kernel, "peft_send") == 0)
        send(op->param);
    free(op->staged);
}

static void run_until(int end) {
    if (queue_done < end) late_waits++;
    while (queue_done < end) run(&queue.op[queue_done++]);
}

static int enqueue(const Op *op) {
    List *l = capturing ? &capturing->list : &queue;
    if (l->n == MAX_OPS) abort();
    l->op[l->n++] = *op;
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    Op op = {.to = (char *)to, .from = from, .bytes = bytes};
    if (!is_locked(from)) {
        late_uploads++;
        op.staged = malloc(bytes);
        memcpy(op.staged, from, bytes);
        op.from = op.staged;
    }
    return enqueue(&op);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    (void)stream;
    Op op = {.to = to, .from = (const char *)from, .bytes = bytes};
    late_downloads++;
    enqueue(&op);
    if (!is_locked(to)) run_until(queue.n);
    return 0;
}

int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    Op op = {.to = (char *)at, .staged = malloc(bytes), .bytes = bytes};
    memset(op.staged, value, bytes);
    op.from = op.staged;
    return enqueue(&op);
}

int cuLaunchKernelEx(const void *config, void *f, void **arg, void **extra) {
    (void)config, (void)extra;
    Op op = {.kernel = f};
    int n = strcmp(f, "late_update") == 0 ? 5 : strcmp(f, "peft_receive") == 0 ? 6 : 4;
    for (int i = 0; i < n; i++) memcpy(&op.param[i], arg[i], i < 5 ? sizeof op.param[i] : 4);
    return enqueue(&op);
}

int cuStreamSynchronize(void *stream) {
    (void)stream;
    run_until(queue.n);
    return 0;
}

/* ---- events: a place in the queue ---- */

int cuEventCreate(int **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    return 0;
}

int cuEventDestroy_v2(int *event) {
    free(event);
    return 0;
}

int cuEventRecord(int *event, void *stream) {
    (void)stream;
    if (!capturing) *event = queue.n;
    return 0;
}

int cuEventSynchronize(int *event) {
    run_until(*event);
    return 0;
}

/* ---- graphs ---- */

int cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)stream, (void)mode;
    capturing = calloc(1, sizeof *capturing);
    return 0;
}

int cuStreamEndCapture(void *stream, Graph **graph) {
    (void)stream;
    *graph = capturing;
    capturing = NULL;
    return 0;
}

int cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long flags) {
    (void)flags;
    *exec = malloc(sizeof **exec);
    **exec = *graph;
    late_graphs++;
    return 0;
}

int cuGraphLaunch(Graph *exec, void *stream) {
    (void)stream;
    for (int i = 0; i < exec->list.n; i++) enqueue(&exec->list.op[i]);
    return 0;
}

int cuGraphDestroy(Graph *graph) {
    free(graph);
    return 0;
}

int cuGraphExecDestroy(Graph *exec) {
    free(exec);
    return 0;
}

/* ---- memory ---- */

int cuMemAlloc_v2(uint64_t *at, size_t bytes) { /* whatever lies there */
    *at = (uint64_t)malloc(bytes);
    memset((void *)*at, 0x41, bytes);
    return 0;
}

int cuMemFree_v2(uint64_t at) {
    late_misuse += queue_done < queue.n;
    free((void *)at);
    return 0;
}

int cuMemAllocHost_v2(void **at, size_t bytes) {
    *at = calloc(1, bytes);
    for (int i = 0; i < MAX_BLOCKS; i++) {
        if (locked[i].at) continue;
        locked[i].at = *at;
        locked[i].bytes = bytes;
        return 0;
    }
    return 2;
}

int cuMemFreeHost(void *at) {
    late_misuse += queue_done < queue.n;
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (locked[i].at == at) locked[i].at = NULL;
    free(at);
    return 0;
}

/* ---- what opening asks for ---- */

int cuDriverGetVersion(int *v) {
    *v = 12040;
    return 0;
}

int cuDeviceGetCount(int *n) {
    *n = 1;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "Late GPU", (size_t)size);
    return 0;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    *value = which == 75 ? 9 : which == 76 || which == 20 ? 0 : 128;
    return 0;
}

int cuDeviceTotalMem_v2(size_t *n, int device) {
    (void)device;
    *n = 1 << 30;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &queue;
    return 0;
}

int cuMemGetInfo_v2(size_t *available, size_t *total) {
    *available = *total = 1 << 30;
    return 0;
}

int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    *stream = &queue;
    return 0;
}

int cuModuleLoadData(void **module, const void *image) {
    (void)image;
    *module = &queue;
    return 0;
}

int cuModuleGetFunction(const char **f, void *module, const char *name) {
    (void)module;
    *f = name;
    return 0;
}

int nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 4;
    return 0;
}

int nvrtcGetNumSupportedArchs(int *n) {
    *n = 1;
    return 0;
}

int nvrtcGetSupportedArchs(int *arch) {
    *arch = 90;
    return 0;
}

int nvrtcGetCUBINSize(void *program, size_t *n) {
    (void)program;
    *n = 64;
    return 0;
}

int nvrtcGetCUBIN(void *program, char *cubin) {
    (void)program;
    memcpy(cubin, "\177ELF", 4);
    return 0;
}

size_t cublasLtGetVersion(void) {
    return 120400;
}

int cublasLtCreate(void **handle) {
    *handle = &queue;
    return 0;
}

/* ---- kernels: their buffers, then the symbols (T is the second) and the rows ---- */

/* tokens, loss: the sum of the batch's tokens. */
static void loss(void **p) {
    const int32_t *token = p[0];
    const int64_t *sym = p[2];
    float sum = 0;
    for (int64_t i = 0; i < sym[1]; i++) sum += (float)token[i];
    *(float *)p[1] = sum;
}

/* loss, w, norm: w gains the loss, and the norm is w. */
static void update(void **p) {
    float *w = p[1];
    *w += *(const float *)p[0];
    *(float *)p[2] = *w;
}

/* from, to, vectors of 16 bytes, sizes, symbols, how many. */
static void receive(void **p) {
    memcpy(p[1], p[0], 16 * (size_t)p[2]);
    memcpy(p[4], p[3], 8 * (size_t)p[5]);
}

/* Three scalars, each NULL where there is none, to memory that the host reads. */
static void send(void **p) {
    for (int i = 0; i < 3; i++)
        if (p[i]) ((float *)p[3])[i] = *(const float *)p[i];
}
