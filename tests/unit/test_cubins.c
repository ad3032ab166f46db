/* GPU code in an executable: the C that peftc prints for it gives back every byte, and a GPU is
 * given the best of the architectures that it can run. */
#include "scratch.h"

#include "compiler/emit/internal.h"
#include "runtime/cuda/code.h"

static uint32_t random_state = 1;

static unsigned char random_byte(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return (unsigned char)(random_state >> 24);
}

/* All pairs of bytes: an escape may swallow what follows it, "??" may be a trigraph. */
static unsigned char *all_pairs(size_t *n) {
    unsigned char *byte = malloc(*n = 2 * 65536);
    assert_non_null(byte);
    for (int i = 0; i < 65536; i++) {
        byte[2 * i] = (unsigned char)(i >> 8);
        byte[2 * i + 1] = (unsigned char)i;
    }
    return byte;
}

static void write_program(const char *path, const PeftProgram *p) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("#include <stdio.h>\n#include \"runtime/peftrt.h\"\n", f);
    print_cubins(f, p);
    fputs("int main(void) {\n    for (unsigned i = 0; i < sizeof cubin / sizeof *cubin; i++)\n"
          "        fwrite(cubin[i].image, 1, cubin[i].bytes, stdout);\n    return 0;\n}\n",
          f);
    assert_int_equal(fclose(f), 0);
}

static void test_bytes_survive(void **state) {
    (void)state;
    PeftCubin cubin[3] = {{.major = 9, .work = 2}, {.major = 9, .work = 4}, {.major = 8}};
    size_t n;
    cubin[0].image = all_pairs(&cubin[0].bytes);
    unsigned char *noise = malloc(cubin[1].bytes = 200001);
    assert_non_null(noise);
    for (size_t i = 0; i < cubin[1].bytes; i++) noise[i] = random_byte() % 3 ? 0 : random_byte();
    cubin[1].image = noise;
    cubin[2].image = "?";
    cubin[2].bytes = 1;
    PeftProgram p = {.cubin = cubin, .ncubin = 3};
    char command[2048];
    const char *cc = getenv("CC");
    write_program(scratch_path("cubins.c"), &p);
    snprintf(command, sizeof command,
             "%s -std=gnu11 -trigraphs -I. -o %s/cubins %s/cubins.c && %s/cubins >%s/bytes",
             cc ? cc : "cc", scratch, scratch, scratch, scratch);
    assert_int_equal(system(command), 0);
    char *got = scratch_read(scratch_path("bytes"), &n);
    assert_int_equal(n, cubin[0].bytes + cubin[1].bytes + 1);
    assert_memory_equal(got, cubin[0].image, cubin[0].bytes);
    assert_memory_equal(got + cubin[0].bytes, noise, cubin[1].bytes);
    assert_int_equal(got[n - 1], '?');
    free(got);
    free(noise);
    free((void *)cubin[0].image);
}

static void add_arch(PeftProgram *p, PeftCubin *cubin, int major, int minor, int work) {
    for (int i = 0; i < CUDA_CODE_PARTS; i++)
        cubin[p->ncubin++] = (PeftCubin){.major = (uint8_t)major,
                                         .minor = (uint8_t)minor,
                                         .work = (uint8_t)work,
                                         .part = (uint8_t)i,
                                         .bytes = 1,
                                         .image = "x"};
}

static void test_which_gpus_it_serves(void **state) {
    (void)state;
    PeftCubin cubin[4 * CUDA_CODE_PARTS];
    PeftProgram p = {.cubin = cubin};
    assert_false(cuda_code_is_built_in(&p, COMPUTE_BF16, 9, 0));
    add_arch(&p, cubin, 8, 6, 2);
    add_arch(&p, cubin, 9, 0, 2);
    assert_true(cuda_code_is_built_in(&p, COMPUTE_BF16, 9, 0));
    assert_true(cuda_code_is_built_in(&p, COMPUTE_BF16, 8, 9));
    assert_false(cuda_code_is_built_in(&p, COMPUTE_BF16, 8, 0));  /* older than 8.6 */
    assert_false(cuda_code_is_built_in(&p, COMPUTE_BF16, 10, 0)); /* another major version */
    assert_false(cuda_code_is_built_in(&p, COMPUTE_FP32, 9, 0));
    p.ncubin--; /* a part is missing */
    assert_false(cuda_code_is_built_in(&p, COMPUTE_BF16, 9, 0));
}

/* The parts that compile in parallel are the program's kernels, each once, none cut. */
static void test_parts(void **state) {
    (void)state;
    char source[20000], joined[20000] = "";
    size_t n = 0;
    for (int i = 0; i < 40; i++)
        n += (size_t)snprintf(
            source + n, sizeof source - n,
            "%s%s/* kernel %d */\nextern \"C\" __global__ void\nk%d() {\n%.*s}\n", i ? "\n" : "",
            i % 3 ? "static int sum;\n\n" : "", i, i, i * 7 % 18 * 11,
            "    int a;\n    int b;\n    int c;\n    int d;\n    int e;\n    int f;\n"
            "    int g;\n    int h;\n    int i;\n    int j;\n    int k;\n    int l;\n"
            "    int m;\n    int n;\n    int o;\n    int p;\n    int q;\n    int r;\n");
    const size_t share = n / (CUDA_CODE_PARTS - CUDA_TEMPLATE_PARTS);
    CudaSourcePart part[CUDA_CODE_PARTS];
    cuda_code_split(source, part);
    for (int i = 0; i < CUDA_TEMPLATE_PARTS; i++) assert_int_equal(part[i].bytes, 0);
    for (int i = CUDA_TEMPLATE_PARTS; i < CUDA_CODE_PARTS; i++) {
        bool declared = strncmp(part[i].begin, "static int sum;\n\n/* kernel ", 27) == 0;
        int number = atoi(part[i].begin + (declared ? 27 : 10));
        assert_true(declared || strncmp(part[i].begin, "/* kernel ", 10) == 0);
        assert_int_equal(declared, number % 3 != 0); /* what belongs to it is with it */
        assert_in_range(part[i].bytes, share / 2, 2 * share);
        strncat(joined, part[i].begin, part[i].bytes);
    }
    assert_string_equal(joined, source);
    for (int i = 0; i < 40; i++) {
        char head[32], name[16];
        snprintf(name, sizeof name, "k%d", i);
        size_t length = (size_t)snprintf(head, sizeof head, "\n%s(", name);
        const CudaSourcePart *in = &part[cuda_code_part(source, name)];
        const char *at = strstr(source, head);
        assert_true(in->begin <= at && at + length <= in->begin + in->bytes);
    }
    cuda_code_split("", part);
    for (int i = 0; i < CUDA_CODE_PARTS; i++) assert_int_equal(part[i].bytes, 0);
    cuda_code_split("/* one */\nvoid k() {\n}\n", part);
    size_t all = 0;
    for (int i = 0; i < CUDA_CODE_PARTS; i++) all += part[i].bytes;
    assert_int_equal(all, 23);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_survive),
        cmocka_unit_test(test_which_gpus_it_serves),
        cmocka_unit_test(test_parts),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
