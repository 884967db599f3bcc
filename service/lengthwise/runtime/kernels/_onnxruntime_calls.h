/* Calls of onnxruntime's C interface that kernels make: a node's attributes and constants, a run's inputs and outputs.
 *
 * `_kernels.c` sets `api` when onnxruntime registers the library.
 */
#ifndef LENGTHWISE_ONNXRUNTIME_CALLS_H
#define LENGTHWISE_ONNXRUNTIME_CALLS_H

#include <string.h>

#include "_onnxruntime_api.h"

extern const OrtApi *api;

static inline OrtStatus *status(int code, const char *message)
{
    return api->CreateStatus(code, message);
}

/* Whether a call succeeded; releases its status. */
static inline int well(OrtStatus *status)
{
    if (status) api->ReleaseStatus(status);
    return !status;
}

/* A tensor's data, and its dimensions; NULL if it does not have `count` dimensions. */
static inline void *tensor(const OrtValue *value, int64_t *dimensions, size_t count)
{
    OrtTensorTypeAndShapeInfo *shape = NULL;
    void *data = NULL;
    size_t found = 0;
    if (!well(api->GetTensorTypeAndShape(value, &shape))) return NULL;
    int good = well(api->GetDimensionsCount(shape, &found)) && found == count &&
               well(api->GetDimensions(shape, dimensions, count));
    api->ReleaseTensorTypeAndShapeInfo(shape);
    good = good && well(api->GetTensorMutableData((OrtValue *)value, &data));
    return good ? data : NULL;
}

/* An integer attribute, or `otherwise` if it is absent. */
static inline int64_t whole(const OrtKernelInfo *info, const char *name, int64_t otherwise)
{
    int64_t found;
    return well(api->KernelInfoGetAttribute_int64(info, name, &found)) ? found : otherwise;
}

/* A text attribute of at most `size` bytes into `text`, which stays as it is if the attribute is absent. Returns whether
 * it fits. */
static inline int text_of(const OrtKernelInfo *info, const char *name, char *text, size_t size)
{
    size_t needed = size;
    return well(api->KernelInfoGetAttribute_string(info, name, text, &needed)) || needed <= size;
}

/* Whether onnxruntime says the same of two attributes that it cannot read as a text, but for their names. */
static inline int said_alike(const OrtKernelInfo *info, const char *one, const char *other)
{
    size_t size = 0;
    OrtStatus *of_one = api->KernelInfoGetAttribute_string(info, one, NULL, &size);
    size = 0;
    OrtStatus *of_other = api->KernelInfoGetAttribute_string(info, other, NULL, &size);
    int alike = of_one && of_other;
    if (alike) {
        const char *a = api->GetErrorMessage(of_one), *b = api->GetErrorMessage(of_other);
        while (alike && (*a || *b)) {
            if (!strncmp(a, one, strlen(one)) && !strncmp(b, other, strlen(other))) {
                a += strlen(one);
                b += strlen(other);
            } else {
                alike = *a++ == *b++;
            }
        }
    }
    well(of_one);
    well(of_other);
    return alike;
}

/* Whether a recurrent layer has no such attribute, of whatever type. onnxruntime has no call for that: what it says of
 * the attribute is compared with what it says of one that no operator has. If it said the same of hidden_size, a number
 * that every layer has, its words would tell nothing, and no attribute counts as absent. */
static inline int absent(const OrtKernelInfo *info, const char *name)
{
    const char *const nobodys = "lengthwise_has_no_such_attribute";
    return said_alike(info, name, nobodys) && !said_alike(info, "hidden_size", nobodys);
}

/* Whether the node has an input: an omitted one has no name. */
static inline int has_input(const OrtKernelInfo *info, size_t index)
{
    size_t count = 0, size = 0;
    return well(api->KernelInfo_GetInputCount(info, &count)) && index < count &&
           (!well(api->KernelInfo_GetInputName(info, index, NULL, &size)) || size > 1);
}

/* The data of a constant input; NULL if it is not constant, or has another number of dimensions. */
static inline const void *constant(const OrtKernelInfo *info, size_t index, int64_t *dimensions, size_t count)
{
    int is_constant = 0;
    const OrtValue *value = NULL;
    if (!well(api->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value)) || !is_constant || !value)
        return NULL;
    return tensor(value, dimensions, count);
}

/* The data of an input of a run; NULL if it is omitted, or has not `count` dimensions (then `*good` becomes 0). */
static inline const void *input(OrtKernelContext *context, size_t index, int64_t *dimensions, size_t count, int *good)
{
    size_t inputs = 0;
    const OrtValue *value = NULL;
    if (!well(api->KernelContext_GetInputCount(context, &inputs)) || index >= inputs ||
        !well(api->KernelContext_GetInput(context, index, &value)) || !value)
        return NULL;
    for (size_t i = 0; i < count; i++) dimensions[i] = 1;
    const void *data = tensor(value, dimensions, count);
    if (data) return data;
    /* A tensor without elements (no rows or no steps) may have no data, and none is read. */
    static const float nothing = 0;
    for (size_t i = 0; i < count; i++)
        if (dimensions[i] == 0) return &nothing;
    *good = 0;
    return NULL;
}

/* The floats of a required input of a run with at most `most` dimensions, which it gives; NULL if it has more. */
static inline const float *any_shape(OrtKernelContext *context, size_t index, int64_t *dimensions, size_t most,
                                     size_t *count)
{
    static const float nothing = 0;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    const OrtValue *value = NULL;
    void *data = NULL;
    if (!well(api->KernelContext_GetInput(context, index, &value)) || !value ||
        !well(api->GetTensorTypeAndShape(value, &shape)))
        return NULL;
    const int good = well(api->GetDimensionsCount(shape, count)) && *count <= most &&
                     well(api->GetDimensions(shape, dimensions, *count)) &&
                     well(api->GetTensorMutableData((OrtValue *)value, &data));
    api->ReleaseTensorTypeAndShapeInfo(shape);
    return !good ? NULL : data ? data : &nothing;
}

/* Allocates an output of a run; `*data` stays NULL if it is not requested. Returns an error, or NULL. */
static inline OrtStatus *output(OrtKernelContext *context, size_t index, const int64_t *dimensions, size_t count,
                         float **data)
{
    size_t outputs = 0;
    OrtValue *value = NULL;
    OrtStatus *error = api->KernelContext_GetOutputCount(context, &outputs);
    if (error || index >= outputs) return error;
    error = api->KernelContext_GetOutput(context, index, dimensions, count, &value);
    if (error || !value) return error;
    return api->GetTensorMutableData(value, (void **)data);
}

#endif
