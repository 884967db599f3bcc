/* Python's side of a library of kernels: the instruction sets that it has, and the cores that are idle.
 *
 * Included at the end of each library. It uses `KNOWN`, `runs_here` and `chosen`, and MODULE_NAME and MODULE_TEXT, which
 * the library defines.
 */
#define SPARE_CORES "lengthwise.spare_cores"

static PyObject *choose(PyObject *module, PyObject *name)
{
    const char *wanted = PyUnicode_AsUTF8AndSize(name, NULL);
    if (!wanted) return NULL;
    for (const struct Cells *cells = KNOWN; cells->name; cells++)
        if (!strcmp(cells->name, wanted) && runs_here(cells)) {
            chosen = cells;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no %s", wanted);
}

static PyObject *chosen_name(PyObject *module, PyObject *nothing)
{
    if (chosen) return PyUnicode_FromString(chosen->name);
    return PyErr_Format(PyExc_RuntimeError, "this processor has none of the instruction sets");
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

static PyObject *helped(PyObject *module, PyObject *nothing) { return PyFloat_FromDouble(helped_seconds); }

/* The idle cores that this library counts, and its threads, for `share` of another. */
static PyObject *spare_cores(PyObject *module, PyObject *nothing) { return PyCapsule_New(spare, SPARE_CORES, NULL); }

static PyObject *share(PyObject *module, PyObject *capsule)
{
    struct SpareCores *others = PyCapsule_GetPointer(capsule, SPARE_CORES);
    if (!others) return NULL;
    spare = others;
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"lend", lend, METH_VARARGS, "Says how many cores are idle: as many directions of layers may run beside their own thread."},
    {"helped", helped, METH_NOARGS, "The processor time, in seconds, that other threads have ever worked for this one."},
    {"background", background, METH_O, "Whether layers that run in this thread let others run first, at each step."},
    {"spare_cores", spare_cores, METH_NOARGS, "The idle cores and the threads for them, which another library may share."},
    {"share", share, METH_O, "Makes this library use the idle cores and threads of another, before it has used any."},
    {"chosen", chosen_name, METH_NOARGS, "The instruction set that sessions opened from now on use."},
    {"choose", choose, METH_O, "Makes the kernels of sessions opened from now on use that instruction set."},
    {NULL, NULL, 0, NULL},
};

static int fill(PyObject *module)
{
    PyObject *names = PyList_New(0);
    if (!names) return -1;
    for (const struct Cells *cells = KNOWN; cells->name; cells++) {
        if (!runs_here(cells)) continue;
        if (!chosen) chosen = cells;
        PyObject *name = PyUnicode_FromString(cells->name);
        const int failed = !name || PyList_Append(names, name);
        Py_XDECREF(name);
        if (failed) {
            Py_DECREF(names);
            return -1;
        }
    }
    PyObject *tuple = PyList_AsTuple(names);
    Py_DECREF(names);
    const int failed = !tuple || PyModule_AddObjectRef(module, "INSTRUCTION_SETS", tuple);
    Py_XDECREF(tuple);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, .m_name = MODULE_NAME, .m_methods = METHODS, .m_slots = SLOTS, .m_doc = MODULE_TEXT,
};
