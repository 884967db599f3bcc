/* The rows of a batch by their lengths; included by each part of the library behind its `struct Batch`. */
static long length_of(const struct Batch *batch, long row) { return batch->lengths ? batch->lengths[row] : batch->steps; }

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
