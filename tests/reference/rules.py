"""What each preset means, as data: one switch per mechanism.

=========  ========================  ===================================================
switch     value                     meaning in the backward pass
=========  ========================  ===================================================
norm       "true" | "frozen"         frozen: the standard deviation is a constant, the norm
                                     is a linear map (LRPx C.5; LN-rule of Ali et al. 2022)
z          factor                    share of the relevance of A.V given to A and to V each
pattern    factor                    share of the relevance of Q.K given to Q and to K each;
                                     0: attention weights are constants (CP-LRP, AH-rule)
act        "true" | "identity"       identity: f'(x) is replaced by f(x)/x, that is, relevance
                                     passes the activation unchanged (LRPx C.3)
gate       "true" | "constant"       constant: act(gate) is a constant and all relevance goes to
           | "half"                  up; half: one half to each factor (uniform rule)
temperature  T                       softmax Jacobian at softmax(scores / T), without a factor
                                     1 / T (GIM's temperature-adjusted softmax gradients)
epsilon      number                  identity rule with f(x)/(x + epsilon): 0 in the papers,
                                     1e-10 in LXT 2.1, which wrote the golden values
=========  ========================  ===================================================

Factors are 1 for the true derivative and 1/2 for the uniform rule: the product rule counts a
bilinear product twice, and one half each makes the two shares sum to the product.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rules:
    """One attribution method. The default is the gradient; ``replace`` makes any ablation."""

    norm: Literal["true", "frozen"] = "true"
    z: float = 1.0
    pattern: float = 1.0
    act: Literal["true", "identity"] = "true"
    gate: Literal["true", "constant", "half"] = "true"
    temperature: float = 1.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        choices = {
            "norm": ("true", "frozen"),
            "act": ("true", "identity"),
            "gate": ("true", "constant", "half"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {allowed}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @property
    def gate_factors(self) -> tuple[float, float]:
        """Factors on the paths through (act(gate), up)."""
        return {"true": (1.0, 1.0), "constant": (0.0, 1.0), "half": (0.5, 0.5)}[self.gate]


PRESETS: dict[str, Rules] = {
    # Gradient times input: the true derivative everywhere.
    "gradient_x_input": Rules(),
    # Arras et al. 2025 (LRPx), C.3 and C.5; Ali et al. 2022 (CP-LRP): attention weights and
    # gates are constants.
    "lrp": Rules(norm="frozen", pattern=0.0, act="identity", gate="constant"),
    # Achtibat et al. 2024: uniform rule on every bilinear product, Proposition 3.1 on softmax.
    "attnlrp": Rules(norm="frozen", z=0.5, pattern=0.5, act="identity", gate="half"),
    # Edin et al. 2025: frozen norms, temperature-adjusted softmax gradients, gradients of
    # bilinear products divided by their number of factors; activations keep their derivative.
    "gim": Rules(norm="frozen", z=0.5, pattern=0.5, gate="half", temperature=2.0),
    # Jafari et al. 2025: LN-rule, identity rule and half rule (gates); attention keeps its
    # gradient here, as in the design. ``pattern=0`` gives the AH-rule variant.
    "relp": Rules(norm="frozen", act="identity", gate="half"),
}
