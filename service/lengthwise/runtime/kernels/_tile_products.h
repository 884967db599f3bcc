/* Products in tiles, for an instruction set that has them; `_integer_cells.h` includes it, and `_tiles.h` says what the
 * macros are. Tiles 0 to 3 have sums, the others what is multiplied.
 */

/* Gives the tiles their shapes for the products of so many rows, and so turns them on. Blocks of at most 32 rows have the
 * same shape: of the last one, a row may be computed that nobody has. */
INLINE void NAMED(shape)(long count)
{
    const long rows = rows_of_block(count), lower = rows - TILE_ROWS, upper = lower > 0 ? TILE_ROWS : rows;
    struct TileShapes shapes = {.palette = 1};
    for (int tile = 0; tile < 4; tile++) shape_tile(&shapes, tile, lower > 0 && tile > 1 ? lower : upper, 4 * LANES);
    for (int tile = 5; tile < 8; tile++) shape_tile(&shapes, tile, TILE_ROWS, 4 * LANES);
    shape_tile(&shapes, 4, upper, 4 * TILE_GROUPS);
    if (lower > 0) shape_tile(&shapes, 5, lower, 4 * TILE_GROUPS);
    SHAPE_TILES(&shapes);
}

/* The products of at most 16 rows with all gates at once. */
INLINE void NAMED(few_in_tiles)(const int gates, const uint8_t *bytes, long stride, long groups, const int8_t *weights,
                                const int32_t *offsets, Integers *sums)
{
    const long one = 4 * LANES, all = gates * one;
    LOAD_TILE(0, offsets, 0);
    LOAD_TILE(1, offsets + LANES, 0);
    LOAD_TILE(2, offsets + 2 * LANES, 0);
    if (gates == 4) LOAD_TILE(3, offsets + 3 * LANES, 0);
    for (long k = 0; k < groups; k += TILE_GROUPS, weights += TILE_GROUPS * all) {
        LOAD_TILE(4, bytes + 4 * k, stride);
        LOAD_TILE(5, weights, all);
        DOT_TILES(0, 4, 5);
        LOAD_TILE(6, weights + one, all);
        DOT_TILES(1, 4, 6);
        LOAD_TILE(7, weights + 2 * one, all);
        DOT_TILES(2, 4, 7);
        if (gates == 4) {
            LOAD_TILE(5, weights + 3 * one, all);
            DOT_TILES(3, 4, 5);
        }
    }
    STORE_TILE(0, sums, 4 * one);
    STORE_TILE(1, sums + 1, 4 * one);
    STORE_TILE(2, sums + 2, 4 * one);
    if (gates == 4) STORE_TILE(3, sums + 3, 4 * one);
}

/* The products of 17 to 32 rows with one gate, or with two. */
INLINE void NAMED(many_in_tiles)(const int gates, const int two, const uint8_t *bytes, long stride, long groups,
                                 const int8_t *weights, const int32_t *offsets, Integers *sums)
{
    const long one = 4 * LANES, all = gates * one;
    LOAD_TILE(0, offsets, 0);
    LOAD_TILE(2, offsets, 0);
    if (two) {
        LOAD_TILE(1, offsets + LANES, 0);
        LOAD_TILE(3, offsets + LANES, 0);
    }
    for (long k = 0; k < groups; k += TILE_GROUPS, weights += TILE_GROUPS * all) {
        LOAD_TILE(4, bytes + 4 * k, stride);
        LOAD_TILE(6, weights, all);
        DOT_TILES(0, 4, 6);
        LOAD_TILE(5, bytes + TILE_ROWS * stride + 4 * k, stride);
        DOT_TILES(2, 5, 6);
        if (two) {
            LOAD_TILE(7, weights + one, all);
            DOT_TILES(1, 4, 7);
            DOT_TILES(3, 5, 7);
        }
    }
    STORE_TILE(0, sums, 4 * one);
    STORE_TILE(2, sums + 4 * TILE_ROWS, 4 * one);
    if (two) {
        STORE_TILE(1, sums + 1, 4 * one);
        STORE_TILE(3, sums + 4 * TILE_ROWS + 1, 4 * one);
    }
}

/* As `dot_products`, for the number of rows that the tiles have their shapes for. */
INLINE void NAMED(tile_products)(const int gates, long count, const uint8_t *bytes, long stride, long groups,
                                 const int8_t *weights, const int32_t *offsets, Integers *sums)
{
    const long rows = rows_of_block(count);
    for (long first = 0; first < count; first += rows, bytes += rows * stride, sums += 4 * rows) {
        if (rows <= TILE_ROWS) {
            NAMED(few_in_tiles)(gates, bytes, stride, groups, weights, offsets, sums);
            continue;
        }
        NAMED(many_in_tiles)(gates, 1, bytes, stride, groups, weights, offsets, sums);
        NAMED(many_in_tiles)(gates, gates == 4, bytes, stride, groups, weights + 8 * LANES, offsets + 2 * LANES, sums + 2);
    }
}
