"""Lift the float32 casts inside Hugging Face norms and softmax, for float64 comparisons."""

from lens_attr.graph.precision import Float64Throughout

__all__ = ["Float64Throughout"]
