/* Operators on packed steps, for onnxruntime; `_recurrent.c` includes it.
 *
 * Packed steps are the valid steps of all rows, one row behind the other, and zeros up to a multiple of `PACKED_MULTIPLE`:
 * `[packed][features]`. So onnxruntime's own operators on single elements compute no padding, and their vectors have no
 * rest, which would be computed by other instructions. `lengthwise.runtime.onnx.fusion` writes these operators into a graph.
 *
 *     Pack        x, such as [rows][steps][features]             -> packed steps
 *     Unpack      packed steps, a tensor with as many steps      -> the same, zeros at padding
 *     Spread      x [rows][features]                             -> packed steps: each step has the numbers of its row
 *     Dense       packed steps, W, b                             -> packed steps: a window of steps times W, plus b
 *     Dots        packed steps, x [rows][features]               -> packed [1]: the product of a step with its row's numbers
 *     StepSoftmax packed steps                                   -> packed steps: each feature's shares sum to 1 in a row
 *     StepSum, StepMax   packed steps                            -> [rows][features], over the steps of each row
 *                                                               both may go on from earlier sums or maxima, a third input
 *     OuterSum    packed a and b                                 -> [rows][features of a][features of b]: the sum of a b^T
 *
 * All get the lengths, too. A row's bits do not depend on the other rows: its sums are from its first step to its last, and
 * those over features in one order. A row without steps gives 0.
 */
#define PACKED_MULTIPLE 16
#define LENT_STEPS_AT_ONCE 16 /* steps between two looks at whether a lent core is wanted: some 10 us */
#define WORTH_HALF_A_PRODUCT (1L << 19) /* products of half of the steps, from which on another core computes them: some 10 us */

/* ---- Products with constant weights ---- */

enum { DENSE_X, DENSE_LENGTHS, DENSE_W, DENSE_B };

/* A dense layer, or a convolution that keeps the number of steps: a step is multiplied with those around it, zeros beyond
 * its row. */
struct Dense {
    const struct Cells *cells;
    long features, taps, dilation, left; /* of a step; and of the window, which begins `left` steps before the step */
    long size, outputs, padded;          /* numbers of a window; and outputs, also rounded up to whole vectors */
    float *weights;                      /* in panels of four vectors, the last ones of one: [size][vectors][lanes] */
    float *biases;                       /* [padded] */
};

static void destroy_dense(void *kernel)
{
    struct Dense *dense = kernel;
    free(dense->weights);
    free(dense->biases);
    free(dense);
}

/* How many vectors the panel of outputs from `first` on has. */
static long vectors_at(const struct Dense *dense, long first)
{
    return dense->padded - first >= 4 * dense->cells->lanes ? 4 : 1;
}

/* Puts weights `[size][outputs]` and biases, which may be NULL, into panels; 0 where there is no memory. */
static int pack_dense(struct Dense *dense, const float *weights, const float *biases)
{
    const long lanes = dense->cells->lanes, outputs = dense->outputs;
    dense->padded = (outputs + lanes - 1) / lanes * lanes;
    float *to = dense->weights = floats(dense->size * dense->padded);
    dense->biases = floats(dense->padded);
    if (!dense->weights || !dense->biases) return 0;
    for (long first = 0, end; first < dense->padded; first = end) {
        end = first + vectors_at(dense, first) * lanes;
        for (long k = 0; k < dense->size; k++)
            for (long j = first; j < end; j++) *to++ = j < outputs ? weights[k * outputs + j] : 0.0f;
    }
    for (long j = 0; j < dense->padded; j++) dense->biases[j] = biases && j < outputs ? biases[j] : 0.0f;
    return 1;
}

static OrtStatus *create_dense(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    int64_t w[2], b[1];
    const float *weights = constant(info, DENSE_W, w, 2), *biases = NULL;
    const int64_t taps = whole(info, "taps", 1), dilation = whole(info, "dilation", 1), left = whole(info, "left", 0);
    (void)op, (void)given;
    if (!weights || (has_input(info, DENSE_B) && !(biases = constant(info, DENSE_B, b, 1))))
        return status(ORT_FAIL, "weights that are not constant");
    if (w[0] < 1 || w[1] < 1 || (biases && b[0] != w[1]) || taps < 1 || w[0] % taps || dilation < 1 || dilation > INT32_MAX ||
        left < 0 || left > (taps - 1) * dilation)
        return status(ORT_FAIL, "weights that do not fit each other");
    struct Dense *dense = float_kernels.chosen ? calloc(1, sizeof *dense) : NULL;
    if (!dense) return status(ORT_FAIL, float_kernels.chosen ? "no memory" : "no instruction set that they are made for");
    *dense = (struct Dense){float_kernels.chosen, w[0] / taps, taps, dilation, left, w[0], w[1], 0, NULL, NULL};
    if (!pack_dense(dense, weights, biases)) {
        destroy_dense(dense);
        return no_memory();
    }
    *kernel = dense;
    return NULL;
}

/* The products of some steps; another thread may begin and this one finish. */
struct DensePart {
    const struct Dense *dense;
    const float *x;
    float *y;
    const int32_t *lengths;
    long rows, step, end; /* the next packed step, and where the part ends */
    long row, begin;      /* the row of the next step, where there are windows, and where it begins; `rows` behind the last */
    float *sums, *windows;
} __attribute__((aligned(APART)));

/* The window of a step, in `to`. */
static const float *window_of(struct DensePart *part, long step, float *to)
{
    const struct Dense *dense = part->dense;
    while (part->row < part->rows && step >= part->begin + part->lengths[part->row]) part->begin += part->lengths[part->row++];
    const long end = part->row < part->rows ? part->begin + part->lengths[part->row] : part->begin;
    for (long tap = 0; tap < dense->taps; tap++) {
        const long at = step - dense->left + tap * dense->dilation;
        float *place = to + tap * dense->features;
        if (at >= part->begin && at < end) memcpy(place, part->x + at * dense->features, dense->features * sizeof *place);
        else memset(place, 0, dense->features * sizeof *place);
    }
    return to;
}

/* Computes products; a thread on a lent core stops when the core is wanted. */
static void go_on_multiplying(void *argument, int lent)
{
    struct DensePart *part = argument;
    const struct Dense *dense = part->dense;
    const long lanes = dense->cells->lanes, at_once = lent ? LENT_STEPS_AT_ONCE : STEPS_AT_ONCE;
    const float *inputs[STEPS_AT_ONCE];
    if (!part->sums) part->sums = floats(STEPS_AT_ONCE * dense->padded);
    if (!part->windows) part->windows = floats(dense->taps > 1 ? STEPS_AT_ONCE * dense->size : 1);
    while (part->sums && part->windows && part->step < part->end && !(lent && core_is_wanted())) {
        const long count = part->end - part->step < at_once ? part->end - part->step : at_once;
        for (long i = 0; i < count; i++)
            inputs[i] = dense->taps == 1 ? part->x + (part->step + i) * dense->size
                                         : window_of(part, part->step + i, part->windows + i * dense->size);
        for (long first = 0, vectors; first < dense->padded; first += vectors * lanes) {
            vectors = vectors_at(dense, first);
            dense->cells->multiply(vectors, count, inputs, dense->size, dense->weights + first * dense->size,
                                   dense->biases + first, 0, part->sums + first, dense->padded);
        }
        for (long i = 0; i < count; i++, part->step++)
            memcpy(part->y + part->step * dense->outputs, part->sums + i * dense->padded, dense->outputs * sizeof *part->y);
        let_others_run();
    }
}

static OrtStatus *compute_dense(void *kernel, OrtKernelContext *context)
{
    const struct Dense *dense = kernel;
    int good = 1;
    int64_t x[2], rows[1];
    struct DensePart parts[2] = {{.dense = dense}};
    parts[0].x = input(context, DENSE_X, x, 2, &good);
    parts[0].lengths = input(context, DENSE_LENGTHS, rows, 1, &good);
    if (!good || !parts[0].x || !parts[0].lengths || x[1] != dense->features) return unfit_shapes();
    const long valid = valid_steps(parts[0].lengths, rows[0], x[0]);
    if (valid < 0) return unfit_length();
    OrtStatus *error = output(context, 0, (int64_t[]){x[0], dense->outputs}, 2, &parts[0].y);
    if (error || !parts[0].y) return error;
    memset(parts[0].y + valid * dense->outputs, 0, (x[0] - valid) * dense->outputs * sizeof *parts[0].y);
    parts[0].rows = rows[0];
    parts[1] = parts[0];
    parts[0].end = parts[1].step = valid - valid / 2;
    parts[1].end = valid;
    do_both(go_on_multiplying, &parts[0], &parts[1], valid / 2 * dense->size * dense->outputs >= WORTH_HALF_A_PRODUCT);
    for (struct DensePart *part = parts; part < parts + 2; part++) {
        free(part->sums);
        free(part->windows);
        good = good && part->step == part->end;
    }
    return good ? NULL : no_memory();
}

/* ---- Steps packed and unpacked ---- */

#define MOST_AXES 4

/* What the operators without weights are. */
struct Packed {
    const struct Cells *cells;
    char axes[MOST_AXES + 1]; /* of a rectangle: `r` rows, `s` steps, `f` features, `1` one; one that is missing has one place */
    long axis;                /* of Unpack: that of the steps in its third input */
};

static void destroy_packed(void *kernel) { free(kernel); }

static OrtStatus *create_packed(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    struct Packed *packed = float_kernels.chosen ? calloc(1, sizeof *packed) : NULL;
    (void)op, (void)given;
    if (!packed) return status(ORT_FAIL, float_kernels.chosen ? "no memory" : "no instruction set that they are made for");
    packed->cells = float_kernels.chosen;
    packed->axis = whole(info, "axis", 1);
    strcpy(packed->axes, "rf");
    *kernel = packed;
    if (text_of(info, "axes", packed->axes, sizeof packed->axes) && packed->axis >= 0 && packed->axis < MOST_AXES) return NULL;
    free(packed);
    return status(ORT_FAIL, "unknown axes");
}

/* The dimensions of a rectangle with these axes; gives how many there are. */
static size_t dimensions_of(const struct Packed *packed, long rows, long steps, long features, int64_t *dimensions)
{
    size_t count = 0;
    for (const char *axis = packed->axes; *axis; axis++)
        dimensions[count++] = *axis == 'r' ? rows : *axis == 's' ? steps : *axis == 'f' ? features : 1;
    return count;
}

/* The numbers from one place of an axis to the next; 0 where there is no such axis. */
static long stride_of(const struct Packed *packed, char letter, const int64_t *dimensions)
{
    const char *axis = strchr(packed->axes, letter);
    long stride = 1;
    for (size_t i = axis ? axis - packed->axes + 1 : 0; axis && packed->axes[i]; i++) stride *= dimensions[i];
    return axis ? stride : 0;
}

/* The size of an axis; 1 where there is no such axis. */
static long size_of(const struct Packed *packed, char letter, const int64_t *dimensions)
{
    const char *axis = strchr(packed->axes, letter);
    return axis ? dimensions[axis - packed->axes] : 1;
}

static OrtStatus *compute_pack(void *kernel, OrtKernelContext *context)
{
    const struct Packed *packed = kernel;
    int good = 1;
    int64_t x[MOST_AXES], rows[1];
    const float *from = input(context, 0, x, strlen(packed->axes), &good);
    const int32_t *lengths = input(context, 1, rows, 1, &good);
    if (!good || !from || !lengths || size_of(packed, 'r', x) != rows[0]) return unfit_shapes();
    const long features = size_of(packed, 'f', x), of_row = stride_of(packed, 'r', x), of_step = stride_of(packed, 's', x);
    const long of_feature = stride_of(packed, 'f', x);
    if (!are_lengths(lengths, rows[0], size_of(packed, 's', x))) return unfit_length();
    long valid = 0;
    for (long row = 0; row < rows[0]; row++) valid += lengths[row];
    const long count = (valid + PACKED_MULTIPLE - 1) / PACKED_MULTIPLE * PACKED_MULTIPLE;
    float *to = NULL;
    OrtStatus *error = output(context, 0, (int64_t[]){count, features}, 2, &to);
    if (error || !to) return error;
    for (long row = 0; row < rows[0]; row++)
        for (long step = 0; step < lengths[row]; step++, to += features) {
            const float *place = from + row * of_row + step * of_step;
            if (of_feature == 1) memcpy(to, place, features * sizeof *to);
            for (long i = 0; of_feature != 1 && i < features; i++) to[i] = place[i * of_feature];
        }
    memset(to, 0, (count - valid) * features * sizeof *to);
    return NULL;
}

static OrtStatus *compute_unpack(void *kernel, OrtKernelContext *context)
{
    const struct Packed *packed = kernel;
    int good = 1;
    int64_t x[2], rows[1], like[MOST_AXES], y[MOST_AXES];
    size_t axes = MOST_AXES;
    const OrtValue *rectangle = NULL;
    const float *from = input(context, 0, x, 2, &good);
    const int32_t *lengths = input(context, 1, rows, 1, &good);
    good = good && well(api->KernelContext_GetInput(context, 2, &rectangle)) && tensor(rectangle, like, &axes);
    if (!good || !from || !lengths || (size_t)packed->axis >= axes) return unfit_shapes();
    const long steps = like[packed->axis], features = x[1], count = rows[0];
    if (!strchr(packed->axes, 'f') && features != 1) return unfit_shapes();
    if (!are_lengths(lengths, count, steps) || valid_steps(lengths, count, x[0]) < 0) return unfit_length();
    float *to = NULL;
    OrtStatus *error = output(context, 0, y, dimensions_of(packed, count, steps, features, y), &to);
    if (error || !to) return error;
    const long of_row = stride_of(packed, 'r', y), of_step = stride_of(packed, 's', y), of_feature = stride_of(packed, 'f', y);
    for (long row = 0; row < count; row++)
        for (long step = 0; step < steps; step++) {
            const int is_valid = step < lengths[row];
            float *place = to + row * of_row + step * of_step;
            for (long i = 0; i < features; i++) place[i * of_feature] = is_valid ? from[i] : 0.0f;
            from += is_valid ? features : 0;
        }
    return NULL;
}

/* ---- Steps and rows ---- */

/* Packed steps, their lengths, and a second tensor, as an operator reads them. */
struct Steps {
    const float *x, *second; /* [packed][features]; and [packed or rows][...], or NULL */
    const int32_t *lengths;
    long packed, features, rows, second_features;
};

/* Reads the inputs of an operator: packed steps, lengths, and if it has one a second tensor of packed steps or of rows. Gives
 * an error, or NULL. */
static OrtStatus *read_steps(OrtKernelContext *context, int has_second, int second_is_packed, struct Steps *steps)
{
    int good = 1;
    int64_t x[2], rows[1], second[MOST_AXES] = {0};
    size_t axes = MOST_AXES;
    const OrtValue *value = NULL;
    steps->x = input(context, 0, x, 2, &good);
    steps->lengths = input(context, 1, rows, 1, &good);
    steps->second = has_second && well(api->KernelContext_GetInput(context, 2, &value)) ? tensor(value, second, &axes) : NULL;
    if (!good || !steps->x || !steps->lengths || (has_second && (!steps->second || axes < 2))) return unfit_shapes();
    if (has_second && second[0] != (second_is_packed ? x[0] : rows[0])) return unfit_shapes();
    long features = 1;
    for (size_t i = 1; has_second && i < axes; i++) features *= second[i];
    *steps = (struct Steps){steps->x, steps->second, steps->lengths, x[0], x[1], rows[0], features};
    return valid_steps(steps->lengths, steps->rows, steps->packed) < 0 ? unfit_length() : NULL;
}

/* Sets what is behind the last row to 0. */
static void clear_rest(const struct Steps *steps, float *y, long features)
{
    const long valid = valid_steps(steps->lengths, steps->rows, steps->packed);
    memset(y + valid * features, 0, (steps->packed - valid) * features * sizeof *y);
}

/* The first input are any packed steps, of which there are as many. */
static OrtStatus *compute_spread(void *kernel, OrtKernelContext *context)
{
    struct Steps steps;
    float *y = NULL;
    OrtStatus *error = read_steps(context, 1, 0, &steps);
    const long features = error ? 0 : steps.second_features;
    (void)kernel;
    if (!error) error = output(context, 0, (int64_t[]){steps.packed, features}, 2, &y);
    if (error || !y) return error;
    clear_rest(&steps, y, features);
    for (long row = 0; row < steps.rows; row++)
        for (long step = 0; step < steps.lengths[row]; step++, y += features)
            memcpy(y, steps.second + row * features, features * sizeof *y);
    return NULL;
}

static OrtStatus *compute_dots(void *kernel, OrtKernelContext *context)
{
    const struct Packed *packed = kernel;
    struct Steps steps;
    float *y = NULL;
    OrtStatus *error = read_steps(context, 1, 0, &steps);
    if (!error && steps.features != steps.second_features) return unfit_shapes();
    if (!error) error = output(context, 0, (int64_t[]){steps.packed, 1}, 2, &y);
    if (error || !y) return error;
    clear_rest(&steps, y, 1);
    for (long row = 0; row < steps.rows; row++)
        for (long step = 0; step < steps.lengths[row]; step++, steps.x += steps.features)
            *y++ = packed->cells->dot(steps.x, steps.second + row * steps.features, steps.features);
    return NULL;
}

/* Makes scores shares, over the steps of a row; of one feature, which is `stride` from step to step. */
static void soften(const float *scores, long length, long stride, float *shares)
{
    float most = scores[0], sum = 0.0f;
    for (long i = stride; i < length * stride; i += stride)
        if (scores[i] > most) most = scores[i];
    for (long i = 0; i < length * stride; i += stride) sum += shares[i] = expf(scores[i] - most);
    for (long i = 0; i < length * stride; i += stride) shares[i] /= sum;
}

static OrtStatus *compute_softmax(void *kernel, OrtKernelContext *context)
{
    struct Steps steps;
    float *y = NULL;
    OrtStatus *error = read_steps(context, 0, 0, &steps);
    (void)kernel;
    if (!error) error = output(context, 0, (int64_t[]){steps.packed, steps.features}, 2, &y);
    if (error || !y) return error;
    clear_rest(&steps, y, steps.features);
    for (long row = 0, begin = 0; row < steps.rows; begin += steps.lengths[row++] * steps.features)
        for (long i = begin; steps.lengths[row] && i < begin + steps.features; i++)
            soften(steps.x + i, steps.lengths[row], steps.features, y + i);
    return NULL;
}

/* Reads packed steps, and makes an output for what they are for each row. It begins with what `earlier` steps of the row are,
 * if there is such an input, so that a row has the same bits however its steps are cut; else with zeros. Gives an error, or
 * NULL. */
static OrtStatus *begin_reduction(const struct Packed *packed, OrtKernelContext *context, struct Steps *steps, float **y,
                                  const float **earlier)
{
    int good = 1;
    int64_t dimensions[MOST_AXES], size[MOST_AXES];
    OrtStatus *error = read_steps(context, 0, 0, steps);
    if (!error && !strchr(packed->axes, 'f') && steps->features != 1) return unfit_shapes();
    if (!error) error = output(context, 0, dimensions, dimensions_of(packed, steps->rows, 1, steps->features, dimensions), y);
    if (error || !*y) return error;
    *earlier = input(context, 2, size, strlen(packed->axes), &good);
    const long bytes = steps->rows * steps->features * (long)sizeof **y;
    if (!*earlier) memset(*y, 0, bytes);
    else if (size_of(packed, 'r', size) == steps->rows && size_of(packed, 'f', size) == steps->features) memcpy(*y, *earlier, bytes);
    else good = 0;
    return good ? NULL : unfit_shapes();
}

static OrtStatus *compute_sum(void *kernel, OrtKernelContext *context)
{
    const struct Packed *packed = kernel;
    struct Steps steps;
    float *y = NULL;
    const float *earlier = NULL;
    OrtStatus *error = begin_reduction(packed, context, &steps, &y, &earlier);
    if (error || !y) return error;
    for (long row = 0; row < steps.rows; row++, y += steps.features)
        for (long step = 0; step < steps.lengths[row]; step++, steps.x += steps.features)
            packed->cells->add_share(y, steps.x, 1.0f, steps.features);
    return NULL;
}

static OrtStatus *compute_max(void *kernel, OrtKernelContext *context)
{
    struct Steps steps;
    float *y = NULL;
    const float *earlier = NULL;
    OrtStatus *error = begin_reduction(kernel, context, &steps, &y, &earlier);
    if (error || !y) return error;
    for (long row = 0; row < steps.rows; row++, y += steps.features)
        for (long step = 0; step < steps.lengths[row]; step++, steps.x += steps.features)
            for (long i = 0; i < steps.features; i++) /* NaN stays */
                y[i] = (step == 0 && !earlier) || steps.x[i] > y[i] || steps.x[i] != steps.x[i] ? steps.x[i] : y[i];
    return NULL;
}

static OrtStatus *compute_outer_sum(void *kernel, OrtKernelContext *context)
{
    const struct Packed *packed = kernel;
    struct Steps steps;
    float *y = NULL;
    OrtStatus *error = read_steps(context, 1, 1, &steps);
    if (!error) error = output(context, 0, (int64_t[]){steps.rows, steps.features, steps.second_features}, 3, &y);
    if (error || !y) return error;
    const int turned = steps.second_features == 1; /* a column is written like a row, whose features are added up at once */
    const float *shares = turned ? steps.second : steps.x, *values = turned ? steps.x : steps.second;
    const long heads = turned ? 1 : steps.features, features = turned ? steps.features : steps.second_features;
    memset(y, 0, steps.rows * heads * features * sizeof *y);
    for (long row = 0; row < steps.rows; row++, y += heads * features)
        for (long step = 0; step < steps.lengths[row]; step++, shares += heads, values += features)
            for (long head = 0; head < heads; head++)
                packed->cells->add_share(y + head * features, values, shares[head], features);
    return NULL;
}
