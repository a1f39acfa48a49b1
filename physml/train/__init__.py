"""One readable training step and loop: accumulation, clipping, averages, checkpoints, device meshes."""

from physml.train.checkpoint import Checkpoint as Checkpoint
from physml.train.checkpoint import CheckpointError as CheckpointError
from physml.train.fit import Fit as Fit
from physml.train.fit import NonFiniteError as NonFiniteError
from physml.train.fit import fit as fit
from physml.train.mesh import data_parallel as data_parallel
from physml.train.mesh import replicate as replicate
from physml.train.report import History as History
from physml.train.rows import row_indices as row_indices
from physml.train.rows import shuffled as shuffled
from physml.train.step import State as State
from physml.train.step import init_state as init_state
from physml.train.step import train_step as train_step
from physml.train.store import load as load
from physml.train.store import save as save
