/* The checkpoint file, see checkpoint.h. Layout, all little-endian:
 *   Head                       magic, version, counts, hashes, cursor, CRC-32 of Head and Rows
 *   Row[sections]              name, offset, bytes, CRC-32 of the section
 *   sections                   each at a multiple of 64 bytes, in the order of the rows, zeros
 * between The two structs below are the format: they have no padding, which the assertions check.
 */
#include "checkpoint.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "file.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checkpoints are little-endian");

enum { VERSION = 1, ALIGN = 64 };
static const char MAGIC[8] = "peftckpt";

typedef struct Head {
    char magic[8];
    uint32_t version;
    uint32_t sections;
    CkptHeader header;
    uint64_t file_bytes;
    uint32_t crc; /* of this struct with crc 0, then of all rows */
    uint32_t zero;
} Head;

typedef struct Row {
    char name[CKPT_NAME];
    uint64_t offset, bytes;
    uint32_t crc;
    uint32_t zero;
} Row;

_Static_assert(sizeof(Head) == 8 + 2 * 4 + 5 * 8 + 8 + 2 * 4, "the head is padded");
_Static_assert(sizeof(Row) == CKPT_NAME + 2 * 8 + 2 * 4, "a row is padded");

struct Checkpoint {
    char *path;
    int fd;
    uint64_t size;
    Head head;
    Row *rows;
};

static uint64_t align_up(uint64_t n) {
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static uint32_t crc_of(const void *data, size_t n) {
    return (uint32_t)crc32_z(0, data, n);
}

static uint32_t head_crc(const Head *head, const Row *rows) {
    Head h = *head;
    h.crc = 0;
    uLong crc = crc32_z(0, (const Bytef *)&h, sizeof h);
    return (uint32_t)crc32_z(crc, (const Bytef *)rows, h.sections * sizeof *rows);
}

/* ---- writing ---- */

static bool fill_rows(Row *rows, const CkptSection *sections, size_t n, uint64_t *end,
                      PeftError *err) {
    uint64_t at = sizeof(Head) + n * sizeof *rows;
    for (size_t i = 0; i < n; i++) {
        const CkptSection *s = &sections[i];
        if (strlen(s->name) >= CKPT_NAME || s->bytes > INT64_MAX / 2 - at)
            return peft_fail(err, "checkpoint section %s: its name or its %llu bytes are too long",
                             s->name, (unsigned long long)s->bytes);
        rows[i].offset = s->bytes ? align_up(at) : at;
        rows[i].bytes = s->bytes;
        rows[i].crc = crc_of(s->data, s->bytes);
        memcpy(rows[i].name, s->name, strlen(s->name));
        at = rows[i].offset + s->bytes;
    }
    *end = at;
    return true;
}

static bool write_all(AtomicFile *f, const Head *head, const Row *rows, const CkptSection *sections,
                      PeftError *err) {
    size_t n = head->sections;
    if (!atomic_write(f, head, sizeof *head, 0, err) ||
        !atomic_write(f, rows, n * sizeof *rows, sizeof *head, err))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!atomic_write(f, sections[i].data, rows[i].bytes, rows[i].offset, err)) return false;
    return true;
}

bool ckpt_write(const char *path, const CkptHeader *header, const CkptSection *sections, size_t n,
                PeftError *err) {
    if (n > CKPT_MAX_SECTIONS)
        return peft_fail(err, "cannot write %s: %zu sections, at most %d fit", path, n,
                         CKPT_MAX_SECTIONS);
    Row *rows = peft_zalloc(n, sizeof *rows, err);
    if (!rows) return false;
    Head head = {.version = VERSION, .sections = (uint32_t)n, .header = *header};
    memcpy(head.magic, MAGIC, sizeof MAGIC);
    AtomicFile f = {0};
    bool ok = fill_rows(rows, sections, n, &head.file_bytes, err);
    head.crc = head_crc(&head, rows);
    ok = ok && atomic_open(&f, path, err) && write_all(&f, &head, rows, sections, err);
    free(rows);
    if (ok) return atomic_commit(&f, err);
    atomic_abort(&f);
    return false;
}

/* ---- reading ---- */

void ckpt_close(Checkpoint *c) {
    if (!c) return;
    if (c->fd >= 0) close(c->fd);
    free(c->rows);
    free(c->path);
    free(c);
}

const CkptHeader *ckpt_header(const Checkpoint *c) {
    return &c->head.header;
}

static bool check_head(const Checkpoint *c, PeftError *err) {
    const Head *h = &c->head;
    if (memcmp(h->magic, MAGIC, sizeof MAGIC) != 0)
        return peft_fail(err, "%s is not a checkpoint", c->path);
    if (h->version != VERSION)
        return peft_fail(err,
                         "%s has checkpoint format %u, this program reads %d: resume with the "
                         "program that wrote it",
                         c->path, h->version, VERSION);
    if (h->sections > CKPT_MAX_SECTIONS)
        return peft_fail(err, "%s is damaged: it claims %u sections", c->path, h->sections);
    return true;
}

static bool damaged_head(const Checkpoint *c, PeftError *err) {
    return peft_fail(err,
                     "%s is damaged: the checksum of its header does not match; resume from "
                     "another checkpoint or start again",
                     c->path);
}

/* The checksum is no proof against malice: ranges are checked as well. */
static bool check_rows(const Checkpoint *c, PeftError *err) {
    if (head_crc(&c->head, c->rows) != c->head.crc) return damaged_head(c, err);
    if (c->size != c->head.file_bytes)
        return peft_fail(err,
                         "%s has %llu bytes, expected %llu: it is truncated; resume from "
                         "another checkpoint or start again",
                         c->path, (unsigned long long)c->size,
                         (unsigned long long)c->head.file_bytes);
    for (uint32_t i = 0; i < c->head.sections; i++) {
        const Row *r = &c->rows[i];
        if (!memchr(r->name, 0, sizeof r->name) || r->offset > c->size ||
            r->bytes > c->size - r->offset)
            return damaged_head(c, err);
    }
    return true;
}

static bool check_owner(const Checkpoint *c, uint64_t program_hash, uint64_t dataset_hash,
                        PeftError *err) {
    const CkptHeader *h = &c->head.header;
    if (h->program_hash != program_hash)
        return peft_fail(
            err,
            "%s belongs to another program (%016llx, this one is %016llx): same model, "
            "settings and seed are needed to resume",
            c->path, (unsigned long long)h->program_hash, (unsigned long long)program_hash);
    if (h->dataset_hash != dataset_hash)
        return peft_fail(err, "%s was made with other data (%016llx, these are %016llx)", c->path,
                         (unsigned long long)h->dataset_hash, (unsigned long long)dataset_hash);
    return true;
}

static bool load(Checkpoint *c, PeftError *err) {
    if (c->size < sizeof c->head)
        return peft_fail(err,
                         "%s has %llu bytes, expected %zu or more: it is truncated or not a "
                         "checkpoint",
                         c->path, (unsigned long long)c->size, sizeof c->head);
    if (!file_read_at(c->fd, &c->head, sizeof c->head, 0, c->path, err) || !check_head(c, err))
        return false;
    size_t n = c->head.sections;
    c->rows = peft_alloc(n, sizeof *c->rows, err);
    return c->rows &&
           file_read_at(c->fd, c->rows, n * sizeof *c->rows, sizeof c->head, c->path, err) &&
           check_rows(c, err);
}

Checkpoint *ckpt_open(const char *path, uint64_t program_hash, uint64_t dataset_hash,
                      PeftError *err) {
    Checkpoint *c = peft_zalloc(1, sizeof *c, err);
    if (!c) return NULL;
    c->fd = -1;
    c->path = peft_alloc(strlen(path) + 1, 1, err);
    if (c->path) {
        strcpy(c->path, path);
        c->fd = file_open(path, &c->size, err);
    }
    if (c->fd >= 0 && load(c, err) && check_owner(c, program_hash, dataset_hash, err)) return c;
    ckpt_close(c);
    return NULL;
}

static const Row *find_row(const Checkpoint *c, const char *name) {
    for (uint32_t i = 0; i < c->head.sections; i++)
        if (strcmp(c->rows[i].name, name) == 0) return &c->rows[i];
    return NULL;
}

int64_t ckpt_section_bytes(const Checkpoint *c, const char *name) {
    const Row *r = find_row(c, name);
    return r ? (int64_t)r->bytes : -1;
}

bool ckpt_section(const Checkpoint *c, const char *name, void *out, uint64_t bytes,
                  PeftError *err) {
    const Row *r = find_row(c, name);
    if (!r) return peft_fail(err, "%s has no section %s", c->path, name);
    if (r->bytes != bytes)
        return peft_fail(err, "%s: section %s has %llu bytes, expected %llu", c->path, name,
                         (unsigned long long)r->bytes, (unsigned long long)bytes);
    if (!file_read_at(c->fd, out, bytes, r->offset, c->path, err)) return false;
    if (crc_of(out, bytes) == r->crc) return true;
    return peft_fail(err,
                     "%s: section %s is damaged (its checksum does not match); resume from "
                     "another checkpoint or start again",
                     c->path, name);
}
