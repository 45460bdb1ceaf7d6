"""Models with several branches; `model.reid.BRANCHES` lists them."""
