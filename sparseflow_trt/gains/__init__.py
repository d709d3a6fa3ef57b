"""What 2:4 would gain or gained: estimates, money, and where a model's GPU time goes."""
