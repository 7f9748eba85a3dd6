"""One direction without a cycle: the translation of a mirrored image is the mirrored translation (Fu et al. 2019)."""

import torch

from cyclestyle.objectives.step import PartResult


class OneWay:
    """Objective that trains generator ab and discriminator b; the other two networks keep their initial weights."""

    def __init__(self, generators, discriminators, *, adversarial, prepare, geometry: float = 20.0):
        self.b, self.adversarial, self.geometry = discriminators.b, adversarial, geometry
        self.modules = {"generators": generators, "discriminators": discriminators}  # saved in checkpoints
        self.parameters = {"generators": [*generators.ab.parameters()], "discriminators": [*self.b.parameters()]}
        self.translate = prepare(generators.ab, synchronized=True)
        self.score, self.judge = (prepare(self.b, synchronized=synchronized) for synchronized in (True, False))

    def step(self, images, update):
        scalars, made = update("generators", [self.generator_losses], images.a)
        return scalars | update("discriminators", [self.discriminator_losses], images.b, made["fake_b"]).scalars

    def generator_losses(self, a):
        fake, mirrored = self.translate(torch.cat([a, a.flip(-1)])).chunk(2)
        self.b.requires_grad_(False)
        gan = self.adversarial.generator(self.judge(fake))
        self.b.requires_grad_(True)
        geometry = self.geometry * (mirrored.flip(-1) - fake).abs().mean()
        return PartResult({"loss/gan_ab": gan, "loss/geometry_ab": geometry}, images={"fake_b": fake})

    def discriminator_losses(self, b, fake_b):
        real, fake = self.score(torch.cat([b, fake_b])).chunk(2)
        return PartResult({"loss/discriminator_b": 0.5 * (self.adversarial.real(real) + self.adversarial.fake(fake))})

    def state_dict(self):
        return {}  # nothing but the weights of `modules`

    rank_state_dict = state_dict

    def load_state_dict(self, state): ...
    def load_rank_state_dicts(self, states, *, rank, ranks, device): ...
