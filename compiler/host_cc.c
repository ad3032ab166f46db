/* See host_cc.h. */
#include "host_cc.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* The folder of the running peftc: include/ and libpeftrt.a lie in it. */
static bool own_folder(char *dir, size_t size, PeftError *err) {
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return peft_fail(err, "cannot find peftc's own folder: %s", strerror(errno));
    self[n] = 0;
    snprintf(dir, size, "%s", dirname(self));
    return true;
}

static bool write_source(const char *path, void (*write)(FILE *f, void *ctx), void *ctx,
                         PeftError *err) {
    FILE *f = fopen(path, "w");
    if (!f) return peft_fail(err, "cannot write %s: %s", path, strerror(errno));
    write(f, ctx);
    bool bad = ferror(f) != 0;
    bad |= fclose(f) != 0;
    return !bad || peft_fail(err, "cannot write %s: %s", path, strerror(errno));
}

static bool spawn(char *const argv[], PeftError *err) {
    pid_t pid;
    int status, rc = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
    if (rc)
        return peft_fail(err, "cannot start the C compiler '%s': %s; install one or give --cc",
                         argv[0], strerror(rc));
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return peft_fail(err, "cannot wait for %s: %s", argv[0], strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    return peft_fail(err, "%s failed on the generated C (its messages are above)", argv[0]);
}

static bool compile(const char *source, const char *out, const HostCc *cc, PeftError *err) {
    char dir[PATH_MAX], include[PATH_MAX + 16], library[PATH_MAX + 16], level[4] = "-O3";
    if (!own_folder(dir, sizeof dir, err)) return false;
    snprintf(include, sizeof include, "-I%s/include", dir);
    snprintf(library, sizeof library, "%s/libpeftrt.a", dir);
    level[2] = (char)('0' + cc->level);
    if (access(library, R_OK))
        return peft_fail(err, "the runtime library %s is missing; run make again", library);
    const char *argv[] = {cc->command,
                          "-std=gnu11",
                          level,
                          "-fno-math-errno",
                          "-fno-trapping-math",
                          "-ffp-contract=fast",
                          include,
                          "-x",
                          "c",
                          source,
                          "-x",
                          "none",
                          library,
                          "-o",
                          out,
                          "-fopenmp",
                          "-ljansson",
                          "-lutf8proc",
                          "-lz",
                          "-lm",
                          "-ldl",
#ifdef __SANITIZE_ADDRESS__
                          "-fsanitize=address,undefined",
                          "-fno-sanitize-recover=undefined",
#endif
                          NULL};
    return spawn((char *const *)argv, err);
}

bool host_cc(const char *out, const HostCc *cc, void (*write)(FILE *f, void *ctx), void *ctx,
             PeftError *err) {
    char source[PATH_MAX], binary[PATH_MAX];
    HostCc with = *cc;
    if (!with.command) with.command = getenv("CC");
    if (!with.command || !*with.command) with.command = "cc";
    if (snprintf(source, sizeof source, "%s.%d.c", out, (int)getpid()) >= PATH_MAX ||
        snprintf(binary, sizeof binary, "%s.%d.tmp", out, (int)getpid()) >= PATH_MAX)
        return peft_fail(err, "the name '%s' is too long", out);
    bool ok = write_source(source, write, ctx, err) && compile(source, binary, &with, err);
    if (ok && rename(binary, out)) ok = peft_fail(err, "cannot write %s: %s", out, strerror(errno));
    unlink(source);
    if (!ok) unlink(binary);
    return ok;
}
