"""Optimizers: AdamW, and Muon with AdamW beside it; `make_optimizer` gives the one that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine import Module
from train.optim.adamw import AdamW
from train.optim.muon import Muon, MuonSettings
from train.optim.optimizer import Optimizer
from train.optim.router import Route

if TYPE_CHECKING:
    from train.sections import OptimConfig

__all__ = ["AdamW", "Muon", "MuonSettings", "Optimizer", "Route", "make_optimizer"]


def make_optimizer(model: Module, optim: OptimConfig, working: torch.dtype | None = None) -> Optimizer:
    """The optimizer of a configuration; it moves the model's parameters into its arena.

    Args:
        working: dtype of the rounded copy of the weights that the model computes with; None: no copy.
    """
    if optim.optimizer == "adamw" and not optim.switch_to_muon_at:
        return AdamW(model, optim.betas, optim.eps, optim.weight_decay, optim.clip_norm, working, optim.ema)
    settings = MuonSettings(
        lr_factor=optim.muon_lr / optim.lr if optim.muon_lr else 1.0,
        weight_decay=optim.weight_decay if optim.muon_weight_decay < 0 else optim.muon_weight_decay,
        momentum=optim.muon_momentum, nesterov=optim.muon_nesterov, steps=optim.muon_steps,
        coefficients=optim.muon_coefficients, scale=optim.muon_scale, per_head=optim.muon_per_head,
        head=optim.muon_head, row_beta=optim.betas[1] if optim.normuon else 0.0)
    switch_at = optim.switch_to_muon_at if optim.optimizer == "adamw" else 0
    return Muon(model, settings, switch_at, optim.betas, optim.eps, optim.weight_decay, optim.clip_norm, working,
                optim.ema)
