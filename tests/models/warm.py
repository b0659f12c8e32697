"""What the server of processes does once, before it forks: a first capture imports two thousand modules."""

import torch
from torch import nn

import subquad

from .case import cases

cases()
torch.set_num_threads(1)
subquad.optimize(nn.Linear(4, 4).eval(), (torch.ones(2, 4),), dynamic_shapes=({0: "b"},), backend="eager")
