/* Reads the sequences of an ordinary JSON body: from the text to the bytes of one array, without an object per number.
 *
 * `locate` finds where the sequences stand in the body, `read_values` and `read_tokens` read them. Where a text is not
 * exactly what they expect they return None, and the reader in Python (`validation.py`) decides. What they do return is
 * what that reader makes of the same text, bit for bit: tests/service/test_json_body.py and test_fast_json.py test this.
 *
 * Nothing here calls itself, so the nesting of a text costs no stack. Every text ends in NUL, which is part of no token:
 * a loop that stops at any byte it does not expect never passes the end.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_powers_of_ten.h"

#define FLOAT32_MAX 3.4028234663852886e38
#define FLOAT32_BEYOND (0x1p128 - 0x1p103) /* the least double that becomes infinite as a float */
#define LARGEST_EXACT (1ULL << 53) /* up to here a double holds every integer */
#define MOST_DIGITS 19             /* of an integer that fits 64 bits whatever its digits are */
#define LONGEST_NUMBER 64
#define MOST_SCANNED_DIGITS 1000 /* of a number that is looked at to say whether it fits */
#define SMALL_BYTES 16384     /* what is read of most bodies fits in that many bytes, on the stack */
#define SMALL_SEQUENCES 64    /* as many sequences need no memory of their own */
#define MOST_AWAITING 64      /* numbers that wait for Python's conversion, so that it takes its lock once for all */
#define LONG_TEXT_BYTES 65536 /* while a longer text is read other threads may run */

#ifdef __GNUC__
#define NOT_INLINE __attribute__((noinline))
#else
#define NOT_INLINE
#endif

/* Powers of ten that a double holds exactly: one product or quotient with them is correctly rounded. */
static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define LARGEST_POWER 22

/* One sequence that was read. */
typedef struct {
    Py_ssize_t end;   /* number of steps up to its last one, those of the sequences before it counted too */
    const char *id;   /* the text of its id, behind the quote, or NULL */
    Py_ssize_t bytes; /* of that text, without the quote behind it */
    int has_escapes;  /* whether that text has a backslash */
} Sequence;

/* A number that Python's conversion has to read: where its text stands, and where its value goes. */
typedef struct {
    const char *text;
    Py_ssize_t bytes;
    float *out;
} Awaiting;

/* One call: what is wanted, and what was read so far. */
typedef struct {
    Py_ssize_t features;      /* of a step; 0 where a step is a token id */
    uint64_t vocabulary;      /* token ids are below it */
    Py_ssize_t most_steps;    /* of a sequence */
    Py_ssize_t most_sequences;
    int takes_missing;        /* whether null is a missing value, NaN */
    float *values;            /* one of these two is used */
    int64_t *tokens;
    Py_ssize_t count, room;   /* numbers read, and that there is memory for */
    Sequence *sequences;
    Py_ssize_t sequence_count, sequence_room;
    int is_plain;             /* whether no sequence is an object */
    int is_out_of_memory;
    Awaiting awaiting[MOST_AWAITING];
    int awaiting_count;
    PyThreadState *released;  /* set while other threads may run */
    float small[SMALL_BYTES / sizeof(float)];
    Sequence small_sequences[SMALL_SEQUENCES];
} Reader;

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
    /* Where the binary point of 10 ** exponent stands: 217706 / 2 ** 16 is log2(10) closely enough for these exponents. */
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

/* Has Python's conversion read the numbers that wait for it; false where one of them is beyond float32. */
static int convert_awaiting(Reader *reader)
{
    int is_finite = 1, was_released = reader->released != NULL;
    if (reader->awaiting_count == 0) return 1;
    if (was_released) PyEval_RestoreThread(reader->released);
    for (int i = 0; i < reader->awaiting_count && is_finite; i++) {
        const Awaiting *number = reader->awaiting + i;
        char text[LONGEST_NUMBER + 1];
        memcpy(text, number->text, (size_t)number->bytes);
        text[number->bytes] = '\0';
        double value = PyOS_string_to_double(text, NULL, NULL);
        if (value == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            is_finite = 0;
        } else if (fabs(value) <= FLOAT32_MAX) {
            *number->out = (float)value;
        } else {
            is_finite = 0;
        }
    }
    reader->awaiting_count = 0;
    if (was_released) reader->released = PyEval_SaveThread();
    return is_finite;
}

/* The float of the number from start to end, whose digits and exponent are parsed; false where it is left to Python.
 *
 * Apart from `read_value`, which would be slower with this in its midst.
 */
static NOT_INLINE int read_long_float(Reader *reader, const char *start, const char *end, Py_ssize_t digits,
                                      uint64_t mantissa, int exponent, float *out)
{
    double value;
    if (digits > MOST_DIGITS || !nearest_double(mantissa, exponent, &value)) {
        if (end - start > LONGEST_NUMBER) return 0;
        if (reader->awaiting_count == MOST_AWAITING && !convert_awaiting(reader)) return 0;
        reader->awaiting[reader->awaiting_count++] = (Awaiting){start, end - start, out};
        return 1;
    }
    if (!(value <= FLOAT32_MAX)) return 0;
    *out = (float)(*start == '-' ? -value : value);
    return 1;
}

/* A number of JSON's grammar, rounded to double and from there to float, or null where a value may be missing.
 *
 * Returns the place behind it, or NULL.
 *
 * Of up to 53 bits and a small power of ten one operation gives the nearest double (Clinger, PLDI 1990), of 19 digits
 * and most powers `nearest_double`, and Python's own conversion of all others.
 */
static inline const char *read_value(Reader *reader, const char *p, float *out)
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
        while (is_digit(*p)) mantissa = mantissa * 10 + (uint64_t)(*p++ - '0');
        if (p == fraction || p - start > LONGEST_NUMBER) return NULL;
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
        return read_long_float(reader, start, p, count, mantissa, exponent, out) ? p : NULL;
    double value = (double)mantissa;
    value = exponent < 0 ? value / POWERS[-exponent] : value * POWERS[exponent];
    if (!(value <= FLOAT32_MAX)) return NULL;
    if (negative && !(integer && mantissa == 0)) value = -value; /* the integer -0 is 0, the number -0.0 is not */
    *out = (float)value;
    return p;
}

/* A token id below a bound; the place behind it, or NULL. */
static inline const char *read_token(const char *p, uint64_t vocabulary, int64_t *out)
{
    const char *digits = p;
    uint64_t value = 0;
    while (is_digit(*p) && p - digits < MOST_DIGITS) value = value * 10 + (uint64_t)(*p++ - '0');
    if (p == digits || (p - digits > 1 && *digits == '0') || value >= vocabulary) return NULL;
    *out = (int64_t)value;
    return p; /* what follows is no comma and no bracket where this is only the beginning of another number */
}

/* The steps of one sequence of values, from behind its bracket on; the place behind the last one, or NULL. */
static const char *read_value_steps(Reader *reader, const char *p)
{
    const Py_ssize_t features = reader->features, most_steps = reader->most_steps;
    float *out = reader->values + reader->count, *const limit = reader->values + reader->room;
    for (Py_ssize_t steps = 0;; steps++) {
        if (steps == most_steps || features > limit - out) return NULL;
        p = past_space(p);
        int is_bare = features == 1 && *p != '[';
        if (!is_bare && *p++ != '[') return NULL;
        for (Py_ssize_t feature = 0; feature < features; feature++) {
            if (feature && !(p = past(p, ','))) return NULL;
            p = past_space(p);
            if (!(p = read_value(reader, p, out))) return NULL;
            out++;
        }
        if (!is_bare && !(p = past(p, ']'))) return NULL;
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    reader->count = out - reader->values;
    return p;
}

/* The same of token ids. */
static const char *read_token_steps(Reader *reader, const char *p)
{
    for (Py_ssize_t steps = 0;; steps++) {
        if (steps == reader->most_steps || reader->count == reader->room) return NULL;
        if (!(p = read_token(past_space(p), reader->vocabulary, reader->tokens + reader->count))) return NULL;
        reader->count++;
        const char *next = past(p, ',');
        if (!next) return p;
        p = next;
    }
}

/* The steps of one sequence, from its bracket on; the place behind them, or NULL. */
static const char *read_steps(Reader *reader, const char *p)
{
    if (!(p = past(p, '['))) return NULL;
    return past(reader->features ? read_value_steps(reader, p) : read_token_steps(reader, p), ']');
}

/* A sequence that is an object of `steps`, and of `id` where it has one; the place behind it, or NULL. */
static const char *read_object(Reader *reader, const char *p, Sequence *sequence)
{
    int has_steps = 0;
    reader->is_plain = 0;
    p = past(p, '{');
    for (;;) {
        if (!(p = past(p, '"'))) return NULL;
        if (!has_steps && strncmp(p, "steps\"", 6) == 0) {
            has_steps = 1;
            if (!(p = past(p + 6, ':')) || !(p = read_steps(reader, p))) return NULL;
        } else if (!sequence->id && strncmp(p, "id\"", 3) == 0) {
            if (!(p = past(past(p + 3, ':'), '"'))) return NULL;
            sequence->id = p;
            if (!(p = past_string(p, &sequence->has_escapes))) return NULL;
            sequence->bytes = p - 1 - sequence->id;
        } else {
            return NULL;
        }
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    return has_steps ? past(p, '}') : NULL;
}

/* Memory for one more sequence; false where there is none, or no more are wanted. */
static int make_room(Reader *reader)
{
    if (reader->sequence_count == reader->most_sequences) return 0;
    if (reader->sequence_count < reader->sequence_room) return 1;
    Py_ssize_t room = 2 * reader->sequence_room;
    Sequence *old = reader->sequences == reader->small_sequences ? NULL : reader->sequences;
    Sequence *larger = realloc(old, (size_t)room * sizeof(Sequence));
    if (!larger) {
        reader->is_out_of_memory = 1;
        return 0;
    }
    if (!old) memcpy(larger, reader->small_sequences, sizeof reader->small_sequences);
    reader->sequences = larger;
    reader->sequence_room = room;
    return 1;
}

/* All sequences of the array between p and end; false where they are not ordinary. */
static int read_sequences(Reader *reader, const char *p, const char *end)
{
    p = past(p, '[');
    for (;;) {
        if (!p || !make_room(reader)) return 0;
        Sequence *sequence = reader->sequences + reader->sequence_count++;
        *sequence = (Sequence){0};
        p = past_space(p);
        if (!(p = *p == '{' ? read_object(reader, p, sequence) : read_steps(reader, p))) return 0;
        sequence->end = reader->features ? reader->count / reader->features : reader->count;
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    return past(p, ']') == end && convert_awaiting(reader);
}

/* The id of a sequence: its text, or as bytes with the quotes where it has escapes, or None. NULL with an exception. */
static PyObject *made_id(const Sequence *sequence)
{
    if (!sequence->id) Py_RETURN_NONE;
    if (sequence->has_escapes) return PyBytes_FromStringAndSize(sequence->id - 1, sequence->bytes + 2);
    return PyUnicode_DecodeUTF8(sequence->id, sequence->bytes, NULL);
}

/* What was read, see the documentation of `read_values`. NULL with an exception. */
static PyObject *made(const Reader *reader)
{
    const char *numbers = reader->features ? (const char *)reader->values : (const char *)reader->tokens;
    size_t size = reader->features ? sizeof(float) : sizeof(int64_t);
    PyObject *bytes = PyBytes_FromStringAndSize(numbers, reader->count * (Py_ssize_t)size);
    if (reader->is_plain && reader->sequence_count == 1) return bytes;
    PyObject *result = PyTuple_New(3), *ends = PyList_New(reader->sequence_count);
    PyObject *ids = reader->is_plain ? Py_NewRef(Py_None) : PyList_New(reader->sequence_count);
    if (!bytes || !result || !ends || !ids) goto failed;
    for (Py_ssize_t i = 0; i < reader->sequence_count; i++) {
        PyObject *end = PyLong_FromSsize_t(reader->sequences[i].end);
        if (!end || PyList_SetItem(ends, i, end) < 0) goto failed;
        if (reader->is_plain) continue;
        PyObject *id = made_id(reader->sequences + i);
        if (!id || PyList_SetItem(ids, i, id) < 0) goto failed;
    }
    PyTuple_SetItem(result, 0, bytes);
    PyTuple_SetItem(result, 1, ends);
    PyTuple_SetItem(result, 2, ids);
    return result;
failed:
    Py_XDECREF(result);
    Py_XDECREF(bytes);
    Py_XDECREF(ends);
    Py_XDECREF(ids);
    return NULL;
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
    reader->count = 0;
    reader->awaiting_count = 0;
    reader->released = end - start > LONG_TEXT_BYTES ? PyEval_SaveThread() : NULL;
    return numbers;
}

/* Reads the sequences of text[start:end] as the reader is set up; None where they are not ordinary. */
static PyObject *read_with(Reader *reader, const char *start, const char *end)
{
    reader->sequences = reader->small_sequences;
    reader->sequence_count = 0;
    reader->sequence_room = SMALL_SEQUENCES;
    reader->is_plain = 1;
    reader->is_out_of_memory = 0;
    void *numbers = begin(reader, start, end);
    if (!numbers) return NULL;
    int is_ordinary = read_sequences(reader, start, end);
    if (reader->released) PyEval_RestoreThread(reader->released);
    PyObject *result = is_ordinary ? made(reader) : NULL;
    if (numbers != reader->small) free(numbers);
    if (reader->sequences != reader->small_sequences) free(reader->sequences);
    if (reader->is_out_of_memory) return PyErr_NoMemory();
    if (is_ordinary && !result && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        is_ordinary = 0;
    }
    if (!is_ordinary) Py_RETURN_NONE;
    return result;
}

/* The integers among the arguments, each at least its bound; false, with an exception, where one is not. */
static int take_integers(PyObject *const *args, Py_ssize_t count, Py_ssize_t least, Py_ssize_t *out)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        out[i] = PyLong_AsSsize_t(args[i]);
        if (out[i] == -1 && PyErr_Occurred()) return 0;
        if (out[i] < least) {
            PyErr_Format(PyExc_ValueError, "an integer below %zd", least);
            return 0;
        }
    }
    return 1;
}

/* The text of the first argument from `start` to `end`, the next two; false, with an exception, where it is none. */
static int take_text(PyObject *const *args, const char **start, const char **end)
{
    Py_ssize_t places[2];
    if (!PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "the body must be bytes");
        return 0;
    }
    if (!take_integers(args + 1, 2, 0, places)) return 0;
    if (places[0] > places[1] || places[1] > PyBytes_Size(args[0])) {
        PyErr_SetString(PyExc_ValueError, "the place is not in the body");
        return 0;
    }
    *start = PyBytes_AsString(args[0]) + places[0];
    *end = PyBytes_AsString(args[0]) + places[1];
    return 1;
}

PyDoc_STRVAR(read_values_doc,
             "read_values(body, start, end, features, most_sequences, most_steps, takes_missing)\n--\n\n"
             "The sequences of `body[start:end]`, an array: (values, ends, ids), or None where it is not ordinary.\n\n"
             "values: float32 of all steps, one sequence behind the other, as bytes; NaN where a value is missing.\n"
             "ends: number of steps up to the end of each sequence.\n"
             "ids: of each its text, or bytes of a JSON string that has escapes, or None; None where all are arrays.\n\n"
             "Of a single sequence that is an array, only the values.");

static PyObject *read_values(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Reader reader;
    const char *start, *end;
    Py_ssize_t bounds[3];
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "read_values takes 7 arguments");
        return NULL;
    }
    if (!take_text(args, &start, &end) || !take_integers(args + 3, 3, 1, bounds)) return NULL;
    if ((reader.takes_missing = PyObject_IsTrue(args[6])) < 0) return NULL;
    reader.features = bounds[0];
    reader.most_sequences = bounds[1];
    reader.most_steps = bounds[2];
    return read_with(&reader, start, end);
}

PyDoc_STRVAR(read_tokens_doc,
             "read_tokens(body, start, end, vocabulary, most_sequences, most_steps)\n--\n\n"
             "The same of sequences of token ids below `vocabulary`, as int64.");

static PyObject *read_tokens(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Reader reader;
    const char *start, *end;
    Py_ssize_t bounds[3];
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "read_tokens takes 6 arguments");
        return NULL;
    }
    if (!take_text(args, &start, &end) || !take_integers(args + 3, 3, 1, bounds)) return NULL;
    reader.takes_missing = 0;
    reader.features = 0;
    reader.vocabulary = (uint64_t)bounds[0];
    reader.most_sequences = bounds[1];
    reader.most_steps = bounds[2];
    return read_with(&reader, start, end);
}

PyDoc_STRVAR(read_flat_doc,
             "read_flat(body, start, end)\n--\n\n"
             "The flat array of numbers that starts at `start`: (float32 as bytes, place behind it), null being NaN.\n\n"
             "None where it is no such array, or does not end before `end`.");

static PyObject *read_flat(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Reader reader;
    const char *start, *end;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "read_flat takes 3 arguments");
        return NULL;
    }
    if (!take_text(args, &start, &end)) return NULL;
    reader.features = 1;
    reader.takes_missing = 1;
    void *numbers = begin(&reader, start, end);
    if (!numbers) return NULL;
    const char *p = past(start, '[');
    while (p && reader.count < reader.room) {
        if (!(p = read_value(&reader, past_space(p), reader.values + reader.count++))) break;
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    p = past(p, ']');
    if (!convert_awaiting(&reader) || p > end) p = NULL;
    if (reader.released) PyEval_RestoreThread(reader.released);
    PyObject *result = Py_None;
    if (p) {
        PyObject *bytes = PyBytes_FromStringAndSize((const char *)reader.values, reader.count * (Py_ssize_t)sizeof(float));
        result = bytes ? Py_BuildValue("Nn", bytes, (Py_ssize_t)(p - PyBytes_AsString(args[0]))) : NULL;
    }
    if (numbers != reader.small) free(numbers);
    return p ? result : Py_NewRef(result);
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
    const char closing[] = "}]";
    for (int i = 0; i < 2; i++) {
        while (end > start && (end[-1] == ' ' || end[-1] == '\n' || end[-1] == '\t' || end[-1] == '\r')) end--;
        if (end == start || end[-1] != closing[i]) return NULL;
        end--;
    }
    const char *value = end + 1;
    while (end > start && (end[-1] == ' ' || end[-1] == '\n' || end[-1] == '\t' || end[-1] == '\r')) end--;
    return end > start && (end[-1] == ']' || end[-1] == '}') ? value : NULL;
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
    size_t key_bytes = (size_t)PyBytes_Size(args[1]);
    const char *p = past(body, '{');
    for (int is_first = 1; p; is_first = 0) {
        int has_escapes;
        const char *name = past(p, '"');
        const char *behind = name ? past_string(name, &has_escapes) : NULL;
        if (!(p = past(behind, ':'))) break;
        p = past_space(p);
        if ((size_t)(behind - 1 - name) == key_bytes && memcmp(name, key, key_bytes) == 0) {
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

#define MOST_TOLD 20 /* wrong steps of a sequence whose places are returned */

/* What is wrong with the steps of one sequence. */
typedef struct {
    const char *start, *end;       /* of the item; NULL where that is the array of its steps */
    const char *steps, *steps_end; /* NULL where it has none */
    Py_ssize_t count, faults;      /* of all steps */
    int has_list;                  /* whether a step is an array */
    int told;                      /* how many of the wrong steps are told */
    Py_ssize_t places[MOST_TOLD], sizes[MOST_TOLD];
    const char *texts[MOST_TOLD], *ends[MOST_TOLD];
} Scanned;

/* The place behind a value of a step, or NULL. fault: 0 where it is right, 1 for null where none may be, 2 otherwise. */
static const char *scan_value(Reader *reader, const char *p, int *fault, Py_ssize_t *parts)
{
    float value;
    const char *end = read_value(reader, p, &value);
    int is_right = end != NULL;
    *fault = 0;
    if (reader->awaiting_count || (!end && (*p == '-' || is_digit(*p)))) {
        /* Left to another conversion, or refused: which is the same to decide whether it fits a float. */
        reader->awaiting_count = 0;
        if (!(end = past_number(p)) || end - p > MOST_SCANNED_DIGITS) return NULL;
        is_right = fabs(strtod(p, NULL)) < FLOAT32_BEYOND;
    }
    if (is_right) return end;
    if (!end && strncmp(p, "null", 4) == 0) {
        *fault = 1;
        return p + 4;
    }
    *fault = 2;
    return end ? end : past_json(p, parts);
}

/* The place behind a step of values, or NULL; in how many ways it is wrong, and of how many values it is. */
static const char *scan_step(Reader *reader, const char *p, Py_ssize_t *faults, Py_ssize_t *size, int *has_list,
                             Py_ssize_t *parts)
{
    int fault;
    *faults = *size = 0;
    if (*p != '[') {
        if (reader->features == 1) {
            p = scan_value(reader, p, &fault, parts);
            *faults = fault != 0;
            return p;
        }
        *faults = 1;
        return past_json(p, parts);
    }
    *has_list = 1;
    ++*parts;
    Py_ssize_t count = 0;
    int ends = 0; /* behind the first value that is not a number, nothing more is said of a step */
    p = past_space(p + 1);
    if (*p == ']') {
        p++;
    } else {
        for (;;) {
            if (!(p = scan_value(reader, past_space(p), &fault, parts))) return NULL;
            if (fault && !ends) ++*faults;
            ends |= fault == 2;
            count++;
            p = past_space(p);
            if (*p == ']') break;
            if (*p++ != ',') return NULL;
        }
        p++;
    }
    if (count != reader->features) *faults = 1;
    *size = count;
    return p;
}

/* The place behind a token id, or behind what stands in its place; NULL where that is not JSON. */
static const char *scan_token(Reader *reader, const char *p, Py_ssize_t *faults, Py_ssize_t *parts)
{
    int64_t token;
    const char *end = read_token(p, reader->vocabulary, &token);
    *faults = 0;
    if (end && !is_digit(*end) && *end != '.' && *end != 'e' && *end != 'E') return end;
    end = past_json(p, parts);
    *faults = end && !(end - p == 2 && strncmp(p, "-0", 2) == 0);
    return end;
}

/* All steps of a sequence, from its bracket on; the place behind them, or NULL where that is not JSON. */
static const char *scan_steps(Reader *reader, const char *p, Scanned *found, Py_ssize_t *parts)
{
    found->steps = p;
    ++*parts;
    p = past_space(p + 1);
    if (*p == ']') return found->steps_end = p + 1;
    for (;; found->count++) {
        Py_ssize_t faults, size = 0;
        const char *text = p = past_space(p);
        p = reader->features ? scan_step(reader, p, &faults, &size, &found->has_list, parts)
                             : scan_token(reader, p, &faults, parts);
        if (!p) return NULL;
        if (faults && found->told < MOST_TOLD) {
            found->places[found->told] = found->count;
            found->sizes[found->told] = size;
            found->texts[found->told] = text;
            found->ends[found->told++] = p;
        }
        found->faults += faults;
        p = past_space(p);
        if (*p == ']') break;
        if (*p++ != ',') return NULL;
    }
    found->count++;
    return found->steps_end = p + 1;
}

/* An item of any form; the place behind it, or NULL where that is not JSON. */
static const char *scan_item(Reader *reader, const char *p, Scanned *found, Py_ssize_t *parts)
{
    *found = (Scanned){0};
    if (*p == '[') return scan_steps(reader, p, found, parts);
    found->start = p;
    if (*p != '{') return found->end = past_json(p, parts);
    ++*parts;
    p = past_space(p + 1);
    if (*p == '}') return found->end = p + 1;
    for (;;) {
        const char *name = past_space(p);
        if (!(p = past_name(p))) return NULL;
        p = past_space(p);
        int is_steps = !found->steps && strncmp(name, "\"steps\"", 7) == 0 && *p == '[';
        if (!(p = is_steps ? scan_steps(reader, p, found, parts) : past_json(p, parts))) return NULL;
        p = past_space(p);
        if (*p == '}') break;
        if (*p++ != ',') return NULL;
    }
    return found->end = p + 1;
}

/* The items of the array between p and end, of which the first `most_sequences` are kept; their number, or -1. */
static Py_ssize_t scan_items(Reader *reader, const char *p, const char *end, Scanned **found, Py_ssize_t *parts)
{
    Py_ssize_t count = 0, room = 0;
    *found = NULL;
    if (!(p = past(p, '['))) return -1;
    p = past_space(p);
    if (*p == ']') return p + 1 == end ? 0 : -1;
    for (;; count++) {
        p = past_space(p);
        if (count < reader->most_sequences) {
            if (count == room) {
                Scanned *larger = realloc(*found, (size_t)(room = 2 * room + 4) * sizeof(Scanned));
                if (!larger) return -1;
                *found = larger;
            }
            p = scan_item(reader, p, *found + count, parts);
        } else {
            p = past_json(p, parts);
        }
        if (!p) return -1;
        p = past_space(p);
        if (*p == ']') break;
        if (*p++ != ',') return -1;
    }
    return p + 1 == end ? count + 1 : -1;
}

/* What was found of an item, see the documentation of `scan`. NULL with an exception. */
static PyObject *made_scan(const Scanned *found, const char *body)
{
    PyObject *told = PyList_New(found->told);
    if (!told) return NULL;
    for (int i = 0; i < found->told; i++) {
        PyObject *one = Py_BuildValue("nnnn", found->places[i], found->sizes[i], (Py_ssize_t)(found->texts[i] - body),
                                      (Py_ssize_t)(found->ends[i] - body));
        if (!one || PyList_SetItem(told, i, one) < 0) {
            Py_DECREF(told);
            return NULL;
        }
    }
#define PLACE(p) ((p) ? (Py_ssize_t)((p) - body) : (Py_ssize_t)-1)
    return Py_BuildValue("nnnnnniN", PLACE(found->start), PLACE(found->end), PLACE(found->steps),
                         PLACE(found->steps_end), found->count, found->faults, found->has_list, told);
}

PyDoc_STRVAR(scan_doc,
             "scan(body, start, end, features, vocabulary, most_sequences, takes_missing)\n--\n\n"
             "What is wrong with the steps in `body[start:end]`, an array: (count, parts, items), or None where that is\n"
             "no JSON, or only the reader in Python can tell. features is 0 where a step is a token id.\n\n"
             "count, parts: the number of items, and of all arrays, objects and strings.\n"
             "items: of the first `most_sequences` each (start, end, steps_start, steps_end, steps, faults, has_list,\n"
             "told); -1 for a place that it has not; told: of the first 20 wrong steps (step, features,\n"
             "start, end).");

static PyObject *scan(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Reader reader;
    const char *start, *end;
    Py_ssize_t bounds[3], parts = 0;
    Scanned *found;
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "scan takes 7 arguments");
        return NULL;
    }
    if (!take_text(args, &start, &end) || !take_integers(args + 3, 3, 0, bounds)) return NULL;
    if ((reader.takes_missing = PyObject_IsTrue(args[6])) < 0) return NULL;
    const char *body = PyBytes_AsString(args[0]);
    reader.features = bounds[0];
    reader.vocabulary = (uint64_t)bounds[1];
    reader.most_sequences = bounds[2];
    reader.awaiting_count = 0;
    reader.released = NULL;
    PyThreadState *released = PyEval_SaveThread();
    Py_ssize_t items = scan_items(&reader, start, end, &found, &parts);
    PyEval_RestoreThread(released);
    PyObject *list = NULL, *result = NULL;
    if (items >= 0) {
        Py_ssize_t kept = items < reader.most_sequences ? items : reader.most_sequences;
        list = PyList_New(kept);
        for (Py_ssize_t i = 0; list && i < kept; i++) {
            PyObject *one = made_scan(found + i, body);
            if (!one || PyList_SetItem(list, i, one) < 0) Py_CLEAR(list);
        }
        if (list) result = Py_BuildValue("nnN", items, parts, list);
    }
    free(found);
    if (items < 0) Py_RETURN_NONE;
    return result;
}

PyDoc_STRVAR(skip_doc,
             "skip(body, start, end)\n--\n\n"
             "What stands at `start`, an array: (place behind it, items, parts, has_text, has_nested), or None where it is\n"
             "no JSON, or its end is not before `end`.\n\n"
             "parts: the number of its arrays, objects and strings; has_text: whether an item is a string or a boolean;\n"
             "has_nested: whether one is an array or an object.");

static PyObject *skip(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    const char *start, *end;
    Py_ssize_t parts = 1, items = 0;
    int has_text = 0, has_nested = 0;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "skip takes 3 arguments");
        return NULL;
    }
    if (!take_text(args, &start, &end)) return NULL;
    PyThreadState *released = PyEval_SaveThread();
    const char *p = past(start, '[');
    const char *next = p && *past_space(p) != ']' ? p : NULL;
    while (next) {
        p = past_space(next);
        has_nested |= *p == '[' || *p == '{';
        has_text |= *p == '"' || *p == 't' || *p == 'f';
        items++;
        p = past_json(p, &parts);
        next = past(p, ',');
    }
    p = past(p, ']');
    PyEval_RestoreThread(released);
    if (!p || p > end) Py_RETURN_NONE;
    return Py_BuildValue("nnnNN", (Py_ssize_t)(p - PyBytes_AsString(args[0])), items, parts, PyBool_FromLong(has_text),
                         PyBool_FromLong(has_nested));
}

static PyMethodDef METHODS[] = {
    {"skip", (PyCFunction)(void (*)(void))skip, METH_FASTCALL, skip_doc},
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, scan_doc},
    {"locate", (PyCFunction)(void (*)(void))locate, METH_FASTCALL, locate_doc},
    {"read_values", (PyCFunction)(void (*)(void))read_values, METH_FASTCALL, read_values_doc},
    {"read_flat", (PyCFunction)(void (*)(void))read_flat, METH_FASTCALL, read_flat_doc},
    {"read_tokens", (PyCFunction)(void (*)(void))read_tokens, METH_FASTCALL, read_tokens_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    "lengthwise.decoding._fast_json",
    "Reads the sequences of an ordinary JSON body; see `lengthwise.decoding.fast_json`.",
    0,
    METHODS,
    NULL,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__fast_json(void) { return PyModuleDef_Init(&MODULE); }
