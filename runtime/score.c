/* See score.h. */
#include "score.h"

#include <string.h>

void score_start(Score *s, int classes) {
    memset(s, 0, sizeof *s);
    s->classes = classes;
}

int score_argmax(const float *logits, int classes) {
    int best = -1;
    for (int c = 0; c < classes; c++) {
        if (!(logits[c] == logits[c])) return -1;
        if (best < 0 || logits[c] > logits[best]) best = c;
    }
    return best;
}

void score_add(Score *s, const float *logits, int32_t label) {
    int guess = score_argmax(logits, s->classes);
    s->n++;
    s->truth[label]++;
    if (guess >= 0) s->predicted[guess]++;
    if (guess == label) s->hit[label]++;
}

double score_accuracy(const Score *s) {
    int64_t right = 0;
    for (int c = 0; c < s->classes; c++) right += s->hit[c];
    return s->n ? (double)right / (double)s->n : 0;
}

double score_macro_f1(const Score *s) {
    double sum = 0;
    for (int c = 0; c < s->classes; c++) {
        int64_t both = s->truth[c] + s->predicted[c];
        if (both) sum += 2.0 * (double)s->hit[c] / (double)both;
    }
    return s->classes ? sum / s->classes : 0;
}
