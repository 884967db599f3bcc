/* LSTM and GRU layers: their weights in panels, and what onnxruntime calls. `_recurrent.c` and `_integer.c` include it, each
 * for its own arithmetic.
 *
 * Who includes it defines `struct Cells`, KERNELS, IN_INTEGERS (whether products with states are of bytes), and the places
 * of a node's inputs: X, B, LENGTHS, INITIAL_H and INITIAL_C.
 */
/* The weights of a product of bytes, in panels of as many units as a vector has lanes. */
struct Product {
    long groups, room; /* of four columns; and with zeros up to what the instructions multiply at once */
    int8_t *weights;   /* [panels][room][gates][lanes][4] */
    float *scales;     /* [panels][gates][lanes]: the unit of a weight; for states, times that of a state */
    int32_t *offsets;  /* [panels][gates][lanes]: -127 times the sum of the weights, as each byte has 127 added */
};

/* Weights of one direction. The states' and maybe the inputs' are bytes in integers, else floats. */
struct Direction {
    struct Product byte_inputs, byte_states;
    float *inputs;        /* [panels][inputs][gates][lanes] */
    float *states;        /* [panels][hidden][gates][lanes] */
    float *biases;        /* [panels][gates][lanes] */
    float *hidden_biases; /* [panels][lanes]: of a GRU's hidden gate, which its reset gate scales */
};

struct Layer {
    int gates; /* 4 of an LSTM, 3 of a GRU */
    int count; /* of directions */
    int backward; /* whether the first goes from the last step to the first */
    int packed; /* whether it reads and writes packed steps, see `_packed_steps.h` */
    long inputs, hidden, panels;
    long width; /* units with those that fill the last panel */
    long given; /* floats that a step's inputs give: of 4 gates for each unit, in integers of those that there are */
    long input_bytes; /* room for one step's inputs as bytes; 0 where they stay floats */
    const struct Cells *cells;
    struct Direction directions[2];
};

/* What a gate's sum is multiplied by: in integers sigmoid(x) is computed of x / 2, which is exact. */
static float factor(long gates, long gate) { return IN_INTEGERS && gate < gates - 1 ? 0.5f : 1.0f; }

/* The weights `[gates * hidden][size]` in panels, `[panels][size][gates][lanes]`; lanes past the last unit are 0. */
static float *in_panels(const struct Layer *layer, const float *weights, long size)
{
    const long lanes = layer->cells->lanes, gates = layer->gates, hidden = layer->hidden;
    float *panels = floats(layer->panels * size * gates * lanes), *to = panels;
    for (long panel = 0; panels && panel < layer->panels; panel++)
        for (long k = 0; k < size; k++)
            for (long gate = 0; gate < gates; gate++)
                for (long unit = panel * lanes; unit < (panel + 1) * lanes; unit++)
                    *to++ = unit < hidden ? weights[(gate * hidden + unit) * size + k] * factor(gates, gate) : 0.0f;
    return panels;
}

/* One direction's biases of ONNX's B, which may be NULL; 0 where there is no memory. */
static int pack_biases(const struct Layer *layer, struct Direction *direction, const float *b)
{
    const long lanes = layer->cells->lanes, gates = layer->gates, hidden = layer->hidden;
    direction->biases = floats(layer->panels * gates * lanes);
    direction->hidden_biases = floats(layer->width);
    if (!direction->biases || !direction->hidden_biases) return 0;
    for (long unit = 0; unit < layer->width; unit++)
        for (long gate = 0; gate < gates; gate++) {
            const int there = b && unit < hidden, apart = gates == 3 && gate == 2;
            const float of_input = there ? b[gate * hidden + unit] : 0.0f;
            const float of_state = there ? b[(gates + gate) * hidden + unit] : 0.0f;
            const long place = (unit / lanes * gates + gate) * lanes + unit % lanes;
            direction->biases[place] = (apart ? of_input : of_input + of_state) * factor(gates, gate);
            if (apart) direction->hidden_biases[unit] = of_state;
        }
    return 1;
}

static void discard(struct Product *product)
{
    free(product->weights);
    free(product->scales);
    free(product->offsets);
}

static void destroy(void *kernel)
{
    struct Layer *layer = kernel;
    for (struct Direction *direction = layer->directions; direction < layer->directions + 2; direction++) {
        discard(&direction->byte_inputs);
        discard(&direction->byte_states);
        free(direction->inputs);
        free(direction->states);
        free(direction->biases);
        free(direction->hidden_biases);
    }
    free(layer);
}

#include "_lanes.h"

/* Reads the weights of a layer; gives what is wrong with them, or NULL. */
static const char *read_weights(struct Layer *layer, const OrtKernelInfo *info);

/* Reads a node's attributes; gives what is wrong with them, or NULL. */
static const char *read_form(struct Layer *layer, const OrtKernelInfo *info)
{
    char direction[16] = "forward";
    if (!text_of(info, "direction", direction, sizeof direction)) return "an unknown direction";
    layer->backward = !strcmp(direction, "reverse");
    layer->count = !strcmp(direction, "bidirectional") ? 2 : 1;
    if (layer->count == 1 && !layer->backward && strcmp(direction, "forward")) return "an unknown direction";
    layer->packed = whole(info, "packed", 0) != 0;
    return NULL;
}

/* Reads the biases, and sets the sizes; gives what is wrong, or NULL. `biases` is NULL where the node has none. */
static const char *read_sizes(struct Layer *layer, const OrtKernelInfo *info, long inputs, long hidden, const float **biases)
{
    int64_t b[2];
    *biases = NULL;
    if (has_input(info, B) && !(*biases = constant(info, B, b, 2))) return "biases that are not constant";
    if (inputs < 1 || hidden < 1 || (*biases && (b[0] != layer->count || b[1] != 2 * layer->gates * hidden)))
        return "weights that do not fit each other";
    layer->inputs = inputs;
    layer->hidden = hidden;
    layer->panels = (hidden + layer->cells->lanes - 1) / layer->cells->lanes;
    layer->width = layer->panels * layer->cells->lanes;
    layer->given = layer->width * (IN_INTEGERS ? layer->gates : 4);
    return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    struct Layer *layer = calloc(1, sizeof *layer);
    (void)given;
    if (!layer) return no_memory();
    layer->gates = ((const struct Operator *)op)->gates;
    layer->cells = KERNELS.chosen;
    const char *problem = layer->cells ? read_form(layer, info) : "no instruction set that they are made for";
    if (!problem) problem = read_weights(layer, info);
    if (!problem) return *kernel = layer, NULL;
    destroy(layer);
    return status(ORT_FAIL, problem);
}

/* Reads the sequences and their lengths; gives an error, or NULL.
 *
 *     as ONNX has them    x [steps][rows][inputs], and maybe lengths [rows]
 *     packed steps        x [packed][inputs], and lengths [rows]
 */
static OrtStatus *read_batch(const struct Layer *layer, OrtKernelContext *context, struct Batch *batch)
{
    int good = 1;
    int64_t x[3] = {0}, lengths[1] = {0};
    batch->x = input(context, X, x, layer->packed ? 2 : 3, &good);
    batch->lengths = input(context, LENGTHS, lengths, 1, &good);
    if (!good || !batch->x || x[layer->packed ? 1 : 2] != layer->inputs) return unfit_shapes();
    if (layer->packed) {
        if (!batch->lengths) return unfit_shapes();
        batch->packed = x[0];
        batch->rows = lengths[0];
        if (valid_steps(batch->lengths, batch->rows, batch->packed) < 0) return unfit_length();
        for (long row = 0; row < batch->rows; row++)
            if (batch->lengths[row] > batch->steps) batch->steps = batch->lengths[row];
        return NULL;
    }
    if (batch->lengths && lengths[0] != x[1]) return unfit_shapes();
    batch->steps = x[0];
    batch->rows = x[1];
    return batch->lengths && !are_lengths(batch->lengths, batch->rows, batch->steps) ? unfit_length() : NULL;
}

/* Whether the first states of a batch, if there are any, fit it. */
static int fit_states(const struct Layer *layer, OrtKernelContext *context, struct Batch *batch)
{
    int good = 1;
    int64_t h[3], c[3];
    batch->initial_h = input(context, INITIAL_H, h, 3, &good);
    if (layer->gates == 4) batch->initial_c = input(context, INITIAL_C, c, 3, &good);
    if (batch->initial_h) good = good && h[0] == layer->count && h[1] == batch->rows && h[2] == layer->hidden;
    if (batch->initial_c) good = good && c[0] == layer->count && c[1] == batch->rows && c[2] == layer->hidden;
    return good;
}

/* Places each row's steps in `x` and `y`. */
static void place_steps(const struct Layer *layer, struct Batch *batch)
{
    long begin = 0;
    for (long row = 0; row < batch->rows; row++) {
        batch->begins[row] = layer->packed ? begin : row;
        begin += length_of(batch, row);
    }
    batch->x_step = layer->packed ? 1 : batch->rows;
    batch->y_row = layer->packed ? layer->count * layer->hidden : layer->hidden;
    batch->y_step = layer->packed ? batch->y_row : layer->count * batch->rows * layer->hidden;
    batch->y_direction = layer->packed ? layer->hidden : batch->rows * layer->hidden;
    if (layer->packed && batch->y) memset(batch->y + begin * batch->y_row, 0, (batch->packed - begin) * batch->y_row * sizeof(float));
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const struct Layer *layer = kernel;
    struct Batch batch = {0};
    OrtStatus *error = read_batch(layer, context, &batch);
    if (error) return error;
    if (!fit_states(layer, context, &batch)) return unfit_shapes();
    const long of_step = layer->count * layer->hidden, steps = layer->packed ? batch.packed : batch.steps * batch.rows;
    const int64_t all[] = {batch.steps, layer->count, batch.rows, layer->hidden}, all_packed[] = {batch.packed, of_step};
    const int64_t last[] = {layer->count, batch.rows, layer->hidden};
    error = output(context, 0, layer->packed ? all_packed : all, layer->packed ? 2 : 4, &batch.y);
    if (!error) error = output(context, 1, last, 3, &batch.y_h);
    if (!error && layer->gates == 4) error = output(context, 2, last, 3, &batch.y_c);
    if (error) return error;
    batch.zeros = batch.y && !layer->packed;
    float *unwanted = NULL; /* products of floats read the states from `y` */
    if (!IN_INTEGERS && !batch.y) batch.y = unwanted = floats(steps * of_step);
    if (IN_INTEGERS && !batch.y && !batch.y_h) batch.y_h = unwanted = floats(batch.rows * of_step);
    batch.first_apart = !IN_INTEGERS && !batch.initial_h;
    batch.order = malloc((3 * batch.rows + batch.steps + 1) * sizeof *batch.order);
    batch.next = batch.order ? batch.order + batch.rows + batch.steps + 1 : NULL;
    batch.begins = batch.order ? batch.next + batch.rows : NULL;
    const int made = (batch.y || batch.y_h) && batch.order;
    if (made) place_steps(layer, &batch);
    const int done = made && run_layer(layer, &batch);
    free(unwanted);
    free(batch.order);
    return done ? NULL : no_memory();
}
