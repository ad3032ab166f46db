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

bool verb_devices(const PeftProgram *p, const Options *o, PeftError *err) {
    (void)p;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (!isa_init(err)) return false;
    const char *isa = isa_name(isa_current());
    if (o->json)
        printf(
            "{\"cpu\": {\"processors\": %ld, \"memory_bytes\": %.0f, \"instructions\": \"%s\"},\n"
            " \"cuda\": ",
            cpus, memory, isa);
    else
        printf(
            "cpu   %ld processors, %.1f GB, %s kernels\nnull  checks every buffer, computes nothing\n",
            cpus, memory / 1e9, isa);
    cuda_devices_print(stdout, o->json);
    if (o->json) puts("}");
    return true;
}
