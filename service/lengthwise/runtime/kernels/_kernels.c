/* The library of kernels, to Python and to onnxruntime.
 *
 * To Python it is the module `lengthwise.runtime.kernels._kernels`: the instruction sets, and the cores that are idle. To
 * onnxruntime it is a library of custom operators (`RegisterCustomOps`): a session that registers it gets the operators of
 * the kernels that `offer` named last in its thread.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_library.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if AMX_COMPILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

const OrtApi *api;
static struct Kernels *const KERNELS[] = {&float_kernels, &integer_kernels, &shares_kernels, &convolution_kernels,
                                       &summaries_kernels, &attention_kernels, NULL};
static _Thread_local struct Kernels *offered = &float_kernels;

#if defined(__aarch64__) && defined(__APPLE__)
static int arm_has(const char *set)
{
    int found = 0;
    size_t size = sizeof found;
    return !sysctlbyname(!strcmp(set, "i8mm") ? "hw.optional.arm.FEAT_I8MM" : "hw.optional.arm.FEAT_DotProd", &found, &size,
                         NULL, 0) && found;
}
#elif defined(__aarch64__)
static int arm_has(const char *set)
{
    return !strcmp(set, "i8mm") ? (getauxval(AT_HWCAP2) & (1UL << 13)) != 0 : (getauxval(AT_HWCAP) & (1UL << 20)) != 0;
}
#elif AMX_COMPILES
/* Linux gives the registers of tiles to a process that asks for them, once for all of its threads. */
static int tiles_are_permitted(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    static int asked, permitted;
    if (!asked) permitted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    asked = 1;
    return permitted;
}
#endif

/* Whether the processor has an instruction set, and the system keeps the registers. Compilers' own functions for it are not
 * all filled in: of the one that the image is built with, they find nothing. */
static int processor_has(const char *set)
{
    if (!strcmp(set, "portable") || !strcmp(set, "amx_emulated")) return 1;
#if defined(__x86_64__)
    unsigned a, b, c, d, kept, high, most;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
    __asm__("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &most, &b, &c, &d) || !(b & bit_AVX2) || (kept & 0x06) != 0x06) return 0;
    if (!strcmp(set, "avx2")) return 1;
    if (!strcmp(set, "avxvnni"))
        return most >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)); /* AVX-VNNI */
    const unsigned avx512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512VL | bit_AVX512BW;
    if ((b & avx512) != avx512 || (kept & 0xe6) != 0xe6) return 0;
    if (!strcmp(set, "avx512") || !(c & (1u << 11))) return !strcmp(set, "avx512"); /* AVX512_VNNI */
#if AMX_COMPILES
    const unsigned tiles = 1u << 24 | 1u << 25; /* AMX_TILE, AMX_INT8 */
    if (!strcmp(set, "amx")) return (d & tiles) == tiles && (kept & 0x60000) == 0x60000 && tiles_are_permitted();
#endif
    return !strcmp(set, "avx512vnni");
#elif defined(__aarch64__)
    return !strcmp(set, "neon") || arm_has(set);
#else
    return 0;
#endif
}

/* ---- Onnxruntime's side. ---- */

/* What onnxruntime asks of an operator. */
static const struct Operator *this(const OrtCustomOp *op) { return (const void *)op; }
static const char *name(const OrtCustomOp *op) { return this(op)->name; }
static const char *provider(const OrtCustomOp *op) { return NULL; } /* the CPU's */
static int type_of(char letter)
{
    return letter == 'f' || letter == 'F' ? ORT_FLOAT : letter == 'i' || letter == 'I' ? ORT_INT32 : letter == 'b' ? ORT_INT8 : ORT_ANY_TYPE;
}
static int presence(char letter) { return letter >= 'a' ? ORT_REQUIRED : ORT_OPTIONAL; }
static int input_type(const OrtCustomOp *op, size_t index) { return type_of(this(op)->inputs[index]); }
static int output_type(const OrtCustomOp *op, size_t index) { return type_of(this(op)->outputs[index]); }
static size_t input_count(const OrtCustomOp *op) { return strlen(this(op)->inputs); }
static size_t output_count(const OrtCustomOp *op) { return strlen(this(op)->outputs); }
static int input_presence(const OrtCustomOp *op, size_t index) { return presence(this(op)->inputs[index]); }
static int output_presence(const OrtCustomOp *op, size_t index) { return presence(this(op)->outputs[index]); }
static int input_memory(const OrtCustomOp *op, size_t index) { return 0; }
static int not_variadic(const OrtCustomOp *op) { return 1; }

/* Lets a session use the operators of a domain. */
static OrtStatus *add_domain(OrtSessionOptions *options, struct Domain *domain)
{
    OrtCustomOpDomain *made = domain->made;
    if (!made) {
        OrtStatus *error = api->CreateCustomOpDomain(domain->name, &made);
        for (struct Operator *each = domain->operators; !error && each->name; each++) {
            each->op = (OrtCustomOp){
                .version = ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider,
                .GetInputType = input_type, .GetInputTypeCount = input_count, .GetInputCharacteristic = input_presence,
                .GetOutputType = output_type, .GetOutputTypeCount = output_count, .GetOutputCharacteristic = output_presence,
                .GetInputMemoryType = input_memory, .GetVariadic = {not_variadic, not_variadic, not_variadic, not_variadic},
                .CreateKernelV2 = each->create, .KernelComputeV2 = each->compute, .KernelDestroy = each->destroy,
            };
            error = api->CustomOpDomain_Add(made, &each->op);
        }
        if (error) return error;
        domain->made = made;
    }
    return api->AddCustomOpDomain(options, made);
}

/* What onnxruntime calls for each session that registers the library. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base)
{
    OrtStatus *error = NULL;
    api = base->GetApi(ORT_API_VERSION);
    for (struct Domain *domain = offered->domains; api && !error && domain->name; domain++) error = add_domain(options, domain);
    return error;
}

/* ---- Python's side. ---- */

/* The name of an instruction set, with which the `struct Cells` of every part begins. */
static const char *set_of(const struct Cells *cells) { return *(const char *const *)cells; }

/* The kernels that multiply such numbers; NULL with an error if there are none. */
static struct Kernels *named(const char *numbers)
{
    for (struct Kernels *const *kernels = KERNELS; *kernels; kernels++)
        if (!strcmp((*kernels)->numbers, numbers)) return *kernels;
    PyErr_Format(PyExc_ValueError, "there are no kernels for %s", numbers);
    return NULL;
}

static PyObject *offer(PyObject *module, PyObject *arguments)
{
    const char *numbers;
    if (!PyArg_ParseTuple(arguments, "s", &numbers)) return NULL;
    struct Kernels *kernels = named(numbers);
    if (!kernels) return NULL;
    offered = kernels;
    if (kernels->chosen) return PyUnicode_FromString(set_of(kernels->chosen));
    return PyErr_Format(PyExc_RuntimeError, "this processor has none of the instruction sets");
}

static PyObject *choose(PyObject *module, PyObject *arguments)
{
    const char *numbers, *set;
    if (!PyArg_ParseTuple(arguments, "ss", &numbers, &set)) return NULL;
    struct Kernels *kernels = named(numbers);
    if (!kernels) return NULL;
    for (const struct Cells *const *cells = kernels->known; *cells; cells++)
        if (!strcmp(set_of(*cells), set) && processor_has(set)) {
            kernels->chosen = *cells;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no %s", set);
}

static PyObject *chosen(PyObject *module, PyObject *arguments)
{
    const char *numbers;
    if (!PyArg_ParseTuple(arguments, "s", &numbers)) return NULL;
    const struct Kernels *kernels = named(numbers);
    if (!kernels) return NULL;
    return PyUnicode_FromString(kernels->chosen ? set_of(kernels->chosen) : "");
}

static PyObject *lend(PyObject *module, PyObject *arguments)
{
    long count;
    int soon;
    if (!PyArg_ParseTuple(arguments, "lp", &count, &soon)) return NULL;
    lend_cores(count, soon);
    Py_RETURN_NONE;
}

static PyObject *background(PyObject *module, PyObject *on)
{
    const int found = PyObject_IsTrue(on);
    if (found < 0) return NULL;
    in_background = found;
    Py_RETURN_NONE;
}

/* What `shares` computes, of arrays that have been read from its arguments; 0 with an error set. */
static int shares_of(const Py_buffer *plan, const Py_buffer *biases, const Py_buffer *values, const Py_buffer *lengths,
                     const Py_buffer *to)
{
    const Py_ssize_t rows = lengths->len / sizeof(int32_t), count = biases->len / sizeof(float);
    const int32_t *steps = lengths->buf;
    struct Shares *shares = make_shares(plan->buf, plan->len / sizeof(int32_t), biases->buf, count);
    const float **starts = malloc((rows + 1) * sizeof *starts);
    int good = shares && starts;
    Py_ssize_t left = good ? values->len / sizeof(float) / channels_of(shares) : 0; /* steps */
    const float *next = values->buf;
    for (Py_ssize_t row = 0; good && row < rows; row++) {
        good = steps[row] >= 0 && steps[row] <= left;
        starts[row] = next;
        next += good ? steps[row] * channels_of(shares) : 0;
        left -= steps[row];
    }
    good = good && left == 0 && to->len == (Py_ssize_t)sizeof(float) * rows * count;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        good = transform_rows(shares, starts, steps, rows, to->buf);
        Py_END_ALLOW_THREADS
    }
    free(starts);
    forget_shares(shares);
    if (!good) PyErr_SetString(PyExc_ValueError, "a damaged plan, arrays that do not fit each other, or no memory");
    return good;
}

static PyObject *shares(PyObject *module, PyObject *arguments)
{
    Py_buffer plan, biases, values, lengths, to;
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*w*", &plan, &biases, &values, &lengths, &to)) return NULL;
    const int good = shares_of(&plan, &biases, &values, &lengths, &to);
    for (Py_buffer *const *each = (Py_buffer *[]){&plan, &biases, &values, &lengths, &to, NULL}; *each; each++)
        PyBuffer_Release(*each);
    if (good) Py_RETURN_NONE;
    return NULL;
}

static PyObject *helped(PyObject *module, PyObject *nothing) { return PyFloat_FromDouble(helped_seconds); }

/* Of `_states.c`. */
void fill_letters(void);
PyObject *from_base64url(PyObject *module, PyObject *text);
PyObject *to_base64url(PyObject *module, PyObject *bytes);
PyObject *are_finite(PyObject *module, PyObject *args);

static PyMethodDef METHODS[] = {
    {"offer", offer, METH_VARARGS, "Names the kernels that the next session of this thread registers; gives their instruction set."},
    {"choose", choose, METH_VARARGS, "Makes the kernels of sessions opened from now on use that instruction set."},
    {"chosen", chosen, METH_VARARGS, "The instruction set that sessions opened from now on use; empty where there is none."},
    {"lend", lend, METH_VARARGS, "Says how many cores are idle: as many directions of layers may run beside their own thread."},
    {"helped", helped, METH_NOARGS, "The processor time, in seconds, that other threads have ever worked for this one."},
    {"shares", shares, METH_VARARGS, "Computes shares of steps above biases: plan, biases, values, lengths, and where to."},
    {"background", background, METH_O, "Whether layers that run in this thread let others run first, at each step."},
    {"from_base64url", from_base64url, METH_O, "The bytes of a text in base64url without padding; None for any other."},
    {"to_base64url", to_base64url, METH_O, "The text of bytes in base64url without padding."},
    {"are_finite", are_finite, METH_VARARGS, "Whether no number of a format of `struct` is NaN or infinite: format, bytes."},
    {NULL, NULL, 0, NULL},
};

/* The instruction sets of some kernels that this processor has, as a list; the best becomes the chosen one. */
static PyObject *sets_of(struct Kernels *kernels)
{
    PyObject *sets = PyList_New(0);
    for (const struct Cells *const *cells = kernels->known; sets && *cells; cells++) {
        if (!processor_has(set_of(*cells))) continue;
        PyObject *name = PyUnicode_FromString(set_of(*cells));
        if (!name || PyList_Append(sets, name)) Py_CLEAR(sets);
        Py_XDECREF(name);
        if (!kernels->chosen) kernels->chosen = *cells;
    }
    return sets;
}

static int fill(PyObject *module)
{
    fill_letters();
    PyObject *all = PyDict_New();
    int failed = !all;
    for (struct Kernels *const *kernels = KERNELS; !failed && *kernels; kernels++) {
        PyObject *list = sets_of(*kernels), *sets = list ? PySequence_Tuple(list) : NULL;
        failed = !sets || PyDict_SetItemString(all, (*kernels)->numbers, sets);
        Py_XDECREF(sets);
        Py_XDECREF(list);
    }
    failed = failed || PyModule_AddObjectRef(module, "INSTRUCTION_SETS", all);
    Py_XDECREF(all);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_methods = METHODS, .m_slots = SLOTS,
    .m_doc = "LSTM and GRU for onnxruntime that compute valid steps only; see `lengthwise.runtime.recurrent_kernels`.",
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&MODULE); }
