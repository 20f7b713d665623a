"""What a loss over a vocabulary needs of the logits, and their gradient.

Shape letters: m tokens, V this rank's part of the vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from krzem.train.ops.registry import operator


@operator
def logit_sums(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """``[m]`` logarithms of the sums of exponentials of ``logits [m, V]``; ``[m]`` targets' logits.

    ``own [m]`` is the target's place among the logits, negative where it is not there: then its
    logit is given as zero.  Both results are float32.
    """
    chosen = logits.gather(1, own.clamp(min=0)[:, None]).squeeze(1).float()
    return logits.float().logsumexp(-1), chosen.masked_fill_(own < 0, 0.0)


@operator
def logit_gradient(logits: Tensor, own: Tensor, partition: Tensor, factor: Tensor) -> Tensor:
    """``exp(logits - partition) * factor``, less one at the target, ``[m, V]``; may be in place.

    ``partition [m]`` and ``factor [m]`` are float32.
    """
    g = (logits.float() - partition[:, None]).exp_().mul_(factor[:, None])
    here = (own >= 0).float()[:, None]
    return g.scatter_add_(1, own.clamp(min=0)[:, None], -here).to(logits.dtype)
