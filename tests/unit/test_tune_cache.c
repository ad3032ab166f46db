/* The file of chosen algorithms: round trip, what a damaged or foreign file costs, the bound, and
 * that the first choice stored for a key stays. */
#include "scratch.h"

#include <fcntl.h>
#include <sys/file.h>

#include "../../runtime/cuda/tune_cache.h"

static const char *dir;

static int set_up(void **state) {
    (void)state;
    static int n;
    char name[32];
    snprintf(name, sizeof name, "cache%d/below", n++);
    dir = scratch_path(name); /* does not exist yet */
    return 0;
}

static const char *file(void) {
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, TUNE_CACHE_FILE);
    return path;
}

static void add(const char *key, const char *choice) {
    TuneCache c = {0};
    PeftError err = {0};
    const TuneEntry e = {key, choice, "a note"};
    if (!tune_cache_add(&c, dir, &e, 1, &err)) fail_msg("%s", err.msg);
    tune_cache_free(&c);
}

/* NULL: not there. */
static void assert_stored(const char *key, const char *choice) {
    TuneCache c = {0};
    tune_cache_read(&c, dir);
    const char *found = tune_cache_find(&c, key);
    if (choice) {
        assert_non_null(found);
        assert_string_equal(found, choice);
    } else {
        assert_null(found);
    }
    tune_cache_free(&c);
}

static void overwrite(const char *text, size_t n) {
    FILE *f = fopen(file(), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void test_round_trip(void **state) {
    (void)state;
    assert_stored("a", NULL);
    TuneCache c = {0};
    PeftError err = {0};
    const TuneEntry e[] = {{"a", "one", ""}, {"b", "two", "12 launches"}, {"a", "three", ""}};
    assert_true(tune_cache_add(&c, dir, e, 2, &err));
    assert_string_equal(tune_cache_find(&c, "a"), "one");
    assert_string_equal(tune_cache_find(&c, "b"), "two");
    assert_null(tune_cache_find(&c, "c"));
    tune_cache_free(&c);
    add("c d", "three four");
    assert_stored("a", "one");
    assert_stored("b", "two");
    assert_stored("c d", "three four");
    assert_int_equal(scratch_count(dir, "tmp"), 0);
    size_t n;
    char *text = scratch_read(file(), &n);
    assert_non_null(strstr(text, "\tb\ttwo\t12 launches\n"));
    free(text);
}

static void test_first_choice_stays(void **state) {
    (void)state;
    TuneCache mine = {0};
    PeftError err = {0};
    tune_cache_read(&mine, dir);
    add("a", "theirs"); /* another process, meanwhile */
    const TuneEntry e[] = {{"a", "mine", ""}, {"b", "mine", ""}};
    assert_true(tune_cache_add(&mine, dir, e, 2, &err));
    assert_string_equal(tune_cache_find(&mine, "a"), "theirs");
    assert_string_equal(tune_cache_find(&mine, "b"), "mine");
    assert_int_equal(mine.n, 2);
    tune_cache_free(&mine);
    assert_stored("a", "theirs");
}

/* Whichever byte is changed, no choice is believed that was not stored, and no other line suffers
 * but the one that was joined with it. */
static void test_damage(void **state) {
    (void)state;
    add("first", "one");
    add("second", "two");
    add("third", "three");
    size_t n;
    char *text = scratch_read(file(), &n);
    size_t head = (size_t)(strchr(text, '\n') - text) + 1;
    for (size_t i = 0; i < n; i++)
        for (int to = 0; to < 3; to++) {
            char was = text[i];
            text[i] = to == 0 ? 0 : to == 1 ? '\n' : (char)(was ^ 1);
            overwrite(text, n);
            TuneCache c = {0};
            tune_cache_read(&c, dir);
            if (i < head && text[i] != was) assert_int_equal(c.n, 0);
            if (i >= head) assert_in_range(c.n, 1, 3);
            for (int k = 0; k < c.n; k++) {
                const char *key = c.entry[k].key, *choice = c.entry[k].choice;
                assert_true((!strcmp(key, "first") && !strcmp(choice, "one")) ||
                            (!strcmp(key, "second") && !strcmp(choice, "two")) ||
                            (!strcmp(key, "third") && !strcmp(choice, "three")));
            }
            tune_cache_free(&c);
            text[i] = was;
        }
    for (size_t cut = 0; cut < n; cut++) {
        overwrite(text, cut);
        TuneCache c = {0};
        tune_cache_read(&c, dir);
        assert_in_range(c.n, 0, 2);
        tune_cache_free(&c);
    }
    text[n - 2] ^= 1; /* the third line: measured again, stored again */
    overwrite(text, n);
    assert_stored("third", NULL);
    add("third", "four");
    assert_stored("first", "one");
    assert_stored("third", "four");
    free(text);
}

static void test_foreign_files(void **state) {
    (void)state;
    add("a", "one");
    size_t big = (size_t)8 << 20;
    char *text = malloc(big);
    assert_non_null(text);
    memset(text, 'x', big);
    overwrite(text, big); /* larger than any that is written */
    assert_stored("a", NULL);
    overwrite(text, 5000);
    assert_stored("a", NULL);
    memset(text, 0, big);
    overwrite(text, 5000);
    assert_stored("a", NULL);
    overwrite("", 0);
    add("a", "two");
    assert_stored("a", "two");
    free(text);
    assert_int_equal(remove(file()), 0);
    assert_int_equal(mkdir(file(), 0777), 0); /* something that is not a file */
    assert_stored("a", NULL);
    TuneCache c = {0};
    PeftError err = {0};
    assert_false(tune_cache_add(&c, dir, &(TuneEntry){"a", "b", ""}, 1, &err));
    assert_message(&err, TUNE_CACHE_FILE, NULL);
    tune_cache_free(&c);
}

/* Fields with what would break a line, or too long for one, are not stored as something else. */
static void test_odd_entries(void **state) {
    (void)state;
    char key[2 * TUNE_CACHE_LINE];
    memset(key, 'k', sizeof key - 1);
    key[sizeof key - 1] = 0;
    TuneCache c = {0};
    PeftError err = {0};
    const TuneEntry e[] = {{key, "long", ""}, {"a\tb", "tab", ""}, {"good", "one", ""}};
    assert_true(tune_cache_add(&c, dir, e, 3, &err));
    assert_int_equal(c.n, 1);
    assert_string_equal(tune_cache_find(&c, "good"), "one");
    assert_null(tune_cache_find(&c, "a"));
    tune_cache_free(&c);
}

static void test_bound(void **state) {
    (void)state;
    TuneEntry *e = calloc(TUNE_CACHE_ENTRIES + 10, sizeof *e);
    char(*key)[16] = calloc(TUNE_CACHE_ENTRIES + 10, sizeof *key);
    assert_true(e && key);
    for (int i = 0; i < TUNE_CACHE_ENTRIES + 10; i++) {
        snprintf(key[i], sizeof *key, "key %d", i);
        e[i] = (TuneEntry){key[i], "choice", ""};
    }
    TuneCache c = {0};
    PeftError err = {0};
    assert_true(tune_cache_add(&c, dir, e, TUNE_CACHE_ENTRIES, &err));
    assert_int_equal(c.n, TUNE_CACHE_ENTRIES);
    assert_true(tune_cache_add(&c, dir, e + TUNE_CACHE_ENTRIES, 10, &err));
    assert_int_equal(c.n, TUNE_CACHE_ENTRIES);
    assert_null(tune_cache_find(&c, "key 9"));
    assert_non_null(tune_cache_find(&c, "key 10"));
    assert_non_null(tune_cache_find(&c, key[TUNE_CACHE_ENTRIES + 9]));
    tune_cache_free(&c);
    free(e);
    free(key);
}

static void test_cannot_be_stored(void **state) {
    (void)state;
    TuneCache c = {0};
    PeftError err = {0};
    const char *plain = scratch_file("plain", "x", 1);
    char below[512];
    snprintf(below, sizeof below, "%s/below", plain);
    assert_false(tune_cache_add(&c, below, &(TuneEntry){"a", "b", ""}, 1, &err));
    assert_message(&err, plain, NULL);

    add("a", "one");
    char lock[1024];
    snprintf(lock, sizeof lock, "%s/%s", dir, TUNE_CACHE_LOCK);
    int fd = open(lock, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    err = (PeftError){0};
    assert_false(tune_cache_add(&c, dir, &(TuneEntry){"b", "two", ""}, 1, &err));
    assert_message(&err, TUNE_CACHE_LOCK, "cannot be locked", NULL);
    close(fd);
    assert_stored("a", "one");
    assert_stored("b", NULL);
    tune_cache_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_round_trip, set_up),
        cmocka_unit_test_setup(test_first_choice_stays, set_up),
        cmocka_unit_test_setup(test_damage, set_up),
        cmocka_unit_test_setup(test_foreign_files, set_up),
        cmocka_unit_test_setup(test_odd_entries, set_up),
        cmocka_unit_test_setup(test_bound, set_up),
        cmocka_unit_test_setup(test_cannot_be_stored, set_up),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
