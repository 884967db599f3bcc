/* LSTM and GRU kernels for onnxruntime whose products are of 8-bit integers, and that compute valid steps only.
 *
 * To onnxruntime they are the custom operators LSTM, GRU and MatMul of the domain `lengthwise.integer`. No file has them:
 * `lengthwise.runtime.onnx.integer_layers` puts them in the place of those whose weights are dequantised, when a graph is
 * opened.
 *
 * A state h is rounded to a whole number of 1/127, whatever the batch, because it lies in [-1, 1]. An input of a layer
 * is rounded in units of the largest of its own step, over 127; or its product stays in float32, where its weights are.
 * A weight is a signed byte of at most 63, in units of its own output. So a row's numbers depend on nothing but the
 * row: sums of integers are exact in every order, and all that follows is computed for each unit in one order.
 *
 * Why nothing overflows: states and inputs are stored with 127 added, as bytes of 0 to 254. VPMADDUBSW adds two
 * products in 16 bits, at most 2 * 255 * 63 = 32130 < 32768. A sum of MOST_INPUTS products is at most
 * 255 * 63 * 2^17 < 2^31.
 *
 * tests/service/test_integer_kernels.py holds them against the same arithmetic in NumPy, on each instruction set.
 */
#include <float.h>
#include <math.h>

#define KERNELS integer_kernels
#define IN_INTEGERS 1
#define ROWS_OF_CELLS 8   /* cells that are computed side by side at least, where a layer has that many */
#define LARGEST_WEIGHT 63 /* 7 bits; see above */
#define MOST_INPUTS 131072
#define SMALLEST_INPUT 1e-30f /* a step whose inputs are all smaller counts as zeros: 127 / 1e-30 is still finite */
#define LARGEST_STATE (1.0f + 0.25f / 127.0f) /* a state is at most 1, and its cell rounds */
/* Added to a float of at most 127 it leaves that, rounded, in the lowest byte, with 127 added: 1.5 * 2^23 + 127. */
#define ROUNDING 12583039.0f

#include "_library.h"

/* The inputs: those of ONNX's LSTM and GRU, with the units of the weights behind them. Weights of inputs are floats
 * `[directions, gates * hidden, inputs]` without units, or bytes `[directions * gates * hidden, inputs]` with them. */
enum { X, W, W_SCALES, R, R_SCALES, B, LENGTHS, INITIAL_H, INITIAL_C };

struct Layer;
struct Direction;
struct Matrix;

/* The arithmetic for one instruction set. */
struct Cells {
    const char *name;
    long lanes, groups_at_once;
    void (*float_input)(const struct Layer *, const struct Direction *, long, const float *const *, float *);
    void (*byte_input)(const struct Layer *, const struct Direction *, long, const float *const *, uint8_t *, float *, void *,
                       float *);
    int (*state)(const float *, long, uint8_t *);
    void (*step)(const struct Layer *, const struct Direction *, long, int, const uint8_t *, const float *, void *,
                 float *const *, float *const *, uint8_t *, uint8_t *);
    void (*matrix)(const struct Matrix *, long, const float *, uint8_t *, void *, float *);
};

#include "_layers.h"

/* A product with constant weights, `[..., inputs]` to `[..., outputs]`: each row is rounded in units of its own. */
struct Matrix {
    long inputs, outputs, panels, input_bytes;
    const struct Cells *cells;
    struct Product product;
};

#if defined(__x86_64__)
#define SET avx512vnni
#define MOST_ROWS 4
#include "_integer_cells.h"

#if AMX_COMPILES
#define SET amx
#define MOST_ROWS 4
#define TILES
#include "_integer_cells.h"
#endif

#define SET avx512
#define MOST_ROWS 4
#include "_integer_cells.h"

#define SET avxvnni
#define MOST_ROWS 2
#include "_integer_cells.h"

#define SET avx2
#define MOST_ROWS 2
#include "_integer_cells.h"
#elif defined(__aarch64__)
#define SET i8mm
#define MOST_ROWS 4
#include "_integer_cells.h"

#define SET dotprod
#define MOST_ROWS 4
#include "_integer_cells.h"
#endif

#define SET portable
#define MOST_ROWS 2
#include "_integer_cells.h"

#define SET amx_emulated
#define MOST_ROWS 2
#define TILES
#include "_integer_cells.h"

#define CELLS(set, groups) \
    &(const struct Cells){#set, LANES_##set, groups, float_input_##set, byte_input_##set, round_state_##set, \
                            step_##set, matrix_##set}
static const struct Cells *const KNOWN[] = { /* the last two run everywhere */
#if defined(__x86_64__)
#if AMX_COMPILES
    CELLS(amx, TILE_GROUPS),
#endif
    CELLS(avx512vnni, 1), CELLS(avxvnni, 1), CELLS(avx512, 1), CELLS(avx2, 1),
#elif defined(__aarch64__)
    CELLS(i8mm, 1), CELLS(dotprod, 1),
#endif
    CELLS(portable, 1), CELLS(amx_emulated, TILE_GROUPS), NULL,
};

/* Which of the weights' rows each of a product's outputs is, in the order of the panels; -1 of those past the last. */
struct Outputs {
    long panels, gates, lanes, groups_at_once;
    long hidden; /* rows of one gate; or of all, where the gates are only groups of lanes */
    int is_layer;
};

static long row_of(const struct Outputs *outputs, long output)
{
    const long unit = output / (outputs->gates * outputs->lanes) * outputs->lanes + output % outputs->lanes;
    const long gate = output / outputs->lanes % outputs->gates;
    if (outputs->is_layer) return unit < outputs->hidden ? gate * outputs->hidden + unit : -1;
    return output < outputs->hidden ? output : -1;
}

/* Weights `[rows][size]`, of which one is `row_stride` and `k_stride` behind the other, with their scales `[rows]` times
 * the unit of the numbers that they are multiplied with; 0 where there is no memory.
 */
static int pack_integers(const struct Outputs *outputs, struct Product *product, const int8_t *weights, long row_stride,
                         long k_stride, const float *scales, long size, float unit)
{
    const long lanes = outputs->lanes, gates = outputs->gates, count = outputs->panels * gates * lanes;
    product->groups = (size + 3) / 4;
    product->room = (product->groups + outputs->groups_at_once - 1) / outputs->groups_at_once * outputs->groups_at_once;
    int8_t *to = product->weights = room(count * product->room * 4);
    product->scales = room(count * sizeof *product->scales);
    product->offsets = room(count * sizeof *product->offsets);
    if (!product->weights || !product->scales || !product->offsets) return 0;
    for (long panel = 0; panel < outputs->panels; panel++)
        for (long group = 0; group < product->room; group++)
            for (long output = panel * gates * lanes; output < (panel + 1) * gates * lanes; output++)
                for (long k = 4 * group; k < 4 * group + 4; k++) {
                    const long row = row_of(outputs, output);
                    *to++ = row >= 0 && k < size ? weights[row * row_stride + k * k_stride] : 0;
                }
    for (long output = 0; output < count; output++) {
        const long row = row_of(outputs, output);
        int32_t sum = 0;
        for (long k = 0; row >= 0 && k < size; k++) sum += weights[row * row_stride + k * k_stride];
        const float halved = outputs->is_layer ? factor(gates, output / lanes % gates) : 1.0f;
        product->scales[output] = row >= 0 ? scales[row] * unit * halved : 0.0f;
        product->offsets[output] = -127 * sum;
    }
    return 1;
}

/* A constant matrix of bytes of at most `LARGEST_WEIGHT`, and the scales along an axis; NULL if it is not one. */
static const int8_t *integers(const OrtKernelInfo *info, size_t index, int axis, int64_t *dimensions, const float **scales)
{
    int64_t count[1];
    const int8_t *weights = constant(info, index, dimensions, 2);
    *scales = constant(info, index + 1, count, 1);
    if (!weights || !*scales || count[0] != dimensions[axis]) return NULL;
    for (int64_t i = 0; i < dimensions[0] * dimensions[1]; i++)
        if (weights[i] > LARGEST_WEIGHT || weights[i] < -LARGEST_WEIGHT) return NULL;
    return weights;
}

static const char *read_weights(struct Layer *layer, const OrtKernelInfo *info)
{
    int64_t w[3], r[2];
    const float *w_scales = NULL, *r_scales = NULL, *of_floats = NULL, *biases;
    const int8_t *of_bytes = NULL, *of_states = integers(info, R, 0, r, &r_scales);
    if (has_input(info, W_SCALES)) of_bytes = integers(info, W, 0, w + 1, &w_scales);
    else if (!(of_floats = constant(info, W, w, 3))) return "weights that are not constant";
    if (!of_states || (!of_bytes && !of_floats)) return "no constant weights of at most 63 with a scale each";
    const int64_t hidden = r[1], outputs = layer->gates * hidden;
    if (r[0] != layer->count * outputs || (of_floats ? w[0] * w[1] : w[1]) != r[0] || (of_floats && w[0] != layer->count) ||
        w[2] > MOST_INPUTS || hidden > MOST_INPUTS)
        return "weights that do not fit each other";
    const char *problem = read_sizes(layer, info, w[2], hidden, &biases);
    if (problem) return problem;
    layer->input_bytes = of_floats ? 0 : (w[2] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const struct Outputs places = {layer->panels, layer->gates, layer->cells->lanes, layer->cells->groups_at_once, hidden, 1};
    for (int d = 0; d < layer->count; d++) {
        struct Direction *direction = &layer->directions[d];
        int made = pack_integers(&places, &direction->byte_states, of_states + d * outputs * hidden, hidden, 1,
                                 r_scales + d * outputs, hidden, 1.0f / 127.0f) &&
                   pack_biases(layer, direction, biases ? biases + 2 * d * outputs : NULL);
        if (made && of_bytes)
            made = pack_integers(&places, &direction->byte_inputs, of_bytes + d * outputs * w[2], w[2], 1,
                                 w_scales + d * outputs, w[2], 1.0f);
        if (made && of_floats) made = !!(direction->inputs = in_panels(layer, of_floats + d * outputs * w[2], w[2]));
        if (!made) return "no memory";
    }
    return NULL;
}

/* More lanes than the valid steps over the longest length would only wait for the longest row. */
static long lanes_for(const struct Layer *layer, long valid, long longest)
{
    const long lanes = longest ? (valid + longest - 1) / longest : 0, rounded = (lanes + 3) / 4 * 4;
    (void)layer;
    return rounded < MOST_LANES ? rounded : MOST_LANES;
}

static int prepare(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const long of_lanes = run->batch->lanes * layer->width;
    run->states = run->before = room(2 * of_lanes + ALIGNMENT); /* tiles read past a row */
    run->bytes = room(STEPS_AT_ONCE * layer->input_bytes);
    run->products = room(STEPS_AT_ONCE * 4 * layer->cells->lanes * sizeof *run->products);
    if (run->states) run->after = run->states + of_lanes;
    return run->states && run->bytes && run->products;
}

static void multiply_inputs(struct Run *run, long count, const float *const *inputs)
{
    const struct Layer *layer = run->layer;
    const struct Direction *direction = &layer->directions[run->d];
    float units[STEPS_AT_ONCE];
    if (!layer->input_bytes) {
        layer->cells->float_input(layer, direction, count, inputs, run->given);
        return;
    }
    layer->cells->byte_input(layer, direction, count, inputs, run->bytes, units, run->products, run->given);
    for (long i = 0; i < count; i++)
        for (long j = 0; units[i] != units[i] && j < layer->given; j++) run->given[i * layer->given + j] = NAN;
}

/* Rounds a row's first state, as a step does what it gives; zeros where the node has none. Returns whether it is no state:
 * one has numbers from -1 to 1. */
static int begin_row(const struct Run *run, long row, uint8_t *to)
{
    const struct Layer *layer = run->layer;
    if (run->batch->initial_h)
        return layer->cells->state(run->batch->initial_h + (run->d * run->batch->rows + row) * layer->hidden, layer->hidden, to);
    memset(to, 127, layer->width);
    return 0;
}

static void run_step(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const int is_first = run->step == 0 && !run->batch->initial_h; /* no state is before it */
    float *memory[MOST_LANES], *out[MOST_LANES];
    for (long lane = 0; lane < run->active; lane++) {
        struct Place *place = &run->runs[lane];
        float *of_lane = run->of_step + lane * layer->given;
        if (advance(run, lane, place))
            run->poisoned[lane] = begin_row(run, place->row, run->before + lane * layer->width);
        memory[lane] = run->memory + place->row * layer->width;
        out[lane] = output_at(run, place->row, place->step);
        /* A state that is not a number has no byte: it makes all of the row's next step so. */
        for (long j = 0; run->poisoned[lane] && j < layer->given; j++) of_lane[j] = NAN;
    }
    layer->cells->step(layer, &layer->directions[run->d], run->active, is_first, run->before, run->of_step, run->products,
                       memory, out, run->after, run->poisoned);
    uint8_t *swapped = run->before;
    run->before = run->after;
    run->after = swapped;
}

enum { FACTOR, WEIGHTS, SCALES, MOST_DIMENSIONS = 8 }; /* the inputs of a product; weights are bytes `[inputs, outputs]` */

static void destroy_matrix(void *kernel)
{
    struct Matrix *matrix = kernel;
    discard(&matrix->product);
    free(matrix);
}

static OrtStatus *create_matrix(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    int64_t size[2];
    const float *scales = NULL;
    const int8_t *weights = integers(info, WEIGHTS, 1, size, &scales);
    if (!weights || size[0] < 1 || size[1] < 1 || size[0] > MOST_INPUTS)
        return status(ORT_FAIL, "no constant weights of at most 63 with a scale each");
    struct Matrix *matrix = calloc(1, sizeof *matrix);
    (void)op, (void)given;
    if (!matrix) return no_memory();
    matrix->inputs = size[0];
    matrix->outputs = size[1];
    matrix->cells = integer_kernels.chosen;
    const long lanes = matrix->cells->lanes;
    matrix->panels = (size[1] + 4 * lanes - 1) / (4 * lanes);
    matrix->input_bytes = (size[0] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const struct Outputs places = {matrix->panels, 4, lanes, matrix->cells->groups_at_once, size[1], 0};
    if (!pack_integers(&places, &matrix->product, weights, 1, size[1], scales, size[0], 1.0f)) {
        destroy_matrix(matrix);
        return no_memory();
    }
    *kernel = matrix;
    return NULL;
}

static OrtStatus *compute_matrix(void *kernel, OrtKernelContext *context)
{
    const struct Matrix *matrix = kernel;
    int64_t dimensions[MOST_DIMENSIONS];
    size_t count = MOST_DIMENSIONS;
    const OrtValue *factor = NULL;
    const float *x = well(api->KernelContext_GetInput(context, FACTOR, &factor)) ? tensor(factor, dimensions, &count) : NULL;
    if (!x || !count || dimensions[count - 1] != matrix->inputs) return unfit_shapes();
    long rows = 1;
    for (size_t i = 0; i + 1 < count; i++) rows *= dimensions[i];
    dimensions[count - 1] = matrix->outputs;
    float *y = NULL;
    OrtStatus *error = output(context, 0, dimensions, count, &y);
    if (error || !rows) return error;
    uint8_t *bytes = room(STEPS_AT_ONCE * matrix->input_bytes);
    int32_t *products = room(STEPS_AT_ONCE * 4 * matrix->cells->lanes * sizeof *products);
    const int made = bytes && products;
    for (long first = 0; made && first < rows; first += STEPS_AT_ONCE)
        matrix->cells->matrix(matrix, rows - first < STEPS_AT_ONCE ? rows - first : STEPS_AT_ONCE,
                              x + first * matrix->inputs, bytes, products, y + first * matrix->outputs);
    free(bytes);
    free(products);
    return made ? NULL : no_memory();
}

static struct Operator OPERATORS[] = {
    {.name = "LSTM", .inputs = "faFbfFIFF", .outputs = "FFF", .create = create, .compute = compute, .destroy = destroy, .gates = 4},
    {.name = "GRU", .inputs = "faFbfFIF", .outputs = "FF", .create = create, .compute = compute, .destroy = destroy, .gates = 3},
    {.name = "MatMul", .inputs = "fbf", .outputs = "f", .create = create_matrix, .compute = compute_matrix,
     .destroy = destroy_matrix},
    {.name = NULL},
};

static struct Domain DOMAINS[] = {{.name = "lengthwise.integer", .operators = OPERATORS}, {0}};

struct Kernels integer_kernels = {"int8", KNOWN, NULL, DOMAINS};
