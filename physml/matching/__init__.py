"""Transport between distributions: paths, one loss, samplers, likelihoods. t runs from 0 (source) to 1 (data)."""

from physml.matching.convert import convert as convert
from physml.matching.likelihood import divergence as divergence, log_prob as log_prob
from physml.matching.loss import match as match
from physml.matching.path import (
    Path as Path,
    Record as Record,
    brownian_bridge as brownian_bridge,
    linear as linear,
    trigonometric as trigonometric,
)
from physml.matching.sample import (
    sample as sample,
    sample_sde as sample_sde,
    sample_sde_batch as sample_sde_batch,
)
