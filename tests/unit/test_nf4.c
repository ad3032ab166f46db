/* NF4 quantisation against values stored from bitsandbytes' plain operators
 * (tests/golden/make_nf4.py): codes and 8-bit codes exactly; offset, nested absmax and dequantised
 * values exactly when the offset (a mean, whose order of summation is open) has the same bits,
 * within its last place otherwise. */
#include "scratch.h"

#include <float.h>
#include <math.h>
#include <zlib.h>

#include "../../runtime/io/quantize.h"
#include "../../runtime/io/safetensors.h"

static SafeTensors *golden;

static int set_up(void **state) {
    PeftError err = {0};
    golden = st_open("tests/golden/nf4.safetensors", &err);
    if (!golden) fprintf(stderr, "%s\n", err.msg);
    return !golden || scratch_make(state);
}

static int tear_down(void **state) {
    st_close(golden);
    return scratch_drop(state);
}

static const StTensor *stored(const char *name, const char *part) {
    char full[512];
    snprintf(full, sizeof full, "%s.%s", name, part);
    const StTensor *t = st_find(golden, full);
    if (!t) fail_msg("no tensor %s in the fixture", full);
    return t;
}

static void *bytes_of(const StTensor *t) {
    PeftError err = {0};
    void *data = malloc(t->bytes + 1);
    if (!data || !st_read_raw(t, data, 0, t->bytes, &err)) fail_msg("%s", err.msg);
    return data;
}

static float *floats_of(const StTensor *t) {
    PeftError err = {0};
    float *data = malloc(((size_t)t->count + 1) * sizeof *data);
    if (!data || !st_read_f32(t, data, 0, t->count, &err)) fail_msg("%s", err.msg);
    return data;
}

static void *new_buffer(int64_t n, bool dq) {
    static int fill;
    char *buf = aligned_alloc(64, nf4_bytes(n, dq) + 64);
    assert_non_null(buf);
    memset(buf, fill++, nf4_bytes(n, dq)); /* bytes that are not written differ between buffers */
    memset(buf + nf4_bytes(n, dq), 0xa5, 64);
    return buf;
}

/* Quantised in chunks of the given length; the guard behind the buffer must survive. */
static void *quantized(const float *w, int64_t n, bool dq, int64_t chunk) {
    PeftError err = {0};
    NfQuantizer q;
    unsigned char *buf = new_buffer(n, dq);
    assert_true(nf_quantizer_init(&q, buf, n, dq, &err));
    for (int64_t i = 0; i < n; i += chunk)
        assert_true(nf_quantizer_push(&q, w + i, n - i < chunk ? n - i : chunk, &err));
    assert_true(nf_quantizer_finish(&q, &err));
    for (int i = 0; i < 64; i++) assert_int_equal(buf[nf4_bytes(n, dq) + (size_t)i], 0xa5);
    return buf;
}

static void same_floats(const float *got, const StTensor *t, float tolerance) {
    float *expected = floats_of(t);
    for (int64_t i = 0; i < t->count; i++) {
        float error = fabsf(got[i] - expected[i]);
        if (!(error <= tolerance))
            fail_msg("%s[%lld]: %.9g, expected %.9g", t->name, (long long)i, got[i], expected[i]);
    }
    free(expected);
}

static void same_bytes(const uint8_t *got, const StTensor *t) {
    uint8_t *expected = bytes_of(t);
    for (uint64_t i = 0; i < t->bytes; i++)
        if (got[i] != expected[i])
            fail_msg("%s[%llu]: %u, expected %u", t->name, (unsigned long long)i, got[i],
                     expected[i]);
    free(expected);
}

/* Every stride-th value, as the fixture holds them. */
static void same_dequantised(const Nf4View *v, const StTensor *t, float tolerance) {
    int64_t stride = (v->n + t->count - 1) / t->count;
    float *got = malloc(((size_t)t->count + 1) * sizeof *got);
    for (int64_t i = 0; i < t->count; i++) got[i] = nf4_value(v, i * stride);
    same_floats(got, t, tolerance);
    free(got);
}

/* Two things are open in the last place: the order in which torch sums the mean, and 42 entries of
 * the 8-bit map, since torch's linspace uses FMA on some processors. The codes depend on neither;
 * what is made from them may be off by a few last places of the block's absmax. */
static float last_places(const Nf4View *v) {
    float most = 0;
    for (int64_t g = 0; g < nf4_groups(v->n); g++) most = fmaxf(most, v->nested[g]);
    return 4 * FLT_EPSILON * (most + fabsf(*v->offset));
}

static void check_double_quantised(const char *name, const Nf4View *v) {
    same_bytes(v->absmax_codes, stored(name, "absmax_codes"));
    same_floats(v->offset, stored(name, "offset"), FLT_EPSILON * fabsf(*v->offset));
    same_floats(v->nested, stored(name, "nested"), last_places(v));
    same_dequantised(v, stored(name, "dequant"), last_places(v));
}

static void check_case(const char *name) {
    const StTensor *t = stored(name, "w");
    float *w = floats_of(t);
    void *plain = quantized(w, t->count, false, t->count);
    Nf4View v = nf4_view(plain, t->count, false);
    same_bytes(v.codes, stored(name, "codes"));
    same_floats(v.absmax, stored(name, "absmax"), 0);
    same_dequantised(&v, stored(name, "dequant_plain"), 0);
    void *nested = quantized(w, t->count, true, t->count);
    v = nf4_view(nested, t->count, true);
    same_bytes(v.codes, stored(name, "codes"));
    check_double_quantised(name, &v);
    free(plain);
    free(nested);
    free(w);
}

static void test_odd_length(void **state) {
    (void)state;
    check_case("odd");
}

static void test_several_groups(void **state) {
    (void)state;
    assert_true(nf4_groups(stored("groups", "w")->count) > 1);
    check_case("groups");
}

/* Ties at all 15 midpoints, their neighbours, zeros, negative absmax, very small and large blocks.
 */
static void test_edges(void **state) {
    (void)state;
    check_case("edge");
}

static void test_ties_between_absmax_codes(void **state) {
    (void)state;
    check_case("ties8");
}

static void test_code8(void **state) {
    (void)state;
    const StTensor *t = st_find(golden, "code8");
    assert_int_equal(t->count, 256);
    float *expected = floats_of(t);
    for (int i = 0; i < 256; i++) {
        float error = fabsf(nf4_code8()[i] - expected[i]);
        if (!(error <= 2 * FLT_EPSILON * fabsf(expected[i]))) /* see last_places */
            fail_msg("code8[%d]: %.9g, expected %.9g", i, nf4_code8()[i], expected[i]);
    }
    free(expected);
}

/* Any way of cutting the stream gives the same bytes, the padding between sections included. */
static void test_chunks(void **state) {
    (void)state;
    static const char *const CASES[] = {"odd", "groups"};
    for (int c = 0; c < 2; c++) {
        const StTensor *t = stored(CASES[c], "w");
        float *w = floats_of(t);
        for (int dq = 0; dq < 2; dq++) {
            void *whole = quantized(w, t->count, dq, t->count);
            for (int64_t chunk = 1; chunk < 200; chunk += 9) {
                void *pieces = quantized(w, t->count, dq, chunk);
                assert_memory_equal(whole, pieces, nf4_bytes(t->count, dq));
                free(pieces);
            }
            free(whole);
        }
        free(w);
    }
}

static void test_tensor_streams_from_file(void **state) {
    (void)state;
    PeftError err = {0};
    const StTensor *t = stored("groups", "w"); /* float16 in the file */
    float *w = floats_of(t);
    void *expected = quantized(w, t->count, true, t->count), *got = new_buffer(t->count, true);
    assert_true(nf_quantize_tensor(t, got, true, &err));
    assert_memory_equal(got, expected, nf4_bytes(t->count, true));
    free(expected);
    free(got);
    free(w);
}

static void test_sizes(void **state) {
    (void)state;
    float w[130];
    for (int i = 0; i < 130; i++) w[i] = (float)(i - 60);
    for (int64_t n = 0; n <= 130; n++) {
        for (int dq = 0; dq < 2; dq++) {
            void *buf = quantized(w, n, dq, 130);
            Nf4View v = nf4_view(buf, n, dq);
            for (int64_t i = 0; i < n; i++) {
                int64_t last = i / 64 * 64 + 63 < n ? i / 64 * 64 + 63 : n - 1;
                float most = fmaxf(fabsf(w[i / 64 * 64]), fabsf(w[last]));
                /* half of the widest gap between codes, 0.152, and the 8-bit absmax's error */
                assert_true(fabsf(nf4_value(&v, i) - w[i]) <= 0.16f * most + 1.0f);
            }
            if (n % 2) assert_int_equal(v.codes[n / 2] & 15, 7);
            free(buf);
        }
    }
}

static void test_refusals(void **state) {
    (void)state;
    PeftError err = {0};
    NfQuantizer q;
    void *buf = new_buffer(100, true);
    float w[101] = {0};
    assert_true(nf_quantizer_init(&q, buf, 100, true, &err));
    assert_false(nf_quantizer_push(&q, w, 101, &err));
    assert_message(&err, "101 more values after 0 of 100", NULL);
    err.msg[0] = 0;
    assert_true(nf_quantizer_push(&q, w, 60, &err));
    assert_false(nf_quantizer_finish(&q, &err));
    assert_message(&err, "60 values came, expected 100", NULL);
    static const float BAD[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        err.msg[0] = 0;
        w[70] = BAD[i];
        assert_true(nf_quantizer_init(&q, buf, 100, true, &err));
        assert_true(nf_quantizer_push(&q, w, 50, &err));
        assert_false(nf_quantizer_push(&q, w + 50, 50, &err));
        assert_message(&err, "element 70 of 100", NULL);
        nf_quantizer_free(&q);
    }
    free(buf);
}

static void test_bad_tensor_is_named(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path = scratch_path("bad.safetensors");
    StWriter *w = st_writer_new(path, &err);
    int64_t n = 3;
    int x = st_writer_add(w, "layer.weight", ST_F32, 1, &n, &err);
    assert_true(st_writer_begin(w, &err));
    assert_true(st_writer_put(w, x, (float[]){1, NAN, 2}, 12, &err));
    assert_true(st_writer_finish(w, &err));
    SafeTensors *st = st_open(path, &err);
    void *buf = new_buffer(3, true);
    assert_false(nf_quantize_tensor(st_find(st, "layer.weight"), buf, true, &err));
    assert_message(&err, path, "layer.weight", "element 1 of 3", NULL);
    free(buf);
    st_close(st);
}

/* Trained weights of bert-tiny: CRC of the codes, all else as above. */
static void test_real_weights(void **state) {
    (void)state;
    static const char *const NAMES[] = {"bert.encoder.layer.0.attention.self.query.weight",
                                        "bert.encoder.layer.1.intermediate.dense.weight",
                                        "bert.pooler.dense.weight"};
    const char *path = real_data("models/bert-tiny-sst2-encoder-partial/encoder.safetensors");
    if (!path) {
        print_message("skipped: no bert-tiny weights (set PEFTC_SHARED)\n");
        skip();
    }
    PeftError err = {0};
    SafeTensors *st = st_open(path, &err);
    if (!st) fail_msg("%s", err.msg);
    for (int i = 0; i < 3; i++) {
        const StTensor *t = st_find(st, NAMES[i]);
        void *buf = new_buffer(t->count, true);
        assert_true(nf_quantize_tensor(t, buf, true, &err));
        Nf4View v = nf4_view(buf, t->count, true);
        int64_t *crc = bytes_of(stored(NAMES[i], "codes_crc"));
        assert_int_equal(crc32_z(0, v.codes, (size_t)t->count / 2), *crc);
        check_double_quantised(NAMES[i], &v);
        free(crc);
        free(buf);
    }
    st_close(st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_code8),
        cmocka_unit_test(test_odd_length),
        cmocka_unit_test(test_several_groups),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_ties_between_absmax_codes),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_tensor_streams_from_file),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bad_tensor_is_named),
        cmocka_unit_test(test_real_weights),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
