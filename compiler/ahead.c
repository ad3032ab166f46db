/* See ahead.h. */
#include "ahead.h"

#include "../runtime/cuda/code.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, WAYS = 2 }; /* architectures; fp32 and bf16 */

static const Compute way[WAYS] = {COMPUTE_FP32, COMPUTE_BF16};

/* "sm_90" at the start of text; what follows must be a comma or the end. */
static bool read_arch(const char **text, int *arch) {
    char *end;
    if (strncmp(*text, "sm_", 3) != 0 || !isdigit((unsigned char)(*text)[3])) return false;
    long n = strtol(*text + 3, &end, 10);
    if ((*end && *end != ',') || (*end == ',' && !end[1]) || n > 999) return false;
    *arch = (int)n;
    *text = *end ? end + 1 : end;
    return true;
}

/* How many; -1 with a message. */
static int read_list(const char *list, int arch[MOST], PeftError *err) {
    int n = 0;
    err->code = 2;
    for (const char *at = list; *at || n == 0;) {
        if (n == MOST) {
            peft_fail(err, "--arch takes at most %d architectures", MOST);
            return -1;
        }
        if (!read_arch(&at, &arch[n])) {
            peft_fail(err, "--arch takes architectures like sm_80 or sm_80,sm_90, not '%s'", list);
            return -1;
        }
        if (arch[n] < 10 * CUDA_MIN_CAPABILITY) {
            peft_fail(err, "--arch sm_%d is older than sm_%d, the first that programs run on",
                      arch[n], 10 * CUDA_MIN_CAPABILITY);
            return -1;
        }
        n++;
    }
    err->code = 0;
    return n;
}

bool ahead_compile(Ahead *a, const PeftProgram *p, const char *list, PeftError *err) {
    CudaApi *api;
    int arch[MOST], n = read_list(list, arch, err);
    if (n < 0 || !cuda_api_open_compiler(&api, err)) return false;
    a->cubin = peft_zalloc((size_t)(n * WAYS * CUDA_CODE_PARTS), sizeof *a->cubin, err);
    bool ok = a->cubin != NULL;
    for (int i = 0; ok && i < n * WAYS; i++) {
        int sm = arch[i / WAYS];
        ok = cuda_code_compile(api, p, way[i % WAYS], sm / 10, sm % 10, &a->cubin[a->n], err);
        if (ok) a->n += CUDA_CODE_PARTS;
    }
    cuda_api_close(api);
    return ok;
}

void ahead_free(Ahead *a) {
    for (int32_t i = 0; i < a->n; i++) free((void *)a->cubin[i].image);
    free(a->cubin);
}
