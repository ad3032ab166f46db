/* test_cuda_attention.cpp with the kernels as they are compiled for bf16 matrices. */
#define PEFT_BF16
#include "test_cuda_attention.cpp"
