/* Both directions of a recurrent layer over a batch: at once where a core is idle, else one after the other.
 *
 * Included by each part of the library, which has `struct Run`, `begin`, `go_on` and `end` for one direction, and
 * WORTH_A_CORE: the products of one direction from which on it may run in another thread, some 20 us of work.
 */

/* What a helper does: as much of a run as it may. */
static void help(void *argument)
{
    struct Run *run = argument;
    begin(run);
    if (run->made) go_on(run, 1);
}

/* Runs all directions of a batch of so many valid steps. 0 where there is no memory. */
static int run_directions(const struct Layer *layer, const struct Batch *batch, long steps)
{
    struct Run runs[2] = {{.layer = layer, .batch = batch}, {.layer = layer, .batch = batch, .d = 1}};
    const long products = steps * layer->gates * layer->hidden * (layer->hidden + layer->inputs);
    const double asked_at = seconds_of(CLOCK_MONOTONIC);
    struct Helper *helper = layer->count == 2 && products >= WORTH_A_CORE ? ask_for_help(help, &runs[1]) : NULL;
    begin(&runs[0]);
    if (runs[0].made) go_on(&runs[0], 0);
    if ((!helper || !await_help(helper, asked_at)) && layer->count == 2) begin(&runs[1]);
    if (layer->count == 2 && runs[1].made) go_on(&runs[1], 0);
    int made = 1;
    for (int d = 0; d < layer->count; d++) {
        made = made && runs[d].made;
        end(&runs[d]);
    }
    return made;
}
