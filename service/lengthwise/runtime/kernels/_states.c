/* The text of a sequence's state: base64url without padding, and whether the numbers in it are finite.
 *
 * `runtime/states.py` says what a text holds; without this part it does the same with other libraries, in twice the time.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_library.h"

static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
static uint8_t SIX_BITS[256]; /* of a letter; above 63 for any other byte */
static char PAIRS[4096][2];   /* the two letters of 12 bits */

void fill_letters(void)
{
    memset(SIX_BITS, 0xFF, sizeof SIX_BITS);
    for (int i = 0; i < 64; i++) SIX_BITS[(uint8_t)LETTERS[i]] = (uint8_t)i;
    for (int i = 0; i < 4096; i++) PAIRS[i][0] = LETTERS[i >> 6], PAIRS[i][1] = LETTERS[i & 63];
}

/* Decodes letters; whether all are letters, and their last bits are those of this text alone. */
static int decode(const uint8_t *letters, Py_ssize_t count, uint8_t *out)
{
    unsigned seen = 0;
    for (; count >= 4; count -= 4, letters += 4, out += 3) {
        unsigned a = SIX_BITS[letters[0]], b = SIX_BITS[letters[1]], c = SIX_BITS[letters[2]], d = SIX_BITS[letters[3]];
        seen |= a | b | c | d;
        out[0] = (uint8_t)(a << 2 | b >> 4);
        out[1] = (uint8_t)(b << 4 | c >> 2);
        out[2] = (uint8_t)(c << 6 | d);
    }
    if (count >= 2) {
        unsigned a = SIX_BITS[letters[0]], b = SIX_BITS[letters[1]], c = count == 3 ? SIX_BITS[letters[2]] : 0;
        seen |= a | b | c | ((count == 3 ? c & 3 : b & 15) ? 0xFF : 0);
        out[0] = (uint8_t)(a << 2 | b >> 4);
        if (count == 3) out[1] = (uint8_t)(b << 4 | c >> 2);
    }
    return seen < 64;
}

/* The bytes of a text, which is `str` or `bytes`; None where it is not base64url without padding, in its one form. */
PyObject *from_base64url(PyObject *module, PyObject *text)
{
    Py_ssize_t count;
    const char *letters = NULL;
    if (PyBytes_Check(text)) {
        letters = PyBytes_AsString(text);
        count = PyBytes_Size(text);
    } else if (!(letters = PyUnicode_AsUTF8AndSize(text, &count))) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return NULL;
        PyErr_Clear(); /* half a character */
        Py_RETURN_NONE;
    }
    if (count % 4 == 1) Py_RETURN_NONE;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count / 4 * 3 + (count % 4 ? count % 4 - 1 : 0));
    if (bytes && !decode((const uint8_t *)letters, count, (uint8_t *)PyBytes_AsString(bytes))) {
        Py_DECREF(bytes);
        Py_RETURN_NONE;
    }
    return bytes;
}

/* The text of bytes. */
PyObject *to_base64url(PyObject *module, PyObject *bytes)
{
    char *content;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &content, &size) < 0) return NULL;
    const uint8_t *in = (const uint8_t *)content;
    const Py_ssize_t count = size / 3 * 4 + (size % 3 ? size % 3 + 1 : 0);
    char *letters = malloc((size_t)count + 4), *out = letters;
    if (!letters) return PyErr_NoMemory();
    for (; size > 0; size -= 3, in += 3, out += 4) {
        unsigned bits = (unsigned)in[0] << 16 | (size > 1 ? (unsigned)in[1] << 8 : 0) | (size > 2 ? in[2] : 0);
        memcpy(out, PAIRS[bits >> 12], 2);
        memcpy(out + 2, PAIRS[bits & 4095], 2);
    }
    PyObject *text = PyUnicode_FromStringAndSize(letters, count);
    free(letters);
    return text;
}

/* Whether no number of some bytes is NaN or infinite. The numbers are as a format of Python's `struct` says, which names
 * each kind after how many there are: f, d, i and q. */
PyObject *are_finite(PyObject *module, PyObject *args)
{
    const char *format, *numbers;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "sy#", &format, &numbers, &size)) return NULL;
    const char *end = numbers + size;
    int is_other = 0;
    for (char *kind = (char *)format; *kind; kind++) {
        const long count = strtol(kind, &kind, 10), bytes = *kind == 'f' || *kind == 'i' ? 4 : 8;
        if (!*kind || count < 0 || count > (end - numbers) / bytes) {
            PyErr_SetString(PyExc_ValueError, "the numbers are not those of the format");
            return NULL;
        }
        for (long i = 0; *kind == 'f' && i < count; i++) {
            uint32_t bits;
            memcpy(&bits, numbers + 4 * i, 4);
            is_other |= (bits & 0x7F800000) == 0x7F800000;
        }
        for (long i = 0; *kind == 'd' && i < count; i++) {
            uint64_t bits;
            memcpy(&bits, numbers + 8 * i, 8);
            is_other |= (bits & 0x7FF0000000000000) == 0x7FF0000000000000;
        }
        numbers += count * bytes;
    }
    return PyBool_FromLong(!is_other);
}
