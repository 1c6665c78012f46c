"""Polynomials of Newton-Schulz steps: (a, b, c) takes a singular value s to a s + b s^3 + c s^5."""

from __future__ import annotations

from train.errors import UserError

Polynomials = tuple[tuple[float, float, float], ...]

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan et al. 2024: steepest at 0; singular values end between 0.68 and 1.21, they do not converge."""
CLASSICAL = (15 / 8, -5 / 4, 3 / 8)
"""Newton-Schulz of fifth order: converges to 1, slowly from small singular values."""
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
"""Each step's best polynomial for singular values from 0.001 to 1 (arXiv 2505.16932, algorithm 1); later steps are
CLASSICAL."""
SAFETY = 1.01
"""Room for rounding: every polynomial of POLAR_EXPRESS takes its argument divided by this, and so is the matrix."""


def polynomials(name: str, steps: int) -> tuple[Polynomials, float]:
    """The polynomials of `steps` steps, and the factor by which the Frobenius norm is taken too large before them.

    Args:
        name: "quintic", "polar_express" or "classical".
    """
    if name == "polar_express":
        safe = tuple((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS)
        return (safe + (CLASSICAL,) * steps)[:steps], SAFETY
    named = {"quintic": QUINTIC, "classical": CLASSICAL}
    if name not in named:
        raise UserError(f"optim.muon_coefficients must be one of quintic, polar_express, classical: got {name!r}")
    return (named[name],) * steps, 1.0
