/* Takes the first GPU's memory but for MB megabytes while a command runs, as another process would:
 *
 *   hold_gpu MB COMMAND...
 *
 * Exits as the command does. */
#include "runtime/cuda/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* In ever smaller pieces: free memory need not be in one. */
static void take(const CudaApi *api, size_t leave) {
    size_t available, total;
    CUdeviceptr at;
    for (size_t piece = (size_t)1 << 36; piece >= (size_t)1 << 21; piece /= 2)
        while (api->cuMemGetInfo(&available, &total) == CUDA_SUCCESS && available > leave + piece &&
               api->cuMemAlloc(&at, piece) == CUDA_SUCCESS) {}
}

int main(int argc, char **argv) {
    PeftError err = {{0}, 0};
    CudaApi *api;
    CudaDevice gpu;
    int status = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: hold_gpu MB COMMAND...\n");
        return 2;
    }
    if (!cuda_api_open(&api, &err) || !cuda_device_open(api, 0, &gpu, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    take(api, (size_t)atoi(argv[1]) * 1000000);
    pid_t pid = fork();
    if (pid == 0) {
        execv(argv[2], argv + 2);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    cuda_device_close(api, &gpu);
    cuda_api_close(api);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
