/* The part of onnxruntime's C interface that the kernels use.
 *
 * onnxruntime gives a custom operator one table of functions, `OrtApi`. The table only grows: a function keeps its slot
 * in every later version. onnxruntime's own header is not in its wheel, so the functions that are used are declared here,
 * with their real signatures, and the slots between them as unnamed pointers. The compiler checks every call against the
 * signatures and, below, every function against its slot; tests/service/test_recurrent_kernels.py runs all of them.
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
typedef struct OrtApi OrtApi;

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtElementType { ORT_ANY_TYPE = 0, ORT_FLOAT = 1, ORT_INT8 = 3, ORT_INT32 = 6 };
enum OrtPresence { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

struct OrtApi {
    OrtStatus *(*CreateStatus)(int code, const char *message);
    void *slot_1[1];
    const char *(*GetErrorMessage)(const OrtStatus *status);
    void *slot_3[23];
    OrtStatus *(*CreateCustomOpDomain)(const char *name, OrtCustomOpDomain **domain);
    OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op);
    OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
    void *slot_29[22];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data);
    void *slot_52[9];
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *count);
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *dimensions, size_t count);
    void *slot_63[2];
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **info);
    void *slot_66[20];
    OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name, int64_t *value);
    OrtStatus *(*KernelInfoGetAttribute_string)(const OrtKernelInfo *info, const char *name, char *text, size_t *size);
    OrtStatus *(*KernelContext_GetInputCount)(const OrtKernelContext *context, size_t *count);
    OrtStatus *(*KernelContext_GetOutputCount)(const OrtKernelContext *context, size_t *count);
    OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **value);
    OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *dimensions,
                                          size_t count, OrtValue **value);
    void *slot_92[1];
    void (*ReleaseStatus)(OrtStatus *status);
    void *slot_94[5];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info);
    void *slot_100[130];
    OrtStatus *(*KernelInfo_GetInputCount)(const OrtKernelInfo *info, size_t *count);
    void *slot_231[1];
    OrtStatus *(*KernelInfo_GetInputName)(const OrtKernelInfo *info, size_t index, char *name, size_t *size);
    void *slot_233[16];
    OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *info, size_t index, int *is_constant,
                                                    const OrtValue **value);
};

#define ORT_SLOT(function, slot) \
    _Static_assert(offsetof(struct OrtApi, function) == (slot) * sizeof(void *), #function " is not in slot " #slot)
ORT_SLOT(CreateStatus, 0);
ORT_SLOT(GetErrorMessage, 2);
ORT_SLOT(CreateCustomOpDomain, 26);
ORT_SLOT(CustomOpDomain_Add, 27);
ORT_SLOT(AddCustomOpDomain, 28);
ORT_SLOT(GetTensorMutableData, 51);
ORT_SLOT(GetDimensionsCount, 61);
ORT_SLOT(GetDimensions, 62);
ORT_SLOT(GetTensorTypeAndShape, 65);
ORT_SLOT(KernelInfoGetAttribute_int64, 86);
ORT_SLOT(KernelInfoGetAttribute_string, 87);
ORT_SLOT(KernelContext_GetInputCount, 88);
ORT_SLOT(KernelContext_GetOutputCount, 89);
ORT_SLOT(KernelContext_GetInput, 90);
ORT_SLOT(KernelContext_GetOutput, 91);
ORT_SLOT(ReleaseStatus, 93);
ORT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
ORT_SLOT(KernelInfo_GetInputCount, 230);
ORT_SLOT(KernelInfo_GetInputName, 232);
ORT_SLOT(KernelInfoGetConstantInput_tensor, 249);
#undef ORT_SLOT

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
