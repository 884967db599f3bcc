/* Reads the sequences of a JSON body: from the text to the bytes of one array, without an object per number.
 *
 * `locate` finds where the sequences stand in the body, and `read` reads them. Where they are not ordinary it returns
 * None, or, if it is asked in detail, where the first wrong steps stand, and how many there are. What it reads is what
 * the reader in Python (`validation.py`) makes of the same text, bit for bit, and what it calls wrong is what that one
 * does: tests/fuzz/json_readers.py compares them. Where it cannot tell, it returns None in any case.
 *
 * Nothing here calls itself, so the nesting of a text costs no stack. Every text ends in NUL, which is part of no
 * token: a loop that stops at any byte it does not expect never passes the end.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FLOAT32_BEYOND (0x1p128 - 0x1p103) /* the least double that becomes infinite as a float */
#define LARGEST_EXACT (1ULL << 53) /* up to here a double holds every integer */
#define MOST_DIGITS 19             /* of an integer that fits 64 bits whatever its digits are */
#define LONGEST_NUMBER 1000        /* characters */
#define MOST_TOLD 20          /* wrong steps of a sequence whose places are returned */
#define SMALL_BYTES 16384     /* what is read of most bodies fits in that many bytes, on the stack */
#define SMALL_SEQUENCES 64    /* as many sequences need no memory of their own */
#define MOST_INPUTS 8         /* sequences of one item */
#define LONG_TEXT_BYTES 262144 /* while a longer text is read other threads may run: LARGE_BODY_BYTES in Python */

#ifdef __GNUC__
#define NOT_INLINE __attribute__((noinline))
#else
#define NOT_INLINE
#endif

/* Powers of ten that a double holds exactly: one product or quotient with them is correctly rounded. */
static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define LARGEST_POWER 22

/* The first 128 bits of powers of ten, rounded down: the higher and the lower half of each. */
#define LEAST_POWER (-64)
#define MOST_POWER 38
static uint64_t POWERS_OF_TEN[MOST_POWER - LEAST_POWER + 1][2];

/* One sequence that was read. Places are in the text. */
typedef struct {
    const char *start, *end;       /* of its object, or of what else stands in its place; NULL where it is an array */
    const char *steps, *steps_end; /* the array of its steps; NULL where it has none */
    Py_ssize_t count;              /* of its steps */
    Py_ssize_t first;              /* how many numbers were read before its own */
    const char *id;                /* the text of its id, behind the quote, or NULL */
    Py_ssize_t id_bytes;           /* of that text, without the quote behind it */
    int has_escapes;               /* whether that text has a backslash */
    int has_list;                  /* whether a step is an array */
    const float *beside;           /* the numbers beside it; NULL where only Python can read them */
    const char *state;             /* the text of its state, behind the quote, or NULL */
    Py_ssize_t state_bytes;
    int64_t offset;                /* the number of steps before its own; -1 where it says none */
    Py_ssize_t faults;             /* of all steps */
    Py_ssize_t first_told, told;   /* which of the faults of the reader are its own */
} Sequence;

/* What each of several sequences of an item may be, by the name under which it stands. */
typedef struct {
    const char *name;
    Py_ssize_t name_bytes, features, vocabulary, least_steps, most_steps;
} Input;

/* A wrong step: its index, the number of its values, and where its text stands. */
typedef struct {
    Py_ssize_t place, size;
    const char *start, *end;
} Fault;

/* One call: what is wanted, and what was read so far. */
typedef struct {
    Py_ssize_t features;      /* of a step; 0 where a step is a token id */
    Py_ssize_t vocabulary;    /* token ids are below it */
    Py_ssize_t least_steps, most_steps; /* of an ordinary sequence */
    Py_ssize_t most_sequences;
    int takes_missing;        /* whether null is a missing value, NaN */
    int in_detail;            /* whether to go on where something is not ordinary */
    Input inputs[MOST_INPUTS]; /* the sequences of an item that has several: all have numbers, or all have token ids */
    Py_ssize_t input_count;    /* how many these are, which stand one behind the other in `sequences`; 0 of one sequence */
    Py_ssize_t beside;        /* how many numbers stand beside a sequence, none of them missing; -1 where Python reads them */
    float *values;            /* one of these two is used */
    int64_t *tokens;
    Py_ssize_t count, room;   /* numbers read, and that there is memory for */
    const char *end;          /* of the text that may be loaded */
    Sequence *sequences;
    Py_ssize_t sequence_count, sequence_room;
    int has_ids;              /* whether one has an id */
    int takes_states;         /* whether a state and an offset may stand beside a sequence */
    int has_more;             /* whether Python has to read a field of a sequence */
    Fault *faults;
    Py_ssize_t fault_count, fault_room;
    Py_ssize_t parts;         /* arrays, objects and strings */
    int is_out_of_memory;
    PyThreadState *released;  /* set while other threads may run */
    float small[SMALL_BYTES / sizeof(float)];
    Sequence small_sequences[SMALL_SEQUENCES];
} Reader;

/* How many entries of `sequences` an item has. */
#define OF_ITEM(reader) ((reader)->input_count ? (reader)->input_count : 1)

static inline const char *past_space(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r') p++;
    return p;
}

static inline int is_digit(char c) { return (unsigned char)(c - '0') < 10; }

/* The place behind c, where it is what comes next past white space; NULL where it is not, or p is NULL. */
static inline const char *past(const char *p, char c)
{
    if (!p) return NULL;
    p = past_space(p);
    return *p == c ? p + 1 : NULL;
}

/* The place behind the string whose text starts at p; NULL where it has no end or a character that JSON escapes. */
static const char *past_string(const char *p, int *has_escapes)
{
    *has_escapes = 0;
    const char *quote = strchr(p, '"');
    int others = 0; /* looked for in all letters at once: the text of a state has thousands */
    for (const char *q = p; quote && q < quote; q++) others |= (*q == '\\') | ((unsigned char)*q < 0x20);
    if (quote && !others) return quote + 1;
    while (*p != '"') {
        if ((unsigned char)*p < 0x20) return NULL; /* this is the end of the text, too */
        if (*p == '\\') {
            *has_escapes = 1;
            if ((unsigned char)*++p < 0x20) return NULL;
        }
        p++;
    }
    return p + 1;
}

/* The nearest double of mantissa * 10 ** exponent, or false where the first 128 bits of the power do not show it.
 *
 * Eisel and Lemire's way (Software: Practice and Experience, 2021): the power is rounded down, so the product is at
 * most `mantissa` units of its last place too small; where that could change the rounding, the answer is false.
 */
static int nearest_double(uint64_t mantissa, int exponent, double *out)
{
#ifdef __SIZEOF_INT128__
    if (mantissa == 0 || exponent < LEAST_POWER || exponent > MOST_POWER) return 0;
    const uint64_t *power = POWERS_OF_TEN[exponent - LEAST_POWER];
    int zeros = __builtin_clzll(mantissa);
    mantissa <<= zeros;
    unsigned __int128 product = (unsigned __int128)mantissa * power[0];
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    if ((high & 0x1FF) == 0x1FF && low + mantissa < mantissa) {
        unsigned __int128 further = (unsigned __int128)mantissa * power[1];
        uint64_t sum = low + (uint64_t)(further >> 64), last = (uint64_t)further;
        high += sum < low;
        if ((high & 0x1FF) == 0x1FF && sum == UINT64_MAX && last + mantissa < mantissa) return 0;
        low = sum;
    }
    int top = (int)(high >> 63);
    uint64_t rounded = high >> (top + 9); /* 54 bits: a double's 53 and the one that rounds */
    if (low == 0 && (high & 0x1FF) == 0 && (rounded & 3) == 1) return 0;
    rounded = (rounded + (rounded & 1)) >> 1;
    /* Where the binary point of 10 ** exponent stands: 217706 / 2 ** 16 is log2(10), closely enough for these. */
    int binary = ((217706 * exponent) >> 16) + 64 + 1023 - zeros - (1 ^ top);
    if (rounded >> 53) {
        rounded >>= 1;
        binary++;
    }
    uint64_t bits = (uint64_t)binary << 52 | (rounded & (LARGEST_EXACT / 2 - 1));
    memcpy(out, &bits, sizeof bits);
    return 1;
#else
    (void)mantissa, (void)exponent, (void)out;
    return 0;
#endif
}

/* Calculates `POWERS_OF_TEN`: the largest is an integer of 127 bits, and each has a tenth of the one before.
 *
 * The numbers are shifted to the left by 352 bits, so that nothing of the 128 highest is lost.
 */
static void fill_powers_of_ten(void)
{
    uint32_t digits[16] = {0, 0x4b3b4ca8, 0x5a86c47a, 0x098a2240}; /* 10 ** 38, the highest 32 bits first */
    for (int power = MOST_POWER; power >= LEAST_POWER; power--) {
        uint64_t *halves = POWERS_OF_TEN[power - LEAST_POWER], rest = 0;
        int first = 0, shift = 0;
        while (!digits[first]) first++;
        while (!(digits[first] << shift >> 31)) shift++;
        for (int half = 0; half < 2; half++, first += 2) {
            halves[half] = ((uint64_t)digits[first] << 32 | digits[first + 1]) << shift;
            if (shift) halves[half] |= digits[first + 2] >> (32 - shift);
        }
        for (int i = 0; i < 16; i++) {
            rest = rest << 32 | digits[i];
            digits[i] = (uint32_t)(rest / 10);
            rest %= 10;
        }
    }
}

/* A double that is not below 0 as a float, with a minus or without: without a branch, as nobody can predict signs. */
static inline float with_sign(double value, int negative)
{
    float number = (float)value;
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits |= (uint32_t)negative << 31;
    memcpy(&number, &bits, sizeof bits);
    return number;
}

/* The float of the number from start to end, whose digits and exponent are parsed; false where it is beyond float32.
 *
 * Apart from `read_value`, which would be slower with this in its midst.
 */
static NOT_INLINE int read_long_float(const char *start, const char *end, Py_ssize_t digits, uint64_t mantissa,
                                      int exponent, float *out)
{
    double value;
    if (end - start > LONGEST_NUMBER) return 0;
    /* Zeros at the front are no digits of the mantissa: 0.0006369616873214543 has 16. */
    for (const char *p = start; digits > MOST_DIGITS && (*p == '-' || *p == '.' || *p == '0'); p++) digits -= *p == '0';
    if (digits > MOST_DIGITS || !nearest_double(mantissa, exponent, &value)) {
        char *stop;
        value = fabs(strtod(start, &stop));
        if (stop != end) return 0; /* this process has another decimal point */
    }
    if (!(value < FLOAT32_BEYOND)) return 0;
    *out = with_sign(value, *start == '-');
    return 1;
}

/* Adds the digits at p to a mantissa, in its lowest places; the place behind them.
 *
 * Eight bytes are loaded at once, and the digits at their front are added in a few operations. The last seven bytes
 * before `end` are read one by one.
 */
static inline const char *read_digits(const char *p, const char *end, uint64_t *mantissa)
{
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    static const uint64_t TENS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
    while (end - p >= 8) {
        uint64_t text, others;
        memcpy(&text, p, sizeof text);
        uint64_t two = text & 0xFFFF;
        if ((two == ('0' | ',' << 8)) | (two == ('0' | ']' << 8))) { /* 5.0: a whole number that is a float */
            *mantissa *= 10;
            return p + 1;
        }
        text ^= 0x3030303030303030; /* a byte that is a digit is now below 10 */
        others = (text | (text + 0x7676767676767676)) & 0x8080808080808080; /* right up to the first that is no digit */
        int digits = others ? __builtin_ctzll(others) / 8 : 8;
        if (digits == 0) return p;
        text <<= 8 * (8 - digits);      /* zeros before the digits, and nothing behind them */
        text = text * 10 + (text >> 8); /* every second byte is a number of two digits, from 0 to 99 */
        uint64_t outer = (text & 0x000000FF000000FF) * (100 + (1000000ULL << 32));
        uint64_t inner = (text >> 16 & 0x000000FF000000FF) * (1 + (10000ULL << 32));
        *mantissa = *mantissa * TENS[digits] + ((outer + inner) >> 32);
        p += digits;
        if (digits < 8) return p;
    }
#else
    (void)end;
#endif
    while (is_digit(*p)) *mantissa = *mantissa * 10 + (uint64_t)(*p++ - '0');
    return p;
}

/* A number of JSON's grammar, rounded to double and from there to float, or null where a value may be missing.
 *
 * Returns the place behind it, or NULL.
 *
 * Of up to 53 bits and a small power of ten one operation gives the nearest double (Clinger, PLDI 1990), of 19 digits
 * and most powers `nearest_double`, and that of the C library of all others.
 */
static inline const char *read_value(const Reader *reader, const char *p, float *out)
{
    const char *start = p;
    int negative = *p == '-';
    p += negative;
    const char *digits = p;
    uint64_t mantissa = 0;
    while (is_digit(*p)) mantissa = mantissa * 10 + (uint64_t)(*p++ - '0');
    Py_ssize_t count = p - digits;
    if (count == 0 || (count > 1 && *digits == '0')) {
        if (count || negative || !reader->takes_missing || strncmp(p, "null", 4) != 0) return NULL;
        *out = NAN; /* looked for only here, where there is no digit: a test before each number costs a tenth of it */
        return p + 4;
    }
    int exponent = 0, integer = 1;
    if (*p == '.') {
        const char *fraction = ++p;
        p = read_digits(p, reader->end, &mantissa);
        if (p == fraction) return NULL;
        exponent = -(int)(p - fraction);
        count += p - fraction;
        integer = 0;
    }
    if (*p == 'e' || *p == 'E') {
        p++;
        int below_one = *p == '-';
        if (*p == '-' || *p == '+') p++;
        const char *first = p;
        int power = 0;
        while (is_digit(*p) && p - first < 5) power = power * 10 + (*p++ - '0');
        if (p == first || is_digit(*p)) return NULL;
        exponent += below_one ? -power : power;
        integer = 0;
    }
    if (count > MOST_DIGITS || mantissa > LARGEST_EXACT || exponent < -LARGEST_POWER || exponent > LARGEST_POWER)
        return read_long_float(start, p, count, mantissa, exponent, out) ? p : NULL;
    double value = (double)mantissa;
    value = exponent < 0 ? value / POWERS[-exponent] : value * POWERS[exponent];
    if (!(value < FLOAT32_BEYOND)) return NULL;
    *out = with_sign(value, negative & !(integer & (mantissa == 0))); /* the integer -0 is 0, the number -0.0 is not */
    return p;
}

/* A token id below a bound; the place behind it, or NULL. It may be the beginning of another number. */
static inline const char *read_token(const char *p, Py_ssize_t vocabulary, int64_t *out)
{
    const char *digits = p;
    uint64_t value = 0;
    while (is_digit(*p) && p - digits < MOST_DIGITS) value = value * 10 + (uint64_t)(*p++ - '0');
    if (p == digits || (p - digits > 1 && *digits == '0') || value >= (uint64_t)vocabulary) return NULL;
    *out = (int64_t)value;
    return p;
}

/* The place behind a number of JSON's grammar, or NULL. */
static const char *past_number(const char *p)
{
    if (*p == '-') p++;
    if (!is_digit(*p)) return NULL;
    if (*p++ != '0')
        while (is_digit(*p)) p++;
    if (*p == '.') {
        if (!is_digit(*++p)) return NULL;
        while (is_digit(*p)) p++;
    }
    if (*p == 'e' || *p == 'E') {
        p++;
        if (*p == '-' || *p == '+') p++;
        if (!is_digit(*p)) return NULL;
        while (is_digit(*p)) p++;
    }
    return p;
}

/* The place behind a string of JSON's grammar whose text starts at p, or NULL. Half a character (\ud800) is none. */
static const char *past_json_string(const char *p)
{
    for (;; p++) {
        if ((unsigned char)*p < 0x20) return NULL;
        if (*p == '"') return p + 1;
        if (*p != '\\') continue;
        p++;
        if (*p == 'u') {
            for (int i = 1; i < 5; i++)
                if (!(is_digit(p[i]) || (p[i] >= 'a' && p[i] <= 'f') || (p[i] >= 'A' && p[i] <= 'F'))) return NULL;
            if ((p[1] == 'd' || p[1] == 'D') && !(p[2] >= '0' && p[2] <= '7')) return NULL;
            p += 4;
        } else if (*p == '\0' || !strchr("\"\\/bfnrt", *p)) {
            return NULL;
        }
    }
}

/* The place behind a name and its colon; NULL where p is none. */
static const char *past_name(const char *p)
{
    p = past_space(p);
    return *p == '"' && (p = past_json_string(p + 1)) ? past(p, ':') : NULL;
}

/* The place behind any value of JSON's grammar; NULL where it is none, or nested deeper than there are bits to say of
 * what kind each level is. Counts its arrays, objects and strings. */
static const char *past_json(const char *p, Py_ssize_t *parts)
{
    uint64_t objects = 0;
    int depth = 0;
    for (;;) {
        p = past_space(p);
        if (*p == '[' || *p == '{') {
            int is_object = *p == '{';
            if (depth == 64) return NULL;
            ++*parts;
            const char *first = past_space(p + 1);
            if (*first != (is_object ? '}' : ']')) {
                objects = objects << 1 | (uint64_t)is_object;
                depth++;
                p = is_object ? past_name(first) : first;
                if (!p) return NULL;
                continue;
            }
            p = first + 1;
        } else if (*p == '"') {
            ++*parts;
            if (!(p = past_json_string(p + 1))) return NULL;
        } else if (strncmp(p, "true", 4) == 0 || strncmp(p, "null", 4) == 0) {
            p += 4;
        } else if (strncmp(p, "false", 5) == 0) {
            p += 5;
        } else if (!(p = past_number(p))) {
            return NULL;
        }
        for (;; p++) { /* behind a value */
            if (!depth) return p;
            p = past_space(p);
            if (*p == ',') break;
            if (*p != (objects & 1 ? '}' : ']')) return NULL;
            objects >>= 1;
            depth--;
        }
        if (!(p = objects & 1 ? past_name(p + 1) : p + 1)) return NULL;
    }
}

/* The place behind a value of a step, or NULL. fault: 0 if it is right, 1 for null where none may be, 2 otherwise. */
static const char *check_value(Reader *reader, const char *p, int *fault)
{
    float value;
    const char *end = read_value(reader, p, &value);
    *fault = 0;
    if (end) return end;
    *fault = 2;
    if (*p == '-' || is_digit(*p)) { /* beyond float32, or of a form that is seldom */
        char *stop;
        if (!(end = past_number(p)) || end - p > LONGEST_NUMBER) return NULL;
        if (fabs(strtod(p, &stop)) < FLOAT32_BEYOND) *fault = 0;
        return stop == end ? end : NULL;
    }
    if (strncmp(p, "null", 4) != 0) return past_json(p, &reader->parts);
    *fault = 1;
    return p + 4;
}

/* The place behind the values of a step that is an array, or NULL; in how many ways it is wrong, and their number. */
static const char *check_values(Reader *reader, const char *p, Py_ssize_t *faults, Py_ssize_t *size)
{
    int fault, ends = 0; /* behind the first value that is not a number, nothing more is said of a step */
    p = past_space(p + 1);
    if (*p == ']') return p + 1;
    for (;; p++) {
        if (!(p = check_value(reader, past_space(p), &fault))) return NULL;
        if (fault && !ends) ++*faults;
        ends |= fault == 2;
        ++*size;
        p = past_space(p);
        if (*p == ']') return p + 1;
        if (*p != ',') return NULL;
    }
}

/* Tells what is wrong with a step; the place behind it, or NULL where that is not JSON. */
static const char *check_step(Reader *reader, const char *step, Sequence *sequence)
{
    const char *p;
    Py_ssize_t faults = 0, size = 0;
    if (!reader->features) {
        int64_t token;
        p = read_token(step, reader->vocabulary, &token);
        if (p && !is_digit(*p) && *p != '.' && *p != 'e' && *p != 'E') return p;
        p = past_json(step, &reader->parts);
        faults = !p || p - step != 2 || strncmp(step, "-0", 2) != 0;
    } else if (*step == '[') {
        reader->parts++;
        sequence->has_list = 1;
        p = check_values(reader, step, &faults, &size);
        if (size != reader->features) faults = 1;
    } else if (reader->features == 1) {
        int fault;
        p = check_value(reader, step, &fault);
        faults = fault != 0;
    } else {
        p = past_json(step, &reader->parts);
        faults = 1;
    }
    if (!p || !faults) return p;
    sequence->faults += faults;
    if (sequence->told == MOST_TOLD) return p;
    if (reader->fault_count == reader->fault_room) {
        Fault *larger = realloc(reader->faults, (2 * (size_t)reader->fault_room + MOST_TOLD) * sizeof(Fault));
        reader->is_out_of_memory = !larger;
        if (!larger) return NULL;
        reader->faults = larger;
        reader->fault_room = 2 * reader->fault_room + MOST_TOLD;
    }
    reader->faults[reader->fault_count++] = (Fault){sequence->count, size, step, p};
    sequence->told++;
    return p;
}

/* The place behind a step of values that is right, or NULL. */
static inline const char *read_step(const Reader *reader, const char *p, float *out)
{
    const Py_ssize_t features = reader->features;
    int is_bare = features == 1 && *p != '[';
    if (!is_bare && *p++ != '[') return NULL;
    for (Py_ssize_t feature = 0; feature < features; feature++) {
        if (feature && !(p = past(p, ','))) return NULL;
        if (!(p = read_value(reader, past_space(p), out++))) return NULL;
    }
    return is_bare ? p : past(p, ']');
}

/* The steps of one sequence, from their bracket on; the place behind them, or NULL. */
static const char *read_steps(Reader *reader, const char *p, Sequence *sequence)
{
    const Py_ssize_t features = reader->features, numbers = features ? features : 1, vocabulary = reader->vocabulary;
    const int in_detail = reader->in_detail;
    Py_ssize_t steps = 0;
    float *values = reader->values + reader->count;
    int64_t *tokens = reader->tokens + reader->count;
    Py_ssize_t left = reader->room - reader->count;
    sequence->steps = p;
    sequence->first = reader->count;
    reader->parts++;
    p = past_space(p + 1);
    if (*p == ']') {
        sequence->steps_end = p + 1;
        return in_detail ? p + 1 : NULL;
    }
    for (;; p++) {
        p = past_space(p);
        if (in_detail) {
            sequence->count = steps;
            p = check_step(reader, p, sequence);
        } else if (numbers > left) {
            return NULL;
        } else if (features) {
            p = read_step(reader, p, values);
            values += features;
        } else {
            p = read_token(p, vocabulary, tokens++);
        }
        if (!p) return NULL;
        left -= numbers;
        steps++;
        p = past_space(p);
        if (*p == ']') break;
        if (*p != ',') return NULL;
    }
    reader->count = reader->room - left;
    sequence->count = steps;
    sequence->steps_end = p + 1;
    int fits = steps >= reader->least_steps && steps <= reader->most_steps;
    return fits || in_detail ? p + 1 : NULL;
}

/* The numbers beside a sequence, from their bracket on, to the end of the memory for numbers: they are shorter than their
 * text. The place behind them, or NULL where they are not ordinary. */
static const char *read_beside(Reader *reader, const char *p, Sequence *sequence)
{
    const Py_ssize_t first = reader->room - reader->beside;
    if (sequence->beside || reader->beside <= 0 || first < reader->count) return NULL;
    float *out = reader->features ? reader->values + first : (float *)(reader->tokens + first);
    for (Py_ssize_t i = 0; i < reader->beside; i++) {
        if (*p != (i ? ',' : '[')) return NULL;
        if (!(p = read_value(reader, past_space(p + 1), out + i)) || isnan(out[i])) return NULL;
        p = past_space(p);
    }
    if (*p != ']') return NULL;
    reader->room = first;
    reader->parts++;
    sequence->beside = out;
    return p + 1;
}

/* The value of the field `name`, where it is the ordinary state or offset of a sequence; the place behind it, or NULL. */
static const char *read_past(const Reader *reader, const char *name, const char *p, Sequence *sequence)
{
    int has_escapes;
    if (!reader->takes_states) return NULL;
    if (!sequence->state && *p == '"' && strncmp(name, "\"state\"", 7) == 0) {
        const char *text = p + 1;
        if (!(p = past_string(text, &has_escapes)) || has_escapes) return NULL;
        sequence->state = text;
        sequence->state_bytes = p - 1 - text;
        return p;
    }
    if (sequence->offset >= 0 || strncmp(name, "\"offset\"", 8) != 0) return NULL;
    int64_t offset;
    if (!(p = read_token(p, PY_SSIZE_T_MAX, &offset)) || is_digit(*p) || *p == '.' || *p == 'e' || *p == 'E') return NULL;
    sequence->offset = offset;
    return p;
}

/* The steps of the sequence with a name, by its rules; the place behind them, or NULL. */
static const char *read_input(Reader *reader, const char *name, const char *p, Sequence *sequences)
{
    for (Py_ssize_t i = 0; i < reader->input_count; i++) {
        const Input *input = reader->inputs + i;
        if (strncmp(name + 1, input->name, (size_t)input->name_bytes) != 0 || name[1 + input->name_bytes] != '"') continue;
        if (sequences[i].steps || *p != '[') return NULL;
        reader->features = input->features;
        reader->vocabulary = input->vocabulary;
        reader->least_steps = input->least_steps;
        reader->most_steps = input->most_steps;
        return read_steps(reader, p, sequences + i);
    }
    return NULL;
}

/* All sequences of an item that has several, from the brace on, in any order; the place behind them, or NULL. */
static const char *read_inputs(Reader *reader, const char *p, Sequence *sequences)
{
    reader->parts++;
    for (Py_ssize_t i = 0; i < reader->input_count; i++) {
        if (*p != (i ? ',' : '{')) return NULL;
        const char *name = past_space(p + 1);
        if (!(p = past_name(name))) return NULL;
        if (!(p = read_input(reader, name, past_space(p), sequences))) return NULL;
        p = past_space(p);
    }
    return *p == '}' ? p + 1 : NULL;
}

/* One entry of the array of sequences; the place behind it, or NULL. */
static const char *read_sequence(Reader *reader, const char *p, Sequence *sequence)
{
    for (Py_ssize_t i = 0; i < OF_ITEM(reader); i++)
        sequence[i] = (Sequence){.first_told = reader->fault_count, .offset = -1};
    if (*p == '[') {
        /* Python says that something is missing beside the steps */
        if (reader->input_count || (reader->beside && !reader->in_detail)) return NULL;
        return read_steps(reader, p, sequence);
    }
    sequence->start = p;
    if (*p != '{') return reader->in_detail ? sequence->end = past_json(p, &reader->parts) : NULL;
    reader->parts++;
    p = past_space(p + 1);
    if (*p == '}') return reader->in_detail ? sequence->end = p + 1 : NULL;
    for (;; p++) {
        const char *name = past_space(p);
        if (!(p = past_name(name))) return NULL;
        p = past_space(p);
        if (reader->input_count && strncmp(name, "\"inputs\"", 8) == 0) {
            p = read_inputs(reader, p, sequence);
        } else if (!sequence->steps && !reader->input_count && *p == '[' && strncmp(name, "\"steps\"", 7) == 0) {
            p = read_steps(reader, p, sequence);
        } else if (reader->in_detail) {
            p = past_json(p, &reader->parts);
        } else if (!sequence->id && *p == '"' && strncmp(name, "\"id\"", 4) == 0) {
            sequence->id = p + 1;
            reader->has_ids = 1;
            p = past_string(p + 1, &sequence->has_escapes);
            sequence->id_bytes = p ? p - 1 - sequence->id : 0;
        } else if (reader->takes_states || reader->beside) {
            const char *value = p, *behind = read_past(reader, name, p, sequence);
            int is_beside = *p == '[' && strncmp(name, "\"static\"", 8) == 0;
            if (behind) {
                reader->parts += *value == '"';
                p = behind;
            } else if (!is_beside || !(p = read_beside(reader, value, sequence))) {
                reader->has_more = 1;
                p = past_json(value, &reader->parts);
            }
        } else {
            return NULL;
        }
        if (!p) return NULL;
        p = past_space(p);
        if (*p == '}') break;
        if (*p != ',') return NULL;
    }
    sequence->end = p + 1;
    reader->has_more |= reader->beside && !sequence->beside;
    return sequence->steps || reader->in_detail ? p + 1 : NULL;
}

/* The next entries of `sequences`, for an item; NULL where there is no memory. */
static Sequence *next_item(Reader *reader)
{
    const Py_ssize_t first = reader->sequence_count;
    reader->sequence_count += OF_ITEM(reader);
    if (reader->sequence_count <= reader->sequence_room) return reader->sequences + first;
    Py_ssize_t room = 2 * reader->sequence_room;
    Sequence *old = reader->sequences == reader->small_sequences ? NULL : reader->sequences;
    Sequence *larger = realloc(old, (size_t)room * sizeof(Sequence));
    reader->is_out_of_memory = !larger;
    if (!larger) return NULL;
    if (!old) memcpy(larger, reader->small_sequences, sizeof reader->small_sequences);
    reader->sequences = larger;
    reader->sequence_room = room;
    return larger + first;
}

/* All sequences of the array between p and end, of which the first `most_sequences` are kept; their number, or -1. */
static Py_ssize_t read_sequences(Reader *reader, const char *p, const char *end)
{
    Py_ssize_t count = 0;
    reader->parts = 1;
    if (!(p = past(p, '['))) return -1;
    p = past_space(p);
    if (*p == ']') return p + 1 == end && reader->in_detail ? 0 : -1;
    for (;; p++) {
        Sequence *item = NULL;
        p = past_space(p);
        if (++count > reader->most_sequences)
            p = reader->in_detail ? past_json(p, &reader->parts) : NULL;
        else
            p = (item = next_item(reader)) ? read_sequence(reader, p, item) : NULL;
        if (!p) return -1;
        p = past_space(p);
        if (*p == ']') break;
        if (*p != ',') return -1;
    }
    return p + 1 == end ? count : -1;
}

/* The place of p in the body; -1 where there is none. */
#define PLACE(p) ((p) ? (Py_ssize_t)((p) - body) : (Py_ssize_t)-1)

/* The numbers beside each item, as the bytes of float32; NULL with an exception. */
static PyObject *numbers_beside(const Reader *reader, Py_ssize_t items)
{
    const size_t size = (size_t)reader->beside * sizeof(float);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, items * (Py_ssize_t)size);
    for (Py_ssize_t i = 0; bytes && size && i < items; i++)
        memcpy(PyBytes_AsString(bytes) + (size_t)i * size, reader->sequences[i * OF_ITEM(reader)].beside, size);
    return bytes;
}

/* The state and the offset of each item, as a list, or None where it takes none; NULL with an exception. */
static PyObject *pasts(const Reader *reader, Py_ssize_t items)
{
    PyObject *list = reader->takes_states ? PyList_New(items) : Py_NewRef(Py_None);
    for (Py_ssize_t i = 0; reader->takes_states && list && i < items; i++) {
        const Sequence *found = reader->sequences + i * OF_ITEM(reader);
        PyObject *offset = found->offset < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(found->offset);
        PyObject *one = offset ? Py_BuildValue("y#N", found->state, found->state_bytes, offset) : NULL;
        if (!one || PyList_SetItem(list, i, one) < 0) Py_CLEAR(list);
    }
    return list;
}

/* What was read, see the documentation of `read`. NULL with an exception. */
static PyObject *made(const Reader *reader, const char *body)
{
    const char *numbers = reader->features ? (const char *)reader->values : (const char *)reader->tokens;
    size_t size = reader->features ? sizeof(float) : sizeof(int64_t);
    PyObject *bytes = PyBytes_FromStringAndSize(numbers, reader->count * (Py_ssize_t)size);
    const int has_fields = reader->has_ids || reader->has_more || reader->takes_states || reader->input_count;
    if (reader->sequence_count == 1 && !(reader->sequences->start && has_fields))
        return reader->beside ? Py_BuildValue("NN", bytes, numbers_beside(reader, 1)) : bytes;
    const Py_ssize_t of_item = OF_ITEM(reader), items = reader->sequence_count / of_item;
    PyObject *ends = PyList_New(reader->sequence_count);
    PyObject *ids = reader->has_ids ? PyList_New(items) : Py_NewRef(Py_None);
    Py_ssize_t steps = 0;
    int is_made = bytes && ends && ids;
    for (Py_ssize_t i = 0; is_made && i < reader->sequence_count; i++) {
        const Sequence *sequence = reader->sequences + i;
        steps += sequence->count;
        PyObject *id, *end = reader->input_count ? Py_BuildValue("nn", sequence->first, sequence->count) : PyLong_FromSsize_t(steps);
        is_made = end && PyList_SetItem(ends, i, end) == 0;
        if (!is_made || !reader->has_ids || i % of_item) continue;
        if (!sequence->id)
            id = Py_NewRef(Py_None);
        else if (sequence->has_escapes)
            id = PyBytes_FromStringAndSize(sequence->id - 1, sequence->id_bytes + 2);
        else
            id = PyUnicode_DecodeUTF8(sequence->id, sequence->id_bytes, NULL);
        is_made = id && PyList_SetItem(ids, i / of_item, id) == 0;
    }
    if (is_made && !reader->takes_states && !reader->beside) return Py_BuildValue("NNN", bytes, ends, ids);
    if (is_made && !reader->has_more) {
        PyObject *beside = numbers_beside(reader, items), *before = beside ? pasts(reader, items) : NULL;
        if (before) return Py_BuildValue("NNN(NN)", bytes, ends, ids, beside, before);
        Py_XDECREF(beside);
        is_made = 0;
    }
    PyObject *places = is_made ? PyList_New(reader->sequence_count) : NULL;
    for (Py_ssize_t i = 0; places && i < reader->sequence_count; i++) {
        const Sequence *found = reader->sequences + i;
        PyObject *one = Py_BuildValue("nnnn", PLACE(found->start), PLACE(found->steps), PLACE(found->steps_end), PLACE(found->end));
        if (!one || PyList_SetItem(places, i, one) < 0) Py_CLEAR(places);
    }
    if (places) return Py_BuildValue("NNNN", bytes, ends, ids, places);
    Py_XDECREF(bytes);
    Py_XDECREF(ends);
    Py_XDECREF(ids);
    return NULL;
}

/* What is wrong, see the documentation of `read`. NULL with an exception. */
static PyObject *made_in_detail(const Reader *reader, Py_ssize_t count, const char *body)
{
    PyObject *items = PyList_New(reader->sequence_count);
    for (Py_ssize_t i = 0; items && i < reader->sequence_count; i++) {
        const Sequence *found = reader->sequences + i;
        PyObject *told = PyList_New(found->told), *item = NULL;
        for (Py_ssize_t j = 0; told && j < found->told; j++) {
            const Fault *fault = reader->faults + found->first_told + j;
            PyObject *one = Py_BuildValue("nnnn", fault->place, fault->size, PLACE(fault->start), PLACE(fault->end));
            if (!one || PyList_SetItem(told, j, one) < 0) Py_CLEAR(told);
        }
        if (told)
            item = Py_BuildValue("nnnnnniN", PLACE(found->start), PLACE(found->end), PLACE(found->steps),
                                 PLACE(found->steps_end), found->count, found->faults, found->has_list, told);
        if (!item || PyList_SetItem(items, i, item) < 0) Py_CLEAR(items);
    }
    return items ? Py_BuildValue("nnN", count, reader->parts, items) : NULL;
}

/* Gives a reader memory for the numbers of text[start:end], and has other threads run if that is long; NULL without. */
static void *begin(Reader *reader, const char *start, const char *end)
{
    Py_ssize_t most = (end - start) / 2 + 1; /* a number and what parts it from the next one are two bytes */
    size_t size = reader->features ? sizeof(float) : sizeof(int64_t);
    void *numbers = reader->small;
    if ((size_t)most > sizeof reader->small / size && !(numbers = malloc((size_t)most * size))) return PyErr_NoMemory();
    reader->values = numbers;
    reader->tokens = numbers;
    reader->room = most;
    reader->end = end;
    reader->count = 0;
    reader->released = end - start > LONG_TEXT_BYTES ? PyEval_SaveThread() : NULL;
    return numbers;
}

/* The text of a body from one place to another; false, with an exception, where they are not in it. */
static int take_text(PyObject *body, Py_ssize_t from, Py_ssize_t to, const char **start, const char **end)
{
    if (from < 0 || from > to || to > PyBytes_Size(body)) {
        PyErr_SetString(PyExc_ValueError, "the place is not in the body");
        return 0;
    }
    *start = PyBytes_AsString(body) + from;
    *end = PyBytes_AsString(body) + to;
    return 1;
}

PyDoc_STRVAR(read_doc,
             "read(body, start, end, most_sequences, features, vocabulary, least_steps, most_steps, takes_missing,\n"
             "     in_detail, beside, takes_states, inputs)\n--\n\n"
             "The sequences of `body[start:end]`, an array: (values, ends, ids), or None where it is not ordinary.\n\n"
             "features: of a step; 0 where a step is a token id, below `vocabulary`.\n"
             "values: of all steps, as the bytes of float32 with NaN where one is missing, or of int64.\n"
             "ends: number of steps up to the end of each sequence.\n"
             "ids: of each its text, or bytes of a JSON string that has escapes, or None; None if none has one.\n\n"
             "Of a single sequence that is an array, only the values. Of one that is an object without id, where none may\n"
             "have states, too; if it has `static`, then (values, the numbers of `static` as float32).\n\n"
             "beside: the length of the array `static` of an item, of numbers; 0 of an item without, and -1 where only Python\n"
             "can read it.\n"
             "takes_states: whether an item may have `state` and `offset`.\n"
             "With either, a fourth entry follows. If each item has `static`, and no other fields than these, steps and id, it\n"
             "is (the numbers of all, as float32; of each item its (state, offset), the text as bytes, and None for what it has\n"
             "not, or None without takes_states). Else it is of each item the places (start, steps_start, steps_end, end), with\n"
             "-1 for the start and the end of an array.\n"
             "inputs: of an item with several sequences by name, for each (name, features, vocabulary, least_steps,\n"
             "most_steps): all have numbers, or all have token ids. ends has then (first number, steps) of each, in\n"
             "the order of inputs, one item behind the other.\n\n"
             "in_detail: what is wrong with the steps: (count, parts, items), or None where the array is no JSON, or\n"
             "only the reader in Python can tell.\n"
             "count, parts: the number of items, and of all arrays, objects and strings.\n"
             "items: of the first `most_sequences` each (start, end, steps_start, steps_end, steps, faults, has_list,\n"
             "told); -1 for a place that it has not; told: of the first 20 wrong steps (step, features, start, end).");

/* Takes the rules of several sequences; false, with an exception, where they are wrong. */
static int take_inputs(Reader *reader, PyObject *inputs)
{
    reader->input_count = inputs ? PyTuple_Size(inputs) : 0;
    int fits = reader->input_count <= MOST_INPUTS;
    for (Py_ssize_t i = 0; fits && i < reader->input_count; i++) {
        Input *input = reader->inputs + i;
        if (!PyArg_ParseTuple(PyTuple_GetItem(inputs, i), "snnnn", &input->name, &input->features, &input->vocabulary,
                              &input->least_steps, &input->most_steps))
            return 0;
        input->name_bytes = (Py_ssize_t)strlen(input->name);
        fits = input->features >= 0 && input->vocabulary >= 0 && !input->features == !reader->features;
    }
    if (!fits) PyErr_SetString(PyExc_ValueError, "some inputs, either of numbers or of token ids");
    return fits;
}

static PyObject *read_body(PyObject *module, PyObject *args)
{
    Reader reader;
    PyObject *body, *inputs = NULL;
    const char *start, *end;
    Py_ssize_t from, to;
    reader.has_more = reader.has_ids = reader.takes_states = 0;
    reader.beside = 0;
    if (!PyArg_ParseTuple(args, "Snnnnnnnpp|npO!", &body, &from, &to, &reader.most_sequences, &reader.features,
                          &reader.vocabulary, &reader.least_steps, &reader.most_steps, &reader.takes_missing,
                          &reader.in_detail, &reader.beside, &reader.takes_states, &PyTuple_Type,
                          &inputs))
        return NULL;
    if (!take_text(body, from, to, &start, &end)) return NULL;
    if (reader.features < 0 || reader.vocabulary < 0 || reader.beside < -1) {
        PyErr_SetString(PyExc_ValueError, "features and vocabulary are numbers from 0, beside from -1");
        return NULL;
    }
    if (!take_inputs(&reader, inputs)) return NULL;
    reader.sequences = reader.small_sequences;
    reader.sequence_count = 0;
    reader.sequence_room = SMALL_SEQUENCES;
    reader.faults = NULL;
    reader.fault_count = reader.fault_room = 0;
    reader.is_out_of_memory = 0;
    void *numbers = begin(&reader, start, end);
    if (!numbers) return NULL;
    Py_ssize_t found = read_sequences(&reader, start, end);
    if (reader.released) PyEval_RestoreThread(reader.released);
    PyObject *result = NULL;
    if (found >= 0)
        result = reader.in_detail ? made_in_detail(&reader, found, PyBytes_AsString(body))
                                  : made(&reader, PyBytes_AsString(body));
    if (numbers != reader.small) free(numbers);
    if (reader.sequences != reader.small_sequences) free(reader.sequences);
    free(reader.faults);
    if (reader.is_out_of_memory) return PyErr_NoMemory();
    if (found >= 0 && !result && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        found = -1;
    }
    if (found < 0) Py_RETURN_NONE;
    return result;
}

/* The place behind the entries of an array, whatever they are, or NULL. others: their number, if one of them is a
 * string or a boolean and none an array or an object; -1 otherwise. */
static const char *past_entries(const char *p, Py_ssize_t *others)
{
    Py_ssize_t count = 0, parts = 0;
    int has_text = 0, has_nested = 0;
    *others = -1;
    if (*past_space(p) == ']') return past(p, ']');
    for (;; p++) {
        p = past_space(p);
        has_nested |= *p == '[' || *p == '{';
        has_text |= *p == '"' || *p == 't' || *p == 'f';
        count++;
        if (!(p = past_json(p, &parts))) return NULL;
        p = past_space(p);
        if (*p != ',') break;
    }
    if (has_text && !has_nested) *others = count;
    return past(p, ']');
}

PyDoc_STRVAR(read_flat_doc,
             "read_flat(body, start, end)\n--\n\n"
             "The array that starts at `start`: (float32 as bytes, place behind it, others), null being NaN.\n\n"
             "The bytes are None where it is no flat array of numbers that fit. Then others is the number of its\n"
             "entries, if one of them is a string or a boolean and none an array or an object; -1 otherwise.\n"
             "None where it is no JSON, or does not end before `end`.");

static PyObject *read_flat(PyObject *module, PyObject *args)
{
    Reader reader;
    PyObject *body;
    const char *start, *end;
    Py_ssize_t from, to, others = -1;
    if (!PyArg_ParseTuple(args, "Snn", &body, &from, &to) || !take_text(body, from, to, &start, &end)) return NULL;
    reader.features = 1;
    reader.takes_missing = 1;
    void *numbers = begin(&reader, start, end);
    if (!numbers) return NULL;
    const char *first = past(start, '['), *p = first;
    while (p && reader.count < reader.room) {
        if (!(p = read_value(&reader, past_space(p), reader.values + reader.count++))) break;
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    p = past(p, ']');
    int is_flat = p != NULL;
    if (first && !is_flat) p = past_entries(first, &others);
    if (reader.released) PyEval_RestoreThread(reader.released);
    PyObject *result = Py_None;
    const char *floats = is_flat ? (const char *)reader.values : NULL;
    Py_ssize_t size = reader.count * (Py_ssize_t)sizeof(float), place = p ? p - PyBytes_AsString(body) : 0;
    if (p && p <= end) result = Py_BuildValue("y#nn", floats, size, place, others);
    if (numbers != reader.small) free(numbers);
    return p && p <= end ? result : Py_NewRef(result);
}

/* The place behind a JSON value, whose inside is not looked at beyond its strings and brackets; NULL at the end. */
static const char *past_value(const char *p)
{
    Py_ssize_t depth = 0;
    int has_escapes;
    for (;;) {
        switch (*p) {
        case '\0': return NULL;
        case '"':
            if (!(p = past_string(p + 1, &has_escapes))) return NULL;
            break;
        case '[':
        case '{': depth++, p++; break;
        case ']':
        case '}': depth--, p++; break;
        default: p++;
        }
        if (depth < 0) return NULL;
        if (depth == 0 && (*p == ',' || *p == '}' || p[-1] == ']' || p[-1] == '}')) return p;
    }
}

/* The end of the last value of a body that ends with `]]}` or `}]}`: no other field than the sequences may end so. */
static const char *nested_end(const char *start, const char *end)
{
    const char *value = NULL;
    for (int i = 0; i < 3; i++) {
        while (end > start && (end[-1] == ' ' || end[-1] == '\n' || end[-1] == '\t' || end[-1] == '\r')) end--;
        if (end-- == start || !((*end == '}' && i != 1) || (*end == ']' && i > 0))) return NULL;
        if (i == 1) value = end + 1;
    }
    return value;
}

PyDoc_STRVAR(locate_doc,
             "locate(body, key)\n--\n\n"
             "Where the array stands that an object has under a key: (start, end, is_alone), or None.\n\n"
             "is_alone: whether the object has no other field, if the array and what stands behind it are JSON.\n"
             "Whatever else the object holds is JSON only if it parses with null in the place of the array.");

static PyObject *locate(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "locate takes the body and the key as bytes");
        return NULL;
    }
    const char *body = PyBytes_AsString(args[0]), *end = body + PyBytes_Size(args[0]);
    const char *key = PyBytes_AsString(args[1]);
    Py_ssize_t key_bytes = PyBytes_Size(args[1]);
    const char *p = past(body, '{');
    for (int is_first = 1; p; is_first = 0) {
        int has_escapes;
        const char *name = past(p, '"');
        const char *behind = name ? past_string(name, &has_escapes) : NULL;
        if (!(p = past(behind, ':'))) break;
        p = past_space(p);
        if (behind - 1 - name == key_bytes && memcmp(name, key, (size_t)key_bytes) == 0) {
            if (*p != '[') break;
            const char *last = nested_end(p, end);
            int is_alone = is_first && last;
            if (!last && !(last = past_value(p))) break;
            return Py_BuildValue("nnN", (Py_ssize_t)(p - body), (Py_ssize_t)(last - body), PyBool_FromLong(is_alone));
        }
        if (!(p = past_value(p))) break;
        p = past(p, ',');
    }
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"locate", (PyCFunction)(void (*)(void))locate, METH_FASTCALL, locate_doc},
    {"read", read_body, METH_VARARGS, read_doc},
    {"read_flat", read_flat, METH_VARARGS, read_flat_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "lengthwise.decoding._fast_json",
    .m_doc = "Reads the sequences of a JSON body; see `lengthwise.decoding.fast_json`.",
    .m_methods = METHODS,
};

PyMODINIT_FUNC PyInit__fast_json(void)
{
    fill_powers_of_ten();
    return PyModuleDef_Init(&MODULE);
}
