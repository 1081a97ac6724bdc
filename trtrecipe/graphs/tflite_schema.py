"""The parts of TFLite's schema that are read: operators, their options, types of tensors.

Transcribed from tensorflow/lite/schema/schema.fbs at v2.21.0; a test compares the slots with TensorFlow's own reader.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

CUSTOM = 32
LARGE_CODES = 127
"""In the old field for operator codes, which is one byte: the code is in the new one."""

_CODES = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM
MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS
SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN
EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2
GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG
SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT
UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU
SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE
MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5
SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO
RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL
CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE
RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX
UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD
STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS
STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE
STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH
STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE
STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE
STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE
STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
OPERATORS = tuple(_CODES.split())
"""BuiltinOperator: the name at the code's position."""

Field = tuple[int, str, float]
"""Slot, struct format ("i*" is a vector of it), default."""

_PADDING: dict[str, Field] = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
_POOL = {
    **_PADDING,
    "filter_width": (3, "i", 0),
    "filter_height": (4, "i", 0),
    "fused_activation_function": (5, "b", 0),
}
_FUSED: dict[str, Field] = {"fused_activation_function": (0, "b", 0)}
_REDUCER: tuple[int, dict[str, Field]] = (27, {"keep_dims": (0, "b", 0)})

OPTIONS: Mapping[str, tuple[int, Mapping[str, Field]]] = {
    "ADD": (11, _FUSED),
    "ARG_MAX": (40, {"output_type": (0, "b", 0)}),
    "ARG_MIN": (57, {"output_type": (0, "b", 0)}),
    "AVERAGE_POOL_2D": (5, _POOL),
    "BATCH_MATMUL": (101, {"adj_x": (0, "b", 0), "adj_y": (1, "b", 0)}),
    "CONCATENATION": (10, {"axis": (0, "i", 0), "fused_activation_function": (1, "b", 0)}),
    "CONV_2D": (
        1,
        {
            **_PADDING,
            "fused_activation_function": (3, "b", 0),
            "dilation_w_factor": (4, "i", 1),
            "dilation_h_factor": (5, "i", 1),
        },
    ),
    "CUMSUM": (102, {"exclusive": (0, "b", 0), "reverse": (1, "b", 0)}),
    "DEPTHWISE_CONV_2D": (
        2,
        {
            **_PADDING,
            "depth_multiplier": (3, "i", 0),
            "fused_activation_function": (4, "b", 0),
            "dilation_w_factor": (5, "i", 1),
            "dilation_h_factor": (6, "i", 1),
        },
    ),
    "DEPTH_TO_SPACE": (94, {"block_size": (0, "i", 0)}),
    "DIV": (29, _FUSED),
    "FAKE_QUANT": (
        58,
        {"min": (0, "f", 0), "max": (1, "f", 0), "num_bits": (2, "i", 0), "narrow_range": (3, "b", 0)},
    ),
    "FULLY_CONNECTED": (
        8,
        {"fused_activation_function": (0, "b", 0), "weights_format": (1, "b", 0), "keep_num_dims": (2, "b", 0)},
    ),
    "GATHER": (23, {"axis": (0, "i", 0), "batch_dims": (1, "i", 0)}),
    "GELU": (116, {"approximate": (0, "b", 0)}),
    "L2_NORMALIZATION": (12, _FUSED),
    "LEAKY_RELU": (75, {"alpha": (0, "f", 0)}),
    "LOCAL_RESPONSE_NORMALIZATION": (
        13,
        {"radius": (0, "i", 0), "bias": (1, "f", 0), "alpha": (2, "f", 0), "beta": (3, "f", 0)},
    ),
    "MAX_POOL_2D": (5, _POOL),
    "MEAN": _REDUCER,
    "MIRROR_PAD": (77, {"mode": (0, "b", 0)}),
    "MUL": (21, _FUSED),
    "ONE_HOT": (61, {"axis": (0, "i", 0)}),
    "PACK": (59, {"values_count": (0, "i", 0), "axis": (1, "i", 0)}),
    "REDUCE_MAX": _REDUCER,
    "REDUCE_MIN": _REDUCER,
    "REDUCE_PROD": _REDUCER,
    "RESHAPE": (17, {"new_shape": (0, "i*", 0)}),
    "RESIZE_BILINEAR": (15, {"align_corners": (2, "b", 0), "half_pixel_centers": (3, "b", 0)}),
    "RESIZE_NEAREST_NEIGHBOR": (74, {"align_corners": (0, "b", 0), "half_pixel_centers": (1, "b", 0)}),
    "SHAPE": (55, {"out_type": (0, "b", 0)}),
    "SOFTMAX": (9, {"beta": (0, "f", 0)}),
    "SPACE_TO_DEPTH": (19, {"block_size": (0, "i", 0)}),
    "SQUEEZE": (30, {"squeeze_dims": (0, "i*", 0)}),
    "STRIDED_SLICE": (
        32,
        {
            "begin_mask": (0, "i", 0),
            "end_mask": (1, "i", 0),
            "ellipsis_mask": (2, "i", 0),
            "new_axis_mask": (3, "i", 0),
            "shrink_axis_mask": (4, "i", 0),
            "offset": (5, "b", 0),
        },
    ),
    "SUB": (28, _FUSED),
    "SUM": _REDUCER,
    "TRANSPOSE_CONV": (49, {**_PADDING, "fused_activation_function": (3, "b", 0)}),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (
        71,
        {
            "fused_activation_function": (0, "b", 0),
            "cell_clip": (1, "f", 0),
            "proj_clip": (2, "f", 0),
            "time_major": (3, "b", 0),
            "diagonal_recurrent_tensors": (5, "b", 0),
        },
    ),
    "UNPACK": (64, {"num": (0, "i", 0), "axis": (1, "i", 0)}),
}
"""Operator → number of its table in the union BuiltinOptions, and the fields read from it."""

_TYPES = """
FLOAT32 FLOAT16 INT32 UINT8 INT64 STRING BOOL INT16 COMPLEX64 INT8 FLOAT64 COMPLEX128 UINT64 RESOURCE VARIANT UINT32
UINT16 INT4 BFLOAT16 INT2 UINT4
"""
KINDS = tuple(_TYPES.split())
"""TensorType: the name at the type's position."""

NUMPY: Mapping[str, npt.DTypeLike] = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "INT16": np.int16,
    "INT8": np.int8,
    "FLOAT64": np.float64,
}
"""Types whose constants are read."""

ONNX: Mapping[str, int] = {
    "FLOAT32": TensorProto.FLOAT,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
}
"""Types that a tensor between operators may have."""
