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
 * The same operators are in a domain of their own, `lengthwise`, with more attributes, and with an operator for attention
 * pooling: `lengthwise.runtime.onnx.fusion` writes them into a graph in memory.
 *
 * tests/service/test_recurrent_kernels.py compares them with onnxruntime's own kernels.
 */
#include "_library.h"

/* One direction's weights, in panels of as many units as a vector has lanes. */
struct Direction {
    float *inputs;        /* [panels][inputs][gates][lanes] */
    float *states;        /* [panels][hidden][gates][lanes] */
    float *biases;        /* [panels][gates][lanes] */
    float *hidden_biases; /* [panels][lanes]: of a GRU's hidden gate, which its reset gate scales */
};

struct Layer {
    int gates; /* 4 of an LSTM, 3 of a GRU */
    int count; /* of directions */
    int backward; /* whether the first goes from the last step to the first */
    int order; /* of the axes of its output, see `enum Order` */
    int zeros; /* whether its output is 0 at padding; else nothing is written there, as nobody reads it */
    long inputs, hidden, panels;
    const struct Cells *cells;
    struct Direction directions[2];
};

/* The arithmetic for one instruction set. */
struct Cells {
    const char *name;
    long lanes;
    void (*input)(const struct Layer *, const struct Direction *, long, const float *const *, float *);
    void (*step)(const struct Layer *, const struct Direction *, long, const float *const *, int, float *, float *const *,
                 float *const *);
    void (*score)(long, long, const float *, const float *, float *);
    void (*add_share)(float *, const float *, float, long);
};

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma")))
#define NAMED(x) x##_avx512
#define LANES 16
#define MOST_ROWS 6
#define BY_ROWS(f) switch (rows) { UP_TO_6(f) }
#include "_recurrent_cells.h"

#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(x) x##_avx2
#define LANES 8
#define MOST_ROWS 3
#define BY_ROWS(f) switch (rows) { UP_TO_3(f) }
#include "_recurrent_cells.h"
#elif defined(__aarch64__)
#define TARGET
#define NAMED(x) x##_neon
#define LANES 4
#define MOST_ROWS 6
#define BY_ROWS(f) switch (rows) { UP_TO_6(f) }
#include "_recurrent_cells.h"
#endif

/* Best first; none on other processors, where onnxruntime's own kernels run. */
static const struct Cells KNOWN[] = {
#if defined(__x86_64__)
    {"avx512", 16, input_avx512, step_avx512, score_avx512, add_share_avx512},
    {"avx2", 8, input_avx2, step_avx2, score_avx2, add_share_avx2},
#elif defined(__aarch64__)
    {"neon", 4, input_neon, step_neon, score_neon, add_share_neon},
#endif
    {0},
};

#include "_instruction_sets.h"

/* Allocates memory for this many floats; NULL if there is none. */
static float *floats(long count) { return aligned_alloc(ALIGNMENT, (count * sizeof(float) / ALIGNMENT + 1) * ALIGNMENT); }

static void destroy(void *kernel)
{
    struct Layer *layer = kernel;
    for (int d = 0; d < layer->count; d++) {
        free(layer->directions[d].inputs);
        free(layer->directions[d].states);
        free(layer->directions[d].biases);
        free(layer->directions[d].hidden_biases);
    }
    free(layer);
}

/* The weights `[gates * hidden][size]` in panels, `[panels][size][gates][lanes]`; lanes past the last unit are 0. */
static float *in_panels(const struct Layer *layer, const float *weights, long size)
{
    const long lanes = layer->cells->lanes, gates = layer->gates;
    float *panels = floats(layer->panels * size * gates * lanes), *to = panels;
    if (!panels) return NULL;
    for (long panel = 0; panel < layer->panels; panel++)
        for (long k = 0; k < size; k++)
            for (long gate = 0; gate < gates; gate++)
                for (long unit = panel * lanes; unit < (panel + 1) * lanes; unit++)
                    *to++ = unit < layer->hidden ? weights[(gate * layer->hidden + unit) * size + k] : 0.0f;
    return panels;
}

/* One direction of ONNX's weights W, R and B (which may be NULL); 0 where there is no memory. */
static int pack(const struct Layer *layer, struct Direction *direction, const float *w, const float *r, const float *b)
{
    const long lanes = layer->cells->lanes, gates = layer->gates, hidden = layer->hidden;
    direction->inputs = in_panels(layer, w, layer->inputs);
    direction->states = in_panels(layer, r, hidden);
    direction->biases = floats(layer->panels * gates * lanes);
    direction->hidden_biases = floats(layer->panels * lanes);
    if (!direction->inputs || !direction->states || !direction->biases || !direction->hidden_biases) return 0;
    for (long panel = 0; panel < layer->panels; panel++)
        for (long unit = 0; unit < lanes; unit++) {
            const long u = panel * lanes + unit;
            const int there = b && u < hidden;
            for (long gate = 0; gate < gates; gate++) {
                const float of_input = there ? b[gate * hidden + u] : 0.0f;
                const float of_state = there ? b[(gates + gate) * hidden + u] : 0.0f;
                const int apart = gates == 3 && gate == 2;
                direction->biases[(panel * gates + gate) * lanes + unit] = apart ? of_input : of_input + of_state;
                if (apart) direction->hidden_biases[u] = of_state;
            }
        }
    return 1;
}

#include "_recurrent_runs.h"

/* ---- Onnxruntime's side. ---- */

enum { X, W, R, B, LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES }; /* the inputs of ONNX's LSTM; a GRU has the first six */

static OrtStatus *create(int gates, const OrtKernelInfo *info, void **kernel)
{
    char direction[16] = "forward";
    int64_t w[3], r[3], b[2] = {0, 0};
    const float *weights = constant(info, W, w, 3), *of_states = constant(info, R, r, 3), *biases = NULL;
    if (!weights || !of_states) return status(ORT_FAIL, "weights that are not constant");
    if (has_input(info, B) && !(biases = constant(info, B, b, 2))) return status(ORT_FAIL, "biases that are not constant");
    if (!text_of(info, "direction", direction, sizeof direction))
        return status(ORT_FAIL, "an unknown direction");
    const int both = !strcmp(direction, "bidirectional"), backward = !strcmp(direction, "reverse");
    if (!both && !backward && strcmp(direction, "forward")) return status(ORT_FAIL, "an unknown direction");
    if (!absent(info, "activations") || !absent(info, "clip") || whole(info, "layout", 0) ||
        (gates == 4 && (whole(info, "input_forget", 0) || has_input(info, PEEPHOLES))) ||
        (gates == 3 && !whole(info, "linear_before_reset", 0)))
        return status(ORT_FAIL, "not the plain form of the cell");
    const int count = both ? 2 : 1;
    if (whole(info, "hidden_size", r[2]) != r[2] || w[0] != count || r[0] != count || w[1] != r[1] ||
        w[1] != gates * r[2] || w[2] < 1 || r[2] < 1 || (biases && (b[0] != count || b[1] != 2 * w[1])))
        return status(ORT_FAIL, "weights that do not fit each other");

    struct Layer *layer = chosen ? calloc(1, sizeof *layer) : NULL;
    if (!layer) return status(ORT_FAIL, chosen ? "no memory" : "no instruction set that they are made for");
    layer->gates = gates;
    layer->count = count;
    layer->backward = backward;
    layer->inputs = w[2];
    layer->hidden = r[2];
    layer->order = whole(info, "order", DIRECTIONS_SECOND);
    layer->zeros = whole(info, "zeros", 1);
    layer->cells = chosen;
    layer->panels = (layer->hidden + layer->cells->lanes - 1) / layer->cells->lanes;
    for (int d = 0; d < count; d++)
        if (!pack(layer, &layer->directions[d], weights + d * w[1] * w[2], of_states + d * r[1] * r[2],
                  biases ? biases + d * b[1] : NULL)) {
            destroy(layer);
            return status(ORT_FAIL, "no memory");
        }
    *kernel = layer;
    return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const struct Layer *layer = kernel;
    int good = 1;
    int64_t x[3], lengths[1], h[3], c[3];
    struct Batch batch = {0};
    batch.x = input(context, X, x, 3, &good);
    batch.lengths = input(context, LENGTHS, lengths, 1, &good);
    batch.initial_h = input(context, INITIAL_H, h, 3, &good);
    if (layer->gates == 4) batch.initial_c = input(context, INITIAL_C, c, 3, &good);
    if (!good || !batch.x || x[2] != layer->inputs || (batch.lengths && lengths[0] != x[1]) ||
        (batch.initial_h && (h[0] != layer->count || h[1] != x[1] || h[2] != layer->hidden)) ||
        (batch.initial_c && (c[0] != layer->count || c[1] != x[1] || c[2] != layer->hidden)))
        return status(ORT_INVALID_ARGUMENT, "the inputs' shapes do not fit the weights or each other");
    batch.steps = x[0];
    batch.rows = x[1];
    for (long row = 0; batch.lengths && row < batch.rows; row++)
        if (batch.lengths[row] < 0 || batch.lengths[row] > batch.steps)
            return status(ORT_INVALID_ARGUMENT, "a length is not between 0 and the number of steps");

    const int64_t all[3][4] = {
        [DIRECTIONS_SECOND] = {x[0], layer->count, x[1], layer->hidden},
        [STEPS_FIRST] = {x[0], x[1], layer->count * layer->hidden},
        [ROWS_FIRST] = {x[1], x[0], layer->count * layer->hidden},
    };
    const int64_t last[] = {layer->count, x[1], layer->hidden};
    const long of_step = layer->count * layer->hidden;
    batch.y_direction = layer->order == DIRECTIONS_SECOND ? batch.rows * layer->hidden : layer->hidden;
    batch.y_row = layer->order == DIRECTIONS_SECOND ? layer->hidden : layer->order == STEPS_FIRST ? of_step : batch.steps * of_step;
    batch.y_step = layer->order == ROWS_FIRST ? of_step : batch.rows * of_step;
    const long size = batch.steps * layer->count * batch.rows * layer->hidden;
    float *unwanted = NULL;
    OrtStatus *error = output(context, 0, all[layer->order], layer->order == DIRECTIONS_SECOND ? 4 : 3, &batch.y);
    if (!error) error = output(context, 1, last, 3, &batch.y_h);
    if (!error && layer->gates == 4) error = output(context, 2, last, 3, &batch.y_c);
    if (error) return error;
    batch.zeros = batch.y && layer->zeros;
    if (!batch.y) batch.y = unwanted = floats(size);
    struct Tracks tracks = {.count = tracks_for(layer, &batch)};
    batch.tracks = &tracks;
    batch.order = malloc((batch.rows + batch.steps + 1) * sizeof *batch.order);
    tracks.first = malloc((3 * tracks.count + batch.rows + 1) * sizeof *tracks.first);
    int made = batch.y && batch.order && tracks.first;
    if (made) {
        tracks.steps = tracks.first + tracks.count;
        tracks.next = tracks.steps + 2 * tracks.count;
        sort(&batch);
        fill_tracks(&tracks, &batch, tracks.steps + tracks.count);
        long steps = 0;
        for (long track = 0; track < tracks.count; track++) steps += tracks.steps[track];
        made = run_directions(layer, &batch, steps);
    }
    free(unwanted);
    free(batch.order);
    free(tracks.first);
    return made ? NULL : status(ORT_FAIL, "no memory");
}

#include "_attention_pooling.h"

/* The operators, as onnxruntime asks for them. */

static int input_type(const OrtCustomOp *op, size_t index) { return (void)op, index == LENGTHS ? ORT_INT32 : ORT_FLOAT; }
static size_t lstm_inputs(const OrtCustomOp *op) { return (void)op, PEEPHOLES + 1; }
static size_t gru_inputs(const OrtCustomOp *op) { return (void)op, INITIAL_H + 1; }
static int input_presence(const OrtCustomOp *op, size_t index) { return (void)op, index <= R ? ORT_REQUIRED : ORT_OPTIONAL; }
CREATE(lstm, 4)
CREATE(gru, 3)

static const OrtCustomOp LSTM = OPERATOR(lstm_name, lstm_inputs, input_type, input_presence, three_outputs, optional,
                                         create_lstm, compute, destroy);
static const OrtCustomOp GRU = OPERATOR(gru_name, gru_inputs, input_type, input_presence, two_outputs, optional,
                                        create_gru, compute, destroy);
static const OrtCustomOp POOLING = OPERATOR(pooling_name, pooling_inputs, pooling_input_type, pooling_input_presence,
                                            two_outputs, optional, create_pooling, compute_pooling, destroy_pooling);

static OrtStatus *add(OrtSessionOptions *options)
{
    static OrtCustomOpDomain *onnx, *own;
    OrtStatus *error = add_domain(options, &onnx, "", (const OrtCustomOp *[]){&LSTM, &GRU, NULL});
    return error ? error : add_domain(options, &own, "lengthwise", (const OrtCustomOp *[]){&LSTM, &GRU, &POOLING, NULL});
}

const struct Kernels float_kernels = {"float32", instruction_set, choose, chosen_set, add};
