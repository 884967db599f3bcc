/* The part of onnxruntime's C interface that the kernels use.
 *
 * onnxruntime gives a custom operator one table of functions, `OrtApi`. The table only grows: a function keeps its slot
 * in every later version. onnxruntime's own header is not in its wheel, so the functions that are used are declared here,
 * each in its slot with its real signature; tests/service/test_recurrent_kernels.py runs all of them.
 *
 * The types are opaque, and are distinct so that they cannot be mixed up.
 */
#ifndef LENGTHWISE_ONNXRUNTIME_API_H
#define LENGTHWISE_ONNXRUNTIME_API_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 16 /* of onnxruntime 1.16, the oldest that has everything used here */

typedef struct OrtStatus OrtStatus; /* NULL is success; else the caller releases it */
typedef struct OrtValue OrtValue;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtKernelInfo OrtKernelInfo;       /* a node, when its kernel is created */
typedef struct OrtKernelContext OrtKernelContext; /* a node, when its kernel runs */
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOp OrtCustomOp;
typedef union OrtApi OrtApi;

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtElementType { ORT_ANY_TYPE = 0, ORT_FLOAT = 1, ORT_INT8 = 3, ORT_INT32 = 6 };
enum OrtPresence { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

#define SLOT(slot, function) struct { void *before_##slot[slot]; function; };

union OrtApi {
    OrtStatus *(*CreateStatus)(int code, const char *message);
    SLOT(26, OrtStatus *(*CreateCustomOpDomain)(const char *name, OrtCustomOpDomain **domain))
    SLOT(27, OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op))
    SLOT(28, OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain))
    SLOT(51, OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data))
    SLOT(61, OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *count))
    SLOT(62, OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *dimensions, size_t count))
    SLOT(65, OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **info))
    SLOT(85, OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name, float *value))
    SLOT(86, OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name, int64_t *value))
    SLOT(87, OrtStatus *(*KernelInfoGetAttribute_string)(const OrtKernelInfo *info, const char *name, char *text, size_t *size))
    SLOT(88, OrtStatus *(*KernelContext_GetInputCount)(const OrtKernelContext *context, size_t *count))
    SLOT(89, OrtStatus *(*KernelContext_GetOutputCount)(const OrtKernelContext *context, size_t *count))
    SLOT(90, OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **value))
    SLOT(91, OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *dimensions,
                                                   size_t count, OrtValue **value))
    SLOT(93, void (*ReleaseStatus)(OrtStatus *status))
    SLOT(99, void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info))
    SLOT(230, OrtStatus *(*KernelInfo_GetInputCount)(const OrtKernelInfo *info, size_t *count))
    SLOT(232, OrtStatus *(*KernelInfo_GetInputName)(const OrtKernelInfo *info, size_t index, char *name, size_t *size))
    SLOT(249, OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *info, size_t index, int *is_constant,
                                                              const OrtValue **value))
};
#undef SLOT

/* What onnxruntime passes to `RegisterCustomOps`. */
typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version); /* NULL if the version is newer than onnxruntime */
    const char *(*GetVersionString)(void);
} OrtApiBase;

/* A custom operator: the fields of version 16, in their order. */
struct OrtCustomOp {
    uint32_t version;
    void *CreateKernel; /* of older versions */
    const char *(*GetName)(const OrtCustomOp *op);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *op);
    int (*GetInputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp *op);
    int (*GetOutputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
    void *KernelCompute; /* of older versions */
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index);
    int (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp *op, size_t index);
    int (*GetVariadic[4])(const OrtCustomOp *op); /* minimum and homogeneity, of inputs and of outputs */
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
    void *later[8];
};

#endif
