// Compiled where cuBLASLt's header is at hand, run never: holds cublaslt.h against it.
#include <cublasLt.h>

#include <cstddef>

#include "check_signatures.h"
#include "cublaslt.h"

namespace sparseflow::blas {

static_assert(int{CUBLAS_STATUS_SUCCESS} == 0);
static_assert(int{kFloat32} == int{CUBLAS_COMPUTE_32F});
static_assert(int{kNonTranspose} == int{CUBLAS_OP_N} && int{kTranspose} == int{CUBLAS_OP_T});
static_assert(int{kPlain} == int{CUBLASLT_EPILOGUE_DEFAULT});
static_assert(int{kRelu} == int{CUBLASLT_EPILOGUE_RELU} && int{kBias} == int{CUBLASLT_EPILOGUE_BIAS});
static_assert((int{kRelu} | int{kBias}) == int{CUBLASLT_EPILOGUE_RELU_BIAS});
static_assert(int{kTransposeA} == int{CUBLASLT_MATMUL_DESC_TRANSA});
static_assert(int{kEpilogue} == int{CUBLASLT_MATMUL_DESC_EPILOGUE});
static_assert(int{kBiasPointer} == int{CUBLASLT_MATMUL_DESC_BIAS_POINTER});
static_assert(int{kBiasType} == int{CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE});
static_assert(int{kMostWorkspace} == int{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES});
static_assert(int{kAlignmentA} == int{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES});
static_assert(int{kAlignmentB} == int{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES});
static_assert(int{kAlignmentC} == int{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES});
static_assert(int{kAlignmentD} == int{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES});

using Theirs = cublasLtMatmulHeuristicResult_t;
static_assert(sizeof(DenseAlgorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(alignof(DenseAlgorithm) >= alignof(cublasLtMatmulAlgo_t));
static_assert(sizeof(Result) == sizeof(Theirs) && alignof(Result) >= alignof(Theirs));
static_assert(offsetof(Result, algorithm) == offsetof(Theirs, algo));
static_assert(offsetof(Result, workspace) == offsetof(Theirs, workspaceSize));
static_assert(offsetof(Result, state) == offsetof(Theirs, state));
static_assert(offsetof(Result, waves) == offsetof(Theirs, wavesCount));

static_assert(alike<decltype(Api::create), decltype(&cublasLtCreate)>);
static_assert(alike<decltype(Api::destroy), decltype(&cublasLtDestroy)>);
static_assert(alike<decltype(Api::version), decltype(&cublasLtGetVersion)>);
static_assert(alike<decltype(Api::error_string), decltype(&cublasLtGetStatusString)>);
static_assert(alike<decltype(Api::matmul_create), decltype(&cublasLtMatmulDescCreate)>);
static_assert(alike<decltype(Api::matmul_destroy), decltype(&cublasLtMatmulDescDestroy)>);
static_assert(alike<decltype(Api::matmul_set), decltype(&cublasLtMatmulDescSetAttribute)>);
static_assert(alike<decltype(Api::layout_create), decltype(&cublasLtMatrixLayoutCreate)>);
static_assert(alike<decltype(Api::layout_destroy), decltype(&cublasLtMatrixLayoutDestroy)>);
static_assert(alike<decltype(Api::preference_create), decltype(&cublasLtMatmulPreferenceCreate)>);
static_assert(alike<decltype(Api::preference_destroy), decltype(&cublasLtMatmulPreferenceDestroy)>);
static_assert(alike<decltype(Api::preference_set), decltype(&cublasLtMatmulPreferenceSetAttribute)>);
static_assert(alike<decltype(Api::heuristic), decltype(&cublasLtMatmulAlgoGetHeuristic)>);
static_assert(alike<decltype(Api::check), decltype(&cublasLtMatmulAlgoCheck)>);
static_assert(alike<decltype(Api::matmul), decltype(&cublasLtMatmul)>);

}  // namespace sparseflow::blas
