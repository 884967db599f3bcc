/* A batch in a recurrent layer: which rows are computed side by side, and the run of each direction over them.
 * `_recurrent.c` includes it.
 */
#define MOST_TRACKS 12 /* rows that are computed side by side: two times as many as the kernels compute at once */
#define NEAR_CACHE (1L << 20) /* bytes of weights that a core's own cache holds */
#define WORTH_A_CORE (1L << 20) /* products of one direction, from which on it may run in another thread: some 20 us */

/* A batch as a layer sees it. */
struct Batch {
    long steps, rows;
    const float *x;        /* [steps][rows][inputs] */
    const int32_t *lengths; /* [rows], each 0 to steps; NULL where all are `steps` */
    const float *initial_h, *initial_c; /* [directions][rows][hidden], or NULL */
    float *y;              /* of every direction, row and step [hidden], in the layer's order */
    long y_direction, y_row, y_step; /* from one to the next, in floats */
    int zeros;             /* whether `y` is read at padding */
    float *y_h, *y_c;      /* [directions][rows][hidden], or NULL */
    long *order;           /* [rows]: the rows, longest first; behind them room for [steps + 1] */
    struct Tracks *tracks;
};

/* Which rows are computed one after the other in the same track. A row that ends hands its track to the next, so all tracks
 * are full nearly until the end, whatever the mix of lengths. The track that ends last comes first: those that have a
 * step are always the first ones.
 */
struct Tracks {
    long count;
    long *first; /* [count]: each track's first row */
    long *steps; /* [count]: how many steps each track has */
    long *next;  /* [rows]: the row after a row in its track; -1 after the last */
};

/* Where a row stands: what it reads and writes next. */
struct Cursor {
    long row; /* -1 past the last row of a track */
    long left; /* steps */
};

#include "_rows.h"

/* How many steps of a row run in tracks. Without an initial state, the first step has no product with a state, and the
 * first steps of all rows are computed together. */
static long steps_in_track(const struct Batch *batch, long row)
{
    const long length = length_of(batch, row);
    return length && !batch->initial_h ? length - 1 : length;
}

/* How many tracks a batch is computed in.
 *
 * A few are as fast as many: the kernels compute six rows at once. Twelve read the weights once for two such groups, and
 * six end together more often where the longest row has a large share of all steps.
 */
static long tracks_for(const struct Layer *layer, const struct Batch *batch)
{
    long all = 0, longest = 0;
    for (long row = 0; row < batch->rows; row++) {
        const long length = length_of(batch, row);
        all += length;
        if (length > longest) longest = length;
    }
    const int near = layer->gates * layer->hidden * layer->hidden * (long)sizeof(float) <= NEAR_CACHE;
    const long tracks = near && all / MOST_TRACKS < longest ? MOST_TRACKS / 2 : MOST_TRACKS;
    return tracks < batch->rows ? tracks : batch->rows;
}

/* Distributes the rows over tracks: the longest first, each to the track that has least. */
static void fill_tracks(struct Tracks *tracks, const struct Batch *batch, long *last)
{
    for (long track = 0; track < tracks->count; track++) {
        tracks->first[track] = -1;
        tracks->steps[track] = 0;
    }
    for (long r = 0; r < batch->rows; r++) {
        const long row = batch->order[r], steps = steps_in_track(batch, row);
        if (!steps) break;
        long least = 0;
        for (long track = 1; track < tracks->count; track++)
            if (tracks->steps[track] < tracks->steps[least]) least = track;
        if (tracks->steps[least]) tracks->next[last[least]] = row;
        else tracks->first[least] = row;
        tracks->next[row] = -1;
        last[least] = row;
        tracks->steps[least] += steps;
    }
    for (long track = 1; track < tracks->count; track++) { /* there are few */
        const long first = tracks->first[track], steps = tracks->steps[track];
        long place = track;
        for (; place && tracks->steps[place - 1] < steps; place--) {
            tracks->first[place] = tracks->first[place - 1];
            tracks->steps[place] = tracks->steps[place - 1];
        }
        tracks->first[place] = first;
        tracks->steps[place] = steps;
    }
}

/* Moves to the next step of a track: of the same row, or the first of the next. */
static void advance(struct Cursor *cursor, const struct Tracks *tracks, const struct Batch *batch)
{
    if (--cursor->left) return;
    cursor->row = tracks->next[cursor->row];
    if (cursor->row >= 0) cursor->left = steps_in_track(batch, cursor->row);
}

/* Gives one row's last state; 0 of a row without a step. Nobody may want it: then `to` is NULL. */
static void give(float *to, long place, const float *state, int ran, long hidden)
{
    if (to && ran) memcpy(to + place, state, hidden * sizeof *to);
    if (to && !ran) memset(to + place, 0, hidden * sizeof *to);
}

/* The run of one direction over a batch, which another thread may begin and this one finish. */
struct Run {
    const struct Layer *layer;
    const struct Batch *batch;
    int d;
    int made; /* whether there was memory */
    long at_once, x_stride, y_stride;
    void *pointers;        /* the memory of those below */
    float *given;          /* [at_once][panels][4][lanes]: what the inputs give to all gates */
    float *memory;         /* [rows][width]: the cells' states */
    const float **x;       /* [rows]: each row's next input */
    float **out;           /* [rows]: where its next state goes */
    const float **states;  /* [rows]: its last state */
    const float **inputs;  /* [at_once]: the inputs of a block */
    const float **states_of_step; /* [at_once]: the arguments of one step */
    float **memory_of_step, **out_of_step;
    struct Cursor *reading, *running; /* [tracks] */
    long tracks_read, tracks_run;     /* how many of them have the step that is read or run */
    long step, until;                 /* the next step, and the end of the block whose inputs were multiplied */
    float *of_step;                   /* what the inputs of the next step give */
} __attribute__((aligned(APART)));

/* The first step of every row that has one, which no state comes before. */
static void run_first_steps(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const struct Direction *direction = &layer->directions[run->d];
    const long width = layer->panels * layer->cells->lanes;
    for (long from = 0, count = 0; from < batch->rows; from += count) {
        for (count = 0; count < run->at_once && from + count < batch->rows; count++) {
            const long row = batch->order[from + count];
            if (!length_of(batch, row)) break;
            run->inputs[count] = run->x[row];
            run->x[row] += run->x_stride;
            run->memory_of_step[count] = run->memory + row * width;
            run->out_of_step[count] = run->out[row];
            run->states[row] = run->out[row];
            run->out[row] += run->y_stride;
        }
        if (!count) break;
        layer->cells->input(layer, direction, count, run->inputs, run->given);
        layer->cells->step(layer, direction, count, run->inputs, 1, run->given, run->memory_of_step, run->out_of_step);
    }
}

/* Prepares a run, and computes the first steps. */
static void begin(struct Run *run)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const struct Tracks *tracks = batch->tracks;
    const int backward = run->d == 1 || layer->backward;
    const long rows = batch->rows, hidden = layer->hidden, width = layer->panels * layer->cells->lanes;
    const long step_of_x = rows * layer->inputs, at_once = tracks->count > STEPS_AT_ONCE ? tracks->count : STEPS_AT_ONCE;
    run->at_once = at_once;
    run->x_stride = backward ? -step_of_x : step_of_x;
    run->y_stride = backward ? -batch->y_step : batch->y_step;
    void **pointers = run->pointers = malloc((3 * rows + 4 * at_once) * sizeof *pointers);
    run->given = floats(at_once * width * 4);
    run->memory = floats(rows * width);
    run->reading = malloc(2 * (tracks->count + 1) * sizeof *run->reading);
    run->made = run->given && run->memory && run->reading && pointers;
    if (!run->made) return;
    run->running = run->reading + tracks->count;
    run->x = (const float **)pointers;
    run->out = (float **)(pointers + rows);
    run->states = (const float **)(pointers + 2 * rows);
    run->inputs = (const float **)(pointers + 3 * rows);
    run->states_of_step = run->inputs + at_once;
    run->memory_of_step = (float **)(run->states_of_step + at_once);
    run->out_of_step = run->memory_of_step + at_once;
    memset(run->memory, 0, rows * width * sizeof *run->memory);
    for (long row = 0; row < rows; row++) {
        const long length = length_of(batch, row), start = backward && length ? length - 1 : 0;
        const long place = (run->d * rows + row) * hidden;
        float *y = batch->y + run->d * batch->y_direction + row * batch->y_row;
        run->x[row] = batch->x + start * step_of_x + row * layer->inputs;
        run->out[row] = y + start * batch->y_step;
        run->states[row] = batch->initial_h ? batch->initial_h + place : NULL;
        const float *before = layer->gates == 4 ? batch->initial_c : batch->initial_h;
        if (before) memcpy(run->memory + row * width, before + place, hidden * sizeof *before);
        for (long step = length; batch->zeros && step < batch->steps; step++)
            memset(y + step * batch->y_step, 0, hidden * sizeof *y);
    }
    if (!batch->initial_h) run_first_steps(run);
    for (long track = 0; track < tracks->count; track++) {
        const long row = tracks->first[track];
        const struct Cursor start = {row, row < 0 ? 0 : steps_in_track(batch, row)};
        run->reading[track] = run->running[track] = start;
    }
    run->tracks_read = run->tracks_run = tracks->count;
    run->step = run->until = 0;
}

/* Multiplies the inputs of the next block of steps. */
static void read_block(struct Run *run)
{
    const struct Batch *batch = run->batch;
    const struct Tracks *tracks = batch->tracks;
    long count = 0;
    for (; run->until < tracks->steps[0]; run->until++) {
        while (run->tracks_read && tracks->steps[run->tracks_read - 1] <= run->until) run->tracks_read--;
        if (count && count + run->tracks_read > run->at_once) break;
        for (long track = 0; track < run->tracks_read; track++) {
            const long row = run->reading[track].row;
            run->inputs[count++] = run->x[row];
            run->x[row] += run->x_stride;
            advance(&run->reading[track], tracks, batch);
        }
    }
    run->layer->cells->input(run->layer, &run->layer->directions[run->d], count, run->inputs, run->given);
    run->of_step = run->given;
}

/* Computes the steps that are left, track by track; ends early if the core is wanted and `may_stop`. */
static void go_on(struct Run *run, int may_stop)
{
    const struct Layer *layer = run->layer;
    const struct Batch *batch = run->batch;
    const struct Tracks *tracks = batch->tracks;
    const long width = layer->panels * layer->cells->lanes, most = tracks->count ? tracks->steps[0] : 0;
    for (; run->step < most; run->step++) {
        if (may_stop && core_is_wanted()) return;
        let_others_run();
        if (run->step == run->until) read_block(run);
        while (tracks->steps[run->tracks_run - 1] <= run->step) run->tracks_run--;
        const long count = run->tracks_run;
        for (long track = 0; track < count; track++) {
            const long row = run->running[track].row;
            run->states_of_step[track] = run->states[row];
            run->memory_of_step[track] = run->memory + row * width;
            run->out_of_step[track] = run->out[row];
            run->states[row] = run->out[row];
            run->out[row] += run->y_stride;
            advance(&run->running[track], tracks, batch);
        }
        layer->cells->step(layer, &layer->directions[run->d], count, run->states_of_step, 0, run->of_step,
                           run->memory_of_step, run->out_of_step);
        run->of_step += count * width * 4;
    }
}

/* Gives the last states, and frees the memory. */
static void end(struct Run *run)
{
    const struct Batch *batch = run->batch;
    const long hidden = run->layer->hidden, width = run->layer->panels * run->layer->cells->lanes;
    for (long row = 0; run->made && row < batch->rows; row++) {
        const long place = (run->d * batch->rows + row) * hidden;
        const int ran = length_of(batch, row) > 0;
        give(batch->y_h, place, run->states[row], ran, hidden);
        give(batch->y_c, place, run->memory + row * width, ran, hidden);
    }
    free(run->given);
    free(run->memory);
    free(run->reading);
    free(run->pointers);
}

#include "_two_directions.h"
