/* Compiles programs' CUDA kernels as the runtime would, in both compute types, without a GPU:
 *
 *   nvrtc SM FILE...    SM: 80, 90, ...; FILE: what peftc --emit cuda wrote
 *
 * Prints a line for each file and compute type, "ok lora_r16 sm_90 bf16" or "FAIL ...: why". What
 * all programs share is compiled once where PEFTC_CACHE names a folder. Exit code 77 when NVRTC is
 * not to be had. */
#include "runtime/cuda/code.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_all(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t n = 0;
    if (!f || getdelim(&text, &n, 0, f) < 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    fclose(f);
    return text;
}

static bool try(const CudaApi *api, const PeftProgram *p, Compute compute, int sm) {
    const char *type = compute == COMPUTE_BF16 ? "bf16" : "fp32";
    PeftCubin part[CUDA_CODE_PARTS];
    PeftError err = {{0}, 0};
    if (!cuda_code_compile(api, p, compute, sm / 10, sm % 10, part, &err)) {
        printf("FAIL %s sm_%d %s: %s\n", p->name, sm, type, err.msg);
        return false;
    }
    for (int i = 0; i < CUDA_CODE_PARTS; i++) free((void *)part[i].image);
    printf("ok %s sm_%d %s\n", p->name, sm, type);
    return true;
}

static bool try_file(const CudaApi *api, const char *path, int sm) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *name = strndup(base, strcspn(base, ".")), *source = read_all(path);
    const PeftProgram p = {.name = name, .cuda_source = source};
    bool ok = true;
    for (int compute = COMPUTE_FP32; compute <= COMPUTE_BF16; compute++)
        ok &= try(api, &p, (Compute)compute, sm);
    free(source);
    free(name);
    return ok;
}

int main(int argc, char **argv) {
    PeftError err = {{0}, 0};
    CudaApi *api;
    bool ok = true;
    if (argc < 3) return 2;
    if (!cuda_api_open_compiler(&api, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 77;
    }
    for (int i = 2; i < argc; i++) ok &= try_file(api, argv[i], atoi(argv[1]));
    cuda_api_close(api);
    return !ok;
}
