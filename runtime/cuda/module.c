/* NVRTC compilation through the cache, and loading. The invariant: the options that key the cache
 * are the very array that NVRTC receives. */
#define _GNU_SOURCE /* memmem */
#include "module.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cubin_cache.h"

/* ---- the report of a compile error ---- */

enum {
    MAX_ERRORS = 16,
    MAX_LOG_BYTES = 16384,
    MAX_LINE_BYTES = 160,
    CONTEXT_LINES = 3 /* before and after the line in error */
};

typedef struct SourceLines {
    const char **line; /* starts, then the end of the text */
    int count;
} SourceLines;

static bool split_lines(const char *source, SourceLines *s) {
    size_t n = 1;
    for (const char *p = source; *p; p++) n += *p == '\n';
    *s = (SourceLines){NULL, 0};
    if (n >= INT_MAX || !(s->line = peft_alloc(n + 1, sizeof *s->line, NULL))) return false;
    s->line[s->count++] = source;
    for (const char *p = source; *p; p++)
        if (*p == '\n') s->line[s->count++] = p + 1;
    s->line[s->count] = source + strlen(source);
    return true;
}

static int line_length(const SourceLines *s, int i) {
    size_t n = (size_t)(s->line[i + 1] - s->line[i]);
    if (n > 0 && s->line[i][n - 1] == '\n') n--;
    return n > MAX_LINE_BYTES ? MAX_LINE_BYTES : (int)n;
}

static bool line_has(const SourceLines *s, int i, const char *word) {
    return memmem(s->line[i], (size_t)line_length(s, i), word, strlen(word)) != NULL;
}

static void print_line(FILE *out, const SourceLines *s, int i, int error_line) {
    fprintf(out, "%s%6d | %.*s\n", i == error_line ? ">" : " ", i + 1, line_length(s, i),
            s->line[i]);
}

/* The next error in a log, whose lines look like "name.cu(12): error: text"; sets the line number,
 * from 1, and the end of the log line. NULL when there is none. */
static const char *next_error(const char *log, int *number, const char **end) {
    for (; *log; log = **end ? *end + 1 : *end) {
        *end = log + strcspn(log, "\n");
        const char *mark = memmem(log, (size_t)(*end - log), "): error", strlen("): error"));
        if (!mark) mark = memmem(log, (size_t)(*end - log), "): catastrophic error", 21);
        if (!mark) continue;
        const char *digits = mark;
        while (digits > log && isdigit((unsigned char)digits[-1])) digits--;
        if (digits == mark || digits == log || digits[-1] != '(') continue;
        long value = strtol(digits, NULL, 10);
        *number = value > 0 && value < INT_MAX ? (int)value : 0;
        return log;
    }
    return NULL;
}

/* The lines around an error, headed by the kernel's declaration and the comment above it, which
 * tells the model lines. Lines up to `printed` are not repeated; the new last one is returned. */
static int print_around(FILE *out, const SourceLines *s, int error_line, int printed) {
    int first = error_line - CONTEXT_LINES, last = error_line + CONTEXT_LINES;
    if (first <= printed) first = printed + 1;
    if (last >= s->count) last = s->count - 1;
    int head = first - 1;
    while (head > printed && !line_has(s, head, "__global__")) head--;
    if (head > printed) {
        int comment = head;
        while (comment - 1 > printed && head - comment < 8 &&
               (line_has(s, comment - 1, "//") || line_has(s, comment - 1, "*")))
            comment--;
        for (int i = comment; i <= head; i++) print_line(out, s, i, error_line);
        if (head + 1 < first) fprintf(out, "   ...\n");
    } else if (first > printed + 1) {
        fprintf(out, "   ...\n");
    }
    for (int i = first; i <= last; i++) print_line(out, s, i, error_line);
    return last > printed ? last : printed;
}

static void print_source(FILE *out, const SourceLines *s, const char *log) {
    int number, errors = 0, printed = -1;
    const char *end = log;
    for (const char *at = log; errors < MAX_ERRORS && (at = next_error(at, &number, &end));
         at = end)
        if (number >= 1 && number <= s->count) {
            if (errors++ == 0) fprintf(out, "source:\n");
            printed = print_around(out, s, number - 1, printed);
        }
}

char *cuda_compile_report(const char *name, const char *source, const char *const *options,
                          int noptions, const char *log) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out) return NULL;
    fprintf(out, "%s does not compile\noptions:", name);
    for (int i = 0; i < noptions; i++) fprintf(out, " %s", options[i]);
    size_t length = strnlen(log, MAX_LOG_BYTES + 1);
    fprintf(out, "\nlog:\n%.*s%s\n", MAX_LOG_BYTES, log, length > MAX_LOG_BYTES ? " ..." : "");
    SourceLines lines;
    if (split_lines(source, &lines)) print_source(out, &lines, log);
    free(lines.line);
    if (fclose(out) == 0) return text;
    free(text);
    return NULL;
}

/* ---- compiling ---- */

static bool nvrtc_ok(const CudaApi *api, nvrtcResult code, const char *what, PeftError *err) {
    if (code == NVRTC_SUCCESS) return true;
    return peft_fail(err, "NVRTC %d.%d: %s: %s", api->nvrtc_major, api->nvrtc_minor, what,
                     api->nvrtcGetErrorString(code));
}

/* NVRTC would say only that an option is invalid. */
static bool arch_supported(const CudaApi *api, int arch, PeftError *err) {
    int n = 0, known = 0, newest = 0;
    if (!nvrtc_ok(api, api->nvrtcGetNumSupportedArchs(&n), "nvrtcGetNumSupportedArchs", err))
        return false;
    int *archs = n > 0 ? peft_zalloc((size_t)n, sizeof *archs, err) : NULL;
    if (n > 0 && !archs) return false;
    bool ok =
        n <= 0 || nvrtc_ok(api, api->nvrtcGetSupportedArchs(archs), "nvrtcGetSupportedArchs", err);
    for (int i = 0; ok && i < n; i++) {
        known |= archs[i] == arch;
        newest = archs[i] > newest ? archs[i] : newest;
    }
    free(archs);
    if (!ok || known) return ok;
    return peft_fail(err,
                     "NVRTC %d.%d cannot compile for sm_%d (its newest is sm_%d): install a newer "
                     "NVRTC, or name an architecture it knows",
                     api->nvrtc_major, api->nvrtc_minor, arch, newest);
}

/* The first error of the log as the message, the whole story on stderr. */
static bool report_failure(const CudaApi *api, nvrtcProgram program, nvrtcResult code,
                           const char *source, const char *name, const char *const *options,
                           int noptions, PeftError *err) {
    size_t size = 0;
    char *log = NULL;
    if (api->nvrtcGetProgramLogSize(program, &size) == NVRTC_SUCCESS && size > 0)
        log = peft_zalloc(size + 1, 1, NULL);
    if (log && api->nvrtcGetProgramLog(program, log) != NVRTC_SUCCESS) log[0] = 0;
    const char *text = log ? log : "", *end = text;
    int number;
    const char *first = next_error(text, &number, &end);
    if (!first) end = (first = text) + strcspn(text, "\n");
    const char *arch = strchr(options[0], '=') + 1; /* of -arch=sm_90 */
    peft_fail(err, "NVRTC %d.%d cannot compile %s for %s: %s%s%.*s", api->nvrtc_major,
              api->nvrtc_minor, name, arch, api->nvrtcGetErrorString(code), end > first ? ": " : "",
              (int)(end - first > 400 ? 400 : end - first), first);
    char *report = cuda_compile_report(name, source, options, noptions, text);
    if (report) fputs(report, stderr);
    free(report);
    free(log);
    return false;
}

static bool take_cubin(const CudaApi *api, nvrtcProgram program, char **cubin, size_t *n,
                       PeftError *err) {
    if (!nvrtc_ok(api, api->nvrtcGetCUBINSize(program, n), "nvrtcGetCUBINSize", err)) return false;
    if (*n == 0) return peft_fail(err, "NVRTC made an empty cubin: reinstall nvidia-cuda-nvrtc");
    if (!(*cubin = peft_alloc(*n, 1, err))) return false;
    if (nvrtc_ok(api, api->nvrtcGetCUBIN(program, *cubin), "nvrtcGetCUBIN", err)) return true;
    free(*cubin);
    *cubin = NULL;
    return false;
}

static bool run_nvrtc(const CudaApi *api, const char *source, const char *name,
                      const char *const *options, int noptions, char **cubin, size_t *n,
                      PeftError *err) {
    nvrtcProgram program;
    if (!nvrtc_ok(api, api->nvrtcCreateProgram(&program, source, name, 0, NULL, NULL),
                  "nvrtcCreateProgram", err))
        return false;
    nvrtcResult code = api->nvrtcCompileProgram(program, noptions, options);
    bool ok = code == NVRTC_SUCCESS
                  ? take_cubin(api, program, cubin, n, err)
                  : report_failure(api, program, code, source, name, options, noptions, err);
    api->nvrtcDestroyProgram(&program);
    return ok;
}

/* The cache in front of NVRTC. */
static bool find_or_compile(const CudaApi *api, const char *source, const char *name, int arch,
                            const char *const *options, int noptions, char **cubin, size_t *n,
                            PeftError *err) {
    CubinKey key = cubin_key(source, options, noptions, api->nvrtc_major, api->nvrtc_minor);
    char *dir = cubin_cache_dir();
    *cubin = dir ? cubin_cache_get(dir, &key, n) : NULL;
    bool ok = *cubin != NULL;
    if (!ok) {
        ok = arch_supported(api, arch, err) &&
             run_nvrtc(api, source, name, options, noptions, cubin, n, err);
        if (ok && dir) cubin_cache_put(dir, &key, *cubin, *n, CUBIN_CACHE_BYTES);
    }
    free(dir);
    return ok;
}

bool cuda_compile(const CudaApi *api, const char *source, const char *name, int major, int minor,
                  const char *const *options, int noptions, char **cubin, size_t *n,
                  PeftError *err) {
    char arch[32];
    snprintf(arch, sizeof arch, "-arch=sm_%d%d", major, minor);
    const char *const own[] = {arch, "--std=c++17", "-default-device"};
    int nown = (int)(sizeof own / sizeof *own);
    *cubin = NULL;
    *n = 0;
    const char **all = peft_alloc((size_t)(nown + noptions), sizeof *all, err);
    if (!all) return false;
    memcpy(all, own, sizeof own);
    for (int i = 0; i < noptions; i++) all[nown + i] = options[i];
    bool ok =
        find_or_compile(api, source, name, 10 * major + minor, all, nown + noptions, cubin, n, err);
    free(all);
    return ok;
}

/* ---- loading ---- */

bool cuda_module_load(const CudaApi *api, const void *cubin, CUmodule *module, PeftError *err) {
    *module = NULL;
    return cuda_ok(api->cuModuleLoadData(module, cubin),
                   "cannot load the compiled kernels: cuModuleLoadData", err);
}

void cuda_module_unload(const CudaApi *api, CUmodule module) {
    if (module) api->cuModuleUnload(module);
}
