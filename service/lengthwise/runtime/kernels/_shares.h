/* The transform of `_shares.c`, for Python's module. */
#ifndef LENGTHWISE_SHARES_H
#define LENGTHWISE_SHARES_H

#include "_library.h"

struct Shares;

/* The kernels of a plan; NULL if it is damaged, or there is no memory. */
struct Shares *make_shares(const int32_t *plan, long plan_size, const float *biases, long count);
void forget_shares(struct Shares *shares);
long channels_of(const struct Shares *shares);

/* The shares of rows, each [length][channels]; 0 if there is no memory. */
int transform_rows(const struct Shares *shares, const float *const *rows, const int32_t *lengths, long count, float *to);

#endif
