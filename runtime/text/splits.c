/* Finds the files of a data folder, decides their roles and checks that their labels agree. Files
 * are looked for by name only; what else lies in the folder does not matter. */
#include "splits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../io/file.h"

static const struct {
    DataFormat format;
    const char *extension, *task, *alias;
} layouts[] = {
    {DATA_TSV, "tsv", "sst2", "tsv"},
    {DATA_CSV, "csv", "agnews", "csv"},
    {DATA_TEXT, "txt", "text", "text"},
};

enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

typedef struct Folder {
    const char *dir, *extension;
    DataFormat format;
    PeftError *err;
} Folder;

/* The path of dir/stem.extension or, if there is none, of the same with .gz. *path is NULL when
 * neither exists, and to be freed otherwise; false is an error. */
static bool find_file(const Folder *folder, const char *stem, char **path) {
    *path = NULL;
    for (int gz = 0; gz < 2 && !*path; gz++) {
        char name[64];
        snprintf(name, sizeof name, "%s.%s%s", stem, folder->extension, gz ? ".gz" : "");
        *path = path_join(folder->dir, name, folder->err);
        if (!*path) return false;
        if (file_exists(*path)) break;
        free(*path);
        *path = NULL;
    }
    return true;
}

static bool has_file(const Folder *folder, const char *stem, bool *found) {
    char *path;
    if (!find_file(folder, stem, &path)) return false;
    *found = path != NULL;
    free(path);
    return true;
}

static bool check_folder(const char *dir, PeftError *err) {
    struct stat st;
    if (stat(dir, &st) != 0)
        return peft_fail(err, "data folder %s: cannot read it: %s", dir, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return peft_fail(err,
                         "%s: is a file; the data must be a folder with train.tsv, train.csv or "
                         "train.txt",
                         dir);
    return true;
}

static bool named_layout(const char *task, Folder *folder) {
    for (int i = 0; i < LAYOUTS; i++)
        if (strcmp(task, layouts[i].task) == 0 || strcmp(task, layouts[i].alias) == 0) {
            folder->extension = layouts[i].extension;
            folder->format = layouts[i].format;
            return true;
        }
    return peft_fail(folder->err, "unknown task '%s'; expected sst2, agnews or text", task);
}

/* By the train file: there must be exactly one. */
static bool detect_layout(Folder *folder) {
    int found = 0;
    Folder candidate = *folder;
    for (int i = 0; i < LAYOUTS; i++) {
        bool here;
        candidate.extension = layouts[i].extension;
        if (!has_file(&candidate, "train", &here)) return false;
        if (!here) continue;
        if (found++)
            return peft_fail(folder->err,
                             "data folder %s: has train.%s and train.%s; name the task",
                             folder->dir, folder->extension, candidate.extension);
        folder->extension = layouts[i].extension;
        folder->format = layouts[i].format;
    }
    if (found) return true;
    return peft_fail(folder->err,
                     "data folder %s: no train.tsv, train.csv or train.txt in it "
                     "(nor one of them with .gz)",
                     folder->dir);
}

/* Reads dir/stem.extension; *ds stays NULL when there is no such file. */
static bool read_split(const Folder *folder, const char *stem, Dataset **ds) {
    char *path;
    if (!find_file(folder, stem, &path)) return false;
    if (path) *ds = dataset_read(path, folder->format, folder->err);
    bool ok = !path || *ds;
    free(path);
    return ok;
}

static bool read_train(const Folder *folder, SplitSet *set) {
    if (!read_split(folder, "train", &set->train)) return false;
    if (set->train) return true;
    return peft_fail(folder->err, "data folder %s: no train.%s in it", folder->dir,
                     folder->extension);
}

/* Reads the test file unless it is a TSV without labels. */
static bool read_test(const Folder *folder, SplitSet *set) {
    char *path;
    bool labelled = true, ok = find_file(folder, "test", &path);
    if (ok && path && folder->format == DATA_TSV)
        ok = dataset_has_labels(path, &labelled, folder->err);
    free(path);
    set->test_unlabelled = !labelled;
    return ok && (!labelled || read_split(folder, "test", &set->test));
}

static bool take_validation(SplitSet *set, PeftError *err) {
    if (set->train->n < VALIDATION_PERIOD)
        return peft_fail(err,
                         "%s: %d rows; with fewer than %d no validation set can be taken from "
                         "them, add a validation file",
                         set->train->path, set->train->n, VALIDATION_PERIOD);
    set->validation = dataset_split_every(set->train, VALIDATION_PERIOD, err);
    set->validation_from_train = set->validation != NULL;
    return set->validation_from_train;
}

static bool read_files(const Folder *folder, SplitSet *set) {
    Dataset *dev = NULL;
    bool ok = read_train(folder, set) && read_split(folder, "validation", &set->validation) &&
              (set->validation || read_split(folder, "val", &set->validation)) &&
              read_test(folder, set) &&
              ((set->validation && set->test) || read_split(folder, "dev", &dev));
    if (!ok) return false;
    if (dev && !set->validation && set->test) {
        set->validation = dev;
    } else if (dev) {
        set->test = dev;
    }
    return true;
}

/* The number by which the file calls a class. */
static int file_class(const SplitSet *set, int32_t label) {
    return label + (set->format == DATA_CSV);
}

/* Every class below the number of classes must occur in train: a gap is a mistake in the labels. */
static bool check_gaps(const SplitSet *set, PeftError *err) {
    const Dataset *train = set->train;
    bool seen[DATASET_MAX_LABEL + 1] = {false};
    for (int32_t i = 0; i < train->n; i++) seen[train->label[i]] = true;
    for (int32_t c = 0; c < train->classes; c++)
        if (!seen[c])
            return peft_fail(err,
                             "%s:%d: class %d here, but no row has class %d; classes are numbered "
                             "from %d without gaps",
                             train->path, train->classes_line, file_class(set, train->classes - 1),
                             file_class(set, c), file_class(set, 0));
    return true;
}

static bool check_labels(const SplitSet *set, const Dataset *ds, PeftError *err) {
    if (!ds || ds->classes <= set->classes) return true;
    const Dataset *from = set->class_names ? set->class_names : set->train;
    return peft_fail(err, "%s:%d: class %d, but by %s they go from %d to %d", ds->path,
                     ds->classes_line, file_class(set, ds->classes - 1), from->path,
                     file_class(set, 0), file_class(set, set->classes - 1));
}

static bool settle_classes(const Folder *folder, SplitSet *set) {
    Folder names = *folder;
    if (folder->format == DATA_TEXT) return true;
    names.extension = "txt";
    names.format = DATA_TEXT;
    if (!read_split(&names, "classes", &set->class_names)) return false;
    if (!set->class_names && !check_gaps(set, folder->err)) return false;
    set->classes = set->class_names ? set->class_names->n : set->train->classes;
    if (set->classes < 2)
        return peft_fail(folder->err, "%s: only one class; a classifier needs two",
                         set->class_names ? set->class_names->path : set->train->path);
    return check_labels(set, set->train, folder->err) &&
           check_labels(set, set->validation, folder->err) &&
           check_labels(set, set->test, folder->err);
}

bool data_open(const char *dir, const char *task, SplitSet *out, PeftError *err) {
    Folder folder = {.dir = dir, .err = err};
    *out = (SplitSet){0};
    bool ok =
        check_folder(dir, err) && (task ? named_layout(task, &folder) : detect_layout(&folder));
    out->format = folder.format;
    ok = ok && read_files(&folder, out) && settle_classes(&folder, out) &&
         (out->validation || take_validation(out, err));
    if (!ok) splits_free(out);
    return ok;
}

bool splits_tokenize(SplitSet *set, const WordPiece *wp, int max_len, PeftError *err) {
    return dataset_tokenize(set->train, wp, max_len, err) &&
           dataset_tokenize(set->validation, wp, max_len, err) &&
           (!set->test || dataset_tokenize(set->test, wp, max_len, err));
}

void splits_free(SplitSet *set) {
    dataset_free(set->train);
    dataset_free(set->validation);
    dataset_free(set->test);
    dataset_free(set->class_names);
    *set = (SplitSet){0};
}
