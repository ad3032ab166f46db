/* Compiles a program's CUDA kernels as the runtime would, without a GPU:
 *
 *   nvrtc SM FILE [OPTION...]    SM: 80, 90, ...; FILE: what peftc --emit cuda wrote
 *
 * Exit code 77 when NVRTC is not to be had. */
#include "runtime/cuda/module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char cuda_text[];

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

int main(int argc, char **argv) {
    PeftError err = {{0}, 0};
    CudaApi *api;
    if (argc < 3) return 2;
    int sm = atoi(argv[1]);
    if (!cuda_api_open_compiler(&api, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 77;
    }
    char *kernels = read_all(argv[2]), *cubin;
    size_t n, size = strlen(cuda_text) + strlen(kernels) + 1;
    char *source = malloc(size);
    snprintf(source, size, "%s%s", cuda_text, kernels);
    bool ok = cuda_compile(api, source, argv[2], sm / 10, sm % 10,
                           (const char *const *)argv + 3, argc - 3, &cubin, &n, &err);
    if (ok)
        printf("%s sm_%d: %zu bytes\n", argv[2], sm, n);
    else
        fprintf(stderr, "%s\n", err.msg);
    if (ok) free(cubin);
    free(source);
    free(kernels);
    cuda_api_close(api);
    return !ok;
}
