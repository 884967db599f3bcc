/* Which instruction sets a part of the library has, and the one that its sessions use; included where `KNOWN`, the table
 * of `struct Cells`, stands: best first, with an empty row at the end.
 */
static const struct Cells *chosen; /* what layers are made with from now on; NULL where no set is known */

static const char *instruction_set(int place)
{
    for (const struct Cells *cells = KNOWN; cells->name; cells++)
        if (processor_has(cells->name) && !place--) return cells->name;
    return NULL;
}

static int choose(const char *set)
{
    for (const struct Cells *cells = KNOWN; cells->name; cells++)
        if (!strcmp(cells->name, set) && processor_has(set)) {
            chosen = cells;
            return 1;
        }
    return 0;
}

static const char *chosen_set(void) { return chosen ? chosen->name : NULL; }
