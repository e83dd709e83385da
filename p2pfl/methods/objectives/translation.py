"""Images of one site made to look like those of another, of which there are no pairs; and images made from nothing.

`cycle_losses`: two translators, there and back, and a discriminator at each end. `critic_loss`: of a Wasserstein GAN,
whose generator is a decoder of `variational`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from p2pfl.methods.objectives.variational import convolutions, convolved
from p2pfl.types import Array, Key, Tree

SLOPE = 0.2
"""Of leaky ReLUs in discriminators."""


def translator(key: Key, colours: int, channels: int) -> Tree:
    """Draw a translator of images [H, W, colours]: three convolutions; the last sees the image itself, too."""
    return convolutions(key, (colours, channels), (channels, channels), (channels + colours, colours))


def translated(network: Tree, x: Array) -> Array:
    """Images [B, H, W, C] as a translator shows them; of the same size."""
    h = jax.nn.relu(convolved(network["0"], x))
    h = h + jax.nn.relu(convolved(network["1"], h))
    return convolved(network["2"], jnp.concatenate([h, x], axis=-1))


def discriminator(key: Key, colours: int, channels: int) -> Tree:
    """Draw a discriminator of patches of images [H, W, colours]: three convolutions, two of stride 2."""
    return convolutions(key, (colours, channels), (channels, channels), (channels, 1))


def judged(network: Tree, x: Array) -> Array:
    """How real each patch of images [B, H, W, C] looks: 1 as trained for real ones, 0 for others; [B, H/4, W/4, 1]."""
    for index in range(2):
        x = jax.nn.leaky_relu(convolved(network[str(index)], x, 2), SLOPE)
    return convolved(network["2"], x)


def cycle_losses(networks: Tree, x: Array, target: Array, cycle: float, identity: float) -> tuple[Array, Array]:
    """The losses of the translators and of the discriminators.

        translators:      (D_t(G(x)) - 1)^2 + (D_x(F(t)) - 1)^2 + cycle (|F(G(x)) - x| + |G(F(t)) - t|)
                          + identity (|G(t) - t| + |F(x) - x|)
        discriminators:   ( (D_t(t) - 1)^2 + D_t(G(x))^2 + (D_x(x) - 1)^2 + D_x(F(t))^2 ) / 2

    All are means over images and pixels, or patches. Source: Zhu, Park, Isola, Efros, "Unpaired image-to-image
    translation using cycle-consistent adversarial networks" (2017), equations 1 to 3 with the squares of section 4.

    Args:
        networks: {"there": G, "back": F, "target": D_t, "own": D_x}.
        x: [B, H, W, C] images of one's own.
        target: [B, H, W, C] of the target.
        cycle: weight of cycle consistency.
        identity: weight of leaving alone what is as it should be.

    Returns:
        Both losses, [] each.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from p2pfl.methods.objectives import translation
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> made = {name: draw(key, 1, 2) for key, (name, draw) in zip(keys, translation.NETWORKS.items())}
        >>> of_translators, of_discriminators = translation.cycle_losses(made, *jnp.ones((2, 1, 8, 8, 1)), 10.0, 0.0)
        >>> of_translators.shape
        ()
    """
    there, back = translated(networks["there"], x), translated(networks["back"], target)
    taken = _apart(judged(networks["target"], there), 1) + _apart(judged(networks["own"], back), 1)
    round_ = _near(translated(networks["back"], there), x) + _near(translated(networks["there"], back), target)
    same = _near(translated(networks["there"], target), target) + _near(translated(networks["back"], x), x)
    fake = jax.lax.stop_gradient((there, back))
    told = _apart(judged(networks["target"], target), 1) + _apart(judged(networks["target"], fake[0]), 0)
    told = told + _apart(judged(networks["own"], x), 1) + _apart(judged(networks["own"], fake[1]), 0)
    return taken + cycle * round_ + identity * same, told / 2


NETWORKS: Mapping[str, Callable[[Key, int, int], Tree]] = MappingProxyType(
    {"there": translator, "back": translator, "target": discriminator, "own": discriminator}
)
"""How each network of `cycle_losses` is drawn."""


def critic_loss(score: Callable[[Array], Array], real: Array, fake: Array, key: Key, penalty: float = 10.0) -> Array:
    """The loss of the critic of a Wasserstein GAN with a penalty on gradients.

        mean D(fake) - mean D(real) + penalty mean (|grad D(e real + (1 - e) fake)| - 1)^2,     e uniform

    Source: Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved training of Wasserstein GANs" (2017), equation 3.

    Args:
        score: D, of images [B, ...] to [B].
        real: [B, ...].
        fake: [B, ...].
        key: of e.
        penalty: its weight.

    Returns:
        []

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from p2pfl.methods.objectives.translation import critic_loss
        >>> flat = lambda x: x.sum(axis=1)  # of a gradient of norm 2
        >>> critic_loss(flat, jnp.ones((3, 4)), jnp.zeros((3, 4)), jax.random.key(0)).item()
        6.0
    """
    share = jax.random.uniform(key, (real.shape[0], *(1,) * (real.ndim - 1)), real.dtype)
    between = share * real + (1 - share) * fake
    slope = jax.grad(lambda x: score(x).sum())(between).reshape(real.shape[0], -1)
    norm = jnp.sqrt((slope**2).sum(axis=1) + 1e-12)
    return score(fake).mean() - score(real).mean() + penalty * ((norm - 1) ** 2).mean()


def _apart(judged: Array, label: float) -> Array:
    return ((judged - label) ** 2).mean()


def _near(one: Array, other: Array) -> Array:
    return jnp.abs(one - other).mean()
