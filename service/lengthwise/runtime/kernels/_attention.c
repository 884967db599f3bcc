/* The core of attention for onnxruntime: softmax(query key^T * scale) value, of the valid steps of each row.
 *
 * onnxruntime computes it for all steps up to the longest row, and adds a mask to the scores. Here a row is computed by itself,
 * at its own length: nothing is hidden, as what is past its end is not there. So its bits do not depend on the batch.
 * `onnx/valid_attention.py` writes the operators into a graph.
 *
 *     LengthsOfMask          mask [rows][...][steps], which is 0 at the keys of valid steps, and HIDDEN or less at others
 *                            -> [rows] how long each row is; [rows] the same, but at most 1
 *     AttentionOfValidSteps  packed query, key, value (`_packed_steps.h`); or query alone, which has all three side by side;
 *                            lengths [rows]; how many queries each row has, if not as many; attributes num_heads, scale
 *                            -> packed answers to the queries, with the features of value
 *
 * A mask with more axes has to be the same at all of them, but for queries past the end of a row, which nothing computes.
 * A few queries stand side by side in vectors. They go through the keys in blocks that stay in the nearest cache; the
 * largest score so far makes all shares small enough (Milakov and Gimelshein, 2018, "Online normalizer calculation for
 * softmax").
 */
#include "_library.h"

#define HIDDEN -1e8f     /* as `HIDDEN` in `onnx/pattern.py` */
#define KEYS_AT_ONCE 128 /* whose scores stay in the nearest cache */
#define MOST_BLOCK 32    /* queries */
#define MOST_MASK_AXES 4
#define WORTH_HALF_A_BATCH (1L << 20) /* products that take another thread some 20 us */
#define BITS_OF_E 1.44269504088896340736f /* exp(x) is 2 to the power of it times x */

/* The arithmetic for one instruction set. */
struct Cells {
    const char *name;
    long lanes, wide; /* floats in a vector; queries that are computed at once where there are as many */
    void (*multiply)(const float *, long, long, long, long, const float *, long, int, float *);
    void (*weigh)(float *, long, long, int, float *, float *, float *, long);
    const struct Cells *narrower; /* of smaller vectors, with the same bits; NULL where these are the smallest */
};

#if defined(__x86_64__)
#define SET avx512
#define WIDE 2
#define MOST_ROWS 8
#include "_attention_cells.h"

#define SET avx2
#define WIDE 2
#define MOST_ROWS 4
#include "_attention_cells.h"
#elif defined(__aarch64__)
#define SET neon
#define WIDE 2
#define MOST_ROWS 8
#include "_attention_cells.h"
#endif

#define CELLS(set, narrower) (const struct Cells){#set, LANES_##set, 2 * LANES_##set, multiply_queries_##set, weigh_##set, narrower}
#if defined(__x86_64__)
static const struct Cells AVX2_CELLS = CELLS(avx2, NULL), AVX512_CELLS = CELLS(avx512, &AVX2_CELLS);
#elif defined(__aarch64__)
static const struct Cells NEON_CELLS = CELLS(neon, NULL);
#endif
static const struct Cells *const KNOWN[] = { /* none on other processors, where onnxruntime's own kernels run */
#if defined(__x86_64__)
    &AVX512_CELLS, &AVX2_CELLS,
#elif defined(__aarch64__)
    &NEON_CELLS,
#endif
    NULL,
};

struct Attention {
    const struct Cells *cells;
    long heads;
    float scale;
};

enum Part { QUERY, KEY, VALUE, PARTS };

/* Some rows and heads of a batch, which another thread may begin and this one finish. */
struct Work {
    const struct Attention *attention;
    const float *from[PARTS];           /* those of the first step and head */
    long apart[PARTS], features[PARTS]; /* from one step to the next, in floats; features of a head */
    const int32_t *lengths, *queries;   /* of each row; how many queries it has */
    long row, begin, first_query;       /* the next row, and where its keys and queries begin */
    long head, items;                   /* its next head; how many rows and heads to compute */
    long query;                         /* the next query of that row and head; copies are in `room` if it is not the first */
    float *room, *to;                   /* `room_for` floats; the answers */
};

/* How many floats a thread needs: keys, values and a block of queries, their scores, their sums, and two numbers of each. */
static long room_for(long longest, const long *features)
{
    return longest * (features[KEY] + features[VALUE]) + MOST_BLOCK * (features[QUERY] + features[VALUE] + KEYS_AT_ONCE + 2);
}

/* The keys or values of a row and head, which stand one behind the other at `to`, if there is such a place: copied before
 * the first query. */
static const float *gathered(const struct Work *work, enum Part part, long length, float *to)
{
    const long features = work->features[part], apart = work->apart[part];
    const float *from = work->from[part] + work->begin * apart + work->head * features;
    for (long step = 0; to && !work->query && step < length; step++)
        memcpy(to + step * features, from + step * apart, features * sizeof *to);
    return to ? to : from;
}

/* The same of a block of queries, `[features][block]`, scaled; 0 where there is no query. */
static void gather_queries(const struct Work *work, const float *from, long count, long block, float *to)
{
    const long apart = work->apart[QUERY];
    for (long i = 0; i < work->features[QUERY]; i++, to += block) {
        for (long query = 0; query < count; query++) to[query] = from[query * apart + i] * work->attention->scale;
        for (long query = count; query < block; query++) to[query] = 0.0f;
    }
}

/* The widest cells that a number of queries half fills. */
static const struct Cells *cells_for(const struct Attention *attention, long queries)
{
    const struct Cells *cells = attention->cells;
    return cells->narrower && queries <= cells->narrower->lanes ? cells->narrower : cells;
}

/* Computes one row and head, or goes on with it; a thread on a lent core stops when the core is wanted. */
static void attend(struct Work *work, int may_stop)
{
    const long length = work->lengths[work->row], asked = work->queries[work->row];
    const long size = work->features[KEY], features = work->features[VALUE];
    const long outputs = features * work->attention->heads;
    const int is_once = asked <= work->attention->cells->wide; /* they are read once: not worth a copy */
    float *key_room = work->room, *value_room = key_room + length * size, *queries = value_room + length * features;
    const float *keys = gathered(work, KEY, length, is_once ? NULL : key_room);
    const float *values = gathered(work, VALUE, length, is_once ? NULL : value_room);
    const long key_apart = is_once ? work->apart[KEY] : size, value_apart = is_once ? work->apart[VALUE] : features;
    float *scores = queries + MOST_BLOCK * size, *sums = scores + MOST_BLOCK * KEYS_AT_ONCE;
    float *most = sums + MOST_BLOCK * features, *divisors = most + MOST_BLOCK;
    const float *from = work->from[QUERY] + work->first_query * work->apart[QUERY] + work->head * size;
    float *to = work->to + work->first_query * outputs + work->head * features;
    for (long count; work->query < asked && !(may_stop && core_is_wanted()); work->query += count) {
        const long first = work->query;
        const struct Cells *cells = cells_for(work->attention, asked - first);
        const long block = asked - first > cells->lanes ? cells->wide : cells->lanes;
        count = asked - first < block ? asked - first : block;
        gather_queries(work, from + first * work->apart[QUERY], count, block, queries);
        for (long key = 0; key < length; key += KEYS_AT_ONCE) {
            const long of_block = length - key < KEYS_AT_ONCE ? length - key : KEYS_AT_ONCE;
            cells->multiply(keys + key * key_apart, key_apart, 1, of_block, size, queries, block, 1, scores);
            cells->weigh(scores, of_block, block, !key, most, divisors, sums, features);
            cells->multiply(values + key * value_apart, 1, value_apart, features, of_block, scores, block, !key, sums);
            let_others_run();
        }
        for (long query = 0; query < count; query++) {
            const float factor = 1.0f / divisors[query];
            for (long i = 0; i < features; i++) to[(first + query) * outputs + i] = sums[i * block + query] * factor;
        }
    }
}

/* Goes to the next head, or to the first one of the next row. */
static void next(struct Work *work)
{
    work->items--;
    work->query = 0;
    if (++work->head < work->attention->heads) return;
    work->head = 0;
    work->first_query += work->queries[work->row];
    work->begin += work->lengths[work->row++];
}

static void go_on(void *part, int may_stop)
{
    struct Work *work = part;
    for (; work->items; next(work)) {
        attend(work, may_stop);
        if (work->query < work->queries[work->row]) return;
    }
}

/* ---- Onnxruntime's side. ---- */

enum { LENGTHS = PARTS, QUERIES };

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    struct Attention found = {.cells = attention_kernels.chosen, .heads = whole(info, "num_heads", 0)};
    (void)op, (void)given;
    if (!found.cells || found.heads < 1 || !well(api->KernelInfoGetAttribute_float(info, "scale", &found.scale)))
        return status(ORT_FAIL, "attention without heads or a scale");
    found.scale *= BITS_OF_E;
    struct Attention *attention = malloc(sizeof *attention);
    if (!attention) return no_memory();
    *attention = found;
    *kernel = attention;
    return NULL;
}

static void destroy(void *kernel) { free(kernel); }

/* Reads query, key and value, and how many packed steps queries and keys have; 0 if their shapes do not fit each other. */
static int read_parts(OrtKernelContext *context, struct Work *work, long *queries, long *keys)
{
    int good = 1;
    int64_t shapes[PARTS][2] = {{0}};
    const long heads = work->attention->heads;
    for (int part = 0; part < PARTS; part++) work->from[part] = input(context, part, shapes[part], 2, &good);
    const int is_one = !work->from[KEY] && !work->from[VALUE];
    if (!good || !work->from[QUERY] || (!is_one && (!work->from[KEY] || !work->from[VALUE]))) return 0;
    if (is_one && shapes[QUERY][1] % PARTS) return 0;
    for (int part = 0; part < PARTS; part++) {
        const int64_t *shape = shapes[is_one ? QUERY : part];
        const long width = is_one ? shape[1] / PARTS : shape[1];
        if (width < 1 || width % heads) return 0;
        if (is_one) work->from[part] = work->from[QUERY] + part * width;
        work->apart[part] = shape[1];
        work->features[part] = width / heads;
    }
    *queries = shapes[QUERY][0], *keys = shapes[is_one ? QUERY : KEY][0];
    return work->features[QUERY] == work->features[KEY] && *keys == shapes[is_one ? QUERY : VALUE][0];
}

/* Computes all rows and heads: half of them may be another thread's. */
static OrtStatus *attend_all(struct Work *all, long rows)
{
    const long heads = all->attention->heads, of_step = (all->features[QUERY] + all->features[VALUE]) * heads;
    struct Work both[2] = {*all, *all};
    long longest = 0, products = 0;
    for (long row = 0; row < rows; row++) {
        if (all->lengths[row] > longest) longest = all->lengths[row];
        products += (long)all->lengths[row] * all->queries[row] * of_step;
    }
    const long room = room_for(longest, all->features);
    float *rooms = floats(2 * room);
    if (!rooms) return no_memory();
    both[0].room = rooms, both[1].room = rooms + room;
    both[0].items = 0, both[1].items = rows * heads;
    for (; both[0].items < rows * heads / 2; both[0].items++) next(&both[1]);
    do_both(go_on, &both[0], &both[1], products / 2 >= WORTH_HALF_A_BATCH);
    free(rooms);
    return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    struct Work work = {.attention = kernel};
    int good = 1;
    int64_t rows[1], of_queries[1];
    long packed, keys;
    if (!read_parts(context, &work, &packed, &keys)) return unfit_shapes();
    work.lengths = input(context, LENGTHS, rows, 1, &good);
    work.queries = input(context, QUERIES, of_queries, 1, &good);
    if (!good || !work.lengths || (work.queries ? of_queries[0] != rows[0] : packed != keys)) return unfit_shapes();
    if (!work.queries) work.queries = work.lengths;
    const long valid = valid_steps(work.queries, rows[0], packed), outputs = work.features[VALUE] * work.attention->heads;
    if (valid < 0 || valid_steps(work.lengths, rows[0], keys) < 0) return unfit_length();
    for (long row = 0; row < rows[0]; row++)
        if (work.queries[row] && !work.lengths[row]) return unfit_length();
    OrtStatus *error = output(context, 0, (int64_t[]){packed, outputs}, 2, &work.to);
    if (error || !work.to) return error;
    memset(work.to + valid * outputs, 0, (packed - valid) * outputs * sizeof *work.to);
    return attend_all(&work, rows[0]);
}

/* Whether the mask of a query hides the steps from `length` on, and no others. */
static int hides_rest(const float *mask, long length, long steps)
{
    int is_other = 0;
    for (long step = 0; step < length; step++) is_other |= !(mask[step] == 0.0f);
    for (long step = length; step < steps; step++) is_other |= !(mask[step] <= HIDDEN);
    return !is_other;
}

/* Reads how long each row is, by a mask; an error of one that hides another step than those past the end. */
static OrtStatus *compute_lengths(void *kernel, OrtKernelContext *context)
{
    int64_t shape[MOST_MASK_AXES];
    size_t axes = MOST_MASK_AXES;
    const OrtValue *value = NULL;
    int32_t *lengths = NULL, *at_most_one = NULL;
    const float *mask = well(api->KernelContext_GetInput(context, 0, &value)) ? tensor(value, shape, &axes) : NULL;
    (void)kernel;
    if (!mask || axes < 2) return unfit_shapes();
    const long rows = shape[0], steps = shape[axes - 1], queries = axes > 2 ? shape[axes - 2] : 1;
    const long lines = axes > 3 ? shape[1] * queries : queries; /* of a row, each of the mask of a query */
    if (!lines && rows && steps) return unfit_shapes();
    OrtStatus *error = output(context, 0, (int64_t[]){rows}, 1, (float **)&lengths);
    if (!error) error = output(context, 1, (int64_t[]){rows}, 1, (float **)&at_most_one);
    for (long row = 0; !error && lengths && row < rows; row++, mask += lines * steps) {
        long length = 0;
        while (length < steps && mask[length] == 0.0f) length++;
        for (long line = 0; line < lines; line++)
            if ((!line || line % queries < length) && !hides_rest(mask + line * steps, length, steps))
                return status(ORT_INVALID_ARGUMENT, "a mask that is not of the steps past the end of a row");
        lengths[row] = length;
        if (at_most_one) at_most_one[row] = length > 0;
    }
    return error;
}

/* Nothing is known of it. */
static OrtStatus *create_nothing(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    (void)op, (void)given, (void)info;
    *kernel = NULL;
    return NULL;
}

static struct Operator OPERATORS[] = {
    {.name = "AttentionOfValidSteps", .inputs = "fFFiI", .outputs = "f", .create = create, .compute = compute, .destroy = destroy},
    {.name = "LengthsOfMask", .inputs = "f", .outputs = "iI", .create = create_nothing, .compute = compute_lengths, .destroy = destroy},
    {.name = NULL},
};

static struct Domain DOMAINS[] = {{.name = "lengthwise.attention", .operators = OPERATORS}, {0}};

struct Kernels attention_kernels = {"attention", KNOWN, NULL, DOMAINS};
