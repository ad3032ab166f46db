/* What the driver counts as taken. Other processes' memory on the same GPU is in its figure, so it
 * is what one process uses only while that process is alone on the GPU. */
#include "device.h"
#include "internal.h"

int64_t cuda_driver_bytes(const Exec *x) {
    const CudaExec *d = x->cuda;
    size_t now, total;
    if (d->api->cuMemGetInfo(&now, &total) != CUDA_SUCCESS) return -1;
    return (int64_t)d->gpu.free_bytes - (int64_t)now;
}
