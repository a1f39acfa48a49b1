"""One readable training step and loop: accumulation, clipping, averages, checkpoints, device meshes."""

from physml.train._fit import Fit as Fit, NonFiniteError as NonFiniteError, fit as fit
from physml.train._minimise import Minimum as Minimum, minimise as minimise
from physml.train.checkpoint import Checkpoint as Checkpoint, CheckpointError as CheckpointError
from physml.train.mesh import data_parallel as data_parallel, local as local, replicate as replicate
from physml.train.processes import launch as launch, start_processes as start_processes
from physml.train.report import History as History
from physml.train.rows import row_indices as row_indices, shuffled as shuffled
from physml.train.step import State as State, init_state as init_state, train_step as train_step
from physml.train.store import load as load, save as save
