/* For LD_PRELOAD: a monotonic clock that runs 600 times as fast, so that what a program does once a
 * minute happens ten times a second. Other clocks are as they were. */
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *t) {
    enum { SPEED = 600 };
    const long long second = 1000000000;
    int rc = (int)syscall(SYS_clock_gettime, id, t);
    if (rc || id != CLOCK_MONOTONIC) return rc;
    __int128 ns = ((__int128)t->tv_sec * second + t->tv_nsec) * SPEED;
    t->tv_sec = (time_t)(ns / second);
    t->tv_nsec = (long)(ns % second);
    return 0;
}
