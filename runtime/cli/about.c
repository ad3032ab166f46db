/* A bare ./run: what this program is. And `devices`: what it can run on. */
#include "session.h"
#include "verbs.h"

#include "../cpu/isa.h"
#include "../cuda/api.h"

#include <stdio.h>
#include <unistd.h>

bool verb_about(const PeftProgram *p, const Options *o, PeftError *err) {
    (void)err;
    ModelCount c = model_count(p);
    char a[32], b[32];
    double percent = c.total ? 100.0 * (double)c.trainable / (double)c.total : 0;
    if (o->json) {
        printf(
            "{\"program\": \"%s\", \"source\": \"%s\", \"trainable_params\": %lld, \"total_params\": %lld, "
            "\"trainable_percent\": %.6f, \"classes\": %lld}\n",
            p->name, p->source, (long long)c.trainable, (long long)c.total, percent,
            (long long)p->config.classes);
        return true;
    }
    printf("%s, compiled from %s\n\n", p->name, p->source);
    printf("trainable  %s of %s parameters (%.4f %%), %d of %d tensors\n\n",
           with_commas(c.trainable, a), with_commas(c.total, b), percent, c.trainable_tensors,
           c.tensors);
    printf("%s\n", p->text);
    options_help(VERB_ABOUT, "./run");
    return true;
}

/* "sm_80, sm_90": the architectures of the code that peftc --arch put in. */
static void list_built_in(const PeftProgram *p, char *text, size_t size) {
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < p->ncubin && n + 16 < size; i++) {
        const PeftCubin *c = &p->cubin[i];
        if (c->part == 0 && c->work == 2)
            n += (size_t)snprintf(text + n, size - n, "%ssm_%d%d", n ? ", " : "", c->major,
                                  c->minor);
    }
}

bool verb_devices(const PeftProgram *p, const Options *o, PeftError *err) {
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    char built_in[256];
    CudaDevice gpu;
    PeftError why = {{0}, 0};
    if (!isa_init(err)) return false;
    const char *isa = isa_name(isa_current());
    list_built_in(p, built_in, sizeof built_in);
    if (o->json)
        printf(
            "{\"cpu\": {\"processors\": %ld, \"memory_bytes\": %.0f, \"instructions\": \"%s\"},\n"
            " \"cuda\": ",
            cpus, memory, isa);
    else
        printf("cpu       %ld processors, %.1f GB, %s kernels\n"
               "null      checks every buffer, computes nothing\n",
               cpus, memory / 1e9, isa);
    cuda_devices_print(stdout, o->json);
    const char *automatic =
        device_name(session_cuda_usable(p, COMPUTE_BF16, &gpu, &why) ? DEVICE_CUDA : DEVICE_CPU);
    if (o->json)
        printf(", \"built_in\": \"%s\", \"auto\": \"%s\"}\n", built_in, automatic);
    else
        printf("built in  %s\nauto      --device auto takes %s\n",
               built_in[0] ? built_in : "no GPU code; NVRTC compiles it at first use", automatic);
    return true;
}
