/* See origin.h. PEFTC_COMMIT comes from the makefile. */
#include "origin.h"
#include "../cuda/api.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>

#ifndef PEFTC_COMMIT
#define PEFTC_COMMIT "unknown"
#endif

const char peftc_commit[] = PEFTC_COMMIT;

int64_t weights_on_disk(const char *dir) {
    static const char suffix[] = ".safetensors";
    int64_t sum = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        size_t n = strlen(e->d_name), k = sizeof suffix - 1;
        if (n > k && strcmp(e->d_name + n - k, suffix) == 0 &&
            fstatat(dirfd(d), e->d_name, &st, 0) == 0)
            sum += st.st_size;
    }
    if (d) closedir(d);
    return sum;
}

/* The rest of the first line of a file that begins with `key`, from `from` on; printable ASCII. */
static bool find_line(const char *path, const char *key, const char *from, char out[128]) {
    char line[512];
    bool found = false;
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof line, f)) {
        const char *at = strncmp(line, key, strlen(key)) == 0 ? strstr(line, from) : NULL;
        if (!at) continue;
        at += strlen(from);
        at += strspn(at, " \t");
        snprintf(out, 128, "%.*s", (int)strcspn(at, "\n"), at);
        found = *out != 0;
    }
    if (f) fclose(f);
    for (char *c = out; found && *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
    return found;
}

static void processor_name(char out[128]) {
    struct utsname u;
    if (find_line("/proc/cpuinfo", "model name", ":", out)) return;
    snprintf(out, 128, "%s", uname(&u) == 0 ? u.machine : "unknown");
}

/* "550.54.15, CUDA 12.4": the kernel module's version, and what the driver supports. */
static void driver_name(const CudaApi *api, char out[256]) {
    char module[128];
    int version = 0, n = 0;
    if (find_line("/proc/driver/nvidia/version", "NVRM", "Kernel Module", module)) {
        const char *at = module; /* "for x86_64  550.54.15  Release Build ..." in newer ones */
        while (*at && !(*at >= '0' && *at <= '9' && (at == module || at[-1] == ' '))) at++;
        n = snprintf(out, 256, "%.*s, ", (int)strcspn(at, " "), at);
    }
    if (api->cuDriverGetVersion(&version) != CUDA_SUCCESS) version = 0;
    snprintf(out + n, 256 - (size_t)n, "CUDA %d.%d", version / 1000, version % 1000 / 10);
}

/* device.c runs on the GPU that comes first. */
static void add_gpu(json_t *run) {
    PeftError ignored = {{0}, 0};
    CudaApi *api;
    CudaDevice gpu;
    char driver[256];
    if (!cuda_api_open(&api, &ignored)) return;
    if (cuda_device_describe(api, 0, &gpu, &ignored)) {
        driver_name(api, driver);
        json_object_set_new(run, "gpu", json_string(gpu.name));
        json_object_set_new(run, "driver", json_string(driver));
    }
    cuda_api_close(api);
}

void origin_add(json_t *run, const Exec *x) {
    char hash[32], processor[128], date[32] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (gmtime_r(&now, &tm)) strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
    snprintf(hash, sizeof hash, "%016" PRIx64, x->program->hash);
    processor_name(processor);
    json_object_set_new(run, "peftc_version", json_string(PEFTC_VERSION));
    json_object_set_new(run, "commit", json_string(peftc_commit));
    json_object_set_new(run, "program_hash", json_string(hash));
    json_object_set_new(run, "date", json_string(date));
    json_object_set_new(run, "processor", json_string(processor));
    json_object_set_new(run, "compute", json_string(x->compute == COMPUTE_BF16 ? "bf16" : "fp32"));
    if (x->device == DEVICE_CUDA) add_gpu(run);
}
