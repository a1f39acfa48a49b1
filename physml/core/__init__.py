"""Types, status codes, step-indexed noise, loops, fixed points and continuation, quadrature, the float64 rule."""

from physml.core.status import Code as Code, Failure as Failure, Status as Status, status as status
