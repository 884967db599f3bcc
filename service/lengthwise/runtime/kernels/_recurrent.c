/* LSTM and GRU kernels for onnxruntime that compute valid steps only.
 *
 * onnxruntime's own kernels compute every row up to the longest length, and discard what is past a row's own. These
 * distribute the rows over a few tracks: a row that ends hands its track to the next one. So at each step as many rows
 * stand side by side as the processor needs, whatever the mix of lengths, and nothing else is computed or read. A row's
 * bits do not depend on the other rows, nor on the values of its padding.
 *
 * They are in ONNX's domain as `LSTM` and `GRU`, which replace the built-in ones in sessions that register them. If a graph
 * needs what they do not support (peepholes, other activations, weights that are computed), their creation fails, and
 * `lengthwise.runtime.session` opens a session without them.
 *
 * The same operators are in a domain of their own, `lengthwise`, where they may read and write packed steps, beside the
 * operators of `_packed_steps.h`: `lengthwise.runtime.onnx.fusion` writes them into a graph in memory.
 *
 * tests/service/test_recurrent_kernels.py compares them with onnxruntime's own kernels.
 */
#define KERNELS float_kernels
#define IN_INTEGERS 0
#define NEAR_CACHE (1L << 20) /* bytes of weights that a core's own cache holds */

#include "_library.h"

enum { X, W, R, B, LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES }; /* the inputs of ONNX's LSTM; a GRU has the first six */

struct Layer;
struct Direction;

/* The arithmetic for one instruction set. */
struct Cells {
    const char *name;
    long lanes;
    void (*input)(const struct Layer *, const struct Direction *, long, const float *const *, float *);
    void (*step)(const struct Layer *, const struct Direction *, long, const float *const *, int, float *, float *const *,
                 float *const *);
    void (*multiply)(int, long, const float *const *, long, const float *, const float *, long, float *, long);
    float (*dot)(const float *, const float *, long);
    void (*add_share)(float *, const float *, float, long);
};

#include "_layers.h"

#if defined(__x86_64__)
#define SET avx512
#define MOST_ROWS 6
#include "_recurrent_cells.h"

#define SET avx2
#define MOST_ROWS 3
#include "_recurrent_cells.h"
#elif defined(__aarch64__)
#define SET neon
#define MOST_ROWS 6
#include "_recurrent_cells.h"
#endif

#define CELLS(set) &(const struct Cells){#set, LANES_##set, float_input_##set, step_##set, multiply_floats_##set, dot_##set, add_share_##set}
static const struct Cells *const KNOWN[] = { /* none on other processors, where onnxruntime's own kernels run */
#if defined(__x86_64__)
    CELLS(avx512), CELLS(avx2),
#elif defined(__aarch64__)
    CELLS(neon),
#endif
    NULL,
};

static const char *read_weights(struct Layer *layer, const OrtKernelInfo *info)
{
    int64_t w[3], r[3];
    const float *of_inputs = constant(info, W, w, 3), *of_states = constant(info, R, r, 3), *biases;
    if (!of_inputs || !of_states) return "weights that are not constant";
    if (whole(info, "layout", 0) || (layer->gates == 4 && (whole(info, "input_forget", 0) || has_input(info, PEEPHOLES))) ||
        (layer->gates == 3 && !whole(info, "linear_before_reset", 0)))
        return "not the plain form of the cell";
    const int64_t hidden = r[2], outputs = layer->gates * hidden;
    if (whole(info, "hidden_size", hidden) != hidden || w[0] != layer->count || r[0] != layer->count || w[1] != outputs ||
        r[1] != outputs)
        return "weights that do not fit each other";
    const char *problem = read_sizes(layer, info, w[2], hidden, &biases);
    for (int d = 0; !problem && d < layer->count; d++) {
        struct Direction *direction = &layer->directions[d];
        direction->inputs = in_panels(layer, of_inputs + d * outputs * w[2], w[2]);
        direction->states = in_panels(layer, of_states + d * outputs * hidden, hidden);
        if (!direction->inputs || !direction->states || !pack_biases(layer, direction, biases ? biases + 2 * d * outputs : NULL))
            return "no memory";
    }
    return problem;
}

/* A few lanes are as fast as many: the kernels compute six rows at once. Twelve read the weights once for two such groups,
 * and six end together more often where the longest row has a large share of all steps. */
static long lanes_for(const struct Layer *layer, long valid, long longest)
{
    const int near = layer->gates * layer->hidden * layer->hidden * (long)sizeof(float) <= NEAR_CACHE;
    return near && valid / 12 < longest ? 6 : 12;
}

/* Without an initial state, no product with a state comes before the first steps: those of all rows are computed together. */
static int prepare(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const struct Direction *direction = &layer->directions[run->d];
    const float *inputs[STEPS_AT_ONCE];
    float *memory[STEPS_AT_ONCE], *out[STEPS_AT_ONCE];
    for (long from = 0, count = 0; batch->first_apart && from < batch->rows; from += count) {
        for (count = 0; count < STEPS_AT_ONCE && from + count < batch->rows; count++) {
            const long row = batch->order[from + count], length = length_of(batch, row);
            const long step = run->ahead < 0 ? length - 1 : 0;
            if (!length) break;
            inputs[count] = input_at(run, row, step);
            memory[count] = run->memory + row * layer->width;
            out[count] = output_at(run, row, step);
        }
        if (!count) break;
        layer->cells->input(layer, direction, count, inputs, run->given);
        layer->cells->step(layer, direction, count, inputs, 1, run->given, memory, out);
    }
    return 1;
}

static void multiply_inputs(struct Run *run, long count, const float *const *inputs)
{
    run->layer->cells->input(run->layer, &run->layer->directions[run->d], count, inputs, run->given);
}

static void run_step(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const float *states[MOST_LANES];
    float *memory[MOST_LANES], *out[MOST_LANES];
    for (long lane = 0; lane < run->active; lane++) {
        const int begins = advance(run, lane, &run->runs[lane]);
        const long row = run->runs[lane].row, step = run->runs[lane].step;
        states[lane] = begins && batch->initial_h ? batch->initial_h + (run->d * batch->rows + row) * layer->hidden
                                                  : output_at(run, row, step - run->ahead);
        memory[lane] = run->memory + row * layer->width;
        out[lane] = output_at(run, row, step);
    }
    layer->cells->step(layer, &layer->directions[run->d], run->active, states, 0, run->of_step, memory, out);
}

#include "_packed_steps.h"

static struct Operator OPERATORS[] = {
    {.name = "LSTM", .inputs = "fffFIFFF", .outputs = "FFF", .create = create, .compute = compute, .destroy = destroy, .gates = 4},
    {.name = "GRU", .inputs = "fffFIF", .outputs = "FF", .create = create, .compute = compute, .destroy = destroy, .gates = 3},
    {.name = NULL},
};

#define OF_PACKED(operator, reads, does) \
    {.name = operator, .inputs = reads, .outputs = "f", .create = create_packed, .compute = does, .destroy = destroy_packed}
static struct Operator PACKED_OPERATORS[] = {
    {.name = "LSTM", .inputs = "fffFIFFF", .outputs = "FFF", .create = create, .compute = compute, .destroy = destroy, .gates = 4},
    {.name = "GRU", .inputs = "fffFIF", .outputs = "FF", .create = create, .compute = compute, .destroy = destroy, .gates = 3},
    {.name = "Dense", .inputs = "fifF", .outputs = "f", .create = create_dense, .compute = compute_dense, .destroy = destroy_dense},
    OF_PACKED("Pack", "fi", compute_pack), OF_PACKED("Unpack", "fia", compute_unpack),
    OF_PACKED("Spread", "fif", compute_spread), OF_PACKED("Dots", "fif", compute_dots),
    OF_PACKED("StepSoftmax", "fi", compute_softmax), OF_PACKED("StepSum", "fiF", compute_sum),
    OF_PACKED("StepMax", "fiF", compute_max), OF_PACKED("OuterSum", "fif", compute_outer_sum),
    {.name = NULL},
};

static struct Domain DOMAINS[] = {
    {.name = "", .operators = OPERATORS}, {.name = "lengthwise", .operators = PACKED_OPERATORS}, {0},
};

struct Kernels float_kernels = {"float32", KNOWN, NULL, DOMAINS};
