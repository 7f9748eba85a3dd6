"""Baseline CycleGAN step without optimizations: the ground truth of tests and the reference of benchmarks.

It is independent of the package and follows the original implementation, whose names it uses: G_A maps A to B, D_A
scores domain B. Each generator is called once for each image, and the optimizer is plain Adam.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Textbook:
    g_a: nn.Module
    g_b: nn.Module
    d_a: nn.Module
    d_b: nn.Module
    lambda_a: float = 10.0
    lambda_b: float = 10.0
    lambda_identity: float = 0.5
    mode: str = "lsgan"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generators = [*self.g_a.parameters(), *self.g_b.parameters()]
        discriminators = [*self.d_a.parameters(), *self.d_b.parameters()]
        self.optimizer_g = torch.optim.Adam(generators, self.lr, betas=self.betas)
        self.optimizer_d = torch.optim.Adam(discriminators, self.lr, betas=self.betas)

    def adversarial(self, scores: Tensor, *, real: bool) -> Tensor:
        target = torch.full_like(scores, 1.0 if real else 0.0)
        if self.mode == "lsgan":
            return ((scores - target) ** 2).mean()
        assert self.mode == "bce"
        p = torch.sigmoid(scores)
        return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()

    def step(self, real_a: Tensor, real_b: Tensor) -> dict[str, float]:
        """Train one step on a batch, without image pools; return the weighted losses, keyed by their original names."""
        for p in [*self.d_a.parameters(), *self.d_b.parameters()]:
            p.requires_grad = False
        self.optimizer_g.zero_grad()
        fake_b = self.g_a(real_a)
        rec_a = self.g_b(fake_b)
        fake_a = self.g_b(real_b)
        rec_b = self.g_a(fake_a)
        losses: dict[str, Tensor] = {}
        if self.lambda_identity:
            losses["idt_A"] = (self.g_a(real_b) - real_b).abs().mean() * self.lambda_b * self.lambda_identity
            losses["idt_B"] = (self.g_b(real_a) - real_a).abs().mean() * self.lambda_a * self.lambda_identity
        losses["G_A"] = self.adversarial(self.d_a(fake_b), real=True)
        losses["G_B"] = self.adversarial(self.d_b(fake_a), real=True)
        losses["cycle_A"] = (rec_a - real_a).abs().mean() * self.lambda_a
        losses["cycle_B"] = (rec_b - real_b).abs().mean() * self.lambda_b
        total = torch.zeros((), dtype=real_a.dtype)
        for loss in losses.values():
            total = total + loss
        torch.autograd.backward(total)
        self.optimizer_g.step()

        for p in [*self.d_a.parameters(), *self.d_b.parameters()]:
            p.requires_grad = True
        self.optimizer_d.zero_grad()
        for name, discriminator, real, fake in (("D_A", self.d_a, real_b, fake_b), ("D_B", self.d_b, real_a, fake_a)):
            loss_real = self.adversarial(discriminator(real), real=True)
            loss_fake = self.adversarial(discriminator(fake.detach()), real=False)
            losses[name] = 0.5 * (loss_real + loss_fake)
            torch.autograd.backward(losses[name])
        self.optimizer_d.step()
        return {name: loss.item() for name, loss in losses.items()}


# Name of a loss in the package -> its name in the original implementation.
NAMES = {
    "loss/gan_ab": "G_A",
    "loss/gan_ba": "G_B",
    "loss/cycle_a": "cycle_A",
    "loss/cycle_b": "cycle_B",
    "loss/identity_a": "idt_B",  # the original names it after the generator, the package after the domain
    "loss/identity_b": "idt_A",
    "loss/discriminator_a": "D_B",
    "loss/discriminator_b": "D_A",
}
