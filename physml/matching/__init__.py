"""Transport between distributions: paths, one loss, samplers, likelihoods. t runs from 0 (source) to 1 (data)."""

from physml.matching.chain import (
    Ancestral as Ancestral,
    Chain as Chain,
    ancestral as ancestral,
    calibrate as calibrate,
    gaussian_chain as gaussian_chain,
    log_weight as log_weight,
)
from physml.matching.convert import convert as convert
from physml.matching.coupling import (
    Assignment as Assignment,
    Entropic as Entropic,
    Independent as Independent,
    Keep as Keep,
    Pairs as Pairs,
    Plan as Plan,
    couple as couple,
    sinkhorn as sinkhorn,
    squared_distances as squared_distances,
)
from physml.matching.entropic import (
    GaussianPlan as GaussianPlan,
    MixturePlan as MixturePlan,
    gaussian_plan as gaussian_plan,
    mixture_plan as mixture_plan,
)
from physml.matching.exact import (
    Fields as Fields,
    exact_fields as exact_fields,
    mixture_log_prob as mixture_log_prob,
    mixture_sample as mixture_sample,
)
from physml.matching.flexible import (
    ForwardProcess as ForwardProcess,
    evidence_bound as evidence_bound,
    forward_process as forward_process,
)
from physml.matching.fokker_planck import potential_residual as potential_residual, score_residual as score_residual
from physml.matching.kinetic import (
    KineticMetric as KineticMetric,
    kinetic_metric as kinetic_metric,
    kinetic_optimal as kinetic_optimal,
)
from physml.matching.light_bridge import (
    Conditional as Conditional,
    LightBridge as LightBridge,
    bridge_loss as bridge_loss,
    light_bridge as light_bridge,
)
from physml.matching.likelihood import divergence as divergence, log_prob as log_prob
from physml.matching.loss import match as match
from physml.matching.mean_flow import (
    instantaneous as instantaneous,
    mean_flow_loss as mean_flow_loss,
    one_step as one_step,
    sample_mean_flow as sample_mean_flow,
)
from physml.matching.meta import MetaField as MetaField, match_populations as match_populations
from physml.matching.multimarginal import (
    Curve as Curve,
    along as along,
    edge as edge,
    exact_means as exact_means,
    learn_curve as learn_curve,
    simplex_match as simplex_match,
    transport_energy as transport_energy,
)
from physml.matching.path import (
    Path as Path,
    Record as Record,
    brownian_bridge as brownian_bridge,
    edm as edm,
    linear as linear,
    mirror as mirror,
    sub_variance_preserving as sub_variance_preserving,
    trigonometric as trigonometric,
    variance_exploding as variance_exploding,
    variance_preserving as variance_preserving,
)
from physml.matching.pfgm import StudentNoise as StudentNoise, empirical_denoiser as empirical_denoiser
from physml.matching.precondition import Preconditioned as Preconditioned
from physml.matching.sample import (
    sample as sample,
    sample_sde as sample_sde,
    sample_sde_batch as sample_sde_batch,
)
from physml.matching.times import log_snr as log_snr, logit_normal as logit_normal
