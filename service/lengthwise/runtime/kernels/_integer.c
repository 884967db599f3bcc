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
 * A row that ends gives its lane to the next row, so that all lanes are used until the end.
 *
 * tests/service/test_integer_kernels.py holds them against the same arithmetic in NumPy, on each instruction set.
 */
#include <float.h>
#include <math.h>

#include "_library.h"

#define ROWS_OF_CELLS 8   /* cells that are computed side by side at least, where a layer has that many */
#define WORTH_A_CORE (1L << 22) /* products of one direction, from which on it may run in another thread: some 20 us */
#define MOST_LANES 32     /* rows that are computed in turns, step by step */
#define LARGEST_WEIGHT 63 /* 7 bits; see above */
#define MOST_INPUTS 131072
#define SMALLEST_INPUT 1e-30f /* a step whose inputs are all smaller counts as zeros: 127 / 1e-30 is still finite */
/* Added to a float of at most 127 it leaves that, rounded, in the lowest byte, with 127 added: 1.5 * 2^23 + 127. */
#define ROUNDING 12583039.0f

/* The weights of one product, in panels of as many units as a vector has lanes. */
struct Product {
    long groups, room; /* of four columns; and with zeros up to what the instructions multiply at once */
    int8_t *weights;  /* [panels][room][gates][lanes][4] */
    float *scales;    /* [panels][gates][lanes]: the unit of a weight; for states, times that of a state */
    int32_t *offsets; /* [panels][gates][lanes]: -127 times the sum of the weights, as each byte has 127 added */
};

struct Direction {
    struct Product inputs; /* empty where the weights of inputs are floats */
    struct Product states;
    float *float_inputs;  /* [panels][inputs][gates][lanes] */
    float *biases;        /* [panels][gates][lanes] */
    float *hidden_biases; /* [panels][lanes]: of a GRU's hidden gate, which its reset gate scales */
};

struct Layer {
    int gates; /* 4 of an LSTM, 3 of a GRU */
    int count; /* of directions */
    int backward; /* whether the first goes from the last step to the first */
    int order; /* of the axes of its output, see `enum Order` */
    int zeros; /* whether its output is read at padding, and has to be 0 there */
    long inputs, hidden, panels;
    long input_bytes; /* room for one step's inputs as bytes; 0 where they stay floats */
    const struct Cells *cells;
    struct Direction directions[2];
};

/* A product with constant weights, `[..., inputs]` to `[..., outputs]`: each row is rounded in units of its own. */
struct Matrix {
    long inputs, outputs, panels, input_bytes;
    const struct Cells *cells;
    struct Product product;
};

/* The arithmetic for one instruction set. */
struct Cells {
    const char *name;
    long lanes, groups_at_once;
    void (*float_input)(const struct Layer *, const struct Direction *, long, const float *const *, float *);
    void (*integer_input)(const struct Layer *, const struct Direction *, long, const float *const *, uint8_t *, float *,
                          void *, float *);
    void (*step)(const struct Layer *, const struct Direction *, long, int, const uint8_t *, const float *, void *,
                 float *, float *const *, uint8_t *, uint8_t *);
    void (*matrix)(const struct Matrix *, long, const float *, uint8_t *, void *, float *);
};

#include "_tiles.h"

#if defined(__x86_64__)
/* Four bytes of each row for all lanes. */
static inline __attribute__((always_inline)) int32_t four(const uint8_t *from)
{
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define NAMED(x) x##_avx512vnni
#define LANES 16
#define DOT(sum, number, weight) (Integers)_mm512_dpbusd_epi32((__m512i)(sum), number, weight)
#define MOST_ROWS 4
#define BY_ROWS(f) switch (rows) { UP_TO_4(f) }
#include "_integer_cells.h"

#if AMX_COMPILES
#define TARGET __attribute__((target("amx-int8,amx-tile,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define NAMED(x) x##_amx
#define LANES 16
#define DOT(sum, number, weight) (Integers)_mm512_dpbusd_epi32((__m512i)(sum), number, weight)
#define MOST_ROWS 4
#define BY_ROWS(f) switch (rows) { UP_TO_4(f) }
#define TILES
#define SHAPE_TILES(shapes) do { MEMORY_IS_READ; _tile_loadconfig(shapes); } while (0)
#define LOAD_TILE _tile_loadd
#define DOT_TILES _tile_dpbusd
#define STORE_TILE _tile_stored
#define RELEASE_TILES _tile_release
#include "_integer_cells.h"
#endif

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define NAMED(x) x##_avx512
#define LANES 16
#define DOT(sum, number, weight) \
    ((sum) + (Integers)_mm512_madd_epi16(_mm512_maddubs_epi16(number, weight), _mm512_set1_epi16(1)))
#define MOST_ROWS 4
#define BY_ROWS(f) switch (rows) { UP_TO_4(f) }
#include "_integer_cells.h"

#define TARGET __attribute__((target("avxvnni,avx2,fma")))
#define NAMED(x) x##_avxvnni
#define LANES 8
#define DOT(sum, number, weight) (Integers)_mm256_dpbusd_avx_epi32((__m256i)(sum), number, weight)
#define MOST_ROWS 2
#define BY_ROWS(f) switch (rows) { UP_TO_2(f) }
#include "_integer_cells.h"

#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(x) x##_avx2
#define LANES 8
#define DOT(sum, number, weight) \
    ((sum) + (Integers)_mm256_madd_epi16(_mm256_maddubs_epi16(number, weight), _mm256_set1_epi16(1)))
#define MOST_ROWS 2
#define BY_ROWS(f) switch (rows) { UP_TO_2(f) }
#include "_integer_cells.h"
#endif

/* The same for vectors of four: with the dot products of ARM, and in plain C for every other processor. */
typedef const uint8_t *Bytes;

static inline int any_nan(Floats4 x) { return x[0] != x[0] || x[1] != x[1] || x[2] != x[2] || x[3] != x[3]; }

static inline void store_bytes(uint8_t *to, Floats4 x)
{
    for (int i = 0; i < 4; i++) {
        /* A copy: clang takes no address of a vector's element. */
        const float one = x[i];
        uint32_t bits;
        memcpy(&bits, &one, sizeof bits);
        to[i] = (uint8_t)bits;
    }
}

static inline Integers4 dot(Integers4 sum, Bytes numbers, Bytes from)
{
    const int8_t *weights = (const int8_t *)from;
    for (int i = 0; i < 4; i++, weights += 4)
        sum[i] += numbers[0] * weights[0] + numbers[1] * weights[1] + numbers[2] * weights[2] + numbers[3] * weights[3];
    return sum;
}

#if defined(__aarch64__)
static inline int8x16_t four(Bytes from)
{
    uint32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return vreinterpretq_s8_u32(vdupq_n_u32(bytes));
}

#define TARGET __attribute__((target("arch=armv8.2-a+i8mm")))
static inline TARGET Integers4 dot_i8mm(Integers4 sum, Bytes numbers, Bytes weights)
{
    return (Integers4)vusdotq_s32((int32x4_t)sum, vreinterpretq_u8_s8(four(numbers)), vld1q_s8((const int8_t *)weights));
}
#define NAMED(x) x##_i8mm
#define LANES 4
#define DOT dot_i8mm
#define MOST_ROWS 4
#define BY_ROWS(f) switch (rows) { UP_TO_4(f) }
#include "_integer_cells.h"

/* Both factors have a sign here: 128 is subtracted from each byte, and its products with the weights are added again. */
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
static inline TARGET Integers4 dot_dotprod(Integers4 sum, Bytes numbers, Bytes from)
{
    const int8x16_t weights = vld1q_s8((const int8_t *)from), least = vdupq_n_s8(-128);
    return (Integers4)vsubq_s32(vdotq_s32((int32x4_t)sum, veorq_s8(four(numbers), least), weights),
                                vdotq_s32(vdupq_n_s32(0), least, weights));
}
#define NAMED(x) x##_dotprod
#define LANES 4
#define DOT dot_dotprod
#define MOST_ROWS 4
#define BY_ROWS(f) switch (rows) { UP_TO_4(f) }
#include "_integer_cells.h"
#endif

#define TARGET
#define NAMED(x) x##_portable
#define LANES 4
#define DOT dot
#define MOST_ROWS 2
#define BY_ROWS(f) switch (rows) { UP_TO_2(f) }
#include "_integer_cells.h"

#define TARGET
#define NAMED(x) x##_amx_emulated
#define LANES 4
#define DOT dot
#define MOST_ROWS 2
#define BY_ROWS(f) switch (rows) { UP_TO_2(f) }
#define TILES
#define SHAPE_TILES emulated_shapes
#define LOAD_TILE emulated_load
#define DOT_TILES emulated_dot
#define STORE_TILE emulated_store
#define RELEASE_TILES emulated_release
#include "_integer_cells.h"

#define CELLS(set, lanes, groups) {#set, lanes, groups, float_input_##set, integer_input_##set, step_##set, matrix_##set}
/* Best first; the last runs everywhere. */
static const struct Cells KNOWN[] = {
#if defined(__x86_64__)
#if AMX_COMPILES
    CELLS(amx, 16, TILE_GROUPS),
#endif
    CELLS(avx512vnni, 16, 1), CELLS(avxvnni, 8, 1), CELLS(avx512, 16, 1), CELLS(avx2, 8, 1),
#elif defined(__aarch64__)
    CELLS(i8mm, 4, 1), CELLS(dotprod, 4, 1),
#endif
    CELLS(portable, 4, 1), CELLS(amx_emulated, 4, TILE_GROUPS),
    {0},
};

#include "_instruction_sets.h"

/* Allocates memory for this many bytes; NULL if there is none. */
static void *room(long bytes) { return aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT); }

static void discard(struct Product *product)
{
    free(product->weights);
    free(product->scales);
    free(product->offsets);
}

static void destroy(void *kernel)
{
    struct Layer *layer = kernel;
    for (int d = 0; d < layer->count; d++) {
        struct Direction *direction = &layer->directions[d];
        discard(&direction->inputs);
        discard(&direction->states);
        free(direction->float_inputs);
        free(direction->biases);
        free(direction->hidden_biases);
    }
    free(layer);
}

/* What a gate's sum is multiplied by: sigmoid(x) is computed of x / 2, which is exact. */
static float factor(long gates, long gate) { return gate == gates - 1 ? 1.0f : 0.5f; }

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

/* Weights that stay floats, in panels; lanes past the last unit are 0. */
static float *pack_floats(const struct Layer *layer, const float *weights)
{
    const long lanes = layer->cells->lanes, gates = layer->gates, size = layer->inputs;
    float *panels = room(layer->panels * size * gates * lanes * sizeof *panels), *to = panels;
    if (!panels) return NULL;
    for (long panel = 0; panel < layer->panels; panel++)
        for (long k = 0; k < size; k++)
            for (long gate = 0; gate < gates; gate++)
                for (long unit = panel * lanes; unit < (panel + 1) * lanes; unit++)
                    *to++ = unit < layer->hidden ? weights[(gate * layer->hidden + unit) * size + k] * factor(gates, gate) : 0.0f;
    return panels;
}

/* One direction's biases of ONNX's B, which may be NULL; 0 where there is no memory. */
static int pack_biases(const struct Layer *layer, struct Direction *direction, const float *b)
{
    const long lanes = layer->cells->lanes, gates = layer->gates, hidden = layer->hidden;
    direction->biases = room(layer->panels * gates * lanes * sizeof *direction->biases);
    direction->hidden_biases = room(layer->panels * lanes * sizeof *direction->hidden_biases);
    if (!direction->biases || !direction->hidden_biases) return 0;
    for (long panel = 0; panel < layer->panels; panel++)
        for (long unit = 0; unit < lanes; unit++) {
            const long u = panel * lanes + unit;
            const int there = b && u < hidden;
            for (long gate = 0; gate < gates; gate++) {
                const float of_input = there ? b[gate * hidden + u] : 0.0f;
                const float of_state = there ? b[(gates + gate) * hidden + u] : 0.0f;
                const int apart = gates == 3 && gate == 2;
                direction->biases[(panel * gates + gate) * lanes + unit] =
                    (apart ? of_input : of_input + of_state) * factor(gates, gate);
                if (apart) direction->hidden_biases[u] = of_state;
            }
        }
    return 1;
}

/* A batch as a layer sees it. */
struct Batch {
    long steps, rows;
    const float *x;         /* [steps][rows][inputs] */
    const int32_t *lengths; /* [rows], each 0 to steps; NULL where all are `steps` */
    float *y;               /* of every direction, row and step [hidden], in the layer's order; or NULL */
    long y_direction, y_row, y_step; /* from one to the next, in floats */
    float *y_h, *y_c;       /* [directions][rows][hidden], or NULL */
    long *order;            /* [rows]: the rows, longest first; behind them room for [steps + 1] */
    long *next;             /* [rows]: the row that gets a row's lane when it ends; -1 if none */
    long lanes;
    long first[MOST_LANES], steps_of[MOST_LANES]; /* of each lane: its first row, and its steps; most steps first */
};

#include "_rows.h"

/* Gives each row a lane: the longest first, each to the lane that is free first. More lanes than the valid steps over
 * the longest length would only wait for the longest row.
 */
static void assign(struct Batch *batch)
{
    long valid = 0, last[MOST_LANES];
    for (long row = 0; row < batch->rows; row++) valid += length_of(batch, row);
    const long longest = batch->rows ? length_of(batch, batch->order[0]) : 0;
    long lanes = longest ? (valid + longest - 1) / longest : 0;
    lanes = (lanes + 3) / 4 * 4;
    if (lanes > MOST_LANES) lanes = MOST_LANES;
    batch->lanes = 0;
    for (long r = 0; r < batch->rows; r++) {
        const long row = batch->order[r], length = length_of(batch, row);
        batch->next[row] = -1;
        if (!length) continue; /* it has no step, and needs no lane */
        long lane = batch->lanes;
        if (lane < lanes) {
            batch->first[lane] = row;
            batch->steps_of[lane] = 0;
            batch->lanes++;
        } else {
            lane = 0;
            for (long other = 1; other < lanes; other++)
                if (batch->steps_of[other] < batch->steps_of[lane]) lane = other;
            batch->next[last[lane]] = row;
        }
        last[lane] = row;
        batch->steps_of[lane] += length;
    }
    for (long i = 1; i < batch->lanes; i++) /* most steps first, so that the lanes that still run stand together */
        for (long j = i; j && batch->steps_of[j] > batch->steps_of[j - 1]; j--) {
            const long row = batch->first[j], steps = batch->steps_of[j];
            batch->first[j] = batch->first[j - 1], batch->steps_of[j] = batch->steps_of[j - 1];
            batch->first[j - 1] = row, batch->steps_of[j - 1] = steps;
        }
}

/* Gives one row's last state. Nobody may want it: then `to` is NULL. */
static void give(float *to, long place, const float *state, long hidden)
{
    if (to) memcpy(to + place, state, hidden * sizeof *to);
}

/* Where a lane is: its row, and the steps of it that are left. Before its first step, none is. */
struct Place {
    long row, left;
    const float *x;
};

/* The run of one direction over a batch, which another thread may begin and this one finish. */
struct Run {
    const struct Layer *layer;
    const struct Batch *batch;
    int d, backward;
    int made; /* whether there was memory */
    long given_size, width;
    long step, until; /* the next step, and the end of the block whose inputs were multiplied */
    long active;      /* lanes that have the next step */
    float *given, *of_step; /* what the inputs of a block give, and those of the next step */
    float *memory;          /* [lanes][width]: the cells' states */
    float *unwanted;        /* [lanes][hidden]: for states that nobody reads */
    uint8_t *states;        /* [2][lanes][width]: before a step and after it, in turns */
    uint8_t *before, *after;
    uint8_t *bytes;         /* [STEPS_AT_ONCE][input_bytes] */
    int32_t *products;      /* of one panel */
    float *out[MOST_LANES];
    uint8_t poisoned[MOST_LANES];
    struct Place reads[MOST_LANES], writes[MOST_LANES];
} __attribute__((aligned(APART)));

/* How many lanes have this step, of those that had the step before it. */
static long running_at(const struct Batch *batch, long step, long lanes)
{
    while (lanes && batch->steps_of[lanes - 1] <= step) lanes--;
    return lanes;
}

/* Moves a lane to its first row, or to the next. Returns the row's first step in the run's direction. */
static long next_row(const struct Run *run, struct Place *place, long lane)
{
    place->row = place->row < 0 ? run->batch->first[lane] : run->batch->next[place->row];
    place->left = length_of(run->batch, place->row);
    return run->backward ? place->left - 1 : 0;
}

static void begin(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const long lanes = run->batch->lanes, width = layer->panels * layer->cells->lanes;
    run->backward = run->d == 1 || layer->backward;
    run->width = width;
    run->given_size = width * layer->gates;
    run->given = room(STEPS_AT_ONCE * run->given_size * sizeof *run->given);
    run->memory = room(lanes * width * sizeof *run->memory);
    run->unwanted = room(lanes * layer->hidden * sizeof *run->unwanted);
    run->states = room(2 * lanes * width + ALIGNMENT); /* tiles read past a row */
    run->bytes = room(STEPS_AT_ONCE * layer->input_bytes);
    run->products = room(STEPS_AT_ONCE * 4 * layer->cells->lanes * sizeof *run->products);
    run->made = run->given && run->memory && run->unwanted && run->states && run->bytes && run->products;
    if (!run->made) return;
    run->before = run->states;
    run->after = run->states + lanes * width;
    for (long lane = 0; lane < lanes; lane++) {
        run->reads[lane] = run->writes[lane] = (struct Place){.row = -1};
        run->out[lane] = run->unwanted + lane * layer->hidden;
    }
    run->active = lanes;
    run->step = run->until = 0;
}

/* Multiplies the inputs of the next block: as many steps of all lanes as there is room for. */
static void read_block(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const struct Direction *direction = &layer->directions[run->d];
    const long step_of_x = batch->rows * layer->inputs, size = run->given_size;
    const float *inputs[STEPS_AT_ONCE] = {0};
    float units[STEPS_AT_ONCE];
    long count = 0;
    for (long running = run->active; running && count + running <= STEPS_AT_ONCE;) {
        for (long lane = 0; lane < running; lane++) {
            struct Place *place = &run->reads[lane];
            if (!place->left) {
                const long start = next_row(run, place, lane);
                place->x = batch->x + start * step_of_x + place->row * layer->inputs;
            }
            inputs[count++] = place->x;
            place->left--;
            if (place->left) place->x += run->backward ? -step_of_x : step_of_x;
        }
        running = running_at(batch, ++run->until, running);
    }
    run->of_step = run->given;
    if (!layer->input_bytes) {
        layer->cells->float_input(layer, direction, count, inputs, run->given);
        return;
    }
    layer->cells->integer_input(layer, direction, count, inputs, run->bytes, units, run->products, run->given);
    for (long i = 0; i < count; i++)
        for (long j = 0; units[i] != units[i] && j < size; j++) run->given[i * size + j] = NAN;
}

/* Prepares a lane for its next step. */
static void prepare(struct Run *run, long lane)
{
    const struct Batch *batch = run->batch;
    struct Place *place = &run->writes[lane];
    if (!place->left) {
        const long start = next_row(run, place, lane);
        run->poisoned[lane] = 0;
        memset(run->before + lane * run->width, 127, run->width);
        memset(run->memory + lane * run->width, 0, run->width * sizeof *run->memory);
        if (batch->y)
            run->out[lane] = batch->y + start * batch->y_step + run->d * batch->y_direction + place->row * batch->y_row;
    } else if (batch->y) {
        run->out[lane] += run->backward ? -batch->y_step : batch->y_step;
    }
    /* A state that is not a number has no byte: it makes all of the row's next step so. */
    float *of_lane = run->of_step + lane * run->given_size;
    for (long j = 0; run->poisoned[lane] && j < run->given_size; j++) of_lane[j] = NAN;
}

/* Computes the steps that are left; ends early if the core is wanted and `may_stop`. */
static void go_on(struct Run *run, int may_stop)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    while (run->active) {
        if (may_stop && core_is_wanted()) return;
        let_others_run();
        if (run->step == run->until) read_block(run);
        for (long lane = 0; lane < run->active; lane++) prepare(run, lane);
        layer->cells->step(layer, &layer->directions[run->d], run->active, run->step == 0, run->before, run->of_step,
                           run->products, run->memory, run->out, run->after, run->poisoned);
        run->of_step += run->active * run->given_size;
        uint8_t *swapped = run->before;
        run->before = run->after;
        run->after = swapped;
        for (long lane = 0; lane < run->active; lane++) {
            const long place = (run->d * batch->rows + run->writes[lane].row) * layer->hidden;
            if (--run->writes[lane].left) continue;
            give(batch->y_h, place, run->out[lane], layer->hidden);
            give(batch->y_c, place, run->memory + lane * run->width, layer->hidden);
        }
        run->active = running_at(batch, ++run->step, run->active);
    }
}

static void end(struct Run *run)
{
    free(run->given);
    free(run->memory);
    free(run->unwanted);
    free(run->states);
    free(run->bytes);
    free(run->products);
}

#include "_two_directions.h"

/* Zeros where no row has a step, and the last states of rows without one. */
static void clear(const struct Layer *layer, const struct Batch *batch)
{
    const long hidden = layer->hidden;
    for (long row = 0; row < batch->rows; row++)
        for (long d = 0; d < layer->count; d++) {
            const long length = length_of(batch, row), place = (d * batch->rows + row) * hidden;
            const long start = d * batch->y_direction + row * batch->y_row;
            for (long step = length; batch->y && layer->zeros && step < batch->steps; step++)
                memset(batch->y + start + step * batch->y_step, 0, hidden * sizeof *batch->y);
            if (!length && batch->y_h) memset(batch->y_h + place, 0, hidden * sizeof *batch->y_h);
            if (!length && batch->y_c) memset(batch->y_c + place, 0, hidden * sizeof *batch->y_c);
        }
}

/* ---- Onnxruntime's side. ---- */

/* The inputs: those of ONNX's LSTM and GRU, with the units of the weights behind them. Weights of inputs are floats
 * `[directions, gates * hidden, inputs]` without units, or bytes `[directions * gates * hidden, inputs]` with them.
 */
enum { X, W, W_SCALES, R, R_SCALES, B, LENGTHS, INPUTS };

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

static OrtStatus *create(int gates, const OrtKernelInfo *info, void **kernel)
{
    char name[16] = "forward";
    int64_t w[3], r[2], b[2] = {0, 0};
    const float *w_scales = NULL, *r_scales = NULL, *floats = NULL, *biases = NULL;
    const int8_t *weights = NULL, *of_states = integers(info, R, 0, r, &r_scales);
    if (!of_states) return status(ORT_FAIL, "no constant weights of at most 63 with a scale each");
    if (has_input(info, W_SCALES)) {
        if (!(weights = integers(info, W, 0, w + 1, &w_scales)))
            return status(ORT_FAIL, "no constant weights of at most 63 with a scale each");
    } else if (!(floats = constant(info, W, w, 3))) {
        return status(ORT_FAIL, "weights that are not constant");
    }
    if (has_input(info, B) && !(biases = constant(info, B, b, 2))) return status(ORT_FAIL, "biases that are not constant");
    if (!text_of(info, "direction", name, sizeof name)) return status(ORT_FAIL, "an unknown direction");
    const int both = !strcmp(name, "bidirectional"), backward = !strcmp(name, "reverse");
    if (!both && !backward && strcmp(name, "forward")) return status(ORT_FAIL, "an unknown direction");
    const int64_t order = whole(info, "order", DIRECTIONS_SECOND);
    if (order < DIRECTIONS_SECOND || order > ROWS_FIRST) return status(ORT_FAIL, "an unknown order of its output");
    const int count = both ? 2 : 1;
    const int64_t hidden = r[1], outputs = gates * hidden;
    const int64_t rows_of_w = floats ? w[0] * w[1] : w[1];
    if (hidden < 1 || r[0] != count * outputs || rows_of_w != count * outputs || (floats && w[0] != count) || w[2] < 1 ||
        w[2] > MOST_INPUTS || hidden > MOST_INPUTS || (biases && (b[0] != count || b[1] != 2 * outputs)))
        return status(ORT_FAIL, "weights that do not fit each other");

    struct Layer *layer = calloc(1, sizeof *layer);
    if (!layer) return status(ORT_FAIL, "no memory");
    layer->gates = gates;
    layer->count = count;
    layer->backward = backward;
    layer->order = order;
    layer->zeros = whole(info, "zeros", 1) != 0;
    layer->inputs = w[2];
    layer->hidden = hidden;
    layer->cells = chosen;
    layer->panels = (hidden + chosen->lanes - 1) / chosen->lanes;
    layer->input_bytes = floats ? 0 : (w[2] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const struct Outputs places = {layer->panels, gates, chosen->lanes, chosen->groups_at_once, hidden, 1};
    for (int d = 0; d < count; d++) {
        struct Direction *direction = &layer->directions[d];
        int made = pack_integers(&places, &direction->states, of_states + d * outputs * hidden, hidden, 1,
                                 r_scales + d * outputs, hidden, 1.0f / 127.0f) &&
                   pack_biases(layer, direction, biases ? biases + d * b[1] : NULL);
        if (made && weights)
            made = pack_integers(&places, &direction->inputs, weights + d * outputs * w[2], w[2], 1,
                                 w_scales + d * outputs, w[2], 1.0f);
        if (made && floats) made = !!(direction->float_inputs = pack_floats(layer, floats + d * outputs * w[2]));
        if (!made) {
            destroy(layer);
            return status(ORT_FAIL, "no memory");
        }
    }
    *kernel = layer;
    return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const struct Layer *layer = kernel;
    int good = 1;
    int64_t x[3], lengths[1];
    struct Batch batch = {0};
    batch.x = input(context, X, x, 3, &good);
    batch.lengths = input(context, LENGTHS, lengths, 1, &good);
    if (!good || !batch.x || x[2] != layer->inputs || (batch.lengths && lengths[0] != x[1]))
        return status(ORT_INVALID_ARGUMENT, "the inputs' shapes do not fit the weights or each other");
    batch.steps = x[0];
    batch.rows = x[1];
    for (long row = 0; batch.lengths && row < batch.rows; row++)
        if (batch.lengths[row] < 0 || batch.lengths[row] > batch.steps)
            return status(ORT_INVALID_ARGUMENT, "a length is not between 0 and the number of steps");

    const long of_step = layer->count * layer->hidden;
    const int64_t all[][4] = {
        {x[0], layer->count, x[1], layer->hidden}, {x[0], x[1], of_step, 0}, {x[1], x[0], of_step, 0}};
    const int64_t last[] = {layer->count, x[1], layer->hidden};
    const int plain = layer->order == DIRECTIONS_SECOND;
    batch.y_direction = plain ? batch.rows * layer->hidden : layer->hidden;
    batch.y_row = plain ? layer->hidden : layer->order == STEPS_FIRST ? of_step : batch.steps * of_step;
    batch.y_step = layer->order == ROWS_FIRST ? of_step : batch.rows * of_step;
    OrtStatus *error = output(context, 0, all[layer->order], plain ? 4 : 3, &batch.y);
    if (!error) error = output(context, 1, last, 3, &batch.y_h);
    if (!error && layer->gates == 4) error = output(context, 2, last, 3, &batch.y_c);
    if (error) return error;
    batch.order = malloc((batch.rows + batch.steps + 1) * sizeof *batch.order);
    batch.next = malloc((batch.rows + 1) * sizeof *batch.next);
    int made = batch.order && batch.next;
    if (made) {
        sort(&batch);
        assign(&batch);
        clear(layer, &batch);
        long steps = 0;
        for (long lane = 0; lane < batch.lanes; lane++) steps += batch.steps_of[lane];
        made = run_directions(layer, &batch, steps);
    }
    free(batch.order);
    free(batch.next);
    return made ? NULL : status(ORT_FAIL, "no memory");
}

enum { FACTOR, WEIGHTS, SCALES, FACTORS }; /* its inputs; weights are bytes `[inputs, outputs]` */
enum { MOST_DIMENSIONS = 8 };

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
    if (!matrix) return status(ORT_FAIL, "no memory");
    matrix->inputs = size[0];
    matrix->outputs = size[1];
    matrix->cells = chosen;
    matrix->panels = (size[1] + 4 * chosen->lanes - 1) / (4 * chosen->lanes);
    matrix->input_bytes = (size[0] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const struct Outputs places = {matrix->panels, 4, chosen->lanes, chosen->groups_at_once, size[1], 0};
    if (!pack_integers(&places, &matrix->product, weights, 1, size[1], scales, size[0], 1.0f)) {
        destroy_matrix(matrix);
        return status(ORT_FAIL, "no memory");
    }
    *kernel = matrix;
    return NULL;
}

static OrtStatus *compute_matrix(void *kernel, OrtKernelContext *context)
{
    const struct Matrix *matrix = kernel;
    int64_t dimensions[MOST_DIMENSIONS];
    size_t count = 0;
    const float *x = any_shape(context, FACTOR, dimensions, MOST_DIMENSIONS, &count);
    if (!x || !count || dimensions[count - 1] != matrix->inputs)
        return status(ORT_INVALID_ARGUMENT, "the input's shape does not fit the weights");
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
    return made ? NULL : status(ORT_FAIL, "no memory");
}

/* The operators, as onnxruntime asks for them. */

static int input_type(const OrtCustomOp *op, size_t index)
{
    return (void)op, index == LENGTHS ? ORT_INT32 : index == R ? ORT_INT8 : index == W ? ORT_ANY_TYPE : ORT_FLOAT;
}
static size_t inputs(const OrtCustomOp *op) { return (void)op, INPUTS; }
static int input_presence(const OrtCustomOp *op, size_t index)
{
    return (void)op, index == W_SCALES || index >= B ? ORT_OPTIONAL : ORT_REQUIRED;
}
CREATE(lstm, 4)
CREATE(gru, 3)
static const char *matrix_name(const OrtCustomOp *op) { return (void)op, "MatMul"; }
static int matrix_type(const OrtCustomOp *op, size_t index) { return (void)op, index == WEIGHTS ? ORT_INT8 : ORT_FLOAT; }
static size_t matrix_inputs(const OrtCustomOp *op) { return (void)op, FACTORS; }

static const OrtCustomOp LSTM = OPERATOR(lstm_name, inputs, input_type, input_presence, three_outputs, optional,
                                         create_lstm, compute, destroy);
static const OrtCustomOp GRU = OPERATOR(gru_name, inputs, input_type, input_presence, two_outputs, optional, create_gru,
                                        compute, destroy);
static const OrtCustomOp MATRIX = OPERATOR(matrix_name, matrix_inputs, matrix_type, required, one_output, required,
                                           create_matrix, compute_matrix, destroy_matrix);

static OrtStatus *add(OrtSessionOptions *options)
{
    static OrtCustomOpDomain *domain;
    return add_domain(options, &domain, "lengthwise.integer", (const OrtCustomOp *[]){&LSTM, &GRU, &MATRIX, NULL});
}

const struct Kernels integer_kernels = {"int8", instruction_set, choose, chosen_set, add};
