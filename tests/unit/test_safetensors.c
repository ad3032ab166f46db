/* The safetensors reader and writer, sharded models, the name map, and atomic files: every
 * malformed file is refused with a message that names what is wrong, data survive a round trip, and
 * a failed write leaves nothing behind. */
#include "scratch.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "../../runtime/io/file.h"
#include "../../runtime/io/safetensors.h"

/* A file with this header and n zero bytes of data. */
static const char *with_header(const char *header, size_t n) {
    static char bytes[1 << 16];
    uint64_t length = strlen(header);
    assert_true(8 + length + n <= sizeof bytes);
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    return scratch_file("t.safetensors", bytes, 8 + length + n);
}

/* ---- reading ---- */

static void test_valid(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path =
        with_header("{\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"},"
                    "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]},"
                    "\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                    "\"none\":{\"dtype\":\"U8\",\"shape\":[0,9],\"data_offsets\":[8,8]}}  ",
                    40);
    SafeTensors *st = st_open(path, &err);
    assert_string_equal(err.msg, "");
    assert_int_equal(st_count(st), 3);
    assert_string_equal(st_get(st, 0)->name, "b");
    assert_null(st_get(st, 3));
    const StTensor *b = st_find(st, "b"), *a = st_find(st, "a"), *none = st_find(st, "none");
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->dims[1], 3);
    assert_int_equal(b->count, 6);
    assert_int_equal(b->bytes, 24);
    assert_int_equal(a->rank, 0);
    assert_int_equal(a->count, 1);
    assert_int_equal(none->count, 0);
    assert_null(st_find(st, "c"));
    assert_null(st_find(st, "__metadata__"));
    assert_string_equal(st_meta(st, "k"), "v");
    assert_null(st_meta(st, "absent"));
    char text[ST_SHAPE_TEXT];
    assert_string_equal(st_shape_text(b->rank, b->dims, text), "[2, 3]");
    st_close(st);
}

#define ONE(DTYPE, SHAPE, OFFSETS) \
    "{\"w\":{\"dtype\":" DTYPE ",\"shape\":" SHAPE ",\"data_offsets\":" OFFSETS "}}"
#define F32_4(OFFSETS) "{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":" OFFSETS "}"

static const struct {
    const char *header;
    size_t data;
    const char *expected[3];
} MALFORMED[] = {
    {"", 0, {"not valid JSON"}},
    {"{", 0, {"not valid JSON", "line 1"}},
    {"[1]", 0, {"expected a JSON object", "a list"}},
    {"{} x", 0, {"not valid JSON"}},
    {"{\"w\":1}", 0, {"tensor w", "expected an object", "an integer"}},
    {"{\"w\":" F32_4("[0,16]") ",\"w\":" F32_4("[0,16]") "}", 16, {"duplicate"}},
    {"{\"__metadata__\":[]}", 0, {"__metadata__", "a list"}},
    {"{\"__metadata__\":{\"a\":1}}", 0, {"__metadata__", "an integer"}},
    {"{\"\":" F32_4("[0,16]") "}", 16, {"name is empty"}},
    {"{\"a\\nb\":" F32_4("[0,16]") "}", 16, {"control characters"}},
    {ONE("\"F8_E4M3\"", "[4]", "[0,4]"), 4, {"tensor w", "expected dtype F32", "\"F8_E4M3\""}},
    {ONE("7", "[4]", "[0,4]"), 4, {"tensor w", "expected dtype", "7"}},
    {"{\"w\":{\"shape\":[4],\"data_offsets\":[0,16]}}", 16, {"expected dtype", "nothing"}},
    {ONE("\"F32\"", "4", "[0,16]"), 16, {"tensor w", "expected a shape", "4"}},
    {ONE("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, {"tensor w", "at most 8"}},
    {ONE("\"F32\"", "[-4]", "[0,16]"), 16, {"tensor w", "0 or more", "[-4]"}},
    {ONE("\"F32\"", "[4.0]", "[0,16]"), 16, {"tensor w", "0 or more"}},
    {ONE("\"F32\"", "[4294967296,4294967296]", "[0,16]"), 16, {"tensor w", "overflows"}},
    {ONE("\"F64\"", "[1152921504606846976]", "[0,16]"), 16, {"tensor w", "overflows"}},
    {ONE("\"F32\"", "[99999999999999999999]", "[0,16]"), 16, {"not valid JSON"}},
    {ONE("\"F32\"", "[4]", "[16,0]"), 16, {"tensor w", "data_offsets [begin, end]", "[16,0]"}},
    {ONE("\"F32\"", "[4]", "[-8,8]"), 16, {"tensor w", "data_offsets", "[-8,8]"}},
    {ONE("\"F32\"", "[4]", "[0,16,32]"), 16, {"tensor w", "data_offsets"}},
    {ONE("\"F32\"", "[4]", "[0,\"16\"]"), 16, {"tensor w", "data_offsets"}},
    {ONE("\"F32\"", "[4]", "[0,16]"), 15, {"tensor w", "truncated", "15"}},
    {ONE("\"F32\"", "[4]", "[9223372036854775791,9223372036854775807]"), 16, {"truncated"}},
    {ONE("\"F32\"", "[4]", "[0,12]"), 16, {"tensor w", "takes 16 bytes", "give 12"}},
    {ONE("\"BF16\"", "[2,2]", "[0,16]"), 16, {"BF16 [2, 2] takes 8 bytes", "give 16"}},
    {"{\"a\":" F32_4("[0,16]") ",\"b\":" F32_4("[12,28]") "}", 28, {"a and b overlap"}},
    {"{\"a\":" F32_4("[0,16]") ",\"b\":" F32_4("[0,16]") "}", 16, {"overlap"}},
};

static void test_malformed(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof MALFORMED / sizeof *MALFORMED; i++) {
        PeftError err = {0};
        const char *path = with_header(MALFORMED[i].header, MALFORMED[i].data);
        if (st_open(path, &err)) fail_msg("accepted: %s", MALFORMED[i].header);
        const char *const *e = MALFORMED[i].expected;
        assert_message(&err, path, e[0], e[1], e[2], NULL);
    }
}

static void refuse_bytes(const char *bytes, size_t n, const char *expected) {
    PeftError err = {0};
    const char *path = scratch_file("raw.safetensors", bytes, n);
    assert_null(st_open(path, &err));
    assert_message(&err, path, expected, NULL);
}

static void test_no_safetensors_at_all(void **state) {
    (void)state;
    refuse_bytes("", 0, "too short");
    refuse_bytes("\1\0\0", 3, "too short");
    refuse_bytes("\377\377\377\377\377\377\377\377", 8, "truncated or no safetensors");
    refuse_bytes("\3\0\0\0\0\0\0\0{}", 10, "truncated or no safetensors");
    refuse_bytes("version https://git-lfs", 23, "git lfs pull");
    refuse_bytes("PK\3\4\0\0\10\10more", 12, "PyTorch or zip");
    PeftError err = {0};
    assert_null(st_open(scratch_path("absent"), &err));
    assert_message(&err, "cannot open", "absent", "No such file", NULL);
    err.msg[0] = 0;
    assert_null(st_open(scratch, &err));
    assert_message(&err, "expected a file, found a folder", NULL);
    err.msg[0] = 0;
    assert_null(st_open("/dev/null", &err));
    assert_message(&err, "not a plain file", NULL);
}

/* Every prefix of a valid file is refused; changing any one byte never crashes (the sanitizers look
 * on) and what still opens can be read. */
static void test_every_truncation_and_flip(void **state) {
    (void)state;
    const char *header = "{\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                         "\"b\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[12,16]}}";
    size_t n;
    char *good = scratch_read(with_header(header, 16), &n);
    for (size_t cut = 0; cut < n; cut++) {
        PeftError err = {0};
        assert_null(st_open(scratch_file("cut.safetensors", good, cut), &err));
        assert_message(&err, "cut.safetensors", NULL);
    }
    for (size_t i = 0; i < n; i++) {
        for (int bit = 0; bit < 8; bit++) {
            PeftError err = {0};
            good[i] ^= (char)(1 << bit);
            SafeTensors *st = st_open(scratch_file("flip.safetensors", good, n), &err);
            good[i] ^= (char)(1 << bit);
            for (size_t k = 0; st && k < st_count(st); k++) {
                char data[64];
                assert_true(st_get(st, k)->bytes <= 16);
                assert_true(st_read_raw(st_get(st, k), data, 0, st_get(st, k)->bytes, &err));
            }
            st_close(st);
        }
    }
    free(good);
}

static void test_truncated_while_open(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path = with_header(ONE("\"F32\"", "[4]", "[0,16]"), 16);
    SafeTensors *st = st_open(path, &err);
    struct stat info;
    stat(path, &info);
    assert_int_equal(truncate(path, info.st_size - 6), 0);
    float out[4];
    assert_true(st_read_f32(st_find(st, "w"), out, 0, 2, &err));
    assert_false(st_read_f32(st_find(st, "w"), out, 0, 4, &err));
    assert_message(&err, path, "truncated", NULL);
    st_close(st);
}

/* ---- conversion ---- */

static SafeTensors *one_tensor(StDtype dtype, int64_t n, const void *data) {
    PeftError err = {0};
    StWriter *w = st_writer_new(scratch_path("one.safetensors"), &err);
    int t = st_writer_add(w, "x", dtype, 1, &n, &err);
    assert_true(st_writer_begin(w, &err));
    assert_true(st_writer_put(w, t, data, (uint64_t)n * st_dtype_size(dtype), &err));
    assert_true(st_writer_finish(w, &err));
    SafeTensors *st = st_open(scratch_path("one.safetensors"), &err);
    assert_string_equal(err.msg, "");
    return st;
}

/* All 65536 halves against the definition: (-1)^s 2^(e-15) 1.f, and 2^-14 0.f for e = 0. */
static void test_every_f16(void **state) {
    (void)state;
    static uint16_t half[65536];
    static float got[65536];
    for (int i = 0; i < 65536; i++) half[i] = (uint16_t)i;
    SafeTensors *st = one_tensor(ST_F16, 65536, half);
    PeftError err = {0};
    assert_true(st_read_f32(st_find(st, "x"), got, 0, 65536, &err));
    for (int i = 0; i < 65536; i++) {
        int e = i >> 10 & 31, f = i & 1023;
        double expected = e ? ldexp(1024 + f, e - 25) : ldexp(f, -24);
        if (e == 31) expected = f ? NAN : INFINITY;
        if (i & 0x8000) expected = -expected;
        bool same = e == 31 && f ? isnan(got[i]) : (double)got[i] == expected;
        if (!same || !signbit(got[i]) != !(i & 0x8000)) fail_msg("half %04x gave %g", i, got[i]);
    }
    st_close(st);
}

static void test_bf16_and_f64(void **state) {
    (void)state;
    PeftError err = {0};
    float got[3];
    SafeTensors *st = one_tensor(ST_BF16, 3, (uint16_t[]){0x3f80, 0xc049, 0x7f80});
    assert_true(st_read_f32(st_find(st, "x"), got, 0, 3, &err));
    assert_true(got[0] == 1.0f && got[1] == -3.140625f && isinf(got[2]));
    st_close(st);
    /* 1 + 2^-24 is half way between two floats: to even; a little more goes up */
    st = one_tensor(ST_F64, 3, (double[]){1 + 0x1p-24, 1 + 0x1p-24 + 0x1p-50, -0.0});
    assert_true(st_read_f32(st_find(st, "x"), got, 0, 3, &err));
    assert_true(got[0] == 1.0f && got[1] == 1.0f + 0x1p-23f && signbit(got[2]));
    st_close(st);
}

/* More elements than one internal block, read in odd pieces. */
static void test_pieces(void **state) {
    (void)state;
    enum { N = 5003 };
    static double data[N];
    static float got[N];
    for (int i = 0; i < N; i++) data[i] = i * 0.5 - 7;
    SafeTensors *st = one_tensor(ST_F64, N, data);
    PeftError err = {0};
    const StTensor *x = st_find(st, "x");
    for (int64_t i = 0, n; i < N; i += n) {
        n = i % 3 ? 1777 : 37;
        if (n > N - i) n = N - i;
        assert_true(st_read_f32(x, got + i, i, n, &err));
    }
    for (int i = 0; i < N; i++) assert_true(got[i] == (float)data[i]);
    assert_true(st_read_f32(x, got, N, 0, &err));
    assert_false(st_read_f32(x, got, N - 1, 2, &err));
    assert_message(&err, "tensor x", "5003 elements", NULL);
    err.msg[0] = 0;
    assert_false(st_read_f32(x, got, -1, 1, &err));
    assert_false(st_read_f32(x, got, 1, INT64_MAX, &err));
    assert_false(st_read_raw(x, got, UINT64_MAX, 8, &err));
    st_close(st);
}

static void test_integers(void **state) {
    (void)state;
    PeftError err = {0};
    int32_t got[3];
    SafeTensors *st = one_tensor(ST_I64, 3, (int64_t[]){-5, INT32_MAX, 1ll << 31});
    const StTensor *x = st_find(st, "x");
    assert_true(st_read_i32(x, got, 0, 2, &err));
    assert_true(got[0] == -5 && got[1] == INT32_MAX);
    assert_false(st_read_i32(x, got, 0, 3, &err));
    assert_message(&err, "element 2 is 2147483648", NULL);
    err.msg[0] = 0;
    float f;
    assert_false(st_read_f32(x, &f, 0, 1, &err));
    assert_message(&err, "expected dtype F32, F16, BF16 or F64, found I64", NULL);
    st_close(st);
    err.msg[0] = 0;
    st = one_tensor(ST_I32, 3, (int32_t[]){1, -2, 3});
    assert_true(st_read_i32(st_find(st, "x"), got, 1, 2, &err));
    assert_true(got[0] == -2 && got[1] == 3);
    st_close(st);
    st = one_tensor(ST_F32, 1, (float[]){1});
    assert_false(st_read_i32(st_find(st, "x"), got, 0, 1, &err));
    assert_message(&err, "expected dtype I32 or I64, found F32", NULL);
    st_close(st);
}

/* ---- writing ---- */

/* Copies every tensor through the writer; the result must be the bytes the safetensors library
 * wrote. The fixture has U8, F16, F32 and I64 tensors. */
static void test_writes_what_the_library_writes(void **state) {
    (void)state;
    PeftError err = {0};
    const char *original = "tests/golden/nf4.safetensors", *copy = scratch_path("copy");
    SafeTensors *st = st_open(original, &err);
    if (!st) fail_msg("%s", err.msg);
    StWriter *w = st_writer_new(copy, &err);
    size_t n = st_count(st);
    for (size_t i = n; i-- > 0;) { /* the order of adding must not matter */
        const StTensor *t = st_get(st, i);
        assert_int_equal(st_writer_add(w, t->name, t->dtype, t->rank, t->dims, &err), n - 1 - i);
    }
    assert_true(st_writer_begin(w, &err));
    for (size_t i = 0; i < n; i++) {
        const StTensor *t = st_get(st, i);
        char *data = malloc(t->bytes + 1);
        assert_true(st_read_raw(t, data, 0, t->bytes, &err));
        uint64_t half = t->bytes / 2;
        int handle = (int)(n - 1 - i);
        assert_true(st_writer_put(w, handle, data, half, &err));
        assert_true(st_writer_put(w, handle, data + half, t->bytes - half, &err));
        free(data);
    }
    assert_true(st_writer_finish(w, &err));
    st_close(st);
    size_t a, b;
    char *x = scratch_read(original, &a), *y = scratch_read(copy, &b);
    assert_int_equal(a, b);
    assert_memory_equal(x, y, a);
    assert_int_equal(scratch_count(scratch, ".tmp."), 0);
    free(x);
    free(y);
}

static void test_writer_mistakes(void **state) {
    (void)state;
    PeftError err = {0};
    int64_t two = 2, negative = -1, huge[2] = {1ll << 40, 1ll << 40};
    const char *path = scratch_path("mistake.safetensors");
    StWriter *w = st_writer_new(path, &err);
    assert_int_equal(st_writer_add(w, "neg", ST_F32, 1, &negative, &err), -1);
    assert_message(&err, "tensor neg", "[-1]", NULL);
    err.msg[0] = 0;
    assert_int_equal(st_writer_add(w, "huge", ST_F32, 2, huge, &err), -1);
    assert_message(&err, "tensor huge", NULL);
    err.msg[0] = 0;
    assert_int_equal(st_writer_add(w, "x", ST_F32, 1, &two, &err), 0);
    assert_false(st_writer_put(w, 0, &two, 8, &err)); /* before begin */
    err.msg[0] = 0;
    assert_true(st_writer_begin(w, &err));
    assert_false(st_writer_put(w, 0, huge, 12, &err));
    assert_message(&err, "tensor x has 8 bytes, more were put", NULL);
    err.msg[0] = 0;
    assert_true(st_writer_put(w, 0, huge, 4, &err));
    assert_false(st_writer_finish(w, &err));
    assert_message(&err, "tensor x has 8 bytes, only 4 were put", NULL);
    assert_false(file_exists(path));
    err.msg[0] = 0;
    w = st_writer_new(path, &err);
    st_writer_add(w, "x", ST_F32, 1, &two, &err);
    st_writer_add(w, "x", ST_U8, 1, &two, &err);
    assert_false(st_writer_begin(w, &err));
    assert_message(&err, "two tensors are called x", NULL);
    st_writer_abort(w);
    assert_int_equal(scratch_count(scratch, "mistake"), 0);
}

static void test_unusual_content(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path = scratch_path("u.safetensors");
    StWriter *w = st_writer_new(path, &err);
    assert_true(st_writer_meta(w, "schl\xc3\xbcssel", "\"quoted\"", &err));
    assert_int_equal(st_writer_add(w, "scalar", ST_F32, 0, NULL, &err), 0);
    assert_int_equal(st_writer_add(w, "empty", ST_F32, 1, (int64_t[]){0}, &err), 1);
    assert_true(st_writer_begin(w, &err));
    assert_true(st_writer_put(w, 0, (float[]){2.5f}, 4, &err));
    assert_true(st_writer_finish(w, &err));
    SafeTensors *st = st_open(path, &err);
    assert_string_equal(err.msg, "");
    assert_string_equal(st_meta(st, "format"), "pt");
    assert_string_equal(st_meta(st, "schl\xc3\xbcssel"), "\"quoted\"");
    float x = 0;
    assert_true(st_read_f32(st_find(st, "scalar"), &x, 0, 1, &err));
    assert_true(x == 2.5f);
    assert_int_equal(st_find(st, "empty")->count, 0);
    assert_int_equal(st_get(st, 0)->offset % 8, 0);
    st_close(st);
}

/* ---- atomic files ---- */

static void assert_content(const char *path, const char *expected) {
    size_t n;
    char *text = scratch_read(path, &n);
    assert_string_equal(text, expected);
    free(text);
}

static void test_replacement_is_atomic(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path = scratch_path("a.txt");
    assert_true(file_write_atomic(path, "old", 3, &err));
    AtomicFile f;
    assert_true(atomic_open(&f, path, &err));
    assert_true(atomic_write(&f, "new", 3, 0, &err));
    assert_content(path, "old");
    atomic_abort(&f);
    atomic_abort(&f); /* harmless */
    assert_content(path, "old");
    assert_true(file_write_atomic(path, "newer", 5, &err));
    assert_content(path, "newer");
    assert_int_equal(scratch_count(scratch, "a.txt"), 1);
}

static void test_refused_targets(void **state) {
    (void)state;
    PeftError err = {0};
    assert_false(file_write_atomic("/dev/null", "x", 1, &err));
    assert_message(&err, "/dev/null", "not a plain file", NULL);
    err.msg[0] = 0;
    assert_false(file_write_atomic(scratch, "x", 1, &err));
    assert_message(&err, "a folder", NULL);
    err.msg[0] = 0;
    assert_false(file_write_atomic(scratch_path("no/such/folder.txt"), "x", 1, &err));
    assert_message(&err, "folder.txt", "No such file or directory", NULL);
}

/* A file size limit stands in for a full disk: write fails half way, as it does with ENOSPC. */
static void test_full_disk(void **state) {
    (void)state;
    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    tight = (struct rlimit){.rlim_cur = 100000, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    PeftError err = {0};
    static float data[50000];
    const char *path = scratch_path("full.safetensors");
    StWriter *w = st_writer_new(path, &err);
    int t = st_writer_add(w, "x", ST_F32, 1, (int64_t[]){50000}, &err);
    bool begun = st_writer_begin(w, &err);
    bool put = st_writer_put(w, t, data, sizeof data, &err);
    st_writer_abort(w);
    PeftError small = {0};
    bool wrote = file_write_atomic(scratch_path("full.bin"), data, sizeof data, &small);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_true(begun);
    assert_false(put);
    assert_false(wrote);
    assert_message(&err, path, "File too large", "byte 100000", NULL);
    assert_message(&small, "full.bin", "File too large", NULL);
    assert_int_equal(scratch_count(scratch, "full"), 0);
}

static void test_folders(void **state) {
    (void)state;
    PeftError err = {0};
    assert_true(dir_make(scratch_path("x/y/z/"), &err));
    assert_true(dir_make(scratch_path("x/y"), &err));
    assert_true(file_exists(scratch_path("x/y/z")));
    scratch_file("x/file", "", 0);
    assert_false(dir_make(scratch_path("x/file/deeper"), &err));
    assert_message(&err, "cannot make the folder", "x/file is a file", NULL);
    err.msg[0] = 0;
    assert_false(dir_make("", &err));
    err.msg[0] = 0;
    assert_false(dir_make("/proc/peft-test", &err));
    assert_message(&err, "/proc/peft-test", NULL);
    if (geteuid() == 0) return; /* root may write anywhere */
    err.msg[0] = 0;
    assert_int_equal(chmod(scratch_path("x/y"), 0555), 0);
    assert_false(dir_make(scratch_path("x/y"), &err));
    assert_message(&err, "cannot write in the folder", "Permission denied", NULL);
    chmod(scratch_path("x/y"), 0755);
}

static void test_file_read(void **state) {
    (void)state;
    PeftError err = {0};
    size_t n;
    const char *path = scratch_file("r.txt", "abc\0d", 5);
    char *text = file_read(path, 5, &n, &err);
    assert_int_equal(n, 5);
    assert_memory_equal(text, "abc\0d\0", 6);
    free(text);
    assert_null(file_read(path, 4, &n, &err));
    assert_message(&err, path, "5 bytes", "at most 4", NULL);
    err.msg[0] = 0;
    assert_int_equal(mkfifo(scratch_path("fifo"), 0600), 0);
    assert_null(file_read(scratch_path("fifo"), 4, &n, &err)); /* and does not hang */
    assert_message(&err, "not a plain file", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_no_safetensors_at_all),
        cmocka_unit_test(test_every_truncation_and_flip),
        cmocka_unit_test(test_truncated_while_open),
        cmocka_unit_test(test_every_f16),
        cmocka_unit_test(test_bf16_and_f64),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_writes_what_the_library_writes),
        cmocka_unit_test(test_writer_mistakes),
        cmocka_unit_test(test_unusual_content),
        cmocka_unit_test(test_replacement_is_atomic),
        cmocka_unit_test(test_refused_targets),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_file_read),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
