/* See code.h. A cubin for X.Y runs on every X.Z with Z >= Y, and on no other X. */
#include "code.h"
#include "module.h"

#include <stdlib.h>
#include <string.h>

extern const char cuda_text[]; /* kernel_cuda.h and the files behind it */

/* ---- parts of the source ---- */

/* A kernel, with what is declared for it before it, ends with a brace at the start of a line. The
 * next one from `at` on. */
static const char *next_kernel(const char *at) {
    static const char end[] = "\n}\n\n";
    const char *found = strstr(at, end);
    return found ? found + strlen(end) : at + strlen(at);
}

void cuda_code_split(const char *source, CudaSourcePart part[CUDA_CODE_PARTS]) {
    enum { SHARES = CUDA_CODE_PARTS - CUDA_TEMPLATE_PARTS };
    const char *at = source, *last = source + strlen(source);
    for (int i = 0; i < CUDA_TEMPLATE_PARTS; i++) part[i] = (CudaSourcePart){source, 0};
    for (int i = 1; i <= SHARES; i++) {
        const char *aim = source + (last - source) * i / SHARES;
        const char *end = i == SHARES ? last : next_kernel(aim > at ? aim : at);
        part[CUDA_TEMPLATE_PARTS + i - 1] = (CudaSourcePart){at, (size_t)(end - at)};
        at = end;
    }
}

int cuda_code_part(const char *source, const char *name) {
    CudaSourcePart part[CUDA_CODE_PARTS];
    char head[256];
    cuda_code_split(source, part);
    snprintf(head, sizeof head, "\n%s(", name);
    const char *at = strstr(source, head);
    int i = CUDA_CODE_PARTS - 1; /* one that is nowhere is missed in the last part, too */
    while (at && i > CUDA_TEMPLATE_PARTS && at < part[i].begin) i--;
    return i;
}

static bool compile_part(const CudaApi *api, const PeftProgram *p, int which,
                         const CudaSourcePart *s, PeftCubin *out, PeftError *err) {
    char name[160], number[32];
    /* Where results are rounded to bf16, functions that err in the last bits of a float will do. */
    const char *options[] = {"--fmad=true", number, "-DPEFT_BF16", "--use_fast_math"};
    snprintf(number, sizeof number, "-DPEFT_PART=%d", which);
    snprintf(name, sizeof name, "%.120s.%d.cu", p->name, which);
    size_t head = strlen(cuda_text);
    char *source = peft_alloc(head + s->bytes + 1, 1, err), *image = NULL;
    if (!source) return false;
    memcpy(source, cuda_text, head);
    memcpy(source + head, s->begin, s->bytes);
    source[head + s->bytes] = 0;
    bool ok = cuda_compile(api, source, name, out->major, out->minor, options,
                           out->work == 2 ? 4 : 2, &image, &out->bytes, err);
    out->image = image;
    free(source);
    return ok;
}

static void free_images(PeftCubin part[CUDA_CODE_PARTS]) {
    for (int i = 0; i < CUDA_CODE_PARTS; i++) free((void *)part[i].image);
}

bool cuda_code_compile(const CudaApi *api, const PeftProgram *p, Compute compute, int major,
                       int minor, PeftCubin part[CUDA_CODE_PARTS], PeftError *err) {
    CudaSourcePart source[CUDA_CODE_PARTS];
    PeftError why[CUDA_CODE_PARTS] = {{{0}, 0}};
    bool ok = true;
    cuda_code_split(p->cuda_source, source);
    for (int i = 0; i < CUDA_CODE_PARTS; i++)
        part[i] = (PeftCubin){.major = (uint8_t)major,
                              .minor = (uint8_t)minor,
                              .work = compute == COMPUTE_BF16 ? 2 : 4,
                              .part = (uint8_t)i};
#pragma omp parallel for num_threads(CUDA_CODE_PARTS) schedule(static, 1)
    for (int i = 0; i < CUDA_CODE_PARTS; i++)
        compile_part(api, p, i, &source[i], &part[i], &why[i]);
    for (int i = 0; i < CUDA_CODE_PARTS; i++)
        if (!part[i].image) ok = peft_fail(err, "%s", why[i].msg);
    if (!ok) free_images(part);
    return ok;
}

/* ---- parts in the executable ---- */

static const PeftCubin *built_in(const PeftProgram *p, int which, Compute compute, int major,
                                 int minor) {
    const PeftCubin *best = NULL;
    for (int i = 0; i < p->ncubin; i++) {
        const PeftCubin *c = &p->cubin[i];
        if (c->part == which && c->work == (compute == COMPUTE_BF16 ? 2 : 4) && c->major == major &&
            c->minor <= minor && (!best || c->minor > best->minor))
            best = c;
    }
    return best;
}

bool cuda_code_is_built_in(const PeftProgram *p, Compute compute, int major, int minor) {
    for (int i = 0; i < CUDA_CODE_PARTS; i++)
        if (!built_in(p, i, compute, major, minor)) return false;
    return true;
}

/* ---- loading ---- */

static bool compile_and_load(CudaCode *code, CudaApi *api, const PeftProgram *p, Compute compute,
                             const CudaDevice *gpu, PeftError *err) {
    PeftCubin part[CUDA_CODE_PARTS];
    if (!cuda_api_need_compiler(api, err) ||
        !cuda_code_compile(api, p, compute, gpu->major, gpu->minor, part, err))
        return false;
    bool ok = true;
    for (int i = 0; ok && i < CUDA_CODE_PARTS; i++)
        ok = cuda_module_load(api, part[i].image, &code->module[i], err);
    free_images(part);
    return ok;
}

bool cuda_code_open(CudaCode *code, CudaApi *api, const PeftProgram *p, Compute compute,
                    const CudaDevice *gpu, PeftError *err) {
    if (!cuda_code_is_built_in(p, compute, gpu->major, gpu->minor))
        return compile_and_load(code, api, p, compute, gpu, err);
    for (int i = 0; i < CUDA_CODE_PARTS; i++) {
        const PeftCubin *c = built_in(p, i, compute, gpu->major, gpu->minor);
        if (!cuda_module_load(api, c->image, &code->module[i], err)) return false;
    }
    return true;
}

void cuda_code_close(CudaCode *code, const CudaApi *api) {
    for (int i = 0; i < CUDA_CODE_PARTS; i++) {
        cuda_module_unload(api, code->module[i]);
        code->module[i] = NULL;
    }
}

bool cuda_code_function(const CudaCode *code, const CudaApi *api, int part, const char *name,
                        CUfunction *function, PeftError *err) {
    char what[256];
    snprintf(what, sizeof what, "cannot find the kernel %s: cuModuleGetFunction", name);
    return cuda_ok(api->cuModuleGetFunction(function, code->module[part], name), what, err);
}
