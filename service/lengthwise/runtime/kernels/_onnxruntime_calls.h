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

/* A tensor's data, and its dimensions: `*count` of them. NULL if there are more than `*count` was. */
static inline const void *tensor(const OrtValue *value, int64_t *dimensions, size_t *count)
{
    static const float nothing = 0; /* a tensor without elements may have no data, and none is read */
    const size_t most = *count;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    void *data = NULL;
    if (!well(api->GetTensorTypeAndShape(value, &shape))) return NULL;
    const int good = well(api->GetDimensionsCount(shape, count)) && *count <= most &&
                     well(api->GetDimensions(shape, dimensions, *count)) &&
                     well(api->GetTensorMutableData((OrtValue *)value, &data));
    api->ReleaseTensorTypeAndShapeInfo(shape);
    return !good ? NULL : data ? data : &nothing;
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

/* Whether the node has an input: an omitted one has no name. */
static inline int has_input(const OrtKernelInfo *info, size_t index)
{
    size_t count = 0, size = 0;
    return well(api->KernelInfo_GetInputCount(info, &count)) && index < count &&
           (!well(api->KernelInfo_GetInputName(info, index, NULL, &size)) || size > 1);
}

/* The data of a constant input; NULL if it is not constant, or has not `count` dimensions. */
static inline const void *constant(const OrtKernelInfo *info, size_t index, int64_t *dimensions, size_t count)
{
    int is_constant = 0;
    size_t found = count;
    const OrtValue *value = NULL;
    if (!well(api->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value)) || !is_constant || !value)
        return NULL;
    const void *data = tensor(value, dimensions, &found);
    return found == count ? data : NULL;
}

/* The data of an input of a run; NULL if it is omitted, or has not `count` dimensions (then `*good` becomes 0). */
static inline const void *input(OrtKernelContext *context, size_t index, int64_t *dimensions, size_t count, int *good)
{
    size_t inputs = 0, found = count;
    const OrtValue *value = NULL;
    if (!well(api->KernelContext_GetInputCount(context, &inputs)) || index >= inputs ||
        !well(api->KernelContext_GetInput(context, index, &value)) || !value)
        return NULL;
    const void *data = tensor(value, dimensions, &found);
    if (data && found == count) return data;
    *good = 0;
    return NULL;
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
