"""Small equinox networks that serve as fields f(t, x, args), and the adapter for Flax modules."""

from physml.nn.adapter import LinenField as LinenField, NNXField as NNXField, from_flax as from_flax
from physml.nn.condition import Condition as Condition, time_features as time_features
from physml.nn.mlp import MLP as MLP
from physml.nn.residual import ResidualMLP as ResidualMLP, adaptive_layer_norm as adaptive_layer_norm
from physml.nn.sets import DeepSets as DeepSets
from physml.nn.transformer import DiT as DiT, SetTransformer as SetTransformer, Transformer as Transformer
