/* Tiles: eight registers of at most 16 rows of 64 bytes, which one instruction multiplies (Intel AMX).
 *
 * By SET the macros are the processor's own instructions, or functions for the same in C, with which tests run everywhere
 * what stands around them.
 */
#define SHAPE_TILES NAMED(SHAPE_TILES)
#define LOAD_TILE NAMED(LOAD_TILE)
#define DOT_TILES NAMED(DOT_TILES)
#define STORE_TILE NAMED(STORE_TILE)
#define SHAPE_TILES_amx(shapes) do { MEMORY_IS_READ; _tile_loadconfig(shapes); } while (0)
#define LOAD_TILE_amx _tile_loadd
#define DOT_TILES_amx _tile_dpbusd
#define STORE_TILE_amx _tile_stored
#define RELEASE_TILES_amx _tile_release
#define TILE_ROWS 16
#define TILE_GROUPS 16 /* of four bytes: a row of a tile */

/* What `ldtilecfg` reads: 64 bytes. */
struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
};

static inline void shape_tile(struct TileShapes *shapes, int tile, long rows, long bytes)
{
    shapes->rows[tile] = rows;
    shapes->bytes[tile] = bytes;
}

/* Whether tiles are faster than vectors for so many rows. To turn tiles on and off takes some 250 cycles; measured on family
 * 6 model 167, the fewest rows are 9 with 64 columns, 6 with 128, 4 with 256. */
static inline int worth_tiles(long rows, long groups) { return groups && rows >= 3 + 96 / groups; }

/* How many rows are multiplied at once: as few as can be in as few blocks of at most 32 as can be. */
static inline long rows_of_block(long count)
{
    const long blocks = (count + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS);
    return (count + blocks - 1) / blocks;
}

/* gcc's functions do not tell it that an instruction reads memory: what was stored before might be stored later. */
#define MEMORY_IS_READ __asm__ volatile("" ::: "memory")

/* The registers of a thread, emulated. Without a shape, a register has no rows. */
static _Thread_local struct {
    struct TileShapes shapes;
    uint8_t rows[8][TILE_ROWS][4 * TILE_GROUPS];
} emulated;

static void SHAPE_TILES_amx_emulated(const struct TileShapes *shapes)
{
    memset(&emulated, 0, sizeof emulated);
    emulated.shapes = *shapes;
}

static void RELEASE_TILES_amx_emulated(void) { memset(&emulated, 0, sizeof emulated); }

static void LOAD_TILE_amx_emulated(int tile, const void *from, long stride)
{
    memset(emulated.rows[tile], 0, sizeof emulated.rows[tile]);
    for (long row = 0; row < emulated.shapes.rows[tile]; row++)
        memcpy(emulated.rows[tile][row], (const uint8_t *)from + row * stride, emulated.shapes.bytes[tile]);
}

static void STORE_TILE_amx_emulated(int tile, void *to, long stride)
{
    for (long row = 0; row < emulated.shapes.rows[tile]; row++)
        memcpy((uint8_t *)to + row * stride, emulated.rows[tile][row], emulated.shapes.bytes[tile]);
}

/* Each unsigned byte of a row of `numbers` times a signed one of `weights`, whose rows hold four of each column. */
static void DOT_TILES_amx_emulated(int sums, int numbers, int weights)
{
    const long groups = emulated.shapes.bytes[numbers] / 4, columns = emulated.shapes.bytes[sums] / 4;
    for (long row = 0; row < emulated.shapes.rows[sums]; row++) {
        int32_t sum[TILE_GROUPS];
        memcpy(sum, emulated.rows[sums][row], sizeof sum);
        for (long group = 0; group < groups; group++)
            for (long column = 0; column < columns; column++)
                for (long i = 4 * group; i < 4 * group + 4; i++)
                    sum[column] += emulated.rows[numbers][row][i] * (int8_t)emulated.rows[weights][group][4 * column + i % 4];
        memcpy(emulated.rows[sums][row], sum, sizeof sum);
    }
}
