/* Quality of predictions: accuracy and macro F1 from a confusion matrix, as scikit-learn's
 * f1_score(average="macro") defines it (a class that is never true nor predicted counts as 0). */
#ifndef PEFT_SCORE_H
#define PEFT_SCORE_H

#include <stdbool.h>
#include <stdint.h>

#define SCORE_MAX_CLASSES 256

typedef struct Score {
    int classes;
    int64_t n;
    double loss_sum; /* of the rows scored */
    int64_t truth[SCORE_MAX_CLASSES], predicted[SCORE_MAX_CLASSES], hit[SCORE_MAX_CLASSES];
} Score;

void score_start(Score *s, int classes);
/* logits [classes]; the first of equal maxima is the prediction. A NaN logit is never right. */
void score_add(Score *s, const float *logits, int32_t label);
int score_argmax(const float *logits, int classes);
double score_accuracy(const Score *s);
double score_macro_f1(const Score *s);

#endif
