/* Checkpoints: what was written comes back, and no damaged, truncated or foreign file does. */
#include "scratch.h"

#include <signal.h>
#include <sys/resource.h>

#include "../../runtime/io/checkpoint.h"

static const CkptHeader HEADER = {.program_hash = 0x123456789abcdef0,
                                  .dataset_hash = 42,
                                  .epoch = 1,
                                  .step_in_epoch = 17,
                                  .global_step = 2122};
static const float PARAMS[5] = {1, -2, 3.5f, 0, 1e-30f};
static const CkptSection SECTIONS[] = {
    {"params", PARAMS, sizeof PARAMS}, {"none", NULL, 0}, {"rng", "12345678", 8}, {"end", NULL, 0}};
enum { N_SECTIONS = sizeof SECTIONS / sizeof *SECTIONS };

static const char *written(void) {
    PeftError err = {0};
    const char *path = scratch_path("ckpt");
    if (!ckpt_write(path, &HEADER, SECTIONS, N_SECTIONS, &err)) fail_msg("%s", err.msg);
    return path;
}

static Checkpoint *open_own(const char *path, PeftError *err) {
    *err = (PeftError){0};
    return ckpt_open(path, HEADER.program_hash, HEADER.dataset_hash, err);
}

static void test_round_trip(void **state) {
    (void)state;
    PeftError err;
    Checkpoint *c = open_own(written(), &err);
    assert_non_null(c);
    assert_memory_equal(ckpt_header(c), &HEADER, sizeof HEADER);
    float params[5];
    char rng[8];
    assert_true(ckpt_section(c, "params", params, sizeof params, &err));
    assert_memory_equal(params, PARAMS, sizeof params);
    assert_true(ckpt_section(c, "rng", rng, 8, &err));
    assert_memory_equal(rng, "12345678", 8);
    assert_true(ckpt_section(c, "none", rng, 0, &err));
    assert_int_equal(ckpt_section_bytes(c, "params"), 20);
    assert_int_equal(ckpt_section_bytes(c, "end"), 0);
    assert_int_equal(ckpt_section_bytes(c, "param"), -1);
    assert_false(ckpt_section(c, "momentum", rng, 8, &err));
    assert_message(&err, "ckpt has no section momentum", NULL);
    err.msg[0] = 0;
    assert_false(ckpt_section(c, "rng", rng, 4, &err));
    assert_message(&err, "section rng has 8 bytes, expected 4", NULL);
    ckpt_close(c);
    assert_int_equal(scratch_count(scratch, "ckpt.tmp"), 0);
}

static void test_empty(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path = scratch_path("empty");
    assert_true(ckpt_write(path, &HEADER, NULL, 0, &err));
    Checkpoint *c = open_own(path, &err);
    assert_non_null(c);
    assert_int_equal(ckpt_section_bytes(c, "params"), -1);
    ckpt_close(c);
}

static void test_same_state_same_bytes(void **state) {
    (void)state;
    size_t a, b;
    char *first = scratch_read(written(), &a), *second = scratch_read(written(), &b);
    assert_int_equal(a, b);
    assert_memory_equal(first, second, a);
    free(first);
    free(second);
}

static void test_foreign(void **state) {
    (void)state;
    const char *path = written();
    PeftError err = {0};
    assert_null(ckpt_open(path, 7, HEADER.dataset_hash, &err));
    assert_message(&err, path, "another program", "123456789abcdef0", "0000000000000007", NULL);
    err.msg[0] = 0;
    assert_null(ckpt_open(path, HEADER.program_hash, 43, &err));
    assert_message(&err, path, "other data", NULL);
    err.msg[0] = 0;
    const char *text = scratch_file("text", "x", 1);
    assert_null(open_own(text, &err));
    assert_message(&err, text, "not a checkpoint", NULL);
    char junk[200] = "some other file";
    assert_null(open_own(scratch_file("junk", junk, sizeof junk), &err));
    assert_message(&err, "junk is not a checkpoint", NULL);
    assert_null(open_own(scratch_path("absent"), &err));
    assert_message(&err, "absent", "No such file", NULL);
}

static void test_other_format_version(void **state) {
    (void)state;
    size_t n;
    char *data = scratch_read(written(), &n);
    data[8] = 9;
    PeftError err;
    assert_null(open_own(scratch_file("version", data, n), &err));
    assert_message(&err, "checkpoint format 9", "this program reads 1", NULL);
    free(data);
}

static void test_every_truncation(void **state) {
    (void)state;
    size_t n;
    char *data = scratch_read(written(), &n);
    for (size_t cut = 0; cut < n; cut++) {
        PeftError err;
        assert_null(open_own(scratch_file("cut", data, cut), &err));
        assert_message(&err, "cut", NULL);
    }
    PeftError err;
    char *longer = calloc(1, n + 1);
    memcpy(longer, data, n);
    assert_null(open_own(scratch_file("long", longer, n + 1), &err));
    free(longer);
    free(data);
}

/* Each single damaged byte is noticed: at opening in the header, in its own section in the data.
 * Only the zeros between sections may change unnoticed. */
static void test_every_flip(void **state) {
    (void)state;
    size_t n;
    char *data = scratch_read(written(), &n);
    size_t unnoticed = 0;
    for (size_t i = 0; i < n; i++) {
        PeftError err;
        data[i] ^= 0x10;
        Checkpoint *c = open_own(scratch_file("flip", data, n), &err);
        data[i] ^= 0x10;
        float params[5];
        char rng[8];
        bool ok = c && ckpt_section(c, "params", params, sizeof params, &err) &&
                  ckpt_section(c, "rng", rng, sizeof rng, &err);
        ckpt_close(c);
        if (!ok) assert_message(&err, "flip", NULL);
        unnoticed += ok;
    }
    size_t head = 64 + 8, rows = N_SECTIONS * 72, content = sizeof PARAMS + 8;
    assert_int_equal(unnoticed, n - head - rows - content);
    free(data);
}

static void test_write_failures(void **state) {
    (void)state;
    PeftError err = {0};
    char name[CKPT_NAME + 1];
    memset(name, 'n', CKPT_NAME);
    name[CKPT_NAME] = 0;
    CkptSection bad = {name, PARAMS, 4};
    const char *path = scratch_path("bad");
    assert_false(ckpt_write(path, &HEADER, &bad, 1, &err));
    assert_message(&err, "too long", NULL);
    err.msg[0] = 0;
    name[CKPT_NAME - 1] = 0;
    assert_true(ckpt_write(path, &HEADER, &bad, 1, &err));
    assert_false(ckpt_write(path, &HEADER, &bad, CKPT_MAX_SECTIONS + 1, &err));
    assert_message(&err, "4097 sections", NULL);
    err.msg[0] = 0;
    assert_false(ckpt_write(scratch_path("no/where"), &HEADER, SECTIONS, N_SECTIONS, &err));
    assert_message(&err, "no/where", "No such file", NULL);
}

/* A full disk (here a file size limit) leaves the previous checkpoint as it was. */
static void test_full_disk_keeps_the_old_one(void **state) {
    (void)state;
    const char *path = written();
    struct rlimit old;
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit tight = {.rlim_cur = 5000, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    static char big[10000];
    CkptSection section = {"big", big, sizeof big};
    PeftError err = {0};
    bool ok = ckpt_write(path, &HEADER, &section, 1, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(ok);
    assert_message(&err, path, "File too large", NULL);
    assert_int_equal(scratch_count(scratch, "ckpt.tmp"), 0);
    Checkpoint *c = open_own(path, &err);
    assert_non_null(c);
    assert_int_equal(ckpt_section_bytes(c, "params"), 20);
    ckpt_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_same_state_same_bytes),
        cmocka_unit_test(test_foreign),
        cmocka_unit_test(test_other_format_version),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_every_flip),
        cmocka_unit_test(test_write_failures),
        cmocka_unit_test(test_full_disk_keeps_the_old_one),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
