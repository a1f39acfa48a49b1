"""Transport between distributions: paths, one loss, samplers, likelihoods. t runs from 0 (source) to 1 (data)."""

from physml.matching.bridges.gaussian_plan import GaussianPlan as GaussianPlan, gaussian_plan as gaussian_plan
from physml.matching.bridges.light_bridge import (
    Conditional as Conditional,
    LightBridge as LightBridge,
    bridge_loss as bridge_loss,
    light_bridge as light_bridge,
)
from physml.matching.bridges.mixture_plan import MixturePlan as MixturePlan, mixture_plan as mixture_plan
from physml.matching.couplings.couple import (
    Assignment as Assignment,
    Entropic as Entropic,
    Independent as Independent,
    Keep as Keep,
    Pairs as Pairs,
    couple as couple,
    squared_distances as squared_distances,
)
from physml.matching.couplings.sinkhorn import (
    Divergence as Divergence,
    Plan as Plan,
    sinkhorn as sinkhorn,
    sinkhorn_divergence as sinkhorn_divergence,
)
from physml.matching.exact.fokker_planck import (
    potential_residual as potential_residual,
    score_residual as score_residual,
)
from physml.matching.exact.mixture import (
    Fields as Fields,
    exact_fields as exact_fields,
    mixture_log_prob as mixture_log_prob,
    mixture_sample as mixture_sample,
)
from physml.matching.losses.match import match as match
from physml.matching.losses.mean_flow import (
    instantaneous as instantaneous,
    mean_flow_loss as mean_flow_loss,
    one_step as one_step,
    sample_mean_flow as sample_mean_flow,
)
from physml.matching.losses.meta import MetaField as MetaField, match_populations as match_populations
from physml.matching.losses.multimarginal import (
    Curve as Curve,
    along as along,
    edge as edge,
    exact_means as exact_means,
    learn_curve as learn_curve,
    simplex_match as simplex_match,
    transport_energy as transport_energy,
)
from physml.matching.paths.convert import convert as convert
from physml.matching.paths.flexible import (
    ForwardProcess as ForwardProcess,
    evidence_bound as evidence_bound,
    forward_process as forward_process,
)
from physml.matching.paths.kinetic import (
    KineticMetric as KineticMetric,
    kinetic_metric as kinetic_metric,
    kinetic_optimal as kinetic_optimal,
)
from physml.matching.paths.path import (
    Path as Path,
    Record as Record,
    brownian_bridge as brownian_bridge,
    edm as edm,
    linear as linear,
    mirror_interpolant as mirror_interpolant,
    sub_variance_preserving as sub_variance_preserving,
    trigonometric as trigonometric,
    variance_exploding as variance_exploding,
    variance_preserving as variance_preserving,
)
from physml.matching.paths.pfgm import StudentNoise as StudentNoise, empirical_denoiser as empirical_denoiser
from physml.matching.paths.precondition import Preconditioned as Preconditioned
from physml.matching.paths.times import log_snr as log_snr, logit_normal as logit_normal
from physml.matching.sampling.chain import (
    Ancestral as Ancestral,
    Chain as Chain,
    ancestral as ancestral,
    calibrate as calibrate,
    gaussian_chain as gaussian_chain,
    log_weight as log_weight,
)
from physml.matching.sampling.distribution import Flow as Flow, Normal as Normal
from physml.matching.sampling.flow import (
    sample as sample,
    sample_sde as sample_sde,
    sample_sde_batch as sample_sde_batch,
)
from physml.matching.sampling.likelihood import log_prob as log_prob
