/* Attention pooling over valid steps, as one operator for onnxruntime; `_recurrent.c` includes it.
 *
 *     scores = tanh(x W + b) v          of valid steps only
 *     attention = softmax(scores)       over the valid steps of a row; 0 at padding
 *     pooled = the sum of attention * x
 *
 * As single operators these compute the whole rectangle of rows and steps, and go through memory six times. Here padding
 * is not read. A row's bits do not depend on the other rows or on the width: all of its sums are from its first step to
 * its last.
 *
 *     inputs   x [rows][steps][size], lengths [rows] int32, W [size][units], v [units][1], b [units] or none
 *     outputs  pooled [rows][size], attention [rows][steps]
 */
#define LENT_STEPS_AT_ONCE 16 /* steps between two looks at whether a lent core is wanted: some 10 us */
#define WORTH_HALF_A_POOLING (1L << 19) /* products of half of the steps, from which on another core computes them: some 10 us */

enum { POOLED_X, POOLED_LENGTHS, POOLED_W, POOLED_V, POOLED_B };

struct Pooling {
    struct Layer layer;         /* whose products with the inputs are those of the units: four units for each of its own */
    struct Direction direction; /* W and b in panels */
    float *weights;             /* v in panels: [panels][4][lanes] */
};

static void destroy_pooling(void *kernel)
{
    struct Pooling *pooling = kernel;
    free(pooling->direction.inputs);
    free(pooling->direction.biases);
    free(pooling->weights);
    free(pooling);
}

/* Values of all units, `[units]`, in panels; 0 where there is no unit. */
static float *units_in_panels(const struct Layer *layer, const float *values, long units)
{
    const long lanes = layer->cells->lanes;
    float *panels = floats(layer->given), *to = panels;
    for (long panel = 0; panels && panel < layer->panels; panel++)
        for (long gate = 0; gate < 4; gate++)
            for (long unit = panel * lanes; unit < (panel + 1) * lanes; unit++) {
                const long place = gate * layer->hidden + unit;
                *to++ = values && unit < layer->hidden && place < units ? values[place] : 0.0f;
            }
    return panels;
}

static OrtStatus *create_pooling(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    int64_t w[2], v[2], b[1] = {0};
    const float *products = constant(info, POOLED_W, w, 2), *weights = constant(info, POOLED_V, v, 2), *biases = NULL;
    (void)op, (void)given;
    if (!products || !weights || (has_input(info, POOLED_B) && !(biases = constant(info, POOLED_B, b, 1))))
        return status(ORT_FAIL, "weights of attention that are not constant");
    if (w[0] < 1 || w[1] < 1 || v[0] != w[1] || v[1] != 1 || (biases && b[0] != w[1]))
        return status(ORT_FAIL, "weights of attention that do not fit each other");
    const long size = w[0], units = w[1];
    const struct Cells *cells = float_kernels.chosen;
    struct Pooling *pooling = cells ? calloc(1, sizeof *pooling) : NULL;
    if (!pooling) return status(ORT_FAIL, cells ? "no memory" : "no instruction set that they are made for");
    struct Layer *layer = &pooling->layer;
    layer->gates = 4;
    layer->inputs = size;
    layer->hidden = (units + 3) / 4;
    layer->cells = cells;
    layer->panels = (layer->hidden + cells->lanes - 1) / cells->lanes;
    layer->given = layer->panels * 4 * cells->lanes;
    float *turned = calloc(4 * layer->hidden * size, sizeof *turned); /* [units][size] */
    if (turned) {
        for (long unit = 0; unit < units; unit++)
            for (long k = 0; k < size; k++) turned[unit * size + k] = products[k * units + unit];
        pooling->direction.inputs = in_panels(layer, turned, size);
        free(turned);
    }
    pooling->direction.biases = units_in_panels(layer, biases, units);
    pooling->weights = units_in_panels(layer, weights, units);
    if (!pooling->direction.inputs || !pooling->direction.biases || !pooling->weights) {
        destroy_pooling(pooling);
        return no_memory();
    }
    *kernel = pooling;
    return NULL;
}

/* The scores of some valid steps, row after row; another thread may begin and this one finish. */
struct Scoring {
    const struct Pooling *pooling;
    const struct Batch *batch; /* `x` and the scores are [rows][steps][...] */
    float *scores;
    long row, step, left; /* the next step, and how many there are from it on */
    float *sums;
} __attribute__((aligned(APART)));

/* Computes scores; a thread on a lent core stops when the core is wanted. */
static void go_on_scoring(void *argument, int lent)
{
    struct Scoring *part = argument;
    const struct Layer *layer = &part->pooling->layer;
    const struct Batch *batch = part->batch;
    const long at_once = lent ? LENT_STEPS_AT_ONCE : STEPS_AT_ONCE;
    const float *inputs[STEPS_AT_ONCE];
    float scores[STEPS_AT_ONCE], *places[STEPS_AT_ONCE];
    if (!part->sums) part->sums = floats(STEPS_AT_ONCE * layer->given);
    while (part->sums && part->left && !(lent && core_is_wanted())) { /* as many steps at once, of whichever rows */
        long count = 0;
        for (; count < at_once && part->left; part->left--) {
            for (; part->step >= batch->lengths[part->row]; part->step = 0) part->row++;
            inputs[count] = batch->x + (part->row * batch->steps + part->step) * layer->inputs;
            places[count++] = part->scores + part->row * batch->steps + part->step++;
        }
        layer->cells->input(layer, &part->pooling->direction, count, inputs, part->sums);
        layer->cells->score(layer->panels, count, part->sums, part->pooling->weights, scores);
        for (long i = 0; i < count; i++) *places[i] = scores[i];
        let_others_run();
    }
}

/* Computes the scores of all valid steps, the second half of them on a lent core if there is one; 0 at padding. Returns
 * whether there was memory. */
static int score_all(const struct Pooling *pooling, const struct Batch *batch, float *scores)
{
    const struct Layer *layer = &pooling->layer;
    struct Scoring parts[2] = {{.pooling = pooling, .batch = batch, .scores = scores}};
    long valid = 0;
    memset(scores, 0, batch->rows * batch->steps * sizeof *scores);
    for (long row = 0; row < batch->rows; row++) valid += batch->lengths[row];
    parts[1] = parts[0];
    parts[0].left = valid - valid / 2;
    parts[1].left = valid / 2;
    parts[1].step = parts[0].left;
    for (long *step = &parts[1].step; parts[1].left && *step >= batch->lengths[parts[1].row];)
        *step -= batch->lengths[parts[1].row++];
    do_both(go_on_scoring, &parts[0], &parts[1], parts[1].left * 4 * layer->hidden * layer->inputs >= WORTH_HALF_A_POOLING);
    const int made = !parts[0].left && !parts[1].left;
    free(parts[0].sums);
    free(parts[1].sums);
    return made;
}

/* Makes a row's scores its attention, and adds up its values. */
static void pool_row(const struct Pooling *pooling, const float *x, long length, float *attention, float *pooled)
{
    const long size = pooling->layer.inputs;
    float most = attention[0], sum = 0.0f;
    memset(pooled, 0, size * sizeof *pooled);
    for (long step = 1; step < length; step++)
        if (attention[step] > most) most = attention[step];
    for (long step = 0; step < length; step++) sum += attention[step] = expf(attention[step] - most);
    for (long step = 0; step < length; step++) {
        attention[step] /= sum;
        pooling->layer.cells->add_share(pooled, x + step * size, attention[step], size);
    }
}

static OrtStatus *compute_pooling(void *kernel, OrtKernelContext *context)
{
    const struct Pooling *pooling = kernel;
    const struct Layer *layer = &pooling->layer;
    int good = 1;
    int64_t shape[3], rows_of_lengths[1];
    const float *x = input(context, POOLED_X, shape, 3, &good);
    const int32_t *lengths = input(context, POOLED_LENGTHS, rows_of_lengths, 1, &good);
    if (!good || !x || !lengths || shape[2] != layer->inputs || rows_of_lengths[0] != shape[0])
        return unfit_shapes();
    const long rows = shape[0], steps = shape[1], size = shape[2];
    if (!are_lengths(lengths, rows, steps)) return unfit_length();
    float *pooled = NULL, *attention = NULL, *unwanted = NULL;
    OrtStatus *error = output(context, 0, (int64_t[]){rows, size}, 2, &pooled);
    if (!error) error = output(context, 1, (int64_t[]){rows, steps}, 2, &attention);
    if (error || !pooled) return error;
    if (!attention) attention = unwanted = floats(rows * steps);
    struct Batch batch = {.steps = steps, .rows = rows, .x = x, .lengths = lengths};
    const int made = attention && score_all(pooling, &batch, attention);
    for (long row = 0; made && row < rows; row++) {
        if (lengths[row]) pool_row(pooling, x + row * steps * size, lengths[row], attention + row * steps, pooled + row * size);
        else memset(pooled + row * size, 0, size * sizeof *pooled);
    }
    free(unwanted);
    return made ? NULL : no_memory();
}
