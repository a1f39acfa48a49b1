"""Small equinox networks that serve as fields f(t, x, args), and the adapter for Flax modules."""

from physml.nn.adapter import LinenField as LinenField
from physml.nn.adapter import NNXField as NNXField
from physml.nn.adapter import from_flax as from_flax
from physml.nn.condition import Condition as Condition
from physml.nn.condition import time_features as time_features
from physml.nn.mlp import MLP as MLP
from physml.nn.residual import ResidualMLP as ResidualMLP
from physml.nn.residual import adaptive_layer_norm as adaptive_layer_norm
from physml.nn.sets import DeepSets as DeepSets
from physml.nn.transformer import DiT as DiT
from physml.nn.transformer import SetTransformer as SetTransformer
from physml.nn.transformer import Transformer as Transformer
