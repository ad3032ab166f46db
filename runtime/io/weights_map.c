/* Canonical names and the index over them, see weights_map.h. Entries are kept sorted by key, which
 * is the canonical name less a leading "bert."; keys are unique at all times. */
#include "weights_map.h"

#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

typedef enum Rule {
    KEEP,
    DROP,           /* the component goes */
    DROP_WITH_NAME, /* so does the next one, an adapter's name, when more follows */
    DROP_NAME,      /* the component stays; of NAME.weight behind it, NAME goes */
    LEAF            /* a bare parameter: whatever follows (NAME, NAME.weight, weight) goes */
} Rule;

static const struct {
    const char *component;
    Rule rule;
} RULES[] = {
    {"base_layer", DROP},
    {"original_module", DROP},
    {"modules_to_save", DROP_WITH_NAME},
    {"adapters", DROP_WITH_NAME},
    {"lora_A", DROP_NAME},
    {"lora_B", DROP_NAME},
    {"lora_embedding_A", LEAF},
    {"lora_embedding_B", LEAF},
    {"lora_magnitude_vector", LEAF},
    {"ia3_l", LEAF},
    {"vera_lambda_b", LEAF},
    {"vera_lambda_d", LEAF},
    {"vera_A", LEAF},
    {"vera_B", LEAF},
};

static const char *skip_prefix(const char *s, const char *prefix) {
    size_t n = strlen(prefix);
    return strncmp(s, prefix, n) == 0 ? s + n : s;
}

static bool is_component(const char *s, size_t n, const char *name) {
    return strlen(name) == n && memcmp(s, name, n) == 0;
}

static Rule rule_of(const char *s, size_t n) {
    for (size_t i = 0; i < sizeof RULES / sizeof *RULES; i++)
        if (is_component(s, n, RULES[i].component)) return RULES[i].rule;
    return KEEP;
}

/* The rest of a dotted name behind its first component; "" at the end. */
static const char *behind(const char *s) {
    const char *dot = strchr(s, '.');
    return dot ? dot + 1 : s + strlen(s);
}

static char *append(char *out, const char *s, size_t n, bool first) {
    if (!first) *out++ = '.';
    memcpy(out, s, n);
    return out + n;
}

/* LayerNorm.gamma and .beta are how TensorFlow checkpoints call weight and bias. */
static void modernise(char *name) {
    char *dot = strrchr(name, '.');
    if (!dot || dot - name < 9 || memcmp(dot - 9, "LayerNorm", 9) != 0) return;
    if (strcmp(dot, ".gamma") == 0)
        strcpy(dot, ".weight");
    else if (strcmp(dot, ".beta") == 0)
        strcpy(dot, ".bias");
}

char *name_strip(const char *name, PeftError *err) {
    char *canonical = peft_alloc(strlen(name) + sizeof ".weight", 1, err);
    if (!canonical) return NULL;
    char *out = canonical;
    const char *s = skip_prefix(name, "base_model.");
    if (s != name) s = skip_prefix(s, "model.");
    while (*s) {
        size_t n = strcspn(s, ".");
        const char *next = behind(s), *after_name = behind(next);
        Rule rule = rule_of(s, n);
        bool last = !*next || (rule == DROP_WITH_NAME && !*after_name);
        if (last && rule != LEAF) rule = KEEP; /* a name never ends in a wrapper */
        if (rule == KEEP || rule == DROP_NAME || rule == LEAF)
            out = append(out, s, n, out == canonical);
        if (rule == LEAF) break;
        bool drops_name = rule == DROP_WITH_NAME || (rule == DROP_NAME && *after_name);
        s = drops_name ? after_name : next;
    }
    *out = 0;
    modernise(canonical);
    return canonical;
}

/* ---- the index ---- */

typedef struct Entry {
    char *canonical;
    const char *key; /* into canonical */
    const StTensor *tensor;
    bool original; /* the frozen copy peft keeps of a module it trains */
    bool used;
} Entry;

struct WeightMap {
    Entry *entries;
    size_t n;
};

WeightMap *weight_map_new(PeftError *err) {
    return peft_zalloc(1, sizeof(WeightMap), err);
}

static void free_entries(Entry *entries, size_t n) {
    for (size_t i = 0; i < n; i++) free(entries[i].canonical);
    free(entries);
}

void weight_map_free(WeightMap *m) {
    if (!m) return;
    free_entries(m->entries, m->n);
    free(m);
}

/* Originals last, so that the first entry of a key is the one to keep. */
static int by_key(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    int c = strcmp(x->key, y->key);
    return c ? c : (int)x->original - (int)y->original;
}

static Entry *find_key(const WeightMap *m, const char *key) {
    size_t lo = 0, hi = m->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(key, m->entries[mid].key);
        if (c == 0) return &m->entries[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

static bool make_entry(Entry *e, const StTensor *t, PeftError *err) {
    *e = (Entry){.tensor = t, .canonical = name_strip(t->name, err)};
    if (!e->canonical) return false;
    e->key = skip_prefix(e->canonical, "bert.");
    e->original = strstr(t->name, ".original_module.") != NULL;
    return true;
}

/* Sorts the n entries of one model and frees the shadowed originals; false when two clash. */
static bool make_unique(Entry *entries, size_t *n, PeftError *err) {
    qsort(entries, *n, sizeof *entries, by_key);
    size_t kept = 0;
    const StTensor *clash = NULL;
    for (size_t i = 0; i < *n; i++) {
        Entry *last = kept ? &entries[kept - 1] : NULL;
        if (!last || strcmp(last->key, entries[i].key) != 0) {
            entries[kept++] = entries[i];
            continue;
        }
        if (!entries[i].original || last->original) {
            clash = clash ? clash : entries[i].tensor;
            peft_fail(err, "%s: tensors %s and %s are both %s", st_path(clash->file),
                      last->tensor->name, clash->name, last->canonical);
        }
        free(entries[i].canonical);
    }
    *n = kept;
    return !clash;
}

/* Adds to (or replaces in) the map; takes over the canonical names. `all` has room for both. */
static void merge(WeightMap *m, Entry *all, const Entry *added, size_t n) {
    size_t total = m->n;
    for (size_t i = 0; i < n; i++) {
        Entry *old = find_key(m, added[i].key);
        if (old) {
            free(old->canonical);
            *old = added[i];
        } else {
            all[total++] = added[i];
        }
    }
    if (m->n) memcpy(all, m->entries, m->n * sizeof *all);
    free(m->entries);
    qsort(all, total, sizeof *all, by_key);
    *m = (WeightMap){.entries = all, .n = total};
}

bool weight_map_add(WeightMap *m, const Weights *w, PeftError *err) {
    size_t n = weights_count(w), made = 0;
    Entry *added = peft_alloc(n, sizeof *added, err);
    Entry *all = peft_alloc(m->n + n, sizeof *all, err);
    bool ok = added && all;
    while (ok && made < n) {
        ok = make_entry(&added[made], weights_get(w, made), err);
        made += ok;
    }
    ok = ok && make_unique(added, &made, err);
    if (!ok) {
        if (added) free_entries(added, made);
        free(all);
        return false;
    }
    merge(m, all, added, made);
    free(added);
    return true;
}

const StTensor *weight_map_find(WeightMap *m, const char *name) {
    Entry *e = find_key(m, skip_prefix(name, "bert."));
    if (!e) return NULL;
    e->used = true;
    return e->tensor;
}

bool weight_map_require(const WeightMap *m, const char *const *names, size_t n, PeftError *err) {
    enum { SHOWN = 4 };
    const char *shown[SHOWN] = {"", "", "", ""};
    size_t missing = 0;
    for (size_t i = 0; i < n; i++) {
        if (find_key(m, skip_prefix(names[i], "bert."))) continue;
        if (missing < SHOWN) shown[missing] = names[i];
        missing++;
    }
    if (missing == 0) return true;
    return peft_fail(
        err, "%zu of %zu tensors are in none of the weight files: %.200s%s%.200s%s%.200s%s%.200s%s",
        missing, n, shown[0], missing > 1 ? ", " : "", shown[1], missing > 2 ? ", " : "", shown[2],
        missing > 3 ? ", " : "", shown[3], missing > SHOWN ? ", ..." : "");
}

/* The next size that is not 1, from *i on; 1 at the end. */
static int64_t next_size(int rank, const int64_t *dims, int *i) {
    while (*i < rank && dims[*i] == 1) ++*i;
    return *i < rank ? dims[(*i)++] : 1;
}

static bool same_shape(int rank, const int64_t *dims, const StTensor *t) {
    for (int i = 0, j = 0; i < rank || j < t->rank;)
        if (next_size(rank, dims, &i) != next_size(t->rank, t->dims, &j)) return false;
    return true;
}

const StTensor *weight_map_resolve(WeightMap *m, const char *name, int rank, const int64_t *dims,
                                   PeftError *err) {
    const StTensor *t = weight_map_find(m, name);
    char wanted[ST_SHAPE_TEXT], found[ST_SHAPE_TEXT];
    if (!t) {
        peft_fail(err, "tensor %s, expected with shape %s, is in none of the weight files", name,
                  st_shape_text(rank, dims, wanted));
        return NULL;
    }
    const char *path = st_path(t->file);
    if (t->dtype == ST_U8 || t->dtype == ST_I32 || t->dtype == ST_I64) {
        peft_fail(err, "%s: tensor %s: expected dtype F32, F16, BF16 or F64, found %s%s", path,
                  t->name, st_dtype_name(t->dtype),
                  t->dtype == ST_U8 ? "; if the model was saved quantised, give the original" : "");
        return NULL;
    }
    if (!same_shape(rank, dims, t)) {
        peft_fail(err, "%s: tensor %s: expected shape %s, found %s", path, t->name,
                  st_shape_text(rank, dims, wanted), st_shape_text(t->rank, t->dims, found));
        return NULL;
    }
    return t;
}

/* ---- what was left over ---- */

static bool ignorable(const char *key) {
    static const char *const PREFIXES[] = {"cls.", "pooler.", "embeddings.position_ids",
                                           "embeddings.token_type_ids"};
    for (size_t i = 0; i < sizeof PREFIXES / sizeof *PREFIXES; i++)
        if (skip_prefix(key, PREFIXES[i]) != key) return true;
    return false;
}

size_t weight_map_unused(const WeightMap *m, const StTensor **out, size_t room) {
    size_t n = 0;
    for (size_t i = 0; i < m->n; i++) {
        if (m->entries[i].used || ignorable(m->entries[i].key)) continue;
        if (n < room) out[n] = m->entries[i].tensor;
        n++;
    }
    return n;
}
