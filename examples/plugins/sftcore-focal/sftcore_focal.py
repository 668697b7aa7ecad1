from sftcore import TokenLoss, hookimpl, plugin


@plugin
class Focal:
    """Focal loss: tokens that the model knows already count less (Lin et al. 2017, arXiv:1708.02002)."""

    gamma: float = 2.0

    @hookimpl
    def claims(self):
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self, loaded, plan):
        def per_token(log_probs):
            return -log_probs * (1 - log_probs.exp()) ** self.gamma

        return TokenLoss(per_token)
