// Compiled where cuSPARSELt's header is at hand, run never: holds cusparselt.h against it.
#include <cusparseLt.h>

#include "check_signatures.h"
#include "cusparselt.h"

namespace sparseflow::lt {

static_assert(sizeof(Opaque) >= sizeof(cusparseLtHandle_t) && alignof(Opaque) >= alignof(cusparseLtHandle_t));
static_assert(sizeof(Opaque) >= sizeof(cusparseLtMatDescriptor_t));
static_assert(sizeof(Opaque) >= sizeof(cusparseLtMatmulDescriptor_t));
static_assert(sizeof(Opaque) >= sizeof(cusparseLtMatmulAlgSelection_t));
static_assert(sizeof(Opaque) >= sizeof(cusparseLtMatmulPlan_t));

static_assert(int{kNonTranspose} == int{CUSPARSE_OPERATION_NON_TRANSPOSE});
static_assert(int{kColumns} == int{CUSPARSE_ORDER_COL} && int{kRows} == int{CUSPARSE_ORDER_ROW});
static_assert(int{kHalf} == int{CUSPARSELT_SPARSITY_50_PERCENT});
static_assert(int{kFloat32} == int{CUSPARSE_COMPUTE_32F});
static_assert(int{kRelu} == int{CUSPARSELT_MATMUL_ACTIVATION_RELU});
static_assert(int{kBiasPointer} == int{CUSPARSELT_MATMUL_BIAS_POINTER});
static_assert(int{kDefault} == int{CUSPARSELT_MATMUL_ALG_DEFAULT});
static_assert(int{kId} == int{CUSPARSELT_MATMUL_ALG_CONFIG_ID});
static_assert(int{kMaxId} == int{CUSPARSELT_MATMUL_ALG_CONFIG_MAX_ID});
static_assert(int{kSplitK} == int{CUSPARSELT_MATMUL_SPLIT_K});
static_assert(int{kSplitKMode} == int{CUSPARSELT_MATMUL_SPLIT_K_MODE});
static_assert(int{kSplitKBuffers} == int{CUSPARSELT_MATMUL_SPLIT_K_BUFFERS});
static_assert(int{kOneKernel} == int{CUSPARSELT_SPLIT_K_MODE_ONE_KERNEL});
static_assert(int{kTwoKernels} == int{CUSPARSELT_SPLIT_K_MODE_TWO_KERNELS});
static_assert(int{CUSPARSE_STATUS_SUCCESS} == 0);

static_assert(alike<decltype(Api::init), decltype(&cusparseLtInit)>);
static_assert(alike<decltype(Api::destroy), decltype(&cusparseLtDestroy)>);
static_assert(alike<decltype(Api::get_property), decltype(&cusparseLtGetProperty)>);
static_assert(alike<decltype(Api::error_string), decltype(&cusparseLtGetErrorString)>);
static_assert(alike<decltype(Api::dense), decltype(&cusparseLtDenseDescriptorInit)>);
static_assert(alike<decltype(Api::structured), decltype(&cusparseLtStructuredDescriptorInit)>);
static_assert(alike<decltype(Api::matrix_destroy), decltype(&cusparseLtMatDescriptorDestroy)>);
static_assert(alike<decltype(Api::matmul_init), decltype(&cusparseLtMatmulDescriptorInit)>);
static_assert(alike<decltype(Api::matmul_set), decltype(&cusparseLtMatmulDescSetAttribute)>);
static_assert(alike<decltype(Api::selection_init), decltype(&cusparseLtMatmulAlgSelectionInit)>);
static_assert(alike<decltype(Api::selection_destroy), decltype(&cusparseLtMatmulAlgSelectionDestroy)>);
static_assert(alike<decltype(Api::selection_set), decltype(&cusparseLtMatmulAlgSetAttribute)>);
static_assert(alike<decltype(Api::selection_get), decltype(&cusparseLtMatmulAlgGetAttribute)>);
static_assert(alike<decltype(Api::workspace), decltype(&cusparseLtMatmulGetWorkspace)>);
static_assert(alike<decltype(Api::plan_init), decltype(&cusparseLtMatmulPlanInit)>);
static_assert(alike<decltype(Api::plan_destroy), decltype(&cusparseLtMatmulPlanDestroy)>);
static_assert(alike<decltype(Api::matmul), decltype(&cusparseLtMatmul)>);
static_assert(alike<decltype(Api::compressed_size), decltype(&cusparseLtSpMMACompressedSize2)>);
static_assert(alike<decltype(Api::compress), decltype(&cusparseLtSpMMACompress2)>);

}  // namespace sparseflow::lt
