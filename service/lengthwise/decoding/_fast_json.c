/* The inner loop of the hot path, in C: a plain body's numbers, from its text to the bytes of an array.
 *
 * `service/lengthwise/decoding/fast_json.py` says when it is asked. It vouches for what it returns and for nothing else: of whatever is not
 * exactly what it expects it says None, and the careful reader decides. Held to that by tests/service/test_fast_json.py.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FLOAT32_MAX 3.4028234663852886e38
#define LARGEST_EXACT (1ULL << 53) /* up to here a double holds every integer */
#define MOST_DIGITS 19             /* of an integer that fits 64 bits whatever its digits are */
#define LONGEST_NUMBER 64
#define SMALL_BYTES 16384 /* what is read of most bodies fits in that much, on the stack */

/* Powers of ten that a double holds exactly: one product or quotient with them is correctly rounded. */
static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define LARGEST_POWER 22

/* All of these read a text that ends in NUL, which is part of no token, so none of them passes its end. */

static inline const char *past_space(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r') p++;
    return p;
}

static inline int is_digit(char c) { return (unsigned char)(c - '0') < 10; }

/* What stands at p, past white space, and is c: the place behind both. NULL where it is not, or p is NULL. */
static inline const char *past(const char *p, char c)
{
    if (!p) return NULL;
    p = past_space(p);
    return *p == c ? p + 1 : NULL;
}

/* A number of JSON's grammar, rounded to double and from there to float; the place behind it, or NULL.
 *
 * Of up to 53 bits and a small power of ten one operation gives the nearest double (Clinger, PLDI 1990); Python's own
 * conversion gives it of all others. Integers past 53 bits are left to the careful reader, which has its own rule.
 */
static const char *read_float(const char *p, float *out)
{
    const char *start = p;
    int negative = *p == '-';
    p += negative;
    const char *digits = p;
    uint64_t mantissa = 0;
    while (is_digit(*p)) mantissa = mantissa * 10 + (uint64_t)(*p++ - '0');
    Py_ssize_t count = p - digits;
    if (count == 0 || (count > 1 && *digits == '0')) return NULL;
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
        int given = 0;
        while (is_digit(*p) && p - first < 5) given = given * 10 + (*p++ - '0');
        if (p == first || is_digit(*p)) return NULL;
        exponent += below_one ? -given : given;
        integer = 0;
    }
    double value;
    if (count <= MOST_DIGITS && mantissa <= LARGEST_EXACT && -LARGEST_POWER <= exponent && exponent <= LARGEST_POWER) {
        value = (double)mantissa;
        value = exponent < 0 ? value / POWERS[-exponent] : value * POWERS[exponent];
        if (negative && !(integer && mantissa == 0)) value = -value; /* the integer -0 is 0, the number -0.0 is not */
    } else {
        char text[LONGEST_NUMBER + 1];
        size_t length = (size_t)(p - start);
        if (integer || length > LONGEST_NUMBER) return NULL;
        memcpy(text, start, length);
        text[length] = '\0';
        value = PyOS_string_to_double(text, NULL, NULL);
        if (value == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            return NULL;
        }
    }
    if (!(fabs(value) <= FLOAT32_MAX)) return NULL;
    *out = (float)value;
    return p;
}

/* A token id below a bound; the place behind it, or NULL. */
static const char *read_token(const char *p, uint64_t vocabulary, int64_t *out)
{
    const char *digits = p;
    uint64_t value = 0;
    while (is_digit(*p) && p - digits < MOST_DIGITS) value = value * 10 + (uint64_t)(*p++ - '0');
    if (p == digits || (p - digits > 1 && *digits == '0') || value >= vocabulary) return NULL;
    *out = (int64_t)value;
    return p; /* what follows is no comma and no bracket where this is only the beginning of another number */
}

/* Up to the first step of `{"root": [[`; NULL where something else stands there. */
static const char *past_opening(const char *p, const char *end, const char *root, Py_ssize_t length)
{
    p = past(past(p, '{'), '"');
    if (!p || end - p < length || memcmp(p, root, (size_t)length)) return NULL;
    p = p[length] == '"' ? past(past(past(p + length + 1, ':'), '['), '[') : NULL;
    return p ? past_space(p) : NULL;
}

/* From behind the last step to the end; NULL where anything but `]]}` is left. */
static const char *past_closing(const char *p, const char *end)
{
    p = past(past(past(p, ']'), ']'), '}');
    return p && past_space(p) == end ? end : NULL;
}

/* What both readers are given: the body, the root, two numbers. False, with an exception, where it is anything else. */
static int take(PyObject *const *args, Py_ssize_t count, const char **body, const char **end, const char **root,
                Py_ssize_t *root_length, Py_ssize_t *first, Py_ssize_t *second)
{
    if (count != 4 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "wants the body and the root as bytes, and two integers");
        return 0;
    }
    *body = PyBytes_AsString(args[0]);
    *end = *body + PyBytes_Size(args[0]);
    *root = PyBytes_AsString(args[1]);
    *root_length = PyBytes_Size(args[1]);
    *first = PyLong_AsSsize_t(args[2]);
    if (*first == -1 && PyErr_Occurred()) return 0;
    *second = PyLong_AsSsize_t(args[3]);
    if (*second == -1 && PyErr_Occurred()) return 0;
    if (*first < 1 || *second < 1) {
        PyErr_SetString(PyExc_ValueError, "wants integers above 0");
        return 0;
    }
    return 1;
}

/* How many numbers are made room for: as many as are wanted, but no more than the text can hold. */
static Py_ssize_t room(Py_ssize_t steps, Py_ssize_t per_step, Py_ssize_t bytes)
{
    Py_ssize_t held = bytes / 2 + 1; /* a number and what parts it from the next one */
    return steps > held / per_step ? held : steps * per_step;
}

PyDoc_STRVAR(read_values_doc,
             "read_values(body, root, features, most_steps)\n--\n\n"
             "The values of a body that is one sequence and nothing else: [steps, features] float32, as bytes.\n\n"
             "None of any other body, and wherever the careful reader has to decide.");

static PyObject *read_values(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    const char *p, *end, *root;
    Py_ssize_t root_length, features, most_steps;
    if (!take(args, count, &p, &end, &root, &root_length, &features, &most_steps)) return NULL;
    Py_ssize_t most = room(most_steps, features, end - p), found = 0;
    if (!(p = past_opening(p, end, root, root_length))) Py_RETURN_NONE;
    int bare = features == 1 && *p != '[';
    float small[SMALL_BYTES / sizeof(float)], *values = small;
    if ((size_t)most * sizeof(float) > sizeof small && !(values = malloc((size_t)most * sizeof(float))))
        return PyErr_NoMemory();
    for (;;) {
        if (features > most - found) goto unsure;
        if (!bare && !(p = past(p, '['))) goto unsure;
        for (Py_ssize_t feature = 0; feature < features; feature++) {
            if (feature && !(p = past(p, ','))) goto unsure;
            if (!(p = read_float(past_space(p), values + found++))) goto unsure;
        }
        if (!bare && !(p = past(p, ']'))) goto unsure;
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    if (!past_closing(p, end)) goto unsure;
    PyObject *made = PyBytes_FromStringAndSize((const char *)values, found * (Py_ssize_t)sizeof(float));
    if (values != small) free(values);
    return made;
unsure:
    if (values != small) free(values);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(read_tokens_doc,
             "read_tokens(body, root, vocabulary, most_steps)\n--\n\n"
             "The token ids of a body that is one sequence and nothing else: [steps] int64, as bytes.\n\n"
             "None of any other body, and wherever the careful reader has to decide.");

static PyObject *read_tokens(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    const char *p, *end, *root;
    Py_ssize_t root_length, vocabulary, most_steps;
    if (!take(args, count, &p, &end, &root, &root_length, &vocabulary, &most_steps)) return NULL;
    Py_ssize_t most = room(most_steps, 1, end - p), found = 0;
    if (!(p = past_opening(p, end, root, root_length))) Py_RETURN_NONE;
    int64_t small[SMALL_BYTES / sizeof(int64_t)], *tokens = small;
    if ((size_t)most * sizeof(int64_t) > sizeof small && !(tokens = malloc((size_t)most * sizeof(int64_t))))
        return PyErr_NoMemory();
    for (;;) {
        if (found == most || !(p = read_token(past_space(p), (uint64_t)vocabulary, tokens + found++))) goto unsure;
        const char *next = past(p, ',');
        if (!next) break;
        p = next;
    }
    if (!past_closing(p, end)) goto unsure;
    PyObject *made = PyBytes_FromStringAndSize((const char *)tokens, found * (Py_ssize_t)sizeof(int64_t));
    if (tokens != small) free(tokens);
    return made;
unsure:
    if (tokens != small) free(tokens);
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"read_values", (PyCFunction)(void (*)(void))read_values, METH_FASTCALL, read_values_doc},
    {"read_tokens", (PyCFunction)(void (*)(void))read_tokens, METH_FASTCALL, read_tokens_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "lengthwise.decoding._fast_json", "The inner loop of the hot path; see `lengthwise.decoding.fast_json`.", 0, METHODS,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fast_json(void) { return PyModuleDef_Init(&MODULE); }
