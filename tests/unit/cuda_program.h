/* A program's CUDA kernels as C++ behind cuda_emulator.h, built and loaded into the test: what the
 * tests share that run generated kernels on the emulated GPU. Parameters arrive as a launch passes
 * them, a pointer to each. */
#ifndef PEFT_CUDA_PROGRAM_H
#define PEFT_CUDA_PROGRAM_H

#include "scratch.h"

#include "bf16.h"

#include <dlfcn.h>
#include <math.h>

#include "model_program.h"
#include "runtime/cuda/internal.h"

/* Generated code is checked by the sanitizers that check the test. */
#ifdef __SANITIZE_ADDRESS__
#define SANITIZE "-fsanitize=address"
#else
#define SANITIZE ""
#endif

enum { FORWARD, REVERSE, SHUFFLED }; /* as in cuda_emulator.h */

typedef struct Built {
    Sources *sources;
    Graph *g;
    Program *p;
    bool bf16;
    void *object;
    void *(*find)(const char *name);
    const char *(*emulate)(void *kernel, unsigned x, unsigned y, unsigned threads, int order,
                           void **param);
} Built;

static void make_tables(Built *b, const char *path, const BaseField *base, bool skip_join) {
    Settings settings = {.base = base, .nbase = 7};
    b->sources = sources_new();
    b->p = model_program(path, &settings, skip_join, b->sources);
    b->g = b->p->graph;
}

static const char harness[] =
    "#include <utility>\n"
    "template <typename... P, size_t... I>\n"
    "static void call(void (*f)(P...), void **param, std::index_sequence<I...>) {\n"
    "    f(*(std::remove_const_t<P> *)param[I]...);\n"
    "}\n"
    "template <typename... P> static void call(void (*f)(P...), void **param) {\n"
    "    call(f, param, std::index_sequence_for<P...>());\n"
    "}\n"
    "struct Kernel {\n    const char *name;\n    void (*run)(void **);\n};\n"
    "static Kernel kernel[] = {\n";

static const char entry_points[] =
    "    {nullptr, nullptr}};\n"
    "#define VISIBLE extern \"C\" __attribute__((visibility(\"default\")))\n"
    "VISIBLE void *find_kernel(const char *name) {\n"
    "    for (Kernel *k = kernel; k->name; k++)\n"
    "        if (strcmp(k->name, name) == 0) return k;\n"
    "    return nullptr;\n}\n"
    "VISIBLE const char *emulate(void *k, unsigned x, unsigned y, unsigned threads, int order,\n"
    "                            void **param) {\n"
    "    static std::string error;\n"
    "    error = cuda_emulator::launch(x, y, threads, (cuda_emulator::Order)order,\n"
    "                                  [&] { ((Kernel *)k)->run(param); });\n"
    "    return error.c_str();\n}\n";

static void print_entry(FILE *f, const char *name) {
    fprintf(f, "    {\"%s\", [](void **p) { call(device::%s, p); }},\n", name, name);
}

/* Opens the source of an object; root: of the tree, which the source includes files of. */
static FILE *open_source(const char *name, char root[512]) {
    char file[80];
    snprintf(file, sizeof file, "%s.cpp", name);
    FILE *f = fopen(scratch_path(file), "w");
    assert_non_null(f);
    assert_non_null(getcwd(root, 512));
    return f;
}

static void load_object(Built *b, const char *name) {
    char file[80], command[2048];
    const char *cxx = getenv("CXX");
    snprintf(command, sizeof command,
             "cd %s && %s -std=gnu++17 -O1 -w -fPIC -shared -fvisibility=hidden -fno-gnu-unique %s "
             "%s -o %s.so %s.cpp",
             scratch, cxx ? cxx : "c++", SANITIZE, b->bf16 ? "-DPEFT_BF16" : "", name, name);
    if (system(command) != 0) fail_msg("failed: %s", command);
    snprintf(file, sizeof file, "%s.so", name);
    b->object = dlopen(scratch_path(file), RTLD_NOW | RTLD_LOCAL);
    if (!b->object) fail_msg("%s", dlerror());
    *(void **)&b->find = dlsym(b->object, "find_kernel");
    *(void **)&b->emulate = dlsym(b->object, "emulate");
    assert_true(b->find && b->emulate);
}

static void drop(Built *b) {
    dlclose(b->object);
    graph_free(b->g);
    sources_free(b->sources);
}

static void skip_without_compiler(void) {
    if (system("command -v ${CXX:-c++} >/dev/null") == 0) return;
    print_message("skipped: no C++ compiler\n");
    skip();
}

#endif
