/* The instructions that bf16 products of tiles in shared memory are made of: copies to it that do
 * not pass through registers, operands from it, products. The text follows kernel_cuda.h;
 * cuda_emulator.h of the tests has the same functions. */
#if defined PEFT_BF16 && defined __CUDACC_RTC__

PK_DEVICE uint32_t shared_address(const work *x) {
    return (uint32_t)__cvta_generic_to_shared(x);
}

/* Starts to copy a vector; zeros where there is none. */
PK_DEVICE void copy_vector(work *to, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}
PK_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Four matrices [8, 8]: lane 8 i + j has the address of row j of matrix i, and gets of each the
 * columns 2 t, 2 t + 1 of row g, or of the transposed one. */
PK_DEVICE void load_matrices(uint32_t *word, const work *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(shared_address(row)));
}
PK_DEVICE void load_transposed(uint32_t *word, const work *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(shared_address(row)));
}

/* c [16, 8] += a [16, 16] b [16, 8] */
PK_DEVICE void mma_bf16(float *c, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
