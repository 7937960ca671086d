"""The loss to expect before anything is learnt."""

from barlow.errors import InputError


def expected_initial_loss(width: int, batch: int, lambd: float, lambd_reg: float | None = None) -> dict[str, float]:
    """Expected terms for embeddings [batch, width] whose views and features have nothing to do with each other.

    Two standardised independent features have E[C_ij] = 0 and E[C_ij^2] = 1 / (N - 1) (columns are random unit
    vectors orthogonal to the ones vector), so

        invariance = D (1 + 1 / (N - 1)),   redundancy = lambd D (D - 1) / (N - 1).

    A fresh network shares something between views and between features: its invariance lies below, its
    redundancy above. A first loss of another order of magnitude than `loss` points at a wrong lambd, width or batch.
    With `lambd_reg` (Mixed Barlow Twins) the mean over a ~ U(0, 1) of the mixing term is added:
    `mix = lambd_reg lambd (10/3 D^2 / (N - 1) + 1/3 D (N - 2) / (N - 1))`.
    """
    if batch < 3 or width < 2:
        raise InputError(f"the expected loss needs a batch of 3 and a width of 2 or more, got {batch} and {width}")
    noise = 1.0 / (batch - 1)
    terms = {"invariance": width * (1 + noise), "redundancy": lambd * width * (width - 1) * noise}
    if lambd_reg is not None:
        terms["mix"] = lambd_reg * lambd * (10 / 3 * width**2 * noise + width / 3 * (1 - noise))
    return {"loss": sum(terms.values()), **terms}
