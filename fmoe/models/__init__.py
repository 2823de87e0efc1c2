"""Networks: the experts' backbones, the gates, and the mixture of them."""
