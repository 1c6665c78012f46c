"""Muon in NumPy, one matrix at a time, as the papers write it down."""

from __future__ import annotations

import numpy as np

from train.optim.muon import MuonSettings

QUINTIC = [(3.4445, -4.7750, 2.0315)]
CLASSICAL = [(1.875, -1.25, 0.375)]
PAPER = [  # arXiv 2505.16932, algorithm 1
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
SAFE = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in PAPER[:-1]] + [PAPER[-1]]
LISTS = {"quintic": QUINTIC, "classical": CLASSICAL, "polar_express": SAFE}
MARGINS = {"quintic": 1.0, "classical": 1.0, "polar_express": 1.01}


def polynomials(name: str, steps: int) -> list[tuple[float, float, float]]:
    return [LISTS[name][min(step, len(LISTS[name]) - 1)] for step in range(steps)]


def orthogonalised(x: np.ndarray, name: str, steps: int) -> np.ndarray:
    x = x / (MARGINS[name] * np.linalg.norm(x) + 1e-7)
    for a, b, c in polynomials(name, steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Matrix:
    """One matrix and its state."""

    def __init__(self, weights: np.ndarray, settings: MuonSettings):
        self.weights, self.settings = weights.astype(np.float64), settings
        self.momentum, self.squares = np.zeros_like(self.weights), np.zeros(len(weights))

    def step(self, gradient: np.ndarray, lr: float) -> None:
        s, lr, (rows, columns) = self.settings, lr * self.settings.lr_factor, gradient.shape
        self.momentum = s.momentum * self.momentum + (1 - s.momentum) * gradient
        nesterov = s.momentum * self.momentum + (1 - s.momentum) * gradient
        update = orthogonalised(nesterov if s.nesterov else self.momentum, s.coefficients, s.steps)
        if s.row_beta:
            self.squares = s.row_beta * self.squares + (1 - s.row_beta) * (update**2).mean(1)
            update = update / (np.sqrt(self.squares) + 1e-8)[:, None]
            update *= np.sqrt(min(rows, columns)) / np.linalg.norm(update)
        scale = 0.2 * np.sqrt(max(rows, columns)) if s.scale == "match_rms" else np.sqrt(max(1, rows / columns))
        self.weights -= lr * (scale * update + s.weight_decay * self.weights)
