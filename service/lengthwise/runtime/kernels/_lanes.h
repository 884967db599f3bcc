/* A batch in a recurrent layer: which rows are computed side by side, and the run of each direction. `_layers.h` includes it.
 *
 * A few lanes compute the rows: a row that ends gives its lane to the next one, so that nearly all lanes are used until the
 * end, whatever the mix of lengths. Padding is neither computed nor read, and a row's bits do not depend on the others.
 */
#define MOST_LANES 32
#define WORTH_A_CORE (1L << (IN_INTEGERS ? 22 : 20)) /* products of a direction that take another thread some 20 us */

/* A batch as a layer sees it. */
struct Batch {
    long steps, rows, packed; /* the longest row; and packed steps, if they are */
    const float *x;         /* [steps][rows][inputs], or packed */
    const int32_t *lengths; /* [rows], each 0 to steps; NULL where all are `steps` */
    long *begins;           /* [rows]: where the row begins in `x`, in steps */
    long x_step;            /* from a step of a row to its next, in steps of `x` */
    const float *initial_h, *initial_c; /* [directions][rows][hidden], or NULL */
    float *y;               /* of every step, direction and row [hidden], or packed; or NULL */
    long y_direction, y_row, y_step; /* from one direction, begin or step to the next, in floats */
    int zeros;              /* whether `y` is read at padding */
    float *y_h, *y_c;       /* [directions][rows][hidden], or NULL; `y_h` takes the states where there is no `y` */
    int first_apart;        /* whether the first step of each row is computed in no lane: no state comes before it */
    long *order;            /* [rows]: the rows, longest first; behind them room for [steps + 1], `next` and `begins` */
    long *next;             /* [rows]: the row that gets a row's lane when it ends; -1 if none */
    long lanes;
    long first[MOST_LANES], steps_of[MOST_LANES]; /* of each lane: its first row, and its steps; most steps first */
};

/* Where a lane is: its row, the step of it, and how many are left behind that. */
struct Place {
    long row, step, left;
};

/* The run of one direction over a batch, which another thread may begin and this one finish. */
struct Run {
    const struct Layer *layer;
    const struct Batch *batch;
    int d, begun;
    int made;   /* whether there was memory */
    long ahead; /* from one step to the next: 1 or -1 */
    long step, until; /* the next step of lanes, and the end of the block whose inputs were multiplied */
    long active;      /* lanes that have the next step */
    float *given, *of_step; /* what the inputs of a block give, and those of the next step */
    float *memory;          /* [rows][width]: the cells' states */
    struct Place reads[MOST_LANES], runs[MOST_LANES];
    /* In integers: */
    uint8_t *states;         /* [2][lanes][width]: before a step and after it, in turns */
    uint8_t *before, *after;
    uint8_t *bytes;          /* [STEPS_AT_ONCE][input_bytes] */
    int32_t *products;       /* of one panel */
    uint8_t poisoned[MOST_LANES]; /* whether a state is not a number */
} __attribute__((aligned(APART)));

/* What differs with the arithmetic: */

/* How many lanes are good for so many valid steps, and such a longest row. */
static long lanes_for(const struct Layer *layer, long valid, long longest);
/* Prepares a run before its first step in lanes; 0 where there is no memory. */
static int prepare(struct Run *run);
/* Multiplies the inputs of some steps, whosesoever they are, into `given`. */
static void multiply_inputs(struct Run *run, long count, const float *const *inputs);
/* Computes the next step of all active lanes. */
static void run_step(struct Run *run);

static long length_of(const struct Batch *batch, long row) { return batch->lengths ? batch->lengths[row] : batch->steps; }

/* How many steps of a row run in a lane. */
static long steps_in_lane(const struct Batch *batch, long row)
{
    const long length = length_of(batch, row);
    return length && batch->first_apart ? length - 1 : length;
}

/* Sorts the rows by length, longest first. */
static void sort(struct Batch *batch)
{
    long *next = batch->order + batch->rows; /* [steps + 1]: the next place of each length */
    memset(next, 0, (batch->steps + 1) * sizeof *next);
    for (long row = 0; row < batch->rows; row++) next[length_of(batch, row)]++;
    for (long length = batch->steps, place = 0; length >= 0; length--) {
        const long count = next[length];
        next[length] = place;
        place += count;
    }
    for (long row = 0; row < batch->rows; row++) batch->order[next[length_of(batch, row)]++] = row;
}

/* Gives each sorted row a lane: the longest first, each to the lane that is free first. Returns the steps of all lanes. */
static long fill_lanes(const struct Layer *layer, struct Batch *batch)
{
    long valid = 0, all = 0, last[MOST_LANES];
    for (long row = 0; row < batch->rows; row++) valid += length_of(batch, row);
    const long lanes = batch->rows ? lanes_for(layer, valid, length_of(batch, batch->order[0])) : 0;
    for (long r = 0; r < batch->rows; r++) {
        const long row = batch->order[r], steps = steps_in_lane(batch, row);
        if (!steps) break; /* as of all that follow */
        long lane = batch->lanes;
        if (lane < lanes) {
            batch->first[batch->lanes++] = row;
        } else {
            lane = 0;
            for (long other = 1; other < lanes; other++)
                if (batch->steps_of[other] < batch->steps_of[lane]) lane = other;
            batch->next[last[lane]] = row;
        }
        batch->next[row] = -1;
        batch->steps_of[lane] += steps;
        last[lane] = row;
        all += steps;
    }
    for (long i = 1; i < batch->lanes; i++) /* most steps first, so that the lanes that still run stand together */
        for (long j = i; j && batch->steps_of[j] > batch->steps_of[j - 1]; j--) {
            const long row = batch->first[j], steps = batch->steps_of[j];
            batch->first[j] = batch->first[j - 1], batch->steps_of[j] = batch->steps_of[j - 1];
            batch->first[j - 1] = row, batch->steps_of[j - 1] = steps;
        }
    return all;
}

/* How many lanes have this step, of those that had the step before it. */
static long running_at(const struct Batch *batch, long step, long lanes)
{
    while (lanes && batch->steps_of[lanes - 1] <= step) lanes--;
    return lanes;
}

/* Moves a lane to its next step. Returns whether a row begins with it. */
static int advance(const struct Run *run, long lane, struct Place *place)
{
    const struct Batch *batch = run->batch;
    const int begins = !place->left;
    if (begins) {
        place->row = place->row < 0 ? batch->first[lane] : batch->next[place->row];
        place->left = steps_in_lane(batch, place->row);
        place->step = run->ahead < 0 ? place->left - 1 : length_of(batch, place->row) - place->left;
    } else {
        place->step += run->ahead;
    }
    place->left--;
    return begins;
}

static const float *input_at(const struct Run *run, long row, long step)
{
    return run->batch->x + (run->batch->begins[row] + step * run->batch->x_step) * run->layer->inputs;
}

/* Where the state of a row after a step goes. */
static float *output_at(const struct Run *run, long row, long step)
{
    const struct Batch *batch = run->batch;
    if (!batch->y) return batch->y_h + (run->d * batch->rows + row) * run->layer->hidden;
    return batch->y + run->d * batch->y_direction + batch->begins[row] * batch->y_row + step * batch->y_step;
}

static void begin(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const long rows = batch->rows, hidden = layer->hidden, width = layer->width;
    const float *before = layer->gates == 4 ? batch->initial_c : batch->initial_h;
    run->begun = 1;
    run->ahead = run->d == 1 || layer->backward ? -1 : 1;
    run->given = floats(STEPS_AT_ONCE * layer->given);
    run->memory = floats(rows * width);
    if (!run->given || !run->memory) return;
    memset(run->memory, 0, rows * width * sizeof *run->memory);
    for (long row = 0; row < rows; row++) {
        if (before) memcpy(run->memory + row * width, before + (run->d * rows + row) * hidden, hidden * sizeof *before);
        for (long step = length_of(batch, row); batch->zeros && step < batch->steps; step++)
            memset(output_at(run, row, step), 0, hidden * sizeof *batch->y);
    }
    for (long lane = 0; lane < batch->lanes; lane++) run->reads[lane].row = run->runs[lane].row = -1;
    run->active = batch->lanes;
    run->made = prepare(run);
}

/* Multiplies the inputs of the next block: as many steps of all lanes as there is room for. */
static void read_block(struct Run *run)
{
    const float *inputs[STEPS_AT_ONCE];
    long count = 0;
    for (long running = run->active; running && count + running <= STEPS_AT_ONCE;) {
        for (long lane = 0; lane < running; lane++) {
            advance(run, lane, &run->reads[lane]);
            inputs[count++] = input_at(run, run->reads[lane].row, run->reads[lane].step);
        }
        running = running_at(run->batch, ++run->until, running);
    }
    run->of_step = run->given;
    multiply_inputs(run, count, inputs);
}

/* Computes the steps that are left; ends early if the core is wanted and `may_stop`. */
static void go_on(void *part, int may_stop)
{
    struct Run *run = part;
    if (!run->begun) begin(run);
    while (run->made && run->active) {
        if (may_stop && core_is_wanted()) return;
        let_others_run();
        if (run->step == run->until) read_block(run);
        run_step(run);
        run->of_step += run->active * run->layer->given;
        run->active = running_at(run->batch, ++run->step, run->active);
    }
}

/* Gives a row's last state, where somebody wants it (`all`); 0 without one. */
static void give(float *all, long place, const float *state, long hidden)
{
    if (all && !state) memset(all + place, 0, hidden * sizeof *all);
    else if (all && state != all + place) memcpy(all + place, state, hidden * sizeof *all);
}

/* Gives the last states, and frees the memory. Returns whether there was enough.
 *
 * A row without steps keeps its first states where steps are packed; else it gets zeros, as from onnxruntime's own layers. */
static int end(struct Run *run)
{
    const struct Batch *batch = run->batch;
    const long hidden = run->layer->hidden;
    const float *first_h = run->layer->packed ? batch->initial_h : NULL;
    for (long row = 0; run->made && row < batch->rows; row++) {
        const long place = (run->d * batch->rows + row) * hidden, length = length_of(batch, row);
        const float *without = first_h ? first_h + place : NULL;
        give(batch->y_h, place, length ? output_at(run, row, run->ahead < 0 ? 0 : length - 1) : without, hidden);
        give(batch->y_c, place, length || run->layer->packed ? run->memory + row * run->layer->width : NULL, hidden);
    }
    free(run->given);
    free(run->memory);
    free(run->states);
    free(run->bytes);
    free(run->products);
    return run->made;
}

/* Runs all directions; 0 where there is no memory. */
static int run_layer(const struct Layer *layer, struct Batch *batch)
{
    sort(batch);
    const long products = fill_lanes(layer, batch) * layer->gates * layer->hidden * (layer->hidden + layer->inputs);
    struct Run runs[2] = {{.layer = layer, .batch = batch}, {.layer = layer, .batch = batch, .d = 1}};
    if (layer->count == 1) {
        go_on(&runs[0], 0);
        return end(&runs[0]);
    }
    do_both(go_on, &runs[0], &runs[1], products >= WORTH_A_CORE);
    const int made = end(&runs[0]);
    return end(&runs[1]) && made;
}
