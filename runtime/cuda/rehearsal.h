/* The start on a GPU, rehearsed on a thread of its own. The driver and cuBLASLt take a third of a
 * second for what they do once in a process: while the thread waits for them, the program reads its
 * data and weights. It gives nothing back and reports nothing: the program opens the GPU as it
 * would without, finds that it takes no time, and meets the same errors in the same order. */
#ifndef PEFT_CUDA_REHEARSAL_H
#define PEFT_CUDA_REHEARSAL_H

void rehearsal_begin(void);
void rehearsal_end(void); /* waits for the thread; without rehearsal_begin nothing */

#endif
