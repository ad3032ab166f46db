/* Prints a program as C: a header comment, the kernels, the tables of peftrt.h, main. The output is
 * a function of the program alone, so equal programs give equal files. */
#include "internal.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const fn_name[PEFT_FN_COUNT] = {
    [PEFT_FN_EVAL] = "eval",           [PEFT_FN_TRAIN] = "train", [PEFT_FN_UPDATE] = "update",
    [PEFT_FN_GRADIENTS] = "gradients", [PEFT_FN_START] = "start",
};

static const char *const dtype_name[] = {"DT_F32",       "DT_I32",  "DT_NF4",
                                         "DT_NF4_PLAIN", "DT_WORK", "DT_MASTER"};

/* ---- values ---- */

/* A C string literal, quotes included; a line break in it starts a line of the source. */
static void emit_string(FILE *out, const char *s) {
    fputc('"', out);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '\n')
            fputs(s[1] ? "\\n\"\n    \"" : "\\n", out);
        else if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 32 || c == 127 || c == '?') /* no trigraphs */
            fprintf(out, "\\%03o", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void print_double(FILE *out, double x) {
    if (isnan(x))
        fputs("NAN", out);
    else if (isinf(x))
        fputs(x < 0 ? "-INFINITY" : "INFINITY", out);
    else
        fprintf(out, "%.17g", x);
}

static void print_dims(FILE *out, int rank, const int64_t *dim) {
    for (int i = 0; i < rank; i++) fprintf(out, "%s%" PRId64, i ? ", " : "{", dim[i]);
    fputs(rank ? "}" : "{0}", out);
}

static void print_ref(FILE *out, int32_t ref) {
    static const char *const input[PEFT_IN_COUNT] = {
#define X(name, dtype, rank, d0, d1) #name,
        PEFT_INPUTS(X)
#undef X
    };
    int i = PEFT_REF_INDEX(ref);
    switch (PEFT_REF_KIND(ref)) {
    case PEFT_REF_VAR: fprintf(out, "VAR(%d)", i); break;
    case PEFT_REF_INPUT: fprintf(out, "INPUT(%s)", input[i]); break;
    case PEFT_REF_TEMP: fprintf(out, "TEMP(%d)", i); break;
    default: fputs("PEFT_REF_NONE", out);
    }
}

/* ---- kernels ---- */

static const char *const kind_name[] = {
    [PEFT_KERNEL_MAP] = "PEFT_KERNEL_MAP",
    [PEFT_KERNEL_COLUMN_SUM] = "PEFT_KERNEL_COLUMN_SUM",
    [PEFT_KERNEL_FULL_SUM] = "PEFT_KERNEL_FULL_SUM",
    [PEFT_KERNEL_GEMM] = "PEFT_KERNEL_GEMM",
    [PEFT_KERNEL_ATTENTION] = "PEFT_KERNEL_ATTENTION",
    [PEFT_KERNEL_ATTENTION_GRAD] = "PEFT_KERNEL_ATTENTION_GRAD",
    [PEFT_KERNEL_INDEX] = "PEFT_KERNEL_INDEX",
    [PEFT_KERNEL_SEGMENT_SUM] = "PEFT_KERNEL_SEGMENT_SUM",
    [PEFT_KERNEL_TRANSPOSE] = "PEFT_KERNEL_TRANSPOSE",
};

static const char *const launch_name[] = {
    [PEFT_LAUNCH_NONE] = "PEFT_LAUNCH_NONE", [PEFT_LAUNCH_ELEMENTS] = "PEFT_LAUNCH_ELEMENTS",
    [PEFT_LAUNCH_ROWS] = "PEFT_LAUNCH_ROWS", [PEFT_LAUNCH_COLUMNS] = "PEFT_LAUNCH_COLUMNS",
    [PEFT_LAUNCH_SUM] = "PEFT_LAUNCH_SUM",   [PEFT_LAUNCH_NARROW] = "PEFT_LAUNCH_NARROW",
};

/* Form of a kernel with generated code, and the field of PeftKernel that points to it. */
static const char *kernel_form(PeftKernelKind kind, const char **field) {
    switch (kind) {
    case PEFT_KERNEL_FULL_SUM: *field = "sum"; return "SUM";
    case PEFT_KERNEL_GEMM: *field = "epilogue"; return "EPILOGUE";
    default: *field = "map"; return "MAP";
    }
}

/* Codes of two are a GPU's alone. */
static bool has_c_code(const Program *p, int kernel) {
    int32_t code = p->entry[kernel].code;
    return code >= 0 && !p->code[code].join && !p->code[code].narrow;
}

static void print_entries(FILE *out, const Program *p) {
    const char *field;
    for (int i = 0; i < p->table.nkernel; i++) {
        const CodeEntry *e = &p->entry[i];
        if (!has_c_code(p, i)) continue;
        fprintf(out, "PEFT_%s_ENTRY(%s, %d", kernel_form(p->table.kernel[i].kind, &field),
                p->table.kernel[i].name, i);
        for (int k = 0; k < e->nsite; k++) fprintf(out, ", %d", e->site[k]);
        fputs(e->nsite ? ")\n" : ", 0)\n", out); /* an array has at least one element */
    }
    fputs("\n", out);
    for (int i = 0; i < p->table.nkernel; i++) {
        const PeftKernel *k = &p->table.kernel[i];
        if (k->nsite) fprintf(out, "static const int32_t site_%d[] = {", i);
        for (int s = 0; s < k->nsite; s++) fprintf(out, "%s%d", s ? ", " : "", k->site[s]);
        if (k->nsite) fputs("};\n", out);
    }
    fputs("\nstatic const PeftKernel kernel[] = {\n", out);
    for (int i = 0; i < p->table.nkernel; i++) {
        const PeftKernel *k = &p->table.kernel[i];
        fputs("    {", out);
        emit_string(out, k->name);
        fprintf(out, ", %s", kind_name[k->kind]);
        kernel_form(k->kind, &field);
        if (has_c_code(p, i)) fprintf(out, ", .%s = entry_%d", field, i);
        if (p->entry[i].code >= 0)
            fprintf(out, ", .launch = %s, .block = %d, .vector = %d, .group = %d",
                    launch_name[k->launch], k->block, k->vector, k->group);
        if (k->launch == PEFT_LAUNCH_NARROW)
            fprintf(out, ", .parts = %d, .shared = %d", k->parts, k->shared);
        if (k->nsite) fprintf(out, ", .site = site_%d, .nsite = %d", i, k->nsite);
        fputs("},\n", out);
    }
    fputs("};\n\n", out);
}

/* ---- variables and methods ---- */

static void print_vars(FILE *out, const PeftProgram *t) {
    static const char *const init[] = {"PEFT_ZEROS", "PEFT_ONES", "PEFT_CONSTANT", "PEFT_NORMAL",
                                       "PEFT_UNIFORM"};
    fputs(
        "/* name, block, where, dtype, rank, is_state, trainable, fresh, decay, init, value, dims,"
        " derived */\n"
        "static const PeftVar var[] = {\n",
        out);
    for (int i = 0; i < t->nvar; i++) {
        const PeftVar *v = &t->var[i];
        fputs("    {", out);
        emit_string(out, v->name);
        fputs(", ", out);
        emit_string(out, v->block);
        fputs(", ", out);
        emit_string(out, v->where);
        fprintf(out, ", %s, %d, %d, %d, %d, %d, %s, ", dtype_name[v->dtype], v->rank, v->is_state,
                v->trainable, v->fresh, v->decay, init[v->init]);
        print_double(out, v->init_value);
        fputs(", ", out);
        print_dims(out, v->rank, v->dim);
        fprintf(out, ", %d}, /* %d */\n", v->derived, i);
    }
    fputs(t->nvar ? "};\n\n" : "    {0}};\n\n", out);
}

static void print_methods(FILE *out, const PeftProgram *t) {
    if (!t->nmethod) return;
    fputs("static const PeftMethod method[] = {\n", out);
    for (int i = 0; i < t->nmethod; i++) {
        const PeftMethod *m = &t->method[i];
        fputs("    {.patch = ", out);
        emit_string(out, m->patch);
        fputs(", .target = ", out);
        emit_string(out, m->target);
        fprintf(out, ", .count = %d, .nparam = %d,\n     .param_name = {", m->count, m->nparam);
        for (int k = 0; k < m->nparam; k++) {
            if (k) fputs(", ", out);
            emit_string(out, m->param_name[k]);
        }
        fputs(m->nparam ? "}, .param_value = {" : "0}, .param_value = {0", out);
        for (int k = 0; k < m->nparam; k++) {
            if (k) fputs(", ", out);
            print_double(out, m->param_value[k]);
        }
        fputs("}},\n", out);
    }
    fputs("};\n\n", out);
}

/* ---- functions ---- */

static void print_desc(FILE *out, PeftKernelKind kind, const void *desc) {
    if (!desc) {
        fputs("NULL", out);
    } else if (kind == PEFT_KERNEL_GEMM) {
        const PeftGemm *d = desc;
        fprintf(out,
                "&(const PeftGemm){%" PRId64 ", %" PRId64 ", %" PRId64
                ", %d, %d, %s, %s, %d, %d, %d, %d, %.17g, %d, %d, %d, %d}",
                d->m, d->n, d->k, d->trans_a, d->trans_b, dtype_name[d->b_dtype],
                dtype_name[d->c_dtype], d->plain, d->joined, d->addend, d->bias, d->scale, d->ahead,
                d->back, d->narrow, d->finished);
    } else if (kind == PEFT_KERNEL_MAP) {
        const PeftJoin *d = desc;
        fprintf(out, "&(const PeftJoin){%d, %d}", d->back, d->kernel);
    } else if (kind == PEFT_KERNEL_ATTENTION || kind == PEFT_KERNEL_ATTENTION_GRAD) {
        const PeftAttention *d = desc;
        fprintf(out, "&(const PeftAttention){%d, %d, %" PRId64 ", %" PRId64 ", ", d->heads, d->site,
                d->rows, d->width);
        print_double(out, d->scale);
        fputs(", ", out);
        print_double(out, d->p);
        fputc('}', out);
    } else {
        const PeftIndex *d = desc;
        fprintf(out, "&(const PeftIndex){%" PRId64 ", %" PRId64 ", %" PRId64 "}", d->n, d->rows,
                d->cols);
    }
}

static void print_step(FILE *out, const PeftProgram *t, const PeftStep *s, int i) {
    fprintf(out, "    /* %d */ {%d, %d, %d, ARGS(", i, s->kernel, s->narg, s->nread);
    for (int k = 0; k < s->narg; k++) {
        if (k) fputs(", ", out);
        print_ref(out, s->arg[k]);
    }
    fprintf(out, "), %" PRId64 ", %" PRId64 ", ", s->rows, s->cols);
    print_ref(out, s->workspace);
    fprintf(out, ", %d, ", s->pass);
    print_desc(out, t->kernel[s->kernel].kind, s->desc);
    fputs(", ", out);
    emit_string(out, s->label);
    fputs(", ", out);
    emit_string(out, s->where);
    fputs("},\n", out);
}

static void print_temp(FILE *out, const PeftTemp *t, int i) {
    static const char *const class[PEFT_MEM_CLASSES] = {
        "WEIGHT", "GRADIENT", "OPTIMIZER", "ACTIVATION", "BACKWARD", "WORKSPACE", "INPUT"};
    fprintf(out, "    /* %d */ {", i);
    emit_string(out, t->label);
    fputs(", ", out);
    emit_string(out, t->where);
    fprintf(out, ", %s, %d, PEFT_MEM_%s, 0, %d, %d, ", dtype_name[t->dtype], t->rank,
            class[t->mem_class], t -> first, t -> last);
    print_dims(out, t->rank, t->dim);
    fputs("},\n", out);
}

static void print_output(FILE *out, const PeftOutput *o) {
    fputs("    {", out);
    emit_string(out, o->name);
    fputs(", ", out);
    print_ref(out, o->ref);
    fprintf(out, ", %d, ", o->rank);
    print_dims(out, o->rank, o->dim);
    fputs("},\n", out);
}

static void print_function(FILE *out, const PeftProgram *t, PeftFn fn) {
    const PeftFunction *f = &t->fn[fn];
    if (!f->nstep) return;
    fprintf(
        out,
        "/* ---- %s: kernel, arguments, of which read, rows, columns, workspace, pass, desc, label, "
        "where ---- */\n\nstatic const PeftStep %s_step[] = {\n",
        fn_name[fn], fn_name[fn]);
    for (int i = 0; i < f->nstep; i++) print_step(out, t, &f->step[i], i);
    fprintf(out,
            "};\n\n/* label, where, dtype, rank, class, -, first step, last step, dims */\n"
            "static const PeftTemp %s_temp[] = {\n",
            fn_name[fn]);
    for (int i = 0; i < f->ntemp; i++) print_temp(out, &f->temp[i], i);
    fprintf(out, "};\n\nstatic const PeftOutput %s_out[] = {\n", fn_name[fn]);
    for (int i = 0; i < f->nout; i++) print_output(out, &f->out[i]);
    fputs("};\n\n", out);
}

/* ---- the program ---- */

static void print_config(FILE *out, const PeftConfig *c) {
    fprintf(out,
            "    .config = {.vocab = %" PRId64 ", .hidden = %" PRId64 ", .layers = %" PRId64
            ", .heads = %" PRId64 ", .ffn = %" PRId64 ",\n               .positions = %" PRId64
            ", .types = %" PRId64 ", .classes = %" PRId64 ", .eps = ",
            c->vocab, c->hidden, c->layers, c->heads, c->ffn, c->positions, c->types, c->classes);
    print_double(out, c->eps);
    fputs(",\n               .dropout = ", out);
    print_double(out, c->dropout);
    fputs(", .attention_dropout = ", out);
    print_double(out, c->attention_dropout);
    fputs("},\n", out);
}

static void print_fit(FILE *out, const PeftFit *f) {
    const struct {
        const char *name;
        double value;
    } real[] = {{"lr", f->lr},
                {"warmup_ratio", f->warmup_ratio},
                {"weight_decay", f->weight_decay},
                {"clip_norm", f->clip_norm},
                {"beta1", f->beta1},
                {"beta2", f->beta2},
                {"eps", f->eps}};
    fprintf(out,
            "    .fit = {.epochs = %d, .batch = %d, .accumulate = %d, .warmup_steps = %" PRId64
            ", .seed = %" PRIu64 "u",
            f->epochs, f->batch, f->accumulate, f->warmup_steps, f->seed);
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        fprintf(out, ",%s.%s = ", i % 4 ? " " : "\n            ", real[i].name);
        print_double(out, real[i].value);
    }
    fputs("},\n", out);
}

static void print_program(FILE *out, const Program *p) {
    static const char *const task[] = {"PEFT_TASK_CLASSIFY", "PEFT_TASK_REGRESS", "PEFT_TASK_MLM"};
    const PeftProgram *t = &p->table;
    fputs(
        "static const PeftProgram program = {\n    .version = PEFT_PROGRAM_VERSION,\n    .name = ",
        out);
    emit_string(out, t->name);
    fputs(",\n    .source = ", out);
    emit_string(out, t->source);
    fputs(",\n    .text =\n    ", out);
    emit_string(out, t->text);
    fprintf(out, ",\n    .hash = 0x%016" PRIx64 "u,\n    .task = %s,\n", t->hash, task[t->task]);
    print_config(out, &t->config);
    print_fit(out, &t->fit);
    fprintf(out, "    .var = var,\n    .nvar = %d,\n", t->nvar);
    if (t->nmethod) fprintf(out, "    .method = method,\n    .nmethod = %d,\n", t->nmethod);
    fprintf(out, "    .kernel = kernel,\n    .nkernel = %d,\n    .fn = {\n", t->nkernel);
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        const char *n = fn_name[f];
        if (t->fn[f].nstep)
            fprintf(out, "        [%d] = {%s_step, %s_temp, %s_out, %d, %d, %d},\n", f, n, n, n,
                    t->fn[f].nstep, t->fn[f].ntemp, t->fn[f].nout);
    }
    fprintf(out, "    },\n    .needs_fp32 = %d,\n    .cuda_source = ", t->needs_fp32);
    emit_string(out, t->cuda_source);
    if (t->ncubin) fprintf(out, ",\n    .cubin = cubin,\n    .ncubin = %d", t->ncubin);
    fputs(",\n};\n", out);
}

/* The settings as a comment: a comment end inside them must not end it. */
static void print_header(FILE *out, const PeftProgram *t) {
    fprintf(out, "/* %s, compiled by peftc from %s. Do not edit.\n *\n * ", t->name, t->source);
    for (const char *s = t->text; *s; s++) {
        if (*s == '\n')
            fputs(s[1] ? "\n * " : "", out);
        else if (*s == '*' && s[1] == '/')
            fputs("* ", out);
        else
            fputc(*s, out);
    }
    fputs("\n */\n#include \"kernel_c.h\"\n\n", out);
}

bool emit_c(FILE *out, const Program *p) {
    const PeftProgram *t = &p->table;
    print_header(out, t);
    fputs("/* ---- kernels ---- */\n\n", out);
    for (int i = 0; i < p->ncode; i++)
        if (!p->code[i].join && !p->code[i].narrow) emit_kernel_c(out, p->graph, &p->code[i]);
    fputs("/* ---- tables ---- */\n\n"
          "#define VAR(i)     (PEFT_REF_VAR | (i))\n"
          "#define INPUT(x)   (PEFT_REF_INPUT | PEFT_IN_##x)\n"
          "#define TEMP(i)    (PEFT_REF_TEMP | (i))\n"
          "#define ARGS(...) ((const int32_t[]){__VA_ARGS__})\n\n",
          out);
    print_entries(out, p);
    print_vars(out, t);
    print_methods(out, t);
    for (int f = 0; f < PEFT_FN_COUNT; f++) print_function(out, t, (PeftFn)f);
    print_cubins(out, t);
    print_program(out, p);
    fputs("\nint main(int argc, char **argv) {\n    return peft_main(&program, argc, argv);\n}\n",
          out);
    return !ferror(out);
}
