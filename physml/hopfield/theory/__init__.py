"""Replica theory of associative memory and spin glasses: order parameters, free energies, lines of phase diagrams."""

from physml.hopfield.theory._amit import Lines as Lines, Phase as Phase, amit as amit, amit_lines as amit_lines
from physml.hopfield.theory._dense import (
    critical_load as critical_load,
    dense as dense,
    raw_load as raw_load,
    transition as transition,
)
from physml.hopfield.theory._multitasking import TaskOrder as TaskOrder, multitasking as multitasking
from physml.hopfield.theory._parisi import parisi as parisi
from physml.hopfield.theory.continual import TwoTaskOrder as TwoTaskOrder, two_tasks as two_tasks
from physml.hopfield.theory.data_sets import DataSetOrder as DataSetOrder, data_set as data_set
from physml.hopfield.theory.one_step import (
    GlassLines as GlassLines,
    free_energy_one_step as free_energy_one_step,
    glass_lines as glass_lines,
    ground_state_load as ground_state_load,
)
from physml.hopfield.theory.perceptron import (
    PlantedEntropy as PlantedEntropy,
    StudentOrder as StudentOrder,
    planted_entropy as planted_entropy,
    random_label_capacity as random_label_capacity,
    student_transitions as student_transitions,
    teacher_student as teacher_student,
)
from physml.hopfield.theory.replica import Order as Order
from physml.hopfield.theory.spin_glass import (
    SpinGlassOrder as SpinGlassOrder,
    SpinGlassPhase as SpinGlassPhase,
    sherrington_kirkpatrick as sherrington_kirkpatrick,
)
from physml.hopfield.theory.variational import (
    VariationalOrder as VariationalOrder,
    variational_tasks as variational_tasks,
)
