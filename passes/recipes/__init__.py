"""One file per family of linear-complexity mixers."""

from .activator import activator
from .agent import agent, agent_sd
from .based import based, taylor2
from .cosformer import cosformer
from .deltanet import deltanet, gated_deltanet, kda
from .ecoformer import ecoformer
from .efficient import efficient_attention
from .ehrmamba import ehrmamba
from .elu1 import elu1
from .favit import favit
from .gla import gla
from .hedgehog import hedgehog
from .hsm_ssd import hsm_ssd
from .inline import inline
from .kinetics import kinetics
from .kronecker import polynomial, tensor_attention
from .lamamba import lamamba
from .liger import liger
from .lightning import lightning
from .linformer import linformer
from .linfusion import linfusion
from .lingen import lingen
from .lion import lion, lion_retnet, lion_rwkv
from .lolcats import lolcats
from .mamba2 import discrete_mamba2, mamba2
from .mlgru import mlgru
from .mom import mom
from .nystrom import nystrom
from .performer import performer
from .pisa import pisa
from .recipe import ALL, RECIPES, Mixing, Recipe, recipe, recipe_named
from .retnet import retnet
from .rwkv6 import rwkv6
from .sla import sla
from .slots import slots
from .taylor1 import taylor1
from .vig import vig
from .wersa import wersa
from .window import window
from .zeroi2v import zeroi2v

__all__ = [
    "ALL", "Mixing", "RECIPES", "Recipe", "activator", "agent", "agent_sd", "based", "cosformer",
    "deltanet", "discrete_mamba2", "ecoformer", "efficient_attention", "ehrmamba", "elu1", "favit",
    "gated_deltanet", "gla", "hedgehog", "hsm_ssd", "inline", "kda", "kinetics", "lamamba", "liger",
    "lightning", "linformer", "linfusion", "lingen", "lion", "lion_retnet", "lion_rwkv", "lolcats",
    "mamba2", "mlgru", "mom", "nystrom", "performer", "pisa", "polynomial", "recipe", "recipe_named",
    "retnet", "rwkv6", "sla", "slots", "taylor1", "taylor2", "tensor_attention", "vig", "wersa",
    "window", "zeroi2v",
]  # fmt: skip
