/* Data files, folders, shuffles and batches: formats and their errors line by line, the split rule,
 * torch's random numbers bit for bit, masking, and the whole of SST-2 and AG News where they are.
 */
#include "dataset_fixture.h"

#include <zlib.h>

#include "../../runtime/text/splits.h"

typedef struct ExpectedRow {
    const char *text;
    int label;
} ExpectedRow;

static void expect_rows(Dataset *ds, const ExpectedRow *rows, int n) {
    assert_int_equal(ds->n, n);
    for (int i = 0; i < n; i++) {
        assert_string_equal(dataset_text(ds, i), rows[i].text);
        assert_int_equal(dataset_text_len(ds, i), strlen(rows[i].text));
        assert_int_equal(ds->sample[i], i);
        if (ds->label) assert_int_equal(ds->label[i], rows[i].label);
    }
    dataset_free(ds);
}

/* ---- formats ---- */

static void tsv_columns_are_found_by_name(void **state) {
    (void)state;
    const ExpectedRow rows[] = {{"good film ", 1}, {"", 0}, {" bad", 12}};
    expect_rows(parse("sentence\tlabel\ngood film \t1\n\t0\n bad\t12\n", DATA_TSV), rows, 3);
    expect_rows(parse("sentence\tlabel\ngood film \t1\n\t0\n bad\t12", DATA_TSV), rows, 3);
    expect_rows(
        parse("id\tlabel\tx\ttext\n7\t1\t\tgood film \n8\t0\t-\t\n9\t012\t\t bad\n", DATA_TSV),
        rows, 3);
    expect_rows(parse("\xEF\xBB\xBFsentence\tlabel\r\ngood film \t1\r\n\r\n\t0\r\n bad\t12\r\n\r\n",
                      DATA_TSV),
                rows, 3);
    Dataset *ds = parse("sentence\tlabel\na\t1\nb\t3\nc\t0\n", DATA_TSV);
    assert_int_equal(ds->classes, 4);
    assert_int_equal(ds->classes_line, 3);
    dataset_free(ds);
    ds = parse("sentence\tlabel\na\t0\nb\t1\nc\t2\n", DATA_TSV);
    assert_int_equal(ds->classes, 3);
    dataset_free(ds);
}

static void csv_fields_are_unquoted_and_joined(void **state) {
    (void)state;
    const ExpectedRow rows[] = {{"Wall \"St.\", up It rose.", 2},
                                {"only this", 0},
                                {"two\nlines, one row", 3},
                                {"plain text", 1},
                                {"", 0}};
    expect_rows(parse("\"3\",\"Wall \"\"St.\"\", up\",\"It rose.\"\n\"1\",\"\",\"  only this \"\n"
                      "\"4\",\"two\nlines,\",\"one row\"\n2,plain,text\n1,,\n",
                      DATA_CSV),
                rows, 5);
    expect_rows(parse("\"3\",\"Wall \"\"St.\"\", up\",\"It rose.\"\r\n\r\n\"1\",,\"only this\"\r\n"
                      "\"4\",\"two\nlines,\",\"one row\"\r\n2,plain,text\r\n\n1,\"\",\"\"\r",
                      DATA_CSV),
                rows, 5);
    Dataset *ds = parse("\"2\",\"a\nb\",\"c\"\n\n\"4\",\"d\",\"e\"\n", DATA_CSV);
    assert_int_equal(ds->classes, 4);
    assert_int_equal(ds->classes_line, 4);
    dataset_free(ds);
}

static void text_is_a_row_a_line(void **state) {
    (void)state;
    const ExpectedRow rows[] = {{"one", 0}, {"two\twords", 0}, {"\"three\"", 0}};
    expect_rows(parse("one\n\n\ntwo\twords\r\n\"three\"", DATA_TEXT), rows, 3);
    Dataset *ds = parse("one\n", DATA_TEXT);
    assert_null(ds->label);
    assert_int_equal(ds->classes, 0);
    dataset_free(ds);
}

/* Any text survives being written with quotes; a fixed linear congruence picks the characters. */
static void quoted_text_round_trips(void **state) {
    (void)state;
    enum { ROWS = 500, LEN = 40 };
    static char file[ROWS * LEN * 3], text[ROWS][LEN];
    static const char alphabet[] = "ab,\"\"\n\r\t\xC3\xA9";
    uint32_t random = 1;
    char *to = file;
    for (int i = 0; i < ROWS; i++) {
        to += sprintf(to, "\"%d\",\"x\",\"", i % 4 + 1);
        char *t = stpcpy(text[i], "x ");
        for (int k = i % (LEN - 4); k > 0; k--) {
            char c = alphabet[(random = random * 1664525 + 1013904223) >> 16 & 7];
            *t++ = c;
            if (c == '"') *to++ = '"';
            *to++ = c;
        }
        *t++ = '.', *to++ = '.';
        *t = '\0';
        to = stpcpy(to, "\"\n");
    }
    Dataset *ds = parse(file, DATA_CSV);
    assert_int_equal(ds->n, ROWS);
    for (int i = 0; i < ROWS; i++) {
        assert_string_equal(dataset_text(ds, i), text[i]);
        assert_int_equal(ds->label[i], i % 4);
    }
    dataset_free(ds);
}

#define H "sentence\tlabel\n"

#define NAME_COLUMNS "; the first line must name the columns, with a tab between them"

static const struct {
    DataFormat format;
    const char *bytes;
    size_t len; /* 0: strlen */
    const char *message;
} bad_files[] = {
    {DATA_TSV, "", 0,
     "data: the file is empty; expected a header line with the columns sentence and label"},
    {DATA_TSV, "\n\r\n", 0,
     "data: the file is empty; expected a header line with the columns sentence and label"},
    {DATA_TSV, H, 0, "data: a header line and no rows"},
    {DATA_TSV, H "\n\n", 0, "data: a header line and no rows"},
    {DATA_TSV, "phrase\tclass\x01\t\xFF\nx\t1\n", 0,
     "data:1: no column 'sentence' (or 'text') in the tab-separated header; found: phrase, class?, ?" NAME_COLUMNS},
    {DATA_TSV, "sentence,label\nx,1\n", 0,
     "data:1: no column 'sentence' (or 'text') in the tab-separated header; found: sentence,label" NAME_COLUMNS},
    {DATA_TSV, "index\tsentence\n0\tx\n", 0,
     "data:1: no column 'label' in the tab-separated header; found: index, sentence" NAME_COLUMNS},
    {DATA_TSV, H "a\t1\n\nonly this\n", 0, "data:4: the header has 2 columns, this row 1"},
    {DATA_TSV, H "a\tb\t1\n", 0, "data:2: the header has 2 columns, this row 3"},
    {DATA_TSV, H "a\t1.0\n", 0, "data:2: label '1.0' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\t0\r\nb\t-1\r\n", 0, "data:3: label '-1' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\t\n", 0, "data:2: label '' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\tpositive\n", 0, "data:2: label 'positive' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\t 1\n", 0, "data:2: label ' 1' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\t10000\n", 0, "data:2: label '10000' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\t4294967297\n", 0,
     "data:2: label '4294967297' is not an integer from 0 to 9999"},
    {DATA_TSV, H "a\t1\nb\0c\t1\n", 25, "data:3: NUL byte; the data must be text in UTF-8"},
    {DATA_TSV, "\xFF\xFEs\0e\0n\0", 8, "data:1: NUL byte; the data must be text in UTF-8"},
    {DATA_CSV, "", 0, "data: no rows; expected \"class\",\"title\",\"description\""},
    {DATA_CSV, "\n\n", 0, "data: no rows; expected \"class\",\"title\",\"description\""},
    {DATA_CSV, "Class Index,Title,Description\n", 0,
     "data:1: class 'Class Index' is not an integer from 1 to 10000; this layout has no header line,"
     " one with a header is TSV"},
    {DATA_CSV, "1,a,b\n0,a,b\n", 0, "data:2: class '0' is not an integer from 1 to 10000"},
    {DATA_CSV, "1,a,b\n,a,b\n", 0, "data:2: class '' is not an integer from 1 to 10000"},
    {DATA_CSV, "1,\"a\nb\",c\n2.5,a,b\n", 0,
     "data:3: class '2.5' is not an integer from 1 to 10000"},
    {DATA_CSV, "1\n", 0, "data:1: 1 of the 3 columns class, title, description"},
    {DATA_CSV, "1,a,b\n\"1\",\"a\"\n", 0, "data:2: 2 of the 3 columns class, title, description"},
    {DATA_CSV, "1,a,b,c\n", 0, "data:1: more than 3 columns; expected class, title, description"},
    {DATA_CSV, "1,a,b\n2,\"a\n\nb,c\n", 0, "data:2: this quote is never closed"},
    {DATA_CSV, "1,a,\"b\"\"", 0, "data:1: this quote is never closed"},
    {DATA_CSV, "1,a,\"", 0, "data:1: this quote is never closed"},
    {DATA_CSV, "1,\"a\nb\"c,d\n", 0, "data:2: text behind a closing quote; write \"\" for a quote"},
    {DATA_CSV, "1,a\0,b\n", 7, "data:1: NUL byte; the data must be text in UTF-8"},
    {DATA_TEXT, "", 0, "data: no text in it; expected a text a line"},
    {DATA_TEXT, "\n\r\n\n", 0, "data: no text in it; expected a text a line"},
    {DATA_AUTO, "x", 0, "data: cannot tell the format from the name; expected .tsv, .csv or .txt"},
};

static void bad_files_are_refused_with_their_line(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_files / sizeof bad_files[0]; i++) {
        PeftError err;
        const char *bytes = bad_files[i].bytes;
        size_t len = bad_files[i].len ? bad_files[i].len : strlen(bytes);
        assert_null(parse_bytes(bytes, len, bad_files[i].format, &err));
        assert_string_equal(err.msg, bad_files[i].message);
    }
}

static void overlong_lines_are_refused(void **state) {
    (void)state;
    size_t len = DATASET_MAX_LINE + 100;
    char *bytes = malloc(len);
    PeftError err;
    memset(bytes, 'x', len);
    memcpy(bytes, H, strlen(H));
    assert_null(parse_bytes(bytes, len, DATA_TSV, &err));
    assert_string_equal(err.msg, "data:2: a line of 1048661 bytes, the limit is 1048576");
    for (size_t i = 0; i < len; i++) bytes[i] = i % 50 ? 'x' : '\n';
    memcpy(bytes, "1,a,b\n2,\"", 9);
    assert_null(parse_bytes(bytes, len, DATA_CSV, &err));
    assert_string_equal(err.msg, "data:2: a row of over 1048576 bytes; is this quote closed?");
    free(bytes);
}

static void gzip(const char *path, const char *text) {
    gzFile file = gzopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(gzwrite(file, text, (unsigned)strlen(text)), strlen(text));
    assert_int_equal(gzclose(file), Z_OK);
}

static void files_may_be_gzipped(void **state) {
    (void)state;
    PeftError err = {0};
    const ExpectedRow rows[] = {{"a b", 0}, {"c d", 1}};
    gzip(scratch_path("x.csv.gz"), "1,a,b\n2,c,d\n");
    expect_rows(dataset_read(scratch_path("x.csv.gz"), DATA_AUTO, &err), rows, 2);
    expect_rows(dataset_read(scratch_file("x.csv", "1,a,b\n2,c,d\n", 12), DATA_AUTO, &err), rows,
                2);
    size_t n;
    char *packed = scratch_read(scratch_path("x.csv.gz"), &n);
    assert_null(dataset_read(scratch_file("cut.csv.gz", packed, n - 9), DATA_AUTO, &err));
    assert_message(&err, "cut.csv.gz: cannot read it: the gzip data ends too early", NULL);
    err = (PeftError){0};
    packed[n - 12] ^= 0x55;
    assert_null(dataset_read(scratch_file("bad.csv.gz", packed, n), DATA_AUTO, &err));
    assert_message(&err, "bad.csv.gz: cannot read it: ", NULL);
    free(packed);
    err = (PeftError){0};
    assert_null(dataset_read(scratch_path("none.tsv"), DATA_AUTO, &err));
    assert_message(&err, "none.tsv: cannot read it: No such file or directory", NULL);
    err = (PeftError){0};
    assert_null(dataset_read(scratch, DATA_TSV, &err));
    assert_message(&err, "is a folder where a file is expected", NULL);
}

/* ---- tokenising ---- */

static void rows_are_packed_and_counted(void **state) {
    (void)state;
    WordPiece *wp = load_vocab();
    PeftError err = {0};
    Dataset *ds = parse("a b c d e f\n\nx\xFFy\n\x01\na\xC3\nthe\n", DATA_TEXT);
    assert_true(dataset_tokenize(ds, wp, 6, &err));
    assert_int_equal(ds->truncated, 1);
    assert_int_equal(ds->invalid_utf8, 2);
    for (int round = 0; round < 2; round++) {
        int32_t ids[64];
        for (int32_t i = 0; i < ds->n; i++) {
            int n = wordpiece_encode(wp, dataset_text(ds, i), dataset_text_len(ds, i), ids,
                                     round ? 64 : 6, NULL);
            assert_int_equal(ds->offsets[i + 1] - ds->offsets[i], n);
            assert_memory_equal(ds->tokens + ds->offsets[i], ids, (size_t)n * sizeof *ids);
        }
        assert_true(dataset_tokenize(ds, wp, 64, &err));
        assert_int_equal(ds->truncated, 0);
    }
    assert_int_equal(ds->offsets[3] - ds->offsets[2], 2); /* a control character: [CLS] [SEP] */
    assert_false(dataset_tokenize(ds, wp, 1, &err));
    assert_message(&err, "no room for [CLS] and [SEP]", NULL);
    dataset_free(ds);
    wordpiece_free(wp);
}

/* ---- folders ---- */

static const char *make_folder(const char *name) {
    const char *path = scratch_path(name);
    assert_int_equal(mkdir(path, 0777), 0);
    return path;
}

static void put(const char *folder, const char *name, const char *text) {
    char path[700];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

/* n rows "row I" with labels I % classes. */
static const char *numbered(int n, int classes, DataFormat format) {
    static char text[200000];
    char *to = stpcpy(text, format == DATA_TSV ? H : "");
    for (int i = 0; i < n; i++) {
        if (format == DATA_TSV) to += sprintf(to, "row %d\t%d\n", i, i % classes);
        if (format == DATA_CSV) to += sprintf(to, "\"%d\",\"row\",\"%d\"\n", i % classes + 1, i);
        if (format == DATA_TEXT) to += sprintf(to, "row %d\n", i);
    }
    return text;
}

static void expect_split(const Dataset *ds, const char *file, int n) {
    assert_non_null(ds);
    assert_string_equal(strrchr(ds->path, '/') + 1, file);
    assert_int_equal(ds->n, n);
}

static void validation_is_every_64th_row_of_train(void **state) {
    (void)state;
    PeftError err = {0};
    SplitSet set;
    const char *dir = make_folder("sst2");
    put(dir, "train.tsv", numbered(200, 2, DATA_TSV));
    put(dir, "dev.tsv", numbered(10, 2, DATA_TSV));
    put(dir, "test.tsv", "index\tsentence\n0\thidden labels\n");
    assert_true(data_open(dir, NULL, &set, &err));
    assert_true(set.validation_from_train);
    assert_true(set.test_unlabelled);
    assert_int_equal(set.classes, 2);
    expect_split(set.train, "train.tsv", 197);
    expect_split(set.validation, "train.tsv", 3);
    expect_split(set.test, "dev.tsv", 10);
    int validation = 0, train = 0;
    for (int i = 0; i < 200; i++) {
        const Dataset *ds = i % 64 == 63 ? set.validation : set.train;
        int row = i % 64 == 63 ? validation++ : train++;
        char text[32];
        sprintf(text, "row %d", i);
        assert_string_equal(dataset_text(ds, row), text);
        assert_int_equal(dataset_text_len(ds, row), strlen(text));
        assert_int_equal(ds->sample[row], i);
        assert_int_equal(ds->label[row], i % 2);
    }
    splits_free(&set);
}

static void files_decide_the_roles(void **state) {
    (void)state;
    PeftError err = {0};
    SplitSet set;
    const char *dir = make_folder("roles");
    put(dir, "train.tsv", numbered(100, 3, DATA_TSV));
    put(dir, "dev.tsv", numbered(11, 3, DATA_TSV));
    put(dir, "test.tsv", numbered(12, 2, DATA_TSV));
    assert_true(data_open(dir, "sst2", &set, &err));
    expect_split(set.train, "train.tsv", 100);
    expect_split(set.validation, "dev.tsv", 11);
    expect_split(set.test, "test.tsv", 12);
    assert_false(set.validation_from_train);
    splits_free(&set);
    put(dir, "val.tsv", numbered(13, 3, DATA_TSV));
    assert_true(data_open(dir, NULL, &set, &err));
    expect_split(set.validation, "val.tsv", 13);
    expect_split(set.test, "test.tsv", 12);
    splits_free(&set);

    dir = make_folder("news");
    put(dir, "classes.txt", "World\nSports\nBusiness\nSci/Tech\n");
    gzip(scratch_path("news/train.csv.gz"), numbered(130, 3, DATA_CSV));
    put(dir, "test.csv", numbered(20, 4, DATA_CSV));
    assert_true(data_open(dir, "agnews", &set, &err));
    expect_split(set.train, "train.csv.gz", 128);
    expect_split(set.validation, "train.csv.gz", 2);
    expect_split(set.test, "test.csv", 20);
    assert_int_equal(set.classes, 4);
    assert_string_equal(dataset_text(set.class_names, 3), "Sci/Tech");
    splits_free(&set);

    dir = make_folder("plain");
    put(dir, "train.txt", numbered(64, 1, DATA_TEXT));
    assert_true(data_open(dir, NULL, &set, &err));
    expect_split(set.train, "train.txt", 63);
    expect_split(set.validation, "train.txt", 1);
    assert_null(set.test);
    assert_int_equal(set.classes, 0);
    splits_free(&set);
    assert_string_equal(err.msg, "");
}

static void expect_refused(const char *dir, const char *task, const char *message) {
    PeftError err = {0};
    SplitSet set;
    assert_false(data_open(dir, task, &set, &err));
    assert_message(&err, message, NULL);
    assert_null(set.train);
    assert_null(set.validation);
}

static void bad_folders_are_refused(void **state) {
    (void)state;
    const char *dir = make_folder("bad");
    expect_refused(scratch_path("nowhere"), NULL,
                   "nowhere: cannot read it: No such file or directory");
    expect_refused(dir, NULL, "no train.tsv, train.csv or train.txt in it");
    expect_refused(dir, "sst2", "no train.tsv in it");
    expect_refused(dir, "mnli", "unknown task 'mnli'; expected sst2, agnews or text");
    put(dir, "train.tsv", numbered(63, 2, DATA_TSV));
    expect_refused(scratch_path("bad/train.tsv"), NULL, "is a file; the data must be a folder");
    expect_refused(dir, NULL, "train.tsv: 63 rows; with fewer than 64 no validation set");
    put(dir, "train.txt", "x\n");
    expect_refused(dir, NULL, "has train.tsv and train.txt; name the task");
    put(dir, "train.tsv", numbered(100, 1, DATA_TSV));
    expect_refused(dir, "tsv", "train.tsv: only one class; a classifier needs two");
    put(dir, "train.tsv", H "a\t0\nb\t2\n");
    expect_refused(dir, "tsv", "train.tsv:3: class 2 here, but no row has class 1");
    put(dir, "train.tsv", numbered(100, 2, DATA_TSV));
    put(dir, "dev.tsv", H "a\t0\nb\t3\nc\t1\n");
    expect_refused(dir, "tsv", "dev.tsv:3: class 3, but by ");
    put(dir, "dev.tsv", H "a\tx\n");
    expect_refused(dir, "tsv", "dev.tsv:2: label 'x'");
    put(dir, "train.csv", "1,a,b\n3,a,b\n");
    expect_refused(dir, "csv",
                   "train.csv:2: class 3 here, but no row has class 2; classes are "
                   "numbered from 1");
    put(dir, "classes.txt", "A\nB\n");
    expect_refused(dir, "csv", "train.csv:2: class 3, but by ");
}

/* ---- the real thing ---- */

static WordPiece *load_real_vocab(void) {
    PeftError err = {0};
    const char *path = real_data("vocab/bert-base-uncased/vocab.txt");
    return path ? wordpiece_load(path, &err) : NULL;
}

static void skip_without_data(bool found) {
    if (found) return;
    print_message("skip: the real data sets are not below PEFTC_SHARED\n");
    skip();
}

static void check_corpus(const WordPiece *wp, const char *line) {
    char name[64];
    int rows, max_len[2], tokens[2];
    unsigned long long texts, ids[2];
    assert_int_equal(sscanf(line, "%63s %d %llx %d %d %llx %d %d %llx", name, &rows, &texts,
                            &max_len[0], &tokens[0], &ids[0], &max_len[1], &tokens[1], &ids[1]),
                     9);
    PeftError err = {0};
    const char *path = real_data(name);
    Dataset *ds = path ? dataset_read(path, DATA_AUTO, &err) : NULL;
    assert_non_null(ds);
    assert_int_equal(ds->n, rows);
    uint64_t hash = fnv_offset;
    for (size_t i = 0; i < ds->text_at[ds->n]; i++) hash = fnv(hash, (uint8_t)ds->arena[i]);
    assert_int_equal(hash, texts);
    for (int k = 0; k < 2; k++) {
        assert_true(dataset_tokenize(ds, wp, max_len[k], &err));
        assert_int_equal(ds->offsets[ds->n], tokens[k]);
        hash = fnv_offset;
        for (int32_t i = 0; i < tokens[k]; i++) hash = fnv(hash, (uint64_t)ds->tokens[i]);
        assert_int_equal(hash, ids[k]);
    }
    assert_int_equal(ds->invalid_utf8, 0);
    dataset_free(ds);
}

static void real_corpora_tokenise_as_by_transformers(void **state) {
    (void)state;
    WordPiece *wp = load_real_vocab();
    skip_without_data(wp && real_data("sst2/train.tsv") && real_data("agnews/train.csv.gz"));
    FILE *file = fopen(GOLDEN "corpora.txt", "r");
    assert_non_null(file);
    char line[512];
    int checked = 0;
    for (; fgets(line, sizeof line, file); checked++) check_corpus(wp, line);
    fclose(file);
    assert_int_equal(checked, 4);
    wordpiece_free(wp);
}

static void sst2_splits_as_designed(void **state) {
    (void)state;
    skip_without_data(real_data("sst2/train.tsv"));
    PeftError err = {0};
    SplitSet set;
    assert_true(data_open(real_data("sst2"), NULL, &set, &err));
    assert_int_equal(set.train->n, 66297);
    assert_int_equal(set.validation->n, 1052);
    assert_int_equal(set.test->n, 872);
    assert_int_equal(set.classes, 2);
    assert_int_equal(set.validation->sample[1051], 1051 * 64 + 63);
    splits_free(&set);
    skip_without_data(real_data("agnews/train.csv.gz"));
    assert_true(data_open(real_data("agnews"), NULL, &set, &err));
    assert_int_equal(set.train->n + set.validation->n, 36887);
    assert_int_equal(set.test->n, 7600);
    assert_int_equal(set.classes, 4);
    splits_free(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tsv_columns_are_found_by_name),
        cmocka_unit_test(csv_fields_are_unquoted_and_joined),
        cmocka_unit_test(text_is_a_row_a_line),
        cmocka_unit_test(quoted_text_round_trips),
        cmocka_unit_test(bad_files_are_refused_with_their_line),
        cmocka_unit_test(overlong_lines_are_refused),
        cmocka_unit_test(files_may_be_gzipped),
        cmocka_unit_test(rows_are_packed_and_counted),
        cmocka_unit_test(validation_is_every_64th_row_of_train),
        cmocka_unit_test(files_decide_the_roles),
        cmocka_unit_test(bad_folders_are_refused),
        cmocka_unit_test(real_corpora_tokenise_as_by_transformers),
        cmocka_unit_test(sst2_splits_as_designed),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
