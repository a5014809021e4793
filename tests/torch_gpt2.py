"""GPT-2 and its training in PyTorch, written for the tests and the benchmark: an implementation that shares no code.

The recipe is nanoGPT's: AdamW with decay on matrices, gradients clipped to norm 1, warm-up and cosine. Parameters have
canonical names with dots (`h0.attn.c_attn.w`) and the orientation (in, out).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.empty(n_in, n_out)), nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w.t(), self.b)


class Norm(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.g.shape, self.g, self.b, 1e-5)


class Attention(nn.Module):
    def __init__(self, c: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn, self.c_proj = Linear(c, 3 * c), Linear(c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Linear(c, 4 * c), Linear(4 * c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, c: int, n_head: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = Norm(c), Attention(c, n_head), Norm(c), MLP(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT2(nn.Module):
    """Gives the loss of inputs and targets (B, T)."""

    def __init__(self, n_vocab: int, n_ctx: int, n_embd: int, n_head: int, n_layer: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Parameter(torch.empty(n_vocab, n_embd)), nn.Parameter(torch.empty(n_ctx, n_embd))
        for n in range(n_layer):
            setattr(self, f"h{n}", Block(n_embd, n_head))
        self.ln_f = Norm(n_embd)
        self.blocks = [getattr(self, f"h{n}") for n in range(n_layer)]
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = F.embedding(x, self.wte) + self.wpe[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.ln_f(h), self.wte)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))

    def optimizer(self, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
        """AdamW, fused: the fastest that PyTorch has."""
        groups = [
            {"params": [p for p in self.parameters() if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def step(self, optimizer: torch.optim.AdamW, x: torch.Tensor, y: torch.Tensor, rate: float, bf16: bool) -> float:
        """One update; the loss before it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = self(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()
